"""How a command ends: what it found, the files that it wrote, and what to type next; on stdout."""

import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from common.files.paths import is_url
from deploy.console.progress import results

if TYPE_CHECKING:
    from deploy.config import RunConfig
    from deploy.run_folder.workspace import Workspace


def end(sentence: str, *, files: Iterable[Path] = (), following: str | None = None) -> None:
    """Print the results; `following` is the next command, ready for a shell."""
    target = results()
    target.print(sentence)
    shown = [quoted(path) for path in files]
    if shown:
        target.print(f"files: {', '.join(shown)}")
    if following:
        target.print(f"next:  {following}")


def after_tokens(config: "RunConfig", workspace: "Workspace") -> str:
    """The command after `tokenize`: models that are given need no pretraining."""
    given = (config.teacher.weights is not None, config.learner.weights is not None)
    if all(given):
        return after_models(config, workspace)
    alone = {(True, False): " --model student", (False, True): " --model teacher"}
    return f"varkd pretrain {quoted(workspace.named)}{alone.get(given, '')}"


def after_models(config: "RunConfig", workspace: "Workspace") -> str:
    """The command after `pretrain`: the model that is missing still, or else their use."""
    from deploy.stages.generate import dataset_source

    root = quoted(workspace.named)
    if config.teacher.weights is None and not workspace.teacher.exists():
        return f"varkd pretrain {root} --model teacher"
    needs_base = workspace.has_model(config, "student_before") and config.learner.weights is None
    if needs_base and not workspace.student_before.exists():
        return f"varkd pretrain {root} --model student"
    if dataset_source(config) is not None:
        return f"varkd generate {root}"
    return f"varkd distill {root}"


def to_go_on(root: Path | str, *, local: bool = False) -> str:
    """The command that goes on with a distillation that was stopped."""
    return f"varkd distill {quoted(root)} --resume" + (" --local" if local else "")


def quoted(path: Path | str) -> str:
    """A path for a shell: relative where it is below the current folder; or a URL."""
    if is_url(path):
        return shlex.quote(str(path))
    here = Path.cwd()
    absolute = Path(os.path.abspath(path))
    near = absolute.relative_to(here) if absolute.is_relative_to(here) else absolute
    return shlex.quote(str(near))
