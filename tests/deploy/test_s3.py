"""A run at s3://, in a bucket of moto's server on this machine."""

import os
import shutil
import socket
import subprocess
import sys
from urllib.request import Request, urlopen

import pytest
from building.runs import BASE, TINY
from building.waiting import until

SERVER = shutil.which("moto_server")
SECRET = "hidden-from-everybody"


@pytest.fixture
def bucket():
    """Host and port of a server with a bucket called `bucket`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        place = f"127.0.0.1:{free.getsockname()[1]}"
    words = [str(SERVER), "-H", "127.0.0.1", "-p", place.rpartition(":")[2]]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def answers():
        try:
            return urlopen(Request(f"http://{place}/bucket", method="PUT")).status == 200
        except OSError:
            return False

    try:
        until(answers, seconds=60)
        yield place
    finally:
        server.kill()
        server.wait()


@pytest.mark.long
@pytest.mark.skipif(SERVER is None, reason="needs moto_server (pipx install 'moto[server]')")
def test_a_run_in_a_bucket_goes_on_elsewhere_and_waits_for_the_bucket(bucket, prepared, tmp_path):
    url = f"s3://bucket/runs/one?endpoint_override={bucket}&scheme=http&region=us-east-1"
    keys = {"AWS_ACCESS_KEY_ID": "known", "AWS_SECRET_ACCESS_KEY": SECRET}

    def begun(machine, *words):
        own = {"XDG_CACHE_HOME": str(tmp_path / machine), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "deploy.main", *map(str, words)],
            env=os.environ | keys | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def varkd(machine, *words):
        process = begun(machine, *words)
        said, _ = process.communicate(timeout=120)
        assert SECRET not in said
        return process.returncode, said

    words = ("distill", "smoke", "--local", *TINY, *BASE)
    code, said = varkd("a", *words, "learner.steps=4", "--from", prepared, "--out", url)
    assert (code, f"next:  varkd evaluate '{url}'" in said) == (0, True), said
    code, said = varkd("b", *words, "--out", url)
    assert (code, "holds a run already" in said) == (2, True), said
    code, said = varkd("b", "sample", url, "--per-class", "1")
    assert code == 0, said
    process = begun("c", "distill", url, "--local", "--resume", "learner.steps=1000000")
    until(lambda: "state       running" in varkd("d", "status", url)[1], seconds=60)
    code, said = varkd("d", "stop", url)
    assert (code, f"next:  varkd distill '{url}' --resume" in said) == (0, True), said
    assert process.communicate(timeout=60)[0].count(SECRET) == 0
    assert process.returncode == 0
    code, said = varkd("d", "status", url.replace("bucket", "nobody"))
    assert (code, "there is no bucket nobody" in said) == (2, True), said
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in found if SECRET.encode() in path.read_bytes()]
