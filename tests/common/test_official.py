"""Published checkpoints: every layout, safe and lean reading, clear refusals, export."""

import argparse

import pytest
import torch
from building.measured import MODELS, loading

from common.artifacts.backbone_file import save_backbone
from common.artifacts.model_file import ModelFile, official_state
from common.config.plugins import kinds, load_plugin
from common.errors import InputError
from common.files.official import Checkpoint
from common.models.residual_quantizer import ResidualQuantizer
from common.outline import outlines
from common.spec import SequenceSpec
from common.tokenization.multiscale import MultiscaleTokenizer
from common.tokenization.tokenizer import save_tokenizer
from common.tokenization.tokenizers import multiscale_kmeans

RASTER = SequenceSpec(16384, 256, (16, 16), 1000)


@pytest.fixture
def tokenizer_file(tmp_path):
    """A stored multi-scale tokenizer whose codes are those of the tiny next-scale model."""

    def build(quantizer):
        scales = quantizer.scales
        config = multiscale_kmeans.Config(vocab_size=24, patch=2, scales=scales)
        tokenizer = config.build(size=2 * scales[-1], channels=1)
        assert isinstance(tokenizer, MultiscaleTokenizer)
        tokenizer.quantize.load_state_dict(quantizer.state_dict())
        path = tmp_path / "tokenizer.safetensors"
        save_tokenizer(path, tokenizer, config, size=2 * scales[-1], channels=1)
        return path

    return build


@pytest.fixture(params=kinds("common.models.backbones"))
def published(request, tiny, tmp_path, tokenizer_file):
    """(a model, its official state, how a run refers to a file of it)."""
    model = tiny(request.param, 3)
    config = load_plugin("common.models.backbones", request.param).Config.tiny()
    quantizer = getattr(model, "quantizer", None)
    tokenizer = tmp_path / "none"
    if isinstance(quantizer, ResidualQuantizer):
        tokenizer = tokenizer_file(quantizer)

    def refer(path, **changes):
        fields = {"architecture": config, "spec": model.spec, "tokenizer": tokenizer}
        return ModelFile(path, "models.teacher", **(fields | changes))

    return model, official_state(model), refer


def same(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


LAYOUTS = {
    "bare": lambda state: state,
    "model": lambda state: {"model": state, "optimizer": {"a": 1}, "steps": 3},
    "module": lambda state: {"module": state},
    "state_dict": lambda state: {"state_dict": state},
    "prefixed": lambda state: {"model": {f"module.{k}": v for k, v in state.items()}},
    "args": lambda state: {"model": state, "args": argparse.Namespace(lr=1e-4, name="x")},
    "VAR's trainer": lambda state: {"trainer": {"var_wo_ddp": state}, "epoch": 1},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_published_layout_loads(published, tmp_path, layout):
    model, state, refer = published
    path = tmp_path / "official.pt"
    torch.save(LAYOUTS[layout](state), path)
    assert same(model, refer(path).load())


def test_a_folder_of_fsdp_and_an_old_pickle_load(published, tmp_path):
    model, state, refer = published
    folder = tmp_path / "0001000"
    folder.mkdir()
    torch.save(state, folder / "consolidated.pth")
    assert same(model, refer(folder).load())
    old = tmp_path / "old.pth"
    torch.save(state, old, _use_new_zipfile_serialization=False)
    assert same(model, refer(old).load())


def test_averaged_weights_are_read_on_request_only(published, tmp_path):
    model, state, refer = published
    path = tmp_path / "official.pt"
    averaged = {k: v + 1 if v.is_floating_point() else v for k, v in state.items()}
    torch.save({"model": state, "ema": averaged}, path)
    assert same(model, refer(path).load())
    assert not torch.equal(refer(path, ema=True).load().head.weight, model.head.weight)
    torch.save({"model": state}, path)
    with pytest.raises(InputError, match="found model at the top level, expected ema"):
        refer(path, ema=True).load()


def test_half_precision_on_load_casts_parameters_only(published, tmp_path):
    model, state, refer = published
    path = tmp_path / "official.pt"
    torch.save(state, path)
    half = refer(path).load(torch.bfloat16)
    assert all(p.dtype == torch.bfloat16 for p in half.parameters())
    for name, buffer in half.named_buffers():
        assert torch.equal(buffer, dict(model.named_buffers())[name]), name
    assert refer(path).head().weight.dtype == torch.float32


def test_stale_entries_are_tolerated_and_others_listed(tiny, tmp_path, published):
    model, state, refer = published
    path = tmp_path / "official.pt"
    stale = {name.replace("*", "0"): torch.zeros(2) for name in model.official.ignored}
    torch.save(state | stale, path)
    assert same(model, refer(path).load())
    last = next(name for name in reversed(state) if name in model.state_dict())
    changed = {name: value for name, value in state.items() if name != last}
    torch.save(changed | {"surprise.weight": torch.zeros(1)}, path)
    with pytest.raises(InputError, match=f"missing {last}; unexpected surprise.weight"):
        refer(path).load()


class Malice:
    def __reduce__(self):
        return eval, ("print('this must never be printed')",)


def test_a_pickle_that_wants_more_is_refused_with_a_sentence(published, tmp_path, capsys):
    _, state, refer = published
    path = tmp_path / "evil.pt"
    torch.save({"model": state, "extra": Malice()}, path)
    with pytest.raises(InputError, match=r"evil\.pt: holds code.* run builtins.eval"):
        refer(path).load()
    assert "never" not in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match=r"evil\.pt: not a readable checkpoint"):
        refer(path).load()
    with pytest.raises(InputError, match="no such file"):
        refer(tmp_path / "nowhere.pt").load()


def test_another_family_size_or_vocabulary_is_refused_by_name(published, tmp_path, tiny):
    model, state, refer = published
    kind = type(model).__module__.rpartition(".")[2]
    path = tmp_path / "official.pt"
    torch.save(state, path)
    other = next(k for k in kinds("common.models.backbones") if k != kind)
    stranger = load_plugin("common.models.backbones", other).Config.tiny()
    with pytest.raises(InputError, match=f"holds a {kind} .* but models.teacher is {other}"):
        refer(path, architecture=stranger).check()
    config = load_plugin("common.models.backbones", kind).Config.tiny()
    wider = config.model_copy(update={"width": 32})
    with pytest.raises(InputError, match=f"holds a {kind} with .*width 16.*expects width 32"):
        refer(path, architecture=wider).check()
    spec = SequenceSpec(**{**model.spec.as_dict(), "vocab_size": 999})
    with pytest.raises(InputError, match=r"vocab_size 24.*expects vocab_size 999"):
        refer(path, spec=spec).check()
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="neither of arpg, llamagen, var"):
        refer(path).check()


