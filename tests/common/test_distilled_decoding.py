"""Students of Distilled Decoding 1: what a slot sees, and what is inherited.

The acceptance tests S1 and S2 of docs/one_step.md, "Students".
"""

from dataclasses import replace

import pytest
import torch
from building.students import TEACHERS, scale_of, student_of

from common.errors import InputError
from common.models.generator import gaussian

LABEL_B = torch.tensor([0, 2, 1])
SEEDS = [5, 6, 7]


def noise_for(student):
    return gaussian(SEEDS, student.spec.length, student.code_width)


def both_heads(student, vector_BLD, known):
    """All that is said of every slot, side by side, also where `jump` would not ask."""
    is_data_BL = (torch.arange(student.spec.length) < known).expand(len(vector_BLD), -1)
    deep_BLC = student.trunk(LABEL_B, vector_BLD, is_data_BL)
    said = student.head(student.normed(deep_BLC, LABEL_B)), student.embed(deep_BLC, LABEL_B)
    return torch.cat(said, -1)


def assert_sees(student, sees_LL, known):
    """`sees_LL`: whether what is said of a slot (row) depends on another's vector."""
    vector_BLD = noise_for(student)
    before = both_heads(student, vector_BLD, known)
    for slot in range(student.spec.length):
        changed = vector_BLD.clone()
        changed[:, slot] += torch.linspace(-1, 1.5, student.code_width)
        moved_BL = (both_heads(student, changed, known) - before).abs().amax(-1)
        seen_L = sees_LL[:, slot]
        assert (moved_BL[:, ~seen_L] < 1e-5).all(), f"slot {slot} leaks"
        assert (moved_BL[:, seen_L] > 1e-3).all(), f"slot {slot} is not seen"


@torch.no_grad()
@pytest.mark.parametrize("known", [0, 1])
def test_a_slot_sees_its_own_vector_and_those_of_earlier_steps(make, known):
    student = make()
    scale_L = scale_of(student.spec)
    itself_LL = torch.eye(len(scale_L), dtype=torch.bool)
    assert_sees(student, (scale_L[:, None] > scale_L) | itself_LL, known)


@torch.no_grad()
def test_the_papers_mask_lets_slots_see_their_whole_scale(tiny):
    teacher = tiny("var")
    student = student_of("dd1_var", teacher, mask="paper")[1]
    student.start_from(teacher)
    scale_L = scale_of(student.spec)
    assert_sees(student, scale_L[:, None] >= scale_L, 0)


@torch.no_grad()
def test_everything_said_depends_on_the_class(make):
    student = make()
    vector_BLD = noise_for(student)[:1].expand(3, -1, -1)
    said = both_heads(student, vector_BLD, 0)
    assert ((said[0] - said[1]).abs().amax(-1) > 1e-3).all()


@torch.no_grad()
def test_data_pass_through_unchanged_and_their_logits_are_one_hot_at_the_nearest_code(make):
    student = make()
    vector_BLD = noise_for(student)
    for known in range(student.spec.length + 1):
        made = student.jump(LABEL_B, vector_BLD, known)
        assert torch.equal(made.vector_BLD[:, :known], vector_BLD[:, :known])
        assert not torch.isclose(made.vector_BLD[:, known:], vector_BLD[:, known:]).all(-1).any()
        near_Bn = torch.cdist(vector_BLD[:, :known], student.codebook_VD).argmin(-1)
        wanted = torch.full((3, known, 24), -torch.inf).scatter(2, near_Bn[..., None], 0.0)
        assert torch.equal(made.logit_BLV[:, :known], wanted)
        assert torch.equal(made.token_BL[:, :known], near_Bn)
        assert torch.isfinite(made.logit_BLV[:, known:]).all()
        said = both_heads(student, vector_BLD, known)[:, known:]
        torch.testing.assert_close(made.logit_BLV[:, known:], said[..., :24])
        torch.testing.assert_close(made.vector_BLD[:, known:], said[..., 24:])


@torch.no_grad()
def test_class_and_data_have_type_1_and_noise_has_type_0(make):
    student, seen = make(), []
    student.n_d_embed.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    length = student.spec.length
    for known in (0, 1, length - 1):
        student.jump(LABEL_B, noise_for(student), known)
        assert seen.pop().tolist() == [[1] * (1 + known) + [0] * (length - known)] * 3


