"""The student's weights from the learner to two workers, against a bare put, get and copy on Ray.

    python -m benchmarks.publish --out publish.json
    python -m benchmarks.publish --megabytes 2048

`publish`: packed by the learner, through the weight store, verified and loaded by both workers,
which need no copy. Its tensors lie one behind the other, as those do that are converted for
sending; `apart`: each in memory of its own, as those of a float32 student on a CPU. `bare`: the
same number of bytes put into the object store here, read and copied by both. `here`: packed,
verified and loaded in this process. Figures are wall-clock, and the CPU
seconds of all processes of the cluster.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.measuring import interleaved, machine, parser, report, tree_seconds
from benchmarks.on_ray import launcher
from common.exchange.packed_weights import load, pack, unpack
from common.exchange.weights import Weights, WeightStore

SECONDS = 60.0
WORKERS = 2
LAYER = 1024
"""Side of a layer: 4 MB in float32."""


class Publisher:
    """The learner, as far as it publishes."""

    def __init__(self, megabytes: int, weights: WeightStore) -> None:
        self._weights = weights
        together, _ = module_of(megabytes)
        apart = empty(megabytes)
        apart.load_state_dict(together.state_dict())
        self._modules = {"publish": together, "apart": apart}

    def publish(self, version: int, case: str) -> None:
        self._weights.publish(Weights(version, pack(self._modules[case], torch.float32)))


class Reader:
    """A worker, as far as it fetches weights."""

    def __init__(self, megabytes: int, weights: WeightStore) -> None:
        self._weights = weights
        self._module = empty(megabytes)
        size = sum(map(len, pack(self._module, torch.float32)))
        self._bytes = np.empty(size, np.uint8)

    def load(self, version: int) -> None:
        load(self._weights.get(version, SECONDS), self._module)

    def read(self, shared: Any) -> None:
        np.copyto(self._bytes, shared.get())


def main() -> None:
    options = _parser().parse_args()
    on = machine(options)
    rows = []
    for megabytes in options.megabytes:
        # The store keeps a version, the next one and the bare bytes come beside it.
        with launcher(cpus=4, store_mb=4 * megabytes + 256) as place:
            cases = cases_of(place, megabytes)
            found = interleaved(cases, options.rounds, tree_seconds)
        for name, timing in found.items():
            rows.append(
                {
                    "mb": megabytes,
                    "case": name,
                    "wall": timing.wall,
                    "cpu": timing.cpu,
                    "of_bare": timing.wall / found["bare"].wall,
                    "cpu_of_bare": timing.cpu / max(found["bare"].cpu, 0.01),
                }
            )
    report("publish", options, on, rows)


def _parser():
    found = parser("weights to two workers")
    found.add_argument("--megabytes", type=int, nargs="+", default=[50, 500])
    return found


def empty(megabytes: int) -> nn.Module:
    """So many megabytes of float32, in layers, of any values."""
    with torch.device("meta"):
        layers = [nn.Linear(LAYER, LAYER, bias=False) for _ in range(max(1, megabytes // 4))]
    return nn.Sequential(*layers).requires_grad_(False).to_empty(device="cpu")


def module_of(megabytes: int) -> tuple[nn.Module, np.ndarray]:
    """The same with values, one tensor behind the other, and the bytes that they lie in, (n,)
    uint8: at 2 GB a machine of 24 GB has no room for both."""
    drawn = empty(megabytes)
    for parameter in drawn.parameters():
        nn.init.normal_(parameter)
    parts = pack(drawn, torch.float32)
    array = np.concatenate([np.frombuffer(part, np.uint8) for part in parts])
    drawn.load_state_dict(unpack([array]), assign=True)
    return drawn, array


def cases_of(place: Any, megabytes: int) -> dict[str, Callable[[], object]]:
    (module, array), versions = module_of(megabytes), count()
    weights = place(WeightStore, 0)
    publisher = place(Publisher, megabytes, weights)
    readers = [place(Reader, megabytes, weights) for _ in range(WORKERS)]
    place.wait_ready()
    pool = ThreadPoolExecutor(WORKERS)

    def both(call: Callable[[Any], object]) -> None:
        for done in [pool.submit(call, reader) for reader in readers]:
            done.result()

    def publish(case: str) -> None:
        version = next(versions)
        publisher.publish(version, case)
        both(lambda reader: reader.load(version))

    def bare() -> None:
        shared = place.share(array)
        both(lambda reader: reader.read(shared))

    def here() -> None:
        load(Weights.of(0, pack(module, torch.float32)), module)

    return {
        "bare": bare,
        "publish": partial(publish, "publish"),
        "apart": partial(publish, "apart"),
        "here": here,
    }


if __name__ == "__main__":
    main()
