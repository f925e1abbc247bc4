"""Training of a tokenizer by reconstruction, in one process.

Loss: mean squared error of images in [-1, 1] (what PSNR measures), plus the codebook term, plus
the commitment term with its weight (VQ-VAE, arXiv 1711.00937, equation 3). A code that no vector
chose for some steps is moved to a vector of the latest batch (random restarts, as in Jukebox,
arXiv 2005.00341).

Shape letters: N images, B batch, A views of an image, C channels, H height, W width, S side of a
view, L slots, V codes, D code width, n = B * L latent vectors, k dead codes.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from common.config.quantities import Batch, Steps, StepsOrNever
from common.config.schema import Config
from common.data.crops import VIEWS, Crops, cut_views
from common.device import place
from common.finite import NAMES, largest, require_finite
from common.randomness import derive_seed
from common.tokenization.conv_autoencoder import normalise
from common.tokenization.tokenizer import Reconstruction, Tokenizer, TrainableTokenizer
from learner.optimizer import OptimizerConfig, build_adamw
from learner.restoring import fitting, require_like, restore_optimizer

MEASURED = 2000
"""Images, taken evenly, that the facts of a training are measured on."""
KEYS = "pretrain.tokenizer"
"""Section of the config, for messages."""


class TokenizerTrainingConfig(Config):
    renamed: ClassVar[Mapping[str, str]] = {"snapshot_every": "checkpoint_every"}

    steps: Steps = 2000
    """Optimiser steps."""
    batch_size: Batch = 64
    """Images per step; each is one of the views that tokens.crops names, drawn at random."""
    revive_after: Steps = 20
    """Steps without use after which a code moves to a latent vector of the batch."""
    checkpoint_every: StepsOrNever = 500
    """Steps between snapshots that `--resume` goes on from; 0 keeps one only where the training is
    stopped by Ctrl-C or SIGTERM."""
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=2e-3, weight_decay=0.0, warmup=50, schedule="cosine"
    )
    """AdamW, schedule, clipping; no average of the weights is kept."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the tokenizer is trained."""


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

    def state(self) -> dict[str, Any]:
        """Counts and draws, for a snapshot."""
        generator = self._generator.get_state()
        return {"idle_V": self._idle_V.clone(), "moved": self.moved, "generator": generator}

    def restore(self, state: dict[str, Any]) -> None:
        self._idle_V, self.moved = state["idle_V"], state["moved"]
        self._generator.set_state(state["generator"])


class ImageBatches:
    """Endless uint8 pixel_BCSS; every epoch visits each image once, in one of its views."""

    def __init__(
        self,
        pixel_NCHW: Tensor,
        size: int,
        crops: Crops,
        batch_size: int,
        generator: torch.Generator,
    ) -> None:
        self._pixel_NCHW = pixel_NCHW
        self._size = size
        self._crops: Crops = crops
        self._batch_size = batch_size
        self._generator = generator
        self._rest_n = torch.empty(0, dtype=torch.long)

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        count = self._batch_size
        while len(self._rest_n) < count:
            epoch_N = torch.randperm(len(self._pixel_NCHW), generator=self._generator)
            self._rest_n = torch.cat([self._rest_n, epoch_N])
        row_B, self._rest_n = self._rest_n[:count], self._rest_n[count:]
        view_B = torch.randint(VIEWS[self._crops], (count,), generator=self._generator)
        views = cut_views(self._pixel_NCHW[row_B], self._crops, self._size)
        return views[torch.arange(count), view_B]

    def state(self) -> dict[str, Tensor]:
        """What the next batches depend on."""
        return {"rest_n": self._rest_n.clone(), "generator": self._generator.get_state()}

    def restore(self, state: dict[str, Tensor]) -> None:
        self._rest_n = state["rest_n"]
        self._generator.set_state(state["generator"])


def objective(found: Reconstruction, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and the reconstruction's squared error in it."""
    error = F.mse_loss(found.image_BCHW, image_BCHW)
    return error + found.codebook_loss + found.commitment_loss, error.detach()


class TokenizerTraining:
    """Trains a tokenizer in place on uint8 batches; a `learner.resumable.Training`."""

    def __init__(
        self,
        tokenizer: TrainableTokenizer,
        batches: ImageBatches,
        config: TokenizerTrainingConfig,
        *,
        seed: int,
        device: str,
    ) -> None:
        self._device = place(device)
        self._tokenizer = tokenizer.to(self._device).train()
        self._batches = batches
        self._config = config
        self._trained = {n: p for n, p in tokenizer.named_parameters() if p.requires_grad}
        self._optimizer = build_adamw(config.optimizer, self._trained)
        generator = torch.Generator().manual_seed(derive_seed(seed, "revival"))
        self.revival = Revival(tokenizer.shape.vocab_size, config.revive_after, generator)
        self.steps_done = 0

    def step(self) -> dict[str, float]:
        """One update, then dead codes are moved; {"loss", "psnr", "usage", "grad_norm", "lr"}.

        Raises:
            Diverged: loss, gradient or weights are not finite.
        """
        rate = self._config.optimizer.rate(self.steps_done, self._config.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        image_BCHW = normalise(next(self._batches).to(self._device))
        found = self._tokenizer.reconstruct(image_BCHW)
        loss, error = objective(found, image_BCHW)
        final, norm = self._update(loss)
        self.revival.observe(found.token_BL)
        self.revival.move(self._tokenizer, found.vector_nD)
        self.steps_done += 1
        psnr = 10 * math.log10(4 / max(float(error), 1e-9))  # pixels span 2
        row = {"loss": final, "psnr": psnr, "usage": self.revival.usage}
        return row | {"grad_norm": norm, "lr": rate}

    def _update(self, loss: Tensor) -> tuple[float, float]:
        """One clipped step down the gradient of `loss`; returns loss and norm of the gradient."""
        self._optimizer.zero_grad()
        loss.backward()
        parameters = list(self._tokenizer.parameters())
        norm = torch.nn.utils.clip_grad_norm_(parameters, self._config.optimizer.max_grad_norm)
        self._optimizer.step()
        found = torch.stack([loss.detach(), norm, largest(parameters)]).tolist()
        remedy = self._config.optimizer.remedy(KEYS)
        require_finite(self.steps_done + 1, dict(zip(NAMES, found, strict=True)), remedy)
        return found[0], found[1]

    def snapshot(self) -> dict[str, Any]:
        return {
            "tokenizer": self._tokenizer.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "revival": self.revival.state(),
            "batches": self._batches.state(),
        }

    def restore(self, tensors: dict[str, Any], step: int) -> None:
        """Go on after `step`, with the batches and the draws that come then.

        Raises:
            InputError: the snapshot is of another tokenizer.
        """
        with fitting():
            require_like(tensors["tokenizer"], self._tokenizer.state_dict(), "tokenizer")
            self._tokenizer.load_state_dict(tensors["tokenizer"])
            restore_optimizer(self._optimizer, self._trained, tensors["optimizer"])
            self.revival.restore(tensors["revival"])
            self._batches.restore(tensors["batches"])
        self.steps_done = step


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
