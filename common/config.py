"""The JSON form of frozen-dataclass configs, and the difference of two."""

import dataclasses
import json
import zlib
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import pydantic

from common.choices import suggestion
from common.task import Task

Config = TypeVar("Config")


def to_dict(config: Any) -> dict[str, Any]:
    """Turn a config into JSON-able dictionaries, with the class of each task under "class"."""

    def convert(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {f.name: convert(getattr(value, f.name)) for f in dataclasses.fields(value)}
            if isinstance(value, Task):
                return {"class": f"{type(value).__module__}.{type(value).__qualname__}", **fields}
            return fields
        if isinstance(value, Mapping):
            return {str(k): convert(v) for k, v in value.items()}
        if isinstance(value, (tuple, list)):
            return [convert(v) for v in value]
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        # What follows is named for the record; such a config has no way back from JSON.
        if isinstance(value, np.ndarray):
            digest = zlib.crc32(np.ascontiguousarray(value).tobytes())
            return f"array of {value.dtype}{list(value.shape)}, crc32 {digest:08x}"
        return getattr(value, "__qualname__", None) or repr(value)

    return convert(config)


def to_json(config: Any) -> str:
    """Write a config as indented JSON."""
    return json.dumps(to_dict(config), indent=2)


def from_json(kind: type[Config], text: str) -> Config:
    """Read a config of the dataclass `kind`, e.g. `Experiment[MyTask]`.

    Raises:
      ValueError: for text that is not JSON, an unknown key (with the nearest known one), a missing
        key, or a value of the wrong type.
    """

    def without_class(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: without_class(v) for k, v in value.items() if k != "class"}
        return [without_class(v) for v in value] if isinstance(value, list) else value

    try:
        data = without_class(json.loads(text))
        config = pydantic.TypeAdapter(kind).validate_python(data)
    except json.JSONDecodeError as error:
        raise ValueError(f"not a JSON config: {error}") from None
    except pydantic.ValidationError as error:
        problems = [
            f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors()
        ]
        raise ValueError("; ".join(problems)) from None
    known = flatten(without_class(to_dict(config)))
    for key in flatten(data):
        if key not in known:
            raise ValueError(f"unknown config key {key!r}; {suggestion(key, known)}")
    return config


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries and lists into `{"optim.groups.0.pattern": value}`."""
    items: Any
    if isinstance(tree, dict) and tree:
        items = tree.items()
    elif isinstance(tree, list) and tree:
        items = enumerate(tree)
    else:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def diff(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return `{dotted key: (old, new)}` wherever two configs in dictionary form differ."""
    absent = "(absent)"
    a, b = flatten(old), flatten(new)
    keys = list(a) + [key for key in b if key not in a]
    pairs = {key: (a.get(key, absent), b.get(key, absent)) for key in keys}
    return {key: (x, y) for key, (x, y) in pairs.items() if x != y or type(x) is not type(y)}
