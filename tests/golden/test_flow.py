"""The flow from noise to codes beside the golden map (tests/golden/dd1_flow/README.md).

$VARKD_GOLDEN names another set of folders of the same form. A tensor that nobody asked for fails.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.flow.field import at_data_time, at_noise_time, denoised, score, velocity
from common.flow.laws import FlowCodes
from common.flow.solver import Carried, SolverConfig, carry
from common.flow.solvers import dpmpp_3m, euler, heun, rk4_rho
from learner.score_losses.denoisers import of_teacher, velocity_of

ASKED = {
    "points_rel": 1e-9,
    "exact_solver_token_mismatch_all": 1e-3,
    "exact_solver_token_mismatch_non_ambiguous": 5e-4,
    "dpmpp3m10_float64_x_abs": 1e-6,
    "dpmpp3m10_token_mismatch_float64": 5e-4,
}
"""The tolerances of the acceptance tests F1, F3 and F4, which no folder may loosen."""
ROOT = Path(os.environ.get("VARKD_GOLDEN") or Path(__file__).parent)
FOLDERS = sorted(path.parent for path in ROOT.glob("*/case1_single_p.safetensors"))
CASES = ("case1", "case2")


class Case:
    """One file: the law of every sample, and tensors that remember who read them."""

    def __init__(self, folder, name, dtype=torch.float64):
        facts = json.loads((folder / "config.json").read_text())
        self.facts, self.bounds = facts[name], facts["tolerance"]
        assert all(self.bounds[key] <= most for key, most in ASKED.items())
        self.tensors = load_file(next(folder.glob(f"{name}_*.safetensors")))
        self.seen: set[str] = set()
        p = self["p"].double()
        logprob = (p / p.sum(-1, keepdim=True)).log().to(dtype)
        self.codes = FlowCodes(self["codebook"].to(dtype))
        self.noise = self["noise"]
        rows = self["row"].long() if p.ndim == 2 else torch.zeros(len(self.noise)).long()
        self.logprob_NV = logprob.reshape(-1, p.shape[-1])[rows]
        self.law = self.codes.law(self.logprob_NV)

    def __getitem__(self, name):
        self.seen.add(name)
        return self.tensors[name]

    def wrong(self, token_N, name="token"):
        """Share of tokens that differ from the golden ones."""
        return float((token_N != self[name]).double().mean())

    def require_possible(self, token_N):
        assert (self.logprob_NV.gather(1, token_N[:, None]) > -torch.inf).all()


@pytest.fixture(
    params=[(f, n) for f in FOLDERS for n in CASES], ids=lambda p: f"{p[0].name}-{p[1]}"
)
def case(request):
    return Case(*request.param)


def test_the_golden_flow_is_there():
    if "VARKD_GOLDEN" not in os.environ:
        assert [folder.name for folder in FOLDERS] == ["dd1_flow"]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_tensor_agrees(folder, name):
    case = Case(folder, name)
    require_the_exact_tokens(case)
    require_ten_evaluations(case)
    of_points = {tensor for tensor in case.tensors if tensor.startswith("pt_")}
    assert set(case.tensors) - of_points == case.seen


def require_the_exact_tokens(case):
    carried = carry(rk4_rho.Config(), case.law, case.noise)
    clear = ~case["ambiguous"].bool()
    assert case.codes.least_distance == pytest.approx(case.facts["min_code_dist"], rel=1e-9)
    assert case.wrong(carried.token_N) <= case.bounds["exact_solver_token_mismatch_all"]
    clearly_wrong = float(((carried.token_N != case["token"]) & clear).double().mean())
    assert clearly_wrong <= case.bounds["exact_solver_token_mismatch_non_ambiguous"]
    case.require_possible(carried.token_N)
    if "top_k" in case.tensors:
        alone = (case["top_k"] == 1)[case["row"].long()]
        only = case.logprob_NV[alone].argmax(-1)
        assert alone.any()
        assert torch.equal(carried.token_N[alone], only)
    if "x_final" in case.tensors:
        # The golden end is at rho_max as well: nearly all of them lie upon their code there.
        apart_N = (carried.x_ND - case["x_final"]).abs().amax(-1)
        assert float((apart_N < 0.02).double().mean()) > 0.99


def require_ten_evaluations(case):
    carried = carry(dpmpp_3m.Config(), case.law, case.noise)
    apart = (carried.x_ND - case["dpmpp3m10_x"]).abs().max()
    assert apart <= case.bounds["dpmpp3m10_float64_x_abs"]
    wrong = case.wrong(carried.token_N, "dpmpp3m10_token")
    assert wrong <= case.bounds["dpmpp3m10_token_mismatch_float64"]
    case.require_possible(carried.token_N)
    assert case.wrong(carried.token_N) == pytest.approx(case.facts["mismatch_dpmpp3m10"], abs=5e-4)


@pytest.mark.parametrize("name", CASES)
def test_float32_reaches_the_same_tokens(name):
    case = Case(FOLDERS[0], name, torch.float32)
    carried = carry(dpmpp_3m.Config(), case.law, case.noise)
    apart = (carried.x_ND - case["dpmpp3m10_x"]).abs().median()
    assert apart <= case.bounds["dpmpp3m10_float32_x_abs_median"]
    wrong = case.wrong(carried.token_N, "dpmpp3m10_token")
    assert wrong <= case.bounds["dpmpp3m10_token_mismatch_float32"]


class Unlowered(SolverConfig):
    """DPM-Solver++ whose last steps are of third order, too."""

    def solve(self, law, noise_ND):
        time, found, x_ND = [dpmpp_3m.LAST * k / 10 for k in range(11)], [], noise_ND
        for step in range(10):
            found = [*found[-2:], denoised(law, x_ND, at_data_time(time[step]))]
            x_ND = dpmpp_3m._advanced(x_ND, found, time[step + 1 - len(found) : step + 2])
        return Carried(x_ND, law.nearest(x_ND))


class Backwards(SolverConfig):
    """The velocity of the other paper in this one's time."""

    def solve(self, law, noise_ND):
        x_ND = noise_ND
        for step in range(20):
            x_ND = x_ND - velocity(law, x_ND, at_data_time(step / 20)) / 20
        return Carried(x_ND, law.nearest(x_ND))


