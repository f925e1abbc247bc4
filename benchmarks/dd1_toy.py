"""Distilled Decoding 1 where everything is known: three dependent tokens of eight codes.

    python -m benchmarks.dd1_toy
    python -m benchmarks.dd1_toy --steps 2000 --seed 1

The teacher is a table, so that the joint distribution of its sequences is exact, and so is the
best that slots alone could do. The student learns in the pipeline's learner, by its objective; the
pairs of noise and codes are made batch by batch, never twice. Total variation between sequences
and the table's joint distribution, by class, and the share of held-out codes that one step hits.

Shape letters: B sequences, L = 3 slots, D code width.
"""

import time
from argparse import Namespace
from collections.abc import Callable

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.measuring import machine, parser, report
from benchmarks.tabular import CLASSES, D, L, Tabular
from common.exchange.trajectory import TrajectoryBatch
from common.flow.solver import carry
from common.flow.solvers import rk4_rho
from common.models.backbones import llamagen
from common.models.distilled_decoding import DistilledDecoder
from common.models.generator import gaussian
from common.models.generators import dd1_llamagen
from common.models.plan import raster_plan
from learner.config import LearnerConfig
from learner.learner import Learner
from learner.objectives import dd1
from learner.resources import Resources

POSITIONS = 1, 3
SAMPLES = 100_000
HELD_OUT = 10**9
"""Seeds from here on are never trained on."""
MARKS = 200, 500, 1000, 1500, 2000


class Toy:
    """A table, its pairs, and a student in its learner."""

    def __init__(self, options: Namespace) -> None:
        self.teacher, self._rows = Tabular(), options.rows
        sizes = llamagen.Config(width=96, depth=3, heads=4, multiple_of=16, dropout=0.0)
        config = dd1_llamagen.Config(backbone=sizes, positions=POSITIONS, split=L)
        with torch.random.fork_rng():
            torch.manual_seed(options.seed)
            built = config.build(self.teacher.spec, self.teacher.codes.code_VD)
        assert isinstance(built, DistilledDecoder)
        self.student = built
        rates = {"learning_rate": options.rate, "warmup": 20, "schedule": "cosine", "ema": 0.995}
        self.learner = Learner(
            LearnerConfig.model_validate(
                {
                    "steps": options.steps,
                    "global_batch_size": options.rows,
                    "micro_batch": options.rows,
                    "optimizer": rates,
                }
            ),
            dd1.Config(distance="vectors").build(
                Resources(codebook=lambda: self.teacher.codes.code_VD, positions=lambda: POSITIONS)
            ),
            built,
            seed=options.seed,
            contexts=("teacher",),
        )

    def tokens(self, label_B: Tensor, noise_BLD: Tensor) -> Tensor:
        """What the flow carries noise to, slot after slot."""
        token_BL = torch.zeros(len(label_B), L, dtype=torch.long)
        for slot in range(L):
            law = self.teacher.codes.law(self.teacher.logprob(label_B, token_BL)[:, slot])
            token_BL[:, slot] = carry(rk4_rho.Config(steps=10), law, noise_BLD[:, slot]).token_N
        return token_BL

    def step(self) -> None:
        first = self.learner.steps_done * self._rows
        id_B = torch.arange(first, first + self._rows)
        label_B = id_B % CLASSES
        self.learner.step(
            TrajectoryBatch(
                spec=self.teacher.spec,
                id_B=id_B,
                version_B=torch.zeros_like(id_B),
                label_B=label_B,
                context=("teacher",) * self._rows,
                policy=("teacher",) * self._rows,
                law=("exact",) * self._rows,
                prefix_B=torch.zeros_like(id_B),
                plan=raster_plan(self._rows, L),
                token_BL=self.tokens(label_B, gaussian(id_B.tolist(), L, D)),
                logprob_BL=torch.zeros(self._rows, L),
                seed_B=id_B,
            )
        )

    @torch.no_grad()
    def distances(self, positions: tuple[int, ...]) -> list[float]:
        """By class, of the averaged student."""

        def make(label_B: Tensor) -> Tensor:
            noise_BLD = gaussian(range(HELD_OUT, HELD_OUT + len(label_B)), L, D)
            return self.student.steps(label_B, noise_BLD, positions).token_BL

        return self._averaged(lambda: self.teacher.distances(make, SAMPLES))

    @torch.no_grad()
    def hits(self, count: int = 20_000) -> list[float]:
        """By slot: the share of codes that are the flow's."""
        label_B = torch.arange(count) % CLASSES
        noise_BLD = gaussian(range(HELD_OUT, HELD_OUT + count), L, D)
        right_BL = self._averaged(
            lambda: self.student(label_B, noise_BLD).token_BL == self.tokens(label_B, noise_BLD)
        )
        return right_BL.double().mean(0).tolist()

    def _averaged(self, measure: Callable):
        """`measure` while the student is its average."""
        kept = {name: value.clone() for name, value in self.student.state_dict().items()}
        self.student.load_state_dict(dict(self.learner.states())["student_ema"])
        found = measure()
        self.student.load_state_dict(kept)
        return found


def main() -> None:
    found = parser(str(__doc__).partition("\n")[0])
    found.add_argument("--steps", type=int, default=1500)
    found.add_argument("--rows", type=int, default=1024, help="pairs of a step")
    found.add_argument("--rate", type=float, default=3e-3, help="learning rate")
    found.add_argument("--seed", type=int, default=0)
    options = found.parse_args()
    on, rows = machine(options), []
    console, started = Console(stderr=True), time.process_time()

    def say(what: str, values: list[float]) -> None:
        spent = time.process_time() - started
        rows.extend(
            {"what": what, "at": at, "value": value, "CPU s": spent}
            for at, value in enumerate(values)
        )
        console.print(f"{spent:6.0f} s  {what:40} {' '.join(f'{v:.4f}' for v in values)}")

    toy = Toy(options)
    say("slots alone", toy.teacher.independent())
    while toy.learner.steps_done < options.steps:
        toy.step()
        done = toy.learner.steps_done
        if done in MARKS or done == options.steps:
            say(f"{done} steps: one step", toy.distances((1,)))
            say(f"{done} steps: two steps", toy.distances(POSITIONS))
            say(f"{done} steps: codes hit, by slot", toy.hits())
    report("dd1_toy", options, on, rows)


if __name__ == "__main__":
    main()
