"""Which stage a run waits for, read off the ledger: for whoever has to say why nothing comes."""

from collections.abc import Mapping


def stalled_stage(
    leased: Mapping[int, tuple[str, float]], scored: int, per_step: int, *, is_free: bool
) -> str:
    """A sentence that begins with the stage.

    `leased` has (worker, seconds) by lease; `scored` leases lie in the buffer, of which a step
    takes `per_step`; `is_free`: a worker that asked would get one. A worker samples one lease
    after the other, so of several that it holds all but the newest were handed on.
    """
    if leased:
        number, (worker, seconds) = max(leased.items(), key=lambda item: item[1][1])
        others = sum(holder == worker for holder, _ in leased.values()) - 1
        if others:
            return (
                f"scoring: {worker} has sampled lease {number}, which it got {seconds:.0f} s ago, "
                "and no scorer handed it on to the buffer"
            )
        return f"rollout: {worker} has had lease {number} for {seconds:.0f} s and no other"
    if is_free:
        return "rollout: leases are free, and no worker asks for one"
    if scored >= per_step:
        return f"learner: {scored} scored leases wait for it, of which a step takes {per_step}"
    return f"ledger: no lease is out or free, and {scored} of a step's {per_step} are scored"
