"""Codebook relaxation: compare distributions over clusters of interchangeable codes.

VarKD eqs. 11-12, method.md 2.4. The student's head stays as wide as the vocabulary; teacher and
student probabilities are summed inside each cluster before the divergence.

Shape letters: N tokens, V codes, C clusters, D code width.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from pydantic import PositiveInt
from torch import Tensor
from torch.nn import functional as F

from common.config import Config
from common.errors import InputError

MINI_BATCH_ABOVE = 2048
"""Codes from which on full k-means would take minutes."""


class RelaxationConfig(Config):
    factor: PositiveInt = 4
    """Codes per cluster on average; 1 switches relaxation off."""
    metric: Literal["l2", "cos"] = "l2"
    """cos normalises the code vectors first (the tokenizer already does where its model does)."""
    seed: int = 0
    """Seed of k-means."""


@dataclass(frozen=True)
class ClusterMap:
    """cluster_V: the cluster of every code; clusters are numbered by their first code."""

    cluster_V: Tensor
    size: int

    @property
    def digest(self) -> str:
        data = self.cluster_V.cpu().numpy().astype("int64").tobytes()
        return hashlib.blake2b(data, digest_size=8).hexdigest()

    def to(self, device: torch.device) -> "ClusterMap":
        return ClusterMap(self.cluster_V.to(device), self.size)


def cluster_codebook(codebook_VD: Tensor, config: RelaxationConfig) -> ClusterMap | None:
    """k-means over the decoder-side codebook into V / factor clusters; None for factor 1.

    Raises:
        InputError: the factor leaves fewer than two clusters.
    """
    if config.factor == 1:
        return None
    count = len(codebook_VD) // config.factor
    if count < 2:
        raise InputError(
            f"objective.relaxation.factor is {config.factor}, but the codebook has only "
            f"{len(codebook_VD)} codes; use at most {len(codebook_VD) // 2}"
        )
    from sklearn.cluster import KMeans, MiniBatchKMeans  # a second of imports, for this alone

    points_VD = codebook_VD.detach().float().cpu()
    if config.metric == "cos":
        points_VD = F.normalize(points_VD, dim=-1)
    algorithm = MiniBatchKMeans if len(points_VD) > MINI_BATCH_ABOVE else KMeans
    clustering: Any = algorithm(count, n_init=cast(Any, 3), random_state=config.seed)
    label_V = clustering.fit_predict(points_VD.numpy())
    return number_by_first_code(torch.from_numpy(label_V).long())


def number_by_first_code(label_V: Tensor) -> ClusterMap:
    """Canonical numbering, so that equal partitions have equal digests."""
    names, dense_V = torch.unique(label_V, return_inverse=True)
    first_C = torch.full((len(names),), len(label_V)).scatter_reduce(
        0, dense_V, torch.arange(len(label_V)), "amin"
    )
    return ClusterMap(first_C.argsort().argsort()[dense_V], len(names))


def cluster_logprob(logprob_NV: Tensor, clusters: ClusterMap) -> Tensor:
    """log of the summed probability of each cluster, stable for clusters of tiny mass."""
    index_NV = clusters.cluster_V.expand_as(logprob_NV)
    floor = logprob_NV.new_full((*logprob_NV.shape[:-1], clusters.size), -torch.inf)
    top_NC = floor.scatter_reduce(-1, index_NV, logprob_NV.detach(), "amax")
    share_NV = (logprob_NV - top_NC.gather(-1, index_NV)).exp()
    total_NC = torch.zeros_like(top_NC).scatter_add(-1, index_NV, share_NV)
    return total_NC.log() + top_NC
