"""Token datasets: the images of a split, encoded once, with everything needed to trust them.

Shape letters: N images, A variants (encoded views) of an image, L slots, B batch, n rows of a part.
"""

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from common.data.token_header import TokenHeader
from common.errors import InputError
from common.files.atomic import write_atomically
from common.files.paths import require_file, shortened
from common.files.tensors import reading_header
from common.memory import require_memory
from common.randomness import Draws
from common.spec import SequenceSpec

__all__ = ["TokenDataset", "TokenHeader"]
NUMPY = {torch.int16: np.int16, torch.int32: np.int32}
ROW_GROUP_TOKENS = 2**22
"""Tokens that are in memory together while a file is written or read."""


@dataclass(frozen=True)
class TokenDataset:
    """Encoded images: token_NAL (any integers), label_N (int64) and the spec that they obey."""

    token_NAL: Tensor
    label_N: Tensor
    spec: SequenceSpec
    classes: tuple[str, ...]
    tokenizer_digest: str
    seed_N: Tensor | None = None
    """What each row was sampled with (int64), of a dataset that a model made."""

    def __len__(self) -> int:
        return len(self.label_N)

    @property
    def variants(self) -> int:
        return self.token_NAL.shape[1]

    def digest(self) -> str:
        """Sixteen hex digits of all tokens and labels, and of what they mean."""
        facts = [self.spec.as_dict(), self.variants, self.tokenizer_digest]
        hasher = hashlib.blake2b(json.dumps(facts).encode(), digest_size=8)
        for value in self._arrays().values():
            hasher.update(value.contiguous().numpy().data)
        return hasher.hexdigest()

    def pick(
        self, indices: Sequence[int], draws: Draws, class_dropout: float, null: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """(label_B, cell_BL) of a run's image indices; dropped labels become `null`, by default the
        null class.

        Each access draws one of the variants. Labels are dropped once, here, so that student,
        teacher and rollout agree (docs/method.md, "Guidance").
        """
        row_B = torch.tensor([draws.row(index) for index in indices])
        kept = [draws.uniform("label", index) >= class_dropout for index in indices]
        null = self.spec.null_class if null is None else null
        label_B = torch.where(torch.tensor(kept), self.label_N[row_B], null)
        view_B = torch.tensor([draws.view(index, self.variants) for index in indices])
        return label_B, self.token_NAL[row_B, view_B].long()

    def pick_seeds(self, indices: Sequence[int], draws: Draws) -> Tensor:
        """seed_B of the rows that `pick` gives for these indices; only where there are any."""
        assert self.seed_N is not None
        return self.seed_N[torch.tensor([draws.row(index) for index in indices])]

    def __getstate__(self) -> dict[str, Any]:
        """As numpy arrays, which other processes on the node can read where they lie."""
        arrays = {name: value.numpy() for name, value in self._arrays().items()}
        return {**self.__dict__, **arrays}

    def __setstate__(self, state: dict[str, Any]) -> None:
        with warnings.catch_warnings():
            # Shared memory is read-only, and so are we; torch has no such notion and would warn.
            warnings.filterwarnings("ignore", message=".*not writable", category=UserWarning)
            arrays = {
                name: torch.from_numpy(value)
                for name, value in state.items()
                if isinstance(value, np.ndarray)
            }
        self.__dict__.update({**state, **arrays})

    def _arrays(self) -> dict[str, Tensor]:
        fields = {"token_NAL": self.token_NAL, "label_N": self.label_N, "seed_N": self.seed_N}
        return {name: value for name, value in fields.items() if value is not None}


def save_tokens(path: Path, data: TokenDataset) -> None:
    """Write a whole dataset, see `write_tokens`."""
    rows, seeds = data._arrays(), data.seed_N is not None
    header = TokenHeader(data.spec, data.classes, data.tokenizer_digest, data.variants, seeds=seeds)
    write_tokens(path, header, [tuple(rows.values())])


Rows = tuple[Tensor, ...]
"""token_nAL, label_n and, where the header says so, seed_n."""


def write_tokens(path: Path, header: TokenHeader, parts: Iterable[Rows]) -> None:
    """Parquet with one row per image: `token`, a fixed-size list of A * L, `label` (int64), and
    `seed` (int64) where the header has seeds.

    Only a row group of `parts` is held at a time. Dictionary encoding, Parquet's default, takes
    log2(V) bits per token; no codec makes that smaller.

    Raises:
        InputError: the file cannot be written.
    """
    tokens = pa.int16() if header.dtype == torch.int16 else pa.int32()
    names = _columns(header)
    types = [pa.list_(tokens, header.width), *[pa.int64()] * (len(names) - 1)]
    schema = pa.schema(list(zip(names, types, strict=True)), metadata={"varkd": header.to_json()})

    def write(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, schema) as writer:
            for token_nAL, *others in _row_groups(parts, header.width):
                flat = pa.array(token_nAL.to(header.dtype).flatten().numpy())
                token = pa.FixedSizeListArray.from_arrays(flat, header.width)
                columns = [token, *(pa.array(value_n.numpy()) for value_n in others)]
                writer.write_table(pa.table(columns, schema=schema))

    write_atomically(path, write)


def _columns(header: TokenHeader) -> list[str]:
    return ["token", "label", *(["seed"] if header.seeds else [])]


def _row_groups(parts: Iterable[Rows], width: int) -> Iterator[Rows]:
    rows = max(1, ROW_GROUP_TOKENS // width)
    held: list[Rows] = []
    for part in parts:
        for piece in zip(*(value.split(rows) for value in part), strict=True):
            held.append(piece)
            if sum(len(label) for _, label, *_ in held) >= rows:
                yield _joined(held)
                held = []
    if held:
        yield _joined(held)


def _joined(pieces: list[Rows]) -> Rows:
    return tuple(torch.cat(values) for values in zip(*pieces, strict=True))


def read_tokens(path: Path) -> Iterator[Rows]:
    """Some rows after the others, checked against the file's header.

    Raises:
        InputError: the file is missing, is no token dataset, is empty, or holds a token or label
            that its spec does not have.
    """
    header = read_header(path)
    rows = max(1, ROW_GROUP_TOKENS // header.width)
    with _reading(path), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=rows, columns=_columns(header)):
            yield _checked(path, header, batch)


def _checked(path: Path, header: TokenHeader, batch: pa.RecordBatch) -> Rows:
    column, label = batch.column("token"), batch.column("label")
    if column.flatten().null_count or any(each.null_count for each in batch.columns):
        raise InputError(f"{path}: rows without a token or a label; encode the images again")
    token = _numbers(column.flatten())
    _require_range(path, "tokens", token, header.spec.vocab_size)
    _require_range(path, "labels", _numbers(label), header.spec.num_classes or 2**31)
    token_nAL = torch.from_numpy(token.astype(NUMPY[header.dtype])).view(
        len(label), header.variants, header.spec.length
    )
    numbers = (_numbers(column).astype(np.int64) for column in batch.columns[1:])
    return token_nAL, *map(torch.from_numpy, numbers)


def _numbers(column: pa.Array) -> np.ndarray:
    """A view of its memory; Arrow's `to_numpy` loads pandas, which takes longer than to read."""
    return np.from_dlpack(column)


def _require_range(path: Path, what: str, values: np.ndarray, limit: int) -> None:
    if len(values) and not 0 <= values.min() <= values.max() < limit:
        kind = "vocabulary has" if what == "tokens" else "number of classes is"
        raise InputError(
            f"{path}: {what} run from {values.min()} to {values.max()}, but the {kind} {limit}; "
            "encode the images again"
        )


def load_tokens(path: Path) -> TokenDataset:
    """Read what `save_tokens` wrote; memory beside the dataset stays at one row group.

    Raises:
        InputError: see `read_tokens`; or the dataset is larger than the free memory.
    """
    header = read_header(path)
    rows = count_images(path)
    size = rows * (header.width * header.dtype.itemsize + 8)
    require_memory(size, f"{path}: the token dataset", "use fewer images or variants")
    token_NAL = torch.empty(rows, header.variants, header.spec.length, dtype=header.dtype)
    whole = token_NAL, *(torch.empty(rows, dtype=torch.long) for _ in _columns(header)[1:])
    first = 0
    for part in read_tokens(path):
        stop = first + len(part[0])
        if stop > rows:
            break
        for values, value_n in zip(whole, part, strict=True):
            values[first:stop] = value_n
        first = stop
    if first != rows:
        raise InputError(f"{path}: has other rows than the {rows} that it counts; make it again")
    of = dict(zip(_columns(header), whole, strict=True))
    facts = header.spec, header.classes, header.tokenizer
    return TokenDataset(token_NAL, of["label"], *facts, of.get("seed"))


def read_labels(path: Path) -> Tensor:
    """label_N alone; raises as `read_tokens`."""
    read_header(path)
    with _reading(path):
        return torch.tensor(pq.read_table(path, columns=["label"]).column("label").to_numpy())


def count_images(path: Path) -> int:
    """Rows of a token dataset, from its footer alone.

    Raises:
        InputError: no readable dataset, or one without rows.
    """
    require_file(path, "a token dataset")
    with _reading(path):
        rows = pq.read_metadata(path).num_rows
    if rows < 1:
        raise InputError(f"{path}: holds no images; encode them again with `varkd tokenize`")
    return rows


def read_header(path: Path) -> TokenHeader:
    """What a token dataset says of itself, without reading its rows.

    Raises:
        InputError: the file is missing, is no token dataset, or its columns are not what its header
            says.
    """
    require_file(path, "a token dataset")
    with _reading(path):
        schema = pq.read_schema(path)
    metadata = schema.metadata or {}
    if b"varkd" not in metadata:
        raise InputError(f"{path}: no token dataset of varkd; write it with `varkd tokenize`")
    with reading_header(path):
        header = TokenHeader.from_json(metadata[b"varkd"])
    expected = f"a list of {header.width} whole numbers"
    if schema.names.count("token") != 1 or schema.names.count("label") != 1:
        raise InputError(f"{path}: its columns are {schema.names[:6]}, expected token and label")
    token, label = schema.field("token").type, schema.field("label").type
    is_list = pa.types.is_fixed_size_list(token) and pa.types.is_integer(token.value_type)
    if not is_list or token.list_size != header.width:
        raise InputError(
            f"{path}: token is {token}, but by the header {expected}; encode the images again"
        )
    if not pa.types.is_integer(label):
        raise InputError(f"{path}: label is {label}, expected a whole number; make it again")
    if header.seeds and ("seed" not in schema.names or schema.field("seed").type != pa.int64()):
        raise InputError(
            f"{path}: by its header every row has a seed, but there is no column seed of whole "
            "numbers; make it again with `varkd generate`"
        )
    return header


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever Arrow makes of a damaged file, as one sentence."""
    try:
        yield
    except InputError:
        raise
    except (pa.ArrowException, OSError, MemoryError, ValueError) as error:
        reason = shortened(str(error).partition("\n")[0])
        raise InputError(f"{path}: no readable token dataset: {reason}") from None
