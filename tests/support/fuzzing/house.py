"""A finished run with every kind of file in it, small enough to be copied for each trial."""

import io
import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w
from fuzzing.damage import remove
from fuzzing.trial import Server
from PIL import Image

LLAMAGEN = {
    "kind": "llamagen", "width": 16, "depth": 1, "heads": 2, "multiple_of": 8, "dropout": 0.0,
}  # fmt: skip
CONFIG = {
    "images": {"kind": "folder", "train": "train", "size": 16, "channels": 3},
    "tokenizer": {"kind": "patch_kmeans", "patch": 4, "vocab_size": 8},
    "models": {"teacher": LLAMAGEN, "student": LLAMAGEN},
    "pretrain": {
        "teacher": {"steps": 3, "batch_size": 8},
        "student": {"steps": 2, "batch_size": 8},
    },
    "contexts": {
        "sources": {
            "data": {"ratio": 0.5},
            "student": {"ratio": 0.25},
            "teacher": {"ratio": 0.25, "source": "dataset", "sequences": 8},
        }
    },
    "rollout": {"workers": 1, "batch_size": 4},
    "objective": {"kind": "varkd", "relaxation": {"factor": 2}, "gate": {"tau": 0.001}},
    "learner": {"steps": 4, "global_batch_size": 8, "micro_batch": 8, "checkpoint_every": 2},
    "evaluate": {"samples": 20, "batch_size": 20, "classifier": {"width": 4, "steps": 5}},
    "sample": {"per_class": 2},
}
STUDY = {
    "base": "tiny.toml",
    "seeds": [0, 1],
    "curve": 1,
    "baselines": ["kd"],
    "budget": {"steps": 2},
    "guidance": {"fixed": 1.5, "sweep": [1.0]},
    "methods": {"kd": {"objective": {"kind": "kd"}}, "gkd": {"objective": {"kind": "gkd"}}},
}
BUILT = (
    ["tokenize", "tiny.toml", "--local", "--out", "run"],
    ["pretrain", "run"],
    ["generate", "run", "--local"],
    ["distill", "run", "--local"],
    ["evaluate", "run"],
    ["export", "run", "--model", "student_before", "--to", "official.pt"],
    ["study", "study.toml", "--local", "--out", "study"],
)


def build(root: Path, server: Server) -> Path:
    """Images, configs, a run with everything that commands leave, an official file, a study.

    Raises:
        RuntimeError: a command did not do on good input what it is there for.
    """
    house = root / "house"
    for number, name in enumerate(("cat", "dog")):
        (house / "train" / name).mkdir(parents=True)
        for index in range(8):
            _picture(100 * number + index).save(house / "train" / name / f"{index:03d}.png")
    _images_parquet(house / "train.parquet")
    (house / "tiny.toml").write_text(tomli_w.dumps(CONFIG))
    (house / "study.toml").write_text(tomli_w.dumps(STUDY))
    for argv in BUILT:
        done = server.run(argv, house, seconds=300)
        if done.code != 0:
            raise RuntimeError(f"varkd {' '.join(argv)} ended with {done.code}: {done.err[-2000:]}")
    return house


def copy(house: Path, root: Path) -> Path:
    """A copy whose config names files of the copy; of an earlier copy stays what is as it was."""
    target = root / "house"
    target.mkdir(exist_ok=True)
    for path in sorted(target.rglob("*"), reverse=True):
        if _look(path) != _look(house / path.relative_to(target)):
            remove(path)
    for path in sorted(house.rglob("*")):
        copied = target / path.relative_to(house)
        if os.path.lexists(copied):
            continue
        if path.is_dir() and not path.is_symlink():
            copied.mkdir()
        else:
            shutil.copy2(path, copied, follow_symlinks=False)
            if path.suffix == ".toml":
                copied.write_text(path.read_text().replace(str(house), str(target)))
    return target


def _look(path: Path) -> tuple[object, ...]:
    """What tells a file from another that was written in its place. A copied config never looks
    like its original: it is always written anew."""
    try:
        found = path.lstat()
    except OSError:
        return ()
    if stat.S_ISDIR(found.st_mode):
        return (found.st_mode,)
    if stat.S_ISLNK(found.st_mode):
        return found.st_mode, path.readlink()
    return found.st_mode, found.st_size, found.st_mtime_ns


def tree(folder: Path) -> dict[str, bytes | str]:
    """What lies in a folder: contents by relative path, links by their target."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = path.read_bytes()
        elif not path.is_dir():
            found[name] = "special"
    return found


def _picture(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return small.resize((20, 20), Image.Resampling.BICUBIC)


def _images_parquet(path: Path) -> None:
    rows = []
    for index in range(12):
        data = io.BytesIO()
        _picture(index).save(data, "PNG")
        rows.append({"bytes": data.getvalue(), "path": f"{index}.png"})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"image": pa.array(rows, kind), "label": pa.array([i % 2 for i in range(12)])}
    note = {b"huggingface": json.dumps({"info": {}}).encode()}
    pq.write_table(pa.table(columns).replace_schema_metadata(note), path)
