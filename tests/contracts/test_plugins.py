"""One plug-in of each kind in a package of the user's own, by a config's `plugins` alone."""

import pickle
from contextlib import nullcontext
from pathlib import Path

import pytest
import tomli_w
import torch
from building.plugin_package import (
    FILES,
    PACKAGE,
    SMALL,
    forget,
    prepare,
    write_config,
    write_package,
)

from common.config.plugin_path import FOLDERS
from common.config.plugins import kinds, load_plugin
from common.config.toml_tree import read_toml
from common.errors import InputError
from common.files.tensors import read_metadata
from common.models.decoding import own_choice
from common.models.filters import filtered_logprob
from common.models.guidance import guidance_rules
from common.models.plan import raster_plan
from deploy.cli.config_reference import describe
from deploy.main import main
from deploy.run_folder.opening import open_run
from deploy.run_folder.workspace import Workspace
from rollout.sampler import SamplingConfig

DRAWN = [f"rollout.sampling.decoding.{name}" for name in ("own_order", "steps", "zipar.window")]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    folder = write_package(tmp_path_factory.mktemp("mine"))
    yield folder
    forget(folder)


@pytest.fixture(scope="module")
def config(package):
    return write_config(package)


@pytest.fixture(scope="module")
def prepared_plugins(config, tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    prepare(config, root)
    return root


def test_a_local_distillation_runs_on_plug_ins_alone(prepared_plugins, config, tmp_path):
    out = ["--from", str(prepared_plugins), "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as ended:
        main(["distill", str(config), "--local", "learner.steps=2", *SMALL, *out])
    assert not ended.value.code
    made = Workspace(tmp_path / "run")
    assert read_metadata(made.student)["config"]["kind"] == "own_family"
    assert "share/own_context" in made.metrics.read_text()
    model = made.model(open_run(made.root, [])[0], "student")
    assert type(model.load()).__module__ == "common.models.backbones.llamagen"
    assert "sequence_loss/own_context" in made.metrics.read_text()
    assert (made.root / "own_log").read_text().split() == ["1", "2", "2"], "and a profile"


def test_kinds_lists_ours_and_theirs_and_options_tells_of_both(config):
    assert open_run(config, [])[0].objective.kind == "own_objective"
    assert {"own_objective", "varkd"} <= set(kinds("learner.objectives"))
    keys = [option.key for option in describe("objective")]
    assert {"objective[own_objective].table", "objective[varkd].preset"} <= set(keys)
    assert guidance_rules()["own_rule"](1.5, raster_plan(1, 2), -1) == (2.5, 2.5)
    assert "contexts.sources.own_context.ratio" in [o.key for o in describe("contexts")]
    assert set(DRAWN) <= {option.key for option in describe("rollout.sampling.decoding")}
    with pytest.raises(InputError, match=r"rule: is no rule; choose published or one of arpg_"):
        open_run(Path("smoke"), ["teacher.guidance={scale=2, rule='own_rule'}"])
    assert "own_objective" not in kinds("learner.objectives"), "another config has others"


def test_paths_in_plug_ins_are_made_absolute(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    objective = open_run(config, [])[0].objective
    assert objective.model_dump()["table"] == tmp_path / "a" / "table.npy"
    assert objective.model_dump()["tables"] == (tmp_path / "b.npy",)


def test_a_run_folder_finds_the_package_from_anywhere(config, package, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    run, _ = open_run(config, [])
    assert run.plugins == (str(package.resolve()),)
    own = tmp_path / "config.toml"
    own.write_text(tomli_w.dumps({**read_toml(config), "plugins": list(run.plugins)}))
    open_run(Path("smoke"), [])
    assert open_run(tmp_path, [])[0].objective.kind == "own_objective"


def test_a_kind_that_exists_in_both_is_refused(package, config, tmp_path):
    twin = tmp_path / "twin_of_a_test" / "objectives"
    twin.mkdir(parents=True)
    (twin / "gkd.py").write_text("")
    with pytest.raises(InputError, match=r"twin_of_a_test\.objectives\.gkd and learner\.object"):
        open_run(Path("smoke"), [f"plugins=['{twin.parent}']"])
    with pytest.raises(InputError, match="name a package twice"):
        open_run(config, [f"plugins=['{package}', '{PACKAGE}']"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere_to_be_found", "neither installed nor a folder in"),
        ("json", "json holds no plug-ins; expected folders such as objectives"),
        ("not a name", "is no name of a package"),
        ("learner", "neither installed nor a folder in"),
    ],
)
def test_what_is_no_package_of_plug_ins_is_refused(name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words) as caught:
        open_run(Path("smoke"), [f"plugins=['{name}']"])
    assert str(caught.value).startswith("the command line: plugins: ")
    with pytest.raises(InputError, match=r"plugins: Input should be a valid tuple"):
        open_run(Path("smoke"), ["plugins=my_package"])


@pytest.mark.parametrize(
    ("name", "kind", "is_refused"),
    [("api_key", "str", True), ("password", "str | None", True), ("pad_token", "int", False)],
)
def test_a_field_that_is_a_secret_is_refused(name, kind, is_refused, tmp_path):
    """A number of such a name is none."""
    folder = tmp_path / f"asking_for_{name}" / "objectives"
    folder.mkdir(parents=True)
    text = f"from pydantic import BaseModel\nclass Config(BaseModel):\n    {name}: {kind} = None\n"
    (folder / "asks.py").write_text(text)
    words = rf"objectives\.asks has a field {name}, and what"
    with pytest.raises(InputError, match=words) if is_refused else nullcontext():
        open_run(Path("smoke"), [f"plugins=['{folder.parent}']"])
        assert "pad_token" in load_plugin("learner.objectives", "asks").Config.model_fields


def test_a_plug_in_is_a_module_of_its_package(config):
    open_run(config, [])
    found = load_plugin("common.models.backbones", "own_family")
    assert found.__name__ == f"{PACKAGE}.backbones.own_family"
    assert found.Config.tiny().kind == "own_family"


def test_the_package_of_this_test_has_one_plug_in_of_every_kind():
    assert {name.partition("/")[0] for name in FILES} == set(FOLDERS)


def test_a_family_brings_choices_of_sampling_of_its_own(config):
    """In the table of all families; pickled as values, for the class is made where it arrives."""
    run, _ = open_run(config, ["rollout.sampling.decoding.own_order=3"])
    decoding = run.rollout.sampling.decoding
    assert decoding.model_dump()["own_order"] == 3
    again = pickle.loads(pickle.dumps(run))
    assert again.rollout.sampling == run.rollout.sampling
    own, ours = (load_plugin("common.models.backbones", k) for k in ("own_family", "arpg"))
    assert isinstance(decoding, own.Decoding)
    assert own_choice("own_family", decoding, own.Decoding).own_order == 3
    with pytest.raises(InputError, match=r"decoding\.steps is 2, but own_family decodes in a fix"):
        own_choice("own_family", ours.Decoding(steps=2), own.Decoding)
    sampling = SamplingConfig(top_p=0.5, top_p_rule="own_top_p")
    drawn = filtered_logprob(torch.tensor([[[0.0, 2.0, 1.0]]]), sampling)
    assert drawn.exp().flatten().tolist() == [0, 1, 0]
    with pytest.raises(InputError, match=r"decoding\.own_order: unknown key"):
        open_run(Path("smoke"), ["rollout.sampling.decoding.own_order=3"])
    with pytest.raises(InputError, match=r"top_p_rule: is no rule; choose one of llamagen, var"):
        open_run(Path("smoke"), ["rollout.sampling.top_p_rule=own_top_p"])
