"""A teacher that knows more: where students end, what the loss cannot fall below, and who reads
what."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from building.runs import TINY, rows_of

from common.errors import InputError
from common.exchange.condition import ClassConditions, ConditionTables
from common.exchange.conditions import hidden_classes
from common.models.backbone import Backbone
from deploy.run_folder.opening import open_run
from deploy.stages.distill import distill
from deploy.stages.pretrain import pretrain_model
from learner.categorical import Categorical
from learner.divergence import Divergence
from learner.objective import TokenChunk
from learner.objectives import gkd, privileged
from teacher_server.teacher import Teacher, TeacherConfig, guided_features, peeked

V, Z = 8, 5


def of_secrets(sharpness):
    """log p(. | z) of one slot for every z, float64."""
    generator = torch.Generator().manual_seed(0)
    return (sharpness * torch.randn(Z, V, generator=generator).double()).log_softmax(-1)


def loss(objective, q_V, p_ZV):
    """Mean over z of one student's loss."""
    chunk = TokenChunk(
        "student", torch.zeros(Z).long(), Categorical(q_V.expand(Z, V)), Categorical(p_ZV)
    )
    return objective.token_loss(chunk).mean()


def slope(objective, q_V, p_ZV):
    """Largest component of the gradient in the student's logits."""
    logit_V = q_V.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(objective, logit_V.log_softmax(-1), p_ZV), logit_V)
    return float(grad.abs().max())


def entropy(q_V):
    return float(-(q_V.exp() * q_V).sum())


@pytest.mark.parametrize("sharpness", [0.5, 1.5, 3.0])
def test_forward_kl_ends_at_the_average_and_reverse_kl_at_the_geometric_mean(sharpness):
    p_ZV = of_secrets(sharpness)
    average_V, geometric_V = p_ZV.exp().mean(0).log(), p_ZV.mean(0).log_softmax(-1)
    reverse = gkd.Config(divergence=Divergence(name="rkl"))
    between = gkd.Config(divergence=Divergence(name="jsd", beta=0.5))
    assert privileged.Config().divergence.name == "fkl"
    assert slope(privileged.Config(), average_V, p_ZV) < 1e-6
    assert slope(reverse, geometric_V, p_ZV) < 1e-6
    assert slope(reverse, average_V, p_ZV) > 4 * slope(between, average_V, p_ZV) > 1e-3


def test_reverse_kl_loses_what_some_secret_rules_out():
    """The more the teacher knows, the farther the two ends are apart; a code that one secret out
    of five rules out keeps its share of the average and nearly vanishes from the other."""
    apart = []
    for sharpness in (0.5, 1.5, 3.0):
        p_ZV = of_secrets(sharpness)
        average_V, geometric_V = p_ZV.exp().mean(0), p_ZV.mean(0).softmax(-1)
        apart.append(float(0.5 * (average_V - geometric_V).abs().sum()))
    assert apart[0] < 0.05 < 0.1 < apart[1] < apart[2]
    p_ZV = torch.full((Z, V), 1 / V).double()
    p_ZV[0, 0] = 1e-12
    p_ZV = (p_ZV / p_ZV.sum(1, keepdim=True)).log()
    assert p_ZV.exp().mean(0)[0] > 0.09
    assert p_ZV.mean(0).softmax(-1)[0] < 0.01


def test_whoever_is_below_the_floor_knows_the_secret():
    """The floor is what the secret tells of the code, in nats; no student without it gets there."""
    p_ZV = of_secrets(1.5)
    average_V = p_ZV.exp().mean(0).log()
    floor = entropy(average_V) - sum(map(entropy, p_ZV)) / Z
    assert floor > 0.1
    assert float(loss(privileged.Config(), average_V, p_ZV)) == pytest.approx(floor, abs=1e-6)
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        other_V = (average_V + torch.randn(V, generator=generator)).log_softmax(-1)
        assert float(loss(privileged.Config(), other_V, p_ZV)) > floor
    told = TokenChunk("student", torch.zeros(Z).long(), Categorical(p_ZV), Categorical(p_ZV))
    assert float(privileged.Config().token_loss(told).mean()) < 0.01 * floor


def test_a_student_of_hidden_classes_does_not_see_them(tiny, sampled):
    model, batch = tiny("llamagen"), sampled(tiny("llamagen"))
    tables = hidden_classes.Config().tables(model.spec.num_classes)
    shared, own = tables.of("student"), tables.of("teacher")
    labels = torch.arange(len(batch)) % (model.spec.num_classes + 1)
    assert (shared.resolve(labels) == shared.null).all()
    assert torch.equal(own.resolve(labels), labels)
    assert tables.for_student().teacher_only is None
    seen = {}
    for name, label_B in (("own", batch.label_B), ("other", batch.label_B.roll(1))):
        given = replace(batch, label_B=label_B, teacher_condition_B=tables.teacher_ids(label_B))
        with torch.no_grad():
            seen["student", name] = guided_features(model, given, None, tables.for_student())
            seen["teacher", name] = guided_features(model, given, None, tables)
    assert torch.equal(seen["student", "own"], seen["student", "other"])
    assert not torch.equal(seen["teacher", "own"], seen["teacher", "other"])


