"""Parts of a token file, made in this process or by Ray Data.

A part is a few images of one split on their way into a file of their own. Files appear whole, so
a command that was interrupted goes on after those that are there. Both ways call `PartMaker`.

Shape letters: A views of an image, B images of a batch, C channels, H height, W width, S side of a
view, L slots, n rows of a part.
"""

import logging
import os
import pickle
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from torch import Tensor

from common.checkpoint import state_digest, unwritable
from common.codes import Codes
from common.crops import VIEWS, Crops, cut_views
from common.device import place
from common.errors import InputError, RunFailed
from common.images import ImageSource
from common.tokenizer import load_tokenizer
from common.tokens import TokenHeader, TokensConfig, write_tokens
from deploy.host import Host
from deploy.layout import check_layout

BATCH = 64
"""Images that are decoded together."""
MOST_TRIES = 3
"""A part whose actor died this often is given up: Ray would restart the actor for ever."""


@dataclass(frozen=True)
class Part:
    """Rows of one split and the file that they go to."""

    path: Path
    source: ImageSource | Codes
    size: int
    """Side of an encoded view in pixels."""
    crops: Crops = "center"

    def __len__(self) -> int:
        return len(self.source)


class PartMaker:
    """Holds the tokenizer on its device and makes one part after the other."""

    def __init__(self, tokenizer_file: Path, device: str) -> None:
        self._device = place(device)
        self._tokenizer = load_tokenizer(tokenizer_file).to(self._device)
        self._digest = state_digest(self._tokenizer)

    def make(self, part: Part, watch: Callable[[int], None] = lambda done: None) -> None:
        """Write `part.path`; `watch` hears how many of its images are done.

        Raises:
            InputError: an image or a file of codes is bad, or the part cannot be written.
        """
        if isinstance(part.source, Codes):
            token_nAL, label_n = part.source.read()
            facts = {"squared_error": 0.0, "pixels": 0}
        else:
            token_nAL, facts = self._encode(part.source, part, watch)
            label_n = part.source.label_N
        facts["largest_label"] = int(label_n.max())
        shape = self._tokenizer.shape
        header = TokenHeader(shape, (), self._digest, token_nAL.shape[1], facts)
        write_tokens(part.path, header, [(token_nAL, label_n)])

    @torch.no_grad()
    def _encode(
        self, source: ImageSource, part: Part, watch: Callable[[int], None]
    ) -> tuple[Tensor, dict[str, Any]]:
        """token_nAL, and the reconstruction error of the first batch's first views."""
        tokens: list[Tensor] = []
        facts: dict[str, Any] = {}
        for pixel_BCHW in source.batches(BATCH):
            watch(sum(len(token) for token in tokens))
            pixel_BACSS = cut_views(pixel_BCHW, part.crops, part.size)
            token_BL = self._tokenizer.encode(pixel_BACSS.flatten(0, 1).to(self._device)).cpu()
            tokens.append(token_BL.unflatten(0, (-1, VIEWS[part.crops])))
            if not facts:
                decoded = self._tokenizer.decode(tokens[0][:, 0].to(self._device)).cpu()
                difference = decoded.double() - pixel_BACSS[:, 0].double()
                facts["squared_error"] = float(difference.square().sum())
                facts["pixels"] = difference.numel()
        return torch.cat(tokens), facts


def make_here(
    parts: Sequence[Part], tokenizer_file: Path, tokens: TokensConfig, watch: Callable[[int], None]
) -> Iterator[Part]:
    """Make the parts in this process; yields each when its file is there."""
    maker = PartMaker(tokenizer_file, tokens.device)
    for part in parts:
        maker.make(part, watch)
        yield part


class PartActor:
    """What Ray Data keeps in its actors: a row is a part's number and the pickled part.

    A user's mistake is handed back as a value: Ray Data would wrap, retry or print an exception.
    """

    def __init__(self, tokenizer_file: Path, tokens: TokensConfig) -> None:
        check_layout()
        torch.set_num_threads(max(1, int(tokens.cpus)))
        self._arguments = tokenizer_file, tokens.device
        self._maker: PartMaker | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        part: Part = pickle.loads(row["part"])
        reply = {"number": row["number"], "refusal": "", "failure": ""}
        try:
            _count_try(part)
            self._maker = self._maker or PartMaker(*self._arguments)
            self._maker.make(part)
        except InputError as error:
            reply["refusal"] = str(error)
        except RunFailed as error:
            reply["failure"] = str(error)
        return reply


def _tries(part: Part) -> Path:
    return part.path.with_suffix(".tries")


def _count_try(part: Part) -> None:
    """Leave a mark that outlives this process.

    Raises:
        RunFailed: this part was begun too often.
    """
    path = _tries(part)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as handle:
            handle.write(b".")
            tries = handle.tell()
    except OSError as error:
        raise unwritable(path, error) from error
    if tries > MOST_TRIES:
        raise RunFailed(
            f"{part.path}: {MOST_TRIES} actors died while they made this part, perhaps for lack "
            "of memory; lower tokens.workers or tokens.part_images"
        )


def make_on_ray(
    parts: Sequence[Part], tokenizer_file: Path, tokens: TokensConfig, target: Console
) -> Iterator[Part]:
    """Make the parts in actors of Ray Data; yields each when its file is there, in any order.

    Raises:
        InputError: as `PartMaker.make`, or the private cluster has too few CPUs or GPUs.
        RunFailed: actors died over the same part again and again.
    """
    import ray.data

    _require_room(tokens, target)
    _quiet_ray_data()
    for part in parts:
        _tries(part).unlink(missing_ok=True)
    rows = [{"number": n, "part": pickle.dumps(part)} for n, part in enumerate(parts)]
    replies = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        cast(Any, PartActor),
        fn_constructor_args=(tokenizer_file, tokens),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(tokens.workers, len(parts))),
        num_cpus=tokens.cpus,
        num_gpus=tokens.gpus or None,
    )
    with closing(_rows(replies)) as answered:
        for reply in answered:
            if reply["refusal"]:
                raise InputError(reply["refusal"])
            if reply["failure"]:
                raise RunFailed(reply["failure"])
            part = parts[reply["number"]]
            _tries(part).unlink(missing_ok=True)
            yield part


def _rows(dataset: Any) -> Generator[dict[str, Any]]:
    yield from dataset.iter_rows()


def _require_room(tokens: TokensConfig, target: Console) -> None:
    """Ray Data waits for ever, and silently, for resources that no node has."""
    import ray

    there = ray.cluster_resources()
    for name, wanted in (("CPU", tokens.cpus), ("GPU", tokens.gpus)):
        if wanted <= there.get(name, 0.0):
            continue
        found = f"tokens.{name.lower()}s is {wanted:g}, but the cluster has {there.get(name, 0):g}"
        if not os.environ.get("RAY_ADDRESS"):
            raise InputError(f"{found}; lower it, or submit to a cluster that has them")
        target.print(f"{found}; waiting for a node that has them")


def _quiet_ray_data() -> None:
    import ray
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # not the session's log file
            handler.setLevel(logging.CRITICAL)
    # Ray complains on raw stderr, once per process, of how Ray Data starts actors (ray#57733).
    with _closed_stderr():
        ray.remote(num_cpus=0, max_restarts=1)(Host).remote(dict, (), ray.put({}))


@contextmanager
def _closed_stderr() -> Iterator[None]:
    """What C++ code prints in the block goes nowhere."""
    before = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
