"""Train teacher and student by maximum likelihood on the tokens; before that, a tokenizer.

Writes teacher.safetensors and student_before.safetensors into the run folder, with metrics in
pretrain_teacher.jsonl, pretrain_student.jsonl and TensorBoard. A tokenizer that is trained
(kind = "conv_vq") comes first, with --model tokenizer: it learns from the images and writes
tokenizer.safetensors and tokenizer.png, and `varkd tokenize` encodes with it.

What was made from the same tokens and settings stays. Ctrl-C and SIGTERM store a snapshot, and
--resume goes on from it to the same numbers.

For example:
  varkd pretrain runs/cifar10
  varkd pretrain cifar10_conv --model tokenizer images.train=data/train.parquet
"""

import argparse
from typing import Any

from deploy.cli.arguments import add_config, open_from


def configure(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument(
        "--model",
        choices=("tokenizer", "teacher", "student", "both"),
        default="both",
        help="which one (default: both teacher and student; of a one-pass student the teacher)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the snapshot of a stopped training"
    )
    parser.add_argument(
        "--restart", action="store_true", help="train again what is there, finished or not"
    )


def run(arguments: argparse.Namespace) -> int:
    config, workspace = open_from(arguments)
    arguments.held.enter_context(workspace.locked(arguments.command))
    from deploy.cli.ending import after_models, end, quoted
    from deploy.console.progress import console
    from deploy.console.stopping import EXIT_CODES
    from deploy.stages.pretrain import pretrain, trained_models

    target = console()
    how = {"resume": arguments.resume, "restart": arguments.restart}
    files = {"teacher": workspace.teacher, "student": workspace.student_before}
    wanted = trained_models(config) if arguments.model == "both" else (arguments.model,)
    for which in wanted:
        facts = pretrain(config, workspace, which, target, **how)
        root = quoted(workspace.named)
        if "cause" in facts:
            end(
                f"{which}: stopped by {facts['cause']} after step {facts['steps']}",
                following=f"varkd pretrain {root} --model {arguments.model} --resume",
            )
            return EXIT_CODES[facts["cause"]]
        if which == "tokenizer":
            picture = workspace.tokenizer.with_suffix(".png")
            made, after = (workspace.tokenizer, picture), f"varkd tokenize {root}"
            end(_trained(facts), files=made, following=after)
        else:
            after = after_models(config, workspace) if which == wanted[-1] else None
            end(_pretrained(which, facts), files=[files[which]], following=after)
    return 0


def _pretrained(which: str, facts: dict[str, Any]) -> str:
    return (
        f"{which}: {facts['parameters']:,} parameters, loss {facts['loss']:.3f} nats/token "
        f"after {facts['steps']} steps in {facts['seconds']:.1f} s"
    )


def _trained(facts: dict[str, Any]) -> str:
    measured = {split: facts[split] for split in ("train", "test") if facts[split]}
    quality = ", ".join(f"{found['psnr']:.2f} dB on {split}" for split, found in measured.items())
    found = measured.get("test", measured["train"])
    return (
        f"tokenizer: {facts['parameters']:,} parameters, PSNR {quality}, "
        f"{found['usage']:.1%} of the codes in use, perplexity {found['perplexity']:.0f} "
        f"after {facts['steps']} steps in {facts['seconds']:.1f} s"
    )
