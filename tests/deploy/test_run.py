"""Whole runs in one process, on real digits: learning, order, resume, refusals."""

import json
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from building.launchers import Replacing
from building.objectives import OF_BACKBONES, WITH

from common.artifacts.backbone_file import load_backbone, save_backbone
from common.errors import InputError, RunFailed
from common.exchange.buffer import Buffer
from common.exchange.ledger import Ledger
from common.exchange.trajectory import concatenate, from_arrow
from deploy.backend.ray_metrics import SERIES
from deploy.stages.distill import distill, preflight

CONTINUED = ("learner.max_staleness=1", "learner.publish_every=1", "learner.profile_every=2")


def rows_of(workspace):
    return [json.loads(line) for line in (workspace.root / "metrics.jsonl").open()]


def is_documented(key):
    return key in ("time", "pid", *SERIES) or key.partition("/")[0] + "/" in SERIES


def profiles_of(workspace):
    return [json.loads(line)["profile"] for line in (workspace.root / "profiles.jsonl").open()]


def distill_here(run, quiet, *, resume=False):
    config, workspace = run
    facts = distill(config, workspace, quiet, local=True, resume=resume)
    return facts, rows_of(workspace)


@pytest.mark.parametrize("kind", OF_BACKBONES)
def test_every_objective_runs_within_the_staleness_bound(run_in, quiet, kind):
    bound = ("learner.steps=3", "learner.max_staleness=1", "learner.publish_every=1")
    config, workspace = run_in(f"objective.kind={kind}", *WITH.get(kind, ()), *bound)
    facts, rows = distill_here((config, workspace), quiet)
    assert facts["steps"] == config.learner.steps == rows[-1]["step"]
    assert facts["cause"] is None
    assert max(row.get("lag_max", 0) for row in rows) <= config.learner.max_staleness
    assert {key for row in rows for key in row if not is_documented(key)} == set()
    before, _ = load_backbone(workspace.student_before)
    after, _ = load_backbone(workspace.student)
    assert not torch.equal(before.head.weight, after.head.weight)
    assert list((workspace.root / "tensorboard").glob("events*"))


def test_ordered_runs_repeat_to_the_bit(run_in, quiet):
    losses = []
    for name in ("one", "two"):
        run = run_in("learner.ordered=true", "rollout.workers=3", name=name)
        losses.append([row["loss"] for row in distill_here(run, quiet)[1]])
    assert losses[0] == losses[1]
    run = run_in("learner.ordered=true", "seed=1", name="three")
    other = [row["loss"] for row in distill_here(run, quiet)[1]]
    assert other != losses[0]


def test_every_image_of_an_ordered_run_is_trained_once_on_pinned_weights(run_in, quiet):
    """Records seen by the learner: ids in order, versions as the schedule says."""
    config, workspace = run_in("learner.ordered=true", "learner.max_staleness=3")
    seen = []

    class Watched(Buffer):
        def take(self, step, **how):
            share = super().take(step, **how)
            if share is not None:
                seen.append((step, concatenate([from_arrow(record) for record in share.records])))
            return share

    distill(config, workspace, quiet, local=True, launch=lambda: Replacing({Buffer: Watched}))
    assert [step for step, _ in seen] == list(range(config.learner.steps))
    schedule = config.schedule()
    for step, batch in seen:
        first = step * schedule.global_batch_size
        assert batch.id_B.tolist() == list(range(first, first + schedule.global_batch_size))
        assert set(batch.version_B.tolist()) == {schedule.pinned_version(step)}


def test_a_run_resumes_where_its_snapshot_ends(run_in, quiet):
    whole = run_in(*CONTINUED, name="whole")
    _, expected = distill_here(whole, quiet)
    run = run_in(*CONTINUED, name="cut")
    stop_after(run, quiet, 3)  # inside of the second window of curves
    facts, rows = distill_here(run, quiet, resume=True)
    assert facts["resumed"]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert facts["steps"] == 6
    # One process samples right before it trains, so even the numbers are the same.
    assert [row["loss"] for row in rows] == [row["loss"] for row in expected]
    windows = profiles_of(run[1])
    assert [(window["first"], window["last"]) for window in windows] == [(1, 2), (3, 4), (5, 6)]
    assert windows == profiles_of(whole[1])


def stop_after(run, quiet, steps):
    """Send ourselves SIGTERM right after step `steps`; the run ends in order."""

    class Watched(Ledger):
        def commit(self, step, leases):
            super().commit(step, leases)
            if step == steps:
                os.kill(os.getpid(), signal.SIGTERM)

    facts = distill(*run, quiet, local=True, launch=lambda: Replacing({Ledger: Watched}))
    assert facts["steps"] == steps
    assert "SIGTERM" in facts["cause"]


