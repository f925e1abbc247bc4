"""How much the decoded image looks like the one that the row began as (`target`).

The reward is minus the distance in the layers of a frozen network: LPIPS (arXiv 1801.03924) where
`lpips` names its files, else the run's own feature classifier, as everywhere in this product. It is
the second part of VA-pi's reward (arXiv 2512.19680); the first is the scorer `decoded_mse`.

Shape letters: B sequences, H height, W width, F features.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from common.exchange.trajectory import TrajectoryBatch
from common.perceptual.lpips import LpipsConfig
from teacher_server.drawing import Drawing
from teacher_server.reward import ComparedConfig, Judge, Judged
from teacher_server.scorer import ScorerFiles

AT_ONCE = 32
"""Images whose layers exist at a time: VGG16 has 110 MB of them for one of 256 pixels."""


class Config(ComparedConfig):
    lpips: LpipsConfig | None = None
    """The published network; without it, the run's own classifier compares."""

    def networks(self) -> frozenset[str]:
        return frozenset() if self.lpips is not None else frozenset({"classifier"})

    def judge(self, files: ScorerFiles) -> Judge:
        drawing, looks = self.drawing(files), self._looks(files)

        def distance(batch: TrajectoryBatch) -> Judged:
            found_BF = looks(drawing.images(batch, batch.token_BL))
            wanted_BF = looks(drawing.targets(batch))
            return Judged(-(found_BF - wanted_BF).square().sum(1))

        return distance

    def _looks(self, files: ScorerFiles) -> Callable[[Tensor], Tensor]:
        """image_BCHW in [-1, 1] on the CPU to feature_BF there."""
        device = Drawing.device_of(files)
        network = (
            files.load_classifier(device).perceptual
            if self.lpips is None
            else files.load_lpips(self.lpips, device)
        )

        def features(image_BCHW: Tensor) -> Tensor:
            parts = image_BCHW.split(AT_ONCE)
            return torch.cat([network(part.to(device)).cpu() for part in parts])

        return features
