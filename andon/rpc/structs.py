"""Decides how JSON values travel in ``google.protobuf.Struct``, which knows only one kind of number.

A number without a fraction comes back as an int, as JSON writers mean it: configurations hold counts, and
code that reads them (Hugging Face's above all) refuses 12.0 layers. Where a fraction is meant, an int is as
good.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct


def struct_from_values(values: Mapping[str, Any]) -> Struct:
    """JSON values as a Struct; raises ValueError for what JSON cannot say."""
    struct = Struct()
    try:
        json_format.ParseDict(dict(values), struct)
    except json_format.ParseError as error:
        raise ValueError(str(error)) from error
    return struct


def values_from_struct(struct: Struct) -> dict[str, Any]:
    """A Struct as JSON values."""
    return {name: _value(value) for name, value in json_format.MessageToDict(struct).items()}


def _value(value: Any) -> Any:  # JSON, to any depth
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: _value(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_value(inner) for inner in value]
    return value
