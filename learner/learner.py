"""The learner role: one optimiser step per assembled batch of scored trajectories.

Shape letters: B sequences, L slots, N tokens, C width, V codes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, SerializeAsAny
from torch import Tensor, nn

from common.backbone import Backbone
from common.checkpoint import pack
from common.config import Config
from common.device import place, precision
from common.ledger import derive_seed
from common.plugins import from_package
from common.signal import SignalConfig
from common.trajectory import TrajectoryBatch
from common.weights import Weights
from learner.chunked import chunked_loss
from learner.objective import ObjectiveConfig, TokenChunk, coefficients
from learner.optimizer import Average, OptimizerConfig, build_adamw
from learner.relaxation import ClusterMap

AnyObjective = Annotated[SerializeAsAny[ObjectiveConfig], from_package("learner.objectives")]


class LearnerConfig(Config):
    weights: Path | None = None
    """The student to start from, ours or an official checkpoint; by default
    student_before.safetensors in the run folder."""
    weights_ema: bool = False
    """Read the averaged weights of an official trainer's file."""
    steps: PositiveInt = 200
    """Optimiser steps of distillation."""
    images_per_step: PositiveInt = 64
    """Global batch: sequences per optimiser step, over all ranks."""
    micro_batch: PositiveInt = 64
    """Sequences per forward and backward pass; gradients accumulate to a whole step."""
    chunk_tokens: PositiveInt = 4096
    """Tokens whose logits exist at a time; bounds the memory of the loss."""
    publish_every: PositiveInt = 1
    """Steps between versions offered to the rollout workers."""
    max_lag: NonNegativeInt = 2
    """Oldest weights a trained sample may come from, in learner steps; 0 is on-policy."""
    ordered: bool = False
    """Pin weight versions and batch geometry to the image index: reproducible, somewhat slower."""
    ranks: PositiveInt = 1
    """Data-parallel learner processes."""
    snapshot_every: NonNegativeInt = 0
    """Steps between resumable snapshots; 0 keeps only the last step."""
    max_failures: NonNegativeInt = 1
    """How often a dead learner is restarted from its newest snapshot."""
    stall_seconds: PositiveFloat = 300.0
    """The run ends, naming the stage, when no batch arrives for this long."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW, schedule, clipping, EMA."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the loss is computed."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Autocast type of the forward pass; weights and loss stay float32."""
    cpus: NonNegativeFloat = 1
    """Logical CPUs reserved per rank on the cluster."""
    gpus: NonNegativeFloat = 0
    """GPUs reserved per rank."""


class Ranks(Protocol):
    """The other learner processes."""

    rank: int
    world: int

    def sum_(self, tensor: Tensor) -> Tensor: ...
    def barrier(self) -> None: ...


class Solo:
    """A learner without company."""

    rank = 0
    world = 1

    def sum_(self, tensor: Tensor) -> Tensor:
        return tensor

    def barrier(self) -> None: ...


@dataclass(frozen=True, slots=True)
class TeacherView:
    """How the learner reads the teacher's signal: its encoding, head, and the head's digest."""

    signal: SignalConfig
    head: nn.Linear
    digest: str


@dataclass
class Tally:
    """Sums of one step, kept on the device until the step is over."""

    loss: Tensor
    divergence: dict[str, Tensor] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)


