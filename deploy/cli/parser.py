"""The command line's grammar: `varkd COMMAND [CONFIG] [section.key=value ...] [--option ...]`.

Options and overrides stand anywhere. Whatever does not fit is refused in one sentence, with the
closest word that exists. Nothing heavy is imported here.
"""

import argparse
import difflib
import importlib
import os
import pkgutil
import sys
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any, NoReturn

import shtab

from common.files.paths import is_url
from common.files.urls import secret_in
from deploy.cli.arguments import path_or_url
from deploy.run_folder.shipped import shipped_names

ORDER = (
    "smoke",
    "init",
    "configs",
    "tokenize",
    "pretrain",
    "generate",
    "distill",
    "replay",
    "status",
    "scale",
    "stop",
    "evaluate",
    "study",
    "sample",
    "export",
    "options",
    "doctor",
)
EXAMPLE = "\n\nFor example:\n"
"""Begins the last paragraph of a command's docstring."""
COMPLETION = {
    "bash": '_varkd_configs() {{ compgen -W \'{names}\' -- "$1"; compgen -f -- "$1"; }}\n',
    "zsh": "_varkd_configs() {{ _alternative 'configs:shipped config:({names})' "
    "'files:file:_files' }}\n",
}


class Parser(argparse.ArgumentParser):
    """Options are spelled out and given once; a refusal is one sentence and exit code 2."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        self.register("action", None, Once)
        self.register("action", "store", Once)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


class Once(argparse.Action):
    """Stores a value; the second one for the same option is an error, not the one that counts."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if option_string is not None:
            seen = vars(namespace).setdefault("given", {})
            if self.dest in seen:
                parser.error(
                    f"{option_string} is given twice ({seen[self.dest]} and {values}); keep one"
                )
            seen[self.dest] = values
        setattr(namespace, self.dest, values)


class ShowVersion(argparse.Action):
    """Versions of what results depend on, read without importing it."""

    def __init__(self, option_strings: Sequence[str], dest: str, **settings: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=settings["help"])

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> None:
        from deploy.console.versions import installed, python

        others = ", ".join(f"{name} {installed(name)}" for name in ("torch", "ray"))
        sys.stdout.write(f"varkd {installed('varkd')}\npython {python()}, {others}\n")
        parser.exit(0)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The arguments of one command, with `run` as what to call."""
    words = sys.argv[1:] if argv is None else argv
    parser = build_parser()
    for why in filter(None, map(secret_in, words)):  # before anything says a word again
        parser.error(why)
    if not words:
        parser.print_help(sys.stderr)
        parser.exit(2, "\nvarkd: no command is given; begin with one of the above\n")
    children = command_parsers(parser)
    if not words[0].startswith("-") and words[0] not in children:
        hint = closest(words[0], children) or f"choose one of {', '.join(children)}"
        parser.error(f"no command called {words[0]!r}; {hint}")
    arguments, extra = parser.parse_known_args(words)
    child = children[arguments.command]
    for word in extra:
        if word.startswith("-"):
            option = word.partition("=")[0]
            hint = closest(option, child._option_string_actions)
            child.error(f"unknown option {option}" + (f"; {hint}" if hint else ""))
    if extra and not hasattr(arguments, "overrides"):
        child.error(f"unexpected {extra[0]!r}")
    # argparse ends a list of positionals at the first option; overrides may stand anywhere.
    if extra:
        arguments.overrides = [*arguments.overrides, *extra]
    _find_config(arguments, child)
    return arguments


def _find_config(arguments: argparse.Namespace, child: argparse.ArgumentParser) -> None:
    """The config may stand behind overrides as well."""
    name = "config" if hasattr(arguments, "config") else "study"
    config = getattr(arguments, name, None)
    is_named = is_url(config) or "=" not in str(config)
    if config is None or is_named or os.path.lexists(config):
        return
    plain = [word for word in arguments.overrides if is_url(word) or "=" not in word]
    if not plain:
        child.error(f"{config} is an override, but no {name} is given before or after it")
    setattr(arguments, name, path_or_url(plain[0]))
    arguments.overrides.remove(plain[0])
    arguments.overrides.insert(0, str(config))


def closest(word: str, known: Iterable[str], most: int = 1) -> str:
    """ "did you mean ...?", or nothing where no known word is near."""
    found = difflib.get_close_matches(word, list(known), most)
    return f"did you mean {' or '.join(found)}?" if found else ""


def build_parser() -> Parser:
    parser = Parser(
        prog="varkd",
        description="On-policy distillation of visual autoregressive models, on Ray.",
        epilog="New here? `varkd smoke` shows it at work; `varkd init FOLDER` writes a config for "
        "your own images.",
    )
    parser.add_argument("--version", action=ShowVersion, help="of varkd, Python, torch and ray")
    names = " ".join(shipped_names())
    preamble = {shell: text.format(names=names) for shell, text in COMPLETION.items()}
    shtab.add_argument_to(
        parser, "--print-completion", help="a script for your shell", preamble=preamble
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", title="commands"
    )
    for name, module in _commands():
        summary, _, example = (module.__doc__ or "").strip().partition(EXAMPLE)
        child = commands.add_parser(
            name,
            help=summary.splitlines()[0],
            description=summary,
            epilog=f"for example:\n{example}" if example else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.configure(child)
        interrupted = getattr(module, "INTERRUPTED", "run the same command again")
        child.set_defaults(run=module.run, interrupted=interrupted)
    return parser


def command_parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parser of every command, by name."""
    found = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(found[0].choices)


def _commands() -> list[tuple[str, ModuleType]]:
    package = importlib.import_module("deploy.commands")
    found = [module.name for module in pkgutil.iter_modules(package.__path__)]
    ordered = sorted(found, key=lambda n: (ORDER.index(n) if n in ORDER else len(ORDER), n))
    return [(name, importlib.import_module(f"deploy.commands.{name}")) for name in ordered]
