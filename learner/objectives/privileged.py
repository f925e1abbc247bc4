"""On-policy distillation from a teacher that knows more (arXiv 2605.19354; docs/method.md,
"Privileged teachers"): the class, or a part of the image.

The student must hit, with what it knows, an average over what it does not. Forward KL ends at the
average of the teacher's distributions; reverse KL at their normalised geometric mean, which loses
every code that some secret rules out. The paper's reverse KL suits reconstruction with the
likeliest code; for generation it collapses what the secret would have decided.

The loss does not go to 0: its floor is what the secret tells of the next code, in nats. A student
below it knows the secret.
"""

from typing import ClassVar

from learner.divergence import Divergence
from learner.objectives import gkd


class Config(gkd.Config):
    needs_secret: ClassVar[bool] = True

    divergence: Divergence = Divergence(name="fkl")
    """fkl by default: it ends at the teacher's distributions averaged over what the student does
    not know. rkl ends at their geometric mean, from which a code vanishes that any secret rules
    out; jsd lies between."""
