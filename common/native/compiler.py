"""The machine's C compiler, and what it is asked for."""

import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

COMPILERS = ("cc", "gcc", "clang")
SECONDS = 120.0
"""A compiler that takes longer is given up."""
PLAIN = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
OF_PROCESSOR = {
    "AVX2": ("-mavx2", "-mfma"),
    "AVX512": ("-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
}
"""By torch's word for what this processor has; elsewhere what the compiler takes by itself."""


def c_compiler() -> str | None:
    """Its path: $CC, else the first of `COMPILERS`."""
    named = os.environ.get("CC")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, COMPILERS)), None)


def flags() -> list[str]:
    """For this processor, whose instructions a folder's other readers may not have."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return [*PLAIN]
    found = [*PLAIN, *OF_PROCESSOR.get(torch.backends.cpu.get_cpu_capability(), ())]
    if "-mavx512f" in found and torch.cpu._is_avx512_bf16_supported():
        found.append("-mavx512bf16")
    return found


def compile_library(compiler: str, source: Path, include: Path, to: Path) -> str | None:
    """Compile `source`, and leave the whole library at `to` at once or nothing; says what went
    wrong. With several threads where the compiler has OpenMP, else with one."""
    said = ""
    with tempfile.TemporaryDirectory(prefix=".compiling-", dir=to.parent) as folder:
        made = Path(folder) / to.name
        for threads in (["-fopenmp"], []):
            call = [compiler, *flags(), *threads, f"-I{include}", str(source), "-o", str(made)]
            try:
                done = subprocess.run(
                    [*call, "-lm"], capture_output=True, text=True, check=False, timeout=SECONDS
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                return f"{compiler}: {error}"
            if done.returncode == 0:
                os.replace(made, to)
                return None
            said = f"{compiler} fails: {done.stderr.strip()[-500:]}"
    return said
