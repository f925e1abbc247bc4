"""Runs the learner's ranks under Ray Train."""

import logging
import os
from collections.abc import Mapping
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import ray.train
import torch
from ray.exceptions import RayActorError
from ray.train import FailureConfig, ScalingConfig, TrainingFailedError
from ray.train import RunConfig as TrainRunConfig
from ray.train.torch import TorchTrainer
from torch import distributed

from common.errors import UNDERSTOOD, RunFailed, Verdict
from deploy.backend.actor_proxy import ray_reason
from deploy.backend.actors import threads_of
from deploy.backend.joined_cluster import joined_address
from deploy.backend.rank_group import RankGroup
from deploy.console.faults import GO_ON, FaultLog
from deploy.layout import check_layout
from learner.config import LearnerConfig
from learner.process_group import ProcessGroup, SingleProcess, TorchProcesses
from learner.train import Outcome

TRAIN_STORAGE = ".ray_train"
"""Ray Train's own bookkeeping in the run folder, removed after the run; ours is in snapshots/."""

START_SECONDS = 60.0
"""Ray Train waits so long for its placement group and then, unless told otherwise, begins again
for ever (RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S)."""


SILENCE = "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"
"""Ray Train asks its ranks whether they are there, and would wait ten minutes for an answer."""


class Closable(Protocol):
    """What the learner's ranks talk to: closed with the cause when one of them cannot go on."""

    @property
    def ledger(self) -> Any: ...
    def close(self, cause: str | Verdict) -> None: ...


class Learn(Protocol):
    """Trains one rank; travels to its process."""

    def __call__(self, services: Any, ranks: ProcessGroup) -> Outcome: ...


def learn_on_rank(arguments: dict[str, Any]) -> dict[str, Any] | Verdict:
    """What every Ray Train worker runs.

    A failure that was understood is handed back: Ray Train would try an exception again.
    """
    check_layout()
    torch.set_num_threads(arguments["threads"])
    services: Closable = arguments["services"]
    learn: Learn = arguments["learn"]
    is_alone = ray.train.get_context().get_world_size() == 1
    ranks = SingleProcess() if is_alone else TorchProcesses()  # of the group that Ray Train set up
    try:
        outcome = learn(services, ranks)
    except UNDERSTOOD as error:
        verdict = Verdict.of(error)
        services.close(verdict)
        if distributed.is_initialized():
            distributed.destroy_process_group()  # ranks in the middle of a sum hear of it
        return verdict
    except RuntimeError:
        ending = services.ledger.ending()
        if ending is None:
            raise
        return ending  # another rank left
    return outcome.as_dict()


class FewerProcesses(TorchTrainer):
    """Without the helpers of Ray Train that a run of ours has no use for.

    Each is a process that imports for two CPU seconds before the first step: one manages Ray
    datasets, of which we have none; one removes placement groups after an accident, which end with
    a private cluster anyway.
    """

    def _create_default_callbacks(self) -> list[Any]:
        unused = {"DatasetsCallback"}
        if joined_address() is None:
            unused.add("PlacementGroupCleanerCallback")
        made = super()._create_default_callbacks()
        return [callback for callback in made if type(callback).__name__ not in unused]


class TrainJob:
    """`TorchTrainer.fit` in a thread of its own, so that the driver can watch the workers."""

    def __init__(
        self,
        learner: LearnerConfig,
        root: Path,
        services: Closable,
        learn: Learn,
        patience: float = START_SECONDS,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """`services` travel to every rank; `root` is the run folder; the ranks
        wait about `patience` seconds for room on nodes with these `labels`."""
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        os.environ[SILENCE] = str(learner.stall_seconds)
        self._trainer = FewerProcesses(
            learn_on_rank,
            train_loop_config={
                "services": services,
                "learn": learn,
                "threads": threads_of(learner.cpus),
            },
            # Gradients are summed on the GPU, denominators on the CPU, where NCCL cannot.
            torch_config=RankGroup(backend="cpu:gloo,cuda:nccl" if learner.gpus else "gloo"),
            scaling_config=scaling(learner, labels or {}),
            run_config=TrainRunConfig(
                # The same name in the same storage would resume Ray Train's own state.
                name=f"learner-{os.getpid()}-{os.urandom(4).hex()}",
                storage_path=str(root / TRAIN_STORAGE),
                failure_config=FailureConfig(
                    max_failures=learner.max_failures,
                    controller_failure_limit=int(patience // START_SECONDS),
                ),
            ),
        )
        self._faults = FaultLog(root)
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
            InputError, RunFailed: why the run was ended, as it was raised, wherever that was.
            RunFailed: the learner failed for good; the message holds its own error.
        """
        try:
            returned: Any = self._fit.result().return_value
        except TrainingFailedError as error:
            raise RunFailed(f"the learner failed: {self._account(_cause(error))}") from error
        except RayActorError as error:
            raise RunFailed(
                f"the learner's controller (Ray Train) died: {ray_reason(error)}; {GO_ON}"
            ) from error
        if isinstance(returned, Verdict):
            raise returned.error()
        return Outcome(**returned)

    def _account(self, cause: BaseException) -> str:
        if isinstance(cause, RayActorError):
            return f"its process died: {ray_reason(cause)}; {GO_ON}"
        return self._faults.sentence("learner", cause)


def scaling(learner: LearnerConfig, labels: Mapping[str, str]) -> ScalingConfig:
    """What Ray Train asks for: the ranks' bundles, on nodes with these labels."""
    where: dict[str, Any] = {"label_selector": dict(labels)} if labels else {}
    return ScalingConfig(
        num_workers=learner.world_size,
        use_gpu=learner.gpus > 0,
        resources_per_worker={"CPU": learner.cpus}
        | ({"GPU": learner.gpus} if learner.gpus else {}),
        **where,
    )


def _cause(error: BaseException) -> BaseException:
    """The error of the first rank that failed, without Ray Train's wrapping."""
    failures = getattr(error, "worker_failures", None) or {}
    for failure in failures.values():
        inner = getattr(failure, "_base_exc", failure)
        inner.add_note(getattr(failure, "_traceback_str", ""))
        return getattr(inner, "health_check_failure", inner)
    return getattr(error, "controller_failure", error)
