"""A run's student as a file for the family's own sampler, with a card that says what it is."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from common.backbone import Backbone
from common.checkpoint import state_digest, write_atomically, write_text
from common.config import digest
from common.errors import InputError
from common.model_file import ModelFile, official_state
from common.tokens import read_header
from deploy.config import RunConfig, Workspace
from deploy.report import versions
from deploy.workspace import ModelName

Layout = Literal["official", "safetensors"]


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
        InputError: the run has no such model, or the suffix does not fit the layout.
    """
    file = workspace.model(config, name)
    model = file.load()
    suffix = model.official.suffix if layout == "official" else ".safetensors"
    path = output or workspace.root / "export" / f"{_title(config, name)}{suffix}"
    if (path.suffix == ".safetensors") != (layout == "safetensors"):
        raise InputError(
            f"--to {path}: layout {layout} is written as *{suffix}; change one of them"
        )
    _write(path, model, file, layout)
    write_text(path.with_suffix(".md"), model_card(config, workspace, path, model, name))
    return path


def _write(path: Path, model: Backbone, file: ModelFile, layout: Layout) -> None:
    state = official_state(model)
    if layout == "safetensors":
        facts = {"format": "pt", "family": file.architecture.kind}
        facts |= {
            "config": file.architecture.model_dump_json(),
            "spec": json.dumps(file.spec.as_dict()),
        }
        write_atomically(path, lambda temporary: save_file(state, temporary, facts))
        return
    top = model.official.top_level
    content: Any = state if top is None else {top: state}
    write_atomically(path, lambda temporary: torch.save(content, temporary))


def _title(config: RunConfig, name: ModelName) -> str:
    architecture = config.models.teacher if name == "teacher" else config.models.student
    preset = getattr(architecture, "preset", None) or "custom"
    return f"{architecture.kind}_{preset}_{name}".lower()


def model_card(
    config: RunConfig, workspace: Workspace, path: Path, model: Backbone, name: ModelName
) -> str:
    """What the weights are and where they come from, read from the run's own records."""
    architecture = config.models.teacher if name == "teacher" else config.models.student
    spec = model.spec
    run = _facts(workspace.root / "distill.json")
    grid = f"{spec.grid[0]}x{spec.grid[1]}" + (
        f", scales {list(spec.scales)}" if spec.scales else ""
    )
    teacher = workspace.model(config, "teacher").path if name != "teacher" else None
    rows = {
        "family": f"{architecture.kind}, {sum(p.numel() for p in model.parameters()):,} parameters",
        "sizes": _flat(architecture.model_dump(mode="json", exclude={"kind"})),
        "tokens": f"vocabulary {spec.vocab_size}, grid {grid}, {spec.num_classes} classes",
        "tokenizer": _flat(config.tokenizer.model_dump(mode="json")),
        "teacher": f"{teacher.name}, sha256 {sha256(teacher)}"
        if teacher
        else "this is the teacher",
        "teacher sizes": _flat(config.models.teacher.model_dump(mode="json")),
        "objective": _flat(config.objective.model_dump(mode="json")),
        "contexts": ", ".join(
            f"{kind} {share:.1%}" for kind, share in config.contexts.shares().items()
        ),
        "data": _data(config, workspace),
        "steps": f"{run.get('steps', 0)} of {config.learner.steps}, "
        f"{config.learner.images_per_step} images each",
        "seed": str(config.seed),
        "config digest": digest(config),
        "weights digest": state_digest(model),
        "file": f"{path.name}, sha256 {sha256(path)}",
        "versions": _flat(versions()),
    }
    lines = [f"# {path.stem}", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in rows.items()]
    return "\n".join([*lines, "", *_metrics(workspace, name)]) + "\n"


def _data(config: RunConfig, workspace: Workspace) -> str:
    source = config.tokens.paths or config.images.train or config.images.kind
    name = ", ".join(map(str, source)) if isinstance(source, tuple) else str(source)
    if not workspace.train_tokens.exists():
        return name
    header = read_header(workspace.train_tokens)
    return f"{name}, {header.variants} views per image, tokenizer digest {header.tokenizer}"


def _metrics(workspace: Workspace, name: ModelName) -> list[str]:
    """The report's numbers, with what they can be compared with."""
    report = _facts(workspace.root / "report.json")
    shown = "student_after" if name == "student" else name
    found = report.get("metrics", {}).get(shown)
    if not found:
        return ["Not evaluated: `varkd evaluate` writes the metrics."]
    features = report["features"]
    return [
        "## Metrics",
        "",
        "| " + " | ".join(found) + " |",
        "|" + "---|" * len(found),
        "| " + " | ".join(f"{value:.4g}" for value in found.values()) + " |",
        "",
        f"{features['samples']} samples against {features['reference']}. {features['note']}",
    ]


def _flat(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)


def _facts(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def sha256(path: Path) -> str:
    if path.is_dir():
        path = path / "consolidated.pth"
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
