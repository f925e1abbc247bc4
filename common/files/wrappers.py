"""Names of weights without what training wrappers leave in them.

torch.compile, DDP, FSDP and activation checkpointing each put a module around another and its
name into the path, around the whole model or around single blocks, in any order.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from common.errors import InputError

MARKED = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
"""What nobody else calls a module."""
PLAIN = "module"
"""DDP's word, which others use as well: it is a wrapper's where it is its parent's only child."""


def plain_names(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """`state` under the names that the weights have without wrappers.

    Raises:
        InputError: two entries would have one name.
    """
    parts = {name: [p for p in name.split(".")[:-1] if p not in MARKED] for name in state}
    children: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for name, segments in parts.items():
        whole = (*segments, name.rpartition(".")[2])
        for depth, child in enumerate(whole):
            children[whole[:depth]].add(child)
    source: dict[str, str] = {}
    for name, segments in parts.items():
        kept = [
            segment
            for depth, segment in enumerate(segments)
            if segment != PLAIN or len(children[tuple(segments[:depth])]) > 1
        ]
        plain = ".".join([*kept, name.rpartition(".")[2]])
        if plain in source:
            raise InputError(
                f"{path}: {source[plain]} and {name} are both {plain} without the wrappers of "
                "training; keep one of them"
            )
        source[plain] = name
    return {plain: state[name] for plain, name in source.items()}