@torch.no_grad()
def test_slots_before_the_split_take_the_code_of_the_largest_logit(kind, make):
    whole = make()
    split = 1 if kind == "dd1_var" else 2
    student = make(split=split)
    student.load_state_dict(whole.state_dict())
    noise_BLD = noise_for(student)
    raw, made = whole(LABEL_B, noise_BLD), student(LABEL_B, noise_BLD)
    assert torch.equal(made.logit_BLV, raw.logit_BLV)
    early_BnD = student.codebook_VD[raw.logit_BLV[:, :split].argmax(-1)]
    assert torch.equal(made.vector_BLD[:, :split], early_BnD)
    assert not torch.equal(early_BnD, raw.vector_BLD[:, :split])
    assert torch.equal(made.vector_BLD[:, split:], raw.vector_BLD[:, split:])


@torch.no_grad()
def test_the_split_counts_from_the_first_slot_whatever_is_known(kind, make):
    split, known = (5, 1) if kind == "dd1_var" else (4, 2)
    student = make(split=split)
    vector_BLD = noise_for(student)
    made, said = student.jump(LABEL_B, vector_BLD, known), both_heads(student, vector_BLD, known)
    code_BLD = student.codebook_VD[said[..., :24].argmax(-1)]
    early, late = slice(known, split), slice(split, None)
    assert torch.equal(made.vector_BLD[:, early], code_BLD[:, early])
    torch.testing.assert_close(made.vector_BLD[:, late], said[:, late, 24:])
    assert not torch.isclose(code_BLD[:, late], said[:, late, 24:]).all(-1).any()


