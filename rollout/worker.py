"""The rollout role: take a lease, sample it with current weights, hand it to the scorers.

A worker may hold a teacher as well, to sample the rows of SeqKD; `Scorers` is the chain of scorers.

Shape letters: B sequences, L slots.
"""

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Protocol

import pyarrow as pa
import torch

from common.artifacts.model_file import ModelFile
from common.data.tokens import TokenDataset
from common.device import place, precision
from common.errors import Closed
from common.exchange.condition import ClassConditions, ConditionTables
from common.exchange.schedule import Lease, Schedule
from common.exchange.trajectory import TrajectoryBatch, to_arrow
from common.exchange.weights import WeightSource
from common.models.backbone import Backbone, BackboneConfig
from common.models.generator import Generator, GeneratorConfig
from common.models.plan import DecodePlan, natural_plan
from common.randomness import Draws
from common.tokenization.codes import flow_codes
from common.tokenization.tokenizer import load_tokenizer
from rollout.completion import AnySampler, complete
from rollout.config import RolloutConfig
from rollout.context import ContextsConfig, RolloutRequest, assign
from rollout.forced import ForcedContext, ForcedPass
from rollout.model_draft import Draft
from rollout.one_pass_sampler import OnePassSampler
from rollout.prefix_sampler import PrefixSampler
from rollout.sampler import noise
from rollout.student_weights import StudentWeights, Withdrawn

POLL_SECONDS = 1.0


class Scorers(Protocol):
    """The chain that ends in the buffer, as its way in."""

    def score(self, record: pa.RecordBatch) -> bool:
        """True once the buffer has the record with all columns.

        Raises:
            Closed: the run was ended meanwhile.
            InputError, Diverged: of any scorer.
        """
        ...


class LeaseSource(Protocol):
    """The part of the ledger that workers talk to."""

    def lease(self, worker: str, timeout: float) -> Lease | None:
        """Images to sample; None when there are none within `timeout` seconds.

        Raises:
            Closed: the run is over.
        """
        ...

    def wants(self, number: int, generation: int) -> bool:
        """Whether that lease is still somebody's: its learner did not begin again meanwhile."""
        ...


