"""This machine: software, processors, memory, disks, limits."""

import os
import platform
import resource
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from common.device import fastest_precision, place
from common.models.cpu.native_steps import library
from deploy.console.versions import commit, versions
from deploy.doctor.finding import Finding, judged

GB = 2**30
LEAST_DISK_GB = 2.0
LEAST_MEMORY_GB = 2.0
LEAST_FILES = 4096


def machine(root: Path | None, object_store_mb: float) -> Iterator[Finding]:
    """`root` is the run folder, which may not be there yet."""
    found = versions()
    yield Finding("versions", "ok", ", ".join(f"{name} {found[name]}" for name in found))
    yield Finding("commit", "ok", commit())
    yield Finding("system", "ok", f"{platform.platform()} on {socket.gethostname()}")
    yield from devices()
    yield _threads()
    yield _kernels()
    memory = psutil.virtual_memory()
    said = f"{memory.available / GB:.1f} of {memory.total / GB:.1f} GB free"
    few = memory.available < LEAST_MEMORY_GB * GB
    yield judged("memory", said, "end what else runs, or take smaller batches", warns=few)
    yield from _limits(object_store_mb)
    for name, folder in (("temporary folder", Path(tempfile.gettempdir())), ("run folder", root)):
        if folder is not None:
            remedy = "choose another --out (TMPDIR for the temporary folder)"
            yield disk(name, existing(folder), LEAST_DISK_GB, "snapshots", remedy)


def existing(path: Path) -> Path:
    """The folder itself, or the nearest one above that is there."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def devices() -> Iterator[Finding]:
    """What computes here, and in which precision by itself."""
    device = place("auto")
    name, why = fastest_precision(device)
    if device.type == "cpu":
        said = f"no CUDA device; {os.cpu_count()} CPUs"
        yield Finding("device", "ok", f"{said}; dtype=auto means {name}: {why}")
        return
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        said = f"{gpu.name}, {free / GB:.1f} of {total / GB:.1f} GB free, CUDA {torch.version.cuda}"
        crowded = free < total / 2
        yield judged(
            f"device {index}", said, "somebody else uses it: see nvidia-smi", warns=crowded
        )
    yield Finding("precision", "ok", f"dtype=auto means {name}: {why}")


def _threads() -> Finding:
    threads, cpus = torch.get_num_threads(), len(os.sched_getaffinity(0))
    given = os.environ.get("OMP_NUM_THREADS", "unset")
    load = os.getloadavg()[0]
    said = f"torch {threads}, usable CPUs {cpus}, OMP_NUM_THREADS {given}, load {load:.1f}"
    advice = "others compute here as well: set OMP_NUM_THREADS=1 for --local"
    return judged("threads", said, advice, warns=load > cpus)


def _kernels() -> Finding:
    steps = library()
    if steps.library is None:
        advice = "sampling on CPUs takes several times as long without; gcc or clang compiles them"
        return judged("kernels in C", steps.why, advice, warns=True)
    kinds = "float32 and bfloat16" if steps.library.multiplies_bf16() else "float32"
    registers = 32 * steps.library.register_floats()
    return Finding("kernels in C", "ok", f"compiled for registers of {registers} bits, {kinds}")


def _limits(object_store_mb: float) -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_low = hard != resource.RLIM_INFINITY and hard < LEAST_FILES
    said = f"{soft} (up to {hard})"
    yield judged("open files", said, f"raise it: ulimit -n {4 * LEAST_FILES}", fails=is_low)
    shared = Path("/dev/shm")
    if not shared.is_dir():
        yield Finding("shared memory", "warn", "no /dev/shm here", "Ray uses the disk instead")
        return
    free = shutil.disk_usage(shared).free
    said = f"/dev/shm has {free / GB:.1f} GB free, cluster.object_store_mb is {object_store_mb:g}"
    advice = "lower that, or enlarge /dev/shm (docker run --shm-size)"
    yield judged("shared memory", said, advice, warns=free < object_store_mb * 2**20)


def disk(name: str, folder: Path, needed_gb: float, what: str, remedy: str) -> Finding:
    """Whether a folder can be written, and has room for `what` needs it; `remedy` helps else."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".varkd-doctor-") as file:
            file.write(b"x" * 2**20)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return Finding(name, "FAIL", f"{folder}: {error.strerror}", f"make room, or {remedy}")
    free = shutil.disk_usage(folder).free / GB
    said = f"{folder}: writable, {free:.1f} GB free"
    return judged(name, said, f"{what} need room: free some", warns=free < needed_gb)
