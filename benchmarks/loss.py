"""The VarKD loss on logits: seconds and memory against plain PyTorch, TRL and the bare products.

    python -m benchmarks.loss --out loss.json
    python -m benchmarks.loss --device cuda --tokens 18432

From hidden vectors of teacher and student to gradients of the student's hidden vectors and head:
reverse KL over V / 4 clusters of codes, tokens weighted one by one. `floor` is the four products
with the heads alone, in chunks; `plain` has the logits of all tokens at once and autograd; `trl` is
TRL's generalised JSD (over codes, beta 0.5) where it is installed, and `ours jsd` the same here.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.measuring import interleaved, machine, parser, peak_mb, report
from common.models.packed_linear import Linear
from common.models.products import linear
from learner.categorical import Categorical
from learner.chunked import chunked_loss
from learner.divergence import Divergence
from learner.relaxation import ClusterMap, number_by_first_code, relaxed

PLAIN_MB = 12_000
"""Cases that hold all logits are left out where these would need more."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """One batch of N tokens: hidden vectors, heads, weights and clusters."""

    hidden_NC: Tensor
    teacher_ND: Tensor
    student: nn.Linear
    teacher: nn.Linear
    weight_N: Tensor
    clusters: ClusterMap

    def reset(self) -> None:
        self.hidden_NC.grad = self.student.weight.grad = None


def main() -> None:
    options = _parser().parse_args()
    on = machine(options)
    rows = []
    for tokens in options.tokens:
        inputs = inputs_of(tokens, options)
        cases = cases_of(inputs, options.chunk)
        if 6 * 4 * tokens * options.vocab / 2**20 > PLAIN_MB:
            cases = {name: case for name, case in cases.items() if not name.startswith("plain")}
        found = interleaved(cases, options.rounds)
        floor = found["floor"].cpu if options.device == "cpu" else found["floor"].wall
        for name, timing in found.items():
            seconds = timing.cpu if options.device == "cpu" else timing.wall
            rows.append(
                {
                    "tokens": tokens,
                    "case": name,
                    "seconds": seconds,
                    "of_floor": seconds / floor,
                    "peak_mb": peak_mb(cases[name], options.device),
                }
            )
    report("loss", options, on, rows)


def _parser():
    found = parser("seconds and memory of the loss")
    found.add_argument("--tokens", type=int, nargs="+", default=[512, 2048])
    found.add_argument("--vocab", type=int, default=16384)
    found.add_argument("--width", type=int, default=768, help="of the student (LlamaGen-B)")
    found.add_argument("--teacher-width", type=int, default=1024, help="(LlamaGen-L)")
    found.add_argument("--chunk", type=int, default=256)
    return found


def inputs_of(tokens: int, options) -> Inputs:
    """Random hidden vectors and heads with logits as wide as a trained model's."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(options.device)

    student, teacher = (
        Linear(width, options.vocab, bias=False).to(options.device)
        for width in (options.width, options.teacher_width)
    )
    for head in (student, teacher):
        head.weight.data = drawn(*head.weight.shape) * 2 / head.in_features**0.5
    cluster_V = torch.randint(0, options.vocab // 4, (options.vocab,), generator=generator)
    return Inputs(
        drawn(tokens, options.width).requires_grad_(),
        drawn(tokens, options.teacher_width),
        student,
        teacher.requires_grad_(False),
        drawn(tokens).abs(),
        number_by_first_code(cluster_V).to(torch.device(options.device)),
    )


def cases_of(inputs: Inputs, chunk: int) -> dict[str, Callable[[], object]]:
    """What is compared, by name."""
    rkl, jsd = Divergence(name="rkl"), Divergence(name="jsd")
    found: dict[str, Callable[[], object]] = {
        "floor": lambda: _products(inputs, chunk),
        "plain": lambda: _plain(inputs, rkl, inputs.clusters),
        "ours": lambda: _ours(inputs, rkl, inputs.clusters, chunk),
        "plain, codes": lambda: _plain(inputs, rkl, None),
        "ours, codes": lambda: _ours(inputs, rkl, None, chunk),
        "ours jsd, codes": lambda: _ours(inputs, jsd, None, chunk),
    }
    try:
        from trl.experimental.gkd import GKDTrainer  # pyright: ignore[reportMissingImports]
    except ImportError:
        return found
    return found | {"trl jsd, codes": lambda: _trl(inputs, GKDTrainer.generalized_jsd_loss)}


def _products(inputs: Inputs, chunk: int) -> None:
    """The four products with the heads, and nothing else."""
    weight_VC, hidden_NC = inputs.student.weight.detach(), inputs.hidden_NC.detach()
    weight_grad = torch.zeros_like(weight_VC)
    for part_nC, teacher_nD in zip(
        hidden_NC.split(chunk), inputs.teacher_ND.split(chunk), strict=True
    ):
        logit_nV = linear(part_nC, weight_VC)
        inputs.teacher(teacher_nD)
        linear(logit_nV, weight_VC.T)
        weight_grad.addmm_(logit_nV.T, part_nC)


def _ours(inputs: Inputs, divergence: Divergence, clusters: ClusterMap | None, chunk: int) -> None:
    def loss(logit_nV: Tensor, tokens: slice) -> Tensor:
        with torch.no_grad():
            teacher = Categorical(inputs.teacher(inputs.teacher_ND[tokens]))
        loss_n = relaxed(divergence, Categorical(logit_nV), teacher, clusters)
        return (inputs.weight_N[tokens] * loss_n).sum()

    inputs.reset()
    chunked_loss(inputs.hidden_NC, inputs.student, loss, chunk).backward()


def _plain(inputs: Inputs, divergence: Divergence, clusters: ClusterMap | None) -> None:
    """As one would write it: all logits, sums by `index_add`, autograd."""
    inputs.reset()
    pair = [
        head(hidden).log_softmax(-1)
        for head, hidden in (
            (inputs.student, inputs.hidden_NC),
            (inputs.teacher, inputs.teacher_ND),
        )
    ]
    if clusters is not None:
        empty_NC = torch.zeros(len(pair[0]), clusters.size, device=pair[0].device)
        pair = [empty_NC.index_add(1, clusters.cluster_V, v.exp()).log() for v in pair]
    (inputs.weight_N * divergence.value(*pair)).sum().backward()


def _trl(inputs: Inputs, loss) -> None:
    inputs.reset()
    student, teacher = inputs.student(inputs.hidden_NC), inputs.teacher(inputs.teacher_ND)
    loss(student[None], teacher[None], beta=0.5).backward()


if __name__ == "__main__":
    main()
