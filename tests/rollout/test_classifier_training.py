"""How the classifier of evaluations is trained: precision and layout, and what does not change."""

import itertools

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from common.device import fastest_precision
from common.images.opening import ImagesConfig, open_images
from common.perceptual.classifier import Classifier, load_classifier, save_classifier
from deploy.stages.classifier import classifier_facts
from rollout.evaluation.features import (
    ClassifierConfig,
    accuracy,
    train_classifier,
    training_precision,
)

CPU = torch.device("cpu")


class Convolutions(TorchDispatchMode):
    """Precision and layout of everything that is convolved."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten.convolution:
            image, weight = args[:2]
            last = torch.channels_last
            layouts = (
                image.is_contiguous(memory_format=last),
                weight.is_contiguous(memory_format=last),
            )
            self.seen.add((image.dtype, weight.dtype, layouts))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def digits():
    source = open_images(ImagesConfig(), "train")
    return source.pixels(400), source.subset(spread(len(source), 400)).label_N


def spread(total, limit):
    return torch.linspace(0, total - 1, limit).round().long().tolist()


def trained(digits, **settings):
    config = ClassifierConfig(width=8, steps=120, batch_size=32, learning_rate=1e-2, **settings)
    generator = torch.Generator().manual_seed(0)
    return train_classifier(config, *digits, num_classes=10, generator=generator, device=CPU)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_of_training_have_the_precision_that_was_chosen(digits, tmp_path, dtype):
    """Channels-last; the classifier learns, and it and its features are float32."""
    number = getattr(torch, dtype)
    with Convolutions() as training:
        model = trained(digits, dtype=dtype)
    assert training.seen == {(number, number, (True, True))}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert accuracy(model, *digits) > 0.4, "by chance 0.1"
    save_classifier(tmp_path / "features.safetensors", model, {})
    with Convolutions() as judging, torch.no_grad():
        found = load_classifier(tmp_path / "features.safetensors")[0].features(digits[0])
    assert judging.seen == {(torch.float32, torch.float32, (True, True))}
    assert torch.equal(found, model.features(digits[0]))


def test_features_are_those_of_the_layers_by_hand(digits):
    """In the usual layout, from the stored numbers."""
    model = trained(digits)
    found = model.features(digits[0]).detach()
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    map_BCHW = digits[0].expand(-1, 3, -1, -1).float() / 127.5 - 1
    for conv, norm, stride in ((0, 1, 1), (3, 4, 2), (6, 7, 2)):
        pair = weights[f"body.{conv}.weight"], weights[f"body.{conv}.bias"]
        map_BCHW = F.conv2d(map_BCHW, *pair, stride=stride, padding=1)
        moments = weights[f"body.{norm}.running_mean"], weights[f"body.{norm}.running_var"]
        affine = weights[f"body.{norm}.weight"], weights[f"body.{norm}.bias"]
        map_BCHW = F.batch_norm(map_BCHW, *moments, *affine).relu()
    pooled = torch.cat([map_BCHW.mean((2, 3)), map_BCHW.amax((2, 3))], 1)
    wanted = (pooled @ weights["squeeze.weight"].T + weights["squeeze.bias"]).tanh()
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_precision_of_training_is_what_the_device_accelerates_unless_it_is_given():
    assert training_precision(ClassifierConfig(), CPU) == fastest_precision(CPU)
    given = training_precision(ClassifierConfig(dtype="bfloat16"), CPU)
    assert given == ("bfloat16", "evaluate.classifier.dtype")


def test_a_classifier_that_is_there_is_not_trained_anew_in_another_precision(run_in, quiet):
    """Nor one of a run from before there was a choice."""
    fields = {"width", "steps", "batch_size", "learning_rate"}
    assert ClassifierConfig().made_from.keys() == fields
    first = classifier_facts(*run_in("evaluate.classifier.dtype=float32"), quiet)
    config, workspace = run_in("evaluate.classifier.dtype=bfloat16")
    assert classifier_facts(config, workspace, quiet) == first


def test_another_width_is_another_classifier():
    assert Classifier(4, 10).output.in_features == 8
    assert ClassifierConfig(width=4).made_from != ClassifierConfig(width=8).made_from


def test_layers_are_compared_as_lpips_does():
    """By hand: maps after every ReLU, divided by their norm over the channels."""
    model, seen = Classifier(4, 3).eval(), []
    for module in model.body:
        if isinstance(module, torch.nn.ReLU):
            module.register_forward_hook(lambda _, __, out: seen.append(out.detach().double()))
    first, second = torch.rand(2, 2, 1, 8, 8) * 255
    feature_BF, other_BF = model.layers(first), model.layers(second)
    wanted_B = torch.zeros(2, dtype=torch.double)
    for one, two in zip(seen[:3], seen[3:], strict=True):
        for b, y, x in itertools.product(range(2), range(one.shape[2]), range(one.shape[3])):
            here = one[b, :, y, x], two[b, :, y, x]
            unit, its = (value / value.norm().clamp_min(1e-3) for value in here)
            wanted_B[b] += (unit - its).square().sum() / (one.shape[2] * one.shape[3])
    found_B = (feature_BF - other_BF).square().sum(1)
    torch.testing.assert_close(found_B.double(), wanted_B, rtol=1e-4, atol=1e-6)
    blank = torch.zeros(1, 1, 8, 8, requires_grad=True)
    model.layers(blank).square().sum().backward()
    assert torch.isfinite(blank.grad).all()
