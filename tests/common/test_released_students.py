"""Files of one-pass students: ours, and the released layout of Distilled Decoding."""

import pytest
import torch
from building.students import KINDS, TEACHERS, codes_of, student_of

from common.artifacts.backbone_file import load_backbone, save_backbone
from common.artifacts.generator_file import (
    load_generator,
    load_released,
    released_state,
    save_generator,
    save_released,
)
from common.artifacts.model_file import ModelFile, official_state
from common.errors import InputError
from common.models.generator import gaussian

LABEL_B = torch.tensor([0, 2, 1])


@pytest.fixture
def made(kind, teacher):
    return student_of(kind, teacher)


def same(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_student_of_ours_comes_back_whole(made, tmp_path):
    config, student = made
    path = tmp_path / "student.safetensors"
    save_generator(path, student, config, step=3)
    found, found_config = load_generator(path)
    assert found_config == config
    assert same(student, found)
    noise_BLD = gaussian([1, 2, 3], student.spec.length, student.code_width)
    with torch.no_grad():
        wanted = student(LABEL_B, noise_BLD)
        assert torch.equal(found(LABEL_B, noise_BLD).vector_BLD, wanted.vector_BLD)
    half, _ = load_generator(path, torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half.codebook_VD.dtype == torch.float32
    with torch.no_grad():
        rough = half(LABEL_B, noise_BLD)
    assert rough.vector_BLD.dtype == rough.logit_BLV.dtype == torch.float32
    torch.testing.assert_close(rough.vector_BLD, wanted.vector_BLD, atol=0.2, rtol=0.1)


LAYOUTS = {
    "dd1_llamagen": {
        "model": lambda state: {"model": state, "steps": 3},
        "ema": lambda state: {"model": {}, "ema": state},
        "bare": lambda state: state,
    },
    "dd1_var": {
        "model": lambda state: {"trainer": {"var_wo_ddp": state}, "epoch": 1},
        "ema": lambda state: {"trainer": {"var_wo_ddp": {}, "ema_parameters": state}},
        "bare": lambda state: state,
    },
}


@pytest.mark.parametrize("layout", ["model", "ema", "bare"])
@pytest.mark.parametrize("buffers", [True, False])
def test_every_released_layout_is_read(kind, teacher, made, tmp_path, layout, buffers):
    config, student = made
    state = released_state(student)
    if not buffers:
        state = {name: value for name, value in state.items() if name in student.state_dict()}
    path = tmp_path / "released.pth"
    torch.save(LAYOUTS[kind][layout](state), path)
    codes_VD = codes_of(teacher)
    found = load_released(path, config, teacher.spec, codes_VD, ema=layout == "ema")
    assert same(student, found)


def test_what_is_written_has_both_sets_of_weights_where_the_released_samplers_look(
    kind, teacher, made, tmp_path
):
    config, student = made
    averaged = student_of(kind, teacher, seed=2)[1]
    assert not same(student, averaged)
    path = tmp_path / "written.pth"
    save_released(path, student, averaged)
    content = torch.load(path, weights_only=True)
    raw, mean = ("model", "ema") if kind == "dd1_llamagen" else ("var_wo_ddp", "ema_parameters")
    content = content if kind == "dd1_llamagen" else content["trainer"]
    assert content.keys() == {raw, mean}
    assert content[mean].keys() == released_state(averaged).keys()
    codes_VD = codes_of(teacher)
    assert same(student, load_released(path, config, teacher.spec, codes_VD))
    assert same(averaged, load_released(path, config, teacher.spec, codes_VD, ema=True))


RELEASED = {
    "dd1_llamagen": {
        *("cls_embedding.embedding_table.weight", "tok_embeddings.weight", "tok_embeddings.bias"),
        *("n_d_embed.weight", "norm.weight", "output.weight"),
        *(f"layers.{k}.attention.{name}.weight" for k in range(2) for name in ("wqkv", "wo")),
        *(
            f"layers.{k}.feed_forward.{name}.weight"
            for k in range(2)
            for name in ("w1", "w2", "w3")
        ),
        *(f"layers.{k}.{name}_norm.weight" for k in range(2) for name in ("attention", "ffn")),
    },
    "dd1_var": {
        *("pos_start", "pos_1LC", "word_embed.weight", "word_embed.bias", "class_emb.weight"),
        *("lvl_embed.weight", "n_d_embed.weight", "head.weight", "head.bias"),
        *("head_nm.ada_lin.1.weight", "head_nm.ada_lin.1.bias", "lvl_1L", "attn_bias_for_masking"),
        *(f"layerwise_n_d_embed.{k}.{part}" for k in range(3) for part in ("weight", "bias")),
        *(
            f"blocks.{k}.{name}"
            for k in range(2)
            for name in (
                *("attn.scale_mul_1H11", "attn.q_bias", "attn.v_bias", "attn.zero_k_bias"),
                *("attn.mat_qkv.weight", "attn.proj.weight", "attn.proj.bias"),
                *("ffn.fc1.weight", "ffn.fc1.bias", "ffn.fc2.weight", "ffn.fc2.bias"),
                *("ada_lin.1.weight", "ada_lin.1.bias"),
            )
        ),
    },
}
EMBEDDING_HEAD = {
    f"final_layer_conti.{name}" for name in ("scale_shift_table", "linear.weight", "linear.bias")
}


def test_names_are_those_of_the_released_code(kind, made):
    """Written down from its modules."""
    assert released_state(made[1]).keys() == RELEASED[kind] | EMBEDDING_HEAD


def test_a_stored_mask_must_be_the_models(tiny, tmp_path):
    """The released file would bring its own in the place of the code's."""
    teacher = tiny("var")
    _, paper = student_of("dd1_var", teacher, mask="paper")
    config, _ = student_of("dd1_var", teacher)
    path = tmp_path / "released.pth"
    torch.save(released_state(paper), path)
    with pytest.raises(
        InputError, match=r"attn_bias_for_masking is not the mask .* other of released and paper"
    ):
        load_released(path, config, teacher.spec, codes_of(teacher))
    mask_SS = released_state(paper)["attn_bias_for_masking"][0, 0]
    assert mask_SS[2].tolist() == [0.0] * 6 + [-torch.inf] * 9, "class, first scale, its own"
    own_SS = released_state(student_of("dd1_var", teacher)[1])["attn_bias_for_masking"][0, 0]
    assert own_SS[2].tolist() == [0.0] * 3 + [-torch.inf] * 12, "class, first scale, itself"


def test_plain_autoregressive_weights_are_refused(kind, teacher, made, tmp_path):
    config, student = made
    official, own = tmp_path / "teacher.pt", tmp_path / "teacher.safetensors"
    torch.save(official_state(teacher), official)
    family = TEACHERS[kind]
    with pytest.raises(InputError, match=rf"plain autoregressive weights \({family}\).*{kind}"):
        load_released(official, config, teacher.spec, codes_of(teacher))
    save_backbone(own, teacher, config.backbone)
    with pytest.raises(InputError, match="holds a backbone, expected a one-pass student"):
        load_generator(own)
    save_generator(tmp_path / "student.safetensors", student, config)
    with pytest.raises(InputError, match="holds no backbone"):
        load_backbone(tmp_path / "student.safetensors")
    save_released(official, student, student)
    file = ModelFile(official, "models.teacher", config.backbone, teacher.spec, tmp_path / "none")
    with pytest.raises(InputError, match=f"a student of one pass .* models.teacher is a {family}"):
        file.check()


def test_another_familys_student_and_other_sizes_are_refused(kind, teacher, made, tiny, tmp_path):
    config, _ = made
    other = next(name for name in KINDS if name != kind)
    theirs = tiny(TEACHERS[other])
    path = tmp_path / "other.pth"
    torch.save(released_state(student_of(other, theirs)[1]), path)
    with pytest.raises(InputError, match=f"holds no {kind}"):
        load_released(path, config, teacher.spec, codes_of(teacher))
    state = released_state(made[1])
    state["n_d_embed.weight"] = torch.zeros(3, 16)
    torch.save(state, path)
    with pytest.raises(
        InputError, match=r"n_d_embed.weight has shape \[3, 16\], expected \[2, 16\]"
    ):
        load_released(path, config, teacher.spec, codes_of(teacher))
    del state["n_d_embed.weight"]
    torch.save(state, path)
    with pytest.raises(InputError):
        load_released(path, config, teacher.spec, codes_of(teacher))
