"""The convolutional encoder and decoder of VQGAN, as LlamaGen and VAR publish it.

Parameter names are LlamaGen's, so `decoder.conv_blocks.0` is the deepest level; VAR's files are
renamed on reading (docs/backbones.md, "VAR tokenizer").

Shape letters: B batch, C channels, H height, W width, h and w latent sides, S = H * W.
"""

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 32
"""Of every group norm; all channel counts are multiples of it."""


@dataclass(frozen=True)
class ConvSizes:
    """What the shapes of both halves follow from."""

    base: int
    ch_mult: tuple[int, ...]
    res_blocks: int
    z_channels: int
    fused_qkv: bool = False
    """Whether attention has one projection for queries, keys and values (VAR) or three."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every level, from full resolution to the deepest."""
        return tuple(self.base * factor for factor in self.ch_mult)

    @property
    def downsampling(self) -> int:
        """Pixels per latent cell and side."""
        return 2 ** (len(self.ch_mult) - 1)


class ResidualBlock(nn.Module):
    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.norm1 = _norm(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.norm2 = _norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        same = width_in == width
        self.nin_shortcut = nn.Identity() if same else nn.Conv2d(width_in, width, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.conv1(F.silu(self.norm1(x_BCHW)))
        h_BCHW = self.conv2(F.silu(self.norm2(h_BCHW)))
        return self.nin_shortcut(x_BCHW) + h_BCHW


class Attention(nn.Module):
    """Every cell attends to all cells: one head, as wide as the input."""

    def __init__(self, width: int, *, fused_qkv: bool) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.fused_qkv = fused_qkv
        if fused_qkv:
            self.qkv = nn.Conv2d(width, 3 * width, 1)
        else:
            self.q = nn.Conv2d(width, width, 1)
            self.k = nn.Conv2d(width, width, 1)
            self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        normed = self.norm(x_BCHW)
        if self.fused_qkv:
            maps = self.qkv(normed).chunk(3, dim=1)
        else:
            maps = self.q(normed), self.k(normed), self.v(normed)
        query, key, value = (m.flatten(2).transpose(1, 2)[:, None] for m in maps)
        mixed_B1SC = F.scaled_dot_product_attention(query, key, value)  # scale C^-1/2
        return x_BCHW + self.proj_out(mixed_B1SC[:, 0].transpose(1, 2).view_as(x_BCHW))


class Downsample(nn.Module):
    """Halve the side; zeros are padded on the right and at the bottom only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the side by repeating cells, then convolve."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention where `attend`, then the way
    to the next resolution."""

    def __init__(
        self,
        width_in: int,
        width: int,
        blocks: int,
        *,
        attend: bool,
        fused_qkv: bool,
        downsample: bool = False,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        self.res = nn.ModuleList(
            ResidualBlock(width if j else width_in, width) for j in range(blocks)
        )
        self.attn = nn.ModuleList(
            Attention(width, fused_qkv=fused_qkv) if attend else nn.Identity()
            for _ in range(blocks)
        )
        self.downsample = Downsample(width) if downsample else nn.Identity()
        self.upsample = Upsample(width) if upsample else nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for block, attention in zip(self.res, self.attn, strict=True):
            x_BCHW = attention(block(x_BCHW))
        return self.upsample(self.downsample(x_BCHW))


class Encoder(nn.Module):
    """image_BCHW in [-1, 1] to a map (B, z_channels, h, w)."""

    def __init__(self, sizes: ConvSizes) -> None:
        super().__init__()
        widths, fused = sizes.widths, sizes.fused_qkv
        self.conv_in = nn.Conv2d(3, sizes.base, 3, padding=1)
        self.conv_blocks = nn.Sequential()
        for index, (width_in, width) in enumerate(pairwise((sizes.base, *widths))):
            deepest = index == len(widths) - 1
            self.conv_blocks.append(
                Level(
                    width_in,
                    width,
                    sizes.res_blocks,
                    attend=deepest,
                    fused_qkv=fused,
                    downsample=not deepest,
                )
            )
        self.mid = _middle(widths[-1], fused_qkv=fused)
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], sizes.z_channels, 3, padding=1)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        x_BCHW = self.mid(self.conv_blocks(self.conv_in(image_BCHW)))
        return self.conv_out(F.silu(self.norm_out(x_BCHW)))


class Decoder(nn.Module):
    """A map (B, z_channels, h, w) to image_BCHW, nominally in [-1, 1] but not clamped."""

    def __init__(self, sizes: ConvSizes) -> None:
        super().__init__()
        widths, fused = sizes.widths[::-1], sizes.fused_qkv
        self.conv_in = nn.Conv2d(sizes.z_channels, widths[0], 3, padding=1)
        self.mid = _middle(widths[0], fused_qkv=fused)
        self.conv_blocks = nn.Sequential()
        for index, (width_in, width) in enumerate(pairwise((widths[0], *widths))):
            self.conv_blocks.append(
                Level(
                    width_in,
                    width,
                    sizes.res_blocks + 1,
                    attend=index == 0,
                    fused_qkv=fused,
                    upsample=index < len(widths) - 1,
                )
            )
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, map_BChw: Tensor) -> Tensor:
        x_BCHW = self.conv_blocks(self.mid(self.conv_in(map_BChw)))
        return self.conv_out(F.silu(self.norm_out(x_BCHW)))


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, width, eps=1e-6)


def _middle(width: int, *, fused_qkv: bool) -> nn.Sequential:
    return nn.Sequential(
        ResidualBlock(width, width),
        Attention(width, fused_qkv=fused_qkv),
        ResidualBlock(width, width),
    )
