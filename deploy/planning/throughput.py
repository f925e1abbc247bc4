"""How fast a run would go: measured on small models, estimated for large ones, or not known."""

import math
import time

import torch

from deploy.planning.hardware import Hardware
from deploy.planning.resources import Sizing, parameters
from rollout.sampler import decode, noise

PROBE_PARAMETERS = 20_000_000
"""Up to this size a lease is timed with real models instead of estimated."""


def images_per_second(sizing: Sizing, hardware: Hardware | None) -> tuple[float, str]:
    """With all roles in turn on this machine, and how that is known; nan for another machine."""
    if hardware is None or not hardware.is_here:
        return math.nan, "not estimated: the machine is another one"
    size = parameters(sizing.teacher) + parameters(sizing.student)
    if size <= PROBE_PARAMETERS:
        return _probe(sizing), "one lease sampled, scored and differentiated here, one thread"
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
    """Sample, score and differentiate one lease with fresh models; the faster of two times."""
    torch.set_num_threads(1)
    config, spec = sizing.config, sizing.spec
    student, teacher = (
        model.build(spec).eval() for model in (config.models.student, config.models.teacher)
    )
    seeds, sampling = range(config.rollout.batch_size), config.rollout.sampling
    class_B = torch.zeros(len(seeds), dtype=torch.long)
    plan = student.plan(seeds, sampling.decoding)
    noise_BL = noise(seeds, spec.length)
    teacher_sampling, share = config.contexts.teacher_sampling, _teacher_share(sizing)
    best = math.inf
    for _ in range(2):
        started = time.perf_counter()
        decoded = decode(student, class_B, sampling=sampling, noise_BL=noise_BL, plan=plan)
        if teacher_sampling is not None:
            sampled = time.perf_counter()
            own = teacher.plan(seeds, teacher_sampling.decoding)
            decode(teacher, class_B, sampling=teacher_sampling, noise_BL=noise_BL, plan=own)
            # Both took their time for all images; each samples its share of them.
            by_student, by_teacher = sampled - started, time.perf_counter() - sampled
            started += share * by_student + (1 - share) * by_teacher
        with torch.no_grad():
            for _ in range(1 if config.teacher.guidance is None else 2):
                teacher(class_B, decoded.token_BL, plan)
        student(class_B, decoded.token_BL, plan).log_softmax(-1).mean().backward()
        best = min(best, time.perf_counter() - started)
    return len(seeds) / best


def _matmul_flops() -> float:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    a = torch.randn(512, 512, device=device)
    best = math.inf
    for _ in range(5):
        started = time.perf_counter()
        (a @ a).sum().item()
        best = min(best, time.perf_counter() - started)
    return 2 * 512**3 / best
