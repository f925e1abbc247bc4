"""How a run ends that is told to, or whose driver has no time left."""

import time

import pytest
from building.launchers import Replacing
from building.runs import go, rows_of

from common.errors import InputError, RunFailed
from common.exchange.ledger import Ledger
from common.exchange.metrics import MetricsHub
from common.files.snapshots import Snapshots
from common.files.tensors import read_metadata
from deploy.console.stopping import EXIT_CODES, LIMIT, StopRequest
from deploy.run_folder.lock import HOLDER
from deploy.stages.milestone_quality import require_judge
from deploy.stages.quality import assess
from deploy.stages.watch import Watch

MINUTES = 0.05


class Late(Ledger):
    """Its second step lasts until the time is over."""

    def commit(self, step, numbers):
        super().commit(step, numbers)
        if step == 2:
            time.sleep(60 * MINUTES)


def test_a_wall_clock_limit_ends_a_run_in_order(run_in):
    settings = ("learner.steps=4", "learner.ordered=true")
    config, workspace = run_in(*settings, f"learner.max_minutes={MINUTES}")
    facts, said = go((config, workspace), launch=lambda: Replacing({Ledger: Late}))
    assert (facts["steps"], facts["stopped"], EXIT_CODES[facts["stopped"]]) == (2, LIMIT, 0)
    assert facts["cause"] == "stopped by learner.max_minutes"
    assert "learner.max_minutes: stopping after this step" in said
    assert Snapshots(workspace.snapshots).steps() == [2]
    assert read_metadata(workspace.student)["steps"] == 2
    facts, _ = go((run_in(*settings)[0], workspace), resume=True)
    assert (facts["steps"], facts["stopped"], facts["resumed_from"]) == (4, None, 2)
    assert [row["step"] for row in rows_of(workspace)] == [1, 2, 3, 4]


def test_who_has_lost_the_folder_stores_nothing_in_it(run_in):
    """As a learner that outlives its driver by seconds, when the next command is at work."""
    config, workspace = run_in("learner.steps=9", "learner.checkpoint_every=2")
    lock = workspace.root / HOLDER

    class Outlived(Ledger):
        def commit(self, step, numbers):
            super().commit(step, numbers)
            if step == 3:
                lock.write_text('{"command": "distill", "pid": 2}')

    lock.write_text('{"command": "distill", "pid": 1}')
    with pytest.raises(RunFailed, match=f"{workspace.root}: another command is at work here"):
        go((config, workspace), launch=lambda: Replacing({Ledger: Outlived}))
    assert Snapshots(workspace.snapshots).steps() == [2]
    assert not [path for path in workspace.snapshots.iterdir() if path.name.startswith(".")]
    assert not workspace.student.exists()


class Dead(Ledger):
    """Its process dies when all is done."""

    def restarts(self):
        raise RunFailed("gone")


def test_the_student_is_there_before_the_driver_ends(run_in):
    config, workspace = run_in("learner.steps=2")
    with pytest.raises(RunFailed, match="gone"):
        go((config, workspace), launch=lambda: Replacing({Ledger: Dead}))
    assert read_metadata(workspace.student)["steps"] == 2
    assert read_metadata(workspace.student_ema)["steps"] == 2
    assert not workspace.facts.exists()


def test_a_run_whose_folder_is_taken_away_ends_in_a_sentence_and_makes_none_anew(run_in):
    last = 2000
    config, workspace = run_in(f"learner.steps={last}", "learner.checkpoint_minutes=0")
    away = workspace.root.with_name("away")

    class Moves(MetricsHub):
        def post(self, row):
            super().post(row)
            if row["step"] == 3:
                workspace.root.rename(away)

    with workspace.locked("distill"), pytest.raises(InputError, match="was removed or moved, or"):
        go((config, workspace), launch=lambda: Replacing({MetricsHub: Moves}))
    assert not workspace.root.exists()
    away.rename(workspace.root)
    steps = [row["step"] for row in rows_of(workspace)]
    assert steps == [*range(1, steps[-1] + 1)], "what was open could be written"
    assert steps[-1] < last, "somebody looks, not only who stores the last step"
    assert Snapshots(workspace.snapshots).steps() == [], "and nothing was stored elsewhere"


@pytest.mark.parametrize(("done", "of"), [(True, "its last one"), (False, "being told to")])
def test_a_learner_that_does_not_end_is_ended_in_a_stated_time(done, of):
    class Steps:
        is_full = False

    watch = Watch(None, Steps(), StopRequest(), None, None, None)
    watch.require_end(0.01)
    Steps.is_full, watch.is_closing = done, not done
    watch.require_end(0.01)
    time.sleep(0.02)
    watch.require_end(5)
    with pytest.raises(RunFailed, match=rf"within 0\.01 s \(learner\.stop_seconds\) of {of};"):
        watch.require_end(0.01)


