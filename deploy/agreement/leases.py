"""What a run's numbers of images and workers must agree on."""

from learner.config import LearnerConfig
from rollout.config import RolloutConfig


def require_leases(learner: LearnerConfig, rollout: RolloutConfig) -> None:
    """Refuse leases that do not fill a step, or groups that do not fill a lease.

    Raises:
        ValueError: names the numbers; or versions get older than the run allows.
    """
    images, lease, size = learner.global_batch_size, rollout.batch_size, rollout.group.size
    if images % (lease * learner.world_size):
        raise ValueError(
            f"learner.global_batch_size is {images}, but must be a multiple of "
            f"rollout.batch_size {lease} times learner.world_size {learner.world_size}"
        )
    if lease % size:
        raise ValueError(
            f"rollout.batch_size is {lease}, but must be a multiple of rollout.group.size "
            f"{size}, so that a group is sampled, scored and trained whole"
        )
    every, lag = learner.publish_every, learner.max_staleness
    if every - 1 > lag:
        raise ValueError(
            f"learner.publish_every is {every}, so weights get up to {every - 1} steps old, "
            f"but learner.max_staleness allows {lag}; publish more often or raise max_staleness"
        )


def require_workers(rollout: RolloutConfig) -> None:
    """Refuse fewer workers than the run needs, or more than it allows.

    Raises:
        ValueError: names the numbers.
    """
    if rollout.min_workers > rollout.workers:
        raise ValueError(
            f"rollout.min_workers is {rollout.min_workers}, but rollout.workers is "
            f"{rollout.workers}"
        )
    if rollout.most_workers < rollout.workers:
        raise ValueError(
            f"rollout.max_workers is {rollout.max_workers}, but the run begins with "
            f"rollout.workers {rollout.workers}; raise the one or lower the other"
        )
