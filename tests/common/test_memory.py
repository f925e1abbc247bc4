"""What each field allows may be too much together: refused by its sum, before it is allocated."""

from pathlib import Path

import pytest
from torch import nn

from common.errors import InputError
from common.memory import module_bytes, require_memory
from common.tokenization.tokenizer import require_room
from deploy.run_folder.opening import open_run
from deploy.stages.pretrain import pretrain_model
from deploy.stages.tokenize import tokenize


def test_bytes_are_counted_without_being_taken():
    assert module_bytes(lambda: nn.Linear(10, 20)) == 4 * (10 * 20 + 20)
    assert module_bytes(lambda: nn.Embedding(2**20, 2**16)) == 4 * 2**36


def test_more_than_is_free_is_refused_with_both_numbers():
    require_memory(1, "a byte", "nothing")
    with pytest.raises(
        InputError, match=r"^it takes 1048576\.0 GB .*, but [\d.]+ GB are free; stop"
    ):
        require_memory(2**50, "it", "stop")


def test_a_tokenizer_of_many_wide_codes_is_refused_before_images_are_read(tmp_path, quiet):
    overrides = [
        "tokenizer.kind=conv_vq",
        "tokenizer.vocab_size=1048576",
        "tokenizer.code_width=4096",
        "tokenizer.patch=64",
        "images.size=64",
        "images.kind=folder",
        f"images.train={tmp_path / 'none'}",
        "tokenizer.width=65536",
    ]
    config, workspace = open_run(Path("cifar10_conv"), overrides, tmp_path / "run")
    with pytest.raises(InputError, match=r"a tokenizer of these sizes takes .* GB"):
        require_room(config.tokenizer, size=64, channels=3)
    with pytest.raises(InputError):
        tokenize(config, workspace, quiet, local=True)
    assert not workspace.root.exists()


def test_a_model_that_cannot_fit_is_refused_before_anything_is_written(run_in, quiet):
    config, workspace = run_in("models.teacher.width=65536", "models.teacher.depth=64")
    before = sorted(p.name for p in workspace.root.iterdir())
    workspace.teacher.unlink()
    with pytest.raises(InputError, match=r"pretraining models\.teacher takes \d{4,}\.\d GB"):
        pretrain_model(config, workspace, "teacher", quiet)
    assert sorted(p.name for p in workspace.root.iterdir()) == [
        n for n in before if n != "teacher.safetensors"
    ]