@torch.no_grad()
def test_a_llamagen_student_that_reads_data_is_its_teacher_a_place_later(tiny):
    """With one-hot codes the new input map can hold the teacher's table, which leaves only the
    place at which a token is read: the one where the teacher predicts the next."""
    teacher = tiny("llamagen")
    config = student_of("dd1_llamagen", teacher)[0]
    student = config.build(teacher.spec, torch.eye(24)).eval()
    student.start_from(teacher)
    student.tok_embeddings.weight.copy_(teacher.tok_embeddings.weight.T)
    student.n_d_embed.weight.zero_()
    token_BL = torch.randint(24, (3, 6))
    read_BLC = student.read(LABEL_B, student.codebook_VD[token_BL], torch.ones(3, 6).bool())
    wanted_BLC = teacher.features(LABEL_B, token_BL, teacher.plan(SEEDS))
    torch.testing.assert_close(read_BLC[:, :-1], wanted_BLC[:, 1:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_var_student_adds_its_types_once_in_every_block_and_before_the_heads(tiny):
    """With closed gates a block is what is added in it: the sum is written out."""
    teacher = tiny("var")
    student = student_of("dd1_var", teacher)[1]
    student.start_from(teacher)
    for block in student.blocks:
        block.ada_lin[1].weight.zero_()
        block.ada_lin[1].bias.zero_()
    vector_BLD = noise_for(student)
    type_SC = student.n_d_embed.weight[torch.tensor([1, 1, 1, 1, 1, 1] + [0] * 9)]
    row_S = torch.tensor([0] + [1] + [2] * 4 + [3] * 9)
    class_BC = student.class_emb(LABEL_B)
    opening_BC = class_BC + student.pos_start[0, 0]
    wanted = torch.cat([opening_BC[:, None], student.word_embed(vector_BLD)], 1)
    wanted = wanted + student.pos_1LC + student.lvl_embed.weight[row_S] + type_SC
    for linear in student.layerwise_n_d_embed:
        wanted = wanted + linear(type_SC)
    assert len(student.layerwise_n_d_embed) == len(student.blocks) + 1
    found = student.trunk(LABEL_B, vector_BLD, (torch.arange(14) < 5).expand(3, -1))
    torch.testing.assert_close(found, wanted[:, 1:], atol=1e-5, rtol=1e-5)
    mean, std = found.mean(-1, keepdim=True), found.var(-1, unbiased=False, keepdim=True) + 1e-6
    shift_BC, scale_BC = (row + class_BC for row in student.final_layer_conti.scale_shift_table)
    scaled = (found - mean) / std.sqrt() * (1 + scale_BC[:, None]) + shift_BC[:, None]
    last = student.final_layer_conti.linear
    said = scaled @ last.weight.T + last.bias
    torch.testing.assert_close(student.embed(found, LABEL_B), said, atol=1e-4, rtol=1e-4)


NEW = {
    "dd1_llamagen": {"tok_embeddings.weight", "tok_embeddings.bias"},
    "dd1_var": {f"layerwise_n_d_embed.{k}.{part}" for k in range(3) for part in ("weight", "bias")},
}
NEW_IN_BOTH = {
    *("codebook_VD", "n_d_embed.weight", "final_layer_conti.scale_shift_table"),
    *("final_layer_conti.linear.weight", "final_layer_conti.linear.bias"),
}
SECOND_ROW = {"pos_1LC": 1, "lvl_embed.weight": 0}


def test_a_student_starts_as_its_teacher_but_for_what_is_new(kind, teacher):
    """The second class among what is inherited: the released code draws it anew by mistake."""
    student = student_of(kind, teacher)[1]
    fresh = {name: value.clone() for name, value in student.state_dict().items()}
    student.start_from(teacher)
    theirs, ours = teacher.state_dict(), student.state_dict()
    for name, value in ours.items():
        if name in NEW[kind] | NEW_IN_BOTH:
            assert torch.equal(value, fresh[name]), name
        elif name in SECOND_ROW and kind == "dd1_var":
            axis = SECOND_ROW[name]
            first, second, rest = value.split([1, 1, value.shape[axis] - 2], axis)
            assert torch.equal(torch.cat([first, rest], axis), theirs[name]), name
            assert torch.equal(second, fresh[name].narrow(axis, 1, 1)), name
            assert not torch.isclose(second, theirs[name].narrow(axis, 0, 2)).all(-1).any(), name
        else:
            assert torch.equal(value, theirs[name]), name
    table = "class_emb" if kind == "dd1_var" else "cls_embedding.embedding_table"
    assert torch.equal(ours[f"{table}.weight"][1], theirs[f"{table}.weight"][1])
    drawn = student.get_parameter("n_d_embed.weight"), student.final_layer_conti.linear.weight
    assert all(len(value.unique()) > 1 for value in drawn)
    left = {n.partition(".")[0] for n in theirs} - {n.partition(".")[0] for n in ours}
    assert left == ({"quantizer"} if kind == "dd1_var" else set())


def test_another_teacher_is_refused(kind, teacher, tiny):
    config, student = student_of(kind, teacher)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    deeper = config.backbone.model_copy(update={"depth": 3}).build(teacher.spec)
    if kind == "dd1_var":
        deeper.quantizer.code_VD.copy_(teacher.quantizer.code_VD)
    with pytest.raises(
        InputError, match=r"has shape \[.*\] in the teacher and none in the student"
    ):
        student.start_from(deeper)
    more = tiny(TEACHERS[kind], spec=replace(teacher.spec, num_classes=4))
    with pytest.raises(InputError, match="the student has num_classes 3"):
        student.start_from(more)
    if kind == "dd1_llamagen":
        other, sentence = tiny("arpg"), "starts from a LlamaGen, not from a ARPG"
    else:
        other, sentence = tiny("var"), r"student's codebook .* is not that of the teacher"
        other.quantizer.code_VD[3] += 1e-3
    with pytest.raises(InputError, match=sentence):
        student.start_from(other)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


@torch.no_grad()
def test_what_is_added_in_a_block_is_read_by_its_feed_forward_part_only(tiny):
    """With the gate of either part closed the block is the other one, before or behind it."""
    block = tiny("var").blocks[0]
    x_BnC, added_BnC, class_BC = torch.randn(3, 5, 16), torch.randn(3, 5, 16), torch.randn(3, 16)
    gates = block.ada_lin[1].weight.view(6, 16, 16), block.ada_lin[1].bias.view(6, 16)
    stored = [value.clone() for value in gates]
    for part, wanted in (
        (0, lambda: block(x_BnC + added_BnC, class_BC, None, None)),
        (1, lambda: block(x_BnC, class_BC, None, None) + added_BnC),
    ):
        for value, full in zip(gates, stored, strict=True):
            value.copy_(full)
            value[part] = 0
        found = block(x_BnC, class_BC, None, None, added_BnC)
        torch.testing.assert_close(found, wanted(), atol=1e-5, rtol=1e-5)
        assert (found - block(x_BnC, class_BC, None, None)).abs().max() > 0.1


@torch.no_grad()
def test_codes_stay_as_they_are_in_a_student_of_another_precision(make):
    student = make(split=1)
    code_VD = student.codebook_VD.clone()
    half = student.to(torch.bfloat16)
    assert half.head.weight.dtype == torch.bfloat16
    assert torch.equal(half.codebook_VD, code_VD)
    made = half(LABEL_B, noise_for(half))
    assert torch.equal(made.vector_BLD[:, 0], code_VD[made.token_BL[:, 0]])
    assert made.vector_BLD.dtype == made.logit_BLV.dtype == torch.float32
