"""How fast a run would go: measured on small models, estimated for large ones, or not known."""

import math
import time
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from common.errors import InputError
from common.exchange.trajectory import to_arrow
from common.models.backbone import Backbone
from deploy.planning.hardware import Hardware
from deploy.planning.memory import blank_batch, planned_learner, policies_of, scorer_files
from deploy.planning.resources import Sizing
from deploy.planning.skeletons import parameters
from rollout.sampler import decode, noise
from teacher_server.scorer import Scorer
from teacher_server.teacher import signal_columns

PROBE_PARAMETERS = 20_000_000
"""Up to this size a lease is timed with real models instead of estimated."""


def images_per_second(sizing: Sizing, hardware: Hardware | None) -> tuple[float, str]:
    """With all roles in turn on this machine, and how that is known; nan for another machine."""
    if hardware is None or not hardware.is_here:
        return math.nan, "not estimated: the machine is another one"
    size = parameters(sizing.teacher) + parameters(sizing.student)
    if size <= PROBE_PARAMETERS:
        return _probe(sizing), "one lease sampled, scored and learned here, one thread"
    passes = 1 if sizing.config.teacher.guidance is None else 2
    share = _teacher_share(sizing)
    guided = sizing.config.contexts.teacher_sampling
    sampling = share * (2 if guided and guided.guidance else 1)
    # 2 flops per parameter and token forward, 6 for a training step, decoding as one forward.
    per_token = 2 * (passes + sampling) * parameters(sizing.teacher)
    per_token += (2 * (1 - share) + 6) * parameters(sizing.student)
    return _matmul_flops() / (per_token * sizing.spec.length), "from this machine's matrix product"


def _teacher_share(sizing: Sizing) -> float:
    """Share of the images that the teacher samples in rollout workers."""
    contexts = sizing.config.contexts
    shares = contexts.shares()
    return sum(shares[kind] for kind, s in contexts.sources.items() if s.sampler == "teacher")


def _probe(sizing: Sizing) -> float:
    """Sample, score and learn one lease with fresh models; the faster of two times."""
    torch.set_num_threads(1)
    config, spec = sizing.config, sizing.spec
    sampler, student, teacher = (
        model.build(spec).eval()
        for model in (config.models.student, config.models.student, config.models.teacher)
    )
    images, policies = config.rollout.batch_size, policies_of(config)
    batch = blank_batch(
        student, [policies[row % len(policies)] for row in range(images)], config.rollout.sampling
    )
    head = teacher.head.requires_grad_(False)
    learner, chain = planned_learner(config, student, head), _chain(sizing)
    best = math.inf
    for _ in range(2):
        started = time.perf_counter()
        token_BL, seconds = _sampled(sizing, sampler, teacher, batch.label_B)
        found = replace(batch, token_BL=token_BL)
        signal = signal_columns(config.teacher, teacher, head, found)
        signal["entropy"].zero_()  # no gate closes for a teacher that learned nothing
        scored = found.scored(signal, {"head": ""})
        record = to_arrow(scored)
        for scorer in chain:
            record = scorer.score(record)
        learner.step(scored)
        best = min(best, time.perf_counter() - started - seconds)
    return images / best


def _sampled(
    sizing: Sizing, student: Backbone, teacher: Backbone, class_B: Tensor
) -> tuple[Tensor, float]:
    """Tokens of a lease, and seconds that were too much: where both sample, each took its time for
    all images, of which it has a share."""
    seeds, by_teacher = range(len(class_B)), sizing.config.contexts.teacher_sampling
    noise_BL, share = noise(seeds, sizing.spec.length), _teacher_share(sizing)
    token_BL, too_much = torch.zeros(noise_BL.shape, dtype=torch.long), 0.0
    for model, sampling, part in (
        (teacher, by_teacher, share),
        (student, sizing.config.rollout.sampling, 1 - share),
    ):
        if sampling is not None:
            started = time.perf_counter()
            plan = model.plan(seeds, sampling.decoding)
            decoded = decode(model, class_B, sampling=sampling, noise_BL=noise_BL, plan=plan)
            token_BL, seconds = decoded.token_BL, time.perf_counter() - started
            too_much += (1 - part) * seconds
    return token_BL, too_much


def _chain(sizing: Sizing) -> list[Scorer]:
    """The scorers beside the teacher, but those that read files of their own."""
    files, found = scorer_files(sizing.config, sizing.spec, torch.device("cpu")), []
    for scorer in sizing.config.scorers.values():
        if scorer.kind != "teacher":
            with suppress(InputError):
                found.append(scorer.build(files))
    return found


def _matmul_flops() -> float:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    a = torch.randn(512, 512, device=device)
    best = math.inf
    for _ in range(5):
        started = time.perf_counter()
        (a @ a).sum().item()
        best = min(best, time.perf_counter() - started)
    return 2 * 512**3 / best
