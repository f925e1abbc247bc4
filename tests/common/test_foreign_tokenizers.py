"""Files of tokenizers as others leave them, and the mode of files of ours."""

import pytest
import torch
from building.headers import with_header
from safetensors.torch import load_file, save_file

from common.errors import InputError
from common.files.tensors import save_tensors
from common.tokenization.tokenizer import load_tokenizer, save_tokenizer
from common.tokenization.tokenizers import patch_kmeans

TOKENIZER = patch_kmeans.Config(vocab_size=8, patch=2)


@pytest.mark.parametrize(
    "change",
    [
        {"image": None},
        {"image": "3"},
        {"image": '{"size": 1000000000, "channels": 1}'},
        {"image": '{"size": 8, "channels": 2}'},
        {"image": '{"size": 8}'},
        {"image": '{"size": true, "channels": 1}'},
        {"image": '{"size": 7, "channels": 1}'},
        {"image": '{"size": 8, "channels": 3}'},
        {"config": '{"kind": "patch_kmeans", "vocab_size": 1048576, "patch": 2}'},
        {"config": '{"kind": "conv_vq"}'},
        {"config": "nothing"},
        {"format": "varkd-9"},
    ],
    ids=str,
)
def test_headers_of_tokenizers_are_compared_with_what_the_file_holds(tmp_path, change):
    path = tmp_path / "tokenizer.safetensors"
    tokenizer = TOKENIZER.build(size=8, channels=1)
    save_tokenizer(path, tokenizer, TOKENIZER, size=8, channels=1)
    assert torch.equal(load_tokenizer(path).codebook_VD, tokenizer.codebook_VD)
    save_file(load_file(path), path, with_header(path, **change))
    with pytest.raises(InputError, match=r"tokenizer\.safetensors"):
        load_tokenizer(path)


def test_a_tokenizer_with_a_code_that_is_no_number_is_refused(tmp_path):
    path = tmp_path / "tokenizer.safetensors"
    tokenizer = TOKENIZER.build(size=8, channels=1)
    tokenizer.codebook_VD[2, 1] = torch.nan
    save_tokenizer(path, tokenizer, TOKENIZER, size=8, channels=1)
    with pytest.raises(InputError, match="code_VD holds values that are not finite"):
        load_tokenizer(path)


def test_files_of_ours_follow_the_umask(tmp_path):
    import os

    for mask, mode in ((0o022, 0o644), (0o002, 0o664), (0o077, 0o600)):
        before = os.umask(mask)
        try:
            save_tensors(tmp_path / "deep" / "a.safetensors", {"a": torch.zeros(2)}, {})
        finally:
            os.umask(before)
        assert (tmp_path / "deep" / "a.safetensors").stat().st_mode & 0o777 == mode
