"""A sum over ranks: gloo on this machine's loopback, NCCL over its GPUs."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.cuda import nccl

from deploy.doctor.finding import Finding, judged

SECONDS = 10.0
RANKS = 2


def collectives() -> Iterator[Finding]:
    """Of as many ranks as learners of one machine could be."""
    yield _gloo()
    if torch.cuda.is_available():
        yield _nccl()


def _gloo() -> Finding:
    store = dist.HashStore()  # type: ignore[reportPrivateImportUsage]

    def total(rank: int) -> float:
        group: Any = dist.ProcessGroupGloo(store, rank, RANKS, timedelta(seconds=SECONDS))
        one = torch.full((1024,), float(rank + 1))
        group.allreduce([one]).wait()
        return float(one.mean())

    with ThreadPoolExecutor(RANKS) as pool:
        sums = list(pool.map(total, range(RANKS)))
    advice = "more learner ranks than one do not work here: set GLOO_SOCKET_IFNAME"
    return judged("gloo", f"{RANKS} ranks sum to {sums}", advice, fails=sums != [3.0, 3.0])


def _nccl() -> Finding:
    gpus = torch.cuda.device_count()
    each = [torch.full((1024,), float(index + 1), device=index) for index in range(gpus)]
    nccl.all_reduce(each)
    sums = [float(one.mean()) for one in each]
    advice = "more learner ranks than one do not work here: see NCCL_DEBUG=INFO"
    is_wrong = sums != [gpus * (gpus + 1) / 2] * gpus
    return judged("NCCL", f"{gpus} GPUs sum to {sums}", advice, fails=is_wrong)
