"""What an objective may be built of besides its config: each thing is loaded when it is asked for.

A config names what it wants (`ObjectiveConfig.resources`); whoever builds the learner knows the
files and gives a loader for every name (deploy/stages/learner_rank.py). The dry run gives loaders
of blank tensors, a test gives what it likes.

Shape letters: B images, L slots, H height, W width, F features, V codes, D code width.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, Protocol, TypedDict, TypeVar, Unpack

import torch
from torch import Tensor, nn

from common.models.velocity_model import VelocityModel
from common.perceptual.lpips import LpipsConfig
from learner.relaxation import ClusterMap, RelaxationConfig

Render = Callable[[Tensor], Tensor]
"""Code vectors vector_BLD of whole sequences, in the tokenizer's order (not the plan's), to
image_BCHW, nominally in [-1, 1] but not clamped; differentiable in the vectors."""
Perceptual = Callable[[Tensor], Tensor]
"""image_BCHW in [-1, 1] to feature_BF, whose squared distance is that of the images; differentiable
in the image, its weights are frozen."""
Moved = TypeVar("Moved", bound="Movable")


class Movable(Protocol):
    """A tensor, a module, a cluster map."""

    def to(self, device: torch.device, /) -> Any: ...


class Loaders(TypedDict, total=False):
    """How to get what an objective may ask for."""

    codebook: Callable[[], Tensor]
    clusters: Callable[[RelaxationConfig], ClusterMap | None]
    teacher_head: Callable[[], nn.Linear]
    render: Callable[[torch.device], Render]
    perceptual: Callable[[torch.device], Perceptual]
    lpips: Callable[[LpipsConfig, torch.device], Perceptual]
    positions: Callable[[], tuple[int, ...]]
    guidance: Callable[[], VelocityModel]


NAMES = frozenset(Loaders.__annotations__)
"""What a config may declare."""


class Resources:
    """Loads on first use, once, onto the learner's device; nothing of it is ever trained."""

    def __init__(self, device: torch.device | None = None, **loaders: Unpack[Loaders]) -> None:
        """`device` is the learner's; by default the CPU."""
        self._device = device or torch.device("cpu")
        self._loaders: Mapping[str, Any] = dict(loaders)

    def only(self, names: Iterable[str]) -> "Resources":
        """Those that a config declared: to ask for another is a mistake in its code."""
        found = Resources(self._device)
        found._loaders = {name: self._loader(name) for name in names}
        return found

    @cached_property
    def codebook_VD(self) -> Tensor:
        """Decoder-side code vectors of the run's tokenizer."""
        return self._moved(self._loader("codebook")())

    @cached_property
    def teacher_head(self) -> nn.Linear:
        """The teacher's output layer, float32: hidden vectors of a record to logits."""
        return self._moved(self._loader("teacher_head")()).requires_grad_(False)

    @cached_property
    def render(self) -> Render:
        """The run's tokenizer decoder, differentiable, with frozen weights."""
        return self._loader("render")(self._device)

    @cached_property
    def perceptual(self) -> Perceptual:
        """The run's feature extractor.

        Raises:
            InputError: it is none that gradients can pass, or was not made yet.
        """
        return self._loader("perceptual")(self._device)

    def lpips(self, config: LpipsConfig) -> Perceptual:
        """The published network of the files that `config` names.

        Raises:
            InputError: one is missing, or something else.
        """
        return self._loader("lpips")(config, self._device)

    @cached_property
    def positions(self) -> tuple[int, ...]:
        """Points of the trajectory that a one-pass student is trained at, as its config has them
        (`DistilledDecoderConfig.positions`)."""
        return self._loader("positions")()

    @cached_property
    def guidance(self) -> VelocityModel:
        """The network that a one-pass generator is trained in turns with; only looked through."""
        return self._moved(self._loader("guidance")())

    def clusters(self, relaxation: RelaxationConfig) -> ClusterMap | None:
        """The run's codebook clusters as `relaxation` wants them; None for factor 1.

        All ranks must ask: rank 0 makes the map, the others wait for it.

        Raises:
            InputError: the codebook does not allow such clusters.
        """
        found = self._loader("clusters")(relaxation)
        return None if found is None else self._moved(found)

    def _loader(self, name: str) -> Callable[..., Any]:
        if name not in self._loaders:
            raise ValueError(
                f"the objective asks for the resource {name!r}, but only "
                f"{sorted(self._loaders)} are given; a config declares what it wants in `resources`"
            )
        return self._loaders[name]

    def _moved(self, found: Moved) -> Moved:
        return found.to(self._device)
