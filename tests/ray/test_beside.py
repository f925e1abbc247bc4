"""Work that another process does beside this one."""

import os
import time

import psutil
import pytest
from building.waiting import until

from deploy.backend.beside import beside


@pytest.mark.ray
def test_work_is_done_in_another_process_when_the_block_ends(ray_cluster, tmp_path):
    path = tmp_path / "pid"

    def write():
        time.sleep(0.5)
        path.write_text(str(os.getpid()))

    with beside("write", write):
        assert not path.exists()
    assert int(path.read_text()) != os.getpid()


@pytest.mark.ray
def test_work_that_fails_is_nobodys_concern(ray_cluster):
    def fail():
        raise ValueError("no image")

    with beside("fail", fail):
        pass


@pytest.mark.ray
def test_a_block_that_raises_ends_the_work(ray_cluster, tmp_path):
    path = tmp_path / "pid"

    def wait():
        path.write_text(str(os.getpid()))
        time.sleep(600)

    def give_up():
        with beside("wait", wait):
            until(lambda: path.exists() and path.read_text())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        give_up()
    until(lambda: not psutil.pid_exists(int(path.read_text())))