class RolloutWorker:
    """Samples leases until told to stop or until the ledger is closed."""

    def __init__(
        self,
        config: RolloutConfig,
        contexts: ContextsConfig,
        student: BackboneConfig | GeneratorConfig | None,
        *,
        name: str,
        schedule: Schedule,
        draws: Draws,
        data: TokenDataset,
        scorers: Scorers,
        weights: WeightSource,
        ledger: LeaseSource,
        teacher_file: ModelFile | None = None,
        generated: TokenDataset | None = None,
        conditions: ConditionTables | None = None,
        tokenizer: Path | None = None,
    ) -> None:
        """`student` is None where no context samples it: no weights are fetched then. Rows are in
        the tokenizer's order unless it decodes. `teacher_file` and `generated` are for contexts
        that sample or read the teacher's; `conditions` are those of the student's side, by default
        the classes; `tokenizer` has the codes of a one-pass student."""
        self._config = config
        self._contexts = contexts
        self._device, dtype = place(config.device), precision(config.dtype)
        self._student = _built(student, data, tokenizer)
        if self._student is not None:
            self._student.to(self._device, dtype).eval()
        self._name = name
        self._schedule = schedule
        self._draws = draws
        self._data = data
        self._scorers = scorers
        self._ledger = ledger
        self._generated = generated
        self._conditions = conditions or ConditionTables(ClassConditions(data.spec.num_classes))
        self._samplers = self._build_samplers(teacher_file, dtype)
        self._loaded = StudentWeights(self._student, weights, name)
        self._stopped = Event()

    def _build_samplers(
        self, teacher_file: ModelFile | None, dtype: torch.dtype
    ) -> dict[str, AnySampler]:
        """By the way that they make rows (`ContextConfig.way`)."""
        table = self._conditions.shared
        found: dict[str, AnySampler] = {}
        if isinstance(self._student, Generator):
            found["student"] = OnePassSampler(self._student, table)
        elif self._student is not None:
            found["student"] = PrefixSampler(self._student, self._config.sampling, table)
            forced = ForcedPass(self._student, self._config.sampling, table)
            for source in self._contexts.used:
                if isinstance(source, ForcedContext):
                    found[source.way] = source.sampler_of(forced)
        sampling = self._contexts.teacher_sampling
        if sampling is None:
            return found
        if teacher_file is None:
            raise ValueError("contexts sample from the teacher, but no file of it was given")
        teacher = teacher_file.load(dtype).to(self._device).requires_grad_(False)
        codes = None if sampling.flow is None else flow_codes(teacher_file.tokenizer)
        ahead, student = max(source.guesses for source in self._contexts.used), self._student
        draft = Draft(student, ahead) if ahead and isinstance(student, Backbone) else None
        found["teacher"] = PrefixSampler(teacher, sampling, table, codes, draft)
        return found

    def run(self) -> int:
        """Sample while earlier leases are being scored; returns the number of leases done.

        What is being scored when told to stop is waited for: it counts, or says what is wrong.

        Raises:
            InputError, Diverged: of this worker, or of a scorer it sent to.
        """
        done = 0
        with ThreadPoolExecutor(max(1, self._config.in_flight)) as pool:
            pending: deque[Future[bool]] = deque()
            while not self._stopped.is_set():
                record = self._next_record(POLL_SECONDS)
                if record is not None:
                    pending.append(pool.submit(self._scorers.score, record))
                while pending and (record is None or len(pending) > self._config.in_flight):
                    done += self._settle(pending.popleft())
            return done + sum(self._settle(scored) for scored in pending)

    def produce(self) -> bool:
        """Sample and score one lease here and now; False when there was none to have."""
        record = self._next_record(timeout=0.0)
        return record is not None and self._scorers.score(record)

    def stop(self) -> None:
        self._stopped.set()

    def _next_record(self, timeout: float) -> pa.RecordBatch | None:
        try:
            lease = self._ledger.lease(self._name, timeout)
            return None if lease is None else self.sample(lease)
        except Withdrawn:
            return None
        except Closed:
            self._stopped.set()
            return None

    def _wants(self, lease: Lease) -> bool:
        return self._ledger.wants(lease.number, lease.generation)

    def _settle(self, scored: "Future[bool]") -> bool:
        try:
            return scored.result()
        except Closed:
            self._stopped.set()
            return False

    def sample(self, lease: Lease) -> pa.RecordBatch:
        """One unscored record, stamped with the version that really sampled it.

        Raises:
            Diverged: a model's logits are not finite; the message says whose, and at which step.
            Withdrawn: nobody wants the lease any more.
        """
        started = time.perf_counter()
        self._loaded.load(lease, partial(self._wants, lease))
        work = self._assignment(lease)
        seeds = [self._draws.noise_seed(index) for index in lease.indices]
        # A group shares its order, so that one prefix is the same cells for all of it.
        conditions = [self._schedule.condition(index) for index in lease.indices]
        order_seeds = [self._draws.noise_seed(condition) for condition in conditions]
        plan = self._plan(order_seeds)
        done = complete(self._samplers, work, seeds, order_seeds, plan, self._diverged)
        facts = self._facts(lease, time.perf_counter() - started) | done.facts
        batch = TrajectoryBatch(
            spec=self._data.spec,
            id_B=work.id_B,
            version_B=torch.full_like(work.id_B, self._loaded.version),
            label_B=work.label_B,
            teacher_condition_B=self._conditions.teacher_ids(work.label_B),
            context=work.context,
            policy=work.policy,
            law=work.law,
            prefix_B=work.prefix_B,
            plan=replace(plan, history_B=done.history_B),
            token_BL=done.token_BL,
            logprob_BL=done.logprob_BL,
            input_token_BL=done.input_token_BL,
            target_token_BL=plan.to_slots(work.cell_BL) if self._config.keep_target else None,
            seed_B=done.seed_B,
            vector_BLD=done.vector_BLD,
            noise_BL=noise(seeds, self._data.spec.length) if self._config.keep_noise else None,
            facts=facts,
        )
        return to_arrow(self._grouped(batch, lease))

    def _plan(self, order_seeds: list[int]) -> DecodePlan:
        if not isinstance(self._student, Backbone):
            return natural_plan(len(order_seeds), self._data.spec)
        return self._student.plan(order_seeds, self._config.sampling.decoding)

    def _facts(self, lease: Lease, seconds: float) -> dict[str, str]:
        facts = {
            "lease": str(lease.number),
            "generation": str(lease.generation),
            "worker": self._name,
            "rollout_seconds": f"{seconds:.6f}",
        }
        if lease.late is not None:
            facts["late"] = lease.late
        if (conditions := len(self._conditions.shared)) != self._data.spec.num_classes + 1:
            facts["conditions"] = str(conditions)
        return facts

    def _grouped(self, batch: TrajectoryBatch, lease: Lease) -> TrajectoryBatch:
        """With the columns that say which rows are of one condition, where there are several."""
        size = self._schedule.group_size
        if size == 1:
            return batch
        group_B = torch.tensor([self._schedule.condition(index) for index in lease.indices])
        member_B = torch.tensor([self._schedule.member(index) for index in lease.indices])
        facts = batch.facts | {"group_size": str(size)}
        return replace(batch, group_B=group_B, member_B=member_B, facts=facts)

    def _diverged(self, way: str) -> str:
        if way == "teacher":
            return (
                "the teacher's log-probabilities are not finite while it is sampled; check "
                "teacher.weights, or set rollout.dtype=float32"
            )
        numbers = "code vectors" if isinstance(self._student, Generator) else "log-probabilities"
        return (
            f"step {self._loaded.version}: the student's {numbers} are not finite while it is "
            "sampled; lower learner.optimizer.learning_rate or learner.optimizer.max_grad_norm, or "
            "give it a longer warmup"
        )

    def _assignment(self, lease: Lease) -> RolloutRequest:
        return assign(
            self._contexts,
            lease.indices,
            draws=self._draws,
            schedule=self._schedule,
            data=self._data,
            class_dropout=self._config.class_dropout,
            sampling=self._config.sampling,
            generated=self._generated,
            null=self._conditions.shared.null,
        )


def _built(
    student: BackboneConfig | GeneratorConfig | None, data: TokenDataset, tokenizer: Path | None
) -> Backbone | Generator | None:
    """A student without content, for published weights."""
    if student is None or isinstance(student, BackboneConfig):
        return None if student is None else student.build(data.spec)
    if tokenizer is None:
        raise ValueError("contexts sample a one-pass student, but no tokenizer was given")
    return student.build(data.spec, load_tokenizer(tokenizer).codebook_VD)
