"""Exported models: a card per file that a hub can read, and nothing of others overwritten."""

import json
from pathlib import Path

import pytest
import torch
import yaml  # Ray's own dependency

from common.errors import InputError
from deploy.stages.distill import distill
from deploy.stages.evaluate import write_report
from deploy.stages.export import card_of, export


@pytest.fixture(scope="module")
def finished(tmp_path_factory, prepared, quiet, tiny_overrides):
    from deploy.run_folder.opening import open_run

    root = tmp_path_factory.mktemp("finished")
    for entry in prepared.iterdir():
        if entry.name != "config.toml":
            (root / entry.name).symlink_to(entry)
    run = open_run(Path("smoke"), tiny_overrides, root)
    distill(*run, quiet, local=True)
    return run


def front_matter(card):
    _, front, _ = card.read_text().split("---\n", 2)
    return yaml.safe_load(front)


def test_every_file_keeps_its_own_card(finished, tmp_path):
    paths = [
        export(*finished, name="student", layout=layout, output=tmp_path / f"model{suffix}")
        for layout, suffix in (("official", ".pt"), ("safetensors", ".safetensors"))
    ]
    assert card_of(paths[0]) != card_of(paths[1])
    for path in paths:
        assert f"# {path.name}" in card_of(path).read_text()
    first = card_of(paths[0]).read_text()
    export(*finished, name="student", layout="safetensors", output=paths[1])
    assert card_of(paths[0]).read_text() == first
    again = export(*finished, name="teacher", layout="official", output=paths[0])
    assert again == paths[0], "an earlier export may be replaced"
    assert "this is the teacher" in card_of(paths[0]).read_text()


def test_what_is_no_export_is_not_overwritten(finished, tmp_path):
    foreign = tmp_path / "weights.pt"
    foreign.write_bytes(b"mine")
    with pytest.raises(InputError, match=r"weights\.pt: exists, and no model card beside it"):
        export(*finished, name="student", layout="official", output=foreign)
    notes = tmp_path / "new.pt.md"
    notes.write_text("my notes")
    with pytest.raises(InputError, match=r"new\.pt\.md: the model card would go there"):
        export(*finished, name="student", layout="official", output=tmp_path / "new.pt")
    assert foreign.read_bytes() == b"mine"
    assert notes.read_text() == "my notes"
    assert {path.name for path in tmp_path.iterdir()} == {"weights.pt", "new.pt.md"}


def test_a_hub_can_read_the_card(finished, tmp_path):
    path = export(*finished, name="student", layout="official", output=tmp_path / "a.pt")
    found = front_matter(card_of(path))
    assert found["library_name"] == "varkd"
    assert {"llamagen", "varkd", "image-generation"} <= set(found["tags"])
    assert not {"license", "base_model"} & set(found), "what is not known is left out"
    config, workspace = finished
    start = export(
        *finished, name="student_before", layout="official", output=tmp_path / "c2i_B.pt"
    )
    learner = config.learner.model_copy(update={"weights": start})
    based = config.model_copy(update={"learner": learner})
    path = export(based, workspace, name="student", layout="official", output=tmp_path / "b.pt")
    assert front_matter(card_of(path))["base_model"] == "FoundationVision/LlamaGen"


def test_a_card_shows_the_metrics_of_its_own_weights_alone(finished, quiet, tmp_path):
    config, workspace = finished
    report = write_report(config, workspace, quiet)
    stored = workspace.root / "report.json"

    def card(name="student"):
        path = export(*finished, name=name, layout="official", output=tmp_path / f"{name}.pt")
        return card_of(path).read_text()

    fid = f"{report['metrics']['student_after']['fid']:.4g}"
    assert f"| {fid} |" in card()
    right = stored.read_text()
    changed = json.loads(right)
    changed["weights"]["student_after"]["digest"] = "0123456789abcdef"
    stored.write_text(json.dumps(changed))
    assert "report.json is of other weights" in card()
    assert "report.json is of other weights" not in card("teacher")
    whole = stored.read_text()
    for broken in ("", whole[: len(whole) // 2], "[]", '{"weights": 3}', "\x00"):
        stored.write_text(broken)
        assert "report.json cannot be read" in card()
    stored.write_text(right)
    assert f"| {fid} |" in card()


def test_a_full_disk_leaves_the_earlier_export(finished, tmp_path, server):
    """The operating system's own refusal: files over 4 KiB cannot be written in the child."""
    config, workspace = finished
    path = export(*finished, name="student", layout="official", output=tmp_path / "a.pt")
    before = path.read_bytes(), card_of(path).read_text()
    arguments = ["export", workspace.root, "--out", workspace.root, "--to", path]
    (workspace.root / "config.toml").unlink(missing_ok=True)
    workspace.keep_config(config)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    done = server.run(arguments, folder, file_bytes=4096)
    assert done.code == 2, done.err
    assert "a.pt: could not be written" in done.err
    assert "Traceback" not in done.err
    assert (path.read_bytes(), card_of(path).read_text()) == before
    assert torch.load(path, weights_only=True)
    assert not list(tmp_path.glob(".*"))
