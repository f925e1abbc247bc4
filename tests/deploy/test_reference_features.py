"""Features of the real images: computed once for all evaluations of the same images."""

import shutil
from pathlib import Path

import pytest
from building.runs import TINY
from safetensors.torch import load_file

from common.files.tensors import load_tensors, save_tensors, tensors_digest
from common.perceptual.classifier import load_classifier
from deploy.run_folder.opening import open_run
from deploy.run_folder.workspace import Workspace
from deploy.stages.judge import Judge
from deploy.stages.quality import assess


def embedded(run, quiet) -> tuple[dict[str, float], int]:
    """(metrics, images that were embedded) of the real images compared with themselves."""
    judge, seen = Judge(*run), []
    judge.read(quiet)
    real_NCHW = judge.reference.pixels()[:20]
    return judge.compare(real_NCHW, lambda: seen.append(1)), len(seen)


@pytest.fixture(scope="module")
def evaluated_once(prepared, tmp_path_factory, quiet):
    root = tmp_path_factory.mktemp("evaluated")
    shutil.copytree(prepared, root, dirs_exist_ok=True)
    (root / "config.toml").unlink(missing_ok=True)
    numbers = ("evaluate.samples=40", "evaluate.reference_images=60")
    run = open_run(Path("smoke"), [*TINY, *numbers], root)
    return run, assess(*run, quiet).metrics["teacher"]


@pytest.fixture
def evaluated(evaluated_once, tmp_path):
    """((config, workspace), metrics of its teacher); the folder is a copy for one test."""
    (config, workspace), metrics = evaluated_once
    shutil.copytree(workspace.root, tmp_path / "evaluated")
    return (config, Workspace(tmp_path / "evaluated")), metrics


def test_another_evaluation_embeds_samples_alone_and_finds_the_same(evaluated, quiet):
    run, before = evaluated
    metrics, seen = embedded(run, quiet)
    assert 20 <= seen < 20 + 60
    run[1].reference_features.unlink()
    anew, seen = embedded(run, quiet)
    assert seen >= 20 + 60
    assert metrics == anew
    assert assess(*run, quiet).metrics["teacher"] == before


def test_the_kept_features_are_those_of_the_chosen_images(evaluated):
    run, _ = evaluated
    judge = Judge(*run)
    rows = [round(at * (len(judge.reference) - 1) / 59) for at in range(60)]
    expected = load_classifier(run[1].classifier)[0].features(judge.reference.pixels()[rows])
    (kept,) = [v for k, v in load_file(run[1].reference_features).items() if "logits" not in k]
    assert (kept - expected.detach()).abs().max() < 1e-5


@pytest.mark.parametrize("change", ["seed", "images", "numbers", "cut", "foreign names", "layout"])
def test_features_of_another_make_are_computed_anew(evaluated, quiet, change):
    run, _ = evaluated
    path = run[1].reference_features
    if change == "seed":
        model, facts = load_classifier(run[1].classifier)
        model.output.bias.data.add_(1)
        from common.perceptual.classifier import save_classifier

        save_classifier(run[1].classifier, model, facts)
    elif change == "images":
        fewer = run[0].evaluate.model_copy(update={"reference_images": 59})
        run = (run[0].model_copy(update={"evaluate": fewer}), run[1])
    elif change == "cut":
        path.write_bytes(path.read_bytes()[:-8])
    else:
        tensors, facts = load_tensors(path)
        first = next(iter(tensors))
        if change == "layout":
            del facts["made_from"]["extractor"]["layout"]
        elif change == "numbers":
            tensors[first][0, 0] += 1
        else:
            tensors = {"../../away": tensors[first]}
            facts["digest"] = tensors_digest(tensors)
        save_tensors(path, tensors, facts)
    _, seen = embedded(run, quiet)
    assert seen >= 20 + 59
    _, seen = embedded(run, quiet)
    assert seen < 20 + 59, "those are kept in turn"


def test_a_run_that_borrows_files_borrows_the_features(evaluated, tmp_path, quiet):
    from deploy.run_folder.borrowing import borrowed, link

    (config, lender), _ = evaluated
    workspace = Workspace(tmp_path / "other")
    workspace.root.mkdir()
    link(lender.root, workspace.root)
    before = lender.reference_features.read_bytes()
    _, seen = embedded((config, workspace), quiet)
    assert seen < 20 + 60
    fewer = config.evaluate.model_copy(update={"reference_images": 50})
    embedded((config.model_copy(update={"evaluate": fewer}), workspace), quiet)
    assert not workspace.reference_features.is_symlink()
    assert lender.reference_features.read_bytes() == before
    with borrowed(lender.root, workspace):  # its own features are no reason to refuse
        shutil.rmtree(workspace.milestones, ignore_errors=True)
