"""Statistics of a study against scipy, literal loops and hand computations."""

import itertools
import math
import re

import numpy as np
import pytest

from common.errors import InputError
from deploy.study.analysis.guidance import choose_guidance
from deploy.study.analysis.intervals import compare, estimate, holm, sign_flip, t_test
from deploy.study.analysis.results import CellFacts, Measurement, read_csv, write_csv
from deploy.study.analysis.statistics import analyse
from deploy.study.analysis.verdicts import conclusions, notes, number, span, verdict
from deploy.study.measuring import added_rewards

DIFFERENCES = [-1.2, -0.7, -1.9, 0.3, -1.1]


def row(method, seed, fid, *, guidance=2.0, step=100, seconds=None):
    seconds = step / 10 if seconds is None else seconds
    return Measurement(method, seed, step, step * 8, seconds, guidance, fid, 0.1, 0.5, 0.5, 3.0)


def study(fids, sweep=(2.0,), **options):
    """One final row per method, seed and guidance; `fids[method][seed]` is one value or a list."""
    rows = []
    for method, by_seed in fids.items():
        for seed, values in by_seed.items():
            values = values if isinstance(values, list | tuple) else [values] * len(sweep)
            step = 0 if method in ("teacher", "base") else 100
            rows += [
                row(method, seed, fid, guidance=scale, step=step)
                for scale, fid in zip(sweep, values, strict=True)
            ]
    methods = [name for name in fids if name not in ("teacher", "base")]
    return analyse(rows, methods=methods, **{"baselines": methods[:1], "guidance": 2.0} | options)


def by_seed(values):
    return dict(enumerate(values))


def test_interval_and_t_test_agree_with_scipy():
    from scipy import stats  # a second of imports

    found = estimate(DIFFERENCES)
    expected = stats.ttest_1samp(DIFFERENCES, 0)
    bounds = expected.confidence_interval(0.95)
    assert found.mean == pytest.approx(np.mean(DIFFERENCES))
    assert (found.low, found.high) == pytest.approx((bounds.low, bounds.high))
    assert t_test(DIFFERENCES) == pytest.approx(expected.pvalue)


@pytest.mark.parametrize("values", [[], [3.0], [0.1, 0.1, 0.1]])
def test_no_interval_without_spread(values):
    found = estimate(values)
    assert (found.low, found.high, found.count) == (None, None, len(values))
    assert t_test(values) is None


def test_sign_flip_is_exact():
    flips = itertools.product((-1, 1), repeat=len(DIFFERENCES))
    means = [abs(np.dot(signs, DIFFERENCES)) for signs in flips]
    expected = np.mean([mean >= abs(sum(DIFFERENCES)) - 1e-12 for mean in means])
    assert sign_flip(DIFFERENCES) == expected == 4 / 32
    assert sign_flip([-0.1, -0.2, -0.3]) == 2 / 8  # all of one sign: as small as it gets
    assert sign_flip([0.0, 0.0]) == 1
    assert sign_flip([1.0]) is None


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]


def test_families_pair_by_seed_and_adjust_together():
    method = {seed: value + seed for seed, value in enumerate(DIFFERENCES)}
    zeros = {seed: float(seed) for seed in range(7)}
    noise = {0: 0.3, 1: 1.2, 2: 1.6, 3: 3.9, 4: 3.8}
    first, second, alone = compare([(method, zeros), (noise, zeros), ({9: 1.0}, zeros)])
    assert first.seeds == (0, 1, 2, 3, 4)
    assert alone.seeds == ()
    assert alone.p_t is None
    from scipy import stats

    level = stats.ttest_1samp(DIFFERENCES, 0).confidence_interval(1 - 0.05 / 2)
    assert (first.joint.low, first.joint.high) == pytest.approx((level.low, level.high))
    assert [first.p_holm, second.p_holm] == pytest.approx(holm([first.p_t, second.p_t]))
    assert first.smallest_p_flip == 2 / 32
    assert first.joint.half_width == pytest.approx((level.high - level.low) / 2)


def test_joint_interval_is_never_looser_than_holm():
    draw = np.random.default_rng(0)
    for _ in range(200):
        pairs = [(by_seed(draw.normal(1, 1, 4)), by_seed(np.zeros(4))) for _ in range(5)]
        assert all(p.p_holm < 0.05 for p in compare(pairs) if p.joint.sign)


