"""Which contexts an objective can learn from, and what it says of others."""

import pytest
from building.objectives import OF_BACKBONES

from common.config.plugins import load_plugin
from common.errors import InputError
from learner.objectives import gkd, mle, sampled_rkl, varkd
from learner.relaxation import RelaxationConfig


@pytest.mark.parametrize(
    ("objective", "shares", "reason"),
    [
        (mle.Config(), {"student": 1.0}, "learns from data or teacher sequences only"),
        (sampled_rkl.Config(), {"data": 1.0, "student": 0.0}, "learns from rollouts only"),
        (varkd.Config(), {"student": 1.0}, "no loss sees single codes"),
        (varkd.Config(data_apply="relax"), {"data": 0.9, "student": 0.1}, "single codes"),
    ],
)
def test_mixtures_that_defeat_an_objective_are_refused(objective, shares, reason):
    with pytest.raises(InputError, match=reason):
        objective.check(shares)


@pytest.mark.parametrize("kind", OF_BACKBONES)
def test_mixtures_that_an_objective_can_use_pass(kind):
    load_plugin("learner.objectives", kind).Config().check({"data": 0.9, "student": 0.1})


@pytest.mark.parametrize(
    "anchored",
    [
        varkd.Config(relaxation=RelaxationConfig(mix=0.9)),
        varkd.Config(relaxation=RelaxationConfig(factor=1)),
        gkd.Config(),
    ],
)
def test_rollouts_alone_are_fine_where_something_sees_single_codes(anchored):
    anchored.check({"data": 0.0, "student": 1.0})
    varkd.Config(data_apply="both", cross_entropy=0.1).check({"data": 0.5, "student": 0.5})
