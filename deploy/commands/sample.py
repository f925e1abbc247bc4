"""Draw images from a student (or teacher) of a run: a PNG grid, or an .npz for ADM's evaluator.

For example:
  varkd sample runs/cifar10 --model teacher --to teacher.png
"""

import argparse
from pathlib import Path

from deploy.arguments import add_config, open_from

MODELS = ("student", "student_ema", "student_before", "teacher")


def configure(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--model", choices=MODELS, default="student", help="default: student")
    parser.add_argument(
        "--to",
        type=Path,
        help="output: .png for a grid, .npz for ADM's evaluator: arr_0, shuffled, with its labels "
        "as arr_1 (default: <out>/grid.png)",
    )


def run(arguments: argparse.Namespace) -> int:
    config, workspace = open_from(arguments)
    import torch

    from common.errors import InputError
    from common.ledger import derive_seed
    from deploy.pictures import grid, save_png
    from deploy.progress import Bar, console
    from deploy.samples import counted, save_npz, shuffled
    from deploy.stages import draw_batches, load_for_sampling

    output = arguments.to or workspace.root / "grid.png"
    if output.suffix not in (".png", ".npz"):
        raise InputError(f"--to {output}: must end in .png (grid) or .npz (ADM's evaluator)")
    workspace.existing_tokenizer()  # the first thing that a new run lacks
    file = workspace.model(config, arguments.model)
    backbone, tokenizer = load_for_sampling(file, workspace, config.rollout.device)
    per_class, seed = config.sample.per_class, derive_seed(config.seed, "sample-command")
    is_grid = output.suffix == ".png"
    label_N = torch.arange(backbone.spec.num_classes).repeat_interleave(per_class)
    label_N = label_N if is_grid else shuffled(label_N, seed)
    side = None if is_grid else config.evaluate.size
    batches = draw_batches(
        backbone,
        tokenizer,
        label_N,
        sampling=config.sample.sampling,
        batch_size=config.evaluate.batch_size,
        seed=seed,
        size=side,
    )
    with Bar(console(), "sample", len(label_N)) as bar:
        batches = counted(batches, bar)
        if is_grid:
            save_png(output, grid(torch.cat(list(batches)), per_class))
        else:
            save_npz(output, batches, label_N, side or config.images.size)
    console().print(f"{len(label_N)} images of {file.path.name} in {output}")
    return 0
