"""What a run wrote about itself, read again: distill.json, metrics.jsonl, profiles.jsonl."""

from pathlib import Path
from typing import Any

from common.errors import InputError
from common.exchange.metric_files import read_rows
from common.exchange.metrics import PROFILE
from common.files.paths import read_json, shortened


def read_facts(path: Path, command: str) -> dict[str, Any]:
    """A JSON object that `varkd command` wrote.

    Raises:
        InputError: it is not there, or no such file.
    """
    try:
        found = read_json(path, f"what `varkd {command}` writes")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; make it with `varkd {command}`") from None
    except InputError as error:
        raise InputError(f"{error}; remove it and make it again with `varkd {command}`") from None
    if not isinstance(found, dict):
        raise InputError(
            f"{path}: holds no JSON object; remove it and make it again with `varkd {command}`"
        )
    return found


def read_run_facts(path: Path) -> dict[str, Any]:
    """What `varkd distill` wrote at its end.

    Raises:
        InputError: it is not there, or a value is of another type than a run writes.
    """
    facts = read_facts(path, "distill")
    kinds = {"wall_seconds": float, "steps": int, "published": int, "perceptual": str}
    kinds |= {"deaths": dict, "busy": dict}
    for key, kind in kinds.items():
        value = facts.get(key, kind())
        if not isinstance(value, kind) and not (kind is float and isinstance(value, int)):
            raise InputError(
                f"{path}: {key} is {value!r}, no {kind.__name__}; remove the file and make it "
                "again with `varkd distill`"
            )
    restarts = facts.get("restarts", [])
    if not isinstance(restarts, list) or not all(map(_is_restart, restarts)):
        raise InputError(
            f"{path}: restarts is {shortened(repr(restarts))}, no list of a learner's restarts; "
            "remove the file and make it again with `varkd distill`"
        )
    replaced = facts.get("replaced", {})
    if not isinstance(replaced, dict) or not all(map(_is_replacement, replaced.values())):
        raise InputError(
            f"{path}: replaced is {shortened(repr(replaced))}, and does not say by whom and after "
            "how many seconds; remove the file and make it again with `varkd distill`"
        )
    return facts


def _is_restart(found: Any) -> bool:
    """As `Ledger.restarts` gives them."""
    numbers = isinstance(found, dict) and {"from", "reached"} <= found.keys()
    return numbers and all(isinstance(value, int | float) for value in found.values())


def _is_replacement(found: Any) -> bool:
    """As `Supervisor.replaced` has them."""
    is_one = isinstance(found, dict) and isinstance(found.get("by"), str)
    return is_one and isinstance(found.get("seconds"), int | float)


def read_numbers(path: Path) -> list[dict[str, Any]]:
    """What of the metric rows is a number."""
    return [
        {key: value for key, value in row.items() if isinstance(value, int | float)}
        for row in read_rows(path)
    ]


def read_windows(path: Path) -> list[dict[str, Any]]:
    """The curves of every window of steps.

    Raises:
        InputError: a row holds something else.
    """
    windows = [row.get(PROFILE) for row in read_rows(path)]
    for number, window in enumerate(windows, 1):
        if not _is_window(window):
            raise InputError(
                f"{path}: row {number} holds no curves; remove the file, or make it again with "
                "`varkd distill`"
            )
    return windows  # type: ignore[return-value]


def _is_window(found: Any) -> bool:
    try:
        means = [curve["mean"] for curve in found["curves"].values()]
        return all(isinstance(mean, list) for mean in means) and found["first"] <= found["last"]
    except (AttributeError, LookupError, TypeError):
        return False
