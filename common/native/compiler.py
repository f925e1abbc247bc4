"""The machine's C compiler, and what it is asked for."""

import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

COMPILERS = ("cc", "gcc", "clang")
SECONDS = 60.0
"""A compiler that takes longer is given up."""
PLAIN = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
BF16 = "-mavx512bf16"
OF_PROCESSOR = {
    "AVX2": ("-mavx2", "-mfma"),
    "AVX512": ("-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
}
"""By torch's word for what this processor has; elsewhere what the compiler takes by itself."""


def c_compiler() -> list[str] | None:
    """Its call: $CC, with arguments if it has any, else the first of `COMPILERS`."""
    if named := shlex.split(os.environ.get("CC", "")):
        return named if shutil.which(named[0]) else None
    return next(([name] for name in COMPILERS if shutil.which(name)), None)


def flags() -> list[str]:
    """For this processor, whose instructions a folder's other readers may not have."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return [*PLAIN]
    found = [*PLAIN, *OF_PROCESSOR.get(torch.backends.cpu.get_cpu_capability(), ())]
    if "-mavx512f" in found and torch.cpu._is_avx512_bf16_supported():
        found.append(BF16)
    return found


def ways() -> Iterator[list[str]]:
    """Flags to be tried one after another: with several threads where the compiler has OpenMP, and
    without products of bfloat16 where it does not know them yet."""
    whole = flags()
    yield from ([*whole, "-fopenmp"], whole)
    if BF16 in whole:
        fewer = [flag for flag in whole if flag != BF16]
        yield from ([*fewer, "-fopenmp"], fewer)


def compiled(
    call: Sequence[str], source: Path, include: Path, to: Path, seconds: float = SECONDS
) -> str | None:
    """Compile `source`, and leave the whole library at `to` at once or nothing; says what went
    wrong.

    Raises:
        TimeoutError: the compiler hangs, whatever it is asked for.
    """
    with tempfile.TemporaryDirectory(prefix=".compiling-", dir=to.parent) as folder:
        made = Path(folder) / to.name
        whole = [*call, f"-I{include}", str(source), "-o", str(made), "-lm"]
        try:
            done = subprocess.run(
                whole, capture_output=True, errors="replace", check=False, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{call[0]} takes more than {seconds:g} s") from None
        except OSError as error:
            return f"{call[0]}: {error}"
        if done.returncode == 0 and made.exists():
            os.replace(made, to)
            return None
        return f"{call[0]} fails: {done.stderr.strip()[-500:]}"
