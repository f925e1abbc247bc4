"""learner.chunk_tokens = 0: how many tokens have logits at a time is left to the run."""

import copy
from pathlib import Path

import pytest
from building.objectives import built

from common.spec import SequenceSpec
from deploy.planning.resources import Sizing
from deploy.run_folder.opening import open_run
from learner.config import LearnerConfig
from learner.learner import Learner
from learner.objectives import kd

CODES = 16384


@pytest.mark.parametrize(
    ("codes", "device", "tokens"),
    [
        (CODES, "cpu", 256),
        (CODES, "cuda", 8192),
        (CODES, "mps", 256),
        (64, "cpu", 16384),
        (2**20, "cpu", 4),
    ],
)
def test_a_cache_or_a_gpu_is_filled(codes, device, tokens):
    chosen = LearnerConfig().chunked(codes, device)
    assert chosen.chunk_tokens == tokens
    assert LearnerConfig(chunk_tokens=7).chunked(codes, device).chunk_tokens == 7


def test_the_learner_computes_with_it(tiny):
    student = tiny("llamagen", 0)
    learner = Learner(
        LearnerConfig(device="cpu"), built(kd.Config()), copy.deepcopy(student), seed=0, contexts=()
    )
    wanted = LearnerConfig().chunked(student.spec.vocab_size, "cpu").chunk_tokens
    assert learner._micro_batches.config.chunk_tokens == wanted


def test_a_dry_run_counts_the_chunk_of_the_device_that_computes():
    def mb_of(*overrides, gpu):
        config, _ = open_run(Path("smoke"), ["learner.micro_batch=128", *overrides])
        spec = SequenceSpec(CODES, 64, (8, 8), 10)
        needs = Sizing(config, spec).needs(lambda device, gpus: gpu)
        (learner,) = (need for need in needs if need.bundles.section == "learner")
        return learner.gpu_mb if gpu else learner.host_mb

    assert mb_of(gpu=False) == mb_of("learner.chunk_tokens=256", gpu=False)
    assert mb_of(gpu=False) < mb_of("learner.chunk_tokens=8192", gpu=False)
    assert mb_of(gpu=True) == mb_of("learner.chunk_tokens=8192", gpu=True)
    assert mb_of(gpu=True) > mb_of("learner.chunk_tokens=256", gpu=True)
