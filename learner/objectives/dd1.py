"""Distilled Decoding 1 (arXiv 2412.17153, section 3.3 and appendix C; docs/one_step.md): learn the
map from noise to the whole sequence that the teacher's flow carries it to.

A row is a pair of a noise seed and tokens (`contexts.sources.teacher` with sampling.flow). The
student reads the first slots as data and the original noise behind them, from a position that is
drawn for each row, and is asked for the tokens behind it:

    0.1 CE(logits, tokens) + 1.0 d(decode(vectors), decode(codes of the tokens))

where d is a distance of images after the tokenizer's frozen decoder. Cross-entropy is averaged over
the slots that are noise, which the paper leaves open.

Shape letters: B sequences, L slots, D code width, H height, W width, F features.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor

from common.config.plugins import PluginConfig
from common.config.quantities import Weight
from common.errors import InputError
from common.exchange.provenance import TEACHER, Policy
from common.exchange.trajectory import TrajectoryBatch
from common.models.distilled_decoding import DistilledDecoder, DistilledDecoderConfig
from common.models.generator import gaussian
from common.perceptual.lpips import LpipsConfig
from common.randomness import uniform
from learner.objective import (
    Objective,
    ObjectiveConfig,
    Reading,
    SequenceRows,
    Student,
    TokenChunk,
)
from learner.process_group import ProcessGroup
from learner.resources import Resources
from learner.token_weights import ObjectiveState, TokenWeights


class Config(ObjectiveConfig):
    needs_teacher: ClassVar[bool] = False
    is_scored: ClassVar[bool] = False
    uses_rollouts: ClassVar[bool] = False
    needs_pairs: ClassVar[bool] = True
    students: ClassVar[type[PluginConfig]] = DistilledDecoderConfig

    cross_entropy: Weight = 0.1
    """Weight of the logits' loss."""
    distance: Literal["features", "vectors"] = "features"
    """features: between images, after the tokenizer's decoder: LPIPS where `lpips` names its files,
    else as LPIPS but in the layers of the run's feature classifier. vectors: mean squared
    difference of code vectors, without images."""
    lpips: LpipsConfig | None = None
    """The published network behind `features`, as in the paper."""
    weight: Weight = 1.0
    """Of the distance."""

    def resources(self) -> frozenset[str]:
        names = {"codebook", "positions"}
        if self.distance == "features":
            names |= {"render", "perceptual" if self.lpips is None else "lpips"}
        return frozenset(names)

    @model_validator(mode="after")
    def _lpips_is_of_images(self) -> Self:
        if self.lpips is not None and self.distance != "features":
            raise ValueError(
                f"objective.lpips compares images, but objective.distance is {self.distance}; "
                "leave one of them out"
            )
        return self

    def build(self, resources: Resources) -> Objective:
        return DistilledDecoding(self, resources)

    def uses(self, policy: Policy) -> bool:
        return policy == TEACHER

    def check(self, shares: Mapping[Policy, float]) -> None:
        others = sorted(policy for policy, share in shares.items() if share and policy != TEACHER)
        if others or not shares.get(TEACHER):
            raise InputError(
                "objective.kind=dd1 learns from pairs of noise and the teacher's tokens, but "
                f"contexts.sources has {', '.join(others) or 'none'}; have contexts.sources.teacher"
                " alone, with sampling.flow"
            )


class DistilledDecoding(Objective):
    def __init__(self, config: Config, resources: Resources) -> None:
        self._config = config
        self._codebook_VD, self._positions = resources.codebook_VD, resources.positions
        if config.distance == "features":
            net, self._render = config.lpips, resources.render
            self._perceptual = resources.perceptual if net is None else resources.lpips(net)

    @property
    def config(self) -> Config:
        return self._config

    def token_weights(
        self, batch: TrajectoryBatch, state: ObjectiveState, ranks: ProcessGroup
    ) -> TokenWeights:
        noise_BL = ~self._is_data(batch)
        weight_BL = self._config.cross_entropy * noise_BL.float()
        return TokenWeights(weight_BL, noise_BL, noise_BL)

    def token_loss(self, chunk: TokenChunk) -> Tensor:
        return -chunk.student_token_N

    def read(self, student: Student, condition_B: Tensor, batch: TrajectoryBatch) -> Reading:
        if not isinstance(student, DistilledDecoder):
            raise ValueError(f"objective.kind=dd1 trains no {type(student).__name__}")
        is_data_BL = self._is_data(batch)
        code_BLD = self._codebook_VD[batch.token_BL]
        noise_BLD = self._noise(batch).to(code_BLD)
        vector_BLD = torch.where(is_data_BL[..., None], code_BLD, noise_BLD)
        deep_BLC = student.trunk(condition_B, vector_BLD, is_data_BL)
        vectors = student.embed(deep_BLC, condition_B)
        return Reading(student.normed(deep_BLC, condition_B), {"vector": vectors})

    def sequence_loss(self, rows: SequenceRows) -> Tensor:
        batch, config = rows.batch, self._config
        code_BLD = self._codebook_VD[batch.token_BL]
        is_data_BL1 = self._is_data(batch)[..., None]
        meant_BLD = torch.where(is_data_BL1, code_BLD, rows.beside["vector"])
        if config.distance == "vectors":
            squares_BLD = (meant_BLD - code_BLD).square()
            noise_B = (~is_data_BL1).sum((1, 2)).clamp_min(1)
            return config.weight * squares_BLD.mean(-1).sum(1) / noise_B
        found_BF = self._perceptual(self._render(meant_BLD))
        with torch.no_grad():
            wanted_BF = self._perceptual(self._render(code_BLD))
        return config.weight * (found_BF - wanted_BF).square().sum(1)

    def _is_data(self, batch: TrajectoryBatch) -> Tensor:
        """is_data_BL: a function of the image's id, whoever asks."""
        positions = self._positions
        chosen = [
            positions[int(uniform(0, "dd1 position", image) * len(positions))]
            for image in batch.id_B.tolist()
        ]
        known_B = torch.tensor([batch.spec.slots_before(position) for position in chosen])
        slot_L = torch.arange(batch.spec.length)
        return (slot_L < known_B[:, None]).to(batch.token_BL.device)

    def _noise(self, batch: TrajectoryBatch) -> Tensor:
        """noise_BLD of the rows' seeds."""
        if batch.seed_B is None or bool((batch.seed_B < 0).any()):
            raise InputError(
                "objective.kind=dd1 was given rows without the noise that their tokens come from; "
                "set contexts.sources.teacher.sampling.flow, and make the dataset again with "
                "`varkd generate`"
            )
        return gaussian(batch.seed_B.tolist(), batch.spec.length, self._codebook_VD.shape[1])
