"""The learner role: one optimiser step per assembled batch of scored trajectories.

Shape letters: B sequences, L slots, N tokens, C width, V codes.
"""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from common.device import autocast, place, precision
from common.errors import InputError
from common.exchange.condition import ClassConditions, Conditions
from common.exchange.packed_weights import Packing
from common.exchange.trajectory import TrajectoryBatch
from common.exchange.weights import Weights
from common.finite import NAMES, largest, require_finite
from common.models.backbone import Backbone
from common.models.canary import canary
from common.randomness import derive_seed
from learner.categorical import Categorical
from learner.chunked import chunked_loss
from learner.compiled import compile_layers
from learner.config import LearnerConfig
from learner.diagnostics import StepStatistics, observe
from learner.gathered_tokens import GatheredTokens, select
from learner.objective import Objective, Reading, SequenceRows, Student
from learner.optimizer import Average, build_adamw
from learner.process_group import ProcessGroup, SingleProcess, sum_gradients
from learner.profile import Profile
from learner.reading import head_of
from learner.reduction import Coefficients, coefficients, sequence_coefficients
from learner.restoring import fitting, require_like, restore_optimizer
from learner.seeding import seeded
from learner.teacher_targets import TeacherTargets, entropy
from learner.token_weights import ObjectiveState, TokenWeights


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
    ) -> None:
        """`conditions` are those of the student's side, by default the classes. `section` of the
        config holds the optimizer, for messages. The student becomes float32: in half precision
        most updates would round away."""
        self._config = config
        self._remedy = config.optimizer.remedy(section)
        self._objective = objective
        self._device = place(config.device)
        self._student = student.to(self._device, torch.float32).train()
        objective.config.freeze(self._student)
        if config.compile:
            compile_layers(self._student)
        self._trained = [p for p in self._student.parameters() if p.requires_grad]
        self._optimizer = build_adamw(config.optimizer, self._student)
        self._average = Average(self._student, config.optimizer.ema)
        self._packing: dict[str, Packing] = {}
        self._seed = seed
        self._conditions = conditions or ClassConditions(student.spec.num_classes)
        self._contexts = contexts
        self._teacher = teacher
        if teacher is not None:
            teacher.head.to(self._device).requires_grad_(False)
        self._ranks = ranks or SingleProcess()
        self._state: ObjectiveState = {}
        self.profile = Profile(config.profile_every, config.steps)
        self.steps_done = 0

    def step(self, batch: TrajectoryBatch, *, now: int | None = None) -> dict[str, float]:
        """One update from this rank's share of the global batch; returns numbers to plot. Rows lag
        behind version `now`, by default the number of steps done.

        Raises:
            InputError: the objective refuses the first rollouts (see learner/gate.py).
            Diverged: loss, gradient, weights or another number of this step is not finite. The
                state is of no use then; nothing of it may be published or stored.
        """
        light = self._without_wide_columns(batch)
        token_weights = self._objective.token_weights(light, self._state, self._ranks)
        factors = self._coefficients(light, token_weights)
        length = batch.token_BL.shape[1]
        diagnosed = self._objective.config.diagnosed
        statistics = StepStatistics(diagnosed, self._contexts, length, self._device)
        statistics.add_batch(light, token_weights)
        self._optimizer.zero_grad(set_to_none=True)
        seed = derive_seed(self._seed, f"dropout-{self._ranks.rank}", self.steps_done)
        with seeded(seed, self._device):
            for first in range(0, len(batch), self._config.micro_batch):
                rows = slice(first, first + self._config.micro_batch)
                self._accumulate(
                    batch.rows(rows),
                    token_weights.rows(rows),
                    factors.rows(rows),
                    statistics,
                )
        norm, rate = self.update(statistics.loss)
        lag_B = (self.steps_done if now is None else now) - light.version_B
        self.steps_done += 1
        self._average.update(self.steps_done)
        metrics = statistics.metrics(light, lag_B, self._ranks)
        self.profile.add(statistics, self.steps_done)
        if sampled := statistics.rollout_means():
            self._objective.update_state(self._state, sampled)
        metrics |= {"grad_norm": norm, "lr": rate} | self._state
        require_finite(self.steps_done, metrics, self._remedy)
        return metrics

    def _without_wide_columns(self, batch: TrajectoryBatch) -> TrajectoryBatch:
        """The batch without what is wide, with the teacher's numbers that the objective reads."""
        signal = {name: value for name, value in batch.signal.items() if value.ndim == 2}
        light = replace(batch, signal=signal, noise_BL=None, vector_BLD=None).to(self._device)
        if self._teacher is None or not self._objective.config.needs_teacher:
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

    def _coefficients(self, batch: TrajectoryBatch, token_weights: TokenWeights) -> Coefficients:
        config, sums = self._objective.config, self._ranks.sum_
        of_tokens = coefficients(
            config.reduction, token_weights, batch.context, self._contexts, sums
        )
        if not self._objective.has_sequence_loss:
            return Coefficients(of_tokens)
        weight_B = token_weights.sequence_B
        if weight_B is None:
            weight_B = batch.rows_where(config.uses).float()
        return Coefficients(of_tokens, sequence_coefficients(weight_B, sums))

    def _sequence_loss(
        self, batch: TrajectoryBatch, token_weights: TokenWeights, read: Reading
    ) -> Tensor:
        columns = token_weights.column, token_weights.sequence_column
        hidden_BLC = read.hidden_BLC.float()
        beside = {name: value.float() for name, value in read.beside.items()}
        rows = SequenceRows(batch, hidden_BLC, self._student, *columns, beside, self._teacher)
        loss_B = self._objective.sequence_loss(rows)
        if loss_B.shape != (len(batch),):
            raise ValueError(
                f"sequence_loss of objective.kind={self._objective.config.kind} is "
                f"{list(loss_B.shape)}, expected one number for each of {len(batch)} rows"
            )
        return loss_B

    def _accumulate(
        self,
        batch: TrajectoryBatch,
        token_weights: TokenWeights,
        factors: Coefficients,
        statistics: StepStatistics,
    ) -> None:
        """Forward and backward for some rows; tokens of weight 0 never reach the head."""
        batch = batch.to(self._device)
        with autocast(self._device, precision(self._config.dtype)):
            class_B = self._conditions.resolve(batch.label_B)
            read = self._objective.read(self._student, class_B, batch)
            losses = []
            for source in dict.fromkeys(batch.sources):
                chosen = select(source, batch, token_weights, factors.token_BL)
                if len(chosen.token_N):
                    losses.append(self._loss(chosen, chosen.take(read.hidden_BLC), statistics))
            total = torch.stack(losses).sum() if losses else torch.zeros((), device=self._device)
        if factors.sequence_B is not None:
            loss_B = self._sequence_loss(batch, token_weights, read)
            statistics.add_sequences(batch.context, loss_B, factors.sequence_B != 0)
            total = total + (factors.sequence_B * loss_B).sum()
        if total.requires_grad:
            total.backward()
        statistics.loss += total.detach()

    def _loss(
        self, chosen: GatheredTokens, hidden_NC: Tensor, statistics: StepStatistics
    ) -> Tensor:
        def weighted(logit_nV: Tensor, tokens: slice) -> Tensor:
            teacher = None
            if self._teacher is not None and self._objective.config.needs_teacher:
                teacher = self._teacher.distribution(chosen.signal_of(tokens))
            chunk = chosen.chunk(tokens, Categorical(logit_nV.float()), teacher)
            watch_n, slot_n = chosen.watch(tokens), chosen.slot_N[tokens]
            unknown = "entropy" not in chosen.signal
            watched = observe(self._objective, chunk, watch_n, confidence_too=unknown)
            loss_n = self._objective.token_loss(chunk)
            statistics.add_tokens(chosen.context, slot_n, {"divergence": loss_n})
            statistics.add_tokens(chosen.context, slot_n[watch_n], watched)
            return (chosen.coefficient_N[tokens] * loss_n).sum()

        chunk_tokens = self._config.chunk_tokens
        head = head_of(self._student)
        return chunked_loss(hidden_NC, head, weighted, chunk_tokens, chosen.groups())

    def update(self, loss: Tensor) -> tuple[float, float]:
        """Let the optimizer follow the gradients that are there, the last part of `step`: norm of
        the gradient and learning rate; `loss` is this rank's part.

        Raises:
            Diverged: loss, norm or weights are not finite.
        """
        parameters = self._trained
        for parameter in parameters:
            if parameter.grad is None:  # e.g. nothing was open on this rank
                parameter.grad = torch.zeros_like(parameter)
        loss = loss.clone()  # the tally adds its own up later
        if self._ranks.world > 1:
            grads = [p.grad for p in parameters if p.grad is not None]
            sum_gradients([*grads, loss], self._ranks)
        norm = nn.utils.clip_grad_norm_(parameters, self._config.optimizer.max_grad_norm)
        rate = self._config.optimizer.rate(self.steps_done, self._config.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        # All ranks see the same three numbers, and wait for the device once.
        found = torch.stack([loss, norm, largest(parameters)]).tolist()
        require_finite(self.steps_done + 1, dict(zip(NAMES, found, strict=True)), self._remedy)
        return found[1], rate

    def published(
        self, dtype: str, *, version: int | None = None, checked: bool = False
    ) -> Weights:
        """The current student, versioned by steps done; to be copied before the next step.
        `checked` adds what it computes, unless that would have to be compiled for it."""
        version = self.steps_done if version is None else version
        if dtype not in self._packing:
            self._packing[dtype] = Packing(self._student, precision(dtype))
        is_known = checked and not self._config.compile
        value = canary(self._student) if is_known and isinstance(self._student, Backbone) else None
        return Weights.of(version, self._packing[dtype].parts(), value)

    @torch.no_grad()
    def take_average(self) -> None:
        """The student becomes its moving average; the optimizer's moments stay."""
        self._student.load_state_dict(self._average.state)

    def states(self) -> dict[Literal["student", "student_ema"], dict[str, Tensor]]:
        """The student's tensors and their moving average: views, not copies."""
        return {"student": self._student.state_dict(), "student_ema": self._average.state}

    def snapshot(self) -> dict[str, Any]:
        """Everything needed to continue: student, average, optimizer, objective, what it owns."""
        return {
            "student": self._student.state_dict(),
            "ema": self._average.state,
            "optimizer": self._optimizer.state_dict(),
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
        with fitting():
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
        self._student.load_state_dict(tensors["student"])
        for name, value in tensors["ema"].items():
            self._average.state[name].copy_(value)
        restore_optimizer(self._optimizer, self._student, tensors["optimizer"])
        self._state = dict(tensors["objective"])
        self.profile.restore(tensors["profile"], self._device)
