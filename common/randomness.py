"""Random choices as pure functions of their arguments: seeds, uniforms, permutations."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


def derive_seed(seed: int, stream: str, index: int = 0) -> int:
    """63 bits that depend on all three arguments; equal arguments give equal bits anywhere."""
    data = f"{seed}/{stream}/{index}".encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest()) >> 1


def uniform(seed: int, stream: str, index: int) -> float:
    """A uniform in [0, 1) as a pure function of its arguments."""
    return (derive_seed(seed, stream, index) >> 10) * 2.0**-53


@dataclass(frozen=True, slots=True)
class Draws:
    """The random choices of a run, by image index."""

    seed: int
    images: int
    """Rows in the token dataset; epoch e visits them in its own permutation."""

    def row(self, index: int) -> int:
        epoch, position = divmod(index, self.images)
        return int(_permutation(self.seed, epoch, self.images)[position])

    def view(self, index: int, views: int) -> int:
        """Which of the encoded views of its row an index reads."""
        return 0 if views == 1 else int(self.uniform("variant", index) * views)

    def uniform(self, stream: str, index: int) -> float:
        return uniform(self.seed, stream, index)

    def noise_seed(self, index: int) -> int:
        return derive_seed(self.seed, "noise", index)


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    bits = np.random.PCG64(derive_seed(seed, "epoch", epoch))
    return np.random.Generator(bits).permutation(size)
