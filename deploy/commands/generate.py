"""Sample the teacher's own token dataset once, for distillation on it (SeqKD); on Ray Data.

For contexts.sources.teacher.source = "dataset". Interrupted, the command goes on after its
finished parts. Writes tokens/teacher.parquet into the run folder.

For example:
  varkd generate mine.toml     # whose [contexts.sources.teacher] has source = "dataset"
"""

import argparse

from deploy.arguments import add_config, open_from


def configure(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--local", action="store_true", help="the same code in one process, no Ray")


def run(arguments: argparse.Namespace) -> int:
    config, workspace = open_from(arguments)
    arguments.held.enter_context(workspace.locked(arguments.command))
    from deploy.generating import generate
    from deploy.progress import console

    target = console()
    facts = generate(config, workspace, target, local=arguments.local)
    done = "sampled into" if facts["fresh"] else "of this teacher were there already in"
    target.print(f"{facts['sequences']} sequences {done} {workspace.teacher_tokens}")
    return 0
