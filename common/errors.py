"""The ways in which things end early on purpose, and how an ending crosses a process boundary."""

from dataclasses import dataclass


class InputError(ValueError):
    """Something the user can mend; the command line prints it and exits with code 2.

    The sentence names the file or key, what was found, what was expected and what to do.
    """


class Diverged(InputError):
    """Numbers that must be finite are not: the sentence says at which step, and which."""


class RunFailed(RuntimeError):
    """A run ended early for a reason outside the user's files; the message is the cause.

    The command line prints it and exits with code 1.
    """


class ServiceDied(RunFailed):
    """The process of one of the run's own services is gone."""


class Closed(RuntimeError):
    """A service was shut while somebody waited on it; the message is the cause."""


UNDERSTOOD = (InputError, RunFailed, Closed)
"""Whoever raises one of these has said all there is to say: it is never tried again."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A failure that was understood, as a value.

    Frameworks wrap, retry or print an exception that leaves a process; a value arrives as it is.
    """

    kind: type[Exception]
    message: str

    @classmethod
    def of(cls, failure: "str | Exception | Verdict") -> "Verdict":
        """A plain cause means that something was closed."""
        if isinstance(failure, Verdict):
            return failure
        return cls(Closed if isinstance(failure, str) else type(failure), str(failure))

    def error(self) -> Exception:
        """The exception as it was raised: same class, same sentence."""
        return self.kind.__new__(self.kind, self.message)  # whatever its __init__ wants
