"""Headers of weights that are not as they were written."""

import json
import struct


def with_header(path, **changes):
    """The same tensors under another header; None drops an entry."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        metadata = json.loads(file.read(length))["__metadata__"]
    metadata |= changes
    return {k: v for k, v in metadata.items() if v is not None}
