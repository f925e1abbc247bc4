"""What a stored result was made from, as JSON: compared key by key before it is used again.

A result is known by the contents that it depends on and by no name, date or place.
"""

import json
from collections.abc import Mapping
from typing import Any

SHOWN = 60


def plain(value: Any) -> Any:
    """`value` as it comes back from a JSON file: tuples are lists, keys are strings."""
    return json.loads(json.dumps(value))


def difference(held: Any, wanted: Any) -> str | None:
    """The first key whose value differs, with both: "pretrain.teacher.steps was 30 and is 20".

    None where all is equal. What `held` has beyond `wanted` counts as well.
    """
    return _difference(plain(held), plain(wanted), "")


def _difference(held: Any, wanted: Any, key: str) -> str | None:
    if isinstance(held, Mapping) and isinstance(wanted, Mapping):
        for name in (*wanted, *(name for name in held if name not in wanted)):
            path = f"{key}.{name}" if key else name
            found = _difference(held.get(name), wanted.get(name), path)
            if found is not None:
                return found
        return None
    if held == wanted:
        return None
    return f"{key or 'it'} was {_short(held)} and is {_short(wanted)}"


def _short(value: Any) -> str:
    if value is None:
        return "not given"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
