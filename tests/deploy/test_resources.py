"""What models and their caches weigh, without building them."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from common.config.plugins import load_plugin
from common.exchange.provenance import STUDENT
from common.exchange.trajectory import to_arrow
from common.spec import SequenceSpec
from deploy.planning.artifacts import sequence_spec
from deploy.planning.blank_tensors import META, Meter, peak_bytes
from deploy.planning.forced_passes import forced_bytes
from deploy.planning.hardware import MB
from deploy.planning.memory import (
    blank_batch,
    learning_bytes,
    scorer_files,
    scoring_images,
)
from deploy.planning.milestone_memory import milestone_bytes
from deploy.planning.resources import CUDA_MB, CUDA_SLACK, Sizing, skeleton, state_bytes
from deploy.planning.sampling_memory import decoding_bytes, sampled_prefixes
from deploy.planning.skeletons import parameters
from deploy.run_folder.opening import open_run
from deploy.stages.milestone_quality import MilestoneQuality
from rollout.sampler import decode


@pytest.mark.parametrize(
    ("kind", "layers", "guidance", "doubled"),
    [("llamagen", 2, "", 1), ("arpg", 1, "", 1), ("var", 2, "", 1), ("llamagen", 2, "2.0", 2)],
)
def test_two_blocks_more_are_their_keys_and_values_more(kind, layers, guidance, doubled):
    """To the byte; ARPG caches only its self-decoder, guidance doubles the batch."""
    scales = (1, 2, 3, 4) if kind == "var" else ()
    spec = SequenceSpec(64, 30 if scales else 16, (4, 4), 10, scales)
    guided = [f"rollout.sampling.guidance={guidance}"] if guidance else []
    config, _ = open_run(Path("smoke"), ["rollout.batch_size=32", *guided])
    small = load_plugin("common.models.backbones", kind).Config.tiny()
    large = small.model_copy(update={"depth": small.depth + 2})
    found = [decoding_bytes(config, skeleton(model, spec).eval()) for model in (small, large)]
    assert found[1] - found[0] == layers * 2 * 32 * spec.length * small.width * 4 * doubled


def test_attention_keeps_no_scores_and_autocast_halves_what_layers_make():
    query_BHLD = torch.zeros(2, 3, 500, 4, device=META)

    def attend():
        return torch.nn.functional.scaled_dot_product_attention(query_BHLD, query_BHLD, query_BHLD)

    assert peak_bytes(attend) == query_BHLD.nbytes
    layer = torch.nn.Linear(4, 8, bias=False, device=META)
    whole, half = (
        peak_bytes(lambda: layer(query_BHLD), dtype) for dtype in (torch.float32, torch.bfloat16)
    )
    assert whole == 2 * query_BHLD.nbytes
    casts = query_BHLD.nbytes // 2 + layer.weight.nbytes // 2
    assert half == whole // 2 + casts


def test_nothing_is_cached_where_nothing_is_sampled():
    config, _ = open_run(Path("smoke"), ["contexts.sources.student.ratio=0"])
    student = skeleton(config.models.student, SequenceSpec(64, 16, (4, 4), 10))
    assert decoding_bytes(config, student) == 0


def test_a_quantiser_stays_float32_in_published_weights():
    spec = SequenceSpec(64, 30, (4, 4), 10, (1, 2, 3, 4))
    model = skeleton(load_plugin("common.models.backbones", "var").Config.tiny(), spec)
    whole, half = state_bytes(model), state_bytes(model, torch.bfloat16)
    buffers = sum(value.numel() * 4 for value in model.buffers())
    assert whole - buffers == 2 * (half - buffers)


def test_the_first_and_the_widest_steps_hold_as_much_as_all_of_them():
    """ZipAR's steps grow and shrink; nothing is larger in those that are not walked through."""
    zipar = ["rollout.sampling.decoding.zipar.window=2", "rollout.batch_size=32"]
    ends = ["contexts.sources.student.min_prefix=0.1", "contexts.sources.student.max_prefix=0.9"]
    config, _ = open_run(Path("smoke"), [*zipar, *ends])
    spec = SequenceSpec(512, 256, (16, 16), 10)
    model = skeleton(load_plugin("common.models.backbones", "llamagen").Config.tiny(), spec).eval()
    prefixes = sampled_prefixes(config, spec, "student")
    assert min(prefixes) < 64 < 192 < max(prefixes)

    def whole(prefix):
        batch = blank_batch(model, (STUDENT,) * 32, config.rollout.sampling, prefix=prefix)
        decode(
            model,
            batch.label_B,
            sampling=config.rollout.sampling,
            noise_BL=torch.zeros(batch.token_BL.shape, dtype=torch.float64),
            plan=batch.plan,
            given_BL=batch.token_BL,
            prefix_B=batch.prefix_B,
        )

    ends = min(prefixes), max(prefixes)
    all_steps = max(peak_bytes(partial(whole, end), on_cpu=True) for end in ends)
    assert decoding_bytes(config, model) == pytest.approx(all_steps, rel=0.01)


