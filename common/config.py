"""The JSON form of frozen-dataclass configs, and the difference of two."""

import dataclasses
import enum
import functools
import inspect
import json
import operator
import os
import pathlib
import reprlib
import sys
import types
import zlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
import pydantic

from common.choices import suggestion
from common.writers import json_number

Config = TypeVar("Config")


def to_dict(config: Any) -> dict[str, Any]:
    """Turn a config into JSON-able dictionaries that are the same in every process.

    The class of each dataclass stands under "class". Arrays are named by a digest; functions by
    module and name, with the arguments of a `functools.partial` and what a local function captured.
    Such a config has no way back from JSON.

    Raises:
      ValueError: naming the field, for a value that another process could not recognise.
    """
    try:
        form: dict[str, Any] = _form(config, "")
    except RecursionError:
        raise ValueError("the config contains itself") from None
    return form


def _form(value: Any, where: str) -> Any:
    """Return the JSON form of the value under the key `where`."""

    def form(part: Any, key: object) -> Any:
        return _form(part, f"{where}.{key}".removeprefix("."))

    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: form(getattr(value, f.name), f.name) for f in dataclasses.fields(value)}
        return {"class": f"{type(value).__module__}.{type(value).__qualname__}", **fields}
    match value:
        case enum.Enum():  # before str and int, which some are
            return _form(value.value, where)
        case None | bool() | int() | str():
            return value
        case float():
            return json_number(value)
        case Mapping():
            return {str(_form(key, where)): form(part, key) for key, part in value.items()}
        case tuple() | list():
            return [form(part, i) for i, part in enumerate(value)]
        case set() | frozenset():
            return sorted((_form(part, where) for part in value), key=json.dumps)
        case os.PathLike():
            return os.fspath(value)
        case bytes() | complex() | range():
            return repr(value)
        case np.generic():
            return _form(value.item(), where)
        case np.ndarray() | jax.Array() if _has_bits(value):
            digest = zlib.crc32(np.ascontiguousarray(value).tobytes())
            return f"array of {value.dtype}{list(value.shape)}, crc32 {digest:08x}"
        case np.dtype():
            return value.name
        case type() if isinstance(getattr(value, "dtype", None), np.dtype):  # jnp.float32
            return np.dtype(value).name
        case type() if issubclass(value, np.generic):
            return np.dtype(value).name
        case types.ModuleType():
            return value.__name__
        case functools.partial(func=function, args=args, keywords=keywords):
            parts = {"args": args, "keywords": keywords}
            return {"partial": _form(function, where), **{k: form(v, k) for k, v in parts.items()}}
        case types.MethodType(__func__=function, __self__=owner):
            return {"method": _form(function, where), "of": form(owner, "of")}
        case _ if _is_importable(value):
            return {"function": f"{value.__module__}.{_name(value)}"}
        case types.FunctionType(__name__=name) if name != "<lambda>":
            # Made inside another function, as optax's schedules are.
            name = f"{value.__module__}.{value.__code__.co_qualname}"
            return {"function": name, "captured": form(_captured(value), "captured")}
    what = "a lambda" if _name(value).endswith("<lambda>") else reprlib.repr(value)
    raise ValueError(
        f"{where or 'the config'} is {what}, by which no resumed run could tell whether the config "
        "has changed; use numbers, text, arrays, tuples, frozen dataclasses, or a function with a "
        "name (`def`)"
    )


def _has_bits(array: np.ndarray | jax.Array) -> bool:
    """Whether an array holds numbers, and neither Python objects nor random keys."""
    return not (jax.dtypes.issubdtype(array.dtype, jax.dtypes.extended) or array.dtype.hasobject)


def _name(value: Any) -> str:
    return str(getattr(value, "__qualname__", None) or getattr(value, "__name__", ""))


def _is_importable(value: Any) -> bool:
    """Whether a function or class is what its module holds under its name."""
    found: Any = sys.modules.get(getattr(value, "__module__", None) or "")
    for part in _name(value).split("."):
        found = getattr(found, part, None)
    return found is value


def _captured(function: types.FunctionType) -> dict[str, Any]:
    """Return the values that a local function got where it was made: variables and defaults."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    parameters = inspect.signature(function, follow_wrapped=False).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {name: cell.cell_contents for name, cell in cells} | defaults


def to_json(config: Any) -> str:
    """Write a config as indented JSON."""
    return json.dumps(to_dict(config), indent=2)


def from_json(kind: type[Config], text: str) -> Config:
    """Read a config of the dataclass `kind`, e.g. `Experiment[MyTask]`.

    Raises:
      ValueError: for text that is not JSON, an unknown key (with the nearest known one), a missing
        key, a value of the wrong type, or a function: a file's word imports nothing.
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
        problems = [_problem(e["loc"], e["msg"], data) for e in error.errors()]
        raise ValueError("; ".join(dict.fromkeys(problems))) from None
    known = flatten(without_class(to_dict(config)))
    for key in flatten(data):
        if key not in known:
            raise ValueError(f"unknown config key {key!r}; {suggestion(key, known)}")
    return config


def _problem(keys: tuple[int | str, ...], message: str, data: Any) -> str:
    """Say what is wrong with the value under `keys`, which may go on beyond the data."""
    for i, key in enumerate((*keys, None)):
        if isinstance(data, dict) and not {"function", "partial", "method"}.isdisjoint(data):
            where = ".".join(map(str, keys[:i]))
            return (
                f"{where} is a function ({json.dumps(data)}), which cannot be read from JSON: "
                "use the config file of the run"
            )
        try:
            data = data[key]
        except (KeyError, IndexError, TypeError):  # the member of a union, or a key that lacks
            break
    return f"{'.'.join(map(str, keys)) or 'config'}: {message}"


def map_text(config: Any, change: Callable[[str], str]) -> Any:
    """Apply `change` to all texts and paths of a config, at any depth."""

    def recur(value: Any) -> Any:
        new: Any
        match value:
            case str():
                new = change(value)
                return value if new == value else new
            case pathlib.Path():
                new = pathlib.Path(change(str(value)))
                return value if new == value else new
            case tuple() | list() if type(value) in (tuple, list):
                new = [recur(part) for part in value]
                return value if all(map(operator.is_, new, value)) else type(value)(new)
            case Mapping():
                new = {key: recur(part) for key, part in value.items()}
                return value if all(new[key] is value[key] for key in value) else new
            case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
                old = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
                new = {key: part for key, v in old.items() if (part := recur(v)) is not v}
                return dataclasses.replace(value, **new) if new else value
            case _:
                return value

    return recur(config)


def expand_user(config: Any) -> Any:
    """Expand `~` at the start of all paths of a config, as a shell does."""

    def expand(text: str) -> str:
        return os.path.expanduser(text) if text.partition("/")[0] == "~" else text

    return map_text(config, expand)


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
    # 1 is 1.0 to a setting, but it is not True.
    return {
        key: (x, y)
        for key, (x, y) in pairs.items()
        if x != y or isinstance(x, bool) != isinstance(y, bool)
    }


def refuse_changes(
    before: Mapping[str, Any], now: Mapping[str, Any], *, what: str, advice: str
) -> None:
    """Refuse to go on with what was made from another record; both are plain JSON.

    Raises:
      ValueError: with what it is, the keys that differ, and the advice.
    """
    # Through JSON, so that tuples and lists are the same.
    if changed := diff(dict(before), json.loads(json.dumps(now))):
        how = "; ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in changed.items())
        raise ValueError(f"{what} with other settings ({how}); {advice}")
