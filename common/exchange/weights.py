"""How new student weights reach the rollout workers: immutable, versioned, digest-checked.

A bundle is a safetensors file in parts; publisher and reader agree on it by digest. Free of torch,
so that its process stays small.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from threading import Condition
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np

from common.errors import Verdict

Payload: TypeAlias = Sequence[bytes | bytearray | memoryview | np.ndarray]
"""Parts that follow each other, of uint8; they may lie in shared memory, nobody writes to them."""
BLOCK = 2**15
"""Bytes that are added up for the digest: few sums, and each of what a cache holds."""
PIECE = 16 * BLOCK
"""Bytes that are added to a digest and copied before the next ones."""
ALIGNED = 64
"""Tensors begin at multiples of this: products round by where their factors lie."""


class Canary(NamedTuple):
    """What a publisher computes with the weights (common/models/canary.py)."""

    value: float
    rounding: float = 0.0
    """How far that may be off because the publisher rounds, in nats a token."""


@dataclass(frozen=True, slots=True)
class Weights:
    """One published policy: `version` is the number of learner steps behind it."""

    version: int
    payload: Payload
    digest: str = ""
    """Of the payload; none before it is sealed, which a sink does beside sending it."""
    canary: Canary | None = field(default=None, kw_only=True)
    """Not with every version."""
    lasting: int = field(default=0, kw_only=True)
    """So many of the first parts nobody writes to, and those that are the very objects of the
    version before need not be sent again."""
    is_apart: bool = field(default=False, kw_only=True)
    """Nothing of the payload is the publisher's own memory, which its next step changes: it stays
    until the next version is packed."""
    is_checked: bool = field(default=False, kw_only=True)
    """Somebody compared the digest, in the memory where the payload lies."""

    @classmethod
    def of(cls, version: int, payload: Payload, canary: Canary | None = None) -> "Weights":
        return cls(version, payload, canary=canary).sealed()

    def sealed(self) -> "Weights":
        """The same with its digest."""
        return self if self.digest else replace(self, digest=str(digest_of(self.payload)))

    def require(self, found: str) -> None:
        """
        Raises:
            ValueError: `found`, of the bytes that arrived, is another digest than was published.
        """
        if found != self.digest:
            raise ValueError(
                f"weights of version {self.version} arrived damaged: digest {found}, "
                f"published {self.digest}"
            )

    def verified(self) -> Payload:
        """The payload.

        Raises:
            ValueError: it does not match its digest, so it was damaged on the way.
        """
        if not self.is_checked:
            self.require(str(digest_of(self.payload)))
        return self.payload

    def copied(self) -> "Weights":
        """The same, sealed, in memory of its own: what was packed changes with the module."""
        lasting, copies = self.payload[: self.lasting], list[np.ndarray]()
        digest = digest_of(lasting)
        for part in self.payload[self.lasting :]:
            data = np.frombuffer(part, np.uint8)
            copies.append(aligned(len(data)))
            for start, piece in pieces(data):
                digest.add(piece)
                copies[-1][start : start + len(piece)] = piece
        payload = [*lasting, *copies]
        return replace(self, payload=payload, digest=self.digest or str(digest))

    def joined(self) -> np.ndarray:
        """The parts as one, (n,) uint8; empty where there are none."""
        arrays = [np.frombuffer(part, np.uint8) for part in self.payload]
        return np.concatenate([np.empty(0, np.uint8), *arrays])


class Digest:
    """Finds damage, in less than half of the time of a copy: the CRC-32, over all parts, of the
    sums of their blocks' 64-bit words, and of the bytes behind the last whole block."""

    def __init__(self) -> None:
        self._found = 0

    def add(self, data: np.ndarray) -> None:
        """A part, (n,) uint8, or the next of its pieces."""
        whole = len(data) - len(data) % BLOCK
        sums = data[:whole].view(np.uint64).reshape(-1, BLOCK // 8).sum(axis=1, dtype=np.uint64)
        self._found = zlib.crc32(data[whole:].data, zlib.crc32(sums.data, self._found))

    def __str__(self) -> str:
        return f"{self._found:08x}"


def aligned(size: int) -> np.ndarray:
    """Memory for so many bytes."""
    memory = np.empty(size + ALIGNED, np.uint8)
    first = -memory.ctypes.data % ALIGNED
    return memory[first : first + size]


def pieces(part: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """What a cache holds, one after the other, and where it begins: whoever adds a piece to a
    digest and then copies it reads the memory once."""
    for start in range(0, len(part), PIECE):
        yield start, part[start : start + PIECE]


def digest_of(payload: Payload) -> Digest:
    """Of all parts so far."""
    digest = Digest()
    for part in payload:
        digest.add(np.frombuffer(part, np.uint8))
    return digest


class WeightSink(Protocol):
    """Where the learner offers its versions (docs/weights.md)."""

    def publish(self, weights: Weights) -> None:
        """Offer a version, which is newer than all before, sealed or not; it is whole or not there.
        The payload was copied when this returns.

        Raises:
            ValueError: it is not newer.
        """
        ...


class WeightSource(Protocol):
    """Where rollout workers pull versions from; both calls wait up to `timeout` seconds."""

    def newest(self, timeout: float) -> int:
        """The newest version, in learner steps.

        Raises:
            Closed: the run was ended, with its cause.
            TimeoutError: nothing was published in time.
        """
        ...

    def get(self, version: int, timeout: float) -> Weights:
        """That very version; `Weights.verified` checks its bytes against the digest.

        Raises:
            Closed: the run was ended, with its cause.
            TimeoutError: it was not published in time, or is no longer kept.
        """
        ...


class WeightStore:
    """Thread-safe. Keeps the versions that a lease may still pin."""

    def __init__(self, keep_behind: int) -> None:
        self._keep_behind = keep_behind
        self._changed = Condition()
        self._bundles: dict[int, Weights] = {}
        self._cause: Verdict | None = None

    def publish(self, weights: Weights) -> None:
        """Offer a version; those more than `keep_behind` steps older are dropped.

        Raises:
            ValueError: the version is not newer than the newest one.
        """
        with self._changed:
            if self._bundles and weights.version <= max(self._bundles):
                raise ValueError(
                    f"version {weights.version} is not newer than {max(self._bundles)}"
                )
            self._bundles[weights.version] = weights.copied()
            oldest = weights.version - self._keep_behind
            self._bundles = {v: w for v, w in self._bundles.items() if v >= oldest}
            self._changed.notify_all()

    def newest(self, timeout: float) -> int:
        """The newest version; waits for the first one."""
        with self._changed:
            self._wait(lambda: bool(self._bundles), timeout, "any version")
            return max(self._bundles)

    def get(self, version: int, timeout: float) -> Weights:
        """The bundle of `version`, once published.

        Raises:
            TimeoutError: it was not published within `timeout` seconds, or is gone already.
            Closed: the run was ended.
        """
        with self._changed:
            self._wait(lambda: version in self._bundles, timeout, f"version {version}")
            return self._bundles[version]

    def rewind(self) -> None:
        """Forget all versions: the learner restarts from a checkpoint and publishes again."""
        with self._changed:
            self._bundles.clear()

    def close(self, cause: str | Verdict) -> None:
        with self._changed:
            self._cause = self._cause or Verdict.of(cause)
            self._changed.notify_all()

    def _wait(self, ready, timeout: float, what: str) -> None:
        arrived = self._changed.wait_for(lambda: self._cause or ready(), timeout)
        if self._cause:
            raise self._cause.error()
        if not arrived:
            raise TimeoutError(f"{what} of the student's weights was not there in {timeout:g} s")
