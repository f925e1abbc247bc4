"""How many leases a second the plumbing carries: 1, 2, 4 and 8 workers that sleep 50 ms a lease.

    python -m benchmarks.scaling --out scaling.json
    python -m benchmarks.scaling --nodes 4 --learner-ms 10

Ledger, workers, a scorer that passes records on, buffer and this process as the learner: all calls
of a run and none of its computing. A worker's own limit is 20 leases a second; `efficiency` is the
share of it that is reached, `growth` the share of what so many times the first row would be,
`cpu_ms` the CPU milliseconds of all processes for a lease. With `--nodes` the workers lie on so
many simulated nodes; with `--learner-ms` the learner sleeps as well, for every lease, and
`bottleneck` is what a run would say of itself.
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pyarrow as pa

from benchmarks.measuring import machine, parser, report, tree_seconds
from benchmarks.on_ray import START, launcher, leased, scored_rows, simulated_nodes
from common.exchange.buffer import Buffer
from common.exchange.ledger import Ledger
from common.exchange.schedule import Schedule
from common.exchange.trajectory import to_arrow
from deploy.backend.actors import ActorOptions
from deploy.load import LoadMeter
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

    def node(self) -> str:
        """Where it lives."""
        import ray

        return ray.get_runtime_context().get_node_id()

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
    rows: list[dict[str, Any]] = []
    each = -(-max(options.workers) // options.nodes)  # a full cluster has workers on every node
    nodes = simulated_nodes([each] * options.nodes) if options.nodes > 1 else nullcontext()
    with nodes, launcher(cpus=max(4, each), store_mb=512) as place:
        for workers in options.workers:
            rows.append(row_of(place, workers, options))
    first = rows[0]["leases_per_s"] / rows[0]["workers"]
    for row in rows:
        row["growth"] = row["leases_per_s"] / row["workers"] / first
    report("scaling", options, on, rows)


def _parser():
    found = parser("leases a second with sleeping workers")
    found.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    found.add_argument("--leases", type=int, default=100, help="of each worker")
    found.add_argument("--sleep-ms", type=float, default=50)
    found.add_argument("--learner-ms", type=float, default=0, help="of each lease")
    found.add_argument("--nodes", type=int, default=1, help="simulated on this machine")
    return found


def schedule_of(workers: int, leases: int) -> Schedule:
    """A lease of every worker in a step, and nobody waits for the learner."""
    return Schedule(
        steps=leases + 8,
        global_batch_size=8 * workers,
        lease_size=8,
        max_staleness=10**6,
        publish_every=1,
    )


def row_of(place: Any, workers: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run `workers` to their ends; a step of the learner is one lease of each."""
    leases, sleep = options.leases, options.sleep_ms / 1000
    schedule = schedule_of(workers, leases)
    site = ActorOptions(f"services-{workers}", THREADS)
    ledger = place(Ledger, schedule, site=ActorOptions(f"ledger-{workers}", THREADS))
    buffer = place(Buffer, schedule, max_bytes=2**30, ledger=ledger, site=site)
    passing = place(
        Passing, onward=Delivery(buffer), site=ActorOptions(f"scorer-{workers}", THREADS)
    )
    crew = [
        place(Sleeper, name, sleep, ledger=ledger, scorers=passing, site=ActorOptions(name, cpus=1))
        for name in (f"worker-{workers}-{index}" for index in range(workers))
    ]
    place.wait_ready()
    meter, nodes = LoadMeter(1), len({worker.node() for worker in crew})
    with ThreadPoolExecutor(workers) as pool:
        started, worked = time.perf_counter(), tree_seconds()
        ledger.restore(START)
        running = [pool.submit(worker.run, leases) for worker in crew]
        for step in range(leases):
            meter.add(_step(step, ledger, buffer, workers, options), workers)
        for worker in running:
            worker.result()
        seconds, cpu = time.perf_counter() - started, tree_seconds() - worked
    for placed in (*crew, passing, buffer, ledger):
        place.end(placed)
    load, total = meter.load(), workers * leases
    assert load is not None
    return {
        "workers": workers,
        "nodes": nodes,
        "leases_per_s": total / seconds,
        "efficiency": total / seconds * sleep / workers,
        "cpu_ms": 1000 * cpu / total,
        **load.as_dict(),
    }


def _step(
    step: int, ledger: Ledger, buffer: Buffer, workers: int, options: argparse.Namespace
) -> dict[str, float]:
    """Take a lease of every worker, sleep over it; the seconds, as a learner posts them."""
    asked, share = time.perf_counter(), None
    while share is None:
        share = buffer.take(step, shard=0, shards=1, timeout=SECONDS)
    began = time.perf_counter()
    time.sleep(options.learner_ms / 1000 * workers)
    ledger.commit(step + 1, share.leases)
    ended = time.perf_counter()
    sampled = options.sleep_ms / 1000 * workers
    times = {"seconds/wait": began - asked, "seconds/step": ended - began}
    return times | {"seconds/rollout": sampled}


if __name__ == "__main__":
    main()
