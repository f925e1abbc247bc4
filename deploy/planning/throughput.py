"""How fast a run would go: measured on small models, estimated for large ones, or not known."""

import math
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from common.errors import InputError
from common.exchange.provenance import Policy
from common.exchange.trajectory import TrajectoryBatch, to_arrow
from common.models.backbone import Backbone
from deploy.config import RunConfig
from deploy.planning.blank_tensors import META, flops
from deploy.planning.forced_passes import forced_rows, forced_sources
from deploy.planning.hardware import Hardware
from deploy.planning.memory import (
    blank_batch,
    grouped,
    judged,
    planned_learner,
    policies_of,
    scored_lease,
    scorer_files,
    steps_of_a_cycle,
)
from deploy.planning.resources import Sizing
from deploy.planning.skeletons import blank_student, parameters, skeleton
from learner.objective import Student
from rollout.sampler import decode, noise
from teacher_server.scorer import Scorer, ScorerConfig, ScorerFiles
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
    return _matmul_flops() / image_flops(sizing), "from this machine's matrix product"


def image_flops(sizing: Sizing) -> float:
    """Of one image through all roles: scoring and learning by their own code on models without
    content, decoding as one forward pass of 2 flops per parameter and token."""
    config, spec = sizing.config, sizing.spec
    student, teacher = blank_student(config, spec), sizing.teacher
    policies = policies_of(config)
    group, sampling = config.rollout.group.size, config.rollout.sampling
    rows: list[Policy] = [policy for policy in policies for _ in range(group)]
    batch = grouped(config, blank_batch(student, rows, sampling))
    head = skeleton(config.models.teacher, spec).head.requires_grad_(False)

    cycle = steps_of_a_cycle(config)

    def score_and_learn() -> None:
        learner = planned_learner(config, student, head)
        for step in range(cycle):
            is_scored = config.schedule().is_scored(step * config.schedule().leases_per_step)
            learner.step(_scored(config, teacher, head, batch) if is_scored else batch)

    passes = flops(score_and_learn) / len(batch) / cycle
    guided = config.contexts.teacher_sampling
    by_teacher = _share(sizing, "teacher") * (2 if guided and guided.guidance else 1)
    by_teacher *= parameters(teacher)
    by_student = 0.0
    if config.samples_student:
        by_student = _student_passes(sizing) * parameters(student)
    drawing = 2 * (by_teacher + by_student) * spec.length
    return passes + drawing + _chain_flops(sizing, head)


def _scored(
    config: RunConfig, teacher: Backbone, head: nn.Linear, batch: TrajectoryBatch
) -> TrajectoryBatch:
    """As the teacher sends it, if records pass it; it is sure of itself, so that no gate closes."""
    if not config.asks_teacher:
        return judged(config, batch)
    reads = config.reads_entropy
    signal = signal_columns(config.teacher, teacher, head, batch, entropy=reads)
    if reads:
        signal["entropy"] = torch.zeros(batch.token_BL.shape)
    return judged(config, batch.scored(signal, {"head": ""}))


def _chain_flops(sizing: Sizing, head: nn.Linear) -> float:
    """The same of the scorers beside the teacher, but those that read files of their own."""
    config, spec, total = sizing.config, sizing.spec, 0.0
    files = scorer_files(config, spec, META)
    for scorer in config.scoring.values():
        if scorer.kind != "teacher":
            lease = scored_lease(config, spec, head)
            with suppress(InputError):
                total += flops(partial(_build_and_score, scorer, files, lease))
    return total / config.rollout.batch_size


def _build_and_score(scorer: ScorerConfig, files: ScorerFiles, lease: TrajectoryBatch) -> None:
    scorer.build(files).score(to_arrow(lease))


def _share(sizing: Sizing, way: str) -> float:
    """Share of the images that are made so in rollout workers."""
    contexts = sizing.config.contexts
    shares = contexts.shares()
    return sum(shares[kind] for kind, s in contexts.sources.items() if s.way == way)


def _student_passes(sizing: Sizing) -> float:
    """Passes of the student for an image in rollout workers: whole ones serve a group."""
    forced = math.fsum(_share(sizing, source.way) for source in forced_sources(sizing.config))
    slot_by_slot = 1 - _share(sizing, "teacher") - forced
    return slot_by_slot + forced / sizing.config.rollout.group.size


def _probe(sizing: Sizing) -> float:
    """Sample, score and learn one lease with fresh models; the faster of two times."""
    torch.set_num_threads(1)
    config, spec = sizing.config, sizing.spec
    here, teacher = torch.device("cpu"), config.models.teacher.build(spec).eval()
    student, sampler = blank_student(config, spec, here), blank_student(config, spec, here)
    images, policies = config.rollout.batch_size, policies_of(config)
    group = config.rollout.group.size
    rows: list[Policy] = [policies[row // group % len(policies)] for row in range(images)]
    batch = grouped(config, blank_batch(student, rows, config.rollout.sampling))
    head = teacher.head.requires_grad_(False)
    learner, chain = planned_learner(config, student, head), _chain(sizing)
    best = math.inf
    for _ in range(2):
        started = time.perf_counter()
        token_BL, seconds = _sampled(sizing, sampler.eval(), teacher, batch.label_B)
        scored = _scored(config, teacher, head, replace(batch, token_BL=token_BL))
        record = to_arrow(scored)
        for scorer in chain:
            record = scorer.score(record)
        learner.step(scored)
        best = min(best, time.perf_counter() - started - seconds)
    return images / best


def _sampled(
    sizing: Sizing, student: Student, teacher: Backbone, class_B: Tensor
) -> tuple[Tensor, float]:
    """Tokens of a lease, and seconds that were too much: where both sample, each took its time for
    all images, of which it has a share."""
    seeds, by_teacher = range(len(class_B)), sizing.config.contexts.teacher_sampling
    noise_BL, share = noise(seeds, sizing.spec.length), _share(sizing, "teacher")
    slot_by_slot = 1 - share
    slot_by_slot -= math.fsum(_share(sizing, s.way) for s in forced_sources(sizing.config))
    token_BL, too_much = torch.zeros(noise_BL.shape, dtype=torch.long), 0.0
    for model, sampling, part in (
        (teacher, by_teacher, share),
        (student, sizing.config.rollout.sampling, slot_by_slot),
    ):
        if sampling is not None and isinstance(model, Backbone) and part > 0:
            started = time.perf_counter()
            plan = model.plan(seeds, sampling.decoding)
            decoded = decode(model, class_B, sampling=sampling, noise_BL=noise_BL, plan=plan)
            token_BL, seconds = decoded.token_BL, time.perf_counter() - started
            too_much += (1 - part) * seconds
    for source in forced_sources(sizing.config):
        assert isinstance(student, Backbone), "no other has such sources"
        started = time.perf_counter()
        token_BL = forced_rows(sizing.config, source, student).token_BL
        too_much += (1 - _share(sizing, source.way)) * (time.perf_counter() - started)
    return token_BL, too_much


def _chain(sizing: Sizing) -> list[Scorer]:
    """The scorers beside the teacher, but those that read files of their own."""
    files, found = scorer_files(sizing.config, sizing.spec, torch.device("cpu")), []
    for scorer in sizing.config.scoring.values():
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
