"""What is stored is used again for the same contents, whatever their names, and for no other."""

import pytest
import torch
from PIL import Image

from common.data.tokens import load_tokens, read_header, save_tokens
from common.errors import Diverged, InputError
from common.files.tensors import load_tensors, save_tensors
from common.images.opening import ImagesConfig, open_images
from common.perceptual.classifier import load_classifier
from deploy.stages.classifier import classifier_facts
from deploy.stages.generate import generate, load_generated
from learner.process_group import SingleProcess
from learner.relaxation import RelaxationConfig, run_clusters
from rollout.evaluation.features import ClassifierConfig, train_classifier

DATASET = "contexts.sources.teacher={source='dataset',sampling={guidance=1.5}}"


def digits(limit):
    return open_images(ImagesConfig(), "train").pixels(limit)


@pytest.fixture
def pictures(tmp_path):
    """Two classes of digits as files."""
    for label, pixels in zip("ab", digits(24).split(12), strict=True):
        (tmp_path / "train" / label).mkdir(parents=True)
        for index, pixel_1HW in enumerate(pixels):
            path = tmp_path / "train" / label / f"{index:02d}.png"
            Image.fromarray(pixel_1HW[0].numpy()).save(path)
    return tmp_path / "train"


def of_folder(run_in, folder, *overrides, name="run"):
    images = f"images={{kind='folder', train='{folder}', size=8, channels=1}}"
    return run_in(images, "evaluate.classifier.steps=3", *overrides, name=name)


def test_a_classifier_is_known_by_its_images_and_not_by_their_folder(run_in, pictures, quiet):
    config, workspace = of_folder(run_in, pictures)
    first = classifier_facts(config, workspace, quiet)
    before = workspace.classifier.stat().st_mtime_ns
    moved = pictures.with_name("moved")
    pictures.rename(moved)
    config, workspace = of_folder(run_in, moved)
    assert classifier_facts(config, workspace, quiet) == first
    assert workspace.classifier.stat().st_mtime_ns == before
    Image.fromarray(255 - digits(1)[0, 0].numpy()).save(moved / "b" / "03.png")
    again = classifier_facts(config, workspace, quiet)
    assert again["digest"] != first["digest"], "one picture of the same name is another"


def test_a_classifier_is_judged_anew_by_other_images_but_not_trained(run_in, pictures, quiet):
    config, workspace = of_folder(run_in, pictures)
    first = classifier_facts(config, workspace, quiet)
    assert first["accuracy_on"] == "train"
    test = pictures.with_name("test")
    for label, other in zip("ab", "ba", strict=True):
        (test / label).mkdir(parents=True)
        for path in (pictures / other).iterdir():
            (test / label / path.name).write_bytes(path.read_bytes())
    images = f"images={{kind='folder', train='{pictures}', test='{test}', size=8, channels=1}}"
    config, workspace = run_in(images, "evaluate.classifier.steps=3")
    second = classifier_facts(config, workspace, quiet)
    assert second["digest"] == first["digest"]
    assert second["accuracy_on"] == "test"
    assert second["accuracy"] == pytest.approx(1 - first["accuracy"]), "classes are swapped"


@pytest.mark.parametrize("damage", [b"", b"\x08\x00\x00\x00\x00\x00\x00\x00{}", b"x" * 100])
def test_a_damaged_classifier_is_trained_anew(run_in, pictures, quiet, damage):
    config, workspace = of_folder(run_in, pictures)
    first = classifier_facts(config, workspace, quiet)
    workspace.classifier.unlink()
    workspace.classifier.write_bytes(damage)
    assert classifier_facts(config, workspace, quiet) == first
    assert load_classifier(workspace.classifier)[1]["digest"] == first["digest"]


def test_a_classifier_that_diverges_is_not_stored():
    pixel_NCHW, label_N = digits(40).clone(), torch.arange(40) % 2
    config = ClassifierConfig.model_construct(width=4, steps=5, batch_size=8, learning_rate=1e30)
    with pytest.raises(Diverged, match=r"lower evaluate\.classifier\.learning_rate"):
        train_classifier(
            config,
            pixel_NCHW,
            label_N,
            num_classes=2,
            generator=torch.Generator().manual_seed(0),
            device=torch.device("cpu"),
        )