def test_the_newest_snapshots_and_the_best_students_stay(run_in):
    """On the student's own rows, which every step has here."""
    kept = ("learner.keep_last=3", "learner.keep_best=2")
    settings = ("learner.export_every=2", "learner.checkpoint_every=1", "learner.ordered=true")
    config, workspace = run_in(*kept, *settings, "learner.steps=7", name="run")
    go((config, workspace))
    assert Snapshots(workspace.snapshots).steps() == [5, 6, 7]
    seen = {row["step"]: row["divergence/student"] for row in rows_of(workspace)}
    windows = {2: (1, 2), 4: (3, 4), 6: (5, 6), 7: (7,)}
    means = {at: sum(seen[s] for s in steps) / len(steps) for at, steps in windows.items()}
    best = sorted(sorted(means, key=means.__getitem__)[:2])
    for name in ("student", "student_ema"):
        files = sorted(workspace.milestones.glob(f"{name}-0*"))
        assert files == [workspace.milestone(name, step) for step in best]
        assert read_metadata(files[0])["mean"] == pytest.approx(means[best[0]])
        assert read_metadata(files[0])["measure"] == "divergence/student"
    workspace.milestone("student", 4).write_bytes(b"of nobody")  # says nothing: it is left alone
    go((run_in(*settings, "learner.steps=6")[0], workspace), resume_from=5)
    left = {path.name for path in workspace.milestones.iterdir()}
    assert not {"student-00000007.safetensors", "student_ema-00000007.safetensors"} & left
    assert "student-00000006.safetensors" in left


def test_the_best_students_by_fid_are_those_that_an_evaluation_finds(run_in, quiet):
    kept, by_fid = ("learner.export_every=1", "learner.keep_best=1"), "learner.keep_best_by=fid"
    small = ("evaluate.samples=40", "evaluate.classifier.steps=3", "learner.ordered=true")
    small += ("evaluate.likelihood_samples=12",)
    go(run_in(*kept, *small, "learner.steps=1"))
    config, workspace = run_in(*kept, *small, by_fid, "learner.steps=4")
    go((config, workspace), resume=True)
    quality, row = assess(config, workspace, quiet), rows_of(workspace)[-1]
    evaluated = quality.metrics
    for tag, shown in (("milestone", "student_after"), ("milestone_ema", "student_ema")):
        wanted = quality.likelihood[shown] | {"fid": evaluated[shown]["fid"]}
        found = {name: row[f"{tag}/{name}"] for name in wanted}
        assert found == pytest.approx(wanted, rel=1e-5), "of the last step"
    assert not any(key.startswith("milestone") for key in rows_of(workspace)[0])
    for name, shown in (("student", "student_after"), ("student_ema", "student_ema")):
        other, file = sorted(workspace.milestones.glob(f"{name}-0*"))
        assert other == workspace.milestone(name, 1), "judged by something else"
        facts = read_metadata(file)
        assert facts["measure"] == "fid"
        assert facts["mean"] <= evaluated[shown]["fid"] + 1e-6, "of the last step"
        if file == workspace.milestone(name, 4):
            assert facts["mean"] == pytest.approx(evaluated[shown]["fid"], rel=1e-6)
    by_kl = run_in(*kept, *small, "learner.keep_best_by=reverse_kl", "learner.steps=6")[0]
    go((by_kl, workspace), resume=True)
    rows = {row["step"]: row for row in rows_of(workspace) if row["step"] > 4}
    best = min(rows, key=lambda step: rows[step]["milestone/reverse_kl"])
    facts = read_metadata(workspace.milestone("student", best))
    assert facts["measure"] == "reverse_kl"
    assert facts["mean"] == facts["metrics"]["reverse_kl"] == rows[best]["milestone/reverse_kl"]
    assert "fid" not in facts["metrics"]
    assert not workspace.milestone("student", 11 - best).exists(), "the other one of the two"


def test_students_that_nobody_measures_are_not_kept_by_it(run_in, quiet):
    with pytest.raises(InputError, match=r"keep_best_by is fid, but learner\.export_every is 0"):
        run_in("learner.keep_best_by=fid")
    kept = ("learner.export_every=1", "learner.keep_best=1", "learner.keep_best_by=reverse_kl")
    config, workspace = run_in(*kept, "evaluate.likelihood_samples=0")
    with pytest.raises(InputError, match=r"evaluate\.likelihood_samples is 0.*set it to fid or"):
        require_judge(config, workspace, quiet)
