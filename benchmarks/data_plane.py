"""Records on their way, against memcpy: encoded, decoded, and from a scorer to the learner on Ray.

    python -m benchmarks.data_plane --out data_plane.json
    python -m benchmarks.data_plane --rows 64 --length 256 --width 1536

One record of guided hidden vectors in float16, as a teacher sends it. In one process: `encode` is
`to_arrow`, `decode` is `from_arrow` with all its checks, `copy` is what numpy takes to copy the
hidden vectors. On Ray: `return` is an actor that returns the record to this process, and a copy;
`plane` is the same record from the actor through the buffer to this process and the same copy;
`plane, decoded` has `from_arrow` instead of the copy. Figures on Ray are wall-clock, and the CPU
seconds of all processes of the cluster.
"""

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.measuring import Timing, interleaved, machine, parser, report, tree_seconds
from benchmarks.on_ray import START, launcher, leased, scored_rows
from common.exchange.buffer import Buffer
from common.exchange.ledger import Ledger
from common.exchange.schedule import Lease, Schedule
from common.exchange.trajectory import from_arrow, to_arrow
from teacher_server.scorer import Delivery

SECONDS = 20.0


class Sender:
    """An actor that has a scored record and hands it over for any lease."""

    def __init__(self, rows: int, length: int, width: int, onward: Delivery) -> None:
        self._record = to_arrow(scored_rows(rows, length, width))
        self._onward = onward

    def returned(self) -> pa.RecordBatch:
        return self._record

    def send(self, lease: Lease) -> bool:
        return self._onward.score(leased(self._record, lease))


def main() -> None:
    options = _parser().parse_args()
    on = machine(options)
    size = options.rows, options.length, options.width
    here = interleaved(cases_here(*size), options.rounds)
    with launcher(cpus=4, store_mb=options.store_mb) as place:
        there = interleaved(cases_on_ray(place, *size), options.rounds, tree_seconds)
    megabytes = to_arrow(scored_rows(*size)).nbytes / 2**20
    rows = [
        _row(name, found, here["copy"].cpu, found.cpu, megabytes) for name, found in here.items()
    ]
    rows += [
        _row(name, found, there["return"].wall, found.wall, megabytes)
        for name, found in there.items()
    ]
    report("data_plane", options, on, rows)


def _parser():
    found = parser("records against memcpy")
    found.add_argument("--rows", type=int, default=32)
    found.add_argument("--length", type=int, default=576)
    found.add_argument("--width", type=int, default=1536)
    found.add_argument("--store-mb", type=int, default=1024)
    return found


def _row(name: str, found: Timing, beside: float, seconds: float, megabytes: float) -> dict:
    return {
        "case": name,
        "record_mb": megabytes,
        "wall": found.wall,
        "cpu": found.cpu,
        "mb_per_s": megabytes / seconds,
        "of_copy_or_return": seconds / beside,
    }


def cases_here(rows: int, length: int, width: int) -> dict[str, Callable[[], object]]:
    batch = scored_rows(rows, length, width)
    record = to_arrow(batch)
    return {
        "copy": partial(_copied, record),
        "encode": partial(to_arrow, batch),
        "decode": partial(from_arrow, record),
    }


def cases_on_ray(place: Any, *size: int) -> dict[str, Callable[[], object]]:
    schedule = Schedule(
        steps=10**6,
        global_batch_size=size[0],
        lease_size=size[0],
        max_staleness=10**6,
        publish_every=1,
    )
    ledger = place(Ledger, schedule)
    buffer = place(Buffer, schedule, max_bytes=2**30, ledger=ledger)
    sender = place(Sender, *size, onward=Delivery(buffer))
    place.wait_ready()
    ledger.restore(START)
    steps = count()

    def through() -> pa.RecordBatch:
        sender.send(ledger.lease("sender", SECONDS))
        share = buffer.take(step := next(steps), shard=0, shards=1, timeout=SECONDS)
        ledger.commit(step + 1, share.leases)
        return share.records[0]

    return {
        "return": lambda: _copied(sender.returned()),
        "plane": lambda: _copied(through()),
        "plane, decoded": lambda: from_arrow(through()),
    }


def _copied(record: pa.RecordBatch) -> np.ndarray:
    return record.column("signal.hidden").to_numpy_ndarray().copy()


if __name__ == "__main__":
    main()
