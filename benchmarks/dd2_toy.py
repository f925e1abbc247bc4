"""Distilled Decoding 2 where everything is known: three dependent tokens of eight codes.

    python -m benchmarks.dd2_toy
    python -m benchmarks.dd2_toy --rule dmd --generator-steps 500

The teacher is a table, so that the joint distribution of its sequences is exact, and so is the
best that slots alone could do. Plain loops over the networks and losses of the pipeline; no roles.
Total variation between 20,000 sequences and the table's joint distribution, worst of both classes.

Shape letters: B sequences, L = 3 slots, N all 512 sequences, D code width, V codes.
"""

import copy
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks.measuring import machine, parser, report
from benchmarks.tabular import CLASSES, D, L, Tabular
from common.models.backbones import llamagen
from common.models.few_steps import nearest
from common.models.generators import dd2_llamagen
from common.models.velocity_model import VelocityModel
from learner.score_losses.denoisers import of_network, of_teacher
from learner.score_losses.losses import (
    PositionWeights,
    ScoreDistance,
    by_vectors_alone,
    fake_score_loss,
    ground_truth_score_loss,
)
from learner.score_losses.points import Points, TimeLaw, draw_points


@dataclass(frozen=True)
class Settings:
    """Sizes and rates; one seed for all."""

    width: int = 96
    depth: int = 3
    head_width: int = 64
    head_depth: int = 2
    batch: int = 384
    draws: int = 2
    times: TimeLaw = field(default_factory=TimeLaw)
    stage1_rate: float = 1e-3
    guidance_rate: float = 5e-4
    generator_rate: float = 2e-4
    guidance_steps: int = 5
    """K, between two steps of the generator."""
    ema: float = 0.995
    distance: ScoreDistance = field(default_factory=ScoreDistance)
    positions: PositionWeights = field(default_factory=PositionWeights)
    seed: int = 0


class Loops:
    """Stage 1 and stage 2, one step at a time."""

    def __init__(self, teacher: Tabular, settings: Settings) -> None:
        self.teacher, self.settings = teacher, settings
        self.random = torch.Generator().manual_seed(settings.seed)
        self._weight_L = settings.positions.weights(teacher.spec)
        self._steps = 0

    def model(self) -> VelocityModel:
        """Fresh weights; a table has none to begin from."""
        own = self.settings
        sizes = llamagen.Config(
            width=own.width, depth=own.depth, heads=4, multiple_of=16, dropout=0.0
        )
        config = dd2_llamagen.Config(
            backbone=sizes, head_width=own.head_width, head_depth=own.head_depth
        )
        with torch.random.fork_rng():
            torch.manual_seed(own.seed)
            built = config.build(self.teacher.spec, self.teacher.codes.code_VD)
        assert isinstance(built, VelocityModel)
        return built

    def stage1(self, model: VelocityModel, steps: int, *, diffusion: bool = False) -> None:
        """GTS on sequences of the teacher; with `diffusion` the ordinary loss instead."""
        optimizer, code_VD = _adam(model, self.settings.stage1_rate), self.teacher.codes.code_VD
        for step in range(steps):
            label_B, points = self._drawn()
            token_BL = self.teacher.sample(label_B, self.random)
            vector_BLD = code_VD[token_BL]
            feature_BLC = model.features(label_B, vector_BLD)
            given = model, feature_BLC, vector_BLD
            if diffusion:
                loss_BL = fake_score_loss(*given, points)
            else:
                teacher = self._teacher(label_B, token_BL)
                loss_BL = ground_truth_score_loss(*given, teacher, points)
            for group in optimizer.param_groups:  # falls to a tenth
                group["lr"] = self.settings.stage1_rate * (1 - 0.9 * step / steps)
            _step(optimizer, model, loss_BL.mean())

    def stage2(
        self, generator: VelocityModel, guidance: VelocityModel, steps: int
    ) -> Iterator[VelocityModel]:
        """CSD: yields the averaged generator after each of its steps; K of the guidance network
        come before."""
        own, average = self.settings, copy.deepcopy(generator).requires_grad_(False)
        of_generator = _adam(generator, own.generator_rate)
        of_guidance = _adam(guidance, own.guidance_rate)
        for step in range(steps):
            for _ in range(own.guidance_steps):
                label_B, points = self._drawn()
                with torch.no_grad():
                    vector_BLD = generator.vectors(label_B, self._noise(label_B))
                feature_BLC = guidance.features(label_B, vector_BLD)
                loss_BL = fake_score_loss(guidance, feature_BLC, vector_BLD, points)
                _step(of_guidance, guidance, loss_BL.mean())
            label_B, points = self._drawn()
            vector_BLD = generator.vectors(label_B, self._noise(label_B))
            with torch.no_grad():
                feature_BLC = guidance.features(label_B, vector_BLD)
                token_BL = nearest(vector_BLD, self.teacher.codes.code_VD)
            scores = self._teacher(label_B, token_BL), of_network(guidance, feature_BLC)

            def loss(leaf_BLD: Tensor, scores=scores, points=points) -> Tensor:
                loss_BL = own.distance.loss(leaf_BLD, *scores, points)
                return (self._weight_L * loss_BL).mean(1)

            _step(of_generator, generator, by_vectors_alone(vector_BLD, loss).mean())
            decay = min(own.ema, (step + 1) / (step + 10))
            for mean, value in zip(average.parameters(), generator.parameters(), strict=True):
                mean.lerp_(value.detach(), 1 - decay)
            yield average

    @torch.no_grad()
    def one_step(self, generator: VelocityModel) -> float:
        """Total variation of what a generator makes."""

        def make(label_B: Tensor) -> Tensor:
            return generator(label_B, self._noise(label_B)).token_BL

        return max(self.teacher.distances(make))

    @torch.no_grad()
    def rms_to_codes(self, generator: VelocityModel) -> float:
        """Root of the mean square between what a generator means and the code nearest to it."""
        label_B = torch.arange(10_000) % CLASSES
        made = generator(label_B, self._noise(label_B))
        away = made.vector_BLD - self.teacher.codes.code_VD[made.token_BL]
        return float(away.square().sum(-1).mean().sqrt())

    @torch.no_grad()
    def diffused(self, model: VelocityModel, steps: int = 20, count: int = 20_000) -> float:
        """Total variation of the model as an autoregressive diffusion model: every slot by Euler
        steps from its noise, then its nearest code."""

        def make(label_B: Tensor) -> Tensor:
            code_VD = self.teacher.codes.code_VD
            vector_BLD, noise_BLD = torch.zeros(len(label_B), L, D), self._noise(label_B)
            for slot in range(L):
                feature_B1C = model.features(label_B, vector_BLD)[:, slot : slot + 1]
                x_B1D = noise_BLD[:, slot : slot + 1]
                for k in range(steps):
                    time_1 = torch.full((1,), 1 - k / steps)
                    x_B1D = x_B1D - model.velocity(x_B1D, time_1, feature_B1C) / steps
                vector_BLD[:, slot : slot + 1] = code_VD[nearest(x_B1D, code_VD)]
            return nearest(vector_BLD, code_VD)

        return max(self.teacher.distances(make, count))

    def _teacher(self, label_B: Tensor, token_BL: Tensor):
        """Its denoiser after these codes."""
        logprob_BLV = self.teacher.logprob(label_B, token_BL)
        return of_teacher(self.teacher.codes.law(logprob_BLV.flatten(0, 1)))

    def _noise(self, label_B: Tensor) -> Tensor:
        return torch.randn(len(label_B), L, D, generator=self.random)

    def _drawn(self) -> tuple[Tensor, Points]:
        """Classes in turn, and where to compare scores."""
        own = self.settings
        self._steps += 1
        (points,) = (
            draw_points([self._steps], own.batch * L, D, draws=own.draws, times=own.times),
        )
        shape = own.draws, own.batch, L
        return torch.arange(own.batch) % CLASSES, Points(
            points.time_MBL.view(shape), points.noise_MBLD.view(*shape, D)
        )


