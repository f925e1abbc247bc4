"""The command line in a shell: pipes, full disks, signals, completion, and how fast it answers."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.cli.config_reference import describe

ROOT = Path(__file__).parents[2]
VARKD = f"{shlex.quote(sys.executable)} -m deploy.main"


def shell(line, **environ):
    """The same as a user's shell runs it: bash, with pipes."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line.replace("varkd", VARKD)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environ},
    )


def test_help_fits_80_columns():
    done = shell("for c in smoke study sample options; do varkd $c --help; done", COLUMNS="80")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 100  # docstrings keep their own lines


def test_versions_come_without_importing_torch_or_ray():
    script = "import sys, deploy.main as m\ntry: m.main(['--version'])\n"
    script += "except SystemExit: print(sorted({'torch', 'ray', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("varkd ")
    assert "torch 2." in lines[1]
    assert "ray 2." in lines[1]
    assert lines[2] == "[]"


def test_a_command_that_ends_leaves_no_objects_to_look_through():
    """The interpreter would follow every reference among all that was imported."""
    script = "import atexit, gc; from deploy.main import main\n"
    script += "atexit.register(lambda: print(gc.get_freeze_count() > 0))\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{script}main(['configs'])"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "True")


def test_bash_completes_commands_options_and_configs(tmp_path):
    script = tmp_path / "varkd.bash"
    lines = [
        f"{VARKD} --print-completion bash > {shlex.quote(str(script))}",
        f"source {shlex.quote(str(script))}",
        "complete -p varkd",
        'try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_varkd; echo ${COMPREPLY[@]}; }',
        "try varkd dis",
        "try varkd distill --rest",
        "try varkd distill cifar",
    ]
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.splitlines()[1:] == ["distill", "--restart", "cifar10 cifar10_conv"]


def test_a_reader_that_leaves_is_no_error():
    done = shell("varkd options | head -1")
    assert done.stdout.startswith("seed (integer >= 0, default 0): Everything random")
    assert done.stderr == ""
    done = shell("varkd --help | true; varkd configs | true; true")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the device is Linux's")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["configs", "options learner"])
def test_a_full_disk_below_stdout_is_one_sentence(command, unbuffered):
    done = shell(f"varkd {command} > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 1
    assert done.stderr == "varkd: cannot write to stdout: no space left on device\n"


@pytest.mark.parametrize(
    ("number", "name", "code"),
    [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 0)],
)
def test_a_command_that_is_stopped_says_so_in_one_line(number, name, code):
    """While it waits for a reader of more than a pipe holds."""
    words = ["options", *["objective"] * 20]
    with subprocess.Popen(
        [sys.executable, "-m", "deploy.main", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        time.sleep(0.5)
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
    assert process.returncode == code
    assert err.decode() == f"\nvarkd options: stopped by {name}; run the same command again\n"


def test_options_are_whole_lines_in_a_pipe_and_wrapped_on_a_terminal(capsys):
    done = shell("varkd options learner.optimizer.ema images.channels | cat")
    assert done.stdout.splitlines() == [
        "learner.optimizer.ema (number >= 0 and < 1, default 0.999): Decay of the averaged "
        "student; ramped up as (1 + t) / (10 + t). 0 copies the student.",
        "images.channels (one of 1 | 3, default 1): 1 converts to grey, 3 to RGB.",
    ]
    for option in describe(""):
        paragraph = option.paragraph(60)
        assert max(map(len, paragraph.splitlines())) <= max(60, len(option.key) + 20)
        assert " ".join(paragraph.split()).endswith(" ".join(option.meaning.split()))
