"""DistiLLM (arXiv 2402.03898, section 3.1): skewed KL on every context.

skl is KL(p || a p + (1 - a) q), srkl is KL(q || (1 - a) p + a q), with a = 0.1. The share of
student samples is `contexts.sources`.
"""

from learner.divergence import Divergence
from learner.objectives import gkd


class Config(gkd.Config):
    divergence: Divergence = Divergence(name="skl", alpha=0.1)
    """skl or srkl, with its skew alpha."""