@pytest.mark.parametrize(
    ("solver", "least", "most"),
    [
        (dpmpp_3m.Config(), 0.02, 0.06),
        (euler.Config(steps=10), 0.16, 0.18),
        (Unlowered(), 0.2, 1.0),
        (Backwards(), 0.2, 1.0),
    ],
    ids=["DPM-Solver++", "Euler", "no lower order at the end", "the wrong sign"],
)
def test_wrong_solvers_are_told_from_the_papers(solver, least, most):
    """Beside the exact tokens of the first case."""
    case = Case(FOLDERS[0], "case1")
    assert least <= case.wrong(carry(solver, case.law, case.noise).token_N) <= most


@pytest.mark.parametrize(
    ("solver", "name"),
    [
        (euler.Config(steps=10), "mismatch_euler10"),
        (euler.Config(steps=100), "mismatch_euler100"),
        (heun.Config(steps=10), "mismatch_heun10"),
    ],
)
def test_lesser_solvers_are_as_wrong_as_they_were_found(solver, name):
    case = Case(FOLDERS[0], "case1")
    carried = carry(solver, case.law, case.noise)
    assert case.wrong(carried.token_N) == pytest.approx(case.facts[name], abs=5e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_points_of_the_field(dtype):
    case = Case(FOLDERS[0], "case1", dtype)
    law, x_ND = case.law.rows(slice(256)), case["pt_x"].to(dtype)
    time = case["pt_t"].to(dtype)[:, None]
    share = case.bounds["points_rel" if dtype == torch.float64 else "points_float32_rel"]
    for name, function in {
        "pt_posterior_mean": denoised,
        "pt_velocity": velocity,
        "pt_score": score,
    }.items():
        found, wanted = function(law, x_ND, at_data_time(time)).double(), case[name]
        bound = share * wanted.abs().amax(-1, keepdim=True)
        assert ((found - wanted).abs() <= bound).all(), name
    if dtype == torch.float64:  # the other paper's axis: the same score, the opposite velocity
        at = at_noise_time(1 - time)
        assert ((score(law, x_ND, at) - case["pt_score"]).abs() <= bound).all()
        x_1ND, time_1N = x_ND[None], (1 - time)[None, :, 0]
        theirs_ND = velocity_of(of_teacher(law)(x_1ND, time_1N), x_1ND, time_1N)[0]
        bound = share * case["pt_velocity"].abs().amax(-1, keepdim=True)
        assert ((theirs_ND + case["pt_velocity"]).abs() <= bound).all()
