"""Pickles that hold code, are damaged, or want more memory than they have bytes: all refused."""

import argparse
import builtins
import collections
import functools
import importlib
import io
import os
import pickle
import pickletools
import resource
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from building.measured import reading
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import InputError
from common.files.pickled import PARTS, inspect, read_pickle

MARK = "was-here"


class Calls:
    """Pickles into a call of `function`."""

    def __init__(self, function, *arguments):
        self._call = function, arguments

    def __reduce__(self):
        return self._call


def chain():
    """getattr(os, "system")(...) in steps, as a scanner for os.system would miss it."""
    found = Calls(getattr, Calls(importlib.import_module, "os"), "system")
    return Calls(functools.partial, found, f"touch {MARK}")


MALICE = {
    "os.system": (lambda: Calls(os.system, f"touch {MARK}"), "posix.system"),
    "eval": (lambda: Calls(builtins.eval, f"open('{MARK}', 'w')"), "builtins.eval"),
    "exec": (lambda: Calls(builtins.exec, f"open('{MARK}', 'w')"), "builtins.exec"),
    "nested": (lambda: Calls(len, Calls(os.system, f"touch {MARK}")), "builtins.len"),
    "subprocess": (lambda: Calls(subprocess.Popen, ["touch", MARK]), "subprocess.Popen"),
    "chain": (chain, "functools.partial, builtins.getattr, importlib.import_module"),
    "numpy scalar": (lambda: np.float64(1.5), "scalar"),
    "numpy array": (lambda: np.zeros(3), "_reconstruct"),
    "memory": (lambda: Calls(bytearray, 2**36), "builtins.bytearray"),
    "tensor class": (lambda: Calls(torch.FloatTensor, 2**36), "torch.FloatTensor"),
    "a class of ours": (lambda: Calls(argparse.ArgumentParser), "argparse.ArgumentParser"),
}
FORMATS = {
    "zip": {},
    "legacy": {"_use_new_zipfile_serialization": False},
    "legacy, protocol 4": {"_use_new_zipfile_serialization": False, "pickle_protocol": 4},
    "zip, protocol 4": {"pickle_protocol": 4},
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", MALICE)
def test_code_is_named_and_never_run(tmp_path, monkeypatch, name, form):
    monkeypatch.chdir(tmp_path)
    allowed = set(torch.serialization.get_safe_globals())
    make, wanted = MALICE[name]
    torch.save({"model": {"a": torch.ones(2)}, "x": make()}, "evil.pt", **FORMATS[form])
    with pytest.raises(InputError, match=r"evil\.pt: holds code, not only tensors") as caught:
        read_pickle(Path("evil.pt"))
    said = str(caught.value)
    assert wanted in said
    assert "\n" not in said
    for advice in ("weights_only", "allowlist", "safe_globals", "download", "add_safe"):
        assert advice not in said
    assert not Path(MARK).exists()
    assert set(torch.serialization.get_safe_globals()) == allowed


def test_a_plain_pickle_and_one_that_ends_early_name_what_they_wanted(tmp_path):
    path = tmp_path / "evil.pth"
    whole = pickle.dumps(Calls(os.system, "true"), protocol=4)
    for content in (whole, whole[:-3], b"cos\nsystem\n(S'true'\ntR.", b"(S'true'\nios\nsystem\n."):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"would run (posix|os)\.system"):
            read_pickle(path)


def test_names_that_come_back_from_the_memo_are_named(tmp_path):
    """`posix` and `system` are read once, then fetched from the memo for STACK_GLOBAL."""
    path = tmp_path / "evil.pth"
    strings = b"\x8c\x05posix\x94\x8c\x06system\x94"
    path.write_bytes(b"\x80\x04" + strings + b"00h\x00h\x01\x93.")
    assert [op.name for op, _, _ in pickletools.genops(path.read_bytes())][-2] == "STACK_GLOBAL"
    with pytest.raises(InputError, match=r"would run posix\.system"):
        read_pickle(path)


def test_the_tar_format_of_old_is_refused_without_looking_inside(tmp_path):
    path = tmp_path / "old.pth"
    with tarfile.open(path, "w") as tar:
        for name in ("storages", "tensors", "pickle"):
            content = pickle.dumps(Calls(os.system, f"touch {tmp_path / MARK}"))
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(InputError, match=r"old\.pth: a tar archive"):
        read_pickle(path)
    assert not (tmp_path / MARK).exists()


