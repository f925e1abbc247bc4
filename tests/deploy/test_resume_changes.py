"""What may change before a run goes on: settings by key, files by contents."""

from pathlib import Path

import pytest
import torch
from building.runs import go, rows_of, tree

from common.artifacts.backbone_file import load_backbone, save_backbone
from common.data.tokens import TokenDataset, load_tokens, save_tokens
from common.errors import InputError
from deploy.run_folder.identity import Identity

HARMLESS = (
    "rollout.workers=3",
    "rollout.in_flight=0",
    "rollout.keep_noise=true",
    "teacher.replicas=2",
    "buffer.max_mb=64",
    "learner.stall_seconds=61",
    "learner.checkpoint_every=1",
    "learner.export_every=3",
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
        ("learner.max_staleness=5", "learner.max_staleness was 4, is 5"),
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
        ("learner.global_batch_size=32", "learner.global_batch_size was 16, is 32"),
        ("learner.ordered=false", "learner.ordered was true, is false"),
        ("rollout.batch_size=4", "rollout.batch_size was 8, is 4"),
        ("rollout.sampling.temperature=0.5", "rollout.sampling.temperature was 1.0, is 0.5"),
        ("rollout.class_dropout=0.2", "rollout.class_dropout was 0.1, is 0.2"),
        ("contexts.mix_per=step", "contexts.mix_per was sample, is step"),
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


def test_snapshots_from_before_a_renaming_or_a_new_field_are_of_the_same_run():
    now = Identity(
        {
            "learner.max_staleness": 2,
            "learner.optimizer.max_grad_norm": 1.0,
            "contexts.mix_per": "step",
            "contexts.sources.student.min_prefix": 0.25,
            "rollout.group.size": 1,
            "scorers.teacher.kind": "teacher",
        },
        {},
        {},
    )
    then = {
        "learner.max_lag": 2,
        "learner.optimizer.clip": 1.0,
        "contexts.coin": "step",
        "contexts.sources.student.lo": 0.25,
    }
    assert list(now.differences({"fields": then, "contents": {}})) == []
    then["learner.max_lag"] = 3
    changed = list(now.differences({"fields": then, "contents": {}}))
    assert changed == [("learner.max_staleness", "was 3, is 2")]
