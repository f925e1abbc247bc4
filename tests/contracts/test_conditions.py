"""What every table of conditions keeps, and that each role goes by the one of the config."""

import json
import pickle
import sys

import pytest
import torch

from common.config.plugin_path import use_plugins
from common.config.plugins import kinds, load_plugin
from common.data.tokens import load_tokens
from common.errors import InputError
from common.exchange.condition import ClassConditions, ConditionsConfig
from common.files.tensors import load_tensors
from common.models.guidance import Guidance
from deploy.stages.distill import distill
from deploy.stages.draw import draw_batches, load_for_sampling
from deploy.stages.generate import SamplesPart, TeacherSampler
from deploy.stages.pretrain import pretrain_model
from rollout.sampler import SamplingConfig

PACKAGE = "tables_of_a_test"
APART = '''"""The classes, with shifted, and the null one after an id of no label."""

from dataclasses import dataclass

import torch

from common.exchange.condition import Conditions, ConditionsConfig


@dataclass(frozen=True)
class Apart(Conditions):
    num_classes: int
    shift: int

    @property
    def null(self):
        return self.num_classes + 1

    def __len__(self):
        return self.num_classes + 2

    def resolve(self, id_B):
        shifted_B = (id_B + self.shift) % self.num_classes
        return torch.where(id_B < self.num_classes, shifted_B, self.num_classes)


class Config(ConditionsConfig):
    shift: int = 0
    """Added to every label."""

    def table(self, num_classes):
        return Apart(num_classes, self.shift)
'''


@pytest.mark.parametrize("kind", kinds("common.exchange.conditions"))
def test_a_table_resolves_every_label_row_by_row_in_any_process(kind):
    tables = load_plugin("common.exchange.conditions", kind).Config().tables(5)
    assert tables.for_student().teacher_only is None
    for table in (tables.shared, tables.teacher_only):
        if table is None:
            continue
        id_N = torch.arange(len(table))
        found = table.resolve(id_N)
        assert len(found) == len(table) > 5
        assert 0 <= table.null < len(table)
        assert torch.equal(table.resolve(id_N.flip(0)), found.flip(0))
        assert torch.equal(pickle.loads(pickle.dumps(table)).resolve(id_N), found)


def test_labels_without_a_condition_are_refused():
    class Config(ConditionsConfig):
        def table(self, num_classes):
            return ClassConditions(num_classes - 1)

    with pytest.raises(InputError, match=r"has 5 conditions with the null one, but .* 5 labels"):
        Config().tables(5)


@pytest.fixture
def apart(tmp_path):
    """Overrides that choose a table of a user's own."""
    folder = tmp_path / PACKAGE / "conditions"
    folder.mkdir(parents=True)
    (folder / "apart.py").write_text(APART)
    yield f"plugins=['{folder.parent}']", "conditions.kind=apart"
    use_plugins([], [])
    sys.path.remove(str(tmp_path.resolve()))
    for name in [name for name in sys.modules if name.startswith(PACKAGE)]:
        del sys.modules[name]


def losses(workspace):
    return [json.loads(line)["loss"] for line in workspace.metrics.read_text().splitlines()]


def test_a_run_is_the_same_under_whichever_ids_its_conditions_go(run_in, quiet, apart):
    """Dropped labels have another id in every record and mean what they did: to the bit."""
    how = ("learner.steps=2", "rollout.class_dropout=0.5", "teacher.guidance={scale=2.0}")
    teacher = "contexts.sources.teacher={sampling={guidance={scale=2.0}}}"
    found = {}
    for name, chosen in (("classes", ()), ("apart", apart)):
        config, workspace = run_in(*how, teacher, *chosen, name=name)
        assert distill(config, workspace, quiet, local=True)["steps"] == 2
        found[name] = losses(workspace)
    assert found["classes"] == found["apart"]
    config, workspace = run_in(*how, teacher, "conditions.kind=classes", name="apart")
    with pytest.raises(InputError, match=r"conditions\.kind.*was apart, is classes"):
        distill(config, workspace, quiet, local=True, resume=True)


def test_pretraining_drops_labels_to_the_tables_null(own_tokens, quiet, apart):
    found = []
    for name, chosen in (("classes", ()), ("apart", apart)):
        how = ("pretrain.teacher.steps=2", "pretrain.teacher.class_dropout=0.5")
        config, workspace = own_tokens(*how, *chosen, name=name)
        workspace.teacher.unlink()
        pretrain_model(config, workspace, "teacher", quiet)
        found.append(load_tensors(workspace.teacher)[0])
    usual, other = found
    assert all(torch.equal(usual[name], other[name]) for name in usual)


def test_samples_are_of_what_the_table_gives_for_their_labels(run_in, tmp_path, apart):
    config, workspace = run_in(*apart, "conditions.shift=1")
    usual, _ = run_in(*apart[:1], "conditions.kind=classes")
    file = workspace.model(config, "teacher")
    guided, count = SamplingConfig(guidance=Guidance(scale=3.0)), file.spec.num_classes
    backbone, tokenizer = load_for_sampling(file, workspace, "cpu")
    label_N = torch.tensor([count - 1, 0, 1, 5])
    drawn, cells = [], []
    for run, labels in ((config, label_N), (usual, (label_N + 1) % count)):
        table = run.conditions.table(count)
        how = {"sampling": guided, "batch_size": 4, "seed": 0, "conditions": table}
        drawn += draw_batches(backbone, tokenizer, labels, **how)
        part = SamplesPart(tmp_path / "part.parquet", labels, (1, 2, 3, 4))
        TeacherSampler(file, guided, 2, "cpu", "float32", run.conditions).make(part)
        cells.append(load_tokens(part.path).token_NAL)
    assert torch.equal(*drawn)
    assert torch.equal(*cells)
