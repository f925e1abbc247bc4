"""Bad input by the hundred, over all commands and file kinds. Two endings are allowed: success, or
exit code 2 with a sentence; in bounded time and memory, and with nothing left behind.

`VARKD_FUZZ_EXAMPLES=500 pytest tests/deploy/test_fuzz.py` tries more than the usual few; every
example can be written down, and those that once failed are kept in KEPT.
"""

import math
import os
import re

import pytest
from fuzzing.commands import ARGUMENTS, COMMANDS, OVERRIDES, READS, paths
from fuzzing.damage import DAMAGES, Damage, apply
from fuzzing.house import build, copy, tree
from fuzzing.trial import GROWTH_MB, Trial, lacking
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.timeout(1800)
EXAMPLES = int(os.environ.get("VARKD_FUZZ_EXAMPLES", "0"))
TEMPORARY = re.compile(r"\.tmp|~$|(^|/)\.ray_train")
SEALS = ("study/start/start.json",)
"""Says that a start is whole; it is taken off before any part of the start is made again."""
KEPT: list[tuple[str, str, Damage]] = [
    ("sample", "run/*.toml", Damage("folder", 0.9951776705203319)),
    ("study", "study/start/start.json", Damage("fifo")),
    ("study", "study/start/start.json", Damage("device")),
    ("study report", "study/start/start.json", Damage("fifo")),
    ("resume", "run/*.jsonl", Damage("fifo", 0.1413674534886893)),
    ("export", "run/*.json", Damage("device", 0.962900498575463)),
    ("study", "study/start/*.safetensors", Damage("value")),
    ("study", "study/start/*.safetensors", Damage("folder")),
]
"""(command, file, damage) that once ended otherwise."""


def bounded(examples: int):
    """The same examples in every run, unless more are asked for."""
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


@pytest.fixture(scope="module")
def house(server, tmp_path_factory):
    return build(tmp_path_factory.mktemp("fuzz"), server)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("place")


def require_one_of_two(trial: Trial, before: dict, after: dict) -> None:
    """Success or a sentence; what was there before a refusal is there after it."""
    told = f"varkd {' '.join(map(repr, trial.argv))}\n{trial.err[-3000:]}"
    assert trial.code is not None, f"hung: {told}"
    assert trial.code in (0, 2), f"exit code {trial.code}: {told}"
    assert "Traceback" not in trial.err, told
    assert trial.grown_mb < GROWTH_MB, f"took {trial.grown_mb:.0f} MB: {told}"
    left = [name for name in after if TEMPORARY.search(name) and name not in before]
    assert not left, f"left {left}: {told}"
    if trial.code == 0:
        return
    assert len(trial.sentence) > 20, told
    assert "varkd" in trial.sentence, told
    changed = [
        name for name, content in before.items() if after.get(name) != content and name not in SEALS
    ]
    assert not changed, f"changed {changed}: {told}"


def damaged(house, place, server, command: str, name: str, damage: Damage) -> None:
    folder = copy(house, place)
    victims = paths(folder, name)
    apply(damage, victims[int(damage.where * 7919) % len(victims)])
    before = tree(folder)
    trial = server.run(COMMANDS[command], folder)
    try:
        require_one_of_two(trial, before, tree(folder))
    except AssertionError as error:
        error.add_note(f"kept as ({command!r}, {name!r}, {damage!r})")
        raise


def test_commands_are_forked_with_everything_imported(server):
    """A preload that fails is passed over in silence: each command would import by itself."""
    last = ("learner.objectives.varkd", "deploy.commands.tokenize", "deploy.study.start", "sympy")
    assert server.call(lacking, last) == []


@pytest.mark.slow
@bounded(30)
@given(st.sampled_from(READS), DAMAGES)
def test_a_damaged_file_is_survived_or_named(house, place, server, read, damage):
    command, name = read
    damaged(house, place, server, command, name, damage)


@pytest.mark.parametrize(("command", "name", "damage"), KEPT)
def test_damage_that_once_got_through(house, place, server, command, name, damage):
    damaged(house, place, server, command, name, damage)


@pytest.mark.slow
@bounded(30)
@given(OVERRIDES)
def test_an_odd_value_is_taken_or_named(house, place, server, drawn):
    command, override = drawn
    folder = copy(house, place)
    before = tree(folder)
    trial = server.run([*COMMANDS[command], override], folder)
    require_one_of_two(trial, before, tree(folder))


@pytest.mark.slow
@bounded(20)
@given(st.lists(ARGUMENTS, max_size=5))
def test_odd_arguments_are_taken_or_named(house, place, server, argv):
    folder = copy(house, place)
    before = tree(folder)
    trial = server.run(argv, folder)
    assert trial.code in (0, 2), f"varkd {argv}: {trial.code}\n{trial.err[-3000:]}"
    require_one_of_two(trial, before, tree(folder))


def test_the_fuzz_test_can_fail():
    """Each way of failing is noticed: the oracle is not a tautology."""
    good = Trial(
        ("sample",), 2, "", "varkd sample: x.toml: no such config file; pass one", 1.0, 1.0
    )
    require_one_of_two(good, {"a": b""}, {"a": b"", "b": b""})
    bad = [
        (Trial(("x",), None, "", good.err, 1.0, 1.0), {}),
        (Trial(("x",), 1, "", good.err, 1.0, 1.0), {}),
        (Trial(("x",), 2, "", "Traceback (most recent call last)\n" + good.err, 1.0, 1.0), {}),
        (Trial(("x",), 2, "", "", 1.0, 1.0), {}),
        (Trial(("x",), 0, "", "", 1.0, math.inf), {}),
        (Trial(("x",), 0, "", "", 1.0, 1.0), {".a.123.tmp": b""}),
    ]
    for trial, left in bad:
        with pytest.raises(AssertionError):
            require_one_of_two(trial, {}, left)
    with pytest.raises(AssertionError, match="changed"):
        require_one_of_two(good, {"a": b""}, {"a": b"x"})
