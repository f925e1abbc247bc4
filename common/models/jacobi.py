"""Speculative Jacobi decoding as a choice (docs/method.md, "Speculative decoding")."""

from typing import Literal

from common.config.quantities import Tokens
from common.config.schema import Config


class JacobiConfig(Config):
    """A window of slots is guessed, and checked by one pass; what is kept has the law of drawing
    one after the other (arXiv 2410.01699)."""

    window: Tokens = 8
    """Slots that a pass reads; 1 is one slot a pass."""
    redraw: Literal["fresh", "keep", "couple"] = "couple"
    """What becomes of guesses behind the first one that is rejected: drawn anew from the newest
    distributions, kept, or each kept or redrawn as if it were the first."""
