"""The cluster with its two processes, for the length of a block."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


@contextmanager
def warm_cluster() -> Iterator[str]:
    """The address of a cluster that is this block's alone."""
    folder = Path(tempfile.mkdtemp(prefix="vt-", dir="/tmp"))
    interpreter, socket = folder / "python", folder / "fork"
    words = [sys.executable, "-I", "-S", HERE / "client.py", sys.executable, socket]
    interpreter.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, words))} "$@"\n')
    interpreter.chmod(0o700)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.enter_context(_process("server.py", socket))
        head = stack.enter_context(_process("head.py", interpreter, folder))
        assert head.stdout is not None
        assert head.stdout.readline() == "up\n"
        yield (folder / "address").read_text()


@contextmanager
def _process(script: str, *words: object) -> Iterator[subprocess.Popen[str]]:
    """A process that ends with its standard input, or when this one does."""
    command = [sys.executable, str(HERE / script), *map(str, words)]
    environment, pipe = {**os.environ, "PYTHONPATH": str(ROOT)}, subprocess.PIPE
    with subprocess.Popen(
        command, cwd=ROOT, text=True, env=environment, stdin=pipe, stdout=pipe
    ) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(30)
            finally:
                process.kill()
