"""What fields of a config mean: the docstrings beneath them.

Read from the sources when somebody asks: pydantic would do it for every class of every command,
which takes longer than all else that it does.
"""

import ast
import inspect
from functools import cache

from pydantic import BaseModel


def field_docs(model: type[BaseModel]) -> dict[str, str]:
    """Text by name of a field; a class's own words come before those it inherits."""
    found: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if issubclass(owner, BaseModel) and owner is not BaseModel:
            file = inspect.getsourcefile(owner)
            found |= _docs(file).get(owner.__qualname__, {}) if file else {}
    return {name: found[name] for name in model.model_fields if name in found}


@cache
def _docs(file: str) -> dict[str, dict[str, str]]:
    """Of every class at the top of a file, by its name."""
    with open(file, encoding="utf-8") as stream:
        tree = ast.parse(stream.read())
    return {node.name: _beneath(node) for node in tree.body if isinstance(node, ast.ClassDef)}


def _beneath(node: ast.ClassDef) -> dict[str, str]:
    found = {}
    for field, text in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            match text:
                case ast.Expr(ast.Constant(str(words))):
                    found[field.target.id] = words
    return found
