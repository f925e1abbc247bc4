"""One-pass students beside their teachers, small enough for tests."""

import torch

from common.config.plugins import load_plugin

TEACHERS = {"dd1_llamagen": "llamagen", "dd1_var": "var"}
KINDS = tuple(TEACHERS)
VELOCITY_TEACHERS = {"dd2_llamagen": "llamagen", "dd2_var": "var"}


def student_of(kind, teacher, seed=1, **fields):
    """A fresh student of a teacher's size; nothing is taken over yet, and all of it is drawn."""
    family = (TEACHERS | VELOCITY_TEACHERS)[kind]
    backbone = load_plugin("common.models.backbones", family).Config.tiny()
    config = load_plugin("common.models.generators", kind).Config(backbone=backbone, **fields)
    torch.manual_seed(seed)
    return config, config.build(teacher.spec, codes_of(teacher)).eval()


def codes_of(teacher):
    """The teacher's own, or such as a raster tokenizer has: of norm 1."""
    if hasattr(teacher, "quantizer"):
        return teacher.quantizer.code_VD
    code_VD = torch.randn(24, 5, generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.normalize(code_VD, dim=-1)[: teacher.spec.vocab_size]


def velocity_model(kind, teacher, seed=1):
    """That began as the teacher, with the head's gates opened: a fresh one says 0."""
    model = student_of(kind, teacher, seed, head_width=16, head_depth=2)[1]
    model.start_from(teacher)
    generator = torch.Generator().manual_seed(seed)
    for weight in model.velocity_head.parameters():
        if not weight.any():
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return model


def scale_of(spec):
    """The step of the teacher's that every slot belongs to."""
    if not spec.scales:
        return torch.arange(spec.length)
    sizes = torch.tensor(spec.scales) ** 2
    return torch.arange(len(sizes)).repeat_interleave(sizes)
