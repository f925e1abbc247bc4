"""Train teacher and student by maximum likelihood on the tokens.

Writes teacher.safetensors and student_before.safetensors into the run folder.
"""

import argparse

from deploy.arguments import add_config, open_from


def configure(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument(
        "--model",
        choices=("teacher", "student", "both"),
        default="both",
        help="which one (default: both)",
    )


def run(arguments: argparse.Namespace) -> int:
    config, workspace = open_from(arguments)
    from deploy.progress import console
    from deploy.stages import pretrain_model

    target = console()
    for which in ("teacher", "student"):
        if arguments.model not in (which, "both"):
            continue
        facts = pretrain_model(config, workspace, which, target)
        target.print(
            f"{which}: {facts['parameters']:,} parameters, loss {facts['loss']:.3f} nats/token "
            f"after {facts['steps']} steps in {facts['seconds']:.1f} s"
        )
    return 0
