"""The contract of a scorer: it takes a record and gives it back with columns added.

A run has a chain of them, the tables of [scorers] in order. Each lives in an actor of its own, or
several alike (`replicas`), as the link between what comes before and what comes after; only the
last link hands its records to the buffer (deploy/pipeline.py).

A scorer adds `signal.NAME` columns per token (B, L, ...) or `sequence.NAME` columns per row
(B, ...), and never touches what is there: the learner trains on what the worker sampled.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from threading import Condition
from typing import ClassVar, Protocol

import pyarrow as pa
import torch
from torch import Tensor

from common.artifacts.model_file import ModelFile
from common.config.plugins import PluginConfig
from common.errors import InputError
from common.exchange.buffer import TrajectorySink
from common.exchange.condition import ConditionTables
from common.exchange.schedule import Schedule
from common.perceptual.classifier import Classifier, frozen_classifier
from common.perceptual.lpips import Lpips, LpipsConfig
from common.tokenization.tokenizer import Tokenizer, load_tokenizer
from teacher_server.busy_share import BusyShare
from teacher_server.replicas import ReplicasConfig
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


class TargetImages(Protocol):
    """The images behind a run's image indices (common/data/training_images.py)."""

    def pixels(self, index_B: Tensor) -> Tensor:
        """uint8 pixel_BCHW of conditions by their number."""
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
    classifier: Path | None = None
    """The run's own classifier, which is there where some scorer says that it looks through
    it (`ScorerConfig.networks`)."""
    images: TargetImages | None = None
    """The training images, where some scorer compares with their pixels."""

    def load_tokenizer(self, device: torch.device) -> Tokenizer:
        """The run's tokenizer, frozen, on that device.

        Raises:
            InputError: it is missing or damaged.
        """
        return load_tokenizer(self.teacher.tokenizer).to(device).requires_grad_(False)

    def load_lpips(self, net: LpipsConfig, device: torch.device) -> Lpips:
        """A published network on that device.

        Raises:
            InputError: its files are missing or hold something else.
        """
        return net.load().to(device)

    def load_classifier(self, device: torch.device) -> Classifier:
        """The run's own classifier on that device.

        Raises:
            InputError: there is none.
        """
        if self.classifier is None:
            raise InputError(
                "a scorer looks at images through the run's own classifier, but the run has none; "
                "have the scorer say so in `networks`"
            )
        return frozen_classifier(self.classifier, device)


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

    needs_teacher: ClassVar[bool] = True
    """Whether it may look at what the teacher says of a record; where neither a scorer nor the
    objective does, records do not pass the teacher."""

    reads_target: ClassVar[bool] = False
    """Whether it compares rows with the data sequences that they began as (`target_token`)."""

    @property
    def reads_pixels(self) -> bool:
        """Whether it compares them with the training images, `ScorerFiles.images`."""
        return False

    def networks(self) -> frozenset[str]:
        """Names of networks that the run must have first: `classifier`, its own one, or none."""
        return frozenset()

    def adds_to_tokens(self) -> tuple[str, ...]:
        """`token_columns`, or what of them these settings ask for."""
        return self.token_columns

    @abstractmethod
    def build(self, files: ScorerFiles) -> Scorer:
        """The scorer, in the process in which it works.

        Raises:
            InputError: a file does not hold what the config asks for.
        """

    @abstractmethod
    def actors(self, teacher: TeacherConfig) -> ReplicasConfig:
        """Its processes on the cluster."""


class OwnActorsConfig(ScorerConfig, ReplicasConfig):
    """A scorer whose table says itself how many processes it has."""

    def actors(self, teacher: TeacherConfig) -> ReplicasConfig:
        return self


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

    def __init__(
        self, config: ScorerConfig, files: ScorerFiles, *, onward: Onward, name: str | None = None
    ) -> None:
        """Records say by `name` how busy it is; by default they do not, or the scorer itself says
        so as the teacher does."""
        self._scorer = config.build(files)
        self._onward = onward
        self._name = name
        self._load = BusyShare()
        self._changed = Condition()
        self._begun = self._done = 0
        self._is_stopped = False

    def score(self, record: pa.RecordBatch) -> bool:
        """As `Onward.score`."""
        with self._changed:
            self._begun += 1
        try:
            return self._onward.score(self._scored(record))
        finally:
            with self._changed:
                self._done += 1
                self._changed.notify_all()

    def run(self) -> int:
        """Be there until told to stop, and until what was begun is done; how many records that
        were."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopped and self._done == self._begun)
            return self._done

    def stop(self) -> None:
        """Let `run` return."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def _scored(self, record: pa.RecordBatch) -> pa.RecordBatch:
        if self._name is None:
            return self._scorer.score(record)
        with self._load:
            scored = self._scorer.score(record)
        facts = {**scored.schema.metadata, f"busy.{self._name}".encode(): self._load.spelt()}
        return scored.replace_schema_metadata(facts)


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
