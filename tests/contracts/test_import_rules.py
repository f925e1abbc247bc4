"""The dependency rules of the house, executable."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = {"common", "rollout", "teacher_server", "learner", "deploy", "tests"}
ROLES = {"rollout", "teacher_server", "learner"}
MAY_IMPORT = {
    "common": {"common"},
    "rollout": {"rollout", "common"},
    "teacher_server": {"teacher_server", "common"},
    "learner": {"learner", "common"},
    "deploy": {"deploy", "common", *ROLES},
}
ROOMS = {
    # room: the rooms of its package that it may know; a file that lies in none is a room itself
    "common.errors": set(),
    "common.outline": set(),
    "common.device": {"common.errors"},
    "common.background": set(),
    "common.large_pages": set(),
    "common.cache": set(),
    "common.native": {"common.cache"},
    "common.finite": {"common.errors", "common.native"},
    "common.memory": {"common.errors", "common.outline"},
    "common.randomness": set(),
    "common.without_compiler": set(),
    "common.files": {"common.errors", "common.finite"},
    "common.config": {"common.errors", "common.files"},
    "common.spec": {"common.errors", "common.config"},
    "common.models": {
        *("common.device", "common.errors", "common.config", "common.randomness", "common.spec"),
        *("common.large_pages", "common.native"),
    },
    "common.exchange": {
        *("common.errors", "common.files", "common.config", "common.randomness", "common.spec"),
        *("common.finite", "common.models", "common.native"),
    },
    "common.flow": {"common.config"},
    "common.perceptual": {
        *("common.errors", "common.files", "common.config", "common.outline"),
    },
    "common.tokenization": {
        *("common.errors", "common.files", "common.config", "common.memory", "common.spec"),
        *("common.models", "common.outline", "common.flow"),
    },
    "common.artifacts": {
        *("common.errors", "common.files", "common.config", "common.spec", "common.models"),
        *("common.tokenization", "common.outline"),
    },
    "common.images": {"common.errors", "common.files", "common.config"},
    "common.data": {
        *("common.errors", "common.files", "common.config", "common.memory", "common.randomness"),
        *("common.spec", "common.images"),
    },
    "deploy.layout": set(),
    "deploy.sections": set(),
    "deploy.agreement": {"deploy.sections"},
    "deploy.logger": set(),
    "deploy.loggers": {"deploy.logger"},
    "deploy.config": {"deploy.sections", "deploy.agreement", "deploy.logger"},
    "deploy.load": set(),
    "deploy.console": set(),
    "deploy.run_folder": {"deploy.config"},
    "deploy.control": {"deploy.console", "deploy.run_folder"},
    "deploy.report": {"deploy.load", "deploy.config", "deploy.console", "deploy.run_folder"},
    "deploy.backend": {"deploy.layout", "deploy.config", "deploy.console", "deploy.load"},
    "deploy.pipeline": {"deploy.config", "deploy.backend"},
    "deploy.stages": {
        *("deploy.logger", "deploy.layout", "deploy.config", "deploy.console", "deploy.run_folder"),
        *("deploy.report", "deploy.backend", "deploy.pipeline", "deploy.load", "deploy.control"),
    },
    "deploy.planning": {
        *("deploy.config", "deploy.run_folder", "deploy.backend", "deploy.stages"),
    },
    "deploy.doctor": {
        *("deploy.config", "deploy.console", "deploy.run_folder", "deploy.backend"),
        "deploy.planning",
    },
    "deploy.study": {
        *("deploy.layout", "deploy.config", "deploy.console", "deploy.run_folder"),
        *("deploy.report", "deploy.backend", "deploy.stages"),
    },
    "deploy.cli": {
        *("deploy.layout", "deploy.config", "deploy.console", "deploy.run_folder"),
        "deploy.stages",
    },
    "deploy.commands": {
        *("deploy.layout", "deploy.config", "deploy.console", "deploy.run_folder"),
        *("deploy.backend", "deploy.stages", "deploy.planning", "deploy.study", "deploy.cli"),
        *("deploy.control", "deploy.doctor"),
    },
    "deploy.main": {"deploy.cli", "deploy.console"},
}
OWNERS = {
    "ray": {"deploy/backend"},
    "torch_fidelity": {"rollout/evaluation/metrics.py"},
    "torchvision": set(),
    "lpips": set(),
    "filelock": {"deploy/run_folder/lock.py", "deploy/backend/private_cluster.py"},
    "pyarrow": {
        "common/exchange/metric_files.py",
        *("common/exchange/trajectory.py", "common/exchange/buffer.py", "common/data/tokens.py"),
        *("common/images/columns.py", "common/images/parquet.py", "common/exchange/assembly.py"),
        *("common/exchange/segments.py", "rollout/replay.py"),
        *("rollout/worker.py", "teacher_server/teacher.py"),
        *("teacher_server/scorer.py", "teacher_server/scorers"),
        *("teacher_server/reward.py", "deploy/run_folder/remote.py"),
    },
}
FILES = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")


def room_of(module: str) -> str:
    """The folder below the package, or the file that lies in none."""
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_inwards(package):
    offences = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for name in imported_roots(path)
        if name in OURS and name not in MAY_IMPORT[package]
    ]
    assert not offences, "\n".join(offences)


def test_rooms_know_only_those_below():
    """The table holds for imports inside of functions and for types as well."""
    offences = []
    for path in FILES:
        here = room_of(named(path))
        if path.name == "__init__.py" or here.split(".")[0] in ROLES:
            continue
        for module in imported_modules(path):
            there = room_of(module)
            is_other = there.split(".")[0] == here.split(".")[0] and there != here
            if is_other and there not in ROOMS[here]:
                offences.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not offences, "\n".join(offences)


def test_the_table_has_no_circle_and_names_what_is_there():
    for room, below in ROOMS.items():
        place = ROOT / room.replace(".", "/")
        assert place.is_dir() or place.with_suffix(".py").exists(), room
        known = list(ROOMS)
        assert all(known.index(other) < known.index(room) for other in below), room


@pytest.mark.parametrize("library", OWNERS)
def test_third_parties_have_owners(library):
    users = [str(p.relative_to(ROOT)) for p in FILES if library in imported_roots(p)]
    assert [u for u in users if not u.startswith(tuple(OWNERS[library]))] == []


def test_files_and_functions_stay_short():
    long = []
    for path in FILES:
        text = path.read_text()
        if text.count("\n") > 300:
            long.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > 40:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines}")
    assert not long, "\n".join(long)


LIGHT = (
    (
        "import deploy.main, deploy.cli.parser; deploy.cli.parser.build_parser()",
        {"torch", "ray", "pydantic"},
    ),
    ("import deploy.backend.actors", {"torch", "pyarrow"}),
    ("from common.exchange import ledger, buffer, weight_folder, metrics", {"torch"}),
    ("import deploy.pipeline", {"sklearn", "matplotlib", "torch_fidelity"}),
    # Ray reads its authentication mode when it is imported, so that must come late.
    (
        "import deploy.stages.distill, deploy.backend.session, deploy.backend.supervisor",
        {"ray", "torch.distributed.checkpoint"},
    ),
)
"""Code, and what must not be imported by then; what imports less comes first."""


def test_nothing_heavy_is_imported():
    script = "import sys\n" + "".join(
        f"{code}\nprint({code!r}, sorted(set(sys.modules) & {forbidden!r}))\n"
        for code, forbidden in LIGHT
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines() == [f"{code} []" for code, _ in LIGHT], done.stderr


def imported_roots(path: Path) -> set[str]:
    return {module.split(".")[0] for module in imported_modules(path)}


@cache
def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.add(node.module)
    return modules
