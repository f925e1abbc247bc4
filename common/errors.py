"""The ways in which things end early on purpose."""


class InputError(ValueError):
    """Something the user can mend; the command line prints it and exits with code 2.

    The sentence names the file or key, what was found, what was expected and what to do.
    """


class Diverged(InputError):
    """Numbers that must be finite are not: the sentence says at which step, and which."""


class RunFailed(RuntimeError):
    """A run ended early for a reason outside the user's files; the message is the cause."""


class Closed(RuntimeError):
    """A service was shut while somebody waited on it; the message is the cause."""
