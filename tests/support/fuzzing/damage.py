"""What can be wrong with a file, as values that can be written down and kept."""

import json
import os
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

ODD: list[Any] = [
    None, True, -1, 0, 1, 10**12, 2**63, 2**64, -(2**63), 0.5, float("nan"), float("inf"), "", "x",
    "a\0b", "\u202e", [], [[]], {}, {"a": 1}, [1, 2, 3], "../../etc", [0] * 100, "1", 1e308,
]  # fmt: skip
"""Values that do not belong where they are put."""


@dataclass(frozen=True)
class Damage:
    """`kind` says what is done, `where` (0 to 1) at which place, `what` with which odd value."""

    kind: str
    where: float = 0.0
    what: int = 0


KINDS = (
    "empty", "cut", "flip", "noise", "grow", "folder", "loop", "dangling", "fifo", "device", "text",
    "missing", "value", "key", "type", "rows",
)  # fmt: skip
DAMAGES = st.builds(
    Damage,
    st.sampled_from(KINDS),
    st.floats(0, 1, allow_nan=False, width=16),
    st.integers(0, len(ODD) - 1),
)


def apply(damage: Damage, path: Path) -> None:
    """Damage the file at `path`; kinds that its format does not have cut it."""
    inside = {".json": _json, ".jsonl": _jsonl, ".safetensors": _safetensors, ".parquet": _parquet}
    if damage.kind in ("value", "key", "type", "rows") and path.suffix in inside:
        inside[path.suffix](damage, path)
        return
    content = path.read_bytes()
    at = int(damage.where * len(content))
    if damage.kind in _CONTENT:
        path.write_bytes(_CONTENT[damage.kind](content, at, damage.what))
        return
    if damage.kind in _NODES:
        path.unlink()
        _NODES[damage.kind](path)
        return
    path.write_bytes(content[:at])


_CONTENT = {
    "empty": lambda content, at, what: b"",
    "flip": lambda content, at, what: (
        content[:at] + bytes([content[at % len(content)] ^ (1 << what % 8)]) + content[at + 1 :]
        if content
        else b"\1"
    ),
    "noise": lambda content, at, what: content[:at] + bytes(range(256)) * 2 + content[at + 512 :],
    "grow": lambda content, at, what: content + content[at:] + b"\0" * what,
    "text": lambda content, at, what: b"<!DOCTYPE html><title>404</title>\n",
}
_NODES = {
    "folder": lambda path: path.mkdir(),
    "loop": lambda path: path.symlink_to(path.name),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "fifo": lambda path: os.mkfifo(path),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "missing": lambda path: None,
}


def _json(damage: Damage, path: Path) -> None:
    path.write_text(json.dumps(_twist(json.loads(path.read_text()), damage)))


def _jsonl(damage: Damage, path: Path) -> None:
    lines = path.read_text().splitlines()
    at = min(int(damage.where * len(lines)), len(lines) - 1)
    lines[at] = json.dumps(_twist(json.loads(lines[at]), damage))
    path.write_text("\n".join(lines) + "\n")


def _safetensors(damage: Damage, path: Path) -> None:
    """Twist our metadata, or the header itself for "type"."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    facts = header.get("__metadata__", {})
    names = sorted(name for name in facts if name != "format")
    if damage.kind == "type" or not names:
        header = _twist(header, damage)
    else:
        name = names[min(int(damage.where * len(names)), len(names) - 1)]
        value = _twist(json.loads(facts[name]), Damage(damage.kind, damage.where, damage.what))
        facts[name] = "{" if damage.kind == "rows" else json.dumps(value)
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + size :])


def _parquet(damage: Damage, path: Path) -> None:
    table = pq.read_table(path)
    metadata = dict(table.schema.metadata or {})
    if damage.kind == "rows":
        table = table.slice(0, int(damage.where * 2))
    elif damage.kind == "type":
        name = table.column_names[damage.what % table.num_columns]
        others = [
            pa.nulls(table.num_rows),
            pa.array([0.5] * table.num_rows),
            pa.array(["x"] * table.num_rows),
            pa.array([2**63] * table.num_rows, pa.uint64()),
            pa.array([-1] * table.num_rows),
            pa.array([[]] * table.num_rows, pa.list_(pa.int64())),
            pa.array([[1.5]] * table.num_rows),
        ]
        other = others[min(int(damage.where * len(others)), len(others) - 1)]
        table = table.set_column(table.column_names.index(name), name, other)
    elif damage.kind == "key":
        table = table.drop_columns(table.column_names[damage.what % table.num_columns])
    elif b"varkd" in metadata:
        metadata[b"varkd"] = json.dumps(_twist(json.loads(metadata[b"varkd"]), damage)).encode()
    pq.write_table(table.replace_schema_metadata(metadata), path)


def _twist(value: Any, damage: Damage) -> Any:
    """Another value (or no key) at some place of a JSON tree."""
    odd = ODD[damage.what]
    if isinstance(value, dict) and value:
        names = sorted(value)
        at = damage.where * len(names)
        name = names[min(int(at), len(names) - 1)]
        rest = dict(value)
        if damage.kind == "key":
            del rest[name]
        elif isinstance(value[name], dict | list) and value[name] and damage.what % 2:
            rest[name] = _twist(value[name], Damage(damage.kind, at % 1, damage.what))
        else:
            rest[name] = odd
        return rest
    if isinstance(value, list) and value:
        at = min(int(damage.where * len(value)), len(value) - 1)
        return value[:at] if damage.kind == "key" else [*value[:at], odd, *value[at + 1 :]]
    return odd


def remove(path: Path) -> None:
    """Whatever is there now."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
