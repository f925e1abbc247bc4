"""What a run would do, before it does it: actors, resources, wire, memory, and refusals.

Sizes are exact (models are built on the meta device); rates are measured on small models, and
estimated from this machine's matrix product for large ones.
"""

import math
import os
import time
from dataclasses import dataclass, field, replace
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from common.backbone import Backbone, BackboneConfig, SequenceSpec
from common.config import digest
from common.device import place
from common.errors import InputError
from common.images import open_images
from common.ledger import Schedule
from common.tokens import token_header
from common.trajectory import bytes_per_image
from deploy.config import RunConfig, Workspace
from rollout.sampler import decode, noise

PROCESS_MB = 350
"""Resident memory of a Ray worker process with torch loaded, models not counted (measured)."""
PROBE_PARAMETERS = 20_000_000
"""Up to this size a lease is timed with real models instead of estimated."""
RAY_MB = 1200
"""Ray's own processes on one node and Ray Train's helper actors (measured)."""
DRIVER_MB = 600
"""The command itself: torch, and the metrics' libraries later (measured)."""


@dataclass(frozen=True)
class RunPlan:
    """Everything `--dry-run` prints."""

    facts: dict[str, str]
    actors: list[tuple[str, int, float, float, float]]
    """(role, count, CPUs each, GPUs each, memory each in MB)."""
    memory_mb: float
    available_mb: float
    warnings: list[str] = field(default_factory=list)

    def show(self, target: Console) -> None:
        table = Table("actor", "count", "CPUs", "GPUs", "memory MB")
        for role, count, cpus, gpus, memory in self.actors:
            table.add_row(role, str(count), f"{cpus:g}", f"{gpus:g}", f"{memory:.0f}")
        target.print(table)
        for name, value in self.facts.items():
            target.print(f"{name}: {value}", soft_wrap=True)
        target.print(
            f"memory: about {self.memory_mb / 1024:.2f} GB, were it all on one node; available: "
            f"{self.available_mb / 1024:.2f} GB"
        )
        for warning in self.warnings:
            target.print(f"warning: {warning}", soft_wrap=True)


def plan_run(config: RunConfig, workspace: Workspace, *, timed: bool) -> RunPlan:
    """Resolve the run; `timed` also estimates how fast this machine would go.

    Raises:
        InputError: it cannot fit into memory, or asks for GPUs that this machine does not have.
    """
    spec = _spec(config, workspace)
    teacher, student = (_skeleton(m, spec) for m in (config.models.teacher, config.models.student))
    schedule = config.schedule()
    row_bytes = _row_bytes(config, spec, teacher)
    actors = _actors(config, spec, teacher, student, row_bytes * schedule.most_outstanding)
    memory = RAY_MB + DRIVER_MB + sum(count * each for _, count, _, _, each in actors)
    available = _available_mb(config)
    _refuse(config, memory, available)
    rate, source = _rate(config, spec, teacher, student) if timed else (math.nan, "not timed")
    facts = {
        "run folder": str(workspace.root),
        "config": f"digest {digest(config)}, seed {config.seed}",
        "tokens": f"vocabulary {spec.vocab_size}, grid {spec.grid[0]}x{spec.grid[1]}, "
        f"{spec.num_classes} classes",
        "teacher": f"{_parameters(teacher):,} parameters",
        "student": f"{_parameters(student):,} parameters",
        "objective": f"{config.objective.kind}: {config.objective.model_dump(mode='json')}",
        "contexts": ", ".join(f"{k} {v:.1%}" for k, v in config.contexts.shares().items()),
        "schedule": _describe(schedule),
        "wire": f"{row_bytes:,} bytes per image ({config.teacher.signal.kind})",
        "wire rate": f"{row_bytes * rate / 1e6:.2f} MB/s at {rate:.0f} images/s ({source})",
        "weights": f"{_bytes(student, config.rollout.dtype) / 1e6:.2f} MB per version and node, "
        f"every {schedule.publish_every} steps",
    }
    return RunPlan(facts, actors, memory, available, _warnings(config))


def _spec(config: RunConfig, workspace: Workspace) -> SequenceSpec:
    """From the encoded tokens where they exist, else from the config and the images."""
    if workspace.train_tokens.exists():
        return token_header(workspace.train_tokens)[0]
    shape = config.tokenizer.describe(config.images.size)
    return replace(shape, num_classes=len(open_images(config.images, "train").classes))


def _skeleton(config: BackboneConfig, spec: SequenceSpec) -> Backbone:
    with torch.device("meta"):
        return config.build(spec)


def _parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _bytes(model: torch.nn.Module, dtype: str) -> int:
    return _parameters(model) * (2 if dtype == "bfloat16" else 4)


def _row_bytes(config: RunConfig, spec: SequenceSpec, teacher: Backbone) -> int:
    per_token = config.teacher.signal.bytes_per_token(teacher.head.in_features, spec.vocab_size)
    signal = spec.length * (per_token + 4)  # and the float32 entropy
    return bytes_per_image(spec.length, signal, noise=config.rollout.keep_noise)


