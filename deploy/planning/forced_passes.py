"""Rows that a worker makes by whole passes (rollout/forced.py), on models without content or drawn.

Shape letters: B sequences, L slots.
"""

from functools import partial

import torch

from common.exchange.condition import ClassConditions
from common.models.backbone import Backbone
from deploy.config import RunConfig
from deploy.planning.blank_tensors import peak_bytes
from rollout.context import RolloutRequest
from rollout.drawn import Drawn
from rollout.forced import ForcedContext, ForcedPass


def forced_sources(config: RunConfig) -> list[ForcedContext]:
    """Those of the run."""
    return [source for source in config.contexts.used if isinstance(source, ForcedContext)]


def forced_bytes(config: RunConfig, model: Backbone) -> int:
    """Activations and logits while the student makes a lease, of the source that takes the most."""
    runs = [partial(forced_rows, config, source, model) for source in forced_sources(config)]
    return max(map(peak_bytes, runs), default=0)


def forced_rows(config: RunConfig, source: ForcedContext, model: Backbone) -> Drawn:
    """A lease of the source's rows, from sequences of the first code."""
    images, group, spec = config.rollout.batch_size, config.rollout.group.size, model.spec
    zero_B = torch.zeros(images, dtype=torch.long)
    work = RolloutRequest(
        id_B=torch.arange(images),
        label_B=zero_B,
        context=(source.kind,) * images,
        policy=(source.policy,) * images,
        law=("exact",) * images,
        way=(source.way,) * images,
        prefix_B=zero_B,
        cell_BL=torch.zeros(images, spec.length, dtype=torch.long),
    )
    sampling = config.rollout.sampling
    sampler = source.sampler_of(ForcedPass(model, sampling, ClassConditions(spec.num_classes)))
    conditions = [row // group for row in range(images)]
    plan = model.plan(conditions, sampling.decoding)
    return sampler(work, range(images), plan, conditions)