def _adam(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), rate, betas=(0.9, 0.95))


def _step(optimizer: torch.optim.Optimizer, model: nn.Module, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


MARKS = (100, 200, 300, 500, 700, 1000, 1500)
"""Steps of the generator after which it is measured."""


def measured(options: Namespace, say: Callable[[str, float], None]) -> None:
    """Both stages."""
    settings = Settings(
        distance=ScoreDistance(rule=options.rule),
        positions=PositionWeights(first=options.first),
        seed=options.seed,
    )
    teacher = Tabular()
    loops = Loops(teacher, settings)
    say("independent slots", min(teacher.independent()))
    own = partial(teacher.sample, random=loops.random)
    say("the table's own samples", max(teacher.distances(own)))
    start = loops.model()
    if options.stage1_steps:
        loops.stage1(start, options.stage1_steps, diffusion=options.diffusion)
        say("stage 1: 20 Euler steps a slot", loops.diffused(start))
    say("stage 1: one step", loops.one_step(start))
    say("stage 1: rms distance to codes", loops.rms_to_codes(start))
    generator, guidance = start, copy.deepcopy(start)
    for step, average in enumerate(loops.stage2(generator, guidance, options.generator_steps), 1):
        if step in MARKS or step == options.generator_steps:
            say(f"stage 2, {step} steps: averaged", loops.one_step(average))
            say(f"stage 2, {step} steps: as it is", loops.one_step(generator))
            say(f"stage 2, {step} steps: rms distance", loops.rms_to_codes(average))


def main() -> None:
    found = parser(str(__doc__).partition("\n")[0])
    found.add_argument("--stage1-steps", type=int, default=2000)
    found.add_argument("--generator-steps", type=int, default=1500)
    found.add_argument("--rule", default="sid", choices=["sid", "dmd"])
    found.add_argument("--first", type=float, default=1.0, help="weight of the first slot")
    found.add_argument("--diffusion", action="store_true", help="stage 1 by the diffusion loss")
    found.add_argument("--seed", type=int, default=0)
    options = found.parse_args()
    on, rows = machine(options), []
    console, started = Console(stderr=True), time.process_time()

    def say(what: str, value: float) -> None:
        spent = time.process_time() - started
        rows.append({"what": what, "total variation": value, "CPU s": spent})
        console.print(f"{spent:6.0f} s  {what:40} {value:.4f}")

    measured(options, say)
    report("dd2_toy", options, on, rows)


if __name__ == "__main__":
    main()
