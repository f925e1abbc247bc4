"""Train teacher and student by maximum likelihood on the tokens; before that, a tokenizer.

Writes teacher.safetensors and student_before.safetensors into the run folder. A tokenizer that is
trained (kind = "conv_vq") comes first, with --model tokenizer: it learns from the images and writes
tokenizer.safetensors and tokenizer.png, and `varkd tokenize` encodes with it.

For example:
  varkd pretrain runs/cifar10
  varkd pretrain cifar10_conv --model tokenizer images.train=data/train.parquet
"""

import argparse
from typing import Any

from deploy.arguments import add_config, open_from


def configure(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument(
        "--model",
        choices=("tokenizer", "teacher", "student", "both"),
        default="both",
        help="which one (default: both teacher and student)",
    )


def run(arguments: argparse.Namespace) -> int:
    config, workspace = open_from(arguments)
    arguments.held.enter_context(workspace.locked(arguments.command))
    from deploy.progress import console
    from deploy.stages import pretrain_model

    target = console()
    if arguments.model == "tokenizer":
        from deploy.trained_tokenizer import pretrain_tokenizer

        target.print(_sentence(pretrain_tokenizer(config, workspace, target)))
        return 0
    for which in ("teacher", "student"):
        if arguments.model not in (which, "both"):
            continue
        facts = pretrain_model(config, workspace, which, target)
        target.print(
            f"{which}: {facts['parameters']:,} parameters, loss {facts['loss']:.3f} nats/token "
            f"after {facts['steps']} steps in {facts['seconds']:.1f} s"
        )
    return 0


def _sentence(facts: dict[str, Any]) -> str:
    measured = {split: facts[split] for split in ("train", "test") if facts[split]}
    quality = ", ".join(f"{found['psnr']:.2f} dB on {split}" for split, found in measured.items())
    found = measured.get("test", measured["train"])
    return (
        f"tokenizer: {facts['parameters']:,} parameters, PSNR {quality}, "
        f"{found['usage']:.1%} of the codes in use, perplexity {found['perplexity']:.0f} "
        f"after {facts['steps']} steps in {facts['seconds']:.1f} s"
    )
