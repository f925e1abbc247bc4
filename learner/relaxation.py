"""Codebook relaxation: compare distributions over clusters of interchangeable codes.

VarKD eqs. 11-12, docs/method.md, "Relaxation". The student's head stays as wide as the vocabulary;
teacher and student probabilities are summed inside each cluster before the divergence. The map is
made once per run (6 s for 16384 codes of width 8 in 4096 clusters, 20 s where they are balanced)
and kept.

Shape letters: N tokens, V codes, D code width, C clusters, M codes of a cluster.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from common.config.quantities import Probability, Seed, Vocabulary
from common.config.schema import Config
from common.errors import InputError
from common.exchange.entropy import entropy_of
from common.files.tensors import load_tensors, save_tensors
from common.finite import is_finite
from learner import analytic, fused
from learner.balanced_clusters import balanced_clusters
from learner.categorical import Categorical
from learner.divergence import Divergence
from learner.gate import confidence
from learner.process_group import ProcessGroup
from learner.teacher_targets import Quantity


class RelaxationConfig(Config):
    factor: Vocabulary = 4
    """Codes per cluster on average; 1 switches relaxation off."""
    balanced: bool = False
    """Exactly `factor` codes in every cluster."""
    metric: Literal["l2", "cos"] = "l2"
    """cos normalises the code vectors first (the tokenizer already does where its model does)."""
    source: Literal["codebook", "lm_embedding"] = "codebook"
    """What is clustered: the tokenizer's code vectors, or the teacher's output embeddings."""
    mix: Probability = 1.0
    """Weight of the relaxed divergence; the rest is the divergence over the full vocabulary."""
    seed: Seed = 0
    """Seed of k-means."""

    @property
    def anchored(self) -> bool:
        """Whether the divergence itself holds the distribution inside a cluster."""
        return self.factor == 1 or self.mix < 1


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


def run_clusters(
    path: Path, point_VD: Tensor, config: RelaxationConfig, ranks: ProcessGroup
) -> ClusterMap | None:
    """The cluster map of a run: made and saved by rank 0, then read by all; None for factor 1.

    A map at `path` that answers the same request is read and not made again, so a resumed run
    and all ranks have the same map, whatever their machines and libraries. Rank 0 of every start
    must see what the others see at `path`.

    Raises:
        InputError: as `cluster_codebook`, or `path` is not readable.
    """
    if config.factor == 1:
        return None
    request = config.model_dump(exclude={"mix"}) | {"points": _digest(point_VD)}
    if ranks.rank == 0 and not _answers(path, request):
        made = cluster_codebook(point_VD, config)
        assert made is not None
        facts = {"relaxation": request, "digest": made.digest}
        save_tensors(path, {"cluster_V": made.cluster_V.to(torch.int32)}, facts)
    ranks.barrier()
    return number_by_first_code(load_tensors(path)[0]["cluster_V"].long())


def cluster_codebook(point_VD: Tensor, config: RelaxationConfig) -> ClusterMap | None:
    """k-means over code vectors into V / factor clusters; None for factor 1.

    Every code is in a cluster, also one that the tokenizer never uses; no cluster is empty.

    Raises:
        InputError: the factor leaves fewer than two clusters, or balanced clusters of V codes
            cannot have equal sizes.
    """
    if config.factor == 1:
        return None
    codes, count = len(point_VD), len(point_VD) // config.factor
    if count < 2:
        raise InputError(
            f"objective.relaxation.factor is {config.factor}, but the codebook has only "
            f"{codes} codes; use at most {codes // 2}"
        )
    if config.balanced and codes % config.factor:
        raise InputError(
            f"objective.relaxation.factor is {config.factor}, which does not divide the "
            f"{codes} codes into clusters of equal size; choose a divisor, or balanced=false"
        )
    point_VD = point_VD.detach().float().cpu()
    if not is_finite(point_VD):
        raise InputError(
            f"objective.relaxation.source is {config.source}, but its vectors are not finite; "
            "check the file that they come from"
        )
    if config.metric == "cos":
        point_VD = F.normalize(point_VD, dim=-1)
    from sklearn.cluster import KMeans  # a second of imports, for this alone

    def kmeans(point_ND: Tensor, count: int) -> Tensor:
        clustering: Any = KMeans(count, n_init=cast(Any, 1), random_state=config.seed)
        return torch.from_numpy(clustering.fit_predict(point_ND.numpy())).long()

    if config.balanced:
        return number_by_first_code(balanced_clusters(point_VD, config.factor, kmeans))
    return number_by_first_code(kmeans(point_VD, count))


def number_by_first_code(label_V: Tensor) -> ClusterMap:
    """Canonical numbering, so that equal partitions have equal digests."""
    names, dense_V = torch.unique(label_V, return_inverse=True)
    here, codes = label_V.device, len(label_V)
    none_C = torch.full((len(names),), codes, device=here)
    first_C = none_C.scatter_reduce(0, dense_V, torch.arange(codes, device=here), "amin")
    cluster_V = first_C.argsort().argsort()[dense_V]
    return ClusterMap(cluster_V, len(names))


def cluster_logprob(of: Categorical, clusters: ClusterMap) -> Tensor:
    """log of the summed probability of each cluster, stable for clusters of tiny mass; -inf,
    without a gradient, for one of no mass."""
    if clusters.size == of.given_NV.shape[-1]:
        return of.logprob_NV  # numbered by their first codes, each is its own cluster
    return analytic.summed_logprob(of.logit_NV, clusters.cluster_V, clusters.size)


def coarse(of: Categorical, clusters: ClusterMap) -> Categorical:
    """The distribution over clusters."""
    is_fine = clusters.size < of.given_NV.shape[-1]
    if is_fine and fused.reads(of):
        least = analytic.LEAST
        logit_NC = fused.cluster_logits(of.given_NV, clusters.cluster_V, clusters.size, least)
        if logit_NC is not None:
            return Categorical(logit_NC)
    return Categorical.normalised(cluster_logprob(of, clusters))


def relaxed(
    divergence: Divergence,
    student: Categorical,
    teacher: Categorical,
    clusters: ClusterMap | None,
    mix: float = 1.0,
) -> Tensor:
    """mix D(Q, P) + (1 - mix) D(q, p) per token; D(q, p) where there are no clusters."""
    if clusters is None or mix == 0:
        return divergence.between(student, teacher)
    coarse_N = divergence.between(coarse(student, clusters), coarse(teacher, clusters))
    if mix == 1:
        return coarse_N
    return mix * coarse_N + (1 - mix) * divergence.between(student, teacher)


def chain_rule(
    divergence: Divergence, student: Categorical, teacher: Categorical, clusters: ClusterMap
) -> tuple[Tensor, Tensor]:
    """D(Q, P) between clusters, and D(q, p) - D(Q, P) within them; they add up to D(q, p).

    The second is what relaxation leaves unsupervised. For the reverse KL it is the chain rule's
    sum_c Q_c KL(q(.|c) || p(.|c)) (docs/method.md, "Relaxation").
    """
    between_N = relaxed(divergence, student, teacher, clusters)
    return between_N, divergence.between(student, teacher) - between_N


def cluster_confidence(clusters: ClusterMap | None) -> Quantity:
    """1 - H(P) / log C of the teacher over clusters, or over the codes where there are none."""

    def quantity(logprob_NV: Tensor, token_N: Tensor) -> Tensor:
        if clusters is None:
            coarse_NC = logprob_NV
        else:
            coarse_NC = cluster_logprob(Categorical(logprob_NV), clusters)
        return confidence(entropy_of(coarse_NC), coarse_NC.shape[-1])

    return quantity


def _digest(point_VD: Tensor) -> str:
    data = point_VD.detach().float().cpu().contiguous().numpy().tobytes()
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _answers(path: Path, request: dict[str, Any]) -> bool:
    """Whether there is a whole map at `path`, made for just this request."""
    if not path.exists():
        return False
    try:
        tensors, facts = load_tensors(path)
    except InputError:  # damaged: made again
        return False
    if facts.get("relaxation") != request or "cluster_V" not in tensors:
        return False
    return number_by_first_code(tensors["cluster_V"].long()).digest == facts.get("digest")