def test_a_secret_that_the_student_knows_changes_nothing(tiny, sampled):
    model, batch = tiny("llamagen"), sampled(tiny("llamagen"))
    classes = ClassConditions(model.spec.num_classes)
    tables = ConditionTables(classes, classes, torch.arange(len(classes)))
    told = replace(batch, teacher_condition_B=tables.teacher_ids(batch.label_B))
    with torch.no_grad():
        assert torch.equal(
            guided_features(model, told, None, tables), guided_features(model, batch, None)
        )


@pytest.mark.parametrize("kind", ["llamagen", "var"])
def test_a_teacher_that_peeks_reads_the_data_first(tiny, sampled, kind):
    model, batch = tiny(kind), sampled(tiny(kind))
    length = batch.spec.length
    given = replace(batch, target_token_BL=(batch.token_BL + 1) % batch.spec.vocab_size)
    read_BL = peeked(given, 0.5).input_BL
    half = -(-length // 2)
    for row, policy in enumerate(batch.policy):
        begins = given.target_BL if policy == "student" else batch.token_BL
        assert torch.equal(read_BL[row, :half], begins[row, :half])
        assert torch.equal(read_BL[row, half:], batch.token_BL[row, half:])
    with torch.no_grad():
        wanted = model.features(batch.label_B, read_BL, batch.plan)
        assert torch.equal(guided_features(model, peeked(given, 0.5), None), wanted)
    assert peeked(given, 0.0) is given


def test_a_record_without_what_the_teacher_peeks_at_is_refused_by_the_teacher(
    judging_files, tiny, sampled
):
    config = TeacherConfig(peek=0.5)
    teacher = Teacher(config, judging_files.teacher, coalesce=False)
    spec = judging_files.teacher.spec
    with pytest.raises(InputError, match=r"teacher\.peek lets the teacher read the data's codes"):
        teacher.opinion(sampled(tiny("llamagen", spec=spec)))


def test_a_run_with_a_secret_trains_an_unconditional_student(tmp_path, quiet, prepared):
    """From pretraining on: the student's class embeddings but the null one stay as they began."""
    how = ["conditions.kind=hidden_classes", "objective.kind=privileged", "teacher.peek=0.25"]
    config, workspace = open_run(Path("smoke"), [*TINY, *how, "learner.steps=2"], tmp_path)
    for name in ("tokens", "tokenizer.safetensors"):
        (workspace.root / name).symlink_to(prepared / name)
    for which in ("teacher", "student"):
        pretrain_model(config, workspace, which, quiet)
    teacher, student = (
        workspace.model(config, name).load().eval() for name in ("teacher", "student_before")
    )
    assert isinstance(teacher, Backbone)
    facts = distill(config, workspace, quiet, local=True)
    assert facts["steps"] == 2
    assert config.rollout.keep_target
    assert all(row["loss"] > 0 for row in rows_of(workspace))
    trained = workspace.model(config, "student").load().eval()
    key = "cls_embedding.embedding_table.weight"
    before, after = student.state_dict()[key], trained.state_dict()[key]
    torch.testing.assert_close(after[:-1], before[:-1], atol=0, rtol=1e-3)  # they only decay
    assert not torch.allclose(after[-1], before[-1], atol=0, rtol=1e-2), "the null class learns"


def test_a_privileged_teacher_without_a_privilege_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"set conditions\.kind=hidden_classes, or teacher\.peek"):
        open_run(Path("smoke"), [*TINY, "objective.kind=privileged"], tmp_path)
    inside = "objective={kind='kdrl',inner={kind='privileged'}}"
    judged = "scorers.token.kind=token_logprob", "rollout.group.size=4"
    with pytest.raises(
        InputError, match=r"objective\.inner\.kind=privileged learns from a teacher that"
    ):
        open_run(Path("smoke"), [*TINY, inside, *judged], tmp_path)


def test_a_teacher_with_a_table_of_its_own_is_not_sampled_by_workers(tmp_path):
    how = ["conditions.kind=hidden_classes", "contexts.sources.teacher.ratio=1"]
    with pytest.raises(InputError, match=r"set contexts\.sources\.teacher\.source=dataset"):
        open_run(Path("smoke"), [*TINY, *how], tmp_path)
    open_run(Path("smoke"), [*TINY, *how, "contexts.sources.teacher.source=dataset"], tmp_path)
