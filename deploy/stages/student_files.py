"""The students that a run leaves, as files that can be sampled.

The learner writes them as soon as the last snapshot is on disk; whoever finds them missing or of
other steps, because somebody was killed in between, makes them of that snapshot.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from common.artifacts.backbone_file import save_backbone_state
from common.artifacts.generator_file import save_generator_state
from common.config.schema import digest
from common.data.tokens import read_header
from common.errors import InputError, RunFailed
from common.files.tensors import read_metadata
from common.models.backbone import BackboneConfig
from deploy.config import RunConfig
from deploy.run_folder.start import run_snapshots
from deploy.run_folder.workspace import Workspace
from learner.learner import StudentName


def store_student(
    config: RunConfig,
    workspace: Workspace,
    path: Path,
    state: Mapping[str, Tensor],
    steps: int,
    **extra: Any,
) -> None:
    """Write a student after `steps` as a file that can be sampled; what else it says is `extra`."""
    spec, student = read_header(workspace.existing_tokens()).spec, config.models.student
    facts, tensors = {**_facts(config, steps), **extra}, dict(state)
    if isinstance(student, BackboneConfig):
        save_backbone_state(path, tensors, student, spec, **facts)
    else:
        save_generator_state(path, tensors, student, spec, **facts)


def store_students(
    config: RunConfig,
    workspace: Workspace,
    states: Iterable[tuple[StudentName, Mapping[str, Tensor]]],
    steps: int,
) -> None:
    """The student and its average, `states` by the names of their files."""
    for name, state in states:
        store_student(config, workspace, getattr(workspace, name), state, steps)


def complete_students(config: RunConfig, workspace: Workspace) -> None:
    """See that both files are there and of the newest snapshot.

    Raises:
        RunFailed: there is no snapshot.
        InputError: it is damaged.
    """
    snapshots = run_snapshots(workspace)
    steps = snapshots.newest_step()
    if steps is None:
        raise RunFailed("the learner ended without a snapshot")
    paths, wanted = (workspace.student, workspace.student_ema), _facts(config, steps)
    if not all(_says(path, wanted) for path in paths):
        tensors, _ = snapshots.load(steps)
        for path, entry in zip(paths, ("student", "ema"), strict=True):
            store_student(config, workspace, path, tensors[entry], steps)


def _facts(config: RunConfig, steps: int) -> dict[str, Any]:
    return {"steps": steps, "config_digest": digest(config)}


def _says(path: Path, wanted: Mapping[str, Any]) -> bool:
    if not path.exists():
        return False
    try:
        found = read_metadata(path)
    except InputError:
        return False
    return all(found.get(name) == value for name, value in wanted.items())
