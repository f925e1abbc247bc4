"""A stored tokenizer's codes, as flows carry noise to them."""

from pathlib import Path

from common.flow.laws import FlowCodes
from common.tokenization.tokenizer import load_tokenizer


def flow_codes(path: Path) -> FlowCodes:
    """Of a tokenizer's file; float32.

    Raises:
        InputError: as `load_tokenizer`.
    """
    return FlowCodes(load_tokenizer(path).codebook_VD.float())
