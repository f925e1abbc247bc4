"""Runs that reward draws of one pass: who is asked, what is trained, what is refused."""

import pytest
from building.objectives import DRAWN
from building.runs import go, rows_of

from common.errors import InputError

VAPI = ("objective.kind=vapi", *DRAWN)
STEPS = ("learner.steps=2", "learner.ordered=true", "rollout.group.size=4")


def test_the_teacher_is_asked_only_for_its_own_form(run_in):
    """By the command's own path; the same draws and rewards, another regulariser."""
    losses = {}
    for regulariser in ("ce", "teacher"):
        how = (f"objective.regulariser={regulariser}", "scorers.decoded_mse.per_token=true")
        run = run_in(*VAPI, *STEPS, *how, "objective.rewards={decoded_mse=1}", name=regulariser)
        assert ("teacher" in run[0].scoring) == (regulariser == "teacher")
        go(run)
        rows = rows_of(run[1])
        assert [row["seconds/teacher"] > 0 for row in rows] == [regulariser == "teacher"] * 2
        assert all(row["reward/decoded_mse"] < 0 for row in rows)
        assert rows[0]["clipped/parallel"] == 0
        losses[regulariser] = [row["loss"] for row in rows]
    assert losses["ce"] != losses["teacher"]


def test_a_scorer_that_reads_the_teacher_keeps_it_in_the_chain(run_in):
    config, _ = run_in(*VAPI, "scorers.opinion.kind=token_logprob")
    assert next(iter(config.scoring.values())).kind == "teacher"
    assert config.rollout.keep_target


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["contexts.sources.student.ratio=1"], "learns from draws of one pass, but contexts.sou"),
        (["rollout.group.size=1"], r"rollout\.group\.size is 1; set it to 4 or 8"),
        (["rollout.sampling.temperature=0.9"], "rollout.sampling changes that distribution"),
        (["objective.rewards={lost=1}"], "objective.rewards has lost, but no scorer writes that"),
    ],
)
def test_what_draws_cannot_do_is_refused(run_in, overrides, message):
    with pytest.raises(InputError, match=message):
        run_in(*VAPI, *overrides)