def test_unfinished_work_is_never_thrown_away_unasked(run_in, quiet):
    run = run_in()
    stop_after(run, quiet, 2)
    with pytest.raises(InputError, match="stopped at step 2 of 6; go on with --resume"):
        distill_here(run, quiet)
    facts = distill(*run, quiet, local=True, restart=True)
    assert (facts["resumed"], facts["steps"]) == (False, 6)
    assert [row["step"] for row in rows_of(run[1])] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(InputError, match="holds a run of 6 steps"):
        distill_here(run, quiet)


@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_half_precision_runs_and_stays_close(run_in, quiet, dtype):
    settings = [f"{role}.dtype={dtype}" for role in ("learner", "rollout", "teacher")]
    exact = distill_here(run_in("contexts.sources.student.ratio=0", name="exact"), quiet)[1]
    half = distill_here(run_in("contexts.sources.student.ratio=0", *settings, name="half"), quiet)[
        1
    ]
    assert half[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.05)
    both = distill_here(run_in(*settings, name="both"), quiet)[1]
    assert all(0 < row["loss"] < 10 for row in both)


def test_a_stall_names_who_holds_what():
    from common.exchange.schedule import Schedule
    from learner.learner import SingleProcess
    from learner.train import Trainer

    schedule = Schedule(2, 4, 2, 1, 1)
    ledger = Ledger(schedule)
    trainer = Trainer(
        SimpleNamespace(steps_done=0),
        schedule,
        buffer=Buffer(schedule, max_bytes=9, ledger=ledger),
        weights=None,
        ledger=ledger,
        metrics=None,
        checkpoints=None,
        ranks=SingleProcess(),
        weights_dtype="float32",
        stall_seconds=0.05,
    )
    ledger.restore({"step": 0, "frontier": 0, "beyond": []})
    ledger.lease("worker-7", 0)
    with pytest.raises(RunFailed, match=r"no batch for step 0 .* worker-7 has lease 0"):
        trainer._step()


@pytest.mark.parametrize("which", ["teacher", "learner"])
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tokenizer.vocab_size=16", r"has vocab_size 16, but .* has vocab_size 32"),
        ("tokenizer.patch=4", r"has length 4, but .* has length 16"),
    ],
)
def test_a_model_of_other_tokens_is_refused_with_both_values(
    run_in, quiet, tiny, which, override, message
):
    from dataclasses import replace

    from common.models.backbones import llamagen

    config, workspace = run_in()
    spec = preflight(config, workspace).spec
    if "vocab" in override:
        other = replace(spec, vocab_size=16)
    else:
        other = replace(spec, grid=(2, 2), length=4)
    path = workspace.root / "other.safetensors"
    save_backbone(path, tiny("llamagen", spec=other), llamagen.Config.tiny())
    config, workspace = run_in(f"{which}.weights={path}")
    with pytest.raises(InputError, match=message):
        distill(config, workspace, quiet, local=True, resume=False)
    assert not workspace.student.exists()


def test_keeping_noise_puts_it_on_the_wire(run_in):
    from common.exchange.schedule import Lease
    from deploy.backend.launcher import LocalLauncher
    from deploy.pipeline import wire

    config, workspace = run_in("rollout.keep_noise=true")
    _, workers, _ = wire(
        config, preflight(config, workspace), workspace.model(config, "teacher"), LocalLauncher()
    )
    worker = workers.make("worker-0")
    worker._loaded._loaded = (1, 0)  # as if version 0 were there
    record = worker.sample(Lease(0, 0, 8, 0, 0, 1))
    batch = from_arrow(record)
    assert batch.noise_BL is not None
    assert batch.noise_BL.dtype == torch.float64


def test_students_along_the_way_stay(run_in, quiet):
    """Milestones are the run's own states: the last one is the student that the run leaves."""
    run = run_in("learner.export_every=4")
    distill_here(run, quiet)
    workspace = run[1]
    assert sorted(file.name for file in workspace.milestones.iterdir()) == [
        f"{name}-{step:08d}.safetensors" for name in ("student", "student_ema") for step in (4, 6)
    ]
    for name, path in (("student", workspace.student), ("student_ema", workspace.student_ema)):
        kept, _ = load_backbone(workspace.milestone(name, 6))
        final, _ = load_backbone(path)
        earlier, _ = load_backbone(workspace.milestone(name, 4))
        assert torch.equal(kept.head.weight, final.head.weight)
        assert not torch.equal(earlier.head.weight, final.head.weight)
