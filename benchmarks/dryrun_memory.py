"""What a dry run predicts against the resident memory of the same computation with content.

    python -m benchmarks.dryrun_memory --out dryrun_memory.json    # each in processes of its own

On two CPU cores of which nothing else used one, for a four-block LlamaGen of width 512, with torch
2.13 and the roles' own code on both sides, in one run of `edccb2c`: decoding 190 of 254 MB, scoring
268 of 319 MB, training 1151 of 1081 MB. The measured side also holds libraries that load with the
first kernel (about 100 MB, a part of PROCESS_MB in deploy/planning/resources.py), the kernels'
scratch memory and what the allocator keeps. Reads Linux's /proc.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.measuring import machine, parser, report
from common.models.backbone import build_seeded
from common.spec import SequenceSpec
from deploy.planning import memory as meter
from deploy.planning import sampling_memory
from deploy.run_folder.opening import open_run

MODEL = '{kind="llamagen", width=512, depth=4, heads=8}'
OVERRIDES = [
    f"models.teacher={MODEL}",
    f"models.student={MODEL}",
    "rollout.batch_size=16",
    "learner.global_batch_size=16",
    "learner.micro_batch=16",
    "learner.chunk_tokens=2048",
    "contexts.sources.student.min_prefix=0.74",
]
ROLES = ("decoding", "scoring", "training")


def bytes_of(role: str, *, content: bool) -> int:
    """Predicted on the meta device, or measured by computing."""
    torch.set_num_threads(1)
    spec = SequenceSpec(4096, 256, (16, 16), 1000)
    config, _ = open_run(Path("smoke"), OVERRIDES)
    backbone = build_seeded(config.models.student, spec, 0).train(role == "training")
    if not content:
        backbone = backbone.to("meta")
    runs = {
        "decoding": lambda: sampling_memory.decoding_bytes(config, backbone),
        "scoring": lambda: meter.scoring_bytes(config, backbone, backbone.head),
        "training": lambda: meter.learning_bytes(config, backbone, backbone.head),
    }
    if not content:
        return runs[role]()
    meter.peak_bytes = sampling_memory.peak_bytes = lambda run, *_, **_kinds: run()
    before = resident_peak()
    runs[role]()
    return resident_peak() - before


def resident_peak() -> int:
    """Not getrusage: that remembers the parent's peak across fork and exec."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def in_a_process(role: str, how: str) -> int:
    command = [sys.executable, "-m", "benchmarks.dryrun_memory", role, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    options = _parser().parse_args()
    if options.how:
        print(bytes_of(options.role, content=options.how == "measured"))
        return
    on, rows = machine(options), list[dict[str, object]]()
    for role in [options.role] if options.role else ROLES:
        predicted, measured = (in_a_process(role, how) for how in ("predicted", "measured"))
        sizes = {"predicted_mb": predicted / 2**20, "measured_mb": measured / 2**20}
        rows.append({"role": role, **sizes, "ratio": predicted / measured})
    report("dryrun_memory", options, on, rows)


def _parser() -> argparse.ArgumentParser:
    found = parser("memory that a dry run predicts, and that is used")
    found.add_argument("role", nargs="?", choices=ROLES, help="that one alone; with HOW, bytes")
    found.add_argument("how", nargs="?", choices=("predicted", "measured"))
    return found


if __name__ == "__main__":
    main()
