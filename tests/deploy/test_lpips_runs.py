"""A run whose loss compares images by LPIPS: what it says, keeps and refuses."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from building.lpips import images, layers, package
from building.runs import TINY, go
from PIL import Image
from torch import nn

from common.errors import InputError
from deploy.doctor.run_files import run_files
from deploy.planning.artifacts import check_files, missing, sequence_spec
from deploy.planning.blank_tensors import META, peak_bytes
from deploy.planning.memory import resources_like
from deploy.report.page import to_markdown
from deploy.report.quality import Quality
from deploy.report.summary import summarise
from deploy.run_folder.opening import open_run
from deploy.run_folder.records import read_run_facts
from deploy.stages.export import export
from deploy.stages.generate import generate
from deploy.stages.pretrain import pretrain_model
from deploy.stages.tokenize import tokenize

SMALL = [
    *(o for o in TINY if not o.startswith(("models.student", "pretrain.student"))),
    *("tokenizer.patch=4", "contexts.sources.teacher.sequences=16"),
    *("learner.steps=2", "learner.checkpoint_every=1"),
]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Pictures of 16 pixels, the user's file of VGG16, and a place with the package."""
    folder = tmp_path_factory.mktemp("given")
    package(folder / "site")
    torch.save(layers("vgg"), folder / "vgg.pth")
    for label in "ab":
        (folder / "train" / label).mkdir(parents=True)
        for index in range(16):
            pixel_HW = (images(16, 16, salt=index) + 1) * 127
            picture = Image.fromarray(pixel_HW.byte().numpy())
            picture.save(folder / "train" / label / f"{index}.png")
    return folder


@pytest.fixture
def opened(given, tmp_path, monkeypatch):
    """The command with that file, or another of the test's own."""
    monkeypatch.syspath_prepend(given / "site")

    def build(*overrides, weights=given / "vgg.pth"):
        pictures = f"images={{kind='folder', train='{given / 'train'}', size=16, channels=1}}"
        lpips = f"objective.lpips.weights={weights}"
        return open_run(Path("smoke_dd1"), [*SMALL, pictures, lpips, *overrides], tmp_path / "run")

    return build


def test_a_run_names_its_network_and_goes_on_with_the_same_alone(opened, given, tmp_path, quiet):
    config, workspace = run = opened()
    tokenize(*run, quiet, local=True)
    pretrain_model(config, workspace, "teacher", quiet)
    generate(*run, quiet, local=True)
    facts, _ = go(run)
    named = facts["perceptual"]
    assert named.startswith("LPIPS (vgg, vgg.pth, digest ")
    assert not workspace.classifier.exists(), "nothing looks through it"
    nothing = Quality({"teacher": {"fid": 1.0}}, {}, FEATURES, {}, {}, {}, {}, {"teacher": 1.0})
    report = summarise(config, read_run_facts(workspace.facts), [], nothing)
    assert f"| images compared by | {named} |" in to_markdown(report)
    file = export(config, workspace, name="student", layout="official", output=None)
    assert f"| images compared by | {named} |" in Path(f"{file}.md").read_text()

    moved = tmp_path / "moved.pth"
    with pytest.raises(InputError, match=r"moved\.pth: no such file"):
        go(opened("learner.steps=3", weights=moved), resume=True)
    shutil.copy(given / "vgg.pth", moved)
    facts, said = go(opened("learner.steps=3", weights=moved), resume=True)
    assert (facts["resumed"], facts["steps"]) == (True, 3)
    assert "objective.lpips" not in said, "where the file lies is nothing to speak of"
    other = layers("vgg")
    other["features.0.bias"][0] += 0.5
    torch.save(other, moved)
    words = r"the network of objective\.lpips .*moved\.pth\) has other contents"
    with pytest.raises(InputError, match=words):
        go(opened("learner.steps=4", weights=moved), resume=True)


FEATURES = {"samples": 1, "classes": "1 of 2", "reference": "", "note": "", "batch_size": 1}


def test_files_of_the_network_are_looked_for_before_a_run(opened, tmp_path):
    config, workspace = opened()
    spec = sequence_spec(config, workspace)
    assert not any("objective.lpips" in sentence for sentence in missing(config, workspace))
    found = {finding.name: finding for finding in run_files(config, workspace)}
    assert found["objective.lpips.weights"].state == found["objective.lpips"].state == "ok"
    resources = resources_like(config, spec, nn.Linear(8, spec.vocab_size, device=META))

    def look():
        net = resources.lpips(config.objective.lpips)
        net(torch.zeros(2, 3, 16, 16, device=META, requires_grad=True))

    assert 4 * 14_714_688 < peak_bytes(look) < 4 * 16_000_000, "VGG16 without its classifier"
    torch.save(layers("alex"), tmp_path / "alex.pth")
    with pytest.raises(InputError, match=r"alex\.pth: features\.0\.weight has shape"):
        check_files(*opened(weights=tmp_path / "alex.pth"), spec)
    away = opened(weights=tmp_path / "nowhere.pth")
    assert f"missing: objective.lpips.weights {tmp_path / 'nowhere.pth'}" in missing(*away)


@pytest.mark.skipif(find_spec("lpips") is not None, reason="the package is installed")
def test_a_plan_and_the_doctor_miss_the_package(opened, monkeypatch):
    config, workspace = opened()
    monkeypatch.undo()  # the place with the package
    check_files(config, workspace, sequence_spec(config, workspace))
    assert "missing: the package lpips, pip install lpips" in missing(config, workspace)
    found = {finding.name: finding for finding in run_files(config, workspace)}
    states = [found[name].state for name in ("objective.lpips", "objective.lpips.weights")]
    assert states == ["FAIL", "ok"]


def test_a_config_that_no_network_suits_is_refused(opened):
    small = ["images.size=12", "tokenizer.patch=3"]
    for overrides, words in (
        (small, r"objective\.lpips compares .* needs 16 pixels, but images\.size is 12"),
        (["objective.lpips.network=alex"], "AlexNet, which needs 31 pixels"),
        (["objective.distance=vectors"], r"objective\.distance is vectors; leave one of them out"),
    ):
        with pytest.raises(InputError, match=words):
            opened(*overrides)
