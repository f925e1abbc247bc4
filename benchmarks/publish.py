"""The student's weights from the learner to two workers, against a bare put, get and copy on Ray.

    python -m benchmarks.publish --out publish.json
    python -m benchmarks.publish --megabytes 2048

`publish`: packed by the learner, through the weight store, verified and loaded by both workers,
which need no copy. Its tensors lie as those of a float32 student on a CPU, one behind the other in
memories of 256 MB; what is converted for sending lies in one. `bare`: the same number of bytes put
into the object store by the learner, read and copied by both. `here`: packed, verified and loaded
in this process. Figures are wall-clock, and the CPU seconds of all processes of the cluster.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.measuring import interleaved, machine, parser, report, tree_seconds
from benchmarks.on_ray import launcher
from common.exchange.adjacent import lay_together
from common.exchange.packed_weights import load, pack
from common.exchange.weights import Weights, WeightStore

SECONDS = 60.0
WORKERS = 2
LAYER = 1024
"""Side of a layer: 4 MB in float32."""


class Publisher:
    """The learner, as far as it publishes."""

    def __init__(self, megabytes: int, weights: WeightStore) -> None:
        self._weights = weights
        self._module = module_of(megabytes)
        self._values = values_of(self._module)

    def publish(self, version: int) -> None:
        self._weights.publish(Weights(version, pack(self._module, torch.float32)))

    def put(self) -> Any:
        from deploy.backend.proxies import RayLauncher  # Ray's environment is set by now

        return RayLauncher().share(self._values)


class Reader:
    """A worker, as far as it fetches weights."""

    def __init__(self, megabytes: int, weights: WeightStore) -> None:
        self._weights = weights
        self._module = empty(megabytes)
        self._bytes = np.empty_like(values_of(self._module))

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


def module_of(megabytes: int) -> nn.Module:
    """The same with values, as the learner lays them."""
    drawn = empty(megabytes)
    for parameter in drawn.parameters():
        nn.init.normal_(parameter)
    lay_together(drawn.parameters())
    return drawn


def values_of(module: nn.Module) -> np.ndarray:
    """A copy of all of them, (n,) float32."""
    return np.concatenate([parameter.numpy().reshape(-1) for parameter in module.parameters()])


def cases_of(place: Any, megabytes: int) -> dict[str, Callable[[], object]]:
    module, versions = module_of(megabytes), count()
    weights = place(WeightStore, 0)
    publisher = place(Publisher, megabytes, weights)
    readers = [place(Reader, megabytes, weights) for _ in range(WORKERS)]
    place.wait_ready()
    pool = ThreadPoolExecutor(WORKERS)

    def both(call: Callable[[Any], object]) -> None:
        for done in [pool.submit(call, reader) for reader in readers]:
            done.result()

    def publish() -> None:
        version = next(versions)
        publisher.publish(version)
        both(lambda reader: reader.load(version))

    def bare() -> None:
        shared = publisher.put()
        both(lambda reader: reader.read(shared))

    def here() -> None:
        load(Weights.of(0, pack(module, torch.float32)), module)

    return {"bare": bare, "publish": publish, "here": here}


if __name__ == "__main__":
    main()