def test_a_learners_average_and_moments_lie_beside_its_activations():
    """What does not grow with the rows, where the logits take the most: an average and two moments
    of the size of the weights, and the gradients that are there by then, which are some of them."""
    spec = SequenceSpec(512, 16, (4, 4), 10)
    config = load_plugin("common.models.backbones", "llamagen").Config.tiny()
    data_alone = ["objective.kind=mle", "contexts.sources.student.ratio=0"]

    def held(images):
        sizes = [f"learner.{name}={images}" for name in ("micro_batch", "global_batch_size")]
        settings, _ = open_run(Path("smoke"), [*data_alone, *sizes, "rollout.batch_size=8"])
        head = skeleton(config, spec).head.requires_grad_(False)
        return learning_bytes(settings, skeleton(config, spec).train(), head)

    weights = parameters(skeleton(config, spec)) * 4
    assert 3 * weights < 2 * held(64) - held(128) < 4 * weights


def test_activations_that_are_computed_again_are_not_held(run_in):
    spec = SequenceSpec(64, 16, (4, 4), 10)
    config = load_plugin("common.models.backbones", "llamagen").Config(width=64, depth=8)

    def held(again):
        settings, _ = run_in(f"learner.activation_checkpointing={again}", "rollout.batch_size=8")
        head = skeleton(config, spec).head.requires_grad_(False)
        return learning_bytes(settings, skeleton(config, spec).train(), head)

    assert held("true") < 0.8 * held("false")


def test_ranks_that_hold_parts_hold_less(run_in):
    """What four hold beside activations is a quarter: weights, average, two moments, gradients."""
    spec = SequenceSpec(64, 16, (4, 4), 10)

    def held(parallel):
        sizes = ("width=256", "depth=8", "heads=4", "vector_width=0")
        model = (f"models.student.{size}" for size in sizes)
        ranks = ("learner.world_size=4", f"learner.parallel={parallel}", "rollout.batch_size=4")
        config, _ = run_in(*model, *ranks, "learner.micro_batch=1")
        sizing = Sizing(config, spec)
        on_a_gpu = sizing._learner_mb(gpu=True)[1] - CUDA_MB
        return on_a_gpu * MB / CUDA_SLACK / state_bytes(sizing.student)

    assert held("fsdp") < 0.5 * held("ddp")
    assert held("fsdp") > 5 / 4


def test_milestones_that_are_compared_by_fid_are_counted(run_in):
    spec = SequenceSpec(32, 16, (4, 4), 10)
    kept = ("learner.export_every=9", "learner.keep_best=1", "learner.keep_best_by=fid")
    many = ("evaluate.samples=3000", "evaluate.batch_size=3000", "evaluate.reference_images=1000")
    many += ("evaluate.likelihood_samples=0",)

    def held(*overrides):
        config, _ = run_in(*many, *overrides)
        sizing = Sizing(config, spec)
        drawn, shown = milestone_bytes(config, sizing.student)
        images = config.images
        assert shown == (4000 * images.channels * images.size**2 if overrides else 0)
        return drawn, sizing._learner_mb(gpu=True)

    (nothing, before), (drawn, after) = held(), held(*kept)
    assert nothing == 0
    assert after[0] > before[0]
    assert (after[1] - CUDA_MB) * MB / CUDA_SLACK > drawn > 3000 * 16 * 32 * 4, (
        "logits at the least"
    )


def test_milestones_that_are_compared_by_likelihood_take_what_the_plan_says(half):
    """Here the model's device is the host, where the plan adds up what comes one after another."""
    _, workspace = half()
    kept = ("learner.export_every=9", "learner.keep_best=1", "learner.keep_best_by=reverse_kl")
    sizes = ("evaluate.likelihood_samples=64", "evaluate.batch_size=64")
    config, _ = open_run(workspace.root, [*kept, *sizes])
    sizing = Sizing(config, sequence_spec(config, workspace))
    with Meter() as meter:
        found = MilestoneQuality(config, workspace).of(workspace.student)
    assert {"reverse_kl", "forward_kl"} <= found.keys()
    drawn, shown = milestone_bytes(config, sizing.student)
    assert 0.8 * meter.peak < drawn < meter.peak, "with the teacher and its logits"
    assert meter.peak < drawn + shown < 1.6 * meter.peak
    host, _ = sizing._learner_mb(gpu=True)
    without, _ = open_run(workspace.root, [*sizes])
    assert host - Sizing(without, sizing.spec)._learner_mb(gpu=True)[0] == shown / MB


