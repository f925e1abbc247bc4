"""Fixtures shared by all tests: models, batches, commands and places. Those of runs lie in
`building.run_fixtures`; plain functions that several tests import lie beside them."""

import io
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from building.runs import TINY
from building.studies import STUDY
from fuzzing.trial import Server
from rich.console import Console
from torch import Tensor

from common.artifacts.backbone_file import save_backbone
from common.artifacts.model_file import ModelFile
from common.config.plugins import load_plugin
from common.config.schema import apply_override
from common.data.tokens import TokenDataset
from common.errors import InputError
from common.exchange.trajectory import TrajectoryBatch
from common.models.backbone import Backbone, build_seeded
from common.perceptual.classifier import Classifier, save_classifier
from common.spec import SequenceSpec
from common.tokenization.tokenizer import save_tokenizer
from deploy.backend.session import cluster, secure_environment
from deploy.run_folder.opening import open_run
from rollout.sampler import SamplingConfig, decode, noise
from teacher_server.scorer import ScorerFiles
from teacher_server.teacher import TeacherConfig

torch.set_num_threads(int(os.environ.get("VARKD_TEST_THREADS", "1")))
secure_environment()
logging.getLogger().addHandler(logging.NullHandler())  # else remarks go to stderr, which tests read

SHARED = Path(__file__).parents[4] / "shared"
SPEC = SequenceSpec(vocab_size=24, length=6, grid=(2, 3), num_classes=3)
SQUARE = SequenceSpec(vocab_size=24, length=4, grid=(2, 2), num_classes=3)
SCALES_SPEC = SequenceSpec(24, 14, (3, 3), num_classes=3, scales=(1, 2, 3))
FACTS = {"lease": "0", "generation": "1", "worker": "w"}
FACTS |= {"rollout_seconds": "0", "teacher_seconds": "0"}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Inputs that a test draws from torch's own generator are the same in every run. For devices
    that are not in use, `torch.manual_seed` would write down the stack, for each of them."""
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)


@pytest.fixture(scope="session")
def assert_same_gradients() -> Callable[..., None]:
    """By name, to a share of each tensor's largest entry: entries that cancel are only rounding."""

    def check(found: dict[str, Tensor], wanted: dict[str, Tensor], share: float = 2e-4) -> None:
        assert found.keys() == wanted.keys()
        largest = max(float(grad.abs().max()) for grad in wanted.values())
        for name, grad in wanted.items():
            bound = share * max(float(grad.abs().max()), 1e-3 * largest)
            torch.testing.assert_close(
                found[name], grad, atol=bound, rtol=0, msg=lambda m, name=name: f"{name}: {m}"
            )

    return check


@pytest.fixture
def spec() -> SequenceSpec:
    return SPEC


@pytest.fixture
def tiny() -> Callable[..., Backbone]:
    """A tiny backbone whose logits are informative (the published head starts at zero)."""

    def build(kind: str, seed: int = 0, spec: SequenceSpec | None = None) -> Backbone:
        config = load_plugin("common.models.backbones", kind).Config.tiny()
        try:
            model = build_seeded(config, spec or SPEC, seed)
        except InputError:  # a family that reads tokens of several scales
            model = build_seeded(config, spec or SCALES_SPEC, seed)
        generator = torch.Generator().manual_seed(seed)
        quantizer = getattr(model, "quantizer", None)
        if quantizer is not None:
            shape = quantizer.code_VD.shape
            quantizer.code_VD.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(7)))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    noise_ = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(0.3 * noise_)
        return model.eval()

    return build


