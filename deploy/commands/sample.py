"""Draw images from a student (or teacher) of a run: a PNG sheet, or an .npz for ADM's evaluator.

They are drawn as `varkd evaluate` draws them, unless sample.sampling is set. A sheet has a row per
class, real images first; without --classes it shows 20 of them at most, and 8 images of each.

For example:
  varkd sample runs/cifar10
  varkd sample runs/cifar10 --model teacher --classes 3,7 --per-class 12 --seed 1 --to teacher.png
  varkd sample runs/cifar10 --per-class 100 --to samples.npz
"""

import argparse

import shtab

from deploy.cli.arguments import add_config, complete, open_from, path_option

MODELS = ("student", "student_ema", "student_before", "teacher")


def configure(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--model", choices=MODELS, default="student", help="default: student")
    target = parser.add_argument(
        "--to",
        type=path_option,
        help="output: .png for a sheet, .npz for ADM's evaluator: arr_0, shuffled, with its labels "
        "as arr_1 (default: <out>/grid.png)",
    )
    complete(target, shtab.FILE)
    parser.add_argument(
        "--classes", metavar="A,B", help="names or, counted from 0, numbers (default: all)"
    )
    parser.add_argument(
        "--per-class", type=_count, metavar="N", help="images of each (default: sample.per_class)"
    )
    parser.add_argument(
        "--seed", type=_count, metavar="N", help="of the noise alone (default: the run's)"
    )


def _count(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**31:
        raise ValueError
    return value


_count.__name__ = "number"  # argparse: "invalid number value: 'x'"


def run(arguments: argparse.Namespace) -> int:
    config, workspace = open_from(arguments)
    from deploy.cli.ending import end, quoted
    from deploy.console.progress import console
    from deploy.stages.sample import fill, take_order

    order = take_order(
        config,
        workspace,
        arguments.model,
        output=arguments.to or workspace.root / "grid.png",
        classes=arguments.classes,
        per_class=arguments.per_class,
        seed=arguments.seed,
    )
    fill(order, config, workspace, console())
    end(
        f"{len(order.label_N):,} images of {arguments.model}, {order.per_class} of each class",
        files=[order.output],
        following=f"varkd export {quoted(workspace.named)}" if order.is_sheet else None,
    )
    return 0
