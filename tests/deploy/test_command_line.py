"""The command line as a newcomer meets it: words that are nearly right, overrides, help."""

import subprocess
import sys
from pathlib import Path

import pytest

from common.config.known_keys import suggestion
from common.config.schema import dump_toml
from common.errors import InputError
from deploy.cli.config_reference import describe
from deploy.cli.parser import build_parser, command_parsers, parse
from deploy.config import RunConfig
from deploy.main import main
from deploy.run_folder.opening import open_run
from deploy.run_folder.shipped import find_config, shipped, shipped_names, summary


def varkd(capsys, *arguments):
    """Exit code, stdout and stderr of one command, in this process."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    out = capsys.readouterr()
    return caught.value.code, out.out, out.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["distil", "smoke"], "varkd: no command called 'distil'; did you mean distill?"),
        (["tokenise"], "varkd: no command called 'tokenise'; did you mean tokenize?"),
        (["frobnicate"], "choose one of smoke, "),
        (["distill", "smoke", "--restat"], "unknown option --restat; did you mean --restart?"),
        (["distill", "smoke", "--rest"], "unknown option --rest; did you mean --restart?"),
        (["distill", "smoke", "--Out=x"], "unknown option --Out; did you mean --out?"),
        (["distill", "smoke", "--out", "a", "--out", "b"], "--out is given twice (a and b)"),
        (["distill", "seed=3"], "seed=3 is an override, but no config is given"),
        (["export", "smoke", "--layout", "offical"], "invalid choice: 'offical'"),
        (["study", "s3://b/x?region=y"], "s3://...: is a URL, but a path was expected"),
        (["doctor", "nope://b/x?region=y"], "nope://b/x: Unrecognized filesystem type"),
        (["stop", "x", "s3://K:hidden@b/x"], "varkd: a key or a password is in the URL"),
        (["distill", "x", "--out=s3://b/x?hidden=1"], "another option than region, scheme"),
        (["configs", "cifar"], "did you mean cifar10 or cifar10_conv?"),
    ],
)
def test_words_that_are_nearly_right_get_one_sentence(capsys, words, sentence):
    code, out, err = varkd(capsys, *words)
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.count("\n") == 1
    assert "hidden" not in err


def test_no_words_at_all_show_the_help_on_stderr(capsys):
    code, out, err = varkd(capsys)
    assert (code, out) == (2, "")
    assert "varkd smoke" in err
    assert "varkd init FOLDER" in " ".join(err.split())


@pytest.mark.parametrize("words", [["seed=9", "smoke"], ["smoke", "seed=9"]])
def test_overrides_may_stand_before_the_config(capsys, tmp_path, words):
    arguments = ["distill", "--dry-run", *words, "learner.steps=3", "--out", tmp_path / "a b"]
    code, out, err = varkd(capsys, *arguments)
    assert (code, err) == (0, "")
    assert "seed 9" in out
    assert "3 steps of 128 images" in out


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("steps=5", "steps: unknown key; did you mean learner.steps or "),
        ("learner.step=5", "did you mean learner.steps?"),
        ("learner.optimizer.lr=1e-3", "did you mean learner.optimizer.learning_rate?"),
        ("learning_rate=1", "did you mean learner.optimizer.learning_rate or "),
        ("sampling.guidance=3", "did you mean rollout.sampling or "),
        ("gate.tau=0.2", "did you mean objective.gate?"),
        ("objective.gate.tauu=0.2", "did you mean objective.gate.tau?"),
        ("models.teacher.widht=8", "did you mean models.teacher.width?"),
        ("batch=8", "did you mean rollout.batch_size or "),
        ("zzz=1", "see `varkd options`"),
        (
            "objective.discount=0",
            "it belongs to kind sampled_rkl; leave it out, or set objective.kind=sampled_rkl",
        ),
    ],
)
def test_an_unknown_key_gets_the_keys_that_may_have_been_meant(tmp_path, override, hint):
    with pytest.raises(InputError) as caught:
        open_run(Path("smoke"), [override], tmp_path)
    assert hint in str(caught.value)


def test_another_kind_by_override_leaves_the_files_keys_of_the_old_kind(tmp_path):
    """A run folder's own config names every field of its kind."""
    varkd, _ = open_run(Path("smoke"), ["objective.gate.tau=0.3"])
    path = tmp_path / "own.toml"
    path.write_text(dump_toml(varkd))
    gkd, _ = open_run(path, ["objective.kind=gkd", "learner.steps=7"])
    assert gkd.objective.kind == "gkd"
    assert gkd.learner.steps == 7
    assert gkd.learner.optimizer == varkd.learner.optimizer
    same, _ = open_run(path, ["objective.kind=varkd"])
    assert same.objective == varkd.objective
    slim, _ = open_run(path, ["models.student.kind=arpg", "images.kind=digits"])
    assert slim.models.student.kind == "arpg"
    assert slim.models.student.width == varkd.models.student.width
    with pytest.raises(InputError, match=r"objective\.gate: unknown key; it belongs to kind varkd"):
        open_run(path, ["objective.gate.tau=0.3", "objective.kind=gkd"])


