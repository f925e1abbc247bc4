"""`--cpu`: a config for GPUs on a laptop. Models, data and steps stay; where they run changes."""

import os
from typing import Any

from pydantic import BaseModel

from deploy.config import ClusterConfig, RunConfig

ALONE = {
    "tokens.workers": 2,
    "teacher.replicas": 1,
    "rollout.workers": 2,
    "rollout.max_workers": 2,
    "generate.workers": 2,
    "learner.world_size": 1,
}
"""Processes, at most: more only take one another's memory."""
FEW_CPUS = 1.0
OBJECT_STORE_MB = 512.0


def on_cpu(config: RunConfig) -> tuple[RunConfig, list[str]]:
    """The same run on this machine's CPUs, and what that changes.

    float32 throughout: few processors calculate in bfloat16, the others imitate it slowly.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # also for libraries that choose for themselves
    changes: list[str] = []
    moved = _moved(config, "", changes)
    moved = moved.model_copy(update={"cluster": _this_machine(config.cluster, changes)})
    least = min(config.rollout.min_workers, moved.rollout.workers)
    rollout = moved.rollout.model_copy(update={"min_workers": least})
    return moved.model_copy(update={"rollout": rollout}), changes


def _moved(section: Any, prefix: str, changes: list[str]) -> Any:
    update: dict[str, Any] = {}
    for name in type(section).model_fields:
        value, key = getattr(section, name), f"{prefix}{name}"
        if key == "cluster":
            continue
        if isinstance(value, BaseModel):
            update[name] = _moved(value, f"{key}.", changes)
            continue
        if isinstance(value, dict) and all(isinstance(t, BaseModel) for t in value.values()):
            update[name] = {
                own: _moved(table, f"{key}.{own}.", changes) for own, table in value.items()
            }
            continue
        wanted = _wanted(name, key, value)
        if wanted != value:
            update[name] = wanted
            if value != "auto":
                changes.append(f"{key} {_word(value)} -> {_word(wanted)}")
    return section.model_copy(update=update)


def _wanted(name: str, key: str, value: Any) -> Any:
    if value is None:  # as another field, which moves
        return None
    if name == "device":
        return "cpu"
    if name == "gpus":
        return 0.0
    if name == "dtype" and value in ("auto", "bfloat16"):
        return "float32"
    if name == "cpus":
        return min(value, FEW_CPUS)
    return min(value, ALONE[key]) if key in ALONE else value


def _this_machine(declared: ClusterConfig, changes: list[str]) -> ClusterConfig:
    """What it describes is another machine; its shared memory would not fit here either."""
    here = ClusterConfig(object_store_mb=min(declared.object_store_mb, OBJECT_STORE_MB))
    if declared != here:
        changes.append("[cluster] -> this machine")
    return here.model_copy(update={"data_images": declared.data_images})


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
