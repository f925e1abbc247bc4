"""What a run goes on from: a whole snapshot of its own, and never from nothing."""

import json

import pytest
import torch
from building.runs import BASE, go, rows_of, tree

from common.artifacts.backbone_file import load_backbone
from common.errors import InputError
from common.files.snapshots import Snapshots


def test_a_finished_run_is_refused_until_it_is_said_what_to_do_with_it(half, again):
    run = half()
    _, workspace = run
    (workspace.root / "report.md").write_text("of the run before")
    before = tree(workspace.root)
    for overrides in ((), ("seed=3",)):
        with pytest.raises(InputError, match=r"holds a run of 4 steps; .*--from .*--restart"):
            go(again("learner.steps=4", *overrides))
    with pytest.raises(InputError, match=r"stopped at step 4 of 6; go on with --resume"):
        go(again("learner.steps=6"))
    assert tree(workspace.root) == before
    facts, _ = go(again("learner.steps=3", "seed=3"), restart=True)
    assert (facts["steps"], facts["resumed"]) == (3, False)
    assert [row["step"] for row in rows_of(workspace)] == [1, 2, 3]
    assert Snapshots(workspace.snapshots).steps() == [2, 3]
    assert not (workspace.root / "report.md").exists()


def test_a_restart_that_is_refused_at_its_first_rollouts_changes_nothing(half, again):
    """The gate judges rollouts: by then everything is up, and the cluster map is made."""
    _, workspace = half("objective.relaxation.factor=2")
    before = tree(workspace.root)
    refused = ("objective.relaxation.factor=4", "objective.gate.tau=0.99")
    with pytest.raises(InputError, match=r"objective\.gate\.tau 0\.99 closes"):
        go(again(*refused), restart=True)
    assert tree(workspace.root) == before


def test_nothing_to_resume_is_said(run_in):
    run = run_in(*BASE, "learner.steps=2")
    facts, said = go(run, resume=True)
    assert f"nothing to resume in {run[1].root}: the run begins at step 0" in said
    assert not facts["resumed"]


def test_a_run_without_snapshots_cannot_go_on(half, again):
    _, workspace = half()
    Snapshots(workspace.snapshots).clear()
    before = tree(workspace.root)
    with pytest.raises(InputError, match="no snapshot to go on from; begin again with --restart"):
        go(again("learner.steps=6"), resume=True)
    assert tree(workspace.root) == before


def test_results_without_snapshots_move_aside_once_a_new_run_has_begun(half, again):
    _, workspace = half()
    made = {path.name: path.read_bytes() for path in workspace.traces() if path.is_file()}
    for number in (1, 2):
        Snapshots(workspace.snapshots).clear()
        facts, said = go(again("learner.steps=6"))
        assert "student.safetensors and others are of an earlier run without snapshots" in said
        assert f"they move to earlier-{number}/" in said
        assert (facts["steps"], facts["resumed"]) == (6, False)
    kept = workspace.root / "earlier-1"
    assert {path.name: path.read_bytes() for path in kept.iterdir() if path.is_file()} == made
    assert [row["step"] for row in rows_of(workspace)] == [1, 2, 3, 4, 5, 6]


def test_a_damaged_snapshot_is_named_and_the_one_beside_it_goes_on(half, again):
    whole = half(name="whole")
    go(again("learner.steps=6", name="whole"), resume_from=2)
    _, workspace = half()
    damaged = workspace.snapshots / "step-00000004" / "tensors.pt"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    before = tree(workspace.root)
    run = again("learner.steps=6")
    with pytest.raises(InputError) as caught:
        go(run, resume=True)
    assert f"{damaged} is damaged: " in str(caught.value)
    assert "go on from the whole one beside it with --resume-from 2" in str(caught.value)
    with pytest.raises(InputError, match="has snapshots of step 2 and 4"):
        go(run, resume_from=3)
    assert tree(workspace.root) == before
    facts, said = go(run, resume_from=2)
    assert (facts["steps"], facts["resumed"]) == (6, True)
    assert "steps 3 to 4 are thrown away" in said
    assert [row["step"] for row in rows_of(workspace)] == [1, 2, 3, 4, 5, 6]
    losses = [[row["loss"] for row in rows_of(at)] for at in (workspace, whole[1])]
    assert losses[0] == losses[1]
    (workspace.snapshots / "step-00000006" / "facts.json").write_text("{}")
    (workspace.snapshots / "step-00000004" / "facts.json").unlink()
    with pytest.raises(InputError, match=r"facts\.json is damaged: .*; begin again with --restart"):
        go(again("learner.steps=7"), resume=True)


def test_snapshots_after_the_one_that_is_gone_on_from_are_of_no_run_any_more(half, again):
    _, workspace = half()
    go(again("learner.steps=3"), resume_from=2)
    assert Snapshots(workspace.snapshots).steps() == [2, 3]


def test_a_run_that_was_killed_before_its_student_was_stored_gets_it(half, again):
    _, workspace = half()
    student, rows = load_backbone(workspace.student)[0].state_dict(), rows_of(workspace)
    workspace.student.unlink()
    workspace.facts.unlink()
    facts, _ = go(again("learner.steps=4"), resume=True)
    assert facts["steps"] == 4
    stored = load_backbone(workspace.student)[0].state_dict()
    assert all(torch.equal(stored[name], value) for name, value in student.items())
    assert json.loads(workspace.facts.read_text())["steps"] == 4
    assert rows_of(workspace) == rows


def test_resuming_what_is_done_keeps_the_facts_of_the_run_that_did_it(half, again):
    _, workspace = half()
    before = json.loads(workspace.facts.read_text())
    facts, _ = go(again("learner.steps=4", "rollout.workers=3"), resume=True)
    assert facts["resumed"]
    assert json.loads(workspace.facts.read_text()) == {**before, "resumed": True}


def test_a_broken_line_of_metrics_is_named_before_a_run_goes_on(half, again):
    _, workspace = half()
    lines = workspace.metrics.read_text().splitlines()
    workspace.metrics.write_text("\n".join([lines[0], lines[1][:20], *lines[2:]]) + "\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl: line 2 is no row of metrics"):
        go(again("learner.steps=6"), resume=True)
