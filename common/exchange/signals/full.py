"""The teacher's whole distribution, float32: for tests, and for vocabularies of toy size."""

from collections.abc import Mapping

from torch import Tensor, nn

from common.exchange.entropy import entropies_of
from common.exchange.signal import SignalConfig


class Config(SignalConfig):
    def encode(self, hidden_BLC: Tensor, head: nn.Linear) -> dict[str, Tensor]:
        return {"logprob": head(hidden_BLC).float().log_softmax(-1)}

    def logprob(self, column: Mapping[str, Tensor], head: nn.Linear) -> Tensor:
        return column["logprob"]

    def entropy(self, column: Mapping[str, Tensor], hidden_BLC: Tensor, head: nn.Linear) -> Tensor:
        """Of the distributions that are there already: no second pass through the head."""
        return entropies_of(column["logprob"])

    def bytes_per_token(self, width: int, vocab_size: int) -> int:
        return 4 * vocab_size
