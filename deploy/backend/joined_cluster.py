"""The Ray cluster that RAY_ADDRESS names: found within seconds, or refused in a sentence."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from common.errors import InputError

REACH_SECONDS = 15.0
"""A head node that is just starting gets this long to open its port."""
ANSWER_SECONDS = 30.0
"""What listens there gets this long to prove that it is Ray."""
EXAMPLE = "give the head node's host:port (often port 6379), or unset it for a private cluster"


def joined_address() -> str | None:
    """What RAY_ADDRESS names; None where the command is to start a cluster of its own."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return None if address in ("", "local") else address


def require_cluster(
    address: str,
    say: Callable[[str], object],
    *,
    reach_seconds: float = REACH_SECONDS,
    answer_seconds: float = ANSWER_SECONDS,
) -> None:
    """Make sure that a Ray cluster answers there; Ray itself would try for many minutes.

    Raises:
        InputError: the address is malformed, nobody listens, or what listens is not a Ray cluster
            that lets this process in.
    """
    if address != "auto":
        host, port = host_and_port(address)
        say(f"waiting for the Ray cluster at {address} (RAY_ADDRESS)")
        _require_listener(address, host, port, reach_seconds)
    say(f"asking {address} (RAY_ADDRESS) whether it is a Ray cluster")
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        # In a process of its own: it may hang, and some failures end the process.
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=answer_seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"RAY_ADDRESS is {address}: no Ray cluster answered there in {answer_seconds:g} s, or "
            f"it wants another token (RAY_AUTH_TOKEN); {EXAMPLE}"
        ) from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1].partition("Error: ")[2] or lines[-1] if lines else "no answer"
        raise refused(address, reason)


def refused(address: str, reason: str) -> InputError:
    """The cluster did not let this process in; Ray's first sentence says why."""
    why = reason.partition(". ")[0].rstrip(".")
    return InputError(f"RAY_ADDRESS is {address}: {why}; {EXAMPLE}")


def host_and_port(address: str) -> tuple[str, int]:
    """The parts of host:port.

    Raises:
        InputError: it is something else, such as the address of the dashboard or of Ray Client.
    """
    scheme, separator, _ = address.partition("://")
    if separator:
        kinds = {
            "ray": "the address of Ray Client, which cannot watch a run",
            "http": "the dashboard's, which `ray job submit` wants",
            "https": "the dashboard's, which `ray job submit` wants",
        }
        what = kinds.get(scheme, "not host:port")
        raise InputError(f"RAY_ADDRESS is {address}, {what}; {EXAMPLE}")
    host, separator, port = address.rpartition(":")
    if not separator or not host.strip("[]") or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(f"RAY_ADDRESS is {address}, not host:port; {EXAMPLE}")
    return host.strip("[]"), int(port)


def _require_listener(address: str, host: str, port: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        left = max(0.5, deadline - time.monotonic())
        try:
            socket.create_connection((host, port), timeout=left).close()
            return
        except OSError as error:  # also a name that cannot be resolved, or a timeout
            if time.monotonic() + 1.0 < deadline:
                time.sleep(1.0)
                continue
            reason = error.strerror or str(error) or "timed out"
            raise InputError(
                f"RAY_ADDRESS is {address}, but nobody answers there ({reason}, tried for "
                f"{seconds:g} s); start the cluster, or {EXAMPLE}"
            ) from None
