"""Draw several slots in one pass, exactly: guesses are kept with probability min(1, p / q) from the
left, and the first one that is not is drawn anew from max(0, p - q) (docs/method.md, "Speculative
decoding").

p is what the model says of a slot behind the codes on its left, guided and filtered; q is what the
guess was drawn from. Every draw reads a uniform of its own, a function of the sequence's noise
there and of the pass, so a sequence does not depend on who shares the batch.

Shape letters: B sequences of a batch, R those still drawn, L slots, n slots of a pass, V
vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from rollout.inverse_cdf import draw
from rollout.window_stepper import WindowStepper

KEEP, MEND, GUESS = range(3)
"""What uniforms are for: whether a guess is kept, what comes in its place, what is guessed."""

Residual = Callable[[Tensor, Tensor], Tensor]
"""log p and log q (..., V) to the logarithm of what a rejected guess is replaced from."""


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Of the guesses that were checked behind right ones, how many were kept."""

    guesses: int = 0
    kept: int = 0
    passes: int = 0
    """Of the model that checks, over batches."""

    @property
    def share(self) -> float:
        return self.kept / max(self.guesses, 1)

    def __add__(self, other: "Acceptance") -> "Acceptance":
        passes = self.passes + other.passes
        return Acceptance(self.guesses + other.guesses, self.kept + other.kept, passes)


@dataclass(slots=True)
class Rows:
    """The sequences that are being drawn, and how far they are."""

    label_R: Tensor
    token_RX: Tensor
    """Codes by slot; those from at_R on are not decided."""
    at_R: Tensor
    noise_RL: Tensor
    number: int = 0
    """Of the pass, from 1."""
    length: int = field(init=False)

    def __post_init__(self) -> None:
        self.length = self.noise_RL.shape[1]

    def slots(self, first_R: Tensor, n: int) -> Tensor:
        return first_R[:, None] + torch.arange(n, device=first_R.device)

    def before(self, first_R: Tensor, n: int) -> Tensor:
        """token_Rn that lie one slot before those from first_R on; in front of slot 0 any."""
        return self.token_RX.gather(1, (self.slots(first_R, n) - 1).clamp_min(0))

    def write(self, first_R: Tensor, token_Rn: Tensor) -> None:
        self.token_RX.scatter_(1, self.slots(first_R, token_Rn.shape[1]), token_Rn)

    def uniform(self, purpose: int, first_R: Tensor, n: int) -> Tensor:
        """float64 in [0, 1): a function of the noise in a slot, the purpose and the pass."""
        slot_Rn = self.slots(first_R, n).clamp_max(self.length - 1)
        key_Rn = (self.noise_RL.gather(1, slot_Rn) * 2.0**53).long()
        mixed_Rn = _mixed(_mixed(key_Rn) + _signed(3 * self.number + purpose + 1))
        return ((mixed_Rn >> 11) & (2**53 - 1)).double() * 2.0**-53

    def chosen(self, chosen_R: Tensor) -> "Rows":
        parts = self.label_R, self.token_RX, self.at_R, self.noise_RL
        label_R, token_RX, at_R, noise_RL = (of[chosen_R] for of in parts)
        return Rows(label_R, token_RX, at_R, noise_RL, self.number)


class Proposals(Protocol):
    """Who guesses."""

    width: int
    """Slots that are read in a pass."""

    def begin(self, rows: Rows, prefix: int) -> None:
        """What is given reaches to slot `prefix` at most."""

    def propose(self, rows: Rows) -> Tensor:
        """Write guesses into rows.token_RX from at_R on, and say what they were drawn from:
        logprob_RnV, all -inf where nothing was guessed."""
        ...

    def learn(self, rows: Rows, checked: "Checked") -> None:
        """Hear what became of them; rows are where the next guesses begin."""

    def keep(self, chosen_R: Tensor) -> None:
        """Go on with these sequences alone."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What a pass found; codes behind the first rejected one are as guessed."""

    token_Rn: Tensor
    logprob_RnV: Tensor
    guess_logprob_RnV: Tensor
    is_kept_Rn: Tensor
    """Whether a guess passes by itself, whatever lies on its left."""
    decided_R: Tensor
    """How many slots from the left are decided now, from 1 to n."""

    @property
    def held_R(self) -> Tensor:
        """How many guesses from the left were kept."""
        return self.is_kept_Rn.long().cumprod(1).sum(1)


def at_places(value_RnV: Tensor, place_Rm: Tensor) -> Tensor:
    """value_RmV of these slots of a pass."""
    return value_RnV.gather(1, place_Rm[..., None].expand(-1, -1, value_RnV.shape[-1]))


def excess(logprob: Tensor, guess_logprob: Tensor) -> Tensor:
    """log max(0, p - q), not normalised; log p where rounding leaves nothing of that."""
    p = logprob.exp()
    more = (p - guess_logprob.exp()).clamp_min_(0)
    return torch.where(more.sum(-1, keepdim=True) > 0, more, p).log_()


