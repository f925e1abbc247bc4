"""Runs of the pipeline whose teacher is a table, so that the right answer is known: ledger,
workers, scorers, buffer and learner of `deploy/pipeline.py`, all in this process.

Of the run's config [models.teacher] is no model, only the sizes of the student.
"""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.tabular import AT_ONCE, CLASSES, D, L, Tabular
from common.artifacts.backbone_file import save_backbone
from common.artifacts.model_file import ModelFile
from common.config.plugins import load_plugin
from common.data.tokens import TokenDataset
from common.files.snapshots import Snapshots
from common.files.tensors import state_digest
from common.models.generator import Generated, Generator, gaussian
from common.models.one_pass import OnePassConfig, OnePassStudent
from common.randomness import derive_seed
from common.tokenization.tokenizer import save_tokenizer
from deploy.backend.launcher import LocalLauncher
from deploy.config import RunConfig
from deploy.pipeline import run_here, wire
from deploy.run_folder.opening import open_run
from deploy.stages.learner_rank import learner_of, trained_positions
from learner.checkpoints import Checkpoints
from learner.process_group import SingleProcess
from learner.resources import Resources
from learner.teacher_targets import TeacherTargets
from learner.train import Trained, Trainer

TOYS = Path(__file__).parent / "toys"
HELD_OUT = 10**9
"""Seeds from here on are never trained on."""


class TableRun:
    """One run: a table, one of the configs in `toys` with overrides, and a folder for its files."""

    def __init__(self, table: Tabular, folder: Path, name: str, *overrides: str) -> None:
        self.table, self.folder = table, folder
        self.config: RunConfig = open_run(TOYS / f"{name}.toml", [*overrides], folder)[0]
        self.teacher = self._written()

    def student(self) -> OnePassStudent:
        """Fresh weights; a table has none to begin from."""
        architecture = self.config.models.student
        assert isinstance(architecture, OnePassConfig)
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(self.config.seed, "start-student"))
            built = architecture.build(self.table.spec, self.table.codes.code_VD)
        assert isinstance(built, OnePassStudent)
        return built

    def train(
        self,
        student: OnePassStudent,
        guidance: OnePassStudent | None = None,
        *,
        after_step: Callable[[Trained, dict[str, float]], object] | None = None,
        around: Callable[[Trained], Trained] = lambda learner: learner,
    ) -> Generator:
        """All steps of the config: the student learns, and its average is returned. `around` puts
        something between the loop and the learner."""
        config, ranks = self.config, SingleProcess()
        services, workers, _ = wire(config, self._labels(), self.teacher, LocalLauncher())
        learner = self._learner(student, guidance, ranks)

        def train(while_waiting: Callable[[], object]) -> Any:
            return Trainer(
                around(learner),
                config.schedule(),
                buffer=services.buffer,
                weights=services.weights,
                ledger=services.ledger,
                metrics=services.hub,
                checkpoints=Checkpoints(Snapshots(self.folder / "snapshots"), every=0, minutes=0),
                ranks=ranks,
                weights_dtype=config.rollout.dtype if config.samples_student else None,
                stall_seconds=config.learner.stall_seconds,
                while_waiting=while_waiting,
                after_step=after_step,
            ).run()

        outcome = run_here(workers, config.rollout.workers, train)
        assert outcome.steps == config.learner.steps, outcome.cause
        return averaged(self, learner)

    def _learner(
        self, student: OnePassStudent, guidance: OnePassStudent | None, ranks: SingleProcess
    ) -> Trained:
        config, head = self.config, self.teacher.head()
        return learner_of(
            config,
            student,
            guidance,
            self._resources(guidance),
            seed=derive_seed(config.seed, "learner"),
            contexts=tuple(sorted(config.contexts.sources)),
            teacher=TeacherTargets(config.teacher.signal, head, state_digest(head)),
            ranks=ranks,
            conditions=config.conditions.table(CLASSES),
        )

    def _resources(self, guidance: OnePassStudent | None) -> Resources:
        return Resources(
            codebook=lambda: self.table.codes.code_VD,
            positions=lambda: trained_positions(self.config),
            guidance=lambda: guidance,
        )

    def _labels(self) -> TokenDataset:
        """Classes in turn; no source reads the tokens."""
        label_N = torch.arange(1000) % CLASSES
        token_NAL = torch.zeros(len(label_N), 1, L, dtype=torch.int16)
        return TokenDataset(token_NAL, label_N, self.table.spec, ("0", "1"), "points")

    def _written(self) -> ModelFile:
        """The table and its codes, as the files that workers and scorers open."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path, codes = (self.folder / f"{name}.safetensors" for name in ("teacher", "tokenizer"))
        family = load_plugin("common.models.backbones", "table")
        save_backbone(path, family.Table.of(self.table), family.Config())
        points = self.config.tokenizer
        tokenizer = points.build(size=1, channels=1)
        tokenizer.code_VD.copy_(self.table.codes.code_VD)
        save_tokenizer(codes, tokenizer, points, size=1, channels=1)
        return ModelFile(path, "models.teacher", family.Config(), self.table.spec, codes)


def averaged(run: TableRun, learner: Trained) -> Generator:
    """The moving average of the student that a learner holds, by itself."""
    student = run.student()
    student.load_state_dict(dict(dict(learner.states())["student_ema"]))
    return student.eval()


def held_out(first: int, rows: int) -> Tensor:
    """noise_BLD that nobody trained on."""
    return gaussian(range(HELD_OUT + first, HELD_OUT + first + rows), L, D)


def of_held_out(draw: Callable[[Tensor, Tensor], Generated]) -> Callable[[Tensor], Tensor]:
    """token_BL of labels, for `Tabular.distances`: by noise of other seeds in every call."""
    first = count(0, AT_ONCE)

    @torch.no_grad()
    def make(label_B: Tensor) -> Tensor:
        return draw(label_B, held_out(next(first), len(label_B))).token_BL

    return make
