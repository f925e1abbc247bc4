"""Studies from their start to their results: one start, fair cells, nothing done twice."""

import json
from dataclasses import replace

import pytest
import torch

from common.artifacts.backbone_file import load_backbone
from common.errors import InputError, RunFailed
from common.files.made_from import difference
from deploy.backend.actor_pool import ActorPool, call_here
from deploy.run_folder.workspace import Workspace
from deploy.study.budget import StudyFolder, budget, jobs
from deploy.study.cells import run_cell
from deploy.study.config import open_study
from deploy.study.jobs import read_cell, why_again
from deploy.study.measuring import at_scale
from deploy.study.page.publish import publish
from deploy.study.runner import collect, run_cells, run_study
from deploy.study.start import made_from
from rollout.sampler import SamplingConfig


@pytest.fixture
def started(tmp_path, prepared):
    """A study folder whose start borrows the prepared files."""
    folder = StudyFolder(tmp_path / "out")
    folder.start.mkdir(parents=True)
    for entry in prepared.iterdir():
        (folder.start / entry.name).symlink_to(entry)
    (folder.start / "config.toml").unlink(missing_ok=True)
    return folder


@pytest.mark.slow
def test_a_study_runs_resumes_and_reports(study_file, started, quiet):
    study = open_study(study_file, [])
    wanted, harvest = run_study(study, started, quiet, local=True, restart=False)
    assert harvest.found.keys() == wanted.keys()
    assert len(wanted) == 2 * (2 + 3), "teacher, base and three methods, for two seeds"
    for (method, seed), cell in harvest.found.items():
        rows = cell.measurements
        ends = {(row.step, row.guidance) for row in rows}
        trained = method not in ("teacher", "base")
        assert ends == ({(2, 1.5), (4, 1.0), (4, 1.5)} if trained else {(0, 1.0), (0, 1.5)})
        assert {(row.method, row.seed) for row in rows} == {(method, seed)}
        seconds = [row.seconds for row in rows]
        assert seconds == sorted(seconds)
        assert (seconds[-1] > 0) == trained
    assert_methods_share_their_start(started)
    publish(study, started, wanted, harvest, quiet)
    page = (started.root / "study.html").read_text()
    assert all(name in page for name in study.config.methods)
    assert (started.root / "measurements.csv").read_text().count("\n") == 1 + 2 * (2 * 2 + 3 * 3)

    lost = wanted["varkd", 1]
    before = {key: job.result.stat().st_mtime_ns for key, job in wanted.items()}
    first = read_cell(lost)
    lost.result.unlink()
    _, again = run_study(study, started, quiet, local=True, restart=False)
    after = {key: job.result.stat().st_mtime_ns for key, job in wanted.items()}
    assert [key for key in wanted if before[key] != after[key]] == [("varkd", 1)]
    measured = again.found["varkd", 1].measurements
    assert first is not None
    assert [row.fid for row in measured] == pytest.approx([row.fid for row in first.measurements])


def assert_methods_share_their_start(folder):
    """Equal files before; equal data order (a seed's losses on data differ by weights alone)."""
    starts = {
        (folder.cell(method, seed) / "student_before.safetensors").resolve()
        for method in ("kd", "varkd", "strict")
        for seed in (0, 1)
    }
    assert len(starts) == 1
    students = [
        load_backbone(Workspace(folder.cell("kd", seed)).student)[0].head.weight for seed in (0, 1)
    ]
    assert not torch.equal(*students), "seeds differ in data order"


@pytest.fixture
def crowded(ray_cluster):
    """All but two of the cluster's 16 CPUs belong to somebody else, so that cells take turns."""
    from ray.util.placement_group import placement_group, remove_placement_group

    theirs = placement_group([{"CPU": 14}])
    assert theirs.wait(20)
    yield
    remove_placement_group(theirs)