class Learner:
    """Holds the student, its optimizer and its average; knows nothing of buffers or processes."""

    def __init__(
        self,
        config: LearnerConfig,
        objective: ObjectiveConfig,
        student: Backbone,
        *,
        seed: int,
        contexts: tuple[str, ...],
        teacher: TeacherView | None = None,
        clusters: ClusterMap | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self._config = config
        self._objective = objective
        self._device = place(config.device)
        self._student = student.to(self._device).train()
        self._optimizer = build_adamw(config.optimizer, self._student)
        self._average = Average(self._student, config.optimizer.ema)
        self._seed = seed
        self._contexts = contexts
        self._teacher = teacher
        if teacher is not None:
            teacher.head.to(self._device).requires_grad_(False)
        self._clusters = clusters.to(self._device) if clusters else None
        self._ranks = ranks or Solo()
        self.steps_done = 0

    def step(self, batch: TrajectoryBatch) -> dict[str, float]:
        """One update from this rank's share of the global batch; returns numbers to plot."""
        self._check_signal(batch)
        weighing = self._objective.weigh(batch)
        coefficient_BL = coefficients(
            self._objective.reduction, weighing, batch.context, self._contexts, self._ranks.sum_
        )
        tally = Tally(torch.zeros((), device=self._device))
        self._optimizer.zero_grad(set_to_none=True)
        seed = derive_seed(self._seed, f"dropout-{self._ranks.rank}", self.steps_done)
        with _seeded(seed, self._device):
            for first in range(0, len(batch), self._config.micro_batch):
                rows = slice(first, first + self._config.micro_batch)
                self._accumulate(batch.rows(rows), coefficient_BL[rows], tally)
        norm, rate = self._update()
        lag_B = self.steps_done - batch.version_B
        self.steps_done += 1
        self._average.update(self._student, self.steps_done)
        metrics = {"loss": float(self._ranks.sum_(tally.loss)), "grad_norm": norm, "lr": rate}
        metrics |= _diagnostics(batch, weighing, lag_B)
        for context, total in tally.divergence.items():
            metrics[f"divergence/{context}"] = float(total) / max(1, tally.tokens[context])
        return metrics

    def _accumulate(self, batch: TrajectoryBatch, coefficient_BL: Tensor, tally: Tally) -> None:
        """Forward and backward for some rows; tokens of weight 0 never reach the head."""
        batch = batch.to(self._device)
        kind, dtype = self._device.type, precision(self._config.dtype)
        with torch.autocast(kind, dtype, enabled=dtype != torch.float32):
            hidden_BLC = self._student.features(batch.label_B, batch.token_BL, batch.plan)
            losses = []
            for context in dict.fromkeys(batch.context):
                member_B = [name == context for name in batch.context]
                active_BL = coefficient_BL.to(self._device) != 0
                active_BL &= torch.tensor(member_B, device=self._device)[:, None]
                loss = self._context_loss(
                    context, batch, hidden_BLC, coefficient_BL.to(self._device), active_BL, tally
                )
                losses.append(loss)
            total = torch.stack(losses).sum()
        total.backward()
        tally.loss += total.detach()

    def _context_loss(
        self,
        context: str,
        batch: TrajectoryBatch,
        hidden_BLC: Tensor,
        coefficient_BL: Tensor,
        active_BL: Tensor,
        tally: Tally,
    ) -> Tensor:
        token_N, coefficient_N = batch.token_BL[active_BL], coefficient_BL[active_BL]
        column = {name: value[active_BL] for name, value in batch.signal.items()}

        def weighted(logit_nV: Tensor, tokens: slice) -> Tensor:
            teacher_nV = None
            if self._teacher is not None and self._objective.needs_teacher:
                part = {name: value[tokens] for name, value in column.items()}
                with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
                    teacher_nV = self._teacher.signal.logprob(part, self._teacher.head)
            student_nV = logit_nV.float().log_softmax(-1)
            chunk = TokenChunk(context, token_N[tokens], student_nV, teacher_nV, self._clusters)
            loss_n = self._objective(chunk)
            found = tally.divergence.get(context, torch.zeros((), device=self._device))
            tally.divergence[context] = found + loss_n.detach().sum()
            return (coefficient_N[tokens] * loss_n).sum()

        tally.tokens[context] = tally.tokens.get(context, 0) + len(token_N)
        return chunked_loss(
            hidden_BLC[active_BL], self._student.head, weighted, self._config.chunk_tokens
        )

    def _update(self) -> tuple[float, float]:
        parameters = [p for p in self._student.parameters() if p.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:  # e.g. nothing was open on this rank
                parameter.grad = torch.zeros_like(parameter)
        if self._ranks.world > 1:
            _sum_gradients([p.grad for p in parameters if p.grad is not None], self._ranks)
        norm = nn.utils.clip_grad_norm_(parameters, self._config.optimizer.clip)
        rate = self._config.optimizer.rate(self.steps_done, self._config.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        return float(norm), rate

    def _check_signal(self, batch: TrajectoryBatch) -> None:
        if self._teacher is None or not self._objective.needs_teacher:
            return
        found = batch.facts.get("head")
        if found != self._teacher.digest:
            raise ValueError(
                f"the record was scored by a teacher whose head has digest {found}, but the "
                f"learner holds {self._teacher.digest}; both must load the same teacher file"
            )

    def published(self, dtype: str) -> Weights:
        """The current student as an immutable bundle, versioned by steps done."""
        return Weights.of(self.steps_done, pack(self._student, precision(dtype)))

    def snapshot(self) -> dict[str, Any]:
        """Everything needed to continue: student, average, optimizer."""
        return {
            "student": self._student.state_dict(),
            "ema": self._average.state,
            "optimizer": self._optimizer.state_dict(),
        }

    def restore(self, tensors: dict[str, Any], step: int) -> None:
        self._student.load_state_dict(tensors["student"])
        for name, value in tensors["ema"].items():
            self._average.state[name].copy_(value)
        self._optimizer.load_state_dict(tensors["optimizer"])
        self.steps_done = step


def _diagnostics(batch: TrajectoryBatch, weighing: Any, lag_B: Tensor) -> dict[str, float]:
    """Survival, teacher entropy and staleness by context (method.md 2.9), of this rank."""
    metrics: dict[str, float] = {"images": len(batch)}
    for context in dict.fromkeys(batch.context):
        member_B = torch.tensor([name == context for name in batch.context])
        support_BL = weighing.support_BL & member_B[:, None]
        count = support_BL.sum().clamp_min(1)
        if "entropy" in batch.signal:
            entropy = (batch.signal["entropy"] * support_BL).sum() / count
            metrics[f"teacher_entropy/{context}"] = float(entropy)
        if context == "data":
            continue
        metrics[f"survival/{context}"] = float((weighing.open_BL & support_BL).sum() / count)
        metrics[f"weight/{context}"] = float((weighing.weight_BL * support_BL).sum() / count)
        metrics["lag_mean"] = float(lag_B[member_B].double().mean())
        metrics["lag_max"] = max(metrics.get("lag_max", 0.0), float(lag_B[member_B].max()))
    return metrics


def _sum_gradients(grads: list[Tensor], ranks: Ranks) -> None:
    """Add up over ranks in one flat message; coefficients are global already, so sum, not mean."""
    flat = ranks.sum_(torch.cat([grad.flatten() for grad in grads]))
    first = 0
    for grad in grads:
        grad.copy_(flat[first : first + grad.numel()].view_as(grad))
        first += grad.numel()


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Dropout draws from torch's global generators; make them a function of the step."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
