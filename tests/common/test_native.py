"""C sources are compiled when they are first needed; what stands in the way is said."""

import logging
import os
import stat

import pytest

from common.native.compiler import c_compiler
from common.native.compiler import compiled as compile_once
from common.native.library import VARIABLE, native

compiled = native.__wrapped__
"""Without what this process has compiled before."""
needs_compiler = pytest.mark.skipif(c_compiler() is None, reason="no C compiler")


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A source that gives a number, with a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(VARIABLE, raising=False)
    path = tmp_path / "with a space" / "seven.c"
    path.parent.mkdir()
    path.write_text(
        '#include "vector.h"\n#include "beside.h"\nint number(void) { return SEVEN; }\n'
    )
    path.with_name("beside.h").write_text("#define SEVEN 7\n")
    return path


def kept(tmp_path):
    return sorted((tmp_path / "cache" / "varkd" / "native").glob("*"))


@needs_compiler
class TestWithACompiler:
    def test_a_library_is_compiled_once_and_kept_in_a_private_folder(self, source, tmp_path):
        assert compiled(source).library.number() == 7
        (path,) = kept(tmp_path)
        made = path.stat().st_mtime_ns
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert compiled(source).library.number() == 7
        assert [(path, path.stat().st_mtime_ns)] == [(kept(tmp_path)[0], made)]

    def test_another_source_or_header_is_another_library(self, source, tmp_path):
        assert compiled(source).library.number() == 7
        source.with_name("beside.h").write_text("#define SEVEN 8\n")
        assert compiled(source).library.number() == 8
        assert len(kept(tmp_path)) == 2

    def test_a_library_that_was_cut_short_is_made_again(self, source, tmp_path):
        compiled(source)
        (path,) = kept(tmp_path)
        path.unlink()  # not written over: this process has the file mapped
        path.write_bytes(b"\x7fELF")
        assert compiled(source).library.number() == 7

    def test_a_source_that_does_not_compile_is_said_and_leaves_nothing(self, source, tmp_path):
        source.write_text("int number(void) { return EIGHT; }\n")
        said = []
        handler = logging.Handler()
        handler.emit = lambda record: said.append(record.getMessage())
        logger = logging.getLogger("varkd")
        logger.addHandler(handler)
        try:
            found = compiled(source)
        finally:
            logger.removeHandler(handler)
        assert found.library is None
        assert "EIGHT" in found.why
        (sentence,) = said
        assert sentence.startswith("seven.c is not used")
        assert kept(tmp_path) == []

    def test_nothing_is_kept_in_a_folder_that_others_write_to(self, source, tmp_path):
        folder = tmp_path / "cache" / "varkd" / "native"
        folder.mkdir(parents=True)
        folder.chmod(0o777)
        assert compiled(source).library.number() == 7
        assert kept(tmp_path) == []

    @pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
    def test_a_cache_that_cannot_be_written_is_done_without(self, source, tmp_path):
        (tmp_path / "cache").mkdir(mode=0o500)
        assert compiled(source).library.number() == 7


@needs_compiler
@pytest.mark.parametrize("folder", ["cache/varkd", "cache/varkd/native"])
def test_a_cache_within_somebody_elses_folder_is_not_used(source, tmp_path, folder):
    (tmp_path / "cache" / "varkd" / "native").mkdir(parents=True, mode=0o700)
    (tmp_path / folder).chmod(0o777)
    assert compiled(source).library.number() == 7
    assert kept(tmp_path) == []


def script(tmp_path, monkeypatch, text):
    """A compiler that is a script."""
    path = tmp_path / "compiler"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    monkeypatch.setenv("CC", f"{path} -Wall")


@needs_compiler
class TestAnotherCompiler:
    REAL = " ".join(c_compiler() or [])

    @pytest.mark.parametrize("unknown", ["-mavx512bf16", "-fopenmp"])
    def test_one_that_knows_less_is_asked_for_less(self, source, tmp_path, monkeypatch, unknown):
        refusal = f'case " $* " in *" {unknown} "*) echo unknown >&2; exit 1;; esac'
        script(tmp_path, monkeypatch, f'{refusal}\nexec {self.REAL} "$@"')
        assert compiled(source).library.number() == 7
        assert len(kept(tmp_path)) == 1

    def test_what_it_links_but_nobody_loads_is_made_otherwise(self, source, tmp_path, monkeypatch):
        broken = (
            'for last; do :; done; while [ "$1" != -o ]; do shift; done; echo no > "$2"; exit 0'
        )
        refusal = f'case " $* " in *" -fopenmp "*) {broken};; esac'
        script(tmp_path, monkeypatch, f'{refusal}\nexec {self.REAL} "$@"')
        assert compiled(source).library.number() == 7

    def test_one_that_hangs_is_given_up(self, source, tmp_path, monkeypatch):
        script(tmp_path, monkeypatch, "exec sleep 20")
        with pytest.raises(TimeoutError, match=r"compiler takes more than 0\.2 s"):
            compile_once(c_compiler(), source, tmp_path, tmp_path / "made.so", seconds=0.2)
        assert not (tmp_path / "made.so").exists()

    def test_one_that_fails_in_another_language_is_quoted(self, source, tmp_path, monkeypatch):
        script(tmp_path, monkeypatch, "printf 'caf\\351' >&2; exit 1")
        found = compiled(source)
        assert found.library is None
        assert "caf" in found.why


def test_a_home_that_is_no_folder_is_done_without(source, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    (tmp_path / "home").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert (compiled(source).library is None) == (c_compiler() is None)


def test_a_machine_without_a_compiler_is_told_so(source, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    found = compiled(source)
    assert found.library is None
    assert "no C compiler" in found.why
    monkeypatch.setenv("CC", "/no/such/compiler")
    assert "/no/such/compiler" in compiled(source).why


def test_it_can_be_switched_off(source, monkeypatch):
    monkeypatch.setenv(VARIABLE, "0")
    assert compiled(source).why == "VARKD_NATIVE is 0"
