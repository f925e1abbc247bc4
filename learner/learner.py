"""The learner role: one optimiser step per assembled batch of scored trajectories.

Shape letters: B sequences, L slots, N tokens, C width, V codes.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from common.device import autocast, place, precision
from common.errors import InputError
from common.exchange.condition import ClassConditions, Conditions
from common.exchange.packed_weights import Packing
from common.exchange.trajectory import TrajectoryBatch
from common.exchange.weights import Canary, Weights
from common.finite import NAMES, require_finite
from common.models.backbone import Backbone
from common.models.canary import TOLERANCE, canary
from common.randomness import derive_seed
from learner.blocks import recompute_activations
from learner.compiled import compile_layers
from learner.config import LearnerConfig
from learner.diagnostics import StepStatistics
from learner.gradient_parts import compare_parts, step_coefficients
from learner.layout import LayoutOf, layout_of
from learner.micro_batch import MicroBatches
from learner.objective import Objective, Student
from learner.optimizer import Average, build_adamw
from learner.process_group import ProcessGroup, SingleProcess
from learner.profile import Profile
from learner.reduction import Coefficients
from learner.restoring import fitting, optimizer_state, require_like, restore_optimizer
from learner.seeding import seeded
from learner.teacher_targets import TeacherTargets, entropy
from learner.token_weights import ObjectiveState, TokenWeights

StudentName = Literal["student", "student_ema"]
"""What others call the student and its moving average."""


class Learner:
    """Holds the student, its optimizer and its average; knows nothing of buffers or processes."""

    def __init__(
        self,
        config: LearnerConfig,
        objective: Objective,
        student: Student,
        *,
        seed: int,
        contexts: tuple[str, ...],
        teacher: TeacherTargets | None = None,
        ranks: ProcessGroup | None = None,
        section: str = "learner",
        conditions: Conditions | None = None,
        layout: LayoutOf = layout_of,
    ) -> None:
        """`conditions` are those of the student's side, by default the classes. `section` of the
        config holds the optimizer, for messages. The student becomes float32: in half precision
        most updates would round away."""
        self._device = place(config.device)
        self._config = config = config.chunked(student.spec.vocab_size, self._device.type)
        self._remedy = config.optimizer.remedy(section)
        self._objective = objective
        self._student = self._prepared(student)
        self._ranks = ranks or SingleProcess()
        self._layout = layout(config, self._student, self._ranks)
        self._optimizer = build_adamw(config.optimizer, self._layout.trained)
        self._average = Average(self._layout.held, config.optimizer.ema)
        self._packing: dict[str, Packing] = {}
        conditions = conditions or ClassConditions(student.spec.num_classes)
        self._micro_batches = MicroBatches(
            config, objective, self._student, self._layout, conditions, teacher, self._device
        )
        self._seed = seed
        self._contexts = contexts
        self._teacher = teacher
        if teacher is not None:
            teacher.head.to(self._device).requires_grad_(False)
        self._state: ObjectiveState = {}
        self.profile = Profile(config.profile_every, config.steps)
        self.steps_done = 0

    def _prepared(self, student: Student) -> Student:
        student.train(self._objective.config.with_dropout)
        student = student.to(torch.float32)  # its layout moves it to the device
        self._objective.config.freeze(student)
        if self._config.compile:
            compile_layers(student)
        if self._config.activation_checkpointing:
            recompute_activations(student)
        return student

    def step(self, batch: TrajectoryBatch, *, now: int | None = None) -> dict[str, float]:
        """One update from this rank's share of the global batch; returns numbers to plot. Rows lag
        behind version `now`, by default the number of steps done.

        Raises:
            InputError: the objective refuses the first rollouts (see learner/gate.py).
            Diverged: loss, gradient, weights or another number of this step is not finite. The
                state is of no use then; nothing of it may be published or stored.
        """
        self._objective.config.check_rows(batch)
        light = self._without_wide_columns(batch)
        token_weights = self._objective.token_weights(light, self._state, self._ranks)
        sums = self._contexts, self._ranks.sum_
        factors = step_coefficients(self._objective, light, token_weights, *sums)
        compared: dict[str, float] = {}
        if self.profile.ends_with(self.steps_done + 1):
            norm_of = partial(self._norm_of, batch, token_weights)
            compared = compare_parts(self._objective, factors, norm_of)
        statistics = self._statistics(batch)
        statistics.add_batch(light, token_weights)
        self._pass_over(self._micro_batches, batch, token_weights, factors, statistics)
        norm, rate = self.update(statistics.loss)
        lag_B = (self.steps_done if now is None else now) - light.version_B
        self.steps_done += 1
        self._average.update(self.steps_done)
        metrics = statistics.metrics(light, lag_B, self._ranks)
        self.profile.add(statistics, self.steps_done)
        if sampled := statistics.rollout_means():
            self._objective.update_state(self._state, sampled)
        metrics |= {"grad_norm": norm, "lr": rate} | compared | self._state
        require_finite(self.steps_done, metrics, self._remedy)
        return metrics

    def _statistics(self, batch: TrajectoryBatch) -> StepStatistics:
        diagnosed, length = self._objective.config.observes(), batch.token_BL.shape[1]
        return StepStatistics(diagnosed, self._contexts, length, self._device)

    def _pass_over(
        self,
        computes: MicroBatches,
        batch: TrajectoryBatch,
        token_weights: TokenWeights,
        factors: Coefficients,
        statistics: StepStatistics,
    ) -> None:
        """Gradients of the loss of all rows, from none."""
        self._optimizer.zero_grad(set_to_none=True)
        seed = derive_seed(self._seed, f"dropout-{self._ranks.rank}", self.steps_done)
        with seeded(seed, self._device):
            for first in range(0, len(batch), self._config.micro_batch):
                rows = slice(first, first + self._config.micro_batch)
                parts = batch.rows(rows), token_weights.rows(rows), factors.rows(rows)
                total = self._layout.run(partial(computes.loss, *parts, statistics))
                self._layout.backward(total, is_last=rows.stop >= len(batch))
                statistics.loss += total.detach()

    def _norm_of(
        self, batch: TrajectoryBatch, weights: TokenWeights, part: Objective, factors: Coefficients
    ) -> float:
        """Of the gradient of a part of the objective, from a pass of its own."""
        computes = replace(self._micro_batches, objective=part)
        self._pass_over(computes, batch, weights, factors, self._statistics(batch))
        self._layout.sum_gradients()
        return float(self._layout.clip(math.inf))

    def _without_wide_columns(self, batch: TrajectoryBatch) -> TrajectoryBatch:
        """The batch without what is wide, with the teacher's numbers that the objective reads."""
        signal = {name: value for name, value in batch.signal.items() if value.ndim == 2}
        light = replace(batch, signal=signal, noise_BL=None, vector_BLD=None).to(self._device)
        if self._teacher is None or not self._objective.config.asks_teacher():
            return light
        self._teacher.check(batch)
        wanted = dict(self._objective.reads())
        if self._objective.config.reads_entropy():
            wanted["entropy"] = entropy
        missing = {name: read for name, read in wanted.items() if name not in signal}
        if not missing:
            return light
        read = self._teacher.read(batch, missing, self._config.chunk_tokens)
        return replace(light, signal=light.signal | read)

    def update(self, loss: Tensor) -> tuple[float, float]:
        """Let the optimizer follow the gradients that are there, the last part of `step`: norm of
        the gradient and learning rate; `loss` is this rank's part.

        Raises:
            Diverged: loss, norm or weights are not finite.
        """
        self._layout.sum_gradients()
        loss = self._ranks.sum_(loss.clone())  # the tally adds its own up later
        norm = self._layout.clip(self._config.optimizer.max_grad_norm)
        rate = self._config.optimizer.rate(self.steps_done, self._config.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        # All ranks see the same three numbers, and wait for the device once.
        found = torch.stack([loss, norm, self._layout.largest()]).tolist()
        require_finite(self.steps_done + 1, dict(zip(NAMES, found, strict=True)), self._remedy)
        return found[1], rate

    @property
    def is_spread(self) -> bool:
        """Whether all ranks are to be asked for `published`, `states` and `snapshot`, as each holds
        a part."""
        return self._layout.is_spread

    @torch.no_grad()
    def published(
        self, dtype: str, *, version: int | None = None, checked: bool = False
    ) -> Weights:
        """The current student, versioned by steps done; to be copied before the next step, or
        where it is apart, before it is asked for again.
        `checked` adds what it computes, unless that would have to be compiled for it. Where the
        student is spread, rank 0 gets it and the others an empty one."""
        version = self.steps_done if version is None else version
        value = self._layout.run(self._canary) if checked and self._has_canary else None
        state = self._layout.gathered(self._layout.held, self._sent_as(dtype))
        if not state:
            return Weights.of(version, ())
        if dtype not in self._packing or self._layout.is_spread:
            trained = {n for n, p in self._student.named_parameters() if p.requires_grad}
            self._packing[dtype] = Packing(state, self._sent_as(dtype), state.keys() - trained)
        return self._packing[dtype].weights(version, value)

    @property
    def _has_canary(self) -> bool:
        return not self._config.compile and isinstance(self._student, Backbone)

    def _sent_as(self, dtype: str) -> dict[str, torch.dtype]:
        """Types of what is sent: parameters travel in `dtype`, buffers as they are (a quantiser
        must stay exact)."""
        return {name: precision(dtype) for name, _ in self._student.named_parameters()}

    def _canary(self) -> Canary:
        """In float32, or as rounded as blocks are that are gathered in half precision."""
        assert isinstance(self._student, Backbone)
        dtype = precision(self._config.dtype) if self.is_spread else torch.float32
        with autocast(self._device, dtype):
            found = canary(self._student)
        return Canary(found, TOLERANCE[dtype])

    @torch.no_grad()
    def take_average(self) -> None:
        """The student becomes its moving average; the optimizer's moments stay."""
        for name, value in self._average.state.items():
            self._layout.held[name].copy_(value)

    def states(self) -> Iterator[tuple[StudentName, Mapping[str, Tensor]]]:
        """The student's tensors, then their moving average: views, not copies. Where they are
        spread, rank 0 gets copies, made when they are asked for, and the others go through the
        same and get none."""
        if state := self._layout.gathered(self._layout.held):
            yield "student", state
        del state
        if state := self._layout.gathered(self._average.state):
            yield "student_ema", state

    def snapshot(self) -> dict[str, Any]:
        """Everything needed to continue: student, average, optimizer, objective, what it owns;
        `Rows` in the place of tensors that are spread."""
        layout = self._layout
        return {
            "student": {name: layout.stored(name, value) for name, value in layout.held.items()},
            "ema": {name: layout.stored(name, v) for name, v in self._average.state.items()},
            "optimizer": optimizer_state(self._optimizer, layout.trained, layout.stored),
            "objective": dict(self._state),
            "profile": self.profile.state(),
            "owned": self._objective.owned(),
        }

    def restore(self, tensors: dict[str, Any], step: int) -> None:
        """Continue from a snapshot.

        Raises:
            InputError: the snapshot was trained with another cluster map (or what else an objective
                owns), or is of another model.
        """
        with fitting(), torch.no_grad():
            self._restore(tensors)
        self.steps_done = step

    def _restore(self, tensors: dict[str, Any]) -> None:
        ours, theirs = self._objective.owned(), tensors["owned"]
        for name in sorted(ours.keys() | theirs.keys()):
            found, mine = (owned.get(name, {}).get("digest") for owned in (theirs, ours))
            if found != mine:
                raise InputError(
                    f"the snapshot was trained with {name} of digest {found}, but the run has "
                    f"{mine}; put {name}.safetensors of the run folder back, or begin again with "
                    "--restart"
                )
        own = self._student.state_dict()
        for entry in ("student", "ema"):
            require_like(tensors[entry], own, entry)
        for entry, held in (("student", self._layout.held), ("ema", self._average.state)):
            for name, value in held.items():
                value.copy_(self._layout.own(name, tensors[entry][name]))
        trained, part = self._layout.trained, self._layout.own
        restore_optimizer(self._optimizer, trained, tensors["optimizer"], whole=own, own=part)
        self._state = dict(tensors["objective"])
        self.profile.restore(tensors["profile"], self._device)
