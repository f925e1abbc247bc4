"""LPIPS without its package's code: the same distances, from files that are judged first."""

from importlib.util import find_spec

import pytest
import torch
from building.lpips import channels, images, layers, package
from safetensors.torch import save_file

from common.errors import InputError
from common.perceptual.lpips import LpipsConfig

GOLDEN = {
    "vgg": ((2, 3, 32, 48), (0.32485080, 0.31794879), 0.03299762),
    "alex": ((2, 1, 40, 33), (0.35151672, 0.35773966), 0.11126854),
}
"""Images, distances, and the norm of their sum's gradient in the first ones. As lpips 0.1.4 has
them: `lpips.LPIPS(net=network)` on a torchvision whose `vgg16` and `alexnet` hold
`building.lpips.layers`, after `load_state_dict(channels(network), strict=False)`."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The user's, by network."""
    folder = tmp_path_factory.mktemp("layers")
    found = {}
    for network in GOLDEN:
        found[network] = folder / f"{network}.pth"
        torch.save(layers(network), found[network])
    return found


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Those of an installed package."""
    folder = package(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return folder


@pytest.mark.parametrize("network", GOLDEN)
def test_distances_are_those_of_the_package(files, weights, network):
    shape, distances, slope = GOLDEN[network]
    net = LpipsConfig(network=network, weights=files[network]).load()
    first, other = images(*shape, salt=50).requires_grad_(), images(*shape, salt=51)
    feature_BF, other_BF = net(first), net((first.detach() + other) / 2)
    found_B = (feature_BF - other_BF).square().sum(1)
    torch.testing.assert_close(found_B, torch.tensor(distances), rtol=1e-5, atol=1e-6)
    (grad,) = torch.autograd.grad(found_B.sum(), first)
    assert float(grad.norm()) == pytest.approx(slope, rel=1e-4)
    assert not any(value.requires_grad for value in net.parameters())


def test_where_no_channel_answers_gradients_are_finite(files, weights):
    net = LpipsConfig(network="alex", weights=files["alex"]).load()
    with torch.no_grad():
        for name, value in net.features.named_parameters():
            value.fill_(-1.0 if name.endswith("bias") else 0.0)
    blank = torch.zeros(1, 3, 31, 31, requires_grad=True)
    net(blank).square().sum().backward()
    assert torch.equal(blank.grad, torch.zeros_like(blank))


def test_the_digest_is_of_what_is_read(files, weights, tmp_path):
    def digest(path):
        return LpipsConfig(network="alex", weights=path).digest()

    first = digest(files["alex"])
    only = {name: value for name, value in layers("alex").items() if "features" in name}
    save_file(only, tmp_path / "x.safetensors")
    assert digest(tmp_path / "x.safetensors") == first, "another format, without the classifier"
    changed = channels("alex")
    changed["lin3.model.1.weight"][0, 5] += 0.5
    torch.save(changed, weights / "alex.pth")
    assert digest(files["alex"]) != first


def test_other_files_are_refused_by_name(files, weights, tmp_path):
    other = tmp_path / "other.pth"

    def refused(words, path=other):
        with pytest.raises(InputError, match=words):
            LpipsConfig(weights=path).load()

    refused(r"other\.pth: no such file")
    refused(r"alex\.pth: features\.0\.weight has shape \[64, 3, 11, 11\], expected", files["alex"])
    torch.save({"head.weight": torch.zeros(2)}, other)
    refused(r"features\.0\.weight is not there, .* vgg16-397923af\.pth, torchvision's VGG16")
    torch.save({**layers("vgg"), "features.28.bias": torch.full((512,), torch.nan)}, other)
    refused(r"other\.pth: features\.28\.bias holds values that are not finite")
    negative = channels("vgg")
    negative["lin0.model.1.weight"][0, 0] = -0.1
    torch.save(negative, weights / "vgg.pth")
    refused(r"vgg\.pth: lin0\.model\.1\.weight has negative numbers", files["vgg"])
    (weights / "vgg.pth").unlink()
    refused(r"v0\.1/vgg\.pth: no such file", files["vgg"])


@pytest.mark.skipif(find_spec("lpips") is not None, reason="the package is installed")
def test_without_the_package_a_sentence_says_how_to_get_it(files):
    with pytest.raises(InputError, match=r"package lpips, which is not .*; pip install lpips"):
        LpipsConfig(weights=files["vgg"]).check()
