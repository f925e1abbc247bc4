"""Write a config for your own images: sizes, models and steps that suit them and a laptop.

Looks at the images first: a folder of class folders or Parquet files, with folders train and test
in it or without. Every choice has its reason beside it. Without images it takes scikit-learn's
digits. Nothing is overwritten.

For example:
  varkd init photos/
  varkd init photos/train.parquet --to photos.toml
"""

import argparse
from pathlib import Path

import shtab

from deploy.cli.arguments import complete, path_option


def configure(parser: argparse.ArgumentParser) -> None:
    images = parser.add_argument(
        "images", type=path_option, nargs="?", help="folder of class folders, or Parquet"
    )
    complete(images, shtab.FILE)
    target = parser.add_argument("--to", type=path_option, help="the config (default: <name>.toml)")
    complete(target, shtab.FILE)


def run(arguments: argparse.Namespace) -> int:
    import tomllib

    from common.config.schema import validate
    from common.errors import InputError
    from common.files.atomic import unwritable
    from deploy.cli.ending import end, quoted
    from deploy.cli.first_config import write_config
    from deploy.cli.survey import survey
    from deploy.config import RunConfig
    from deploy.console.progress import busy, console
    from deploy.layout import check_layout

    check_layout()
    path = arguments.to or Path(f"{_name(arguments.images)}.toml")
    if path.exists():
        raise InputError(f"{path}: is there already; choose another name with --to")
    with busy(console(), f"looking at {arguments.images or 'the digits'}"):
        found = survey(arguments.images)
    text = write_config(found, quoted(path))
    validate(RunConfig, tomllib.loads(text), source=str(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(f"{path}: is there already; choose another name with --to") from None
    except OSError as error:
        raise unwritable(path, error) from error
    test = f", {found.test_images:,} held out" if found.test_images else ""
    end(
        f"{found.images:,} images of {len(found.classes):,} classes{test}",
        files=[path],
        following=f"varkd tokenize {quoted(path)}",
    )
    return 0


def _name(images: Path | None) -> str:
    """Of the folder that holds the images, not of its `train`."""
    if images is None:
        return "digits"
    name = images.resolve()
    generic = {"train", "training", "data", "images"}
    parts = [part for part in (name.stem, *(p.name for p in name.parents)) if part]
    chosen = next((part for part in parts if part.lower() not in generic), "images")
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in chosen) or "images"
