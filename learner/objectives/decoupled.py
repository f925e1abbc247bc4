"""KL direction apart from prefix source (arXiv 2605.16826; docs/method.md, "Baselines", a
third-party note).

L = s KL(q || p) + (1 - s) KL(p || q) on prefixes of data, of the student, or of both. The four
objectives of the paper are s = 0 or 1 on `contexts.sources` of data or of the student alone; s in
between is its KL mixing, and `horizon` its entropy-gated length curriculum. With
`divergence.name="rkl"` and a horizon without an entropy condition it is Fast OPD
(arXiv 2602.15260).

Gradients: KL(p || q) has -E_{v~p}[grad log q(v)], KL(q || p) has
E_{v~q}[(log q(v) - log p(v)) grad log q(v)]. Losses are per token and the horizon moves by sums
over all ranks, so both are exact under any split.
"""

from collections.abc import Mapping

from common.exchange.trajectory import TrajectoryBatch
from learner.divergence import Divergence
from learner.horizon import HorizonConfig
from learner.objectives import gkd
from learner.process_group import ProcessGroup
from learner.token_weights import ObjectiveState, TokenWeights


class Config(gkd.Config):
    divergence: Divergence = Divergence(name="mix", rkl_share=0.25)
    """mix with the reverse KL's share; long horizons need mostly forward KL (our default)."""
    horizon: HorizonConfig = HorizonConfig()
    """How far into rollouts the loss looks."""

    def reads_entropy(self) -> bool:
        return False

    def token_weights(
        self, batch: TrajectoryBatch, state: ObjectiveState, ranks: ProcessGroup
    ) -> TokenWeights:
        support_BL = self.support(batch)
        inside_BL = self.horizon.slots(batch.rollout_BL, state) | ~batch.on_policy_B[:, None]
        counted_BL = support_BL & inside_BL
        return TokenWeights(counted_BL.float(), counted_BL, counted_BL)

    def update_state(self, state: ObjectiveState, mean: Mapping[str, float]) -> None:
        # Where no token of a step is watched nothing is known, so a condition is not met.
        self.horizon.advance(state, mean.get("student_entropy", 0.0))
