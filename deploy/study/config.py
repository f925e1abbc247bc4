"""What a study compares: methods x seeds from one shared start, at one budget."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from common.config.merge import Layer, Tree, merge
from common.config.quantities import Depth, Factor, Gpus, Seconds, Seed, SomeCpus, Steps
from common.config.schema import SAY, Config, load_config, validate
from common.config.sections import PartOf
from common.config.toml_tree import read_toml
from common.errors import InputError
from common.files.paths import user_path
from common.models.backbone import BackboneConfig
from deploy.config import RunConfig
from deploy.run_folder.on_cpu import on_cpu
from deploy.run_folder.opening import portable
from deploy.run_folder.shipped import CONFIGS
from deploy.run_folder.workspace import run_config
from deploy.stages.generate import dataset_source
from rollout.contexts import teacher

OWN = frozenset({"objective", "contexts", "rollout", "teacher", "buffer", "learner"})
"""Sections of a run that a method may change; everything else is the shared start."""
BUDGETED = frozenset({"steps", "global_batch_size", "weights", "weights_ema"})
"""Fields of [learner] that are the study's, equal for all methods."""
RESERVED = frozenset({"base", "teacher"})
"""Names of the references that every study measures."""


class BudgetConfig(Config):
    """One of the two; the page says which."""

    alternatives: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"steps", "seconds"}),)

    steps: Steps | None = None
    """Learner steps of every cell."""
    seconds: Seconds | None = None
    """Training seconds of every cell: each method gets the steps that it does in this time, as a
    short run of its own tells before the study starts."""
    probe_steps: Steps = 10
    """Steps of that short run, after one that warms up."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.steps is None) == (self.seconds is None):
            raise ValueError("give steps or seconds, and not both")
        return self


class GuidanceConfig(Config):
    fixed: Factor = 1.5
    """The scale of the main table and of the curves; 1 is none."""
    sweep: tuple[Factor, ...] = (1.0, 1.25, 1.5, 2.0, 3.0)
    """Scales at which the end of every cell is measured, so that a shift along the guidance axis is
    not taken for a gain."""

    @property
    def scales(self) -> tuple[float, ...]:
        """The sweep, in order, with the fixed scale."""
        return tuple(sorted({*self.sweep, self.fixed}))


class CellsConfig(Config):
    cpus: SomeCpus = 1
    """Logical CPUs of a Ray task; a cell is one process."""
    gpus: Gpus = 0
    """GPUs, or a fraction, of a Ray task."""
    tries: Depth = 2
    """A cell whose process died is begun again (from its snapshot) this often in all."""


Part = Annotated[Tree, PartOf(RunConfig)]
"""A part of a run's TOML; the run's config judges it once it is merged."""


class StudyConfig(Config):
    title: str = "Study"
    """Heading of the page."""
    question: str = ""
    """One paragraph under the heading: what is asked, and why so."""
    base: str = "smoke"
    """The run that all methods vary: a shipped config, a TOML file beside the study's, or a run
    folder, whose tokens and models are then read in place."""
    set: Part = Field(default_factory=dict)
    """Sections of that run that differ in this study, for all methods."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=1000)] = (0, 1, 2)
    """One cell per method and seed; a seed fixes data order, rollout noise and evaluation noise."""
    budget: BudgetConfig
    """How much every cell may train."""
    curve: Depth = 4
    """Measurements along every cell at the fixed guidance, the end included."""
    guidance: GuidanceConfig = GuidanceConfig()
    """Scales of evaluation."""
    weights: Literal["student", "student_ema"] = "student"
    """Which of a cell's students is measured."""
    baselines: tuple[str, ...] = ()
    """Methods that every other one is compared with on the same seeds."""
    ablation: tuple[str, ...] = ()
    """Methods of a ladder, each compared with the one before; `base` may be the first."""
    cells: CellsConfig = CellsConfig()
    """How cells run."""
    methods: Annotated[dict[str, Part], Field(min_length=1)]
    """Tables by name: sections of the run that are this method's own (objective, contexts, rollout,
    teacher, buffer, learner), and `like = "NAME"` to begin with another method's."""

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        for field in ("baselines", "ablation"):
            allowed = {*self.methods, "base"}
            for name in getattr(self, field):
                if name not in allowed:
                    raise ValueError(
                        f"{field} names {name!r}, but methods are {', '.join(self.methods)}"
                    )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are {list(self.seeds)}, but each may occur only once")
        for name in self.methods:
            if name in RESERVED or not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(
                    f"a method is called {name!r}; use letters, digits, - and _, and another name "
                    f"than {' and '.join(sorted(RESERVED))}"
                )
        return self

    @model_validator(mode="after")
    def _methods_change_what_is_theirs(self) -> Self:
        for name, tree in self.methods.items():
            strange = sorted(tree.keys() - OWN - {"like"})
            if strange:
                raise ValueError(
                    f"methods.{name} sets {strange[0]!r}, which is part of the shared start; a "
                    f"method may set {', '.join(sorted(OWN))}; put the rest under [set]"
                )
            budgeted = sorted(BUDGETED & tree.get("learner", {}).keys())
            if budgeted:
                raise ValueError(
                    f"methods.{name}.learner sets {budgeted[0]!r}, which must be equal for all "
                    "methods; put it under [budget] or [set.learner]"
                )
            if tree.get("like", name) not in self.methods:
                raise ValueError(
                    f"methods.{name} is like {tree['like']!r}, but there is no such method"
                )
        return self


