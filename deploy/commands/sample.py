"""Draw images from a student (or teacher) of a run: a PNG grid, or an .npz for ADM's evaluator."""

import argparse
from pathlib import Path

from deploy.arguments import add_config, open_from

MODELS = ("student", "student_ema", "student_before", "teacher")


def configure(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--model", choices=MODELS, default="student", help="default: student")
    parser.add_argument(
        "--to", type=Path, help="output: .png for a grid, .npz for arr_0 (default: <out>/grid.png)"
    )


def run(arguments: argparse.Namespace) -> int:
    config, workspace = open_from(arguments)
    import torch

    from common.errors import InputError
    from common.ledger import derive_seed
    from deploy.pictures import grid, save_npz, save_png
    from deploy.progress import console
    from deploy.stages import draw_images, load_for_sampling

    output = arguments.to or workspace.root / "grid.png"
    if output.suffix not in (".png", ".npz"):
        raise InputError(f"--to {output}: must end in .png (grid) or .npz (ADM's evaluator)")
    workspace.existing_tokenizer()  # the first thing that a new run lacks
    file = workspace.model(config, arguments.model)
    backbone, tokenizer = load_for_sampling(file, workspace, config.rollout.device)
    per_class = config.sample.per_class
    label_N = torch.arange(backbone.spec.num_classes).repeat_interleave(per_class)
    pixel_NCHW = draw_images(
        backbone,
        tokenizer,
        label_N,
        sampling=config.sample.sampling,
        batch_size=config.evaluate.batch_size,
        seed=derive_seed(config.seed, "sample-command"),
        size=config.evaluate.size if output.suffix == ".npz" else None,
    )
    if output.suffix == ".npz":
        save_npz(output, pixel_NCHW)
    else:
        save_png(output, grid(pixel_NCHW, per_class))
    console().print(f"{len(pixel_NCHW)} images of {file.path.name} in {output}")
    return 0
