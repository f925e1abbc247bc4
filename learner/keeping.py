"""Keeps what a rank trains on, as segments on the disk (common/exchange/segments.py)."""

from common.exchange.assembly import Share
from common.exchange.segments import SEGMENT_BYTES, SegmentWriter
from learner.train import RewindableBuffer


class KeptRecords:
    """A buffer that keeps the records of every step it passes on."""

    def __init__(
        self, source: RewindableBuffer, writer: SegmentWriter, most: int = SEGMENT_BYTES
    ) -> None:
        """Writes a segment as soon as it has `most` bytes."""
        self._source = source
        self._writer = writer
        self._most = most
        self._begun: int | None = None

    def clear(self, generation: int) -> None:
        self._source.clear(generation)

    def gauges(self) -> dict[str, float]:
        return self._source.gauges()

    def take(self, step: int, *, shard: int, shards: int, timeout: float) -> Share | None:
        """As the buffer's.

        Raises:
            InputError: the disk is full, or the folder cannot be written.
        """
        # Batches are fetched one step ahead: from the third on, the first step was done, and with
        # it the folder is this run's (deploy/run_folder/start.py).
        began = step if self._begun is None else self._begun
        if step >= began + 2 and self._writer.nbytes >= self._most:
            self._writer.flush()
        share = self._source.take(step, shard=shard, shards=shards, timeout=timeout)
        if share is not None:
            self._begun = began
            for record in share.records:
                self._writer.add(record)
        return share

    def flush(self) -> None:
        """Write what is still in memory."""
        self._writer.flush()
