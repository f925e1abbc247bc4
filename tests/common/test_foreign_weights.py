"""Weights as others leave them: wrapped names, no average, integers, numbers that are none."""

import itertools
import json

import pytest
import torch
from building.headers import with_header
from building.texts import texts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from common.artifacts.backbone_file import load_backbone, load_head, save_backbone
from common.artifacts.model_file import ModelFile, official_state
from common.errors import InputError
from common.files.tensors import load_tensors
from common.files.wrappers import MARKED, plain_names
from common.models.backbones import llamagen
from common.spec import SequenceSpec

SPEC = SequenceSpec(32, 16, (4, 4), 5)
CONFIG = llamagen.Config.tiny()
WORDS = (*sorted(MARKED), "module")


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = CONFIG.build(SPEC)
    with torch.no_grad():
        made.head.weight.normal_()  # the published head starts at zero
    return made.eval()


def refer(path, **changes):
    fields = {"architecture": CONFIG, "spec": SPEC, "tokenizer": path.parent / "none"}
    return ModelFile(path, "models.teacher", **(fields | changes))


def same(model, other):
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items())


def wrapped(state, inside, around):
    """Every name with `around` in front and `inside` after its block's number."""
    return {
        ".".join(
            [*around, *name.replace("layers.0.", ".".join(["layers.0", *inside, ""])).split(".")]
        ): v
        for name, v in state.items()
    }


@pytest.mark.parametrize("around", [*itertools.permutations(WORDS, 2), ("module",), ()])
def test_wrappers_in_any_order_and_depth_are_taken_off(model, tmp_path, around):
    state = official_state(model)
    path = tmp_path / "a.safetensors"
    for inside in ((), ("_orig_mod",), ("_fsdp_wrapped_module", "_checkpoint_wrapped_module")):
        save_file(wrapped(state, inside, around), path)
        assert same(model, refer(path).load()), inside
        assert torch.equal(refer(path).head().weight, model.head.weight)


def test_a_wrapper_around_every_module_is_taken_off(model, tmp_path):
    state = {
        "module." + name.replace(".", "._fsdp_wrapped_module."): v
        for name, v in official_state(model).items()
    }
    torch.save({"model": state}, tmp_path / "a.pt")
    assert same(model, refer(tmp_path / "a.pt").load())


def test_names_that_hold_such_a_word_of_their_own_stay(tmp_path):
    value = torch.zeros(1)
    real = [
        "submodule.weight",
        "my_orig_mod.weight",
        "encoder.module.weight",
        "encoder.norm.weight",
        "module_norm.weight",
        "list.0.module",
        "list.1.module",
    ]
    assert list(plain_names(dict.fromkeys(real, value), tmp_path)) == real
    around = {f"module._orig_mod.{name}": value for name in real}
    assert list(plain_names(around, tmp_path)) == real


def test_two_names_that_become_one_are_refused(tmp_path):
    state = {"a._orig_mod.weight": torch.zeros(1), "a.weight": torch.ones(1)}
    with pytest.raises(InputError, match=r"a\._orig_mod\.weight and a\.weight are both a\.weight"):
        plain_names(state, tmp_path)


names = st.lists(st.sampled_from([*WORDS, "a", "b", "weight"]), min_size=1, max_size=5)


