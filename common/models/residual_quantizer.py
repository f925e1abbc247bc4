"""VAR's multi-scale residual quantiser: one latent image as token maps of growing side.

Shared by the tokenizers that produce such tokens and by the transformer that reads them
(arXiv 2404.02905; docs/backbones.md, "VAR tokenizer"). It lives in buffers, never trained here, and
stays float32 whatever the module that holds it is cast to: its argmins are exact, its inputs are
not rounded.

Shape letters: B sequences, L slots, n slots of one scale, D code width, V codes, H latent side,
P shared convolutions, K scales.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import InputError

RESIDUAL_WEIGHT = 0.5
"""Share of the convolution in h = (1 - r) h + r conv(h)."""


def phi_index(scales: int, phis: int = 4) -> tuple[int, ...]:
    """Which of the shared convolutions each scale uses.

    The nearest tick to k / (K - 1), in float64 as published: for K = 10 scales 2 and 7 are exact
    ties that rounding decides, giving 0, 0, 1, 1, 1, 2, 2, 3, 3, 3 (docs/backbones.md, "VAR
    tokenizer").
    """
    margin = 1 / 3 / phis if phis == 4 else 1 / 2 / phis
    ticks = torch.from_numpy(_linspace(margin, 1 - margin, phis))
    at = [k / (scales - 1) if scales > 1 else 0.0 for k in range(scales)]
    return tuple(int((ticks - position).abs().argmin()) for position in at)


def _linspace(start: float, stop: float, count: int) -> Any:
    import numpy as np

    return np.linspace(start, stop, count)  # not torch's: the ties hang on the last bit


class ResidualQuantizer(nn.Module):
    """Codebook, convolutions and the running sum ("canvas") of decoded scales."""

    code_VD: Tensor
    phi_weight: Tensor
    phi_bias: Tensor

    def __init__(
        self, vocab_size: int, code_width: int, scales: Sequence[int], *, phis: int = 4
    ) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.starts = tuple(sum(side**2 for side in self.scales[:k]) for k in range(len(scales)))
        self._phi = phi_index(len(self.scales), phis)
        self.register_buffer("code_VD", torch.zeros(vocab_size, code_width))
        # Until real ones are loaded, the identity: phi(h) = h.
        identity = torch.zeros(phis, code_width, code_width, 3, 3)
        identity[:, torch.arange(code_width), torch.arange(code_width), 1, 1] = 1
        self.register_buffer("phi_weight", identity)
        self.register_buffer("phi_bias", torch.zeros(phis, code_width))

    def take_over(self, lent: Mapping[str, nn.Module], family: str) -> None:
        """Become the tokenizer's, which it lends under the name "quantizer".

        Raises:
            InputError: it lends none, or one of other sizes than `family` expects.
        """
        ours = {name: value.shape for name, value in self.state_dict().items()}
        theirs = lent["quantizer"].state_dict() if "quantizer" in lent else {}
        found = {name: value.shape for name, value in theirs.items()}
        if ours != found:
            raise InputError(
                f"{family} expects a residual quantiser with {_sizes(ours)}, but the tokenizer has "
                f"{_sizes(found)}; set models.*.code_width and phis to the tokenizer's, or use "
                "the tokenizer that the model was trained on"
            )
        self.load_state_dict(theirs, assign=True)

    @property
    def side(self) -> int:
        """Side of the latent image, and of the last token map."""
        return self.scales[-1]

    @property
    def length(self) -> int:
        return self.starts[-1] + self.side**2

    def slots(self, scale: int) -> slice:
        start = self.starts[scale]
        return slice(start, start + self.scales[scale] ** 2)

    def blank(self, batch: int) -> Tensor:
        """A canvas_BDHH before the first scale."""
        code = self.code_VD
        return code.new_zeros(batch, code.shape[1], self.side, self.side)

    def contribution(self, token_Bn: Tensor, scale: int) -> Tensor:
        """What one token map adds to the canvas: embed, enlarge (bicubic), convolve."""
        return self.contribution_of(F.embedding(token_Bn, self.code_VD), scale)

    def contribution_of(self, vector_BnD: Tensor, scale: int) -> Tensor:
        """The same for vectors in the place of codes, differentiable in them."""
        side = self.scales[scale]
        h_BDhw = vector_BnD.transpose(1, 2).unflatten(2, (side, side))
        if side != self.side:
            h_BDhw = F.interpolate(h_BDhw, size=(self.side, self.side), mode="bicubic")
        phi = self._phi[scale]
        smooth = F.conv2d(h_BDhw, self.phi_weight[phi], self.phi_bias[phi], padding=1)
        return h_BDhw * (1 - RESIDUAL_WEIGHT) + smooth * RESIDUAL_WEIGHT

    def shrink(self, canvas_BDHH: Tensor, scale: int) -> Tensor:
        """Area-downsample to the side of `scale`; the last scale is the canvas itself."""
        side = self.scales[scale]
        if side == self.side:
            return canvas_BDHH
        return F.interpolate(canvas_BDHH, size=(side, side), mode="area")

    def quantise(
        self,
        latent_BDHH: Tensor,
        nearest: Callable[[Tensor], Tensor] | None = None,
        watch: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """token_BL of a latent image, all scales concatenated coarse to fine.

        `nearest` maps vectors (n, D) to codes (n,), by default by Euclidean distance; `watch` sees
        the canvas after every scale.
        """
        nearest = nearest or self.nearest
        rest, canvas = latent_BDHH.clone(), self.blank(len(latent_BDHH))
        tokens = []
        for scale in range(len(self.scales)):
            vector_BnD = self.shrink(rest, scale).flatten(2).transpose(1, 2)
            token_Bn = nearest(vector_BnD.flatten(0, 1)).view(vector_BnD.shape[:2])
            added = self.contribution(token_Bn, scale)
            canvas, rest = canvas + added, rest - added
            tokens.append(token_Bn)
            if watch is not None:
                watch(canvas)
        return torch.cat(tokens, dim=1)

    def requantise(self, latent_BDHH: Tensor, token_BL: Tensor) -> Tensor:
        """For every scale the codes of what the scales before it, in `token_BL`, lack of a latent
        image: what would put right whatever is wrong with them."""
        canvas, found = self.blank(len(token_BL)), []
        for scale in range(len(self.scales)):
            vector_BnD = self.shrink(latent_BDHH - canvas, scale).flatten(2).transpose(1, 2)
            found.append(self.nearest(vector_BnD.flatten(0, 1)).view(vector_BnD.shape[:2]))
            canvas = canvas + self.contribution(token_BL[:, self.slots(scale)], scale)
        return torch.cat(found, dim=1)

    def nearest(self, vector_nD: Tensor) -> Tensor:
        """The code with the smallest squared distance to each vector (not normalised)."""
        distance_nV = vector_nD.square().sum(1, keepdim=True) + self.code_VD.square().sum(1)
        return distance_nV.addmm_(vector_nD, self.code_VD.T, alpha=-2, beta=1).argmin(1)

    def accumulate(self, token_BL: Tensor) -> Tensor:
        """The final canvas_BDHH of whole sequences: what the decoder turns into an image."""
        canvas = self.blank(len(token_BL))
        for scale in range(len(self.scales)):
            canvas = canvas + self.contribution(token_BL[:, self.slots(scale)], scale)
        return canvas

    def accumulate_vectors(self, vector_BLD: Tensor) -> Tensor:
        """The final canvas_BDHH of vectors in the place of codes, differentiable in them."""
        canvas = self.blank(len(vector_BLD))
        for scale in range(len(self.scales)):
            canvas = canvas + self.contribution_of(vector_BLD[:, self.slots(scale)], scale)
        return canvas

    def inputs(self, token_BL: Tensor) -> Tensor:
        """Teacher-forcing inputs (B, L - n of the first scale, D): for every scale after the first,
        the canvas of all earlier ones, downsampled to its side."""
        return self.inputs_to(token_BL, len(self.scales) - 1)[0]

    def inputs_of(self, vector_BLD: Tensor) -> Tensor:
        """As `inputs`, of vectors in the place of codes; differentiable in them."""
        return self._painted(vector_BLD, len(self.scales) - 1)[0]

    def inputs_to(self, token_BL: Tensor, scale: int) -> tuple[Tensor, Tensor]:
        """The inputs of scales 1 to `scale`, and the canvas after the scales before it."""
        return self._painted(F.embedding(token_BL, self.code_VD), scale)

    def _painted(self, vector_BLD: Tensor, scale: int) -> tuple[Tensor, Tensor]:
        canvas = self.blank(len(vector_BLD))
        parts = [canvas.new_zeros(len(vector_BLD), 0, vector_BLD.shape[2])]
        for earlier in range(scale):
            canvas = canvas + self.contribution_of(vector_BLD[:, self.slots(earlier)], earlier)
            parts.append(self.shrink(canvas, earlier + 1).flatten(2).transpose(1, 2))
        return torch.cat(parts, dim=1), canvas

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Follow the holder to another device, but never to another precision."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype == tensor.dtype:
                return moved
            return tensor.to(moved.device)

        return super()._apply(move, recurse)


def _sizes(shapes: Mapping[str, torch.Size]) -> str:
    if not shapes:
        return "none"
    codes, phis = shapes["code_VD"], shapes["phi_weight"]
    return f"{codes[0]} codes of width {codes[1]} and {phis[0]} convolutions"