def test_best_guidance_leaves_the_seed_out():
    draw = np.random.default_rng(1)
    sweep = [1.0, 2.0, 3.0, 4.0]
    fid = {scale: by_seed(draw.normal(10, 1, 5)) for scale in sweep}
    best = choose_guidance(fid, sweep)
    assert best is not None
    for seed in range(5):
        means = [np.mean([fid[g][s] for s in range(5) if s != seed]) for g in sweep]
        chosen = sweep[int(np.argmin(means))]
        assert best.guidance[seed] == chosen
        assert best.fid[seed] == fid[chosen][seed]
    assert not best.optimistic
    own = [min(fid[g][s] for g in sweep) for s in range(5)]
    assert sum(best.fid.values()) > sum(own)  # the seed's own minimum would flatter


def test_best_guidance_of_one_seed_is_optimistic_and_ends_are_told():
    found = study({"a": {0: (9.0, 8.0, 7.0)}}, sweep=(1.0, 2.0, 3.0))
    best = found.summaries["a"].best
    assert best.optimistic
    assert best.fid == {0: 7.0}
    assert best.at_edge == (3.0,)
    assert any("optimistic" in note for note in notes(found))
    assert any("end of the sweep (3)" in note for note in notes(found))
    assert any("single seed" in said for said in conclusions(found))


def test_gain_at_fixed_guidance_alone_is_called_a_shift():
    noise = [0.1, -0.1, 0.05, 0.0, -0.05]
    sft = {s: (9.0 + e, 7.0, 5.0) for s, e in enumerate(noise)}
    shifted = {s: (7.0, 5.0 + e, 5.0 + 2 * e) for s, e in enumerate(noise)}
    lower = {s: (8.0, 4.0 + e, 3.0 - e) for s, e in enumerate(noise)}
    found = study({"sft": sft, "shifted": shifted, "lower": lower}, sweep=(1.0, 2.0, 3.0))
    said = {c.method: verdict(c, 2.0) for c in found.against["sft"]}
    assert said["shifted"].startswith("lower FID than sft at guidance 2, but not distinguishable")
    assert "shift along the guidance axis" in said["shifted"]
    assert said["lower"].startswith("lower FID than sft at guidance 2 and at the best guidance")


def test_pairs_are_on_common_seeds_and_gaps_are_told():
    fids = {
        "a": by_seed([5.0, 5.2, 5.1]),
        "b": {0: 4.0, 1: math.nan, 2: 4.2},
        "c": {0: 1.0, 1: 2.0},
    }
    found = study(fids)
    b, c = found.against["a"]
    assert (b.fixed.seeds, b.missing) == ((0, 2), (1,))
    assert (c.fixed.seeds, c.missing) == ((0, 1), (2,))
    assert "Without seed 2" in verdict(c, 2.0)
    assert found.gaps == (
        "b, seed 1: FID is not a number at guidance 2.",
        "c, seed 2: no final evaluation at the fixed guidance.",
    )
    assert found.summaries["b"].fixed["fid"].mean == pytest.approx(4.1)


def test_families_of_baselines_ablation_and_reference():
    draw = np.random.default_rng(2)
    names = ["base", "teacher", "a", "b", "c"]
    fids = {name: by_seed(draw.normal(9, 1, 3)) for name in names}
    found = study(fids, baselines=["a", "b", "base"], ablation=["c", "a", "b"])
    assert [c.method for c in found.against["a"]] == ["b", "c"]
    assert [c.method for c in found.against["b"]] == ["c"]  # b against a is in a's table
    assert [c.method for c in found.against["base"]] == ["c"]
    assert [(c.method, c.baseline) for c in found.ablation] == [("a", "c"), ("b", "a")]
    alone = [fids["teacher"][s] - fids["base"][s] for s in range(3)]
    assert found.reference.fixed.joint == estimate(alone)


def test_curves_start_at_base_and_align_ends():
    rows = [row("base", seed, 30.0 + seed, step=0) for seed in (0, 1)]
    rows += [row("a", 0, 20.0, step=50), row("a", 0, 15.0, step=90), row("a", 0, 10.0, step=120)]
    rows += [row("a", 1, 22.0, step=50), row("a", 1, 12.0, step=80)]
    found = analyse(rows, methods=["a"], baselines=[], guidance=2.0)
    curve = found.summaries["a"].curve
    assert curve.steps == (0, 50, 100)
    assert curve.seconds == (0, 5, 10)
    assert curve.mean == (30.5, 21, 11)
    assert (curve.low, curve.high) == ((30, 20, 10), (31, 22, 12))
    assert found.summaries["a"].fid == {0: 10.0, 1: 12.0}


