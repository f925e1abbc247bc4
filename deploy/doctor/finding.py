"""What a check found, in a line."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from common.errors import InputError, RunFailed
from deploy.console.faults import summary

State = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the page."""

    name: str
    state: State
    said: str
    advice: str = ""
    """What to do, unless all is well."""

    def line(self) -> str:
        advice = f"; {self.advice}" if self.advice and self.state != "ok" else ""
        return f"{self.state:<4}  {self.name:<22}  {self.said}{advice}"


def judged(
    name: str, said: str, advice: str, *, fails: bool = False, warns: bool = False
) -> Finding:
    """A finding that is well unless it `fails` or `warns`."""
    return Finding(name, "FAIL" if fails else "warn" if warns else "ok", said, advice)


def examined(name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """What `check` finds; one that cannot be carried out has failed, and what it found before and
    other checks stay."""
    found: list[Finding] = []
    try:
        found.extend(check())
    except (InputError, RunFailed) as error:
        found.append(Finding(name, "FAIL", str(error)))
    except (RuntimeError, OSError, ValueError, ImportError) as error:
        advice = "this machine does not do what a run needs; report this page"
        found.append(Finding(name, "FAIL", summary(error), advice))
    return found
