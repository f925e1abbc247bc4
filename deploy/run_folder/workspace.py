"""A run folder: the names of its files, its config, and the models that are expected in it."""

import hashlib
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from common.artifacts.backbone_file import is_ours, load_head
from common.artifacts.generator_file import describe_generator
from common.artifacts.model_file import ModelFile
from common.artifacts.student_file import StudentFile
from common.config.schema import dump_toml
from common.data.tokens import read_header
from common.errors import InputError
from common.exchange.metric_files import parts_folder
from common.files.atomic import write_text
from common.files.paths import read_text
from common.models.backbone import BackboneConfig
from common.models.generator import GeneratorConfig
from common.models.one_pass import OnePassConfig
from deploy.run_folder.lock import locked

if TYPE_CHECKING:
    from deploy.config import RunConfig

CONFIG_NAMES = ("config.toml", "config.resolved.toml")
HEADER = "# Written by varkd: every field of this run, as its last command resolved it."
MADE_FROM = "# Beside the config.toml that was found here, of digest "
ModelName = Literal["teacher", "student_before", "student", "student_ema"]
AnyModelFile = ModelFile | StudentFile


class Workspace:
    """Names of a run's files, all in one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url: str | None = None
        """Where the run lives, if not here; the command holds the folder then."""
        self.config = root / CONFIG_NAMES[0]
        self.resolved = root / CONFIG_NAMES[1]
        self.tokenizer = root / "tokenizer.safetensors"
        self.train_tokens = root / "tokens" / "train.parquet"
        self.test_tokens = root / "tokens" / "test.parquet"
        self.teacher_tokens = root / "tokens" / "teacher.parquet"
        self.teacher = root / "teacher.safetensors"
        self.student_before = root / "student_before.safetensors"
        self.student = root / "student.safetensors"
        self.student_ema = root / "student_ema.safetensors"
        self.classifier = root / "features.safetensors"
        self.reference_features = root / "reference_features.safetensors"
        self.teacher_samples = root / "teacher_samples.safetensors"
        self.clusters = root / "clusters.safetensors"
        self.snapshots = root / "snapshots"
        self.pretraining = root / "pretraining"
        self.milestones = root / "milestones"
        self.rollouts = root / "rollouts"
        self.metrics = root / "metrics.jsonl"
        self.profiles = root / "profiles.jsonl"
        self.rows = (*map(parts_folder, (self.metrics, self.profiles)), self.metrics, self.profiles)
        """All that the driver writes of its steps."""
        self.board = root / "tensorboard"
        self.facts = root / "distill.json"

    @property
    def named(self) -> Path | str:
        """What the next command line calls the run."""
        return self.url or self.root

    def traces(self) -> list[Path]:
        """What is there of a distillation and its evaluation: what belongs to one run alone."""
        reports = ("report.json", "report.md", "report.html")
        files = (self.student, self.student_ema, *self.rows, self.facts)
        folders = (self.snapshots, self.milestones, self.rollouts)
        pictures = ("samples.png", "curves.png", "diagnostics.png")
        paths = (*files, *folders, *(self.root / name for name in (*reports, *pictures)))
        return [path for path in paths if path.exists() or path.is_symlink()]

    def has_run(self) -> bool:
        """Whether a distillation was begun here."""
        return bool(self.traces())

    def milestone(self, name: Literal["student", "student_ema"], step: int) -> Path:
        """A student that `learner.export_every` kept."""
        return self.milestones / f"{name}-{step:08d}.safetensors"

    def milestones_after(self, step: int) -> list[Path]:
        """Those of later steps."""
        numbered = (
            (path, path.stem.rpartition("-")[2]) for path in self.milestones.glob("student*")
        )
        return [path for path, at in numbered if at.isdecimal() and int(at) > step]

    def keep_config(self, config: "RunConfig") -> None:
        """Store the resolved config, so that the folder alone says what the run is.

        As config.toml, unless somebody wrote a file of that name: that one stays, and the resolved
        config goes beside it, with a mark that tells whether the other was changed since.
        """
        text = dump_toml(config)
        if not self.config.exists() or _is_ours(self.config):
            write_text(self.config, f"{HEADER}\n\n{text}")
            self.resolved.unlink(missing_ok=True)
        else:
            mark = f"{MADE_FROM}{_mark(self.config)}"
            write_text(self.resolved, f"{HEADER}\n{mark}\n\n{text}")

    def locked(self, command: str) -> AbstractContextManager[None]:
        """Hold the folder for one command, see `deploy.run_folder.lock.locked`."""
        if self.url is not None:
            return nullcontext()
        return locked(self.root, command)

    @overload
    def model(self, config: "RunConfig", name: Literal["teacher"]) -> ModelFile: ...

    @overload
    def model(self, config: "RunConfig", name: ModelName) -> AnyModelFile: ...

    def model(self, config: "RunConfig", name: ModelName) -> AnyModelFile:
        """The file of one of the run's models, and what the run expects to find in it.

        Raises:
            InputError: there is none.
        """
        if not self.has_model(config, name):
            raise InputError(
                f"{self.root}: no {name} is there, for a {config.models.student.kind} starts from "
                "the teacher; choose another model"
            )
        given = {"teacher": config.teacher.weights, "student_before": config.learner.weights}
        maker = {
            "teacher": "pretrain --model teacher",
            "student_before": "pretrain --model student",
            "student": "distill",
            "student_ema": "distill",
        }
        chosen = given.get(name)
        if chosen is not None and not chosen.exists():
            key = "teacher.weights" if name == "teacher" else "learner.weights"
            raise InputError(f"{key}: {chosen} does not exist; give the path of a checkpoint")
        path = chosen or self._existing(getattr(self, name), maker[name])
        role = "teacher" if name == "teacher" else "student"
        section = config.teacher if name == "teacher" else config.learner
        ema = section.weights_ema and chosen is not None
        architecture = getattr(config.models, role)
        return self.file_of(path, f"models.{role}", architecture, ema=ema)

    def file_of(
        self,
        path: Path,
        role: str,
        architecture: BackboneConfig | GeneratorConfig,
        *,
        ema: bool = False,
    ) -> AnyModelFile:
        """A file of this run's tokens; a folder without them trusts the model's own header."""
        is_one_pass = not isinstance(architecture, BackboneConfig)
        if self.train_tokens.exists() or not is_ours(path):
            spec = read_header(self.existing_tokens()).spec
        else:
            spec = describe_generator(path)[0] if is_one_pass else load_head(path)[1]
        if isinstance(architecture, BackboneConfig):
            return ModelFile(path, role, architecture, spec, self.tokenizer, ema)
        assert isinstance(architecture, OnePassConfig), "no objective trains another"
        return StudentFile(path, role, architecture, spec, self.tokenizer, ema)

    def made_student(self, config: "RunConfig", path: Path) -> AnyModelFile:
        """A student that a run wrote."""
        return self.file_of(path, "models.student", config.models.student)

    def has_model(self, config: "RunConfig", name: ModelName) -> bool:
        """Whether the run is to have such a file: a one-pass student without weights of its own
        starts from the teacher, in the learner."""
        starts = name == "student_before" and config.learner.weights is None
        return not (starts and isinstance(config.models.student, OnePassConfig))

    def existing_tokens(self) -> Path:
        return self._existing(self.train_tokens, "tokenize")

    def existing_generated(self) -> Path:
        return self._existing(self.teacher_tokens, "generate")

    def existing_tokenizer(self) -> Path:
        return self._existing(self.tokenizer, "tokenize")

    @staticmethod
    def _existing(path: Path, command: str) -> Path:
        if not path.exists():
            raise InputError(f"{path}: no such file; make it with `varkd {command}`")
        return path


def run_config(folder: Path) -> Path:
    """The config that a run folder is opened by.

    Raises:
        InputError: somebody's config.toml was changed after it was resolved: which one is meant?
    """
    given, resolved = (folder / name for name in CONFIG_NAMES)
    if not resolved.exists() or not given.exists() or _is_ours(given):
        return given if given.exists() or not resolved.exists() else resolved
    if (
        f"{MADE_FROM}{_mark(given)}"
        not in read_text(resolved, "a resolved config").splitlines()[:2]
    ):
        raise InputError(
            f"{given} was changed after {resolved.name} was made from it and the command line; "
            "name the file that is meant instead of the folder"
        )
    return resolved


def _is_ours(config: Path) -> bool:
    """Whether a config.toml may be written anew: it is ours, and nobody put a comment into it."""
    header, *lines = _contents(config).decode(errors="replace").splitlines() or [""]
    return header == HEADER and not any(line.lstrip().startswith("#") for line in lines)


def _mark(config: Path) -> str:
    return hashlib.blake2b(_contents(config), digest_size=8).hexdigest()


def _contents(config: Path) -> bytes:
    try:
        return read_text(config, "a config").encode()
    except (FileNotFoundError, InputError):  # not for us to read: in any case not ours
        return b""
