"""What the teacher thinks of the very codes that were sampled: log p(y_t), and its mean per row.

Comes after the teacher. `signal.token_logprob` is the quantity that policy-gradient objectives and
the speculative gate read; a learner that finds it in the record saves its own pass through the
teacher's head. `sequence.teacher_logprob` is its mean over the slots after the prefix (all slots of
a data row), in nats: a score of whole sequences.

Shape letters: B sequences, L slots, N tokens of a chunk, V codes.
"""

from dataclasses import replace

import pyarrow as pa
import torch
from torch import Tensor

from common.artifacts.model_file import ModelFile
from common.config.quantities import Tokens
from common.device import place
from common.errors import InputError
from common.exchange.signal import SignalConfig
from common.exchange.trajectory import TrajectoryBatch, from_arrow, to_arrow
from teacher_server.scorer import OwnActorsConfig, ScorerFiles


class Config(OwnActorsConfig):
    token_columns = ("token_logprob",)
    sequence_columns = ("teacher_logprob",)
    reads_entropy = False

    chunk_tokens: Tokens = 4096
    """Tokens whose logits exist at a time."""

    def build(self, files: ScorerFiles) -> "TokenLogprob":
        return TokenLogprob(self, files.config.signal, files.teacher, files.config.device)


class TokenLogprob:
    """Holds the teacher's output head, no more of it."""

    def __init__(
        self, config: Config, signal: SignalConfig, teacher: ModelFile, device: str
    ) -> None:
        self._config = config
        self._signal = signal
        self._device = place(device)
        self._head = teacher.head().to(self._device).requires_grad_(False)

    def score(self, record: pa.RecordBatch) -> pa.RecordBatch:
        """Both columns.

        Raises:
            InputError: the record has no signal of the teacher yet.
        """
        batch = from_arrow(record)
        if "head" not in batch.facts:
            raise InputError(
                "scorers: token_logprob found a record without the teacher's signal; put it after "
                "the table of kind teacher"
            )
        logprob_BL = self._logprob(batch)
        counted_BL = batch.suffix_BL | batch.data_B[:, None]
        total_B = logprob_BL.masked_fill(~counted_BL, 0).double().sum(1)
        mean_B = (total_B / counted_BL.sum(1).clamp_min(1)).float()
        signal = batch.signal | {"token_logprob": logprob_BL}
        sequence = batch.sequence | {"teacher_logprob": mean_B}
        return to_arrow(replace(batch, signal=signal, sequence=sequence))

    @torch.no_grad()
    def _logprob(self, batch: TrajectoryBatch) -> Tensor:
        """log p(y_t) of all slots, on the CPU."""
        column = {name: value.flatten(0, 1) for name, value in batch.signal.items()}
        token_N, found = batch.token_BL.flatten(), []
        for tokens in torch.arange(len(token_N)).split(self._config.chunk_tokens):
            part = {name: value[tokens].to(self._device) for name, value in column.items()}
            logprob_NV = self._signal.logprob(part, self._head).cpu()
            found.append(logprob_NV.gather(-1, token_N[tokens][:, None])[:, 0])
        return torch.cat(found).view_as(batch.token_BL)
