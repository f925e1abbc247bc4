"""Write a run's student as a checkpoint that the family's official sampler loads.

The model card beside it says which teacher, objective, data and steps made it, and how it scored.

For example:
  varkd export runs/cifar10 --layout official --to student.pt
"""

import argparse

from deploy.cli.arguments import add_config, open_from, path_option

MODELS = ("student", "student_ema", "student_before", "teacher")


def configure(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument(
        "--layout",
        choices=("official", "safetensors"),
        default="official",
        help="the family's own file, or its names in a safetensors file (default: official)",
    )
    parser.add_argument("--model", choices=MODELS, default="student", help="default: student")
    parser.add_argument(
        "--to", type=path_option, help="output file (default: <out>/export/<model>)"
    )


def run(arguments: argparse.Namespace) -> int:
    config, workspace = open_from(arguments)
    if arguments.to is None:
        arguments.held.enter_context(workspace.locked(arguments.command))
    from deploy.cli.ending import end
    from deploy.stages.export import card_of, export

    path = export(
        config,
        workspace,
        name=arguments.model,
        layout=arguments.layout,
        output=arguments.to,
    )
    end(f"{arguments.model} and its model card", files=[path, card_of(path)])
    return 0