def rezipped(source, target, change):
    """A copy of a checkpoint, each record through `change(name, content, archive)`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for record in old.infolist():
            change(record.filename, old.read(record), new)


def test_archives_that_unpack_to_something_else_are_refused(tmp_path):
    good, bad = tmp_path / "good.pt", tmp_path / "bad.pt"
    torch.save({"a": torch.ones(3)}, good)

    def compress(name, content, archive):
        archive.writestr(name, content, zipfile.ZIP_DEFLATED)

    rezipped(good, bad, compress)
    with pytest.raises(InputError, match="is compressed"):
        read_pickle(bad)

    def inflate(name, content, archive):
        extra = b"\0" * 2**26 if name.endswith(".pkl") else b""
        archive.writestr(name, content + extra, zipfile.ZIP_DEFLATED)

    rezipped(good, bad, inflate)
    assert bad.stat().st_size < 2**20
    with pytest.raises(InputError, match="is compressed"):
        read_pickle(bad)

    def double(name, content, archive):
        archive.writestr(name, content)
        if name.endswith("data.pkl"):
            archive.writestr(name, content)

    with pytest.warns(UserWarning, match="Duplicate name"):
        rezipped(good, bad, double)
    with pytest.raises(InputError, match="two records"):
        read_pickle(bad)
    rezipped(good, bad, lambda n, c, z: None if n.endswith(".pkl") else z.writestr(n, c))
    with pytest.raises(InputError, match=r"without data\.pkl"):
        read_pickle(bad)
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(bad))
    with pytest.raises(InputError, match="TorchScript program"):
        read_pickle(bad)


def test_what_official_trainers_store_is_read(tmp_path):
    path = tmp_path / "a.pt"
    stored = {
        "model": collections.OrderedDict(a=torch.ones(2, dtype=torch.bfloat16)),
        "parameter": torch.nn.Parameter(torch.zeros(2, 3)),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4}]},
        "args": argparse.Namespace(lr=1e-4, betas=(0.9, 0.95), name="x"),
        "types": (torch.float16, torch.int64, torch.bool, torch.device("cpu"), torch.Size([2])),
        "bytes": b"abc",
        "set": {1, 2},
    }
    for form in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save(stored, path, **form)
        back = read_pickle(path)
        assert torch.equal(back["model"]["a"], stored["model"]["a"])
        assert torch.equal(back["parameter"], stored["parameter"])
        for key in ("args", "types", "bytes", "set", "optimizer"):
            assert back[key] == stored[key], key
    assert not inspect(path)


def test_nothing_that_is_allowed_makes_much_out_of_little():
    for name in ("builtins bytearray", "torch FloatTensor", "builtins getattr", "torch load"):
        assert not PARTS.fullmatch(name)


def bombs(folder):
    """Small files that claim much."""
    storage = folder / "storage.pth"
    torch.save({"a": torch.ones(4)}, storage, _use_new_zipfile_serialization=False)
    content = storage.read_bytes()
    at = content.index(b"K\x04", content.index(b"cpu"))  # the number of elements, 4, becomes 2^30
    storage.write_bytes(content[:at] + b"J\x00\x00\x00\x40" + content[at + 2 :])
    yield storage
    lists = folder / "lists.pth"
    lists.write_bytes(b"\x80\x02" + b"]" * 2**21)  # of 64 bytes each
    yield lists
    text = folder / "text.pth"
    text.write_bytes(b"\x80\x02X" + (2**32 - 1).to_bytes(4, "little") + b"abc.")
    yield text
    long = folder / "long.pth"
    long.write_bytes(b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"abc.")
    yield long


def test_small_files_never_take_much_memory(tmp_path, server):
    for path in bombs(tmp_path):
        said, used = server.call(reading, path)
        assert "not a readable checkpoint" in said, path.name
        assert used < 2**26, (path.name, used)


@given(data=st.binary(max_size=200), cut=st.integers(0, 3000), flip=st.integers(0, 8 * 1500))
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_bytes_are_a_checkpoint_or_one_sentence(tmp_path, data, cut, flip):
    """Arbitrary files, and real ones with an end cut off or a bit turned over."""
    path = tmp_path / "a.pt"
    torch.save({"a": torch.ones(3), "n": 3}, path, _use_new_zipfile_serialization=cut % 2 == 0)
    content = bytearray(path.read_bytes())
    content[flip // 8 % len(content)] ^= 1 << flip % 8
    for candidate in (data, bytes(content), bytes(content[:cut])):
        path.write_bytes(candidate)
        said = ""
        try:
            read_pickle(path)
        except InputError as error:
            said = str(error)
        assert "\n" not in said
        assert "weights_only" not in said


def test_pipes_devices_and_folders_are_no_checkpoints(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in (
        (tmp_path / "pipe", "a pipe"),
        (Path("/dev/zero"), "a device"),
        (tmp_path, "a folder"),
    ):
        with pytest.raises(InputError, match=f"is {kind}; expected a checkpoint"):
            read_pickle(path)
    with pytest.raises(InputError, match="no such file"):
        read_pickle(tmp_path / "nothing")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2**23
