"""Records that hold what the exchange looks at, and nothing else."""

import pyarrow as pa

START = {"step": 0, "frontier": 0, "beyond": []}
"""What the ledger of a new run is told to begin with."""


def record(lease, version):
    """A lease's record, sampled with weights of `version`."""
    facts = {"lease": lease.number, "generation": lease.generation, "oldest": version}
    ids = pa.array(list(lease.indices), pa.int64())
    metadata = {name: str(value) for name, value in facts.items()}
    return pa.RecordBatch.from_pydict({"id": ids}).replace_schema_metadata(metadata)
