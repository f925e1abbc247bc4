"""What all benchmarks share: cases timed side by side, the machine, its limits, and the result.

Cases run A B C, C B A, ... in one process, so that a drift of the machine meets all alike. Wall
and CPU seconds are medians over the rounds; beside other jobs the CPU seconds of a process are what
can be trusted, and ratios of them.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from common.models.products import linear

MATMUL = {"cpu": 1024, "cuda": 8192}
"""Side of the matrices that a device's rate is measured with."""
STREAM_MB = {"cpu": 256, "cuda": 4096}
"""What is read and copied for the memory's rate: larger than caches."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Medians over the rounds, in seconds, and the least and most wall-clock."""

    wall: float
    cpu: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the figures are from, and how busy it was."""

    processor: str
    cores: int
    threads: int
    device: str
    torch: str
    commit: str
    matmul_gflops: dict[str, float]
    read_gb_per_s: float
    copy_gb_per_s: float
    load_before: float
    load_after: float = field(default=0.0)


def parser(about: str) -> argparse.ArgumentParser:
    """The options of every benchmark."""
    found = argparse.ArgumentParser(description=about)
    found.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    found.add_argument("--threads", type=int, default=1)
    found.add_argument("--rounds", type=int, default=3)
    found.add_argument("--out", type=Path, help="write the figures as JSON")
    return found


def machine(options: argparse.Namespace) -> Machine:
    """Set the threads, measure the limits."""
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    return Machine(
        processor=_processor(device),
        cores=os.cpu_count() or 1,
        threads=options.threads,
        device=options.device,
        torch=torch.__version__,
        commit=_commit(),
        matmul_gflops={
            name: round(_matmul_rate(device, dtype), 1)
            for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
        },
        read_gb_per_s=round(_memory_rate(device, copies=False), 1),
        copy_gb_per_s=round(_memory_rate(device, copies=True), 1),
        load_before=round(os.getloadavg()[0], 2),
    )


def interleaved(
    cases: Mapping[str, Callable[[], object]],
    rounds: int,
    worked_so_far: Callable[[], float] = time.process_time,
) -> dict[str, Timing]:
    """Every case once unmeasured, then `rounds` times, forwards and backwards in turn.

    `worked_so_far` gives CPU seconds: of this process, or of a tree of them (`tree_seconds`).
    """
    names = list(cases)
    wall: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        cases[name]()
    for at in range(rounds):
        for name in names if at % 2 == 0 else reversed(names):
            gc.collect()
            synchronize()
            started, worked = time.perf_counter(), worked_so_far()
            cases[name]()
            synchronize()
            wall[name].append(time.perf_counter() - started)
            cpu[name].append(worked_so_far() - worked)
    return {
        name: Timing(
            statistics.median(wall[name]),
            statistics.median(cpu[name]),
            min(wall[name]),
            max(wall[name]),
        )
        for name in names
    }


def tree_seconds() -> float:
    """CPU seconds of this process and all that it started (Linux; the kernel counts hundredths).

    Processes that ended meanwhile are not in it.
    """
    parent, ticks = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended
            continue
        process = int(path.parent.name)
        parent[process], ticks[process] = int(fields[1]), int(fields[11]) + int(fields[12])
    ours = {os.getpid()}
    while more := {process for process, of in parent.items() if of in ours} - ours:
        ours |= more
    return sum(ticks.get(process, 0) for process in ours) / os.sysconf("SC_CLK_TCK")


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_mb(case: Callable[[], object], device: str) -> float:
    """The most memory that the case holds at a time, beyond what is held before it.

    On a CPU the process's resident memory (Linux), with what the allocator kept from before given
    back first.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        case()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_mb("VmRSS")
    case()
    return _status_mb("VmHWM") - before


def report(
    name: str, options: argparse.Namespace, on: Machine, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Print the rows as a table, and write them with the machine to --out."""
    facts = asdict(on) | {"load_after": round(os.getloadavg()[0], 2)}
    print(f"{name}: {on.processor}, {on.threads} of {on.cores} threads, torch {on.torch}")
    print(f"commit {on.commit}, load {facts['load_before']} to {facts['load_after']}")
    print(
        f"limits: matmul {on.matmul_gflops} GFLOP/s, read {on.read_gb_per_s} GB/s, "
        f"copy {on.copy_gb_per_s} GB/s"
    )
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns] + [[_cell(row.get(key)) for key in columns] for row in rows]
    widths = [max(len(line[at]) for line in cells) for at in range(len(columns))]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        found = {"benchmark": name, "machine": facts, "rows": [dict(row) for row in rows]}
        options.out.write_text(json.dumps(found, indent=1) + "\n")


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return "" if value is None else str(value)


def _matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """GFLOP/s of the best of a few products of square matrices."""
    side = MATMUL[device.type]
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / _best(lambda: linear(one, other)) / 1e9


def _memory_rate(device: torch.device, *, copies: bool) -> float:
    """GB/s of reading memory, or of copying it (read and written bytes both count)."""
    value = torch.ones(STREAM_MB[device.type] * 2**18, device=device)
    target = torch.empty_like(value)
    seconds = _best((lambda: target.copy_(value)) if copies else value.sum)
    return (2 if copies else 1) * value.nbytes / seconds / 1e9


def _best(case: Callable[[], object], rounds: int = 5) -> float:
    on_cpu = not torch.cuda.is_available()
    clock = time.process_time if on_cpu else time.perf_counter
    case()
    found = []
    for _ in range(rounds):
        synchronize()
        started = clock()
        case()
        synchronize()
        found.append(clock() - started)
    return min(found)


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    path = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", path.read_text()) if path.exists() else None
    return (
        f"{named[1] if named else platform.processor()} ({torch.backends.cpu.get_cpu_capability()})"
    )


def _commit() -> str:
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return asked.stdout.strip() or "unknown"


def _status_mb(field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, f"no {field}"
    return int(found[1]) / 1024
