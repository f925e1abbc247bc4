"""Configs: every number has two bounds, every type is strict, and any path or text has an end."""

import os
import socket
import typing
from pathlib import Path
from types import UnionType

import annotated_types
import pytest
from building.configs import all_configs
from building.texts import texts
from hypothesis import example, given, settings
from pydantic.fields import FieldInfo

from common.config.schema import UserPath, load_config
from common.config.toml_tree import DEPTH, apply_override, read_toml
from common.errors import InputError
from common.files.paths import TEXT_BYTES, read_text, user_path
from deploy.config import RunConfig
from deploy.run_folder.opening import open_run
from deploy.study.config import open_study


def leaves(annotation, limits=()):
    """(type, limits) of everything that a field may hold, inside unions, tuples and Annotated."""
    if isinstance(annotation, FieldInfo):
        yield from leaves(annotation.annotation, (*limits, *annotation.metadata))
    elif typing.get_origin(annotation) is typing.Annotated:
        inner, *more = typing.get_args(annotation)
        flat = [m for item in more for m in getattr(item, "metadata", [item])]
        yield from leaves(inner, (*limits, *flat))
    elif typing.get_origin(annotation) is typing.Literal:
        return
    elif args := typing.get_args(annotation):
        is_union = typing.get_origin(annotation) in (typing.Union, UnionType)
        for part in args:
            yield from leaves(part, limits if is_union else ())
    else:
        yield annotation, limits


CONFIGS = all_configs()
FIELDS = [(c, n) for c in CONFIGS for n in c.model_fields]


def test_the_walk_finds_the_configs_of_every_package():
    names = {f"{c.__module__}.{c.__qualname__}" for c in CONFIGS}
    assert {
        "common.models.backbones.var.Config",
        "learner.objectives.sinkd.Config",
        "deploy.study.sections.BudgetConfig",
        "rollout.contexts.teacher.Config",
        "teacher_server.batching.BatchingConfig",
    } <= names
    assert len(FIELDS) > 150


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=lambda v: getattr(v, "__module__", v))
def test_every_number_of_every_config_has_two_finite_bounds(cls, name):
    assert cls.model_config["strict"]
    assert cls.model_config["allow_inf_nan"] is False
    for kind, limits in leaves(cls.model_fields[name]):
        if kind in (int, float):
            lower = [x for x in limits if isinstance(x, annotated_types.Ge | annotated_types.Gt)]
            upper = [x for x in limits if isinstance(x, annotated_types.Le | annotated_types.Lt)]
            assert lower, f"{name} has no lower bound"
            assert upper, f"{name} has no upper bound"
        if kind is Path:
            inner = typing.get_args(UserPath)[1:]
            assert any(i in limits for i in inner), f"{name} is no UserPath: ~ stays what it is"


WRONG = [
    ("seed", "true", "valid integer"),
    ("seed", '"3"', "valid integer"),
    ("seed", "3.0", "valid integer"),
    ("seed", "-1", "greater than or equal to 0"),
    ("learner.steps", "inf", "valid integer"),
    ("learner.steps", "1000000000000", "less than or equal to"),
    ("learner.optimizer.max_grad_norm", "inf", "finite number"),
    ("learner.optimizer.max_grad_norm", "nan", "finite number"),
    ("learner.optimizer.max_grad_norm", "1e400", "finite number"),
    ("learner.optimizer.max_grad_norm", "true", "valid number"),
    ("learner.optimizer.betas", "[0.9, true]", "valid number"),
    ("learner.ordered", "1", "valid boolean"),
    ("learner.ordered", '"yes"', "valid boolean"),
    ("sample.per_class", "1000000000000", "less than or equal to"),
    ("tokenizer.vocab_size", "1000000000000", "less than or equal to"),
    ("sample.sampling.guidance", "true", "valid number"),
    ("images.channels", "true", r"images\.channels: Input should be 1 or 3 \(found True\)"),
    ("images.channels", "1.0", r"images\.channels: Input should be 1 or 3 \(found 1\.0\)"),
    ("learner.steps", "9" * 25, "more than 64 bits"),
    ("learner.steps", "0x" + "f" * 6000, "more than 64 bits"),
    ("learner.steps", "9" * 6000, "valid integer"),
    ("learner.weights", '"a\\u0000b"', "cannot hold the character NUL"),
    ("learner.weights", '"' + "a" * 300 + '"', "the path is too long"),
    ("learner.weights", "[" * 5000, "nested too deeply"),
    ("learner.weights", "[" * 40 + "]" * 40, "nested more than 32 deep"),
]


@pytest.mark.parametrize(("key", "value", "message"), WRONG)
def test_values_of_another_type_or_without_sense_are_refused(key, value, message):
    with pytest.raises(InputError, match=message) as caught:
        open_run(Path("smoke"), [f"{key}={value}"])
    assert len(str(caught.value)) < 400