@given(st.sets(names.map(".".join), min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_no_tensor_is_ever_lost_or_named_twice(tmp_path_factory, found):
    state = {name: torch.tensor(i) for i, name in enumerate(sorted(found))}
    try:
        plain = plain_names(state, tmp_path_factory.getbasetemp())
    except InputError:
        return
    assert sorted(int(v) for v in plain.values()) == list(range(len(state)))


def test_an_average_that_is_not_there_is_refused(model, tmp_path):
    state = official_state(model)
    plain, both, ours = (tmp_path / f"{n}.safetensors" for n in ("plain", "both", "ours"))
    save_file(state, plain)
    raised = {f"ema.{k}": v + 1 for k, v in state.items()}
    save_file({f"model.{k}": v for k, v in state.items()} | raised, both)
    save_backbone(ours, model, CONFIG)
    with pytest.raises(InputError, match="weights_ema asks for averaged weights, but no name"):
        refer(plain, ema=True).load()
    for read in (ModelFile.load, ModelFile.check, ModelFile.head):
        with pytest.raises(InputError, match=r"teacher\.weights_ema asks .* holds one set"):
            read(refer(ours, ema=True))
    assert same(model, refer(both).load())
    averaged = refer(both, ema=True).load()
    assert torch.equal(averaged.head.weight, model.head.weight + 1)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_named_by_file_and_tensor(model, tmp_path, value):
    with torch.no_grad():
        model.head.weight[3, 2] = value
    official, safe, ours = tmp_path / "a.pt", tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    torch.save({"model": official_state(model)}, official)
    save_file(official_state(model), safe)
    save_backbone(ours, model, CONFIG)
    for path in (official, safe, ours):
        for read in (ModelFile.load, ModelFile.head):
            with pytest.raises(
                InputError, match=r"output\.weight holds values that are not finite"
            ):
                read(refer(path))
        refer(path).check()
    for read in (load_backbone, load_head, load_tensors):
        with pytest.raises(InputError, match=r"b\.safetensors: output\.weight holds values"):
            read(ours)


def test_numbers_too_large_for_the_wanted_type_are_said_to_be(model, tmp_path):
    with torch.no_grad():
        model.head.weight[0, 0] = 1e6
    save_file(official_state(model), tmp_path / "a.safetensors")
    file = refer(tmp_path / "a.safetensors")
    assert file.load().head.weight[0, 0] == 1e6
    with pytest.raises(InputError, match=r"output\.weight holds values that do not fit .*float16"):
        file.load(torch.float16)


def test_types_of_files_become_types_that_can_be_computed_with(model, tmp_path):
    """float64 and float8 have no kernels here; halves stay what they are unless asked."""
    state = official_state(model)
    path = tmp_path / "a.safetensors"
    for stored, kept in (
        (torch.float64, torch.float32),
        (torch.float8_e4m3fn, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
    ):
        save_file({k: v.to(stored) for k, v in state.items()}, path)
        assert {p.dtype for p in refer(path).load().parameters()} == {kept}
        assert {p.dtype for p in refer(path).load(torch.float32).parameters()} == {torch.float32}
    save_file({k: (v * 10).to(torch.int8) for k, v in state.items()}, path)
    with pytest.raises(InputError, match=r"is torch\.int8, expected torch\.float32"):
        refer(path).load()


def test_a_tensor_larger_than_its_file_is_not_read(tmp_path):
    """One number with strides of 0, as torch.save keeps them."""
    config = llamagen.Config(width=4096, depth=1, heads=64)
    spec = SequenceSpec(2**17, 16, (4, 4), 5)
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in config.build(spec).state_dict().items()}
    path = tmp_path / "a.pt"
    torch.save({name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}, path)
    with pytest.raises(InputError, match=r"claims \d+ bytes, but the file has"):
        refer(path, architecture=config, spec=spec).load()


SPEC_JSON = {"vocab_size": 32, "length": 16, "grid": [4, 4], "num_classes": 5, "scales": []}
HEADERS = [
    {"spec": "{"},
    {"spec": "[" * 10_000},
    {"spec": "null"},
    {"spec": "3"},
    {"spec": json.dumps({k: v for k, v in SPEC_JSON.items() if k != "grid"})},
    {"spec": json.dumps(SPEC_JSON | {"vocab_size": "32"})},
    {"spec": json.dumps(SPEC_JSON | {"vocab_size": -1})},
    {"spec": json.dumps(SPEC_JSON | {"length": 10**15})},
    {"spec": json.dumps(SPEC_JSON | {"length": 16.5})},
    {"spec": json.dumps(SPEC_JSON | {"grid": [4]})},
    {"spec": json.dumps(SPEC_JSON | {"grid": "44"})},
    {"spec": json.dumps(SPEC_JSON | {"scales": [1, 2]})},
    {"spec": json.dumps(SPEC_JSON | {"scales": [10**9]})},
    {"spec": json.dumps(SPEC_JSON | {"new": 1})},
    {"spec": json.dumps(SPEC_JSON | {"vocab_size": 2**19, "num_classes": 10**6})},
    {"spec": None},
    {"config": None},
    {"config": "[]"},
    {"config": '{"kind": "nonsense"}'},
    {"config": '{"kind": ["llamagen"]}'},
    {"config": "{}"},
    {"config": json.dumps(CONFIG.model_dump(mode="json") | {"width": 10**9})},
    {"config": json.dumps(CONFIG.model_dump(mode="json") | {"width": 17})},
    {"config": json.dumps(CONFIG.model_dump(mode="json") | {"strange": 1})},
]


@pytest.mark.parametrize("change", HEADERS, ids=lambda c: str(c)[:60])
def test_headers_that_are_damaged_or_foreign_are_a_sentence(model, tmp_path, change):
    path = tmp_path / "ours.safetensors"
    save_backbone(path, model, CONFIG)
    save_file(load_file(path), path, with_header(path, **change))
    for read in (load_backbone, load_head, lambda p: refer(p).load()):
        with pytest.raises(InputError, match=r"ours\.safetensors") as caught:
            read(path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600


@given(st.dictionaries(st.sampled_from(["spec", "config", "format"]), texts(40)))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_header_is_read_or_refused(model, tmp_path, changes):
    path = tmp_path / "ours.safetensors"
    save_backbone(path, model, CONFIG)
    save_file(load_file(path), path, with_header(path, **changes))
    for read in (load_backbone, load_tensors, lambda p: refer(p).check()):
        try:
            read(path)
        except InputError:
            continue
