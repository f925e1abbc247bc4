"""What a raster transformer reads code vectors with, in the place of its table of tokens (Distilled
Decoding 2, arXiv 2510.21003, appendix E.4; docs/one_step.md, "Networks").

Shape letters: V codes, D code width, C width, H hidden units; ... leading axes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import InputError
from common.models.code_table import CodeTable

SHARPNESS = 4.0
"""Standard deviation of what the hidden units read, of vectors as long as a code: enough for their
bends to lie among the codes."""
RIDGE = 1e-4
"""Of the mean square of a hidden unit, added where the last layer is fitted: with less, what is far
from all codes (noise) is embedded as something huge."""


class VectorEmbedding(nn.Module):
    """A perceptron with one hidden layer of the model's width; vectors are measured in lengths of
    the codes, which are the tokenizer's."""

    lends = "codes"
    """What a tokenizer lends its codes as."""

    def __init__(self, vocab_size: int, code_width: int, width: int) -> None:
        """Without codes, until `attach` or a file brings them."""
        super().__init__()
        self.codes = CodeTable(torch.zeros(vocab_size, code_width))
        self.first = nn.Linear(code_width, width)
        self.second = nn.Linear(width, width)
        nn.init.normal_(self.first.weight, std=SHARPNESS)
        nn.init.uniform_(self.first.bias, -SHARPNESS, SHARPNESS)
        nn.init.normal_(self.second.weight, std=0.02)
        nn.init.zeros_(self.second.bias)

    def forward(self, token: Tensor) -> Tensor:
        """(..., C) of tokens (...), as a table has it."""
        return self.of(self.codes(token))

    def of(self, vector_D: Tensor) -> Tensor:
        """(..., C) of vectors (..., D), which need not be codes."""
        return self.second(self._hidden(vector_D))

    def _hidden(self, vector_D: Tensor) -> Tensor:
        scaled_D = vector_D.float() / self.codes.length()
        return F.silu(self.first(scaled_D.to(self.first.weight.dtype)))

    def attach(self, lent: Mapping[str, nn.Module]) -> None:
        """Take over a tokenizer's codes.

        Raises:
            InputError: it has none to lend, or of other sizes.
        """
        theirs = lent.get(self.lends)
        found = "none" if not isinstance(theirs, CodeTable) else str(list(theirs.code_VD.shape))
        if not isinstance(theirs, CodeTable) or theirs.code_VD.shape != self.codes.code_VD.shape:
            raise InputError(
                f"the model reads code vectors of shape {list(self.codes.code_VD.shape)}, but the "
                f"tokenizer's are {found}; set models.*.vector_width to the width of its codes"
            )
        self.codes.code_VD = theirs.code_VD.detach().float()

    def adapted(self, state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """A model's state with this in the place of its table of tokens, fitted to it; as it is
        where there is none, or one of another width, which is for others to refuse."""
        found = dict(state)
        table_VC = found.pop(f"{prefix}weight", None)
        if table_VC is not None and table_VC.shape[1] == self.second.out_features:
            fitted = self.fitted(table_VC)
            found |= {f"{prefix}{name}": value for name, value in fitted.items()}
        return found

    @torch.no_grad()
    def fitted(self, table_VC: Tensor) -> dict[str, Tensor]:
        """A state that embeds codes as the table embeds their tokens, as well as the hidden layer,
        left as it is, allows: least squares in closed form, in float64.

        With twice as many hidden units as codes about 1 % of the table's variance is left over
        (docs/one_step.md, "Networks").
        """
        hidden_VH = self._hidden(self.codes.code_VD).double()
        hidden_VH = torch.cat([hidden_VH, torch.ones_like(hidden_VH[:, :1])], dim=1)
        square_HH = hidden_VH.T @ hidden_VH
        square_HH.diagonal().add_(RIDGE * square_HH.diagonal().mean())
        found_HC = torch.linalg.solve(square_HH, hidden_VH.T @ table_VC.to(hidden_VH))
        state = dict(self.state_dict())
        found = {"second.weight": found_HC[:-1].T, "second.bias": found_HC[-1]}
        return state | {name: value.to(state[name]) for name, value in found.items()}
