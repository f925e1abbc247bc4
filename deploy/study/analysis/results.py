"""What a study measures: a row per evaluation and a row per trained cell, as CSV both ways.

A cell is one method trained with one seed. CSV is long format, UTF-8, with the field names as
header; floats are written so that they read back exactly, None as an empty field.
"""

import csv
import io
from collections.abc import Iterable
from dataclasses import MISSING, astuple, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from common.errors import InputError
from common.files.atomic import write_atomically

TEACHER, BASE, SLOTS = "teacher", "base", "slots"
"""Method names of the reference rows: the teacher, the student that all cells start from, and the
teacher's sequences with every slot drawn by itself (where students have one pass)."""
REFERENCES = (TEACHER, BASE, SLOTS)
NATS = ("reverse_kl", "forward_kl", "acceptance", "data_nll", "entropy")
REWARDS = ("reward", "reward_of_data")
"""Metrics without features of images (deploy/stages/likelihood.py), of some measurements alone."""
METRICS = ("fid", "kid", "precision", "recall", "inception_score", *NATS, *REWARDS)

Row = TypeVar("Row")


@dataclass(frozen=True)
class Measurement:
    """One evaluation: a model of one cell at one step and one guidance."""

    method: str
    seed: int
    step: int
    images: int
    """Student images trained on so far."""
    seconds: float
    """Training seconds of the cell so far, without evaluation."""
    guidance: float
    """Scale of classifier-free guidance at evaluation; 1.0 is none."""
    fid: float
    kid: float
    precision: float
    recall: float
    inception_score: float
    reverse_kl: float | None = None
    forward_kl: float | None = None
    acceptance: float | None = None
    data_nll: float | None = None
    entropy: float | None = None
    reward: float | None = None
    """Sum of the run's rewards (`scorers`) of plain samples."""
    reward_of_data: float | None = None
    """The same of data images."""


@dataclass(frozen=True)
class CellFacts:
    """What one cell cost."""

    method: str
    seed: int
    steps: int
    images: int
    seconds: float
    """Training seconds, without evaluation."""
    seconds_per_step: float
    survival: float | None
    """Mean share of tokens that the gate let through; None where the method has no gate."""
    device: str
    """Device and host, for people."""


@dataclass(frozen=True)
class SpeedRow:
    """Milliseconds of an image, drawn and decoded, with 95 % t-intervals over the rounds."""

    method: str
    batch: int
    """Images drawn together."""
    rounds: int
    milliseconds: float
    low: float | None
    high: float | None
    times_as_fast: float
    """As the teacher, in the same round."""
    times_low: float | None
    times_high: float | None
    clock: str
    """"cpu": of the process's own time; "wall": by the clock."""


def csv_text(kind: type[Row], rows: Iterable[Row]) -> str:
    """Rows of one dataclass as CSV text."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(kind))  # type: ignore[arg-type]
    writer.writerows(astuple(row) for row in rows)  # type: ignore[arg-type]
    return text.getvalue()


def write_csv(path: Path, kind: type[Row], rows: Iterable[Row]) -> None:
    """Write rows of one dataclass to `path`, replacing it in one go."""
    write_bytes(path, csv_text(kind, rows).encode())


def write_bytes(path: Path, data: bytes) -> None:
    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    write_atomically(path, write)


def read_csv(path: Path, kind: type[Row]) -> list[Row]:
    """Read what `write_csv` wrote.

    Raises:
        InputError: the file is missing, has other columns, or holds a value of another type.
    """
    hints = get_type_hints(kind)
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            reader = csv.reader(handle)
            header = next(reader, [])
            lines = [(reader.line_num, values) for values in reader if values]
    except OSError as error:
        raise InputError(f"{path}: not readable: {error.strerror}; give a CSV of a study") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a UTF-8 CSV file: {error}; give a CSV of a study") from None
    optional = {field.name for field in fields(kind) if field.default is not MISSING}  # type: ignore[arg-type]
    if header != [name for name in hints if name in header or name not in optional]:
        raise InputError(f"{path}: columns {header}; expected {list(hints)}; write it anew")
    hints = {name: hints[name] for name in header}
    return [_row(f"{path}: line {number}", kind, hints, values) for number, values in lines]


def _row(place: str, kind: type[Row], hints: dict[str, Any], values: list[str]) -> Row:
    if len(values) != len(hints):
        raise InputError(f"{place}: {len(values)} fields; expected {len(hints)}; mend the line")
    found = []
    for (name, hint), value in zip(hints.items(), values, strict=True):
        try:
            found.append(None if hint == float | None and not value else _parse(hint, value))
        except ValueError:
            wanted = "a whole number" if hint is int else "a number"
            raise InputError(f"{place}: {name} is {value!r}; expected {wanted}; mend it") from None
    return kind(**dict(zip(hints, found, strict=True)))


def _parse(hint: Any, value: str) -> Any:
    return hint(value) if hint in (int, str) else float(value)