SHAPES = {
    "an official grid": (SequenceSpec(16384, 256, (16, 16), 1000), []),
    "a larger one in half precision": (
        SequenceSpec(16384, 576, (24, 24), 1000),
        ["teacher.signal.kind=guided_hidden", "teacher.signal.dtype=float16"],
    ),
    "a few tokens of many codes, with the noise": (
        SequenceSpec(2**16 + 1, 16, (4, 4), 10),
        ["rollout.keep_noise=true"],
    ),
    "groups, and a second scorer": (
        SequenceSpec(64, 16, (4, 4), 10),
        [
            "rollout.group.size=4",
            *(f"scorers.{kind}.kind={kind}" for kind in ("teacher", "token_logprob")),
        ],
    ),
    "pairs of noise and tokens": (
        SequenceSpec(64, 16, (4, 4), 10),
        ["contexts.sources.teacher.sampling.flow.kind=dpmpp_3m"],
    ),
    "whole distributions": (SequenceSpec(64, 16, (4, 4), 10), ["teacher.signal.kind=full"]),
    "entropies that nobody reads": (SequenceSpec(64, 16, (4, 4), 10), ["objective.kind=kd"]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_an_image_takes_the_bytes_on_the_wire_that_the_plan_says(shape):
    """Of a record that the run's scorers made, which know nothing of the plan."""
    spec, overrides = SHAPES[shape]
    config, _ = open_run(Path("smoke"), ["rollout.batch_size=8", *overrides])
    batch = blank_batch(config.models.student.build(spec), (STUDENT,) * 8, config.rollout.sampling)
    if config.rollout.keep_noise:
        batch = replace(batch, noise_BL=batch.token_BL.double())
    if any(source.has_pairs for source in config.contexts.used):
        batch = replace(batch, seed_B=batch.id_B)
    if (size := config.rollout.group.size) > 1:
        row_B = batch.id_B
        batch = replace(
            batch,
            group_B=row_B // size,
            member_B=row_B % size,
            facts={"group_size": str(size)},
        )
    batch = replace(batch, facts=batch.facts | {"teacher_seconds": "0"})
    record, files = to_arrow(batch), scorer_files(config, spec, torch.device("cpu"))
    for scorer in config.scorers.values():
        record = scorer.build(files).score(record)
    assert record.nbytes / 8 == pytest.approx(Sizing(config, spec).row_bytes, rel=0.01)


@pytest.mark.parametrize(
    ("batching", "length", "images"),
    [
        ("{}", 256, 256),  # 65,536 tokens
        ("{}", 680, 96),  # in whole leases of 8
        ("{}", 8193, 8),  # a lease is never split
        ("{max_images = 60}", 680, 64),
        ("{max_tokens = 10000}", 256, 32),
        ("{max_images = 1000, max_tokens = 1000000}", 256, 400),  # all that can wait
    ],
)
def test_long_sequences_take_a_teacher_no_more_tokens_than_short_ones(batching, length, images):
    overrides = ["rollout.batch_size=8", "rollout.workers=50", "rollout.in_flight=1"]
    lease = ["learner.global_batch_size=8", f"teacher.batching={batching}"]
    config, _ = open_run(Path("smoke"), [*overrides, *lease])
    assert scoring_images(config, length) == images


def test_a_pass_over_data_is_counted_once_for_a_group():
    """And takes no caches: a group of four samples is one row of activations."""
    sources = "contexts.sources={student={ratio=0},data={ratio=0},parallel={}}"
    sizes = {}
    for size in (1, 4):
        how = (sources, f"rollout.group.size={size}", "rollout.batch_size=16", "objective.kind=gkd")
        config, _ = open_run(Path("smoke"), [*how])
        spec = SequenceSpec(64, 16, (4, 4), 10)
        student = skeleton(config.models.student, spec).eval()
        assert decoding_bytes(config, student) == 0, "nothing is decoded slot by slot"
        sizes[size] = forced_bytes(config, student)
    assert 2 * sizes[4] < sizes[1]
