"""What a worker needs to sample alone: weights that never change, tokens of a family's shape."""

from dataclasses import replace
from typing import Any

import torch

from common.config.plugins import load_plugin
from common.exchange.packed_weights import pack
from common.exchange.schedule import Lease, Schedule
from common.exchange.trajectory import from_arrow
from common.exchange.weights import Weights
from common.randomness import Draws
from rollout.config import RolloutConfig
from rollout.context import ContextsConfig
from rollout.worker import RolloutWorker


class Unchanging:
    """One version of the student's weights."""

    def __init__(self, student):
        self.bundle = Weights.of(0, pack(student, torch.float32))

    def newest(self, timeout):
        return 0

    def get(self, version, timeout):
        return self.bundle


def tokens_of(spec, data):
    """The data's tokens, repeated where the family's sequences are longer."""
    tokens = replace(data, spec=spec)
    if spec.length == data.spec.length:
        return tokens
    return replace(tokens, token_NAL=data.token_NAL.repeat(1, 1, 3)[..., : spec.length])


def record_of(student, data, sources, *, size=1, count=6, first=0, **settings):
    """(a lease of a worker that holds `student`, its copy of that, the rows of its passes): data
    rows by the seed 3, contexts drawn by sample, groups of `size`, images from `first` on."""
    kind = type(student).__module__.rpartition(".")[2]
    family = load_plugin("common.models.backbones", kind).Config.tiny()
    tokens = tokens_of(student.spec, data)
    keep: Any = Unchanging(student)  # nobody leases, nobody scores
    given = {"batch_size": count, "class_dropout": 0.4, "keep_target": True}
    worker = RolloutWorker(
        RolloutConfig.model_validate(given | settings),
        ContextsConfig.model_validate({"mix_per": "sample", "sources": sources}),
        family,
        name="w",
        schedule=Schedule(9, count, count, 2, 1, group_size=size),
        draws=Draws(3, len(tokens)),
        data=tokens,
        scorers=keep,
        weights=keep,
        ledger=keep,
    )
    held: Any = worker._student
    passes: list[int] = []
    features = held.features
    held.features = lambda c, t, p: passes.append(len(t)) or features(c, t, p)
    batch = from_arrow(worker.sample(Lease(0, first, count, 0, None, 1)))
    held.features = features
    return batch, held, passes
