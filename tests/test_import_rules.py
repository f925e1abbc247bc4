"""The dependency rules of the house, executable."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"common", "rollout", "teacher_server", "learner", "deploy", "tests"}
MAY_IMPORT = {
    "common": {"common"},
    "rollout": {"rollout", "common"},
    "teacher_server": {"teacher_server", "common"},
    "learner": {"learner", "common"},
    "deploy": {"deploy", "rollout", "teacher_server", "learner", "common", "ray"},
}
OWNERS = {
    "torch_fidelity": {"rollout/evaluate.py"},
    "torchvision": set(),
    "filelock": {"deploy/lock.py", "deploy/private_cluster.py"},
    "pyarrow": {
        "common/trajectory.py",
        "common/buffer.py",
        "common/tokens.py",
        "common/data/columns.py",
        "common/data/parquet.py",
        "rollout/worker.py",
        "teacher_server/teacher.py",
    },
}
FILES = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_inwards(package):
    offences = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for name in imported_roots(path)
        if name in OURS | {"ray"} and name not in MAY_IMPORT[package]
    ]
    assert not offences, "\n".join(offences)


@pytest.mark.parametrize("library", OWNERS)
def test_third_parties_have_owners(library):
    users = {str(p.relative_to(ROOT)) for p in FILES if library in imported_roots(p)}
    assert users <= OWNERS[library]


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


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        (
            "import deploy.main, deploy.parser; deploy.parser.build_parser()",
            {"torch", "ray", "pydantic"},
        ),
        ("import common.ledger, common.buffer, common.weights, common.metrics", {"torch"}),
        ("import deploy.host", {"torch", "pyarrow"}),
        ("import deploy.pipeline", {"sklearn", "matplotlib", "torch_fidelity"}),
        # Ray reads its authentication mode when it is imported, so that must come late.
        ("import deploy.distill, deploy.cluster, deploy.crew", {"ray"}),
    ],
)
def test_nothing_heavy_is_imported(code, forbidden):
    script = f"{code}; import sys; print(sorted(set(sys.modules) & {forbidden!r}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def imported_roots(path: Path) -> set[str]:
    roots = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            roots.add(node.module.split(".")[0])
    return roots
