"""learner.chunk_tokens = 0: how many tokens have logits at a time is left to the run."""

import copy
from pathlib import Path

import pytest
import torch
from building.objectives import built

from common.spec import SequenceSpec
from deploy.planning.memory import learning_bytes
from deploy.planning.skeletons import skeleton
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
    def bytes_of(*overrides):
        config, _ = open_run(Path("smoke"), ["learner.micro_batch=128", *overrides])
        spec = SequenceSpec(CODES, 64, (8, 8), 10)
        student = skeleton(config.models.student, spec)
        head = torch.nn.Linear(8, CODES, bias=False, device="meta")
        return learning_bytes(config, student, head)

    chosen = bytes_of("learner.device=cpu")
    assert chosen == bytes_of("learner.device=cpu", "learner.chunk_tokens=256")
    assert chosen < bytes_of("learner.device=cuda")
    assert bytes_of("learner.device=cuda") == bytes_of(
        "learner.device=cuda", "learner.chunk_tokens=8192"
    )
