"""What only the teacher may know: the ids travel with every row, the contents to nobody else."""

import io
import pickle
from dataclasses import dataclass, replace

import pytest
import torch
from building.records import START
from torch import Tensor

from common.data.tokens import load_tokens
from common.errors import InputError
from common.exchange.buffer import Buffer
from common.exchange.condition import (
    ClassConditions,
    Conditions,
    ConditionsConfig,
    ConditionTables,
)
from common.exchange.ledger import Ledger
from common.exchange.packed_weights import pack
from common.exchange.trajectory import from_arrow, to_arrow
from common.exchange.weights import Weights, WeightStore
from deploy.backend.launcher import LocalLauncher
from deploy.pipeline import wire
from deploy.stages.distill import preflight
from teacher_server.scorer import ScorerLink
from teacher_server.teacher import Teacher, guided_features

SERVICES = (Buffer, Ledger, ScorerLink, WeightStore)
SECRET = b"what only the teacher may know"


@dataclass(frozen=True)
class Rows(Conditions):
    """A table of contents: here the class that each id is about."""

    row_N: Tensor
    note: bytes = SECRET

    @property
    def null(self):
        return len(self.row_N) - 1

    def __len__(self):
        return len(self.row_N)

    def resolve(self, id_B):
        return self.row_N[id_B]


class Wire(pickle.Pickler):
    """Writes what a process would be sent: services are reached through proxies."""

    def persistent_id(self, obj):
        return type(obj).__name__ if isinstance(obj, SERVICES) else None


class Sending(LocalLauncher):
    def __init__(self):
        super().__init__()
        self.sent = {}

    def __call__(self, cls, *args, site=None, **kwargs):
        written = io.BytesIO()
        Wire(written).dump((args, kwargs))
        self.sent[site.name] = written.getvalue()
        return super().__call__(cls, *args, site=site, **kwargs)


def scored(run, tables):
    """The first step's first record, and what every process was sent."""
    config, workspace = run
    place, data = Sending(), load_tokens(workspace.train_tokens)
    teacher = workspace.model(config, "teacher")
    services, workers, _ = wire(config, data, teacher, place, conditions=tables)
    student = workspace.model(config, "student_before").load()
    services.weights.publish(Weights.of(0, pack(student, torch.float32)))
    services.ledger.restore(START)
    worker = workers.make("worker-0")
    assert worker.produce()
    assert worker.produce()
    share = services.buffer.take(0, shard=0, shards=1, timeout=0)
    return from_arrow(share.records[0]), place.sent


def test_no_student_process_receives_what_only_the_teacher_may_know(run_in):
    run = run_in("learner.ordered=true", "rollout.class_dropout=0.3")
    config, workspace = run
    file = workspace.model(config, "teacher")
    classes = ClassConditions(file.spec.num_classes)
    other_N = torch.cat([torch.arange(classes.num_classes).roll(1), torch.tensor([classes.null])])
    tables = ConditionTables(classes, Rows(other_N), torch.arange(len(classes)))
    batch, sent = scored(run, tables)
    plain, _ = scored(run, None)
    assert {name for name, message in sent.items() if SECRET in message} == {"teacher-0"}
    assert {"worker-0", "teacher-0", "buffer", "ledger", "weights"} <= sent.keys()
    assert torch.equal(batch.teacher_condition_B, batch.label_B)
    assert SECRET not in to_arrow(batch).serialize().to_pybytes()
    assert plain.teacher_condition_B is None
    assert torch.equal(batch.token_BL, plain.token_BL), "the student sampled by what it knows"
    assert (batch.label_B == classes.null).any(), "a dropped row is null for both"
    told = replace(batch, label_B=other_N[batch.label_B], teacher_condition_B=None)
    backbone = file.load()
    with torch.no_grad():
        wanted = guided_features(backbone, told, config.teacher.guidance)
    torch.testing.assert_close(batch.signal["hidden"].float(), wanted, atol=1e-4, rtol=1e-4)
    kept_B = batch.label_B != classes.null
    assert not torch.allclose(batch.signal["hidden"][kept_B], plain.signal["hidden"][kept_B])
    assert torch.equal(batch.signal["hidden"][~kept_B], plain.signal["hidden"][~kept_B])


def test_the_null_condition_belongs_to_the_table(data):
    from common.randomness import Draws

    label_B, _ = data.pick(range(40), Draws(0, len(data)), 0.5, null=2)
    usual_B, _ = data.pick(range(40), Draws(0, len(data)), 0.5)
    dropped_B = usual_B == ClassConditions(data.spec.num_classes).null
    assert 0 < int(dropped_B.sum()) < 40
    assert (label_B[dropped_B] == 2).all()
    assert torch.equal(label_B[~dropped_B], usual_B[~dropped_B])


def test_tables_that_do_not_fit_are_refused():
    classes, only = ClassConditions(3), Rows(torch.arange(4))
    for ids, words in (
        (None, "an id for every shared one"),
        (torch.arange(3), "3 teacher ids for 4 shared"),
        (torch.tensor([0, 1, 2, 0]), "must be null for the teacher too"),
        (torch.tensor([0, 4, 9, 3]), "id 4, which the teacher's own table lacks: it has 4"),
    ):
        with pytest.raises(ValueError, match=words):
            ConditionTables(classes, only, ids)
    tables = ConditionTables(classes, only, torch.arange(4))
    assert tables.for_student().teacher_only is None
    assert torch.equal(tables.for_student().teacher_ids(torch.tensor([2])), torch.tensor([2]))


class Short(ConditionsConfig):
    """The teacher knows of fewer conditions than there are classes."""

    def table(self, num_classes):
        return ClassConditions(num_classes)

    def teacher_table(self, num_classes):
        return ClassConditions(num_classes - 1), torch.arange(num_classes + 1)


def test_a_secret_that_the_teachers_table_lacks_is_refused_before_anything_starts(run_in):
    """And by the teacher itself, in a record."""
    config, workspace = run_in()
    with pytest.raises(InputError, match=r"teacher_table: id 10, which .* lacks: it has 10; give"):
        preflight(config.model_copy(update={"conditions": Short()}), workspace)
    classes = ClassConditions(3)
    tables = ConditionTables(classes, Rows(torch.arange(4)), torch.arange(4))
    tables.require_known(torch.tensor([3, 0]))
    tables.for_student().require_known(torch.tensor([7]))
    config, workspace = run_in("learner.ordered=true", name="other")
    file = workspace.model(config, "teacher")
    only = ClassConditions(file.spec.num_classes)
    known = ConditionTables(only, only, torch.arange(len(only)))
    teacher = Teacher(config.teacher, file, coalesce=False, conditions=known)
    batch, _ = scored((config, workspace), known)
    strange_B = torch.full_like(batch.label_B, 11)
    with pytest.raises(InputError, match=r"record holds id 11 in teacher_condition, but .* has 11"):
        teacher.opinion(replace(batch, teacher_condition_B=strange_B))


def test_ids_of_another_type_are_refused(sampled, tiny):
    batch = replace(sampled(tiny("llamagen")), teacher_condition_B=torch.rand(5))
    with pytest.raises(
        InputError, match=r"column teacher_condition is float32, expected an integer"
    ):
        from_arrow(to_arrow(batch))
