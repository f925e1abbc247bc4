"""The example of CONTRIBUTING.md is a file that could be committed as it stands."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIED = ("common", "rollout", "teacher_server", "learner", "deploy", "tests", "pyproject.toml")
EXAMPLE = re.compile(r"^```python\n# (learner/objectives/(\w+)\.py)\n(.*?)^```$", re.S | re.M)


def test_the_example_objective_passes_the_contract_tests(tmp_path):
    ((place, kind, code),) = EXAMPLE.findall((ROOT / "CONTRIBUTING.md").read_text())
    for name in COPIED:
        if (ROOT / name).is_dir():
            skipped = shutil.ignore_patterns("__pycache__", "*.npz", "*.safetensors")
            shutil.copytree(ROOT / name, tmp_path / name, ignore=skipped)
        else:
            shutil.copy(ROOT / name, tmp_path)
    (tmp_path / place).write_text(code)
    contracts = [
        "tests/contracts/test_objectives.py",
        "tests/learner/test_learner.py",
        "tests/learner/test_split.py",
    ]
    quiet = ["-q", "-p", "no:cacheprovider", "-k", kind]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *quiet, *contracts],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-1000:]
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed
    assert int(passed[1]) >= 6, ran.stdout


def patches(code: str) -> list[str]:
    """Lines that set or delete an attribute of something imported, or that call what does."""
    parsed = ast.parse(code)
    imports = [node for node in ast.walk(parsed) if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = {(name.asname or name.name).split(".")[0] for node in imports for name in node.names}
    found = []
    for node in ast.walk(parsed):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            owner = node.value
            while isinstance(owner, ast.Attribute):
                owner = owner.value
            if isinstance(owner, ast.Name) and owner.id in imported:
                found.append(f"line {node.lineno}: {ast.unparse(node)} is set")
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            if name in ("setattr", "delattr", "setitem", "patch", "Mock", "MagicMock"):
                found.append(f"line {node.lineno}: {ast.unparse(node.func)} is called")
    return found


def test_no_test_patches_a_module():
    """A test hands over another argument or another launcher (tests/support/building)."""
    found = {
        str(path.relative_to(ROOT)): lines
        for path in sorted((ROOT / "tests").rglob("*.py"))
        if path.name != "trial.py"  # a forked process gives itself other streams
        and (lines := patches(path.read_text()))
    }
    assert found == {}
    assert patches("import a.b as m\nm.f = 1") == ["line 2: m.f is set"]
    assert patches("from a import m\ndel m.n.f") == ["line 2: m.n.f is set"]
    assert patches("monkeypatch.setattr(m, 'f', 1)")
