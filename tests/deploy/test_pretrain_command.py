"""`varkd pretrain` as a command: what is finished stays, what is stopped or killed goes on."""

import json
import signal
import time
from pathlib import Path

import pytest
import torch
from building.runs import TINY

from common.files.tensors import load_tensors, read_metadata
from deploy.main import main
from deploy.run_folder.opening import open_run
from deploy.stages.pretrain import pretrain_model


def varkd(capsys, *arguments):
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = end.code
    return code, " ".join(capsys.readouterr().err.split())


def test_what_is_finished_stays_until_something_changes(run_in, quiet, capsys):
    config, workspace = run_in("pretrain.teacher.steps=2", "pretrain.teacher.checkpoint_every=1")
    pretrain_model(config, workspace, "teacher", quiet)
    assert not workspace.pretraining.exists() or not list(workspace.pretraining.iterdir())
    before = workspace.teacher.stat()
    code, shown = varkd(capsys, "pretrain", workspace.root, "--model", "teacher")
    assert code == 0
    assert "was made from the same before and stays" in shown
    assert workspace.teacher.stat().st_mtime_ns == before.st_mtime_ns
    rows = (workspace.root / "pretrain_teacher.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2]
    assert {"loss", "entropy", "grad_norm", "lr"} <= json.loads(rows[0]).keys()
    assert list((workspace.board / "pretrain_teacher").glob("events*"))

    # Not of the numbers, so not of the file.
    changed = run_in("pretrain.teacher.steps=2", "pretrain.teacher.checkpoint_every=0")[0]
    pretrain_model(changed, workspace, "teacher", quiet)
    assert workspace.teacher.stat().st_mtime_ns == before.st_mtime_ns

    arguments = ("pretrain", workspace.root, "--model", "teacher", "pretrain.teacher.steps=3")
    code, shown = varkd(capsys, *arguments)
    assert code == 0
    assert "made anew, for pretrain.teacher.steps was 2 and is 3" in shown
    assert read_metadata(workspace.teacher)["pretrain"]["steps"] == 3


def test_a_teacher_that_was_distilled_from_is_trained_again_only_on_demand(run_in, quiet, capsys):
    config, workspace = run_in("pretrain.teacher.steps=2")
    pretrain_model(config, workspace, "teacher", quiet)
    before = workspace.teacher.read_bytes()
    workspace.student.write_bytes(b"distilled")
    arguments = ("pretrain", workspace.root, "--model", "teacher", "pretrain.teacher.batch_size=32")
    code, shown = varkd(capsys, *arguments)
    assert code == 2
    assert "pretrain.teacher.batch_size was" in shown
    assert "was distilled from it as it is" in shown
    assert workspace.teacher.read_bytes() == before
    code, shown = varkd(capsys, *arguments, "--restart")
    assert code == 0
    assert workspace.teacher.read_bytes() != before


@pytest.mark.parametrize("damage", [b"", b"\x10\x00", b"\xff" * 64])
def test_a_damaged_file_is_made_anew(run_in, quiet, capsys, damage):
    config, workspace = run_in("pretrain.student.steps=2")
    pretrain_model(config, workspace, "student", quiet)
    good = load_tensors(workspace.student_before)[0]
    workspace.student_before.unlink()  # what was read is mapped from it
    workspace.student_before.write_bytes(damage)
    code, shown = varkd(capsys, "pretrain", workspace.root, "--model", "student")
    assert code == 0, shown
    again = load_tensors(workspace.student_before)[0]
    assert all(torch.equal(again[name], good[name]) for name in good)


LONG = "pretrain.student.steps=120"


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory, quiet):
    """The folder of a pretraining of 120 steps that nobody stopped."""
    root = tmp_path_factory.mktemp("whole")
    for name in ("tokenizer.safetensors", "tokens"):
        (root / name).symlink_to(prepared / name)
    config, workspace = open_run(Path("smoke"), [*TINY, LONG], root)
    pretrain_model(config, workspace, "student", quiet)
    return workspace


def cut_short(server, workspace, number):
    """(exit status, what was shown) of a pretraining that gets a signal after 20 steps."""
    command = ["pretrain", workspace.root, "--model", "student"]
    running = server.begin(command, workspace.root)
    log = workspace.root / "pretrain_student.jsonl"
    while not log.exists() or log.read_text().count("\n") < 20:
        assert running.process.is_alive(), running.ended()
        time.sleep(0.005)
    running.send(number)
    done = running.ended(120)
    return done.code, done.out + done.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "kept"), [(signal.SIGINT, ()), (signal.SIGTERM, ()), (signal.SIGKILL, (7,))]
)
def test_commands_that_are_stopped_or_killed_go_on(server, run_in, whole, capsys, number, kept):
    """Ctrl-C ends with 130, SIGTERM with 0, and both say how to go on; kill -9 costs the steps
    since the last snapshot."""
    settings = [LONG, *(f"pretrain.student.checkpoint_every={n}" for n in kept)]
    config, workspace = run_in(*settings, name="cut")
    workspace.keep_config(config)
    workspace.student_before.unlink()
    code, shown = cut_short(server, workspace, number)
    if number == signal.SIGKILL:
        assert code == -number
    else:
        assert code == (130 if number == signal.SIGINT else 0), shown
        name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        assert f"stopped by {name} after step" in " ".join(shown.split())
        assert "varkd pretrain . --model student --resume" in shown
    assert not workspace.student_before.exists()
    code, shown = varkd(capsys, "pretrain", workspace.root, "--model", "student")
    assert code == 2
    assert "go on with --resume, or throw it away with --restart" in shown
    code, shown = varkd(capsys, "pretrain", workspace.root, "--model", "student", "--resume")
    assert code == 0, shown
    found, wanted = (load_tensors(w.student_before)[0] for w in (workspace, whole))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    losses = [
        [
            (row["step"], row["loss"])
            for row in map(json.loads, (w.root / "pretrain_student.jsonl").open())
        ]
        for w in (workspace, whole)
    ]
    assert losses[0] == losses[1]
    assert [step for step, _ in losses[0]] == list(range(1, 121))


def test_a_training_may_begin_from_weights_that_are_there(run_in, quiet, prepared):
    """From one with a table of tokens, a model that reads vectors begins as the same model; the
    first loss says so. A table of random vectors would be far from it."""
    still = ("pretrain.teacher.optimizer.learning_rate=1e-9", "pretrain.teacher.class_dropout=0.0")
    start = f"pretrain.teacher.start={prepared / 'teacher.safetensors'}"
    reads = "models.teacher.vector_width=4"
    first = {}
    for name, overrides in {
        "fresh": (reads,),
        "adapted": (reads, start),
        "same": (start,),
    }.items():
        given = ("pretrain.teacher.steps=1", *still, *overrides)
        config, workspace = run_in(*given, name=name)
        workspace.teacher.unlink()
        pretrain_model(config, workspace, "teacher", quiet)
        row = (workspace.root / "pretrain_teacher.jsonl").read_text().splitlines()[0]
        first[name] = json.loads(row)["loss"]
    gained = first["fresh"] - first["same"]
    assert gained > 0.05
    assert abs(first["adapted"] - first["same"]) < 0.1 * gained