def test_no_direction_where_an_interval_covers_zero():
    draw = np.random.default_rng(3)
    seen = set()
    for _ in range(120):
        count = int(draw.integers(1, 6))
        levels = {"base": 12, "teacher": 9, "a": 9, "b": draw.normal(9, 2), "c": draw.normal(9, 2)}
        fids = {
            name: {
                s: v
                for s, v in by_seed(draw.normal(level, 0.5, (count, 3)).tolist()).items()
                if not s or draw.random() < 0.9
            }
            for name, level in levels.items()
        }
        found = study(fids, sweep=(1.0, 2.0, 3.0), ablation=["a", "b", "c"])
        for comparison in [*found.against["a"], *found.ablation, found.reference]:
            seen.add(check_words(comparison))
        assert "better" not in " ".join([*conclusions(found), *notes(found)])
    assert len(seen) >= 6


def check_words(comparison):
    """Each direction has its interval, each interval its direction; returns the words."""
    said = verdict(comparison, 2.0)
    words = tuple(re.findall("lower FID|higher FID|not distinguishable", said))
    expected = []
    for paired in (comparison.fixed, comparison.best):
        if paired is None or paired.joint.low is None:
            break
        covers = paired.joint.low <= 0 <= paired.joint.high
        side = "lower FID" if paired.joint.mean < 0 else "higher FID"
        expected.append("not distinguishable" if covers else side)
    assert words == tuple(dict.fromkeys(expected)), said
    assert "better" not in said
    return words


def test_bounds_show_their_side_of_zero():
    assert number(-0.004, 3.0) == "-0.004"
    assert number(12.3456, 0.5) == "12.35"
    assert number(0.0) == "0"
    assert number(math.nan) == "-"
    assert span(estimate([1.0])) == ""


def test_bad_names_are_refused():
    for options in ({"baselines": ["x"]}, {"baselines": ["a", "a"]}, {"ablation": ["x"]}):
        with pytest.raises(ValueError, match=r"no methods|appear twice"):
            study({"a": {0: 1.0}}, **options)
    with pytest.raises(ValueError, match="references"):
        analyse([], methods=["base"], baselines=[], guidance=2.0)


def test_csv_reads_back_exactly(tmp_path):
    path = tmp_path / "measurements.csv"
    rows = [row('a, "b"', 3, 1 / 3), row("é", 0, 1e-17)]
    write_csv(path, Measurement, rows)
    assert read_csv(path, Measurement) == rows
    cells = [CellFacts("a", 0, 1, 8, 0.5, 0.5, gate, "cpu on host") for gate in (None, 0.25)]
    write_csv(path, CellFacts, cells)
    assert read_csv(path, CellFacts) == cells


def test_bad_csv_is_refused_in_a_sentence(tmp_path):
    path = tmp_path / "measurements.csv"
    with pytest.raises(InputError, match="not readable"):
        read_csv(path, Measurement)
    write_csv(path, Measurement, [row("a", 0, 1.0)])
    text = path.read_text()
    path.write_text(text.replace("a,0,100", "a,0,many"))
    with pytest.raises(InputError, match=r"line 2: step is 'many'; expected a whole number"):
        read_csv(path, Measurement)
    path.write_text(text.replace("fid", "FID"))
    with pytest.raises(InputError, match="columns"):
        read_csv(path, Measurement)
    path.write_text(text + "a,1\n")
    with pytest.raises(InputError, match="line 3: 2 fields"):
        read_csv(path, Measurement)


def test_rewards_of_data_are_those_of_the_parts_that_samples_have():
    found = {"reverse_kl": 1.0, "reward_kind_of_data": -0.5, "reward_near_of_data": -0.25}
    assert added_rewards(found) == {}
    of_samples = {"reward_kind": -2.0, "reward_kind_se": 0.1, "reward_kind_of_data_se": 0.2}
    wanted = {"reward": -2.0, "reward_of_data": -0.5}
    assert added_rewards(found | of_samples) == wanted
