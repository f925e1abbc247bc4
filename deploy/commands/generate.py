"""Sample the teacher's own token dataset once, for distillation on it (SeqKD); on Ray.

For contexts.sources.teacher.source = "dataset". Interrupted, the command goes on after its
finished parts. Writes tokens/teacher.parquet into the run folder.

For example:
  varkd generate mine.toml     # whose [contexts.sources.teacher] has source = "dataset"
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
    from deploy.cli.ending import end, quoted
    from deploy.console.progress import console
    from deploy.stages.generate import generate

    target = console()
    facts = generate(config, workspace, target, local=arguments.local)
    done = "sampled" if facts["fresh"] else "of this teacher were there already"
    if "acceptance" in facts:
        done += f", for which {facts['acceptance']:.0%} of the draft's guesses were kept"
    local = " --local" if arguments.local else ""
    end(
        f"{facts['sequences']:,} sequences {done}",
        files=[workspace.teacher_tokens],
        following=f"varkd distill {quoted(workspace.named)}{local}",
    )
    return 0
