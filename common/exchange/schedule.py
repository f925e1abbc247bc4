"""The arithmetic of steps, leases, versions and staleness."""

from dataclasses import dataclass


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
        """Whole steps that sampling may run ahead: what `max_staleness` leaves after publishing."""
        return self.max_staleness - (self.publish_every - 1)

    @property
    def most_outstanding(self) -> int:
        """Images that may be leased, scoring or buffered at a time."""
        return (self.ahead + 1) * self.global_batch_size

    @property
    def versions_kept(self) -> int:
        """How many steps back a published version may still be asked for."""
        return self.max_staleness + self.publish_every

    def pinned_version(self, step: int) -> int:
        """The version that `ordered` mode samples `step` with, at most `max_staleness` old."""
        return max(0, step - self.ahead) // self.publish_every * self.publish_every

    def is_published(self, step: int) -> bool:
        return step % self.publish_every == 0


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

    @property
    def indices(self) -> range:
        return range(self.first, self.first + self.size)
