"""Who sampled a row, and under which law: what staleness, gates and diagnostics go by.

The name of a context says where its rows come from in the config; it decides nothing. Rows of any
context whose sampler is the student go stale, have rollout slots and count as rollouts.
"""

from typing import Literal, get_args

Policy = Literal["data", "teacher", "student"]
"""Who sampled what follows the prefix. data: nobody, the whole sequence was read; teacher: the
teacher, just now or once for a file; student: the student, with weights of the row's version."""
Law = Literal["exact", "approximate"]
"""exact: the policy's own conditional distributions, so `logprob` is what it says of the row
(and 0 where nothing was sampled); approximate: another distribution, by a temperature, a filter,
guidance, or an order of decoding in which the row is not scored (ZipAR). `logprob` is that of
the draw in either case."""

DATA: Policy = "data"
TEACHER: Policy = "teacher"
STUDENT: Policy = "student"
POLICIES: tuple[Policy, ...] = get_args(Policy)
LAWS: tuple[Law, ...] = get_args(Law)


def is_on_policy(policy: Policy) -> bool:
    """Whether some version of the student sampled the row; no other row goes stale."""
    return policy == STUDENT
