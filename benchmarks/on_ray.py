"""What the benchmarks share that measure processes: a private Ray cluster, and rows to send."""

import os
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

import deploy
from benchmarks.rows import sampled_rows
from common.config.schema import validate
from common.exchange.schedule import Lease
from common.exchange.trajectory import TrajectoryBatch
from common.spec import SequenceSpec
from deploy.backend.session import cluster, secure_environment
from deploy.config import RunConfig

START = {"step": 0, "frontier": 0, "beyond": []}
"""What the ledger of a new run begins with."""


@contextmanager
def launcher(cpus: int, store_mb: int) -> Iterator[Any]:
    """A `RayLauncher` on a cluster of its own; its actors end with the block."""
    path = Path(deploy.__file__).parent / "configs" / "smoke.toml"
    tree = tomllib.loads(path.read_text()) | {"cluster": {"object_store_mb": store_mb}}
    with cluster(validate(RunConfig, tree, source=str(path)), cpus):
        from deploy.backend.proxies import RayLauncher  # Ray's environment is set by now

        place = RayLauncher()
        try:
            yield place
        finally:
            place.shutdown()


@contextmanager
def simulated_nodes(cpus: Sequence[int]) -> Iterator[str]:
    """A cluster of nodes with so many CPUs each, the head first, on this machine; the block joins
    it as it would join any other. Yields its address."""
    secure_environment()  # it listens to this machine only, whatever other addresses that has
    from ray.cluster_utils import Cluster

    there = Cluster(
        initialize_head=True, head_node_args={"num_cpus": cpus[0], "node_ip_address": "127.0.0.1"}
    )
    try:
        for number, each in enumerate(cpus[1:], 2):  # who joins finds the head by its address
            there.add_node(num_cpus=each, node_ip_address=f"127.0.0.{number}")
        os.environ["RAY_ADDRESS"] = there.address
        yield there.address
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        there.shutdown()


def leased(record: pa.RecordBatch, lease: Lease) -> pa.RecordBatch:
    """The record as if it had been sampled for this lease."""
    facts = {b"lease": str(lease.number), b"generation": str(lease.generation)}
    return record.replace_schema_metadata({**record.schema.metadata, **facts})


def scored_rows(rows: int, length: int, width: int) -> TrajectoryBatch:
    """Sampled rows with hidden vectors in float16, of a grid with `length` cells."""
    spec = SequenceSpec(vocab_size=16384, length=length, grid=(1, length), num_classes=1000)
    hidden_BLC = torch.randn(rows, length, width, generator=torch.Generator().manual_seed(1))
    return replace(
        sampled_rows(spec, rows),
        signal={"hidden": hidden_BLC.half(), "entropy": torch.rand(rows, length)},
        facts={
            "lease": "0",
            "generation": "1",
            "worker": "sender",
            "head": "",
            "rollout_seconds": "0",
            "teacher_seconds": "0",
        },
    )
