"""A run's services and workers on Ray without its learner, whose part a test takes."""

from typing import Any

import torch

from common.artifacts.backbone_file import load_backbone
from common.exchange.assembly import Share
from common.exchange.packed_weights import pack
from common.exchange.weights import Weights
from common.models.backbone import Backbone
from deploy.backend.role import ROLLOUT
from deploy.backend.supervisor import Supervisor
from deploy.config import RunConfig
from deploy.pipeline import Services, wire
from deploy.run_folder.workspace import Workspace
from deploy.stages.distill import preflight


def start(run: tuple[RunConfig, Workspace], place: Any) -> tuple[Services, Supervisor, Backbone]:
    """Services with running workers and a published version 0; the student that it is of."""
    config, workspace = run
    services, workers, scorers = wire(
        config, preflight(config, workspace), workspace.model(config, "teacher"), place
    )
    crew = Supervisor(services, {ROLLOUT: workers, **scorers}, place)
    place.wait_ready()
    student, _ = load_backbone(workspace.student_before)
    publish(services, student, 0)
    return services, crew, student


def publish(services: Services, student: Backbone, version: int) -> None:
    services.weights.publish(Weights.of(version, pack(student, torch.float32)))


def take(services: Services, step: int) -> Share:
    """All of the step, which workers may still sample."""
    for _ in range(100):
        share = services.buffer.take(step, shard=0, shards=1, timeout=0.2)
        if share is not None:
            return share
    raise AssertionError("no batch in 20 s")
