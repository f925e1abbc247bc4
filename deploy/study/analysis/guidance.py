"""The guidance that suits a method, chosen without the seed it is judged on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Best:
    """FID at the guidance that suits a method, without choosing on the seed it is read at."""

    fid: dict[int, float]
    guidance: dict[int, float]
    """The guidance chosen for each seed, by the mean FID of the other seeds."""
    candidates: tuple[float, ...]
    optimistic: bool
    """One seed: the guidance was chosen on the very value reported."""

    @property
    def at_edge(self) -> tuple[float, ...]:
        """Chosen guidances that lie at an end of the sweep: the optimum may lie beyond."""
        ends = {self.candidates[0], self.candidates[-1]}
        return tuple(sorted(ends & set(self.guidance.values())))


def choose_guidance(
    fid: Mapping[float, Mapping[int, float]], sweep: Sequence[float]
) -> Best | None:
    """Leave one seed out: its guidance has the lowest mean FID over the other seeds.

    Only seeds with a finite FID at every guidance of `sweep` take part; ties go to the smaller
    guidance. A single seed gets its plain minimum, marked as optimistic.

    Returns:
        None where the sweep has fewer than two guidances, or no seed took part.
    """
    seeds = sorted(set.intersection(*(set(fid.get(scale, {})) for scale in sweep)) if sweep else ())
    if len(sweep) < 2 or not seeds:
        return None
    chosen = {}
    for seed in seeds:
        others = [other for other in seeds if other != seed] or [seed]
        cost = {scale: math.fsum(fid[scale][other] for other in others) for scale in sweep}
        chosen[seed] = min(sweep, key=lambda scale: (cost[scale], scale))
    return Best(
        fid={seed: fid[chosen[seed]][seed] for seed in seeds},
        guidance=chosen,
        candidates=tuple(sorted(sweep)),
        optimistic=len(seeds) == 1,
    )
