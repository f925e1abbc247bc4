"""What a run goes on from: the same contents, whatever they are called, and never from nothing."""

import hashlib
import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from common.checkpoint import load_backbone, save_backbone
from common.errors import InputError
from common.snapshots import Snapshots
from common.tokens import TokenDataset, load_tokens, save_tokens
from deploy.config import open_run
from deploy.distill import distill

BASE = ("learner.snapshot_every=2", "learner.ordered=true")


def tree(root):
    """Digest of every file below a folder by its name."""
    return {
        str(path.relative_to(root)): hashlib.blake2b(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def rows_of(workspace):
    return [json.loads(line) for line in workspace.metrics.open()]


def go(run, **how):
    """(facts, what was said)."""
    said = io.StringIO()
    facts = distill(*run, Console(file=said, soft_wrap=True), local=True, **how)
    return facts, said.getvalue()


@pytest.fixture
def half(run_in):
    """A run of 4 steps with snapshots of step 2 and 4, made here so that nothing is borrowed."""

    def build(*overrides, name="run"):
        run = run_in(*BASE, "learner.steps=4", *overrides, name=name)
        for path in run[1].root.rglob("*.safetensors"):
            contents = path.read_bytes()
            path.unlink()
            path.write_bytes(contents)
        assert go(run)[0]["steps"] == 4
        assert Snapshots(run[1].snapshots).steps() == [2, 4]
        return run

    return build


@pytest.fixture
def again(tmp_path, tiny_overrides):
    """The command as it is given once more in the folder of a run, with other overrides."""

    def build(*overrides, name="run"):
        root = tmp_path / name
        return open_run(Path("smoke"), [*tiny_overrides, *BASE, *overrides], root)

    return build


HARMLESS = (
    "rollout.workers=3",
    "rollout.in_flight=0",
    "rollout.keep_noise=true",
    "teacher.replicas=2",
    "buffer.max_mb=64",
    "learner.stall_seconds=61",
    "learner.snapshot_every=1",
    "learner.keep_every=3",
    "learner.micro_batch=16",
    "learner.chunk_tokens=64",
    "learner.cpus=2",
    "evaluate.samples=40",
    "sample.per_class=1",
    "cluster.object_store_mb=300",
    "pretrain.teacher.steps=31",
)


def test_harmless_changes_go_on_without_a_word(half, again):
    _, workspace = half()
    facts, said = go(again("learner.steps=6", *HARMLESS), resume=True)
    assert (facts["resumed"], facts["steps"]) == (True, 6)
    assert [row["step"] for row in rows_of(workspace)] == [1, 2, 3, 4, 5, 6]
    noted = [line for line in said.splitlines() if " was " in line]
    assert len(noted) == 1
    assert noted[0].startswith("learner.steps was 4, is 6: learning rate and annealing follow")
    assert "going on after step 4" in said


def test_a_longer_schedule_is_followed_from_the_snapshot_on(half, again):
    half()
    run = again("learner.steps=8")
    go(run, resume=True)
    optimizer = run[0].learner.optimizer
    rates = [row["lr"] for row in rows_of(run[1])]
    assert optimizer.schedule == "cosine"
    assert rates[:4] == [optimizer.rate(step, 4) for step in range(4)]
    assert rates[4:] == [optimizer.rate(step, 8) for step in range(4, 8)]


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("learner.max_lag=5", "learner.max_lag was 4, is 5"),
        ("learner.publish_every=1", "learner.publish_every was 2, is 1"),
        ("rollout.dtype=bfloat16", "rollout.dtype was float32, is bfloat16"),
    ],
)
def test_other_changes_go_on_with_a_word(half, again, override, word):
    half()
    facts, said = go(again("learner.steps=5", override), resume=True)
    assert (facts["resumed"], facts["steps"]) == (True, 5)
    assert word in said


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=1", "seed was 0, is 1"),
        ("objective.kind=gkd", "objective.kind was varkd, is gkd"),
        ("learner.optimizer.learning_rate=0.5", "learning_rate was 0.006, is 0.5"),
        ("learner.optimizer.ema=0.5", "learner.optimizer.ema was 0.98, is 0.5"),
        ("learner.images_per_step=32", "learner.images_per_step was 16, is 32"),
        ("learner.ordered=false", "learner.ordered was true, is false"),
        ("rollout.batch_size=4", "rollout.batch_size was 8, is 4"),
        ("rollout.sampling.temperature=0.5", "rollout.sampling.temperature was 1.0, is 0.5"),
        ("rollout.class_dropout=0.2", "rollout.class_dropout was 0.1, is 0.2"),
        ("contexts.coin=step", "contexts.coin was sample, is step"),
        ("contexts.sources.student.ratio=2", "contexts.sources.student.ratio was 0.5, is 2.0"),
        ("models.student.dropout=0.1", "models.student.dropout was 0.0, is 0.1"),
        ("learner.steps=3", "learner.steps is 3, but the run is at step 4 already"),
    ],
)
def test_what_the_state_depends_on_is_refused_by_key(half, again, override, words):
    _, workspace = half()
    before = tree(workspace.root)
    with pytest.raises(InputError) as caught:
        go(again("learner.steps=6", override), resume=True)
    assert words in str(caught.value)
    assert str(workspace.root) in str(caught.value)
    assert tree(workspace.root) == before


def shifted(path: Path) -> None:
    model, config = load_backbone(path)
    with torch.no_grad():
        model.head.weight.add_(0.01)
    save_backbone(path, model, config)


def relabelled(path: Path) -> None:
    data = load_tokens(path)
    label_N = data.label_N.clone()
    label_N[0] = (label_N[0] + 1) % 10
    path.unlink()
    save_tokens(path, TokenDataset(data.token_NAL, label_N, data.spec, data.classes, "t"))


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("teacher", shifted, "the teacher"),
        ("student_before", shifted, "the base student"),
        ("train_tokens", relabelled, "the token dataset"),
    ],
)
def test_a_file_of_other_contents_under_the_same_name_is_noticed(half, again, name, change, what):
    _, workspace = half()
    if name == "train_tokens":  # the folder of tokens is borrowed
        contents = {
            path.name: path.read_bytes() for path in workspace.train_tokens.parent.iterdir()
        }
        workspace.train_tokens.parent.unlink()
        workspace.train_tokens.parent.mkdir()
        for file, data in contents.items():
            (workspace.train_tokens.parent / file).write_bytes(data)
    path = getattr(workspace, name)
    change(path)
    with pytest.raises(InputError) as caught:
        go(again("learner.steps=6"), resume=True)
    assert f"{what} ({path}) has other contents: its digest was " in str(caught.value)


def test_the_same_contents_may_lie_elsewhere(half, again, tmp_path):
    _, workspace = half()
    elsewhere = tmp_path / "published.safetensors"
    model, config = load_backbone(workspace.teacher)
    save_backbone(elsewhere, model, config, note="stored again")
    facts, _ = go(again("learner.steps=5", f"teacher.weights={elsewhere}"), resume=True)
    assert facts["resumed"]


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