@pytest.mark.slow
@pytest.mark.ray
def test_cells_run_in_ray_actors(study_file, started, quiet, crowded):
    """One method by wall-clock: its steps come from its own speed, and the cells say so."""
    overrides = ["seeds=[0]", "budget={seconds=0.5, probe_steps=2}", "curve=1", "guidance.sweep=[]"]
    study = open_study(study_file, overrides)
    wanted, harvest = run_study(study, started, quiet, local=False, restart=False)
    assert harvest.found.keys() == wanted.keys()
    speeds = json.loads(started.budget.read_text())["seconds_per_step"]
    for name, speed in speeds.items():
        assert harvest.found[name, 0].facts.steps == max(1, round(0.5 / speed))
    assert not (started.cell("kd", 0) / "snapshots").exists()
    before = wanted["kd", 0].result.stat().st_mtime_ns
    timed = started.budget.read_text()
    started.budget.unlink()  # timing anew must not touch what is done
    steps = budget(study, started, call_here, quiet)
    assert steps.keys() == study.config.methods.keys()
    assert wanted["kd", 0].result.stat().st_mtime_ns == before
    started.budget.write_text(timed)
    again, found = collect(study, started)
    assert again.keys() == found.found.keys()


def test_a_cell_that_fails_does_not_take_the_others_along(study_file, started, quiet):
    study = open_study(study_file, [])
    wanted = jobs(study, started, dict.fromkeys(study.config.methods, 4))

    def call(function, work):
        for key in work:
            yield key, RunFailed("out of memory") if key[0] == "kd" else None

    harvest = run_cells(wanted, call, quiet)
    assert set(harvest.failed) == {("kd", 0), ("kd", 1)}
    with pytest.raises(InputError, match=r"methods\.teacher, seed 0: no such file"):
        run_cells(
            wanted, lambda _, work: iter([(next(iter(work)), InputError("no such file"))]), quiet
        )


def test_a_changed_cell_is_not_taken_for_done(study_file, started):
    study = open_study(study_file, [])
    job = jobs(study, started, dict.fromkeys(study.config.methods, 4))["base", 0]
    list(call_here(lambda job: job.folder.mkdir(parents=True), {0: job}))
    facts = {"method": "base", "seed": 0, "steps": 0, "images": 0, "seconds": 0.0}
    facts |= {"seconds_per_step": 0.0, "survival": None, "device": "-"}
    stored = {
        "request": job.request,
        "made_from": job.made_from,
        "commit": "-",
        "facts": facts,
        "measurements": [],
    }
    job.result.write_text(json.dumps(stored))
    assert read_cell(job) is not None
    run_cell(job)  # nothing to do: there is not even a start
    for other, words in (
        (replace(job, scales=(2.0,)), "measured.scales was [1.0, 1.5] and is [2.0]"),
        (replace(job, weights="student_ema"), "measured.weights was student and is student_ema"),
        (replace(job, config=study.start.model_copy(update={"seed": 5})), "seed was 0 and is 5"),
        (replace(job, contents={"teacher": "other"}), "start.teacher was not given and is other"),
    ):
        assert read_cell(other) is None
        assert why_again(other) == words
    rollout = job.config.rollout.model_copy(update={"cpus": 2.5})
    cluster = job.config.cluster.model_copy(update={"nodes": 3})
    harmless = job.config.model_copy(update={"rollout": rollout, "cluster": cluster})
    assert read_cell(replace(job, config=harmless)) is not None


def test_another_start_is_refused_and_thrown_away_only_on_demand(study_file, started, quiet):
    study = open_study(study_file, [])
    held = made_from(study.start)
    held["pretrain"]["teacher"]["steps"] += 1
    (started.start / "start.json").write_text(json.dumps({"made_from": held}))
    with pytest.raises(InputError, match=r"pretrain\.teacher\.steps was 31 and is 30.*--restart"):
        run_study(study, started, quiet, local=True, restart=False)
    assert started.start.exists()


