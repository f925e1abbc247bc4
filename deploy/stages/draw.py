"""Images drawn from a stored model, decoded by the run's tokenizer."""

from collections.abc import Iterator

from torch import Tensor

from common.device import place
from common.exchange.condition import Conditions
from common.flow.laws import FlowCodes
from common.models.backbone import Backbone, BackboneConfig
from common.models.distilled_decoding import DistilledDecoder
from common.models.velocity_model import VelocityModel, VelocityModelConfig
from common.spec import require_same_spec
from common.tokenization.tokenizer import Tokenizer, load_tokenizer
from deploy.config import RunConfig
from deploy.run_folder.workspace import AnyModelFile, Workspace
from rollout.evaluation.metrics import image_seeds, sample_batches
from rollout.evaluation.one_pass import Between, Ending, Passes, vector_batches
from rollout.sampler import SamplingConfig

Drawn = Backbone | DistilledDecoder | VelocityModel
"""What images can be drawn from."""


def draw_batches(
    model: Drawn,
    tokenizer: Tokenizer,
    label_N: Tensor,
    *,
    sampling: SamplingConfig,
    batch_size: int,
    seed: int,
    size: int | None = None,
    conditions: Conditions | None = None,
    passes: Passes | None = None,
) -> Iterator[Tensor]:
    """Sample and decode, at the side `size` if given: uint8 pixel_BCHW on the CPU, in order.

    Labels are ids of `conditions`, by default the classes. `sampling` is for backbones, `passes`
    (by default one) for one-pass students: what guides and filters is in their weights.
    """
    if not isinstance(model, Backbone):
        seeds = image_seeds(seed, len(label_N))
        vectors = vector_batches(
            model,
            label_N,
            seeds,
            passes=passes or Passes(),
            batch_size=batch_size,
            conditions=conditions,
        )
        return (tokenizer.decode_vectors(vector_BLD, size).cpu() for vector_BLD in vectors)
    drawn = sample_batches(
        model,
        label_N,
        sampling=sampling,
        batch_size=batch_size,
        seed=seed,
        conditions=conditions,
        codes=None if sampling.flow is None else FlowCodes(tokenizer.codebook_VD.float()),
    )
    return (tokenizer.decode(token_BL, size).cpu() for token_BL in drawn)


def teacher_between(
    config: RunConfig, workspace: Workspace, positions: tuple[int, int], device: str
) -> Passes:
    """Two passes with the run's teacher between, which draws by evaluate.sampling."""
    teacher = workspace.model(config, "teacher").load().to(place(device))
    return Passes(between=Between(teacher, config.evaluate.sampling, positions))


def passes_of(config: RunConfig, workspace: Workspace, steps: int, device: str) -> Passes:
    """So many steps of the run's student: its own passes, or one and the teacher's last ones, as
    its kind has them."""
    if steps == 1 or not isinstance(config.models.student, VelocityModelConfig):
        return Passes(steps)
    teacher = workspace.model(config, "teacher").load().to(place(device))
    return Passes(steps, ending=Ending(teacher, config.evaluate.sampling))


def way_names(config: RunConfig) -> tuple[str, ...]:
    """What reports put behind a student's name, for each way in which it draws; the usual one
    first, with nothing."""
    if isinstance(config.models.student, BackboneConfig):
        return ("",)
    settings = config.evaluate
    several = (f"_{steps}_steps" for steps in settings.steps[1:])
    return ("", *several, *(["_inserted"] if settings.inserted is not None else []))


def ways(config: RunConfig, workspace: Workspace, device: str) -> dict[str, Passes]:
    """By such a name: as evaluate.steps and evaluate.inserted have it."""
    inserted, settings = config.evaluate.inserted, config.evaluate
    names = way_names(config)
    found = {
        name: passes_of(config, workspace, steps, device)
        for name, steps in zip(names, settings.steps, strict=False)
    }
    if inserted is not None and len(names) > len(found):
        found[names[-1]] = teacher_between(config, workspace, inserted, device)
    return found


def load_for_sampling(
    file: AnyModelFile, workspace: Workspace, device: str
) -> tuple[Drawn, Tokenizer]:
    """A stored model with the tokenizer that it was trained on.

    Raises:
        InputError: a file is missing, or they speak different tokens.
    """
    tokenizer = load_tokenizer(workspace.existing_tokenizer())
    require_same_spec(
        tokenizer.spec(file.spec.num_classes),
        file.spec,
        us=f"the tokenizer {workspace.tokenizer}",
        them=str(file.path),
    )
    return file.load().to(place(device)), tokenizer.to(place(device))
