"""The card beside an exported model: what the weights are and where they come from.

Front matter as model hubs index it, then the facts that the run's own records hold.
"""

import hashlib
import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from common.config.schema import digest
from common.data.tokens import read_header
from common.errors import InputError
from common.files.tensors import state_digest
from common.models.backbone import Backbone, Official
from common.models.velocity_model import VelocityModel
from deploy.config import RunConfig
from deploy.console.versions import versions
from deploy.report.page import one_line
from deploy.run_folder.records import read_facts
from deploy.run_folder.workspace import ModelName, Workspace
from learner.objective import Student

MARK = "---\nlibrary_name: varkd\n"
"""How every card of ours begins."""


def is_card(path: Path) -> bool:
    """Whether an export of ours wrote this file."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as handle:
            return handle.read(len(MARK)) == MARK.encode()
    except OSError:
        return False


def model_card(
    config: RunConfig,
    workspace: Workspace,
    model: Student,
    name: ModelName,
    *,
    title: str,
    sha: str,
) -> str:
    """Markdown for the file called `title`, whose SHA-256 is `sha`."""
    architecture = config.models.teacher if name == "teacher" else config.models.student
    spec, weights = model.spec, state_digest(model)
    steps, looks = _trained(workspace.root / "distill.json")
    grid = "x".join(map(str, spec.grid)) + (f", scales {list(spec.scales)}" if spec.scales else "")
    teacher = workspace.model(config, "teacher").path if name != "teacher" else None
    rows = {
        "family": f"{architecture.kind}, {sum(p.numel() for p in model.parameters()):,} parameters",
        "sizes": _flat(architecture.model_dump(mode="json", exclude={"kind"})),
        "tokens": f"vocabulary {spec.vocab_size}, grid {grid}, {spec.num_classes} classes",
        "tokenizer": _flat(config.tokenizer.model_dump(mode="json")),
        "teacher": _file(teacher) if teacher else "this is the teacher",
        "teacher sizes": _flat(config.models.teacher.model_dump(mode="json")),
        "objective": _flat(config.objective.model_dump(mode="json")),
        **({"images compared by": looks} if looks else {}),
        "contexts": ", ".join(
            f"{kind} {share:.1%}" for kind, share in config.contexts.shares().items()
        ),
        "data": _data(config, workspace),
        "steps": f"{steps} of {config.learner.steps}, "
        f"{config.learner.global_batch_size} images each",
        "seed": str(config.seed),
        "config digest": digest(config),
        "weights digest": weights,
        "file": f"{title}, sha256 {sha}",
        "versions": _flat(versions()),
    }
    lines = [*_front_matter(config, model, name), f"# {one_line(title)}", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {one_line(value)} |" for key, value in rows.items()]
    return "\n".join([*lines, "", *_metrics(workspace, name, weights)]) + "\n"


def _front_matter(config: RunConfig, model: Student, name: ModelName) -> list[str]:
    """YAML; what is not known, such as the license, is left out. JSON strings are YAML strings."""
    kind = (config.models.teacher if name == "teacher" else config.models.student).kind
    decoding = "autoregressive" if isinstance(model, Backbone) else "one-step"
    tags = ["image-generation", "class-conditional", decoding, kind]
    tags += ["knowledge-distillation", config.objective.kind] if "student" in name else []
    weights = config.teacher.weights if name == "teacher" else config.learner.weights
    official = None if isinstance(model, VelocityModel) else model.official
    lines = [*MARK.splitlines(), "pipeline_tag: unconditional-image-generation", "tags:"]
    lines += [f"- {json.dumps(tag)}" for tag in tags]
    if weights is not None and official is not None and _is_published(weights.name, official):
        lines += [f"base_model: {json.dumps(official.hub)}"]
        lines += ["base_model_relation: finetune"] if name.startswith("student") else []
    return [*lines, "---", ""]


def _is_published(name: str, official: Official) -> bool:
    return bool(official.published) and fnmatch(name, official.published)


def _trained(path: Path) -> tuple[str, str]:
    """Steps that were done, and which networks images were compared by, if any."""
    if not path.exists():
        return "0", ""
    try:
        facts = read_facts(path, "distill")
    except InputError:  # the weights are there: a broken record of them is no reason to keep them
        return "unknown", ""
    return str(facts.get("steps", "unknown")), str(facts.get("perceptual") or "")


def _data(config: RunConfig, workspace: Workspace) -> str:
    source = config.tokens.paths or config.images.train or config.images.kind
    name = ", ".join(map(str, source)) if isinstance(source, tuple) else str(source)
    if not workspace.train_tokens.exists():
        return name
    header = read_header(workspace.train_tokens)
    return f"{name}, {header.variants} views per image, tokenizer digest {header.tokenizer}"


def _metrics(workspace: Workspace, name: ModelName, weights: str) -> list[str]:
    """The report's numbers, if they are of these weights, with what they can be compared with."""
    path = workspace.root / "report.json"
    if not path.exists():
        return ["Not evaluated: `varkd evaluate` writes the metrics."]
    shown = "student_after" if name == "student" else name
    try:
        report = read_facts(path, "evaluate")
        measured, found = report["weights"][shown]["digest"], report["metrics"][shown]
        features = report["features"]
        numbers = {key: "-" if value is None else f"{value:.4g}" for key, value in found.items()}
        words = f"{features['samples']} samples against {features['reference']}. {features['note']}"
    except (InputError, LookupError, TypeError, ValueError, AttributeError):
        return ["Not evaluated: report.json cannot be read; `varkd evaluate` writes it anew."]
    if measured != weights:
        return ["Not evaluated: report.json is of other weights; `varkd evaluate` measures these."]
    return [
        "## Metrics",
        "",
        "| " + " | ".join(map(one_line, numbers)) + " |",
        "|" + "---|" * len(numbers),
        "| " + " | ".join(numbers.values()) + " |",
        "",
        one_line(words),
    ]


def _flat(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)


def _file(path: Path) -> str:
    return f"{path.name}, sha256 {sha256(path)}"


def sha256(path: Path) -> str:
    """Of a file, or of what an FSDP folder holds."""
    if path.is_dir():
        path = path / "consolidated.pth"
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
