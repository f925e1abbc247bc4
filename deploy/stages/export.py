"""A run's student as a file for the family's own sampler, with a card that says what it is."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from common.artifacts.generator_file import released_content, released_state
from common.artifacts.model_file import official_state
from common.errors import InputError
from common.files.atomic import write_atomically, write_text
from common.models.backbone import Backbone, Official
from common.models.distilled_decoding import DistilledDecoder
from common.models.one_pass import OnePassConfig
from common.models.velocity_model import VelocityModel
from deploy.config import RunConfig
from deploy.report.card import is_card, model_card, sha256
from deploy.run_folder.workspace import AnyModelFile, ModelName, Workspace
from deploy.stages.draw import Drawn

Layout = Literal["official", "safetensors"]


def card_of(path: Path) -> Path:
    """Every exported file has its own, whatever its suffix."""
    return path.with_name(f"{path.name}.md")


def export(
    config: RunConfig,
    workspace: Workspace,
    *,
    name: ModelName,
    layout: Layout,
    output: Path | None,
) -> Path:
    """Write the model and, beside it, its card; returns the model's path.

    `official` has the family's own top level and names, with the buffers that a strict loader
    expects; `safetensors` has the same names in a flat file.

    Raises:
        InputError: the run has no such model, the suffix does not fit the layout, or `output` is
            there and no export of ours.
    """
    file = workspace.model(config, name)
    if output is not None:
        _require_ours(output)
    models = _loaded(config, workspace, name)
    model = models[0]
    suffix = ".safetensors" if layout == "safetensors" else _official(model, file).suffix
    path = output or workspace.root / "export" / f"{_title(config, name)}{suffix}"
    if (path.suffix == ".safetensors") != (layout == "safetensors"):
        raise InputError(
            f"--to {path}: layout {layout} is written as *{suffix}; change one of them"
        )
    _require_ours(path)

    def write(temporary: Path) -> None:
        # The card comes first: a file without one would be taken for somebody else's.
        _write(temporary, models, file, layout)
        sha = sha256(temporary)
        card = model_card(config, workspace, model, name, title=path.name, sha=sha)
        write_text(card_of(path), card)

    write_atomically(path, write)
    return path


def _require_ours(path: Path) -> None:
    """An earlier export may be replaced, anything else may not."""
    card = card_of(path)
    if card.exists() and not is_card(card):
        raise InputError(
            f"{card}: the model card would go there, but the file that is there is no card of "
            "varkd; remove it or choose another --to"
        )
    if path.exists() and not card.exists():
        raise InputError(
            f"{path}: exists, and no model card beside it ({card.name}) says that it is an export "
            "of varkd; remove it or choose another --to"
        )


def _loaded(config: RunConfig, workspace: Workspace, name: ModelName) -> list[Drawn]:
    """The model; with a distilled one-pass student its average, for their files hold both."""
    model = workspace.model(config, name).load()
    if isinstance(model, Backbone) or name not in ("student", "student_ema"):
        return [model]
    return [model, workspace.model(config, "student_ema").load()]


def _write(temporary: Path, models: list[Drawn], file: AnyModelFile, layout: Layout) -> None:
    model = models[0]
    state = _state(model)
    if layout == "safetensors":
        facts = {"format": "pt", "family": file.architecture.kind}
        facts |= {
            "config": file.architecture.model_dump_json(),
            "spec": json.dumps(file.spec.as_dict()),
        }
        save_file(state, temporary, facts)
        return
    content: Any = _content(models, state, _official(model, file))
    with temporary.open("wb") as handle:  # torch.save of a path reports a full disk in C++'s words
        torch.save(content, handle)


def _official(model: Drawn, file: AnyModelFile) -> Official:
    """The family's own layout.

    Raises:
        InputError: it has none.
    """
    if isinstance(model, VelocityModel):
        raise InputError(
            f"--layout official: nobody published a {file.architecture.kind}, so there is no such "
            "layout; choose --layout safetensors"
        )
    return model.official


def _state(model: Drawn) -> dict[str, Tensor]:
    if isinstance(model, VelocityModel):
        return {n: v.detach().cpu().contiguous() for n, v in model.state_dict().items()}
    return official_state(model) if isinstance(model, Backbone) else released_state(model)


def _content(models: list[Drawn], state: dict[str, Tensor], official: Official) -> dict[str, Any]:
    if isinstance(averaged := models[-1], DistilledDecoder):
        return released_content(official, state, released_state(averaged))
    return state if official.top_level is None else {official.top_level: state}


def _title(config: RunConfig, name: ModelName) -> str:
    architecture = config.models.teacher if name == "teacher" else config.models.student
    is_one_pass = isinstance(architecture, OnePassConfig)
    sizes = architecture.sizes if is_one_pass else architecture
    preset = getattr(sizes, "preset", None) or "custom"
    return f"{architecture.kind}_{preset}_{name}".lower()
