"""How many leases a second the plumbing carries: 1, 2, 4 and 8 workers that sleep 50 ms a lease.

    python -m benchmarks.scaling --out scaling.json

Ledger, workers, a scorer that passes records on, buffer and this process as the learner: all calls
of a run and none of its computing. A worker's own limit is 20 leases a second; `efficiency` is the
share of it that is reached, `cpu_ms` the CPU milliseconds of all processes for a lease.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from benchmarks.measuring import machine, parser, report, tree_seconds
from benchmarks.on_ray import START, launcher, leased, scored_rows
from common.exchange.buffer import Buffer
from common.exchange.ledger import Ledger
from common.exchange.schedule import Schedule
from common.exchange.trajectory import to_arrow
from deploy.backend.actors import ActorOptions
from teacher_server.scorer import Delivery, Onward

SECONDS = 30.0
THREADS = 64


class Passing:
    """A scorer that adds nothing: what comes, goes on."""

    def __init__(self, onward: Onward) -> None:
        self._onward = onward

    def score(self, record: pa.RecordBatch) -> bool:
        return self._onward.score(record)


class Sleeper:
    """A rollout worker that sleeps instead of sampling; it sends while it sleeps, as they do."""

    def __init__(self, name: str, sleep: float, ledger: Ledger, scorers: Onward) -> None:
        self._name = name
        self._sleep = sleep
        self._ledger = ledger
        self._scorers = scorers
        self._record = to_arrow(scored_rows(8, 64, 64))

    def run(self, leases: int) -> None:
        """Hand over so many leases; two may be under way while the next one is slept over."""
        with ThreadPoolExecutor(2) as pool:
            sent = []
            while len(sent) < leases:
                lease = self._ledger.lease(self._name, SECONDS)
                if lease is None:
                    continue
                time.sleep(self._sleep)
                record = leased(self._record, lease)
                if len(sent) > 1:
                    sent[-2].result()
                sent.append(pool.submit(self._scorers.score, record))


def main() -> None:
    options = _parser().parse_args()
    on = machine(options)
    rows = []
    with launcher(cpus=4, store_mb=512) as place:
        for workers in options.workers:
            rows.append(row_of(place, workers, options.leases, options.sleep_ms / 1000))
    report("scaling", options, on, rows)


def _parser():
    found = parser("leases a second with sleeping workers")
    found.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    found.add_argument("--leases", type=int, default=100, help="of each worker")
    found.add_argument("--sleep-ms", type=float, default=50)
    return found


def row_of(place: Any, workers: int, leases: int, sleep: float) -> dict[str, float]:
    """Run `workers` to their ends; a step of the learner is one lease of each."""
    schedule = Schedule(
        steps=leases + 8,
        global_batch_size=8 * workers,
        lease_size=8,
        max_staleness=10**6,
        publish_every=1,
    )
    site = ActorOptions(f"services-{workers}", THREADS)
    ledger = place(Ledger, schedule, site=ActorOptions(f"ledger-{workers}", THREADS))
    buffer = place(Buffer, schedule, max_bytes=2**30, ledger=ledger, site=site)
    passing = place(
        Passing, onward=Delivery(buffer), site=ActorOptions(f"scorer-{workers}", THREADS)
    )
    crew = [
        place(Sleeper, f"worker-{index}", sleep, ledger=ledger, scorers=passing)
        for index in range(workers)
    ]
    place.wait_ready()
    with ThreadPoolExecutor(workers) as pool:
        started, worked = time.perf_counter(), tree_seconds()
        ledger.restore(START)
        running = [pool.submit(worker.run, leases) for worker in crew]
        for step in range(leases):
            share = None
            while share is None:
                share = buffer.take(step, shard=0, shards=1, timeout=SECONDS)
            ledger.commit(step + 1, share.leases)
        for worker in running:
            worker.result()
        seconds, cpu = time.perf_counter() - started, tree_seconds() - worked
    for placed in (*crew, passing, buffer, ledger):
        place.end(placed)
    return _figures(workers, workers * leases, seconds, cpu, sleep)


def _figures(
    workers: int, total: int, seconds: float, cpu: float, sleep: float
) -> dict[str, float]:
    return {
        "workers": workers,
        "leases_per_s": total / seconds,
        "efficiency": total / seconds * sleep / workers,
        "cpu_ms": 1000 * cpu / total,
    }


if __name__ == "__main__":
    main()
