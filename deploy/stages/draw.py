"""Images drawn from a stored backbone, decoded by the run's tokenizer."""

from collections.abc import Iterator

from torch import Tensor

from common.artifacts.model_file import ModelFile
from common.device import place
from common.exchange.condition import Conditions
from common.flow.laws import FlowCodes
from common.models.backbone import Backbone
from common.spec import require_same_spec
from common.tokenization.tokenizer import Tokenizer, load_tokenizer
from deploy.run_folder.workspace import Workspace
from rollout.evaluation.metrics import sample_batches
from rollout.sampler import SamplingConfig


def draw_batches(
    backbone: Backbone,
    tokenizer: Tokenizer,
    label_N: Tensor,
    *,
    sampling: SamplingConfig,
    batch_size: int,
    seed: int,
    size: int | None = None,
    conditions: Conditions | None = None,
) -> Iterator[Tensor]:
    """Sample and decode, at the side `size` if given: uint8 pixel_BCHW on the CPU, in order.

    Labels are ids of `conditions`, by default the classes.
    """
    drawn = sample_batches(
        backbone,
        label_N,
        sampling=sampling,
        batch_size=batch_size,
        seed=seed,
        conditions=conditions,
        codes=None if sampling.flow is None else FlowCodes(tokenizer.codebook_VD.float()),
    )
    return (tokenizer.decode(token_BL, size).cpu() for token_BL in drawn)


def load_for_sampling(
    file: ModelFile, workspace: Workspace, device: str
) -> tuple[Backbone, Tokenizer]:
    """A stored backbone with the tokenizer that it was trained on.

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
