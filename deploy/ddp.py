"""Runs the learner's ranks under Ray Train."""

import logging
import os
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import FailureConfig, ScalingConfig, TrainingFailedError
from ray.train import RunConfig as TrainRunConfig
from ray.train.torch import TorchConfig, TorchTrainer
from torch import Tensor, distributed

from common.errors import RunFailed
from deploy.config import RunConfig
from deploy.layout import check_layout
from deploy.learning import learn
from deploy.pipeline import Services
from learner.train import Outcome

TRAIN_STORAGE = ".ray_train"
"""Ray Train's own bookkeeping in the run folder, removed after the run; ours is in snapshots/."""


class TrainRanks:
    """The process group that Ray Train set up; sums are exact counterparts of one process."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.world = context.get_world_size()

    def sum_(self, tensor: Tensor) -> Tensor:
        if self.world > 1:
            distributed.all_reduce(tensor)
        return tensor

    def barrier(self) -> None:
        if self.world > 1:
            distributed.barrier()


def learn_on_rank(arguments: dict[str, Any]) -> dict[str, Any]:
    """What every Ray Train worker runs."""
    check_layout()
    torch.set_num_threads(1)
    outcome = learn(arguments["config"], arguments["root"], arguments["services"], TrainRanks())
    return outcome.as_dict()


class TrainJob:
    """`TorchTrainer.fit` in a thread of its own, so that the driver can watch the workers."""

    def __init__(self, config: RunConfig, root: Path, services: Services) -> None:
        learner = config.learner
        resources = {"CPU": learner.cpus} | ({"GPU": learner.gpus} if learner.gpus else {})
        # Workers stay with the driver; a learner that restarts talks to the same services.
        slim = Services(services.ledger, services.buffer, services.weights, services.hub, {})
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        self._trainer = TorchTrainer(
            learn_on_rank,
            train_loop_config={"config": config, "root": root, "services": slim},
            # Gradients are summed on the GPU, denominators on the CPU, where NCCL cannot.
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if learner.gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=learner.ranks, use_gpu=learner.gpus > 0, resources_per_worker=resources
            ),
            run_config=TrainRunConfig(
                # The same name in the same storage would resume Ray Train's own state.
                name=f"learner-{os.getpid()}-{os.urandom(4).hex()}",
                storage_path=str(root / TRAIN_STORAGE),
                failure_config=FailureConfig(max_failures=learner.max_failures),
            ),
        )
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ray-train")
        self._fit = self._pool.submit(self._trainer.fit)

    def running(self) -> bool:
        return not self._fit.done()

    def wait(self, seconds: float) -> None:
        """Block until the job ended, however it did, or `seconds` are over."""
        futures.wait([self._fit], timeout=seconds)

    def result(self) -> Outcome:
        """Rank 0's outcome.

        Raises:
            RunFailed: the learner failed for good; the message holds its own error.
        """
        try:
            returned: Any = self._fit.result().return_value
            return Outcome(**returned)
        except TrainingFailedError as error:
            raise RunFailed(f"the learner failed: {_cause(error)}") from error


def _cause(error: BaseException) -> str:
    """The message of the first rank that failed, without Ray Train's wrapping."""
    failures = getattr(error, "worker_failures", None) or {}
    for failure in failures.values():
        inner = getattr(failure, "_base_exc", failure)
        return f"{type(inner).__name__}: {str(inner).strip().splitlines()[-1]}"
    return str(error).strip().splitlines()[-1]
