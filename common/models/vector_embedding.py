"""What a raster transformer reads vectors with, in the place of its table of tokens (Distilled
Decoding 2, arXiv 2510.21003, appendix E.4; docs/one_step.md, "Networks").

Shape letters: V codes, D code width, C width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHARPNESS = 4.0
"""Standard deviation of what the hidden units read, of vectors as long as a code: enough for their
bends to lie among the codes."""
RIDGE = 1e-4
"""Of the mean square of a hidden unit, added where the last layer is fitted: with less, what is far
from all codes (noise) is embedded as something huge."""


class VectorEmbedding(nn.Module):
    """A perceptron with one hidden layer of the model's width, `second(silu(first(vector)))`."""

    def __init__(self, code_VD: Tensor, width: int) -> None:
        """`code_VD` says how long vectors are; nothing of it is kept."""
        super().__init__()
        self.first = nn.Linear(code_VD.shape[1], width)
        self.second = nn.Linear(width, width)
        with torch.no_grad():
            length = code_VD.square().sum(-1).mean().sqrt().to(self.first.weight.device)
            self.first.weight.normal_().mul_(SHARPNESS / length)
            self.first.bias.uniform_(-SHARPNESS, SHARPNESS)
        nn.init.normal_(self.second.weight, std=0.02)
        nn.init.zeros_(self.second.bias)

    def forward(self, vector_D: Tensor) -> Tensor:
        """(..., C) of vectors (..., D)."""
        return self.second(F.silu(self.first(vector_D.to(self.first.weight.dtype))))

    def fitted(self, code_VD: Tensor, table_VC: Tensor) -> dict[str, Tensor]:
        """Entries of the state with which codes are embedded as the table embeds their tokens, as
        well as the hidden layer, left as it is, allows: least squares in closed form, in float64.

        With twice as many hidden units as codes about 1 % of the table's variance is left over
        (docs/one_step.md, "Networks").
        """
        hidden_VH = F.silu(
            code_VD.double() @ self.first.weight.double().T + self.first.bias.double()
        )
        hidden_VH = torch.cat([hidden_VH, torch.ones_like(hidden_VH[:, :1])], dim=1)
        square_HH = hidden_VH.T @ hidden_VH
        square_HH.diagonal().add_(RIDGE * square_HH.diagonal().mean())
        found_HC = torch.linalg.solve(square_HH, hidden_VH.T @ table_VC.to(hidden_VH))
        state = {name: value.detach() for name, value in self.state_dict().items()}
        fitted = {"second.weight": found_HC[:-1].T, "second.bias": found_HC[-1]}
        return state | {name: value.to(state[name]) for name, value in fitted.items()}
