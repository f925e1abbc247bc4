"""What CONTRIBUTING.md asks of tests."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]


PROCESSES = ("trial.py", "head.py", "server.py")
"""They give themselves, in a process of their own, other streams, workers or arguments."""


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
        if path.name not in PROCESSES and (lines := patches(path.read_text()))
    }
    assert found == {}
    assert patches("import a.b as m\nm.f = 1") == ["line 2: m.f is set"]
    assert patches("from a import m\ndel m.n.f") == ["line 2: m.n.f is set"]
    assert patches("monkeypatch.setattr(m, 'f', 1)")