def check(
    rows: Rows, logprob_RnV: Tensor, guess_logprob_RnV: Tensor, residual: Residual = excess
) -> Checked:
    """Keep guesses from the left, and draw the first rejected one anew."""
    n = logprob_RnV.shape[1]
    token_Rn = rows.token_RX.gather(1, rows.slots(rows.at_R, n))
    p_Rn, q_Rn = (
        of.gather(-1, token_Rn[..., None])[..., 0].double()
        for of in (logprob_RnV, guess_logprob_RnV)
    )
    is_kept_Rn = (rows.uniform(KEEP, rows.at_R, n) < (p_Rn - q_Rn).exp()) & (q_Rn > -torch.inf)
    held_R = is_kept_Rn.long().cumprod(1).sum(1)
    last_R1 = held_R.clamp_max(n - 1)[:, None]
    logweight_R1V = residual(*(at_places(of, last_R1) for of in (logprob_RnV, guess_logprob_RnV)))
    uniform_R1 = rows.uniform(MEND, rows.at_R + last_R1[:, 0], 1)
    mended_R1 = draw(logweight_R1V, uniform_R1)
    is_mended_Rn = torch.arange(n, device=held_R.device) == held_R[:, None]
    token_Rn = torch.where(is_mended_Rn, mended_R1, token_Rn)
    return Checked(token_Rn, logprob_RnV, guess_logprob_RnV, is_kept_Rn, last_R1[:, 0] + 1)


def speculate(
    stepper: WindowStepper,
    proposals: Proposals,
    rows: Rows,
    *,
    residual: Residual = excess,
) -> tuple[Tensor, Tensor, Acceptance]:
    """token_BL, and logprob_BL of what was drawn (0 on given slots), as when drawn slot by slot;
    what became of the guesses."""
    length, width = rows.length, proposals.width
    token_BL, acceptance = rows.token_RX.clone(), Acceptance()
    logprob_BX = torch.zeros(len(token_BL), length + width, device=token_BL.device)
    row_R = (rows.at_R < length).nonzero()[:, 0]
    if not len(row_R):
        return token_BL, logprob_BX[:, :length], acceptance
    rows = rows.chosen(row_R)
    rows.token_RX = F.pad(rows.token_RX, (0, width))
    prefix = int(rows.at_R.max())
    stepper.begin(rows.label_R, rows.before(torch.zeros_like(rows.at_R), prefix), width)
    proposals.begin(rows, prefix)
    while True:
        rows.number += 1
        guess_logprob_RnV = proposals.propose(rows)
        logprob_RnV = stepper.logprobs(rows.before(rows.at_R, width), rows.at_R)
        checked = check(rows, logprob_RnV, guess_logprob_RnV, residual)
        acceptance += _counted(rows, checked)
        rows.write(rows.at_R, checked.token_Rn)
        said_Rn = logprob_RnV.gather(-1, checked.token_Rn[..., None])[..., 0]
        logprob_BX[row_R[:, None], rows.slots(rows.at_R, width)] = said_Rn  # of all: till decided
        token_BL[row_R] = rows.token_RX[:, :length]
        rows.at_R = (rows.at_R + checked.decided_R).clamp_max(length)
        going_R = (rows.at_R < length).nonzero()[:, 0]
        if not len(going_R):
            return token_BL, logprob_BX[:, :length], acceptance
        proposals.learn(rows, checked)
        if 2 * len(going_R) <= len(row_R):  # a copy of the caches, for half the work
            stepper.keep(going_R)
            proposals.keep(going_R)
            rows, row_R = rows.chosen(going_R), row_R[going_R]


def _counted(rows: Rows, checked: Checked) -> Acceptance:
    """In one pass. A guess behind a rejected one says nothing, nor does one beyond the sequence."""
    n = checked.token_Rn.shape[1]
    was_guessed_Rn = (checked.guess_logprob_RnV > -torch.inf).any(-1)
    inside_Rn = rows.slots(rows.at_R, n) < rows.length
    place_n, held_R1 = torch.arange(n, device=rows.at_R.device), checked.held_R[:, None]
    is_checked_Rn, is_kept_Rn = was_guessed_Rn & (place_n <= held_R1), place_n < held_R1
    found = torch.stack([is_checked_Rn, is_checked_Rn & is_kept_Rn])
    return Acceptance(*(found & inside_Rn).sum((1, 2)).tolist(), passes=1)


def _mixed(value: Tensor) -> Tensor:
    """SplitMix64's finaliser, modulo 2^64 in two's complement."""
    value = value + _signed(0)
    value = (value ^ ((value >> 30) & (2**34 - 1))) * -0x40A7B892E31B1A47
    value = (value ^ ((value >> 27) & (2**37 - 1))) * -0x6B2FB644ECCEEE15
    return value ^ ((value >> 31) & (2**33 - 1))


def _signed(steps: int) -> int:
    """`steps` + 1 times the golden gamma, as a signed 64-bit number."""
    return ((steps + 1) * 0x9E3779B97F4A7C15 + 2**63) % 2**64 - 2**63
