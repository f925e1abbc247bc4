"""Which columns of a Parquet file hold images and labels."""

import pyarrow as pa

from common.errors import InputError

IMAGES = ("image", "img")
LABELS = ("label",)


def image_column(schema: pa.Schema, wanted: str | None, where: str) -> str:
    """The column that is named, else image or img, else the only one that holds files.

    Raises:
        InputError: there is none, or several and none of the usual names.
    """
    fitting = [field.name for field in schema if _holds_images(field.type)]
    expected = "struct<bytes, path>, bytes or, where it is named, paths"
    if wanted is not None:
        named = wanted in schema.names and schema.field(wanted).type
        if not named or not (_holds_images(named) or _is_text(named)):
            raise _no_column("image", wanted, expected, schema, where)
        return wanted
    for name in IMAGES:
        if name in fitting or (name in schema.names and _is_text(schema.field(name).type)):
            return name
    return _only("image", fitting, expected, schema, where)


def label_column(schema: pa.Schema, wanted: str | None, where: str) -> str:
    """The column that is named, else label, else the only one of integers.

    Raises:
        InputError: there is none, or several and none of the usual names.
    """
    fitting = [field.name for field in schema if pa.types.is_integer(field.type)]
    if wanted is not None:
        if wanted not in fitting:
            raise _no_column("label", wanted, "integers", schema, where)
        return wanted
    usual = [name for name in LABELS if name in schema.names]
    if usual and usual[0] not in fitting:
        raise _no_column("label", usual[0], "integers", schema, where)
    return usual[0] if usual else _only("label", fitting, "integers", schema, where)


def _only(role: str, fitting: list[str], expected: str, schema: pa.Schema, where: str) -> str:
    if len(fitting) > 1:
        raise InputError(
            f"{where}: several columns could hold {role}s: {', '.join(fitting)}; set "
            f"images.{role}_column to one of them"
        )
    if not fitting:
        raise _no_column(role, role, expected, schema, where)
    return fitting[0]


def _no_column(role: str, name: str, expected: str, schema: pa.Schema, where: str) -> InputError:
    found = ", ".join(f"{field.name}: {field.type}" for field in schema)
    kind = "integer column" if role == "label" else "column"
    return InputError(
        f"{where}: no {kind} {name} of {expected}; found {found[:300]}; set images.{role}_column"
    )


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        fields = {
            kind.field(number).name: kind.field(number).type for number in range(kind.num_fields)
        }
        return _is_bytes(fields.get("bytes")) or ("path" in fields and _is_text(fields["path"]))
    return _is_bytes(kind)


def _is_bytes(kind: pa.DataType | None) -> bool:
    return kind is not None and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
