"""Fit the tokenizer on the training images, or load it, and encode every split; on Ray.

Published codes ([tokens] kind = "llamagen_codes" or "arpg_codes") are read instead of images.
Interrupted, the command goes on after its finished parts. Writes tokenizer.safetensors and
tokens/{train,test}.parquet into the run folder.

For example:
  varkd tokenize cifar10 images.train=data/train.parquet images.test=data/test.parquet
"""

import argparse

from deploy.cli.arguments import add_config, add_local, open_from

INTERRUPTED = "the same command goes on after the parts that are finished"


def configure(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    add_local(parser)


def run(arguments: argparse.Namespace) -> int:
    config, workspace = open_from(arguments)
    arguments.held.enter_context(workspace.locked(arguments.command))
    from deploy.cli.ending import after_tokens, end
    from deploy.console.progress import console
    from deploy.stages.tokenize import tokenize

    target = console()
    facts = tokenize(config, workspace, target, local=arguments.local)
    views = f" with {facts['variants']} variants each" if facts["variants"] > 1 else ""
    quality = "" if facts["psnr"] is None else f" (PSNR {facts['psnr']:.1f} dB)"
    tokens = [path for path in (workspace.train_tokens, workspace.test_tokens) if path.exists()]
    end(
        f"tokens of {facts['images']:,} images{views}{quality}",
        files=[workspace.tokenizer, *tokens],
        following=after_tokens(config, workspace),
    )
    return 0