def test_a_start_is_known_by_contents_and_not_by_where_or_when(study_file, tmp_path, prepared):
    """Another teacher under the same name is another start; the same one elsewhere is not."""
    weights = tmp_path / "teacher.safetensors"
    weights.write_bytes((prepared / "teacher.safetensors").read_bytes())
    study = open_study(study_file, [f"set.teacher.weights='{weights}'", "set.cluster.nodes=2"])
    first = made_from(study.start)
    weights.rename(tmp_path / "moved.safetensors")
    moved = open_study(study_file, [f"set.teacher.weights='{tmp_path / 'moved.safetensors'}'"])
    assert difference(first, made_from(moved.start)) is None
    weights.write_bytes((prepared / "student_before.safetensors").read_bytes())
    changed = difference(first, made_from(study.start))
    assert changed is not None
    assert changed.startswith("teacher.weights was ")


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"request": 3}', "[" * 100_000])
def test_damaged_results_are_made_again_and_said_so(study_file, started, damage):
    study = open_study(study_file, [])
    job = jobs(study, started, dict.fromkeys(study.config.methods, 4))["base", 0]
    assert why_again(job) is None
    job.folder.mkdir(parents=True)
    job.result.write_text(damage)
    assert read_cell(job) is None
    assert why_again(job) is not None


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"seconds_per_step": {"kd": "soon"}}'])
def test_damaged_budgets_and_starts_are_named(study_file, started, quiet, damage):
    study = open_study(study_file, ["budget={seconds=0.5, probe_steps=2}"])
    started.budget.write_text(damage)
    with pytest.raises(InputError, match=r"budget\.json: .* the methods are timed again"):
        budget(study, started, call_here, quiet)
    if damage == "{":
        (started.start / "start.json").write_text(damage)
        with pytest.raises(InputError, match=r"start\.json: expected what a start was made from"):
            jobs(study, started, {})


def test_a_start_that_never_began_may_be_corrected(study_file, tmp_path, quiet):
    """A wrong path must not lock the folder."""
    folder = StudyFolder(tmp_path / "out")
    images = "set.images={kind='folder', train='nowhere', size=8, channels=1}"
    study = open_study(study_file, [images])
    with pytest.raises(InputError, match="nowhere"):
        run_study(study, folder, quiet, local=True, restart=False)
    study = open_study(study_file, [images.replace("nowhere", "elsewhere")])
    with pytest.raises(InputError, match="elsewhere"):
        run_study(study, folder, quiet, local=True, restart=False)


def test_a_restart_leaves_what_is_not_the_studys(started):
    notes = started.root / "notes.txt"
    notes.write_text("mine")
    started.cell("kd", 0).mkdir(parents=True)
    started.budget.write_text("{}")
    started.clear()
    assert [entry.name for entry in started.root.iterdir()] == ["notes.txt"]


def test_every_scale_is_the_runs_own_sampling_but_for_the_scale():
    sampling = SamplingConfig.model_validate(
        {"guidance": {"scale": 3.0, "rule": "var"}, "top_k": 5}
    )
    assert at_scale(sampling, 1.0).guidance is None
    guidance = at_scale(sampling, 2.0).guidance
    assert guidance is not None
    assert (guidance.scale, guidance.rule) == (2.0, "var")
    assert at_scale(sampling, 2.0).top_k == 5


@pytest.mark.ray
def test_a_refused_cell_says_the_same_here_and_in_an_actor(study_file, started, quiet, ray_cluster):
    study = open_study(study_file, ["methods.strict.objective.gate.tau=0.99", "seeds=[0]"])
    wanted = jobs(study, started, dict.fromkeys(study.config.methods, 4))
    refused = {("strict", 0): wanted["strict", 0]}
    sentences = []
    for call in (call_here, ActorPool("cells", 1, 0)):
        with pytest.raises(InputError) as caught:
            run_cells(refused, call, quiet)
        sentences.append(str(caught.value))
    assert sentences[0].startswith("methods.strict, seed 0: objective.gate.tau 0.99 closes")
    assert sentences[1] == sentences[0]