class Study:
    """A validated study: the shared start's run, and the run of every method."""

    def __init__(self, config: StudyConfig, path: Path) -> None:
        self.config = config
        self._told: dict[str, None] = {}
        self._shared = (
            _base_layer(config.base, path),
            Layer(config.set, f"{path}: [set]", path.parent),
        )
        beside = user_path(path.parent / config.base)
        self.shared = beside.resolve() if beside.is_dir() else None
        """The run folder whose files the start reads in place."""
        self._path = path
        self.start = self._merged(self._shared, "base with [set]")
        if not isinstance(student := self.start.models.student, BackboneConfig):
            raise InputError(
                f"{path}: models.student.kind is {student.kind}, but a study compares every method "
                "with the student before, and one of one pass has none; choose another base"
            )
        self._runs = {name: self._validated(name) for name in config.methods}
        self.generating = self._generating()
        for sentence in self._told:
            SAY.warning(sentence)

    def run(self, method: str, seed: int, steps: int) -> RunConfig:
        """The config of one cell; steps is the number that the budget gives the method."""
        run = self._runs[method]
        every = max(1, -(-steps // self.config.curve))
        learner = run.learner.model_copy(update={"steps": steps, "export_every": every})
        return run.model_copy(update={"seed": seed, "learner": learner})

    def move_to_cpu(self) -> list[str]:
        """Run the start and all methods on this machine's CPUs; what that changes of the start."""
        self.start, changes = on_cpu(self.start)
        self._runs = {name: on_cpu(run)[0] for name, run in self._runs.items()}
        self.generating = self._generating()
        cells = self.config.cells.model_copy(update={"gpus": 0.0})
        self.config = self.config.model_copy(update={"cells": cells})
        return changes

    def _generating(self) -> RunConfig | None:
        """A run that reads a dataset of the teacher's samples, which is part of the start then."""
        sources = {name: dataset_source(run) for name, run in self._runs.items()}
        reading = [name for name, source in sources.items() if source is not None]
        for name in reading[1:]:
            if _samples(sources[name]) != _samples(sources[reading[0]]):
                raise InputError(
                    f"{self._path}: methods.{reading[0]} and methods.{name} read other datasets of "
                    "the teacher's samples, but a study has one; give them the same "
                    "contexts.sources.teacher, or source = online"
                )
        if not reading:
            return None
        return self._runs[reading[0]].model_copy(update={"seed": self.start.seed})

    def _validated(self, method: str) -> RunConfig:
        run = self._merged((*self._shared, *self._own(method, ())), f"methods.{method}")
        for section in ("teacher", "learner"):
            if getattr(run, section).weights != getattr(self.start, section).weights:
                raise InputError(
                    f"{self._path}: methods.{method}.{section}.weights differs from the shared "
                    "start; put it under [set]"
                )
        return run

    def _merged(self, layers: Sequence[Layer], name: str) -> RunConfig:
        merged = merge(RunConfig, layers)
        self._told |= dict.fromkeys(merged.told)
        return portable(validate(RunConfig, merged.tree, source=f"{self._path}: {name}"))

    def _own(self, method: str, seen: tuple[str, ...]) -> tuple[Layer, ...]:
        """A method's layers, those that it is `like` first."""
        if method in seen:
            raise InputError(f"{self._path}: methods {' -> '.join((*seen, method))} go in a circle")
        tree = dict(self.config.methods[method])
        parent = tree.pop("like", None)
        below = self._own(parent, (*seen, method)) if parent else ()
        return (*below, Layer(tree, f"{self._path}: methods.{method}"))


def _samples(source: teacher.Config | None) -> Any:
    return source and (source.sampling, source.sequences)


def open_study(path: Path, overrides: list[str]) -> Study:
    """Read and check a study and all its runs, before anything is started.

    Raises:
        InputError: in the study's file, its base, or what they make of a method.
    """
    return Study(load_config(StudyConfig, path, overrides), path)


def _base_layer(base: str, path: Path) -> Layer:
    beside = user_path(path.parent / base)
    file = run_config(beside) if beside.is_dir() else beside
    if not beside.is_dir() and beside.suffix != ".toml":
        file = CONFIGS / f"{base}.toml"
        if not file.exists():
            known = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.toml")))
            raise InputError(
                f"{path}: base is {base!r}; expected a .toml file or a run folder beside it, or "
                f"one of {known}"
            )
    return Layer(read_toml(file), str(file), file.parent)
