"""Runs with rewards: from the workers through scorers to the report, and what is refused."""

import pytest
from building.runs import go, rows_of

from common.data.tokens import load_tokens
from common.errors import InputError
from common.exchange.segments import Segments
from common.exchange.trajectory import from_arrow
from common.images.opening import open_images
from common.tokenization.tokenizer import load_tokenizer
from deploy.report.page import to_markdown
from deploy.report.quality import Quality
from deploy.report.rewards import reward_facts
from deploy.report.summary import summarise
from deploy.stages.distill import distill
from deploy.stages.reward_watch import STEPS, RewardWatch

FEATURES = {"samples": 1, "classes": "1 of 2", "reference": "", "note": "", "batch_size": 1}
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
    steps = "learner.steps=3", "learner.ordered=true"
    config, workspace = run_in(*JUDGED, *steps, "buffer.keep_gb=1")
    assert config.rollout.keep_target
    assert config.scorers["mse"].target == "pixels"
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
    require_pixels_were_compared(config, workspace)
    again, other = run_in(*JUDGED, *steps, name="again")
    distill(again, other, quiet, local=True)
    assert [row["loss"] for row in rows_of(other)] == [row["loss"] for row in rows]


def test_a_constant_reward_is_said_once_a_spell_and_in_the_report(run_in):
    """A weight of 0 makes it so; the reports are the page while it goes on, and that at the end."""
    one = (
        "objective.rewards={decoded_mse=0}",
        "scorers.mse.kind=decoded_mse",
        "rollout.group.size=4",
    )
    config, workspace = run = run_in("objective.kind=kdrl", *one, f"learner.steps={STEPS + 3}")
    facts, said = go(run)
    warning = (
        f"warning: in {STEPS} steps on end all 4 rows of every group had the same reward "
        "(objective.rewards: decoded_mse=0), so nothing is learned"
    )
    assert said.count(warning) == 1
    assert said.count("same reward") == 1
    rows = rows_of(workspace)
    nothing = Quality({"teacher": {"fid": 1.0}}, {}, FEATURES, {}, {}, {}, {}, {"teacher": 1.0})
    found = summarise(config, facts, rows, nothing)
    judged = sum("reward/mean" in row for row in rows)  # not where all rows are data
    assert found["rewards"]["constant_steps"] == found["rewards"]["steps"] == judged
    part = found["rewards"]["parts"]["decoded_mse"]
    assert part < 0
    said = f"| rewards | decoded_mse {part:.4g}; weighted 0 ± 0 within groups"
    alike = f"{said}; all rows of every group alike"
    assert f"{alike} in {judged} of {judged} steps; 0 groups left out" in to_markdown(found)
    assert "groups left out because a reward failed" in (workspace.root / "report.html").read_text()


def test_a_spell_of_constant_rewards_ends_with_a_group_that_differs():
    watch, said = RewardWatch({"kind": 1.0, "near": 0.5}, 8), []
    for step in range(50):
        row = {"reward/constant_groups": 0.75 if step in (STEPS - 2, 30) else 1.0}
        said += [step for _ in watch.hear({} if step % 10 == 5 else row)]  # not judged in 5, 15, ..
    assert said == [19, 41]
    failing = [{"reward/groups_left_out": count} for count in (0.0, 3.0, 5.0)]
    (warning,) = [said for row in failing for said in watch.hear(row)]
    assert warning.startswith("warning: 3 groups were left out, because a reward failed ")
    assert "kind=1, near=0.5" in warning
    assert reward_facts([{"loss": 1.0}], ["kind"]) is None
    nobody = {"reward/groups_left_out": 3.0, "reward/steps_without": 1.0}
    found = reward_facts([nobody], ["kind"])
    assert (found["steps"], found["groups_left_out"], found["parts"]) == (0, 3, {"kind": None})


def require_pixels_were_compared(config, workspace):
    """The image of a row is that whose codes are its target."""
    tokenizer, data = load_tokenizer(workspace.tokenizer), load_tokens(workspace.train_tokens)
    pixel_NCHW, kept = open_images(config.images, "train").pixels(), Segments(workspace.rollouts)
    batch = from_arrow(kept.record(kept.leases[0]))
    same_BN = (batch.plan.to_grid(batch.target_BL)[:, None] == data.token_NAL[:, 0]).all(-1)
    for row, same_N in enumerate(same_BN):
        cell_1L = batch.plan.to_grid(batch.token_BL)[row : row + 1]
        drawn = tokenizer.image(cell_1L).clamp(-1, 1)
        meant = pixel_NCHW[same_N].float() / 127.5 - 1
        rewards = -(drawn - meant).square().mean((1, 2, 3))
        assert float((rewards - batch.sequence["decoded_mse"][row]).abs().min()) < 1e-6


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
    r"scorers.mse.target is pixels, but the run's tokens came as codes": (
        *JUDGED,
        "scorers.mse.target=pixels",
        "tokens.kind=llamagen_codes",
        "tokens.paths=['codes']",
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
