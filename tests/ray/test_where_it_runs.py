"""The machine and the cluster: refused in a sentence within seconds, private, and left clean."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from common.errors import InputError
from deploy.backend.bundles import Bundles, lack
from deploy.backend.joined_cluster import host_and_port, require_cluster
from deploy.backend.private_cluster import PARENT, private_folder, remove_leftovers, require_limits

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:8265", "the dashboard's"),
        ("ray://127.0.0.1:10001", "the address of Ray Client"),
        ("tcp://127.0.0.1:10001", "not host:port"),
        ("head", "not host:port"),
        ("head:", "not host:port"),
        (":6379", "not host:port"),
        ("head:port", "not host:port"),
        ("head:65536", "not host:port"),
        ("head:0", "not host:port"),
    ],
)
def test_a_malformed_address_is_refused_with_what_it_is(address, words):
    with pytest.raises(InputError, match=f"RAY_ADDRESS is {re.escape(address)}, {words}"):
        require_cluster(address, print)


def test_addresses_have_a_host_and_a_port():
    assert host_and_port("head:6379") == ("head", 6379)
    assert host_and_port("[::1]:6379") == ("::1", 6379)


def test_an_address_where_nobody_listens_is_refused_within_seconds():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    heard = []
    with pytest.raises(InputError, match=f"RAY_ADDRESS is {address}, but nobody answers"):
        require_cluster(address, heard.append, reach_seconds=1.5)
    assert heard == [f"waiting for the Ray cluster at {address} (RAY_ADDRESS)"]


def test_a_server_that_is_not_ray_is_refused_within_seconds():
    with socket.create_server(("127.0.0.1", 0)) as server:  # it accepts, and never says a word
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(InputError, match=f"RAY_ADDRESS is {address}: no Ray cluster answered"):
            require_cluster(address, lambda what: None, answer_seconds=2.0)


@pytest.mark.parametrize(
    ("megabytes", "words"),
    [(1, "needs at least 75"), (2**40, "this machine has .* MB of memory")],
)
def test_an_object_store_that_ray_refuses_is_named_with_its_bound(megabytes, words):
    with pytest.raises(InputError, match=f"cluster.object_store_mb is .*{words}"):
        require_limits(megabytes)


def python(code, shell):
    """Run code in a fresh process of the checkout, after a line of shell."""
    command = ["bash", "-c", f'{shell} exec "$0" "$@"', sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


LIMITS = """
import resource
from deploy.backend.private_cluster import require_limits
from common.errors import InputError
try:
    require_limits(100)
    print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
except InputError as error:
    print(error)
"""


def test_few_open_files_are_raised_to_what_is_allowed_or_refused():
    assert python(LIMITS, "ulimit -Sn 256 &&").stdout.strip() not in ("", "256")
    refused = python(LIMITS, "ulimit -n 256 &&").stdout
    assert "may open 256 files, but Ray needs 1024" in refused


HOLD = """
import sys, time
from deploy.backend.private_cluster import private_folder
with private_folder() as folder:
    print(folder, flush=True)
    time.sleep(600)
"""


def test_the_folder_is_private_and_outlives_nobody():
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    folder = Path(holder.stdout.readline().strip()).parent
    try:
        assert folder.parent == PARENT
        assert folder.stat().st_mode & 0o777 == 0o700
        # Ray adds session_<26 characters>_<pid>/sockets/plasma_store; a socket's name ends at 107.
        longest = folder / "r" / f"session_{'x' * 26}_{2**22}" / "sockets" / "plasma_store"
        assert len(str(longest)) <= 107
        long_ago = time.time() - 3600
        os.utime(folder, (long_ago, long_ago))
        remove_leftovers(PARENT)
        assert folder.exists(), "its owner lives"
        holder.kill()
        holder.wait()
        os.utime(folder, (long_ago, long_ago))
        with private_folder() as another:  # the next start
            assert another.is_dir()
            assert not folder.exists()
        assert not another.parent.exists()
    finally:
        holder.kill()
        holder.wait()


def test_folders_of_others_stay(tmp_path):
    plain = tmp_path / "vk-without-a-lock"
    plain.mkdir()
    (tmp_path / "vk-file").write_text("")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "lock").write_text("")
    (tmp_path / "vk-link").symlink_to(tmp_path / "elsewhere")
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0), follow_symlinks=False)
    remove_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_what_a_cluster_lacks_is_said_with_key_and_sum():
    run = [Bundles("rollout", 2, 1, 0.5), Bundles("teacher", 1, 2, 1)]
    assert lack(run, "CPU", [2, 2]) is None
    assert lack(run, "GPU", [1, 1]) is None
    assert lack(run, "CPU", [1, 1, 1, 1]) == "teacher.cpus is 2, but the cluster has 4 in all"
    assert lack(run, "GPU", [0]) == "rollout.gpus is 0.5, but the cluster has 0"
    assert lack(run, "CPU", [3]) == (
        "the run wants 4 CPUs (rollout 2 x 1, teacher 1 x 2), but the cluster has 3"
    )


def test_a_learner_starts_no_helpers_of_ray_train_that_it_has_no_use_for(monkeypatch):
    """Each is a process; who cleans up after an accident is needed on a cluster that goes on."""
    from ray.train.torch import TorchTrainer

    from deploy.backend.train_job import FewerProcesses, learn_on_rank

    def helpers(trainer):
        return {type(c).__name__ for c in trainer(learn_on_rank)._create_default_callbacks()}

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    every, cleaner = helpers(TorchTrainer), "PlacementGroupCleanerCallback"
    assert every - helpers(FewerProcesses) == {"DatasetsCallback", cleaner}
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert every - helpers(FewerProcesses) == {"DatasetsCallback"}


@pytest.mark.ray
def test_no_port_of_a_private_cluster_is_open_to_other_machines(ray_cluster):
    session = ray_cluster._private.worker._global_node.get_session_dir_path()
    open_to_all, seen = [], 0
    for process in psutil.process_iter(["cmdline", "pid"]):
        command = " ".join(process.info["cmdline"] or [])
        if session not in command and process.pid != os.getpid():
            continue
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                seen += 1
                if connection.laddr.ip.removeprefix("::ffff:") not in ("127.0.0.1", "::1"):
                    open_to_all.append((command[:80], connection.laddr))
    assert seen >= 4  # GCS, raylet, two pages of metrics at least
    assert open_to_all == []
