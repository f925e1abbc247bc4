"""Draw tokens by carrying Gaussian noise along a flow to codes (Distilled Decoding 1, arXiv
2412.17153, section 3.2; docs/one_step.md): the same distribution as drawing by a uniform, up to the
solver's bias, and one token for one noise vector, which is what a one-step student learns.

Shape letters: B sequences, L slots, n slots in the current step, V codes, D code width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from common.flow.laws import FlowCodes
from common.flow.solver import SolverConfig, carry
from common.models.generator import gaussian
from common.models.plan import DecodePlan


@dataclass(frozen=True, slots=True)
class FlowDraw:
    """A `Draw` (rollout/sampler.py) for noise of `slot_noise`."""

    solver: SolverConfig
    codes: FlowCodes

    def __call__(self, logprob_BnV: Tensor, noise_BnD: Tensor) -> Tensor:
        """token_Bn; slots of a step are independent of each other, given the steps before."""
        carried = carry(
            self.solver, self.codes.law(logprob_BnV.flatten(0, 1)), noise_BnD.flatten(0, 1)
        )
        return carried.token_N.view(logprob_BnV.shape[:2])

    def slot_noise(self, seeds: Sequence[int], plan: DecodePlan) -> Tensor:
        """noise_BLD in the order of `plan`, float32, on the CPU. By grid position it is a
        generator's, so that teacher and student read the same vector for the same cell."""
        width = self.codes.code_VD.shape[1]
        noise_BLD = gaussian(seeds, plan.order_BL.shape[1], width)
        return noise_BLD.take_along_dim(plan.order_BL.cpu()[..., None], 1)
