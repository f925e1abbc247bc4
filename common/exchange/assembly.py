"""The records of one learner step, as the buffer puts them together (common/exchange/buffer.py)."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Share:
    """One rank's records of a step, and the leases of the whole step."""

    records: list[pa.RecordBatch]
    leases: list[int]


@dataclass(frozen=True, slots=True)
class Assembled:
    """The records of one learner step by lease; those of `missing` were lost."""

    records: dict[int, Any]
    missing: set[int] = field(default_factory=set)

    def share(self, shard: int, shards: int) -> Share | None:
        """What rank `shard` of `shards` gets; None as long as a record is missing."""
        if self.missing:
            return None
        return Share(list(self.records.values())[shard::shards], list(self.records))

    def lose(self, numbers: Iterable[int]) -> list[int]:
        """Those of `numbers` that were here, which are missing from now on."""
        gone = [n for n in numbers if n in self.records and n not in self.missing]
        self.missing.update(gone)
        return gone

    def fill(self, number: int, content: Any) -> bool:
        """Put the record of a lease where it is missing; False where it is not."""
        if number not in self.missing:
            return False
        self.missing.remove(number)
        self.records[number] = content
        return True
