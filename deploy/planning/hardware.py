"""The machine that a run is planned for: this one, or what [cluster] declares."""

import math
import os
from dataclasses import dataclass
from typing import Self

import psutil
import torch

from common.device import place
from common.errors import InputError
from deploy.backend.joined_cluster import joined_address
from deploy.backend.session import logical_cpus
from deploy.config import RunConfig

MB = 2**20


@dataclass(frozen=True, slots=True)
class Hardware:
    """What every node has; infinite where nobody said."""

    nodes: int
    cpus: float
    gpus: int
    memory_mb: float
    gpu_memory_mb: float
    is_here: bool
    """This machine as it is; otherwise what [cluster] declares."""

    @classmethod
    def of(cls, config: RunConfig, *, planned: bool) -> Self | None:
        """The target of a run; None for a cluster of which nothing is known.

        A planned run (--dry-run) goes to the machine that [cluster] declares, a real one to the
        cluster that RAY_ADDRESS names, or to this machine whatever is declared.

        Raises:
            InputError: a role wants CUDA, and there is none.
        """
        target, joins = config.cluster, joined_address() is not None
        if target.is_declared and (planned or joins):
            return cls._declared(config)
        if joins:
            return None  # other machines' memory is not ours to guess
        for name in (config.learner.device, config.rollout.device, config.teacher.device):
            place(name)
        memory_mb = psutil.virtual_memory().available / MB
        if target.memory_gb is not None:
            memory_mb = (
                target.memory_gb * 1024 if planned else min(memory_mb, target.memory_gb * 1024)
            )
        gpus = torch.cuda.device_count()
        sizes = (torch.cuda.get_device_properties(index).total_memory for index in range(gpus))
        gpu_mb = min(sizes, default=0) / MB
        return cls(1, logical_cpus(config), gpus, memory_mb, gpu_mb, is_here=True)

    @classmethod
    def _declared(cls, config: RunConfig) -> Self:
        target = config.cluster
        cpus = logical_cpus(config) if target.nodes == 1 else os.cpu_count() or 1
        gpus = torch.cuda.device_count() if target.gpus is None else target.gpus
        for name in ("learner", "rollout", "teacher"):
            if getattr(config, name).device == "cuda" and gpus == 0:
                raise InputError(
                    f"{name}.device is cuda, but a node has no GPUs; set cluster.gpus, or "
                    f"{name}.device=auto"
                )
        return cls(
            target.nodes,
            target.cpus or cpus,
            gpus,
            target.memory_gb * 1024 if target.memory_gb else math.inf,
            target.gpu_memory_gb * 1024 if target.gpu_memory_gb else math.inf,
            is_here=False,
        )
