"""What scorers have in common that judge whole rows by one number: rewards.

A reward is one file, in this package's scorers or in those of one's own package: a config that
says what judges, and the columns follow. `sequence.NAME` is the number, the higher the better,
with the file's name as NAME; `sequence.NAME_failed` is 1 where there is none; `signal.NAME`, where
a reward can tell, is every slot's share, which add up to the number. Weights are the learner's
(`objective.rewards`).

Shape letters: B sequences, L slots.
"""

import logging
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import pyarrow as pa
import torch
from torch import Tensor

from common.errors import InputError
from common.exchange.trajectory import FAILURE, TrajectoryBatch, from_arrow, to_arrow
from teacher_server.drawing import Drawing, Target
from teacher_server.scorer import OwnActorsConfig, ScorerFiles

LOG = logging.getLogger(__name__)
WORDS = 300
"""Characters of an exception that go with a record."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One number for each row, and its slots' shares where they are known; not finite: failed."""

    reward_B: Tensor
    share_BL: Tensor | None = None


Judge = Callable[[TrajectoryBatch], Judged]
"""A function of each row alone: what shares a record with it changes nothing."""


class RewardConfig(OwnActorsConfig):
    """One table of [scorers] that judges whole rows."""

    reads_entropy: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        part = cls.__module__.rpartition(".")[2]
        cls.sequence_columns = (part, f"{part}_failed")

    @abstractmethod
    def judge(self, files: ScorerFiles) -> Judge:
        """What judges, in the process in which it works.

        Raises:
            InputError: a file does not hold what the config asks for.
        """

    def build(self, files: ScorerFiles) -> "RewardScorer":
        return RewardScorer(self, self.judge(files))


class ComparedConfig(RewardConfig):
    """A reward by images, of what the row began as."""

    needs_teacher: ClassVar[bool] = False
    reads_target: ClassVar[bool] = True

    target: Target | None = None
    """pixels: the training image itself, so that a row is told what the tokenizer loses as well
    (VA-pi); codes: the image that the tokenizer makes of the data's codes, whose own error is in
    neither then. By default pixels where the run encoded images, and codes where it was given
    codes."""

    def settled(self, *, has_pixels: bool) -> Self:
        """With the default of a run whose tokens were encoded from images, or were not.

        Raises:
            ValueError: it asks for pixels that there are not.
        """
        if self.target == "pixels" and not has_pixels:
            raise ValueError(
                "target is pixels, but the run's tokens came as codes ([tokens] kind), so nobody "
                "knows their images; set target to codes"
            )
        default: Target = "pixels" if has_pixels else "codes"
        return self if self.target else self.model_copy(update={"target": default})

    @property
    def reads_pixels(self) -> bool:
        return self.target == "pixels"

    def drawing(self, files: ScorerFiles) -> Drawing:
        """What draws rows and what they are compared with; raises as `Drawing.of`."""
        return Drawing.of(files, self.target or "codes")


class RewardScorer:
    """Writes what a judge says; what fails costs its rows, and no more."""

    def __init__(self, config: RewardConfig, judge: Judge) -> None:
        self._part, self._judge = config.kind, judge
        self._shares = bool(config.adds_to_tokens())

    @torch.no_grad()
    def score(self, record: pa.RecordBatch) -> pa.RecordBatch:
        """With the columns of the reward.

        Raises:
            InputError: the judge says that something of the user's does not fit.
        """
        batch = from_arrow(record)
        judged, why = self._judged(batch)
        failed_B = ~judged.reward_B.isfinite()
        if judged.share_BL is not None:
            failed_B |= ~judged.share_BL.isfinite().all(1)
        sequence = batch.sequence | {
            self._part: judged.reward_B.float().masked_fill(failed_B, 0),
            f"{self._part}_failed": failed_B.float(),
        }
        if not why and failed_B.any():
            why = f"{int(failed_B.sum())} of {len(batch)} numbers are not finite"
        facts = batch.facts | ({FAILURE + self._part: why} if why else {})
        signal = batch.signal
        if self._shares:
            share_BL = judged.share_BL
            if share_BL is None:
                share_BL = torch.zeros(batch.token_BL.shape)
            share_BL = share_BL.float().masked_fill(failed_B[:, None], 0)
            signal = signal | {self._part: share_BL}
        return to_arrow(replace(batch, signal=signal, sequence=sequence, facts=facts))

    def _judged(self, batch: TrajectoryBatch) -> tuple[Judged, str]:
        """What the judge says; of a record that it cannot judge, that all rows failed, and why."""
        try:
            judged = self._judge(batch)
            if judged.reward_B.shape != (len(batch),):
                raise ValueError(
                    f"gave {list(judged.reward_B.shape)} numbers for {len(batch)} rows"
                )
            return judged, ""
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001 - a fault in somebody's code costs groups alone
            lease = batch.facts.get("lease", "?")
            LOG.warning("reward %s failed for lease %s: %r", self._part, lease, error)
            return Judged(torch.full((len(batch),), torch.nan)), repr(error)[:WORDS]
