"""Samples models, always with the same labels and noise, and compares them with real images.

Shape letters: N images, C channels, H height, W width, K classes with real images.
"""

from collections.abc import Callable

import torch
from rich.console import Console
from torch import Tensor

from common.exchange.condition import Role
from common.images.contents import Reading
from common.images.opening import ImagesConfig, open_images
from common.memory import require_memory
from common.randomness import derive_seed
from common.tokenization.tokenizer import Tokenizer
from deploy.config import RunConfig
from deploy.console.progress import Bar
from deploy.report.grids import spread
from deploy.run_folder.workspace import Workspace
from deploy.stages.draw import Drawn, draw_batches
from deploy.stages.reference_features import ReferenceFeatures, extractor_facts
from rollout.evaluation.metrics import balanced_labels, left_out, measure
from rollout.evaluation.one_pass import Passes
from rollout.sampler import SamplingConfig

READ_TOGETHER = 256
"""Real images that are read between two signs of life."""


class Progress:
    """Counts images on a bar whose last step is the comparison itself."""

    def __init__(self, bar: Bar, total: int) -> None:
        self._bar, self._total, self._done = bar, total, 0

    def __call__(self, images: int = 1) -> None:
        before, self._done = self._done, min(self._done + images, self._total - 1)
        self._bar.show(self._done, {})
        if before < self._done == self._total - 1:
            self._bar.say("comparing features")


class Judge:
    """Labels and noise depend on the run's seed alone: what is measured differs in its weights.

    The evaluation seed is a stream of its own: no training sample is ever drawn from it.
    """

    def __init__(self, config: RunConfig, workspace: Workspace) -> None:
        """Open the real images; nothing is read yet.

        Raises:
            InputError: there are too few images for a FID, or more than fit into memory.
        """
        self.settings = settings = config.evaluate
        images = compared_images(config)
        self.reference = open_images(images, settings.reference)
        everything = len(self.reference)
        self.reals = min(everything, settings.reference_images or everything)
        self.left_out = left_out(settings.samples, self.reals)
        require_memory(
            (settings.samples + self.reals) * images.channels * images.size**2,
            f"evaluate.samples {settings.samples:,} beside {self.reals:,} real images",
            "lower evaluate.samples or evaluate.reference_images",
        )
        self.class_K = self.reference.label_N.unique()
        self.label_N = balanced_labels(settings.samples, self.class_K)
        self._seed = derive_seed(config.seed, "evaluate")
        self._conditions = config.conditions
        by_classifier = settings.features == "classifier"
        self._classifier = workspace.classifier if by_classifier else None
        self._real_NCHW: Tensor | None = None
        self._features_file = workspace.reference_features
        self._features: ReferenceFeatures | None = None
        self._has_features = False

    def read(self, target: Console) -> None:
        """The real images, taken evenly, and their features if an evaluation kept them; the
        classifier is there."""
        chosen = self.reference.subset(spread(len(self.reference), self.reals))
        with Bar(target, "real images", self.reals) as bar:
            batches, done, reading = [], 0, Reading()
            for pixel_BCHW in chosen.batches(READ_TOGETHER, reading):
                batches.append(pixel_BCHW)
                done += len(pixel_BCHW)
                bar.show(done, {})
        self._real_NCHW = torch.cat(batches)
        extractor = extractor_facts(self.settings, self._classifier)
        images = chosen.identity(reading.hashes)
        self._features = ReferenceFeatures(self._features_file, images, extractor)
        self._has_features = self._features.fetch()

    def steps(self) -> int:
        """What `Progress` counts: samples drawn, images with features, the comparison."""
        embeds_reals = not self._has_features
        return 2 * len(self.label_N) + (self.reals if embeds_reals else 0) + 1

    def draw(
        self,
        model: Drawn,
        tokenizer: Tokenizer,
        sampling: SamplingConfig,
        seen: Callable[[int], None] = lambda images: None,
        *,
        passes: Passes | None = None,
        role: Role = "student",
    ) -> Tensor:
        """Samples as uint8 pixel_NCHW at the side of the real images; those of a one-pass student
        by `passes`, by default as many as the first of evaluate.steps. A teacher is given what it
        alone may know."""
        pixel_NCHW: Tensor | None = None
        done = 0
        for pixel_BCHW in draw_batches(
            model,
            tokenizer,
            self.label_N,
            sampling=sampling,
            batch_size=self.settings.batch_size,
            seed=self._seed,
            size=self.settings.size,
            conditions=self._conditions.of(role, model.spec.num_classes),
            passes=passes or Passes(self.settings.steps[0]),
        ):
            if pixel_NCHW is None:  # at once: a list of batches would take the room twice
                pixel_NCHW = pixel_BCHW.new_empty(len(self.label_N), *pixel_BCHW.shape[1:])
            pixel_NCHW[done : done + len(pixel_BCHW)] = pixel_BCHW
            done += len(pixel_BCHW)
            seen(len(pixel_BCHW))
        assert pixel_NCHW is not None, "evaluate.samples is positive"
        return pixel_NCHW

    def compare(
        self, pixel_NCHW: Tensor, seen: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Their metrics, but for `left_out`; the real images' features are computed once."""
        assert self._real_NCHW is not None, "read comes first"
        assert self._features is not None, "read comes first"
        found = measure(
            self.settings,
            pixel_NCHW,
            self._real_NCHW,
            classifier=self._classifier,
            cache=self._features.folder,
            seen=seen,
        )
        self._features.keep()
        self._has_features = True
        return found


def compared_images(config: RunConfig) -> ImagesConfig:
    """The images at the side at which they are compared."""
    side = config.evaluate.size or config.images.size
    return config.images.model_copy(update={"size": side})
