"""[evaluate]: how many images of every model are drawn, how, and by which features judged."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from common.config.quantities import Batch, Count, CountOrNone, Side, several
from common.config.schema import Config, UserPath
from rollout.evaluation.features import ClassifierConfig
from rollout.sampler import SamplingConfig


class EvaluateConfig(Config):
    samples: Count = 2000
    """Images sampled per model; classes with real images in equal shares."""
    batch_size: Batch = 250
    """Images decoded together."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where samples are drawn and decoded, and where the classifier is trained."""
    sampling: SamplingConfig = SamplingConfig()
    """How evaluation samples are drawn."""
    steps: Annotated[tuple[Count, ...], Field(min_length=1), BeforeValidator(several)] = (1,)
    """Passes of a one-pass student, from the first of its positions on; of several numbers, such as
    [1, 2], it is measured with each, and grids and sheets have the first."""
    inserted: tuple[Count, Count] | None = None
    """Two passes of a one-pass student between which the teacher draws itself, by
    evaluate.sampling: from the first of these positions up to the second, at which the student was
    trained (Distilled Decoding 1, algorithm 4). It is measured so beside `steps`."""
    size: Side | None = None
    """Side at which images are compared and stored as .npz; samples are resized to it before they
    are rounded (bicubic, no antialias), as LlamaGen's 384 px models are judged at 256. By default
    images.size."""
    features: Literal["classifier", "inception"] = "classifier"
    """classifier: trained on the training images; inception: torch-fidelity's own."""
    classifier: ClassifierConfig = ClassifierConfig()
    """The classifier behind `features = "classifier"`."""
    inception_weights: UserPath | None = None
    """torch-fidelity's Inception weights; without a path it downloads them itself."""
    likelihood_samples: CountOrNone = 500
    """Sequences of the student and of the teacher by which the two are compared in nats per token,
    without features of images; 0 leaves that out."""
    reference: Literal["train", "test"] = "train"
    """Split of real images to compare with (the ImageNet convention is train)."""
    reference_images: CountOrNone = 10000
    """At most this many reference images; 0 uses all."""

    @model_validator(mode="after")
    def _likelihoods_have_errors(self) -> Self:
        if self.likelihood_samples == 1:
            raise ValueError(
                "likelihood_samples is 1, of which there is no standard error; give it 2 or more, "
                "or 0 to leave likelihoods out"
            )
        return self