def _actors(
    config: RunConfig, spec: SequenceSpec, teacher: Backbone, student: Backbone, buffered: int
) -> list[tuple[str, int, float, float, float]]:
    mb = 2**20
    learner, rollout, server = config.learner, config.rollout, config.teacher
    width = student.head.in_features
    # Parameters, gradients, AdamW's two moments and the average; logits of one chunk, forward
    # and backward of student, teacher and clusters; activations of one micro-batch.
    micro_tokens = learner.micro_batch * spec.length
    depth = getattr(config.models.student, "depth", 12)
    training = 5 * _parameters(student) * 4 + 8 * learner.chunk_tokens * spec.vocab_size * 4
    training += micro_tokens * width * 4 * (14 * depth + 4)
    # Keys and values of every block for one batch, and the logits of one decoding step.
    cache = 2 * rollout.batch_size * spec.length * width * depth * 4
    sampling = _bytes(student, rollout.dtype) + cache + rollout.batch_size * spec.vocab_size * 24
    scoring = _bytes(teacher, server.dtype)
    scoring += server.batching.max_images * spec.length * teacher.head.in_features * 4 * 24
    return [
        ("learner", learner.ranks, learner.cpus, learner.gpus, PROCESS_MB + training / mb),
        ("rollout worker", rollout.workers, rollout.cpus, rollout.gpus, PROCESS_MB + sampling / mb),
        ("teacher server", server.replicas, server.cpus, server.gpus, PROCESS_MB + scoring / mb),
        ("buffer", 1, 0, 0, 100 + buffered / mb),
        ("ledger, weights, metrics", 3, 0, 0, 100),
    ]


def _available_mb(config: RunConfig) -> float:
    if config.cluster.memory_gb is not None:
        return config.cluster.memory_gb * 1024
    if os.environ.get("RAY_ADDRESS"):
        return math.inf  # other machines' memory is not ours to guess
    return psutil.virtual_memory().available / 2**20


def _refuse(config: RunConfig, memory_mb: float, available_mb: float) -> None:
    if memory_mb > available_mb:
        raise InputError(
            f"the run needs about {memory_mb / 1024:.1f} GB, but {available_mb / 1024:.1f} GB are "
            "available; lower rollout.workers, rollout.batch_size, learner.micro_batch or "
            "learner.chunk_tokens, or set cluster.memory_gb if the cluster has more"
        )
    if os.environ.get("RAY_ADDRESS"):
        return  # the cluster's devices are not this machine's
    for name in (config.learner.device, config.rollout.device, config.teacher.device):
        place(name)
    wanted = (
        config.learner.ranks * config.learner.gpus
        + config.rollout.workers * config.rollout.gpus
        + config.teacher.replicas * config.teacher.gpus
    )
    if wanted > torch.cuda.device_count():
        raise InputError(
            f"learner, rollout and teacher reserve {wanted:g} GPUs, but this machine has "
            f"{torch.cuda.device_count()}; lower the gpus fields or submit to a cluster"
        )


def _rate(
    config: RunConfig, spec: SequenceSpec, teacher: Backbone, student: Backbone
) -> tuple[float, str]:
    """Images per second with all roles in turn on this machine, and how that is known."""
    if _parameters(teacher) + _parameters(student) <= PROBE_PARAMETERS:
        return _probe(config, spec), "one lease sampled, scored and differentiated here, one thread"
    passes = 2 if config.teacher.guidance is not None else 1
    # 2 flops per parameter and token forward, 6 for a training step, decoding as one forward.
    per_token = 2 * passes * _parameters(teacher) + (2 + 6) * _parameters(student)
    return _matmul_flops() / (per_token * spec.length), "from this machine's matrix product"


def _probe(config: RunConfig, spec: SequenceSpec) -> float:
    """Sample, score and differentiate one lease with fresh models; the faster of two times."""
    torch.set_num_threads(1)
    student, teacher = (
        m.build(spec).eval() for m in (config.models.student, config.models.teacher)
    )
    batch = config.rollout.batch_size
    class_B = torch.zeros(batch, dtype=torch.long)
    plan = student.plan(range(batch), config.rollout.sampling.decoding)
    noise_BL = noise(range(batch), spec.length)
    best = math.inf
    for _ in range(2):
        started = time.perf_counter()
        sampling = config.rollout.sampling
        decoded = decode(student, class_B, sampling=sampling, noise_BL=noise_BL, plan=plan)
        with torch.no_grad():
            for _ in range(2 if config.teacher.guidance is not None else 1):
                teacher(class_B, decoded.token_BL, plan)
        student(class_B, decoded.token_BL, plan).log_softmax(-1).mean().backward()
        best = min(best, time.perf_counter() - started)
    return batch / best


def _matmul_flops() -> float:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    a = torch.randn(512, 512, device=device)
    best = math.inf
    for _ in range(5):
        started = time.perf_counter()
        (a @ a).sum().item()
        best = min(best, time.perf_counter() - started)
    return 2 * 512**3 / best


def _describe(schedule: Schedule) -> str:
    mode = "ordered" if schedule.ordered else "free-running"
    return (
        f"{schedule.steps} steps of {schedule.images_per_step} images in leases of "
        f"{schedule.lease_size}, {mode}; staleness at most {schedule.max_lag} steps, so at most "
        f"{schedule.most_outstanding} images outstanding"
    )


def _warnings(config: RunConfig) -> list[str]:
    found = []
    relaxation: Any = config.objective.relaxation_config()
    if relaxation and relaxation.factor > 1 and config.contexts.shares().get("data", 0.0) == 0:
        found.append(
            "codebook relaxation without data contexts: nothing anchors the distribution inside a "
            "cluster (method.md 2.4); give contexts.sources.data a ratio"
        )
    if config.rollout.sampling.guidance is not None or config.rollout.sampling.temperature != 1:
        found.append("rollouts are not drawn from the plain student that the loss assumes")
    return found
