"""Training of a tokenizer by reconstruction, in one process.

Loss: mean squared error of images in [-1, 1] (what PSNR measures), plus the codebook term, plus
the commitment term with its weight (VQ-VAE, arXiv 1711.00937, equation 3). A code that no vector
chose for some steps is moved to a vector of the latest batch (random restarts, as in Jukebox,
arXiv 2005.00341).

Shape letters: N images, B batch, A views of an image, C channels, H height, W width, S side of a
view, L slots, V codes, D code width, n = B * L latent vectors, k dead codes.
"""

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from common.config import Config
from common.conv_tokenizer import normalise
from common.crops import VIEWS, Crops, cut_views
from common.device import place
from common.finite import NAMES, largest, require_finite
from common.ledger import derive_seed
from common.metrics import MetricsSink
from common.quantities import Batch, Steps
from common.tokenizer import Reconstruction, Tokenizer, TrainableTokenizer
from learner.optimizer import OptimizerConfig, build_adamw

MEASURED = 2000
"""Images, taken evenly, that the facts of a training are measured on."""
KEYS = "pretrain.tokenizer"
"""Section of the config, for messages."""


class TokenizerTrainingConfig(Config):
    steps: Steps = 2000
    """Optimiser steps."""
    batch_size: Batch = 64
    """Images per step; each is one of the views that tokens.crops names, drawn at random."""
    revive_after: Steps = 20
    """Steps without use after which a code moves to a latent vector of the batch."""
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=2e-3, weight_decay=0.0, warmup=50, schedule="cosine"
    )
    """AdamW, schedule, clipping; no average of the weights is kept."""


class Revival:
    """Counts the steps that each code went unused, and moves dead codes."""

    def __init__(self, vocab_size: int, after: int, generator: torch.Generator) -> None:
        self._idle_V = torch.zeros(vocab_size, dtype=torch.long)
        self._after = after
        self._generator = generator
        self.moved = 0

    @property
    def usage(self) -> float:
        """Share of codes that were used lately."""
        return float((self._idle_V < self._after).double().mean())

    def observe(self, token_BL: Tensor) -> None:
        self._idle_V += 1
        self._idle_V[token_BL.flatten().cpu()] = 0

    def move(self, tokenizer: TrainableTokenizer, vector_nD: Tensor) -> None:
        """Put every dead code where a random vector of the batch is."""
        token_k = (self._idle_V >= self._after).nonzero().flatten()
        row_k = torch.randint(len(vector_nD), (len(token_k),), generator=self._generator)
        if len(token_k):
            device = vector_nD.device
            tokenizer.place_codes(token_k.to(device), vector_nD[row_k.to(device)])
            self._idle_V[token_k] = 0
            self.moved += len(token_k)


def image_batches(
    pixel_NCHW: Tensor, size: int, crops: Crops, batch_size: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Endless uint8 pixel_BCSS; every epoch visits each image once, in one of its views."""
    rest_n = torch.empty(0, dtype=torch.long)
    while True:
        while len(rest_n) < batch_size:
            rest_n = torch.cat([rest_n, torch.randperm(len(pixel_NCHW), generator=generator)])
        row_B, rest_n = rest_n[:batch_size], rest_n[batch_size:]
        view_B = torch.randint(VIEWS[crops], (batch_size,), generator=generator)
        yield cut_views(pixel_NCHW[row_B], crops, size)[torch.arange(batch_size), view_B]


def objective(found: Reconstruction, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and the reconstruction's squared error in it."""
    error = F.mse_loss(found.image_BCHW, image_BCHW)
    return error + found.codebook_loss + found.commitment_loss, error.detach()


def train_tokenizer(
    tokenizer: TrainableTokenizer,
    batches: Iterator[Tensor],
    config: TokenizerTrainingConfig,
    *,
    seed: int,
    device: str,
    metrics: MetricsSink,
) -> dict[str, Any]:
    """Train in place on uint8 batches; returns {"steps", "loss", "seconds", "codes_moved"}.

    Raises:
        Diverged: loss, gradient or weights are not finite.
    """
    started = time.monotonic()
    where = place(device)
    tokenizer.to(where).train()
    optimizer = build_adamw(config.optimizer, tokenizer)
    generator = torch.Generator().manual_seed(derive_seed(seed, "revival"))
    revival = Revival(tokenizer.shape.vocab_size, config.revive_after, generator)
    final = 0.0
    for step in range(1, config.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = config.optimizer.rate(step - 1, config.steps)
        image_BCHW = normalise(next(batches).to(where))
        found = tokenizer.reconstruct(image_BCHW)
        loss, error = objective(found, image_BCHW)
        final, norm = _update(tokenizer, optimizer, loss, config.optimizer, step)
        revival.observe(found.token_BL)
        revival.move(tokenizer, found.vector_nD)
        psnr = 10 * math.log10(4 / max(float(error), 1e-9))  # pixels span 2
        row = {"loss": final, "psnr": psnr, "grad_norm": norm, "usage": revival.usage}
        metrics.post({"step": step, "time": time.time(), **row})
    tokenizer.cpu().eval()
    return {
        "steps": config.steps,
        "loss": final,
        "seconds": time.monotonic() - started,
        "codes_moved": revival.moved,
    }


def _update(
    tokenizer: TrainableTokenizer,
    optimizer: torch.optim.AdamW,
    loss: Tensor,
    config: OptimizerConfig,
    step: int,
) -> tuple[float, float]:
    """One clipped step down the gradient of `loss`; returns loss and norm of the gradient."""
    optimizer.zero_grad()
    loss.backward()
    parameters = list(tokenizer.parameters())
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip)
    optimizer.step()
    found = torch.stack([loss.detach(), norm, largest(parameters)]).tolist()
    require_finite(step, dict(zip(NAMES, found, strict=True)), config.remedy(KEYS))
    return found[0], found[1]


@torch.no_grad()
def measure(tokenizer: Tokenizer, pixel_NCHW: Tensor, batch_size: int = 256) -> dict[str, float]:
    """Of uint8 images: {"psnr"} in dB, {"usage"} as the share of codes that occur, {"perplexity"}
    as the exponential of the entropy of how often each does."""
    error, count_V = 0.0, torch.zeros(tokenizer.shape.vocab_size, dtype=torch.double)
    for part in pixel_NCHW.split(batch_size):
        token_BL = tokenizer.encode(part)
        count_V += torch.bincount(token_BL.flatten(), minlength=len(count_V))
        error += float((tokenizer.decode(token_BL).double() - part.double()).square().sum())
    share_V = count_V / count_V.sum()
    return {
        "psnr": 10 * math.log10(255.0**2 * pixel_NCHW.numel() / max(error, 1e-9)),
        "usage": float((count_V > 0).double().mean()),
        "perplexity": float(torch.exp(-torch.special.xlogy(share_V, share_V).sum())),
    }
