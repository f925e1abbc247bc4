"""Token datasets: the images of a split, encoded once, with everything needed to trust them.

Shape letters: N images, L slots.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from common.backbone import SequenceSpec
from common.checkpoint import FORMAT, write_atomically
from common.errors import InputError
from common.ledger import Draws


@dataclass(frozen=True)
class TokenDataset:
    """Encoded images: token_NL (int64), label_N (int64) and the spec that they obey."""

    token_NL: Tensor
    label_N: Tensor
    spec: SequenceSpec
    classes: tuple[str, ...]
    tokenizer_digest: str

    def __len__(self) -> int:
        return len(self.label_N)

    def pick(
        self, indices: Sequence[int], draws: Draws, class_dropout: float
    ) -> tuple[Tensor, Tensor]:
        """(label_B, cell_BL) of a run's image indices; dropped labels become the null class.

        Dropped once, here, so that student, teacher and rollout agree (method.md 2.6).
        """
        row_B = torch.tensor([draws.row(index) for index in indices])
        kept = [draws.uniform("label", index) >= class_dropout for index in indices]
        label_B = torch.where(torch.tensor(kept), self.label_N[row_B], self.spec.null_class)
        return label_B, self.token_NL[row_B]


def save_tokens(path: Path, data: TokenDataset) -> None:
    """Parquet with columns `token` (fixed-size list of int32) and `label` (int64)."""
    flat = pa.array(data.token_NL.flatten().numpy().astype(np.int32))
    facts = {
        "format": FORMAT,
        "spec": data.spec.as_dict(),
        "classes": data.classes,
        "tokenizer": data.tokenizer_digest,
    }
    table = pa.table(
        {
            "token": pa.FixedSizeListArray.from_arrays(flat, data.spec.length),
            "label": pa.array(data.label_N.numpy()),
        }
    ).replace_schema_metadata({"varkd": json.dumps(facts)})
    write_atomically(path, lambda temporary: pq.write_table(table, temporary))


def load_tokens(path: Path) -> TokenDataset:
    """Read what `save_tokens` wrote.

    Raises:
        InputError: the file is missing, is no token dataset, or holds a token outside its
            vocabulary.
    """
    spec, classes, tokenizer_digest = token_header(path)
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: no readable token dataset: {error}") from None
    flat = table.column("token").combine_chunks().flatten().to_numpy()
    if len(flat) and not 0 <= flat.min() <= flat.max() < spec.vocab_size:
        raise InputError(
            f"{path}: tokens run from {flat.min()} to {flat.max()}, but the vocabulary has "
            f"{spec.vocab_size}; encode the images again"
        )
    return TokenDataset(
        torch.from_numpy(flat.astype(np.int64)).view(-1, spec.length),
        torch.from_numpy(table.column("label").to_numpy().copy()),
        spec,
        classes,
        tokenizer_digest,
    )


def token_header(path: Path) -> tuple[SequenceSpec, tuple[str, ...], str]:
    """(spec, class names, tokenizer digest) of a token dataset, without reading its rows.

    Raises:
        InputError: the file is missing or is no token dataset.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: no readable token dataset: {error}") from None
    if b"varkd" not in metadata:
        raise InputError(f"{path}: no token dataset of varkd; write it with `varkd tokenize`")
    facts = json.loads(metadata[b"varkd"])
    return SequenceSpec.from_dict(facts["spec"]), tuple(facts["classes"]), facts["tokenizer"]
