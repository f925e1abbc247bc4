"""One golden folder: outputs of an official implementation on tiny weights."""

import json
import re

import torch
from safetensors.torch import load_file


class Golden:
    """A folder's facts and tensors; remembers what was asked for."""

    def __init__(self, folder):
        self.folder = folder
        self.facts = json.loads((folder / "config.json").read_text())
        self.tensors = load_file(folder / "io.safetensors")
        self.seen = set()

    def __getitem__(self, name):
        self.seen.add(name)
        return self.tensors[name]

    def names(self, pattern):
        """Names that match, with their groups."""
        return [(m[0], *m.groups()) for n in self.tensors if (m := re.fullmatch(pattern, n))]

    def close(self, name, found, atol, rtol=0):
        torch.testing.assert_close(found, self[name], atol=atol, rtol=rtol, msg=lambda m: name + m)

    def equal(self, name, found):
        assert torch.equal(found.to(self[name].dtype), self[name]), name

    def gradients(self, prefix, lookup, share=1e-3):
        for name, inner in self.names(re.escape(prefix) + r"(.+)"):
            self.close(name, lookup(inner), atol=share * float(self[name].abs().max()))

    @property
    def weights(self):
        names = [*self.folder.glob("*.pt"), *self.folder.glob("*.pth")]
        return (names or [self.folder / "weights.safetensors"])[0]
