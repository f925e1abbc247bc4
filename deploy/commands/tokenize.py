"""Fit the tokenizer on the training images and encode them.

Writes tokenizer.safetensors and tokens/{train,test}.parquet into the run folder.
"""

import argparse

from deploy.arguments import add_config, open_from


def configure(parser: argparse.ArgumentParser) -> None:
    add_config(parser)


def run(arguments: argparse.Namespace) -> int:
    config, workspace = open_from(arguments)
    from deploy.progress import console
    from deploy.stages import tokenize

    target = console()
    facts = tokenize(config, workspace, target)
    target.print(
        f"{facts['images']} images encoded (PSNR {facts['psnr']:.1f} dB) in {workspace.root}"
    )
    return 0
