"""Pictures in class folders and in Parquet tables, each told from the others by its red."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from common.images.config import Split
from common.images.opening import ImagesConfig, open_images


def picture(value):
    return Image.new("RGB", (8, 8), (value, 0, 255 - value))


def png(value):
    data = io.BytesIO()
    picture(value).save(data, "PNG")
    return data.getvalue()


def settings(train, kind="folder", **changes):
    options = {"kind": kind, "train": train, "size": 8, "channels": 3, **changes}
    return ImagesConfig.model_validate(options)


def opened(train, kind="folder", split: Split = "train", **changes):
    return open_images(settings(train, kind, **changes), split)


def reds(source):
    return source.pixels()[:, 0, 0, 0].tolist()


def draw(root, *names, suffix=".png"):
    """Pictures whose red tells them apart: 10 * class + number."""
    for row, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(2):
            picture(10 * row + number).save(root / name / f"{number}{suffix}")
    return root


def summary(source):
    return source.found.lines(source.name)[0]


def table(path, rows, image="image", label="label", kind=None, label_type=None, **extra):
    """rows: (bytes, path, label)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = kind or pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    both = [{"bytes": data, "path": place} for data, place, _ in rows]
    if not pa.types.is_struct(kind):
        both = [one["bytes"] if pa.types.is_binary(kind) else one["path"] for one in both]
    columns = {image: pa.array(both, kind)}
    columns[label] = pa.array([value for *_, value in rows], label_type)
    pq.write_table(pa.table(columns | extra), path)
    return path


def rows_of(*labels, first=0):
    return [(png(first + number), None, label) for number, label in enumerate(labels)]