def test_numbers_lists_and_home_folders_are_taken_as_meant(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    overrides = ["learner.optimizer.max_grad_norm=2", "learner.optimizer.betas=[0, 0.5]"]
    config, _ = open_run(Path("smoke"), [*overrides, "learner.weights=~/a.pt"])
    assert config.learner.optimizer.max_grad_norm == 2.0
    assert config.learner.optimizer.betas == (0.0, 0.5)
    assert config.learner.weights == tmp_path / "a.pt"


STRANGE_OVERRIDES = ["a..b=1", "=1", ".a=1", "a.=1", " =1", "a. .b=1", "seed", ".".join("a" * 99)]


@pytest.mark.parametrize("override", [*STRANGE_OVERRIDES, ".".join("a" * 99) + "=1"])
def test_overrides_without_a_sensible_key_are_refused(override):
    with pytest.raises(InputError, match=r"must look like section.key=value|within one another"):
        apply_override({}, override)


def test_a_second_line_in_an_override_sets_nothing_else():
    tree = {}
    apply_override(tree, "title=1\nseed = 5")
    assert tree == {"title": "1\nseed = 5"}


@given(texts(60), texts(60))
@example("learner.steps", "[" * 3000)
@example("learner.\ud800", "1")
@settings(max_examples=150, deadline=None)
def test_any_override_is_taken_or_refused_with_one_sentence(key, value):
    said = ""
    try:
        apply_override({}, f"{key}={value}")
    except InputError as error:
        said = str(error)
    assert len(said) < 300
    assert said.isprintable()


def nested(depth):
    return "[" * depth + "]" * depth


def make(folder, name):
    """A path to something that is no config."""
    path = folder / f"{name}.toml"
    if name == "loop":
        path.symlink_to(folder / "back.toml")
        (folder / "back.toml").symlink_to(path)
    elif name == "folder":
        path.mkdir()
    elif name == "pipe":
        os.mkfifo(path)
    elif name == "zero":
        path.symlink_to("/dev/zero")
    elif name == "null":
        path.symlink_to("/dev/null")
    elif name == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    elif name == "large":
        with path.open("wb") as file:
            file.truncate(100 * 2**30)
    elif name == "latin":
        path.write_bytes("title = 'é'".encode("latin-1"))
    elif name == "deep":
        path.write_text(f"a = {nested(20_000)}")
    elif name == "tables":
        path.write_text(f"[{'.'.join('a' * 5000)}]\nb = 1")
    elif name == "digits":
        path.write_text("seed = " + "9" * 10_000)
    elif name == "bits":
        path.write_text("seed = 0x" + "f" * 10_000)
    elif name == "inside":
        (folder / "file").write_text("")
        path = folder / "file" / "a.toml"
    elif name == "binary":
        path.write_bytes(bytes(range(256)))
    return path


NO_CONFIGS = {
    "loop": "links go in a circle",
    "pipe": "is a pipe; expected a TOML file",
    "zero": "is a device; expected a TOML file",
    "null": "is a device; expected a TOML file",
    "socket": "expected a TOML file",
    "large": "larger than 1048576 bytes",
    "latin": "not valid UTF-8 at byte 9",
    "deep": "nested too deeply",
    "tables": "nested more than 32 deep",
    "digits": "not valid TOML",
    "bits": "more than 64 bits",
    "inside": "not a directory",
    "binary": "not valid",
    "folder": "is no run folder",  # a run folder without a config
    "nothing": "no such config file",
}


@pytest.mark.parametrize("name", NO_CONFIGS)
def test_whatever_a_config_path_names_there_is_a_sentence(tmp_path, name):
    path = make(tmp_path, name)
    with pytest.raises(InputError, match=NO_CONFIGS[name]) as caught:
        open_run(path, [])
    assert str(tmp_path) in str(caught.value)
    if name != "folder":
        with pytest.raises(InputError, match=NO_CONFIGS[name]):
            open_study(path, [])


@pytest.mark.parametrize("name", ["a\0b.toml", "a" * 300, "\udce9.toml", "x/" * 3000])
def test_impossible_names_are_refused(name):
    with pytest.raises(InputError, match=r"NUL|too long|UTF-8"):
        user_path(name)
    with pytest.raises(InputError, match=r"NUL|too long|UTF-8"):
        open_run(Path(name), [])
    with pytest.raises(InputError, match=r"NUL|too long|UTF-8"):
        open_run(Path("smoke"), [], Path(name))


def test_a_link_loop_among_the_weights_is_refused_when_the_run_is_opened(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for key in ("learner.weights", "teacher.weights", "evaluate.inception_weights", "out"):
        with pytest.raises(InputError, match="links go in a circle"):
            open_run(Path("smoke"), [f"{key}={loop}/a.pt"])


def test_an_unreadable_file_is_said_to_be_one(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(InputError, match="permission denied; expected a TOML file"):
        read_toml(path)


def test_a_byte_order_mark_and_other_line_ends_are_read(tmp_path):
    path = tmp_path / "a.toml"
    path.write_bytes(b"\xef\xbb\xbfa = 1\r\nb = '\xc3\xa9'\r\n")
    assert read_toml(path) == {"a": 1, "b": "é"}


def test_the_largest_text_is_read_and_one_byte_more_is_not(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("#" * TEXT_BYTES)
    assert len(read_text(path, "a text")) == TEXT_BYTES
    path.write_text("#" * (TEXT_BYTES + 1))
    with pytest.raises(InputError, match="so it is not a text"):
        read_text(path, "a text")


def test_nesting_up_to_the_limit_is_read(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(f"a = {nested(DEPTH - 1)}")
    assert read_toml(path)["a"]
    path.write_text(f"a = {nested(DEPTH + 1)}")
    with pytest.raises(InputError, match="nested more than"):
        read_toml(path)


def test_thousands_of_unknown_keys_make_one_short_message(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("\n".join(f"key_{i} = {i}" for i in range(5000)))
    with pytest.raises(InputError, match=r"and \d+ more") as caught:
        load_config(RunConfig, path)
    assert len(str(caught.value)) < 1000
