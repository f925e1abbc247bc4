"""Measures what a cell trained, or a reference: along the way and at the end, in all its ways.

Shape letters: N images, C channels, H height, W width.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console
from torch import Tensor

from common.errors import InputError
from common.exchange.condition import Role
from common.models.guidance import Guidance
from common.randomness import derive_seed
from common.tokenization.tokenizer import load_tokenizer
from deploy.config import RunConfig
from deploy.report.grids import by_class, class_sheet, save_png, spread
from deploy.run_folder.workspace import AnyModelFile, Workspace
from deploy.stages.draw import load_for_sampling, ways
from deploy.stages.judge import Judge
from deploy.stages.likelihood import OF_DATA
from deploy.stages.quality import likelihood
from deploy.study.analysis.results import NATS, REFERENCES, SLOTS, TEACHER, Measurement
from deploy.study.jobs import Job
from deploy.study.slots import decoded, slots_alone
from rollout.evaluation.likelihood import ERROR
from rollout.sampler import SamplingConfig

SHOWN_PER_CLASS = 4
SHOWN_CLASSES = 10
SHOWN_PIXELS = 96


def measure_all(job: Job, workspace: Workspace, seconds: Mapping[int, float]) -> list[Measurement]:
    """Along the way at the fixed scale in the first way, at the end over the whole sweep in all.

    `seconds`: of training, after each step.
    """
    judge = Judge(job.config, Workspace(job.start))
    judge.read(Console(quiet=True))
    files = _files(job, workspace)
    found, last = [], max(files)
    for step, file in files.items():
        for scale in job.scales if step == last else (job.fixed,):
            for way, pixel_NCHW in _drawn(job, file, judge, scale, all_ways=step == last):
                if step == last and scale == job.fixed:
                    _show(job.folder / f"samples{way}.png", pixel_NCHW, judge)
                is_first = not way and scale == job.fixed
                nats = _likelihood(job, file, judge) if is_first else {}
                row = Measurement(
                    method=f"{job.method}{way}",
                    seed=job.seed,
                    step=step,
                    images=step * job.config.learner.global_batch_size,
                    seconds=seconds.get(step, 0.0),
                    guidance=scale,
                    **judge.compare(pixel_NCHW),
                    **nats,
                )
                found.append(row)
    return found


def _likelihood(job: Job, file: AnyModelFile | None, judge: Judge) -> dict[str, float]:
    """What there is of it; standard errors are those of sequences, a study's are those of seeds."""
    if file is None:
        return {}
    start = Workspace(job.start)
    model, _ = load_for_sampling(file, start, job.config.evaluate.device)
    is_teacher = job.method == TEACHER
    found = likelihood(job.config, start, model, judge, is_teacher=is_teacher)
    nats = {name: value for name, value in found.items() if name in NATS}
    return nats | added_rewards(found)


def added_rewards(found: Mapping[str, float]) -> dict[str, float]:
    """`reward` of samples, and of data `reward_of_data`, of the same parts, by their own numbers as
    `LikelihoodProbe` names them; nothing where samples have none."""
    rewards = {name: value for name, value in found.items() if name.startswith("reward_")}
    rewards = {name: value for name, value in rewards.items() if not name.endswith(ERROR)}
    of_samples = {n: value for n, value in rewards.items() if not n.endswith(OF_DATA)}
    if not of_samples:
        return {}
    of_data = [rewards[name + OF_DATA] for name in of_samples if name + OF_DATA in rewards]
    return {"reward": sum(of_samples.values()), "reward_of_data": sum(of_data)}


def _files(job: Job, workspace: Workspace) -> dict[int, AnyModelFile | None]:
    """What to measure, by step; None where nothing is in a file."""
    if job.method == SLOTS:
        return {0: None}
    if job.method in REFERENCES:
        name = "teacher" if job.method == TEACHER else "student_before"
        return {0: workspace.model(job.config, name)}
    settings = job.config.learner
    steps = [step for step in range(1, settings.steps) if step % settings.export_every == 0]
    return {
        step: workspace.made_student(job.config, workspace.milestone(job.weights, step))
        for step in (*steps, settings.steps)
    }


def _drawn(
    job: Job, file: AnyModelFile | None, judge: Judge, scale: float, *, all_ways: bool
) -> Iterator[tuple[str, Tensor]]:
    """(way, pixel_NCHW) one after the other, the usual way first."""
    config, start, settings = job.config, Workspace(job.start), job.config.evaluate
    if file is None:
        tokenizer = load_tokenizer(start.existing_tokenizer())
        token_NL = slots_alone(start, judge.label_N, derive_seed(job.seed, "slots"))
        yield "", decoded(tokenizer, token_NL, settings.batch_size, settings.size)
        return
    drawing = drawing_config(config, scale)
    models = load_for_sampling(file, start, settings.device)
    several = ways(drawing, start, settings.device)
    if job.method in REFERENCES or not all_ways:
        several = {"": several[""]}
    for way, passes in several.items():
        how = drawing.evaluate.sampling
        yield way, judge.draw(*models, how, passes=passes, role=_role(job))


def _role(job: Job) -> Role:
    return "teacher" if job.method == TEACHER else "student"


def require_metrics(config: RunConfig, workspace: Workspace) -> None:
    """All of them: a study's tables have a column for each.

    Raises:
        InputError: there are too few images for one of them.
    """
    for name, reason in Judge(config, workspace).left_out.items():
        raise InputError(f"evaluate: {name} {reason}, and a study compares it; raise the number")


def drawing_config(config: RunConfig, scale: float) -> RunConfig:
    """The run with evaluate.sampling at that scale, whoever draws by it."""
    sampling = at_scale(config.evaluate.sampling, scale)
    settings = config.evaluate.model_copy(update={"sampling": sampling})
    return config.model_copy(update={"evaluate": settings})


def at_scale(sampling: SamplingConfig, scale: float) -> SamplingConfig:
    """The same sampling at another guidance scale; 1 runs the conditional model alone."""
    given = sampling.guidance
    guidance = None
    if scale != 1:
        guidance = given.model_copy(update={"scale": scale}) if given else Guidance(scale=scale)
    return sampling.model_copy(update={"guidance": guidance})


def _show(path: Path, pixel_NCHW: Tensor, judge: Judge) -> None:
    """A few samples per class, one row each, for the page."""
    shown = [int(judge.class_K[row]) for row in spread(len(judge.class_K), SHOWN_CLASSES)]
    rows = by_class(pixel_NCHW, judge.label_N, shown, SHOWN_PER_CLASS)
    names = [judge.reference.classes[label] for label in shown]
    save_png(path, class_sheet(names, {"": rows}, most_pixels=SHOWN_PIXELS))
