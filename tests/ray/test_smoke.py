"""`varkd smoke` while its models are trained side by side: what ends one of them ends all."""

import re
import signal

import psutil
import pytest
from building.waiting import require_ended, until

from common.files.snapshots import Snapshots
from deploy.run_folder.workspace import Workspace

pytestmark = [pytest.mark.ray, pytest.mark.slow]
LONG = ("pretrain.teacher.steps=100000", "pretrain.teacher.checkpoint_every=0")


@pytest.fixture
def smoke(server, tmp_path, tiny_overrides):
    """Begins the command; the run folder, and what runs, which ends with the test."""
    begun = []

    def begin(*words):
        workspace = Workspace(tmp_path / "run")
        command = ("smoke", "--out", workspace.root, *tiny_overrides, *LONG, *words)
        begun.append(server.begin(command, tmp_path))
        return workspace, begun[-1]

    yield begin
    for running in begun:
        if running.process.is_alive():
            running.send(signal.SIGTERM)
            running.ended(30)


def test_ctrl_c_ends_the_trainings_in_order(smoke):
    """When they are waited for; tests/ray/test_beside.py has what happens before."""
    workspace, running = smoke()
    logs = [workspace.root / f"pretrain_{name}.jsonl" for name in ("teacher", "student")]
    until(lambda: all(log.exists() and log.read_text() for log in logs))
    until(lambda: "pretrain teacher" in running.said())
    everybody = psutil.Process(running.process.pid).children(recursive=True)
    running.send(signal.SIGINT)
    trial = running.ended(120)
    said = trial.out + trial.err
    assert trial.code == 130, said
    done = Snapshots(workspace.pretraining / "teacher").newest_step()
    assert f"stopped by Ctrl-C after step {done}" in said
    assert "varkd smoke: stopped by Ctrl-C; run the same command again" in said
    assert not workspace.teacher.exists()
    require_ended(everybody)


def test_a_model_that_diverges_ends_the_other_training(smoke):
    workspace, running = smoke(
        "pretrain.student.steps=1000",
        "pretrain.student.optimizer={learning_rate=100,weight_decay=100,warmup=0}",
    )
    trial = running.ended(120)
    said = trial.out + trial.err
    assert trial.code == 2, said
    assert re.search(r"varkd smoke: step \d+: the .* is (NaN|infinite)", said)
    assert "lower pretrain.student.optimizer.learning_rate (100)" in said
    assert "Traceback" not in said
    assert not workspace.teacher.exists()
