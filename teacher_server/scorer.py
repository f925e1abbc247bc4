"""The contract of a scorer: it takes a record and gives it back with columns added.

A run has a chain of them, the tables of [scorers] in order. Each lives in an actor of its own, or
several alike (`replicas`), as the link between what comes before and what comes after; only the
last link hands its records to the buffer (deploy/pipeline.py).

A scorer adds `signal.NAME` columns per token (B, L, ...) or `sequence.NAME` columns per row
(B, ...), and never touches what is there: the learner trains on what the worker sampled.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

import pyarrow as pa

from common.artifacts.model_file import ModelFile
from common.config.plugins import PluginConfig
from common.config.quantities import Cpus, Gpus, Processes
from common.exchange.buffer import TrajectorySink
from common.exchange.condition import ConditionTables
from common.exchange.schedule import Schedule
from teacher_server.teacher import TeacherConfig

PUT_SECONDS = 5.0


class Scorer(Protocol):
    """Adds what it knows to a record; called by many threads at a time."""

    def score(self, record: pa.RecordBatch) -> pa.RecordBatch:
        """The record with this scorer's columns, its rows as they were and in their order.

        A record may come twice, when whoever sent it lost the answer: the same record gets the
        same columns.

        Raises:
            InputError: something of the user's does not fit; the run ends with the sentence.
            Diverged: a number is not finite.
        """
        ...


@dataclass(frozen=True, slots=True)
class ScorerFiles:
    """What scorers may be made of; travels to their processes."""

    config: TeacherConfig
    """The [teacher] section: signal, guidance, device."""
    teacher: ModelFile
    """The teacher's file; it knows the run's tokenizer file too."""
    ordered: bool
    """Whether numbers must not depend on which requests come together."""
    conditions: ConditionTables | None = None
    """All of the run's, by default the classes; scorers are on the teacher's side."""
    entropy: bool = True
    """Whether anybody reads the teacher's `signal.entropy`, which takes a pass through its head."""


@dataclass(frozen=True, slots=True)
class ScorerActors:
    """How many processes a scorer has, and what each reserves."""

    replicas: int
    cpus: float
    gpus: float


class ScorerConfig(PluginConfig, ABC):
    """One table of [scorers].

    What it adds beside the teacher's signal is declared, so that a plan can give an objective
    columns to read.
    """

    token_columns: ClassVar[tuple[str, ...]] = ()
    """Names of its `signal` columns of one float per token, (B, L)."""
    sequence_columns: ClassVar[tuple[str, ...]] = ()
    """Names of its `sequence` columns of one float per row, (B,)."""
    reads_entropy: ClassVar[bool] = True
    """Whether it may look at the teacher's `signal.entropy`; where neither a scorer nor the
    objective does, the teacher saves a pass through its head."""

    reads_target: ClassVar[bool] = False
    """Whether it compares rows with the data sequences that they began as (`target_token`)."""

    @abstractmethod
    def build(self, files: ScorerFiles) -> Scorer:
        """The scorer, in the process in which it works.

        Raises:
            InputError: a file does not hold what the config asks for.
        """

    @abstractmethod
    def actors(self, teacher: TeacherConfig) -> ScorerActors:
        """Its processes on the cluster."""


class OwnActorsConfig(ScorerConfig):
    """A scorer whose table says itself how many processes it has."""

    replicas: Processes = 1
    """Actors of this scorer."""
    cpus: Cpus = 1
    """Logical CPUs reserved per replica on the cluster."""
    gpus: Gpus = 0
    """GPUs (or a fraction) reserved per replica."""

    def actors(self, teacher: TeacherConfig) -> ScorerActors:
        return ScorerActors(self.replicas, self.cpus, self.gpus)


class Onward(Protocol):
    """Where a worker or a link sends its records."""

    def score(self, record: pa.RecordBatch) -> bool:
        """True once the buffer has the record with all columns.

        Raises:
            Closed: the run was ended meanwhile.
            InputError, Diverged: of any scorer down the chain.
        """
        ...


class ScorerLink:
    """One scorer in its process, and what comes after it."""

    def __init__(self, config: ScorerConfig, files: ScorerFiles, *, onward: Onward) -> None:
        self._scorer = config.build(files)
        self._onward = onward

    def score(self, record: pa.RecordBatch) -> bool:
        """As `Onward.score`."""
        return self._onward.score(self._scorer.score(record))


class Bypass:
    """A worker's way in where the learner asks the scorers in some steps only."""

    def __init__(self, schedule: Schedule, scorers: Onward, buffer: Onward) -> None:
        self._schedule = schedule
        self._scorers, self._buffer = scorers, buffer

    def score(self, record: pa.RecordBatch) -> bool:
        """As `Onward.score`, through the scorers or past them."""
        is_scored = self._schedule.is_scored(int(record.schema.metadata[b"lease"]))
        return (self._scorers if is_scored else self._buffer).score(record)


class Delivery:
    """The end of the chain: the only one that knows the buffer."""

    def __init__(self, buffer: TrajectorySink) -> None:
        self._buffer = buffer

    def score(self, record: pa.RecordBatch) -> bool:
        """Store the record, as `Onward.score`."""
        while not self._buffer.put(record, PUT_SECONDS):
            pass  # backpressure; `put` raises when the run is over
        return True
