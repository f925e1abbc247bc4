"""Maximum-likelihood pretraining of a backbone on a token dataset, in one process.

The same learner as distillation, with the `mle` objective on whole data sequences.
"""

import time
from collections.abc import Iterator
from typing import Any

import torch

from common.backbone import Backbone
from common.config import Config
from common.ledger import Draws
from common.metrics import MetricsSink
from common.quantities import Batch, Fraction, Steps
from common.tokens import TokenDataset
from common.trajectory import DATA, TrajectoryBatch
from learner.learner import Learner, LearnerConfig
from learner.objectives import mle
from learner.optimizer import OptimizerConfig


class PretrainConfig(Config):
    steps: Steps = 500
    """Optimiser steps."""
    batch_size: Batch = 64
    """Sequences per step."""
    class_dropout: Fraction = 0.1
    """Probability that a label becomes the null class, so that guidance works later."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW, schedule, clipping, EMA."""


def data_batches(
    data: TokenDataset, config: PretrainConfig, backbone: Backbone, seed: int
) -> Iterator[TrajectoryBatch]:
    """Endless seeded batches of whole data sequences; every epoch visits each image once."""
    draws = Draws(seed, len(data))
    first = 0
    while True:
        index_B = range(first, first + config.batch_size)
        label_B, cell_BL = data.pick(index_B, draws, config.class_dropout)
        plan = backbone.training_plan([draws.noise_seed(index) for index in index_B])
        id_B = torch.tensor(index_B)
        yield TrajectoryBatch(
            spec=data.spec,
            id_B=id_B,
            version_B=torch.zeros_like(id_B),
            label_B=label_B,
            context=(DATA,) * len(index_B),
            prefix_B=torch.full_like(id_B, data.spec.length),
            plan=plan,
            token_BL=cell_BL.gather(1, plan.order_BL),
            logprob_BL=torch.zeros(len(index_B), data.spec.length),
        )
        first += config.batch_size


def pretrain(
    backbone: Backbone,
    data: TokenDataset,
    config: PretrainConfig,
    *,
    seed: int,
    device: str,
    metrics: MetricsSink,
    section: str,
) -> dict[str, Any]:
    """Train in place for `config.steps`; returns {"steps", "loss", "seconds"}."""
    started = time.monotonic()
    settings = LearnerConfig.model_validate(
        {
            "steps": config.steps,
            "images_per_step": config.batch_size,
            "micro_batch": config.batch_size,
            "profile_every": 0,
            "optimizer": config.optimizer,
            "device": device,
        }
    )
    learner = Learner(
        settings, mle.Config(), backbone, seed=seed, contexts=(DATA,), section=section
    )
    batches = data_batches(data, config, backbone, seed)
    losses: list[float] = []
    for step in range(1, config.steps + 1):
        row = learner.step(next(batches))
        losses.append(row["loss"])
        metrics.post({"step": step, "time": time.time(), **row})
    backbone.eval()
    recent = losses[-50:]
    seconds = time.monotonic() - started
    return {"steps": config.steps, "loss": sum(recent) / len(recent), "seconds": seconds}
