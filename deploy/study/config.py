"""What a study compares: methods x seeds from one shared start, at one budget."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from common.config.merge import Layer, Tree, merge
from common.config.quantities import Depth, Seed
from common.config.schema import SAY, Config, load_config, validate
from common.config.sections import PartOf
from common.config.toml_tree import read_toml
from common.errors import InputError
from common.files.paths import user_path
from common.randomness import derive_seed
from deploy.config import RunConfig
from deploy.run_folder.on_cpu import on_cpu
from deploy.run_folder.opening import portable
from deploy.run_folder.shipped import CONFIGS
from deploy.run_folder.workspace import run_config
from deploy.stages.generate import dataset_source
from deploy.study.analysis.results import BASE, SLOTS, TEACHER
from deploy.study.methods import (
    LINKS,
    is_one_pass,
    require_first,
    require_own,
    require_student,
    row_names,
)
from deploy.study.sections import BudgetConfig, CellsConfig, GuidanceConfig, SpeedConfig
from rollout.contexts import teacher

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
    """Methods that every other one is compared with on the same seeds, or references: `teacher`,
    `base` (the student before) or `slots`."""
    ablation: tuple[str, ...] = ()
    """Methods of a ladder, each compared with the one before; references may be among them."""
    speed: SpeedConfig | None = None
    """Whether milliseconds of an image are measured at the end, of everything side by side."""
    cells: CellsConfig = CellsConfig()
    """How cells run."""
    methods: Annotated[dict[str, Part], Field(min_length=1)]
    """Tables by name: sections of the run that are this method's own (objective, contexts, rollout,
    teacher, scorers, buffer, learner; models.student where it has one pass, and evaluate.steps and
    evaluate.inserted, in which that is measured), `like = "NAME"` to begin with another method's
    tables, and `after = "NAME"` to begin with what another method's student learned."""

    @model_validator(mode="after")
    def _methods_change_what_is_theirs(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are {list(self.seeds)}, but each may occur only once")
        for name, tree in self.methods.items():
            require_own(name, tree, self.methods)
        for name in self.budget.own:
            if name not in self.methods:
                known = ", ".join(self.methods)
                raise ValueError(f"budget.own names {name!r}, but methods are {known}")
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
        self.path = path
        self.start = self._merged(self._shared, "base with [set]")
        self._runs = {name: self._validated(name) for name in config.methods}
        self.after = {name: self._first(name) for name in config.methods}
        """The method that one begins with the student of."""
        self.generating = self._generating()
        self.rows = {name: row_names(name, run) for name, run in self._runs.items()}
        """Of each method: its own name, and one for each further way in which its student draws."""
        self.references = self._references()
        self._check()
        for sentence in self._told:
            SAY.warning(sentence)

    @property
    def shown(self) -> tuple[str, ...]:
        """Names of all rows but the references'."""
        return tuple(name for names in self.rows.values() for name in names)

    @property
    def judging(self) -> RunConfig:
        """The run whose classifier judges: the start's, with a seed of its own where a method's
        loss looks through a classifier, so that nothing was trained to please the judge."""
        if any(run.uses_classifier for run in self._runs.values()):
            return self.start.model_copy(update={"seed": derive_seed(self.start.seed, "judge")})
        return self.start

    def steps(self, method: str) -> int:
        """The budget's, where it is one of steps; else 0."""
        return self.config.budget.own.get(method, self.config.budget.steps or 0)

    def run(self, method: str, seed: int, steps: int) -> RunConfig:
        """The config of one cell; steps is the number that the budget gives the method."""
        run = self._runs[method]
        every = max(1, -(-steps // self.config.curve))
        learner = run.learner.model_copy(
            update={"steps": steps, "export_every": every, "keep_best": 0}
        )
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
                    f"{self.path}: methods.{reading[0]} and methods.{name} read other datasets of "
                    "the teacher's samples, but a study has one; give them the same "
                    "contexts.sources.teacher, or source = online"
                )
        if not reading:
            return None
        return self._runs[reading[0]].model_copy(update={"seed": self.start.seed})

    def _references(self) -> tuple[str, ...]:
        """What is measured beside the methods: a one-pass student has nothing before it, but its
        slots by themselves are what it has to be more than."""
        runs = self._runs.values()
        has_base = not is_one_pass(self.start) or self.start.learner.weights is not None
        has_slots = self.generating is not None and any(map(is_one_pass, runs))
        return (TEACHER, *[BASE] * has_base, *[SLOTS] * has_slots)

    def _check(self) -> None:
        """What only all runs together tell."""
        allowed = (*self.references, *self.shown)
        twice = [name for name in allowed if allowed.count(name) > 1]
        if twice:
            raise InputError(f"{self.path}: two methods have rows called {twice[0]!r}; rename one")
        for field in ("baselines", "ablation"):
            for name in getattr(self.config, field):
                if name not in allowed:
                    known = ", ".join(self.shown)
                    beside = ", ".join(self.references)
                    raise InputError(
                        f"{self.path}: {field} names {name!r}, but methods are {known} (and "
                        f"references {beside})"
                    )
        scales = self.config.guidance.scales
        for name, run in self._runs.items():
            if is_one_pass(run) and len(scales) > 1:
                raise InputError(
                    f"{self.path}: guidance.sweep has {len(scales)} scales, but a student of "
                    f"methods.{name} draws without guidance; set guidance.sweep = []"
                )
            if self.after[name] and self.config.budget.steps is None:
                raise InputError(
                    f"{self.path}: methods.{name} begins after another, so its steps cannot be "
                    "timed before; give budget.steps instead of seconds"
                )

    def _first(self, method: str) -> str | None:
        """What it comes after, by itself or by what it is `like`.

        Raises:
            InputError: that is in a circle, or does not suit.
        """
        first = self._linked(method, "after")
        seen, at = [method], first
        while at is not None:
            if at in seen:
                order = " -> ".join((*seen, at))
                raise InputError(f"{self.path}: methods {order} go in a circle")
            seen.append(at)
            at = self._linked(at, "after")
        before = None if first is None else self._runs[first]
        self._named(method, lambda: require_first(self._runs[method], before, self.start))
        return first

    def _linked(self, method: str, link: str) -> str | None:
        tree = self.config.methods[method]
        if link in tree or "like" not in tree:
            return tree.get(link)
        return self._linked(tree["like"], link)

    def _named(self, method: str, check: Callable[[], None]) -> None:
        try:
            check()
        except ValueError as error:
            raise InputError(f"{self.path}: methods.{method}: {error}") from None

    def _validated(self, method: str) -> RunConfig:
        run = self._merged((*self._shared, *self._own(method, ())), f"methods.{method}")
        for section in ("teacher", "learner"):
            if getattr(run, section).weights != getattr(self.start, section).weights:
                raise InputError(
                    f"{self.path}: methods.{method}.{section}.weights differs from the shared "
                    "start; put it under [set]"
                )
        self._named(method, lambda: require_student(self.start, run))
        return run

    def _merged(self, layers: Sequence[Layer], name: str) -> RunConfig:
        merged = merge(RunConfig, layers)
        self._told |= dict.fromkeys(merged.told)
        return portable(validate(RunConfig, merged.tree, source=f"{self.path}: {name}"))

    def _own(self, method: str, seen: tuple[str, ...]) -> tuple[Layer, ...]:
        """A method's layers, those that it is `like` first."""
        if method in seen:
            raise InputError(f"{self.path}: methods {' -> '.join((*seen, method))} go in a circle")
        given = self.config.methods[method]
        tree = {key: value for key, value in given.items() if key not in LINKS}
        parent = given.get("like")
        below = self._own(parent, (*seen, method)) if parent else ()
        return (*below, Layer(tree, f"{self.path}: methods.{method}"))


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