@pytest.fixture
def sampled() -> Callable[..., TrajectoryBatch]:
    """An unscored mixed batch: two data rows, then student rows with prefixes 0, 2 and 4."""

    def build(student: Backbone, seed: int = 0) -> TrajectoryBatch:
        spec = student.spec
        context = ("data", "data", "student", "student", "student")
        prefix_B = torch.tensor([spec.length, spec.length, 0, 2, 4])
        generator = torch.Generator().manual_seed(seed)
        given_BL = torch.randint(spec.vocab_size, (5, spec.length), generator=generator)
        label_B = torch.tensor([0, 1, 2, 3, 0])  # 3 is the null class
        plan = student.plan(range(seed, seed + 5))
        noise_BL = noise(range(seed, seed + 5), spec.length)
        decoded = decode(
            student,
            label_B,
            sampling=SamplingConfig(),
            noise_BL=noise_BL,
            plan=plan,
            given_BL=given_BL,
            prefix_B=prefix_B,
        )
        return TrajectoryBatch(
            spec=spec,
            id_B=torch.arange(5),
            version_B=torch.full((5,), 3),
            label_B=label_B,
            context=context,
            policy=context,
            law=("exact",) * 5,
            prefix_B=prefix_B,
            plan=plan,
            token_BL=decoded.token_BL,
            logprob_BL=decoded.logprob_BL,
            noise_BL=noise_BL,
            facts=FACTS,
        )

    return build


@pytest.fixture
def data(spec: SequenceSpec) -> TokenDataset:
    generator = torch.Generator().manual_seed(1)
    return TokenDataset(
        torch.randint(spec.vocab_size, (40, 1, spec.length), generator=generator),
        torch.randint(spec.num_classes, (40,), generator=generator),
        spec,
        ("a", "b", "c"),
        "none",
    )


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """One private cluster for the whole session, started as commands start theirs."""
    with cluster(open_run(Path("smoke"), ["cluster.object_store_mb=256"])[0], cpus=16):
        import ray

        yield ray


@pytest.fixture
def placed(ray_cluster: Any) -> Iterator[Any]:
    """A launcher on it, whose actors end with the test."""
    from deploy.backend.proxies import RayLauncher

    place = RayLauncher()
    yield place
    place.shutdown()


@pytest.fixture(scope="session")
def server() -> Server:
    """Runs commands in processes of their own, forked where everything is imported already."""
    return Server()


@pytest.fixture(scope="session")
def tiny_overrides() -> list[str]:
    """What makes any smoke config a matter of seconds."""
    return TINY


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    """A tiny study on the digits; its runs are those of the other tests."""
    changed: dict[str, Any] = {}
    for override in [*TINY, "evaluate.samples=40"]:
        apply_override(changed, override)
    path = tmp_path / "study.toml"
    path.write_text(tomli_w.dumps(STUDY | {"set": changed}))
    return path


@pytest.fixture(scope="session")
def quiet() -> Console:
    return Console(quiet=True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Data beside the checkout; tests that need it skip where it is absent."""
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is absent: CIFAR-10 is not part of the repository")
    return SHARED


@pytest.fixture
def logged():
    """What is logged; pytest's own plug-in, which is off, listens to some sixty loggers three times
    a test."""
    heard = io.StringIO()
    handler = logging.StreamHandler(heard)
    logging.getLogger().addHandler(handler)
    yield heard
    logging.getLogger().removeHandler(handler)


@pytest.fixture
def judging_files(tiny: Callable[..., Backbone], tmp_path: Path) -> ScorerFiles:
    """A teacher, a tokenizer of 2x2 patches and a classifier, for scorers; tokens of SQUARE."""
    model, path = tiny("llamagen", 1, spec=SQUARE), tmp_path / "teacher.safetensors"
    family = load_plugin("common.models.backbones", "llamagen").Config.tiny()
    save_backbone(path, model, family)
    patches = load_plugin("common.tokenization.tokenizers", "patch_kmeans").Config(vocab_size=24)
    tokenizer, generator = patches.build(size=4, channels=1), torch.Generator().manual_seed(5)
    tokenizer.code_VD.copy_(torch.rand(24, 4, generator=generator) * 2 - 1)
    save_tokenizer(tmp_path / "tokenizer.safetensors", tokenizer, patches, size=4, channels=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        save_classifier(tmp_path / "classifier.safetensors", Classifier(4, 3), {})
    file = ModelFile(path, "models.teacher", family, SQUARE, tmp_path / "tokenizer.safetensors")
    return ScorerFiles(
        TeacherConfig(), file, ordered=True, classifier=tmp_path / "classifier.safetensors"
    )
