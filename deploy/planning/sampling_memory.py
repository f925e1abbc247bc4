"""How much memory sampling takes beside the weights, without doing it (deploy/planning/memory.py).

Shape letters: B sequences, L slots.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from common.exchange.provenance import STUDENT
from common.models.backbone import Backbone
from common.models.cpu.native_steps import has_steps
from common.models.generator import Generator
from common.models.packed_linear import packed_bytes
from common.models.token_steps import LEAST_STEPS
from common.randomness import Draws
from common.spec import SequenceSpec
from deploy.config import RunConfig
from deploy.planning.blank_tensors import is_on_cpu, peak_bytes
from deploy.planning.memory import blank_batch
from rollout.context import SamplerName
from rollout.model_draft import Draft
from rollout.sampler import SamplingConfig, decode

PREFIX_DRAWS = 64
"""Prefixes that are drawn to find a short and a long one."""


def decoding_bytes(
    config: RunConfig,
    model: Backbone,
    sampler: SamplerName = "student",
    student: Backbone | None = None,
) -> int:
    """Caches and logits while `sampler` completes a lease after its shortest and after its longest
    prefix: rows that advance together have more tokens in a step the more of them are left. A
    teacher for whom `student` guesses ahead takes both models' caches."""
    settings, contexts = config.rollout, config.contexts
    sampling = settings.sampling if sampler == "student" else contexts.teacher_sampling
    prefixes = sampled_prefixes(config, model.spec, sampler)
    if not prefixes or sampling is None:
        return 0
    images, longest, shortest = settings.batch_size, max(prefixes), min(prefixes)
    ahead = max(source.guesses for source in contexts.used)
    draft = Draft(student, ahead) if student is not None and ahead else None
    decode_from = partial(decode_blank, model, images, sampling, draft)
    peak = partial(peak_bytes, on_cpu=is_on_cpu(settings.device, settings.gpus))
    if sampling.decoding.is_exact or longest == shortest:
        return peak(partial(decode_from, longest))
    # The longest takes the most at its start, and later steps are no wider than the shortest's.
    return max(peak(partial(decode_from, longest, steps=1)), peak(partial(decode_from, shortest)))


def packed_weight_bytes(config: RunConfig, model: Backbone) -> int:
    """Of weights that torch packs for the student's decoding on a CPU; steps in C make theirs where
    they decode, so that `decoding_bytes` counts them."""
    decoding = config.rollout.sampling.decoding
    plan = model.drawing_plan(model.plan(range(1), decoding), decoding)
    sizes = plan.step_sizes
    if has_steps(model) and max(sizes) == 1 and len(sizes) >= LEAST_STEPS:
        return 0
    return packed_bytes(model, len(sizes))


def decode_blank(
    model: Backbone,
    images: int,
    sampling: SamplingConfig,
    draft: Draft | None = None,
    prefix: int = 0,
    steps: int | None = None,
) -> None:
    """For `steps`, by default until that after the widest: from there on nothing grows."""
    batch = blank_batch(model, (STUDENT,) * images, sampling, prefix=prefix)
    plan = model.drawing_plan(batch.plan, sampling.decoding, given=prefix)
    sizes, first = plan.step_sizes, plan.step_of(prefix)
    widest = max(range(first, len(sizes)), key=sizes.__getitem__)
    with _left_before(model.head, steps or widest + 2 - first):
        decode(
            model,
            batch.label_B,
            sampling=sampling,
            noise_BL=torch.zeros(batch.token_BL.shape, dtype=torch.float64),
            plan=batch.plan,
            given_BL=batch.token_BL,
            prefix_B=batch.prefix_B,
            draft=draft,
        )


class _Left(Exception):
    """Somebody has seen enough."""


@contextmanager
def _left_before(module: nn.Module, call: int) -> Iterator[None]:
    """Leave the block when `module` is called for the time with this number, from 0."""
    calls = 0

    def count(module: nn.Module, args: object) -> None:
        nonlocal calls
        if calls == call:
            raise _Left
        calls += 1

    hook = module.register_forward_pre_hook(count)
    try:
        yield
    except _Left:
        return
    finally:
        hook.remove()


def sampled_prefixes(config: RunConfig, spec: SequenceSpec, sampler: SamplerName) -> list[int]:
    """Lengths of prefixes that `sampler` continues slot by slot; none where it never does."""
    draws = Draws(config.seed, 1)
    found = [
        source.prefix(index, draws, spec=spec, step=index)
        for source in config.contexts.used
        if source.way == sampler
        for index in range(PREFIX_DRAWS)
    ]
    return [prefix for prefix in found if prefix < spec.length]


def generating_bytes(config: RunConfig, model: Generator, images: int | None = None) -> int:
    """Activations and logits while a one-pass student makes so many, by default a lease."""
    images = images or config.rollout.batch_size
    label_B = torch.zeros(images, dtype=torch.long)

    @torch.no_grad()
    def run() -> None:
        model.generate(label_B, range(images))

    return peak_bytes(run)
