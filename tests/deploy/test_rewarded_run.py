"""Runs with rewards: from the workers through scorers to the report, and what is refused."""

import pytest
from building.runs import rows_of

from common.errors import InputError
from deploy.stages.distill import distill

JUDGED = (
    "objective.kind=kdrl",
    "objective.rewards.decoded_mse=1",
    "objective.rewards.classifier=0.1",
    "scorers.mse.kind=decoded_mse",
    "scorers.mse.per_token=true",
    "scorers.class.kind=classifier",
    "rollout.group.size=4",
    "learner.max_staleness=0",
    "learner.publish_every=1",
)


def test_rewards_travel_from_scorers_to_the_rows_of_a_run(run_in, quiet):
    """Some steps on policy, data rows among them; the classifier is trained first."""
    config, workspace = run_in(*JUDGED, "learner.steps=3", "learner.ordered=true")
    assert config.rollout.keep_target
    assert not workspace.classifier.exists()
    facts = distill(config, workspace, quiet, local=True)
    assert facts["steps"] == 3
    assert "feature classifier" in facts["perceptual"]
    rows = rows_of(workspace)
    judged = [row for row in rows if "reward/mean" in row]
    assert judged
    for row in judged:
        assert row["reward/decoded_mse"] < 0
        assert row["reward/classifier"] < 0
        wanted = row["reward/decoded_mse"] + 0.1 * row["reward/classifier"]
        assert row["reward/mean"] == pytest.approx(wanted)
        assert row["reward/group_std"] > 0
        assert row["reward/groups_left_out"] == 0
        assert row["kdrl/beta"] == config.objective.beta
    again, other = run_in(*JUDGED, "learner.steps=3", "learner.ordered=true", name="again")
    distill(again, other, quiet, local=True)
    assert [row["loss"] for row in rows_of(other)] == [row["loss"] for row in rows]


REFUSED = {
    r"no scorer writes that .*\[scorers.teacher_logprob\] with kind = .token_logprob": (
        "objective.kind=kdrl",
        "rollout.group.size=4",
    ),
    "objective.rewards has beauty.*choose one of classifier, decoded_mse, perceptual": (
        "objective.kind=kdrl",
        "objective.rewards={beauty=1.0}",
    ),
    "rollout.group.size is 1; set it to 4 or 8": (*JUDGED, "rollout.group.size=1"),
    "multiple of rollout.group.size 3": (*JUDGED, "rollout.group.size=3"),
    "several tables that write decoded_mse": (*JUDGED, "scorers.twice.kind=decoded_mse"),
    "begin with nothing; raise it": (
        *JUDGED,
        "contexts.sources.student.min_prefix=0",
        "contexts.sources.student.max_prefix=0",
    ),
    "rollout.sampling changes that distribution": (*JUDGED, "rollout.sampling.top_k=5"),
    "objective.kind=kdrl corrects by the probability": (
        *JUDGED,
        "contexts.sources.teacher.ratio=1",
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_rewards_cannot_do_is_refused_before_anything_starts(run_in, message):
    with pytest.raises(InputError, match=message):
        run_in(*REFUSED[message])
