"""The arithmetic of steps, leases, versions and staleness."""

from dataclasses import dataclass, field

MOST_AHEAD = 8
"""Steps that sampling may run ahead of a learner that leaves the student as it is for longer."""


@dataclass(frozen=True, slots=True)
class Phase:
    """From step `first` (0-based) on, every `period`-th step changes the student."""

    first: int
    period: int
    asks: bool = True
    """Whether that step reads what the scorers say of its rows; the others never do."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The arithmetic of steps, leases, versions and staleness; shared by ledger and buffer."""

    steps: int
    global_batch_size: int
    lease_size: int
    max_staleness: int
    publish_every: int
    ordered: bool = False
    group_size: int = 1
    """Neighbouring image indices that are samples of one condition; divides `lease_size`, so that
    a group is leased, scored, dropped and trained whole."""
    phases: tuple[Phase, ...] = ()
    """Of a learner that changes the student in some steps only, the first from step 0 on: a version
    is published after each of these (and where a phase begins), and the rows of a step are of the
    newest one, so `max_staleness` and `publish_every` say nothing. Empty: in every step."""

    @property
    def by_step(self) -> bool:
        """Whether a step is made of just its own leases."""
        return self.ordered or bool(self.phases)

    def is_scored(self, lease: int) -> bool:
        """Whether the records of a lease with this number are to pass the scorers."""
        if not self.phases:
            return True
        step = lease // self.leases_per_step
        return self._phase(step).asks and self._next_version(step) == step + 1

    def condition(self, index: int) -> int:
        """Which condition image `index` is a sample of: data row, label, context, prefix and order
        of decoding are functions of it, and only the noise is the image's own."""
        return index // self.group_size

    def member(self, index: int) -> int:
        """Which of its condition's samples image `index` is, from 0."""
        return index % self.group_size

    @property
    def leases_per_step(self) -> int:
        return self.global_batch_size // self.lease_size

    @property
    def total(self) -> int:
        return self.steps * self.leases_per_step

    @property
    def ahead(self) -> int:
        """Whole steps that sampling may run ahead at most: what `max_staleness` leaves after
        publishing, or what a phase leaves before the student changes."""
        if self.phases:
            return min(MOST_AHEAD, max(phase.period for phase in self.phases) - 1)
        return self.max_staleness - (self.publish_every - 1)

    def ahead_of(self, step: int) -> int:
        """The same, when so many steps are done."""
        if not self.phases:
            return self.ahead
        return min(self.ahead, self._next_version(step) - 1 - step)

    @property
    def most_outstanding(self) -> int:
        """Images that may be leased, scoring or buffered at a time."""
        return (self.ahead + 1) * self.global_batch_size

    @property
    def versions_kept(self) -> int:
        """How many steps back a published version may still be asked for."""
        return 0 if self.phases else self.max_staleness + self.publish_every

    def pinned_version(self, step: int) -> int:
        """The version that `ordered` mode samples `step` with, at most `max_staleness` old."""
        if self.phases:
            phase = self._phase(step)
            return step - (step - phase.first) % phase.period
        return max(0, step - self.ahead) // self.publish_every * self.publish_every

    @property
    def pins_earlier(self) -> bool:
        """Whether a lease may be pinned to a version that has a newer one already."""
        return self.ordered and (self.max_staleness > 0 or bool(self.phases))

    def earlier_versions(self, step: int) -> list[int]:
        """Versions from before `step` that its leases and later ones are pinned to, in order."""
        if not self.pins_earlier:
            return []
        pinned = self.pinned_version(step)
        return [version for version in range(pinned, step) if self.is_published(version)]

    def oldest_version(self, step: int) -> int:
        """What the student's rows of `step` must not be older than."""
        return self.pinned_version(step) if self.phases else step - self.max_staleness

    def is_published(self, step: int) -> bool:
        """Whether a version is published when so many steps are done."""
        return self.pinned_version(step) == step if self.phases else step % self.publish_every == 0

    def _phase(self, step: int) -> Phase:
        return [phase for phase in self.phases if phase.first <= step][-1]

    def _next_version(self, step: int) -> int:
        later = [phase.first for phase in self.phases if phase.first > step]
        return min([self.pinned_version(step) + self._phase(step).period, *later])


@dataclass(frozen=True, slots=True)
class Lease:
    """Permission to sample one block of image indices."""

    number: int
    first: int
    size: int
    step: int
    """The learner step that the block belongs to (in `ordered` mode it is trained there)."""
    version: int | None
    """Sample with exactly this version; None means the newest."""
    generation: int
    """Bumped when the learner restarts: records of an older future are refused."""
    late: str | None = field(default=None, kw_only=True, compare=False)
    """Who has had it for so long that another one samples it too: the first record counts."""

    @property
    def indices(self) -> range:
        return range(self.first, self.first + self.size)