def test_classifier_training_tells_every_step():
    seen = []
    train_classifier(
        ClassifierConfig(width=4, steps=3, batch_size=8),
        digits(40),
        torch.arange(40) % 2,
        num_classes=2,
        generator=torch.Generator().manual_seed(0),
        device=torch.device("cpu"),
        watch=lambda step, loss: seen.append((step, loss > 0)),
    )
    assert seen == [(1, True), (2, True), (3, True)]


def damaged(path, how):
    content = path.read_bytes()
    path.unlink()
    path.write_bytes({"empty": b"", "cut": content[: len(content) // 2]}[how])


@pytest.mark.parametrize("how", ["empty", "cut", "other map"])
def test_a_cluster_map_is_used_again_for_its_vectors_alone(tmp_path, how):
    path, generator = tmp_path / "clusters.safetensors", torch.Generator().manual_seed(0)
    point_VD = torch.randn(32, 3, generator=generator)
    config = RelaxationConfig(factor=4)
    first = run_clusters(path, point_VD, config, SingleProcess())
    assert first is not None
    before = path.stat().st_mtime_ns
    kept = run_clusters(
        path, point_VD.clone(), config.model_copy(update={"mix": 0.5}), SingleProcess()
    )
    assert kept is not None
    assert (kept.digest, path.stat().st_mtime_ns) == (first.digest, before)
    other = run_clusters(
        path, point_VD + torch.randn(32, 3, generator=generator), config, SingleProcess()
    )
    assert other is not None
    assert other.digest != first.digest
    run_clusters(path, point_VD, config, SingleProcess())
    if how == "other map":  # whatever wrote it, it is not the one that its header tells of
        tensors, facts = load_tensors(path)
        save_tensors(path, {"cluster_V": tensors["cluster_V"].flip(0).clone()}, facts)
    else:
        damaged(path, how)
    again = run_clusters(path, point_VD, config, SingleProcess())
    assert again is not None
    assert again.digest == first.digest


def store(workspace, token_NAL, label_N):
    """Other tokens or labels as the run's own; the folder's other files stay."""
    data = load_tokens(workspace.train_tokens)
    workspace.train_tokens.unlink()
    save_tokens(
        workspace.train_tokens,
        type(data)(token_NAL, label_N, data.spec, data.classes, data.tokenizer_digest),
    )


@pytest.fixture
def few(own_tokens):
    """A run whose data are 40 digits, so that its teacher draws no more."""
    config, workspace = own_tokens(DATASET, "tokens.part_images=16")
    data = load_tokens(workspace.train_tokens)
    store(workspace, data.token_NAL[:40].clone(), data.label_N[:40].clone())
    return config, workspace


def test_a_generated_dataset_follows_teacher_and_labels(few, quiet):
    config, workspace = few
    assert generate(config, workspace, quiet, local=True)["fresh"]
    assert not generate(config, workspace, quiet, local=True)["fresh"]
    data = load_tokens(workspace.train_tokens)
    store(workspace, data.token_NAL.clone(), data.label_N.roll(1))
    with pytest.raises(InputError, match=r"was made with labels .* make it again with `varkd gen"):
        load_generated(config, workspace)
    assert generate(config, workspace, quiet, local=True)["fresh"]
    assert load_generated(config, workspace) is not None


@pytest.mark.parametrize("how", ["empty", "cut"])
def test_half_written_files_of_generate_are_survived(few, quiet, how):
    config, workspace = few
    generate(config, workspace, quiet, local=True)
    wanted = load_tokens(workspace.teacher_tokens)
    damaged(workspace.teacher_tokens, how)
    assert generate(config, workspace, quiet, local=True)["fresh"]
    found = load_tokens(workspace.teacher_tokens)
    assert torch.equal(found.token_NAL, wanted.token_NAL)
    assert torch.equal(found.label_N, wanted.label_N)
    assert read_header(workspace.teacher_tokens).facts["sequences"] == len(wanted)
