"""Maximum-likelihood pretraining of a backbone on a token dataset, in one process.

The same learner as distillation, with the `mle` objective on whole data sequences.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch

from common.config.quantities import Batch, Fraction, Steps, StepsOrNever
from common.config.schema import Config, UserPath
from common.data.tokens import TokenDataset
from common.exchange.condition import Conditions
from common.exchange.provenance import DATA
from common.exchange.trajectory import TrajectoryBatch
from common.models.backbone import Backbone
from common.randomness import Draws
from learner.config import LearnerConfig
from learner.learner import Learner
from learner.objectives import mle
from learner.optimizer import OptimizerConfig

SHOWN = {"loss": "loss", "entropy": f"student_entropy/{DATA}", "grad_norm": "grad_norm", "lr": "lr"}
"""Numbers of a step, by the learner's names: loss and entropy of the model in nats per token."""

HARMLESS = {"checkpoint_every", "device"}
"""Settings on which the trained model does not depend."""


class PretrainConfig(Config):
    renamed: ClassVar[Mapping[str, str]] = {"snapshot_every": "checkpoint_every"}

    steps: Steps = 500
    """Optimiser steps."""
    batch_size: Batch = 64
    """Sequences per step."""
    class_dropout: Fraction = 0.1
    """Probability that a label becomes the null class, so that guidance works later."""
    checkpoint_every: StepsOrNever = 500
    """Steps between snapshots that `--resume` goes on from; 0 keeps one only where the training is
    stopped by Ctrl-C or SIGTERM."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW, schedule, clipping, EMA."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model is trained."""
    start: UserPath | None = None
    """Weights to begin from instead of fresh ones, ours or official. A LlamaGen that reads vectors
    (vector_width) may begin from one with a table of tokens, to which its perceptron is fitted."""


def data_batches(
    data: TokenDataset,
    config: PretrainConfig,
    backbone: Backbone,
    seed: int,
    null: int | None = None,
    done: int = 0,
) -> Iterator[TrajectoryBatch]:
    """Endless seeded batches of whole data sequences, from step `done` on; every epoch visits each
    image once. `null` is the id of dropped labels, by default the null class."""
    draws = Draws(seed, len(data))
    first = done * config.batch_size
    while True:
        index_B = range(first, first + config.batch_size)
        label_B, cell_BL = data.pick(index_B, draws, config.class_dropout, null)
        plan = backbone.training_plan([draws.noise_seed(index) for index in index_B])
        id_B = torch.tensor(index_B)
        yield TrajectoryBatch(
            spec=data.spec,
            id_B=id_B,
            version_B=torch.zeros_like(id_B),
            label_B=label_B,
            context=(DATA,) * len(index_B),
            policy=(DATA,) * len(index_B),
            law=("exact",) * len(index_B),
            prefix_B=torch.full_like(id_B, data.spec.length),
            plan=plan,
            token_BL=plan.to_slots(cell_BL),
            logprob_BL=torch.zeros(len(index_B), data.spec.length),
        )
        first += config.batch_size


class Pretraining:
    """Trains a backbone in place; a `learner.resumable.Training`."""

    def __init__(
        self,
        backbone: Backbone,
        data: TokenDataset,
        config: PretrainConfig,
        *,
        seed: int,
        device: str,
        section: str,
        conditions: Conditions | None = None,
    ) -> None:
        """`section` of the run's config is this one's, for messages; `conditions` are by default
        the classes."""
        settings = LearnerConfig.model_validate(
            {
                "steps": config.steps,
                "global_batch_size": config.batch_size,
                "micro_batch": config.batch_size,
                "profile_every": 0,
                "optimizer": config.optimizer,
                "device": device,
            }
        )
        self._source = data, config, backbone, seed, conditions.null if conditions else None
        self._batches = data_batches(*self._source)
        self._learner = Learner(
            settings,
            mle.Config(),
            backbone,
            seed=seed,
            contexts=(DATA,),
            section=section,
            conditions=conditions,
        )

    @property
    def steps_done(self) -> int:
        return self._learner.steps_done

    def step(self) -> dict[str, float]:
        """One update on the next batch; {"loss", "entropy", "grad_norm", "lr"}."""
        row = self._learner.step(next(self._batches))
        return {name: row[key] for name, key in SHOWN.items()}

    def snapshot(self) -> dict[str, Any]:
        return self._learner.snapshot()

    def restore(self, tensors: dict[str, Any], step: int) -> None:
        """Go on after `step`, with the batches that come then."""
        self._learner.restore(tensors, step)
        self._batches = data_batches(*self._source, done=step)