def test_refusal_comes_before_memory_is_touched(tmp_path):
    """Half a terabyte by its shapes, a few bytes on disk: read whole, it would kill the test."""
    from common.models.backbones.llamagen import Config

    config = Config(width=16, depth=1, heads=2, multiple_of=8)
    with torch.device("meta"):
        model = config.build(RASTER)
    zero = torch.zeros(1)
    state = {name: zero.expand(value.shape) for name, value in model.state_dict().items()}
    state["tok_embeddings.weight"] = zero.expand(2**23, 2**14)
    torch.save({"model": state}, tmp_path / "huge.pt")
    file = ModelFile(tmp_path / "huge.pt", "models.teacher", config, RASTER, tmp_path / "none")
    with pytest.raises(InputError, match=r"vocab_size 8388608, .* expects vocab_size 16384"):
        file.load()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_loading_peaks_below_1_2_times_the_file(tmp_path, server, suffix):
    from safetensors.torch import save_file

    for name, (config, spec) in MODELS.items():
        with outlines():
            empty = config.build(spec).state_dict()
        state = {key: torch.full(value.shape, 0.5) for key, value in empty.items()}
        if suffix == ".pt":
            torch.save({"model": state}, tmp_path / f"{name}.pt")
        else:
            save_file(state, tmp_path / f"{name}.safetensors")
    size = (tmp_path / f"wide{suffix}").stat().st_size
    for dtype, limit in ((torch.float32, 1.2), (torch.bfloat16, 0.7)):
        parameters, peak = server.call(loading, tmp_path, suffix, dtype)
        assert parameters > 7e7
        assert 0.4 * size < peak < limit * size, (dtype, peak / size)


def test_our_own_files_are_checked_against_the_run_as_well(published, tmp_path):
    model, _, refer = published
    config = load_plugin(
        "common.models.backbones", type(model).__module__.rpartition(".")[2]
    ).Config
    path = tmp_path / "ours.safetensors"
    save_backbone(path, model, config.tiny())
    assert same(model, refer(path).load())
    half = refer(path).load(torch.bfloat16)
    assert half.head.weight.dtype == torch.bfloat16
    for name, buffer in half.named_buffers():
        assert torch.equal(buffer, dict(model.named_buffers())[name]), name
    deeper = config.tiny().model_copy(update={"depth": 6})
    with pytest.raises(InputError, match=r"holds a model with depth .*has depth 6"):
        refer(path, architecture=deeper).check()


def test_entries_are_known_without_reading(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"state_dict": {"a": torch.zeros(3, 5, dtype=torch.float16)}}, path)
    checkpoint = Checkpoint(path)
    assert checkpoint.shapes == {"a": (3, 5)}
    assert checkpoint.entries["a"].bytes == 30