def test_every_key_of_the_options_is_no_typo_of_another():
    for option in describe("learner.optimizer"):
        assert suggestion(RunConfig, option.key.split(".")) == f"did you mean {option.key}?"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar", "did you mean cifar10 or cifar10_conv?"),
        ("smokes", "did you mean smoke"),
        ("cifar10.tml", "did you mean cifar10"),
        ("xyzzy", "`varkd configs` lists"),
        ("mine", "did you mean mine.toml?"),
        ("folder", "did you mean folder/other.toml?"),
        ("images", "write a config with `varkd init`"),
    ],
)
def test_a_config_that_is_nowhere_names_close_ones(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "other.toml").touch()
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError) as caught:
        find_config(Path(name))
    assert message in str(caught.value)


def test_the_shipped_configs_are_listed_with_a_line_each_and_printed_as_they_are(capsys):
    code, out, _ = varkd(capsys, "configs")
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == shipped_names()
    begin = max(map(len, shipped_names())) + 2
    assert (lines[0][:begin].rstrip(), lines[0][begin:]) == (
        "smoke",
        "Two minutes on a laptop: scikit-learn's handwritten digits through the whole pipeline",
    )
    assert all(len(summary(shipped(name))) > 20 for name in shipped_names())
    code, out, _ = varkd(capsys, "configs", "cifar10")
    assert (code, out) == (0, shipped("cifar10").read_text())


def test_every_commands_help_has_an_example_that_its_parser_accepts():
    parser = build_parser()
    for name, child in command_parsers(parser).items():
        text = child.format_help()
        examples = [line.split("#")[0] for line in text.splitlines() if line.startswith("  varkd ")]
        assert examples, f"{name} has no example"
        for example in examples:
            words = example.split(" > ")[0].split(" | ")[0].split()[1:]
            assert words[0] == name
            parser.parse_known_args(words)


@pytest.mark.parametrize("kind", ["bash", "zsh", "tcsh"])
def test_completion_scripts_know_commands_and_shipped_configs(capsys, kind):
    code, out, _ = varkd(capsys, "--print-completion", kind)
    assert code == 0
    assert "tokenize" in out
    assert "restart" in out
    if kind != "tcsh":
        assert "llamagen_l_to_b" in out


@pytest.mark.parametrize(
    "words",
    [
        ("sample", "smoke", "--to"),
        ("export", "smoke", "--to"),
        ("init", "--to"),
        ("distill", "smoke", "--from"),
        ("distill", "smoke", "--out"),
        ("study", "studies/digits/study.toml", "--out"),
    ],
)
def test_paths_of_options_begin_with_a_home_folder_or_get_a_sentence(
    capsys, monkeypatch, tmp_path, words
):
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = vars(parse([*words, "~/a b"]))
    assert tmp_path / "a b" in arguments.values()
    for wrong, said in (("a\0b", "NUL"), ("~nobody-at-all/x", "home folder of an unknown user")):
        code, _, err = varkd(capsys, *words, wrong)
        assert code == 2
        assert said in err


def test_types_are_what_a_person_may_write():
    kinds = {option.key: option.kind for option in describe("")}
    assert kinds["learner.steps"].startswith("integer >= 1")
    assert kinds["learner.weights"] == "path or none, default none"
    assert kinds["images.train"] == "path or list of path or none, default none"
    assert kinds["images.kind"] == "one of digits | folder | parquet, default digits"
    assert kinds["learner.ordered"] == "true | false, default false"
    assert kinds["tokenizer"].startswith("table with kind = one of conv_vq | ")
    pydantic_words = ("Literal", "Gt(", "Ge(", "Annotated", "NoneType", "tuple[", "<class", " int ")
    assert not [k for k in kinds.items() if any(word in f" {k[1]}" for word in pydantic_words)]


def test_options_are_found_by_words_of_their_names_and_texts(capsys):
    def found(*words):
        with pytest.raises(SystemExit) as ended:
            main(["options", *words])
        out = capsys.readouterr()
        return ended.value.code, out.out.splitlines(), out.err

    code, lines, _ = found("--search", "staleness")
    assert code == 0
    assert [line.split(" ")[0] for line in lines] == ["learner.max_staleness"]
    _, lines, _ = found("--search", "Oldest weights")
    assert [line.split(" ")[0] for line in lines] == ["learner.max_staleness"], "in its text"
    _, lines, _ = found("evaluate", "--search", "device")
    both = ["evaluate.device", "evaluate.classifier.dtype"]  # in the text of the second
    assert [line.split(" ")[0] for line in lines] == both
    code, _, error = found("--search", "stalenes_")
    assert code == 2
    assert "no field has it in its name or text" in error


def test_nothing_of_a_library_comes_behind_the_last_line(tmp_path):
    """Threads of a library, as Ray's, may write to the descriptor until the process is gone."""
    later = "import atexit, os; [atexit.register(os.write, at, b'later') for at in (1, 2)]"
    command = f"{later}; from deploy.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", command, "status", str(tmp_path / "nothing")],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, "nothing" in done.stderr.splitlines()[-1]) == (2, True)
    assert "later" not in done.stderr + done.stdout
