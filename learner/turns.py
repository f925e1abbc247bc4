"""Whose turn it is where two networks are trained in turns: a pure function of the step.

Distilled Decoding 2 (arXiv 2510.21003, section 3.3 and appendix C; docs/one_step.md): K steps of
the guidance network, then one of the generator. At a performance alignment the generator becomes
its moving average and stands still while the guidance network catches up; then both go on, with
another K if so chosen.
"""

from dataclasses import dataclass
from typing import Literal

from common.exchange.schedule import Phase

Turn = Literal["guidance", "generator"]
ALIGNMENT = 1
"""Number of the phase."""


@dataclass(frozen=True, slots=True)
class Turns:
    guidance_steps: int
    """K: steps of the guidance network before each of the generator's."""
    alignment: tuple[int, int, int] | None = None
    """(generator steps before it, guidance steps in it, K after it)."""

    def phases(self) -> tuple[Phase, ...]:
        """When the generator changes, for the schedule."""
        first = Phase(0, self.guidance_steps + 1)
        if self.alignment is None:
            return (first,)
        before, steps, after = self.alignment
        begins = before * first.period
        return first, Phase(begins, steps, asks=False), Phase(begins + steps, after + 1)

    def turn(self, step: int) -> Turn:
        """Who is trained in this step (0-based)."""
        number, phase = self._phase(step)
        is_last = (step - phase.first) % phase.period == phase.period - 1
        return "generator" if is_last and number != ALIGNMENT else "guidance"

    def aligns(self, step: int) -> bool:
        """Whether the generator becomes its average before this step."""
        number, phase = self._phase(step)
        return number == ALIGNMENT and step == phase.first

    def done(self, steps: int) -> dict[Turn, int]:
        """How many of the first `steps` each of the two had."""
        of_generator = 0
        phases = self.phases()
        ends = [phase.first for phase in phases[1:]]
        for number, (phase, end) in enumerate(zip(phases, [*ends, steps], strict=True)):
            if number != ALIGNMENT:
                of_generator += max(0, min(end, steps) - phase.first) // phase.period
        return {"guidance": steps - of_generator, "generator": of_generator}

    def _phase(self, step: int) -> tuple[int, Phase]:
        begun = [pair for pair in enumerate(self.phases()) if pair[1].first <= step]
        return begun[-1]
