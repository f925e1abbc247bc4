"""A failure has one fate: the same sentence, exit code and files, wherever it happens."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from building.launchers import beside
from building.waiting import until

from common.artifacts.model_file import ModelFile
from common.errors import Closed, Diverged, InputError, RunFailed, Verdict
from common.exchange.packed_weights import pack
from common.exchange.weights import Weights
from deploy import main as command_line
from deploy.backend.role import ROLLOUT
from deploy.backend.supervisor import Supervisor
from deploy.console.faults import FaultLog
from deploy.pipeline import Services, wire
from deploy.stages.distill import distill, preflight

ROOT = Path(__file__).parents[2]


class Particular(InputError):
    """Its constructor takes something else than a sentence."""

    def __init__(self, path: str, wanted: int) -> None:
        super().__init__(f"{path}: expected {wanted}")


@pytest.mark.parametrize(
    "error",
    [
        InputError("a sentence"),
        Diverged("step 3"),
        RunFailed("a cause"),
        Closed("over"),
        Particular("x.toml", 3),
    ],
)
def test_a_verdict_arrives_as_the_error_that_it_was(error):
    arrived = pickle.loads(pickle.dumps(Verdict.of(error))).error()
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)


def everything_in(root):
    """Every file of a run folder with its contents, but TensorBoard's, which are named by the time.

    The header of a safetensors file has no order of its own.
    """
    return {
        str(path.relative_to(root)): sorted(path.read_bytes())
        if path.suffix == ".safetensors"
        else path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "tensorboard" not in path.parts
    }


def ran(capsys, *arguments):
    """(exit code, what was said last) of a command."""
    with pytest.raises(SystemExit) as ended:
        command_line.main([str(argument) for argument in arguments])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("varkd")]
    return ended.value.code, said


@pytest.mark.ray
@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (["objective.gate.tau=0.99"], "objective.gate.tau 0.99 closes"),  # at the first step
        (
            ["objective.relaxation.factor=5", "objective.relaxation.balanced=true"],
            "objective.relaxation.factor is 5",  # while the learner starts
        ),
        (["rollout.device=cuda"], "torch sees no CUDA device"),  # while an actor starts
    ],
)
def test_a_users_mistake_ends_alike_in_one_process_and_on_ray(
    ray_cluster, run_in, tiny_overrides, capsys, mistake, words
):
    if "cuda" in mistake[0] and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    given, found = [*tiny_overrides, *mistake], {}
    for name, where in (("here", ["--local"]), ("ray", [])):
        _, workspace = run_in(name=name)
        workspace.config.write_text("seed = 5\n")
        found[name] = (
            *ran(capsys, "distill", "smoke", *given, "--out", workspace.root, *where),
            everything_in(workspace.root),
        )
    code, said, files = found["here"]
    assert code == 2
    assert len(said) == 1
    assert words in said[0]
    assert files["config.toml"] == b"seed = 5\n"
    assert found["ray"][:2] == found["here"][:2]
    files_on_ray = found["ray"][2]
    assert list(files_on_ray) == list(files)
    assert [name for name in files if files[name] != files_on_ray[name]] == []


def foreign_services(run, place):
    """Services whose teacher refuses what every worker sends: it speaks of one class more."""
    config, workspace = run
    data = preflight(config, workspace)
    file = workspace.model(config, "teacher")
    spec = data.spec
    more = replace(spec, num_classes=spec.num_classes + 1)
    return wire(config, replace(data, spec=more), file, place)


def begin(services: Services, file: ModelFile, spec=None):
    """Publish a student and open the ledger, as a learner would."""
    student = file.architecture.build(spec or file.spec)
    services.weights.publish(Weights.of(0, pack(student, torch.float32)))
    services.ledger.restore({"step": 0, "frontier": 0, "beyond": []})


@pytest.mark.ray
def test_a_workers_refusal_ends_the_run_before_a_second_worker_meets_it(placed, run_in):
    run = run_in("rollout.workers=2", "rollout.in_flight=0")
    services, workers, scorers = foreign_services(run, placed)
    config, workspace = run
    crew = Supervisor(services, {ROLLOUT: workers, **scorers}, placed)
    spec = preflight(config, workspace).spec
    more = replace(spec, num_classes=spec.num_classes + 1)
    begin(services, workspace.model(config, "student_before"), more)
    until(lambda: crew.check() or crew.failure is not None)
    assert crew.failure is not None
    assert crew.failure.kind is InputError
    assert "num_classes" in crew.failure.message or "classes" in crew.failure.message
    assert crew.deaths == {}, "nobody died"
    with pytest.raises(InputError) as heard:  # so does the learner, which waits there
        services.buffer.take(0, shard=0, shards=1, timeout=1.0)
    assert str(heard.value) == crew.failure.message
    crew.dismiss()


@pytest.mark.ray
@pytest.mark.parametrize("victim", ["ledger", "buffer", "weights", "teacher-0"])
def test_the_death_of_a_service_is_a_sentence_that_names_it(ray_cluster, run_in, quiet, victim):
    endless = ("learner.steps=100000", "learner.export_every=0")
    config, workspace = run_in(*endless, "rollout.workers=1", "teacher.max_restarts=0")
    steps = 2

    def kill(made):
        until(lambda: len(made["metrics"].since(0)) >= steps)
        ray_cluster.kill(made[victim]._actor)

    with pytest.raises(RunFailed, match=f"the process of {victim} died: .*--resume"):
        distill(config, workspace, quiet, local=False, launch=lambda: beside(kill))
    kept = sorted(workspace.snapshots.rglob("facts.json"))
    if victim != "ledger":  # it alone knows which leases are trained
        assert json.loads(kept[-1].read_text())["step"] >= steps
    assert not (workspace.root / "faults.log").exists()


def test_what_nobody_foresaw_leaves_its_traceback_in_a_file(tmp_path):
    try:
        raise KeyError("x")
    except KeyError as error:
        sentence = FaultLog(tmp_path).sentence("worker-1", error)
    assert sentence.startswith("KeyError: 'x' (the traceback is in ")
    trace = (tmp_path / "faults.log").read_text()
    assert "worker-1" in trace
    assert 'raise KeyError("x")' in trace
    assert FaultLog(tmp_path).sentence("w", InputError("says it all")) == "says it all"


def test_an_exception_that_nobody_caught_is_a_sentence_and_a_file(tmp_path):
    code = "from deploy.console.faults import report_faults; report_faults('distill'); {}['lost']"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 1
    (log,) = tmp_path.glob("varkd-fault-*.log")
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("varkd distill: KeyError: 'lost'; ")
    assert sentence.endswith(str(log))
    assert "Traceback" in log.read_text()
