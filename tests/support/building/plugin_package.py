"""A package of a user's own: one plug-in of each kind, and the config that chooses them all."""

import sys
from pathlib import Path

import pytest
import tomli_w

from common.config.plugin_path import use_plugins
from common.config.toml_tree import read_toml
from deploy.main import main
from deploy.run_folder.shipped import CONFIGS

PACKAGE = "plugins_of_a_test"
FILES = {
    "backbones/own_family": """
from common.config.quantities import Tokens
from common.models.backbones import llamagen
from common.models.decoding import DecodingConfig

def own_rule(scale, plan, interval):
    return (scale + 1,) * len(plan.step_sizes)

def own_top_p(logit_BnV, top_p):
    return logit_BnV < logit_BnV.amax(-1, keepdim=True)

GUIDANCE_RULES = {"own_rule": own_rule}
TOP_P_RULES = {"own_top_p": own_top_p}

class Decoding(DecodingConfig):
    own_order: Tokens | None = None
    \"\"\"Something that only this family knows.\"\"\"

class Config(llamagen.Config):
    @classmethod
    def sizes_in(cls, shapes):
        return None
""",
    "tokenizers/own_tokenizer": """
from common.tokenization.tokenizers import patch_kmeans

class Config(patch_kmeans.Config):
    pass
""",
    "objectives/own_objective": """
from common.config.schema import UserPath
from learner.objective import PlainObjective

class Config(PlainObjective):
    table: UserPath | None = None
    \"\"\"A file of one's own.\"\"\"
    tables: tuple[UserPath, ...] = ()
    \"\"\"Several.\"\"\"

    def token_loss(self, chunk):
        both_NV = chunk.student_NV + chunk.required_teacher_NV
        return 1 - (0.5 * both_NV).exp().sum(-1)

    def sequence_loss(self, rows):
        agreement_B = rows.batch.sequence["agreement"]  # of the scorer
        return agreement_B * rows.hidden_BLC.square().mean((1, 2))
""",
    "token_sources/own_source": """
from common.data.token_sources import images

class Config(images.Config):
    doing = "encode my way"
""",
    "generators/own_generator": """
from common.models.generators import linear

class Config(linear.Config):
    pass
""",
    "scorers/own_scorer": """
from dataclasses import replace

import torch

from common.config.plugins import load_plugin
from common.exchange.trajectory import from_arrow, to_arrow
from teacher_server.scorer import OwnActorsConfig

class Config(OwnActorsConfig):
    sequence_columns = ("agreement",)

    generator: str
    \"\"\"Kind of the generator whose samples are compared.\"\"\"

    def build(self, files):
        spec = files.teacher.spec
        config = load_plugin("common.models.generators", self.generator).Config.tiny()
        return Agreement(config.build(spec, torch.eye(spec.vocab_size)))

class Agreement:
    def __init__(self, generator):
        self.generator = generator

    @torch.no_grad()
    def score(self, record):
        batch = from_arrow(record)
        generated = self.generator.generate(batch.label_B, batch.id_B.tolist())
        same_B = (generated.token_BL == batch.plan.to_grid(batch.token_BL)).float().mean(1)
        return to_arrow(replace(batch, sequence=batch.sequence | {"agreement": same_B}))
""",
    "contexts/own_context": """
from rollout.contexts import data

class Config(data.Config):
    pass
""",
    "conditions/own_conditions": """
from common.exchange.conditions import classes

class Config(classes.Config):
    pass
""",
    "loggers/own_logger": """
from typing import ClassVar

from deploy.logger import LoggerConfig

class Config(LoggerConfig):
    package: ClassVar[str] = "json"

    def open(self, run):
        return OwnLogger((run.folder / "own_log").open("w"))

class OwnLogger:
    def __init__(self, file):
        self.file = file

    def write(self, rows):
        print(*(row["step"] for row in rows), file=self.file)

    def close(self):
        self.file.close()
""",
    "signals/own_signal": """
from common.exchange.signals import full

class Config(full.Config):
    pass
""",
}
OWN = {
    "plugins": [PACKAGE],
    "tokenizer": {"kind": "own_tokenizer", "patch": 2},
    "tokens": {"kind": "own_source"},
    "scorers": {
        "teacher": {"kind": "teacher"},
        "mine": {"kind": "own_scorer", "generator": "own_generator"},
    },
    "models": {
        role: {"kind": "own_family", "width": 16, "depth": 2, "heads": 2}
        for role in ("teacher", "student")
    },
    "objective": {"kind": "own_objective", "table": "a/table.npy", "tables": ["b.npy"]},
    "conditions": {"kind": "own_conditions"},
    "loggers": {"own_logger": {}},
    "teacher": {"signal": {"kind": "own_signal"}, "guidance": {"scale": 1.5, "rule": "own_rule"}},
    "contexts": {"mix_per": "sample", "sources": {"own_context": {}, "student": {}}},
    "pretrain": {"teacher": {"steps": 2}, "student": {"steps": 2}},
}
SMALL = ("rollout.batch_size=8", "learner.global_batch_size=16", "tokenizer.vocab_size=32")
"""Overrides that make a run with these models a matter of seconds."""


def write_package(parent: Path) -> Path:
    """The package, in `parent`."""
    folder = parent / PACKAGE
    for name, text in FILES.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'"""A plug-in."""\n{text}')
    return folder


def write_config(package: Path) -> Path:
    """A config file beside the package."""
    path = package.with_name("mine.toml")
    path.write_text(tomli_w.dumps({**read_toml(CONFIGS / "smoke.toml"), **OWN}))
    return path


def prepare(config: Path, root: Path) -> None:
    """Make tokens and models of plug-ins in `root`, by the commands."""
    for command in (["tokenize", "--local"], ["pretrain"]):
        with pytest.raises(SystemExit) as ended:
            main([*command, str(config), *SMALL, "--out", str(root)])
        assert not ended.value.code


def forget(package: Path) -> None:
    """Let this process know nothing of it: another test may make it anew."""
    use_plugins([], [])
    sys.path.remove(str(package.parent.resolve()))
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]
