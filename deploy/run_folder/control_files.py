"""Names of what is in RUN/control, where a live run and those who ask something of it meet."""

import re
import secrets

FOLDER = "control"
STATUS = "status.json"
REQUEST, ANSWER = ".request.json", ".answer.json"
CLOCK = ".clock"
"""Of what is stored to see what time it is there."""
IDENTIFIER = re.compile(r"[0-9a-f]{16}")
"""Before these endings."""


def new_identifier() -> str:
    return secrets.token_hex(8)


def identifier_of(name: str, ending: str) -> str | None:
    """That of a file in the folder; None for files of another kind."""
    found = name.removesuffix(ending)
    return found if name.endswith(ending) and IDENTIFIER.fullmatch(found) else None
