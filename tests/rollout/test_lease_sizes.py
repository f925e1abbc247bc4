"""rollout.batch_size = 0: the run chooses how many images are decoded together."""

from pathlib import Path

import pytest

from common.config.schema import dump_toml
from common.errors import InputError
from deploy.run_folder.opening import open_run


def chosen(tmp_path, *overrides):
    config, _ = open_run(Path("smoke"), ["rollout.batch_size=0", *overrides], tmp_path)
    return config.rollout.batch_size


@pytest.mark.parametrize(
    ("size", "images", "settings"),
    [
        (256, 1024, ["rollout.workers=4", "rollout.gpus=0.5"]),
        (256, 4096, ["rollout.workers=1", "rollout.device=cuda"]),
        (64, 4096, ["rollout.workers=1"]),
        (32, 64, ["rollout.workers=2"]),
        (16, 64, ["rollout.workers=4"]),
        (12, 48, ["rollout.workers=4"]),
        (18, 72, ["rollout.workers=4", "learner.world_size=2"]),
        (24, 96, ["rollout.workers=3", "rollout.group.size=12"]),
        (1, 2, ["rollout.workers=4"]),
    ],
)
def test_every_worker_has_a_lease_of_each_step_and_none_is_larger_than_pays(
    tmp_path, size, images, settings
):
    learner = [f"learner.global_batch_size={images}", f"learner.micro_batch={images}"]
    assert chosen(tmp_path, *learner, *settings) == size


def test_groups_that_do_not_fill_a_step_are_refused_as_always(tmp_path):
    with pytest.raises(InputError, match=r"rollout\.batch_size 5 times learner\.world_size 1"):
        chosen(tmp_path, "learner.global_batch_size=32", "rollout.group.size=5")


def test_a_run_keeps_what_it_chose(tmp_path):
    fields = ["rollout.batch_size=0", "learner.global_batch_size=64", "rollout.workers=4"]
    first, _ = open_run(Path("smoke"), fields, tmp_path)
    assert first.rollout.batch_size == 16
    (tmp_path / "config.toml").write_text(dump_toml(first))
    again, _ = open_run(tmp_path, ["rollout.workers=2"])
    assert again.rollout.batch_size == 16
