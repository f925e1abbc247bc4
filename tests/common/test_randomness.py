"""Draws by row and by number."""

import pytest

from common.randomness import Draws, uniform


def test_draws_are_pure_functions_of_seed_and_index():
    one, two, other = Draws(7, 10), Draws(7, 10), Draws(8, 10)
    assert [one.row(i) for i in range(30)] == [two.row(i) for i in reversed(range(30))][::-1]
    for epoch in range(3):
        assert sorted(one.row(10 * epoch + i) for i in range(10)) == list(range(10))
    assert [one.row(i) for i in range(10)] != [one.row(i + 10) for i in range(10)]
    assert one.noise_seed(3) != other.noise_seed(3)
    values = [uniform(1, "coin", i) for i in range(4000)]
    assert 0 <= min(values) < max(values) < 1
    assert sum(values) / len(values) == pytest.approx(0.5, abs=0.02)
