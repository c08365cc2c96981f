"""Tensors of a `pytorch_model.bin`, read without executing anything.

Such a file is a zip archive of raw storages and of one pickle, `data.pkl`, that says which tensor
lies where. A pickle is a program; unpickling would run it. Here its opcodes are walked by a small
interpreter that knows only what a plain state dict needs: it builds dictionaries, tuples, strings
and numbers, and *descriptions* of storages and tensors. Any other opcode or name is refused.
"""

import dataclasses
import math
import os
import pathlib
import pickletools
import shlex
import zipfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from common.nn.weights import StoredTensor

_STORAGES = {
    "torch FloatStorage": np.dtype(np.float32),
    "torch DoubleStorage": np.dtype(np.float64),
    "torch HalfStorage": np.dtype(np.float16),
    "torch BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
}
_DICT, _TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
_GLOBALS = {_DICT, _TENSOR, *_STORAGES}


@dataclasses.dataclass(frozen=True)
class _Global:
    """A name that the pickle would import."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A flat run of numbers: one member of the archive."""

    dtype: np.dtype
    key: str
    count: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_MARK = object()


class Refused(ValueError):
    """The file asks for something that a plain state dict does not need."""


def open_torch_bin(path: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """List the tensors of a file written by `torch.save(model.state_dict(), path)`.

    Raises:
      FileNotFoundError: if there is no such file.
      Refused: for a pickle with anything but tensors in it, or an archive that is not as torch
        writes it; the error names what was found, and the command that converts the file.
    """
    path = pathlib.Path(path)
    try:
        return _open(path)
    except (Refused, zipfile.BadZipFile) as error:
        convert = (
            f"import torch, safetensors.torch as s; "
            f"t = torch.load({str(path)!r}, weights_only=True, map_location='cpu'); "
            f"s.save_file({{k: v.clone().contiguous() for k, v in t.items()}}, "
            f"{str(path.with_name('model.safetensors'))!r}, metadata={{'format': 'pt'}})"
        )
        raise Refused(
            f"{path} cannot be read safely: {error}. If you trust the file, convert it once, where "
            f"torch is installed: python -c {shlex.quote(convert)}"
        ) from None


def _open(path: pathlib.Path) -> dict[str, StoredTensor]:
    if not zipfile.is_zipfile(path):
        path.stat()  # so that a file that is not there says so
        raise Refused("it is no zip archive, as torch has written since version 1.6")
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in members if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise Refused("it does not hold one 'data.pkl', as torch's archives do")
        root = pickles[0].partition("/")[0]
        order = f"{root}/byteorder"
        if order in members and archive.read(order) != b"little":
            raise Refused("its numbers are not little-endian")
        found = interpret(archive.read(pickles[0]))
    tensors = {}
    for key, tensor in found.items():
        member = members.get(f"{root}/data/{tensor.storage.key}")
        _check(key, tensor, member)
        tensors[key] = StoredTensor(
            file=path,
            key=key,
            shape=tensor.shape,
            read=lambda tensor=tensor, member=member: _read(path, member, tensor),  # type: ignore[misc]
        )
    return tensors


def _check(key: str, tensor: _Tensor, member: zipfile.ZipInfo | None) -> None:
    """Refuse a view that leaves its storage, or a storage that is not what it should be."""
    storage = tensor.storage
    if member is None:
        raise Refused(f"the storage {storage.key!r} of {key} is missing")
    if member.compress_type != zipfile.ZIP_STORED:
        raise Refused(f"the storage {storage.key!r} of {key} is compressed")
    if member.file_size != storage.count * storage.dtype.itemsize:
        raise Refused(
            f"the storage {storage.key!r} of {key} has {member.file_size} bytes, not "
            f"{storage.count} x {storage.dtype.itemsize}"
        )
    count = math.prod(list(tensor.shape))
    last = tensor.offset + sum(
        (n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
    # A view may be transposed, but not larger than its storage, as it could be by strides of zero.
    if count > storage.count or (count and last >= storage.count):
        raise Refused(
            f"{key} of shape {tensor.shape} leaves its storage of {storage.count} numbers"
        )


def _read(path: pathlib.Path, member: zipfile.ZipInfo, tensor: _Tensor) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        data = archive.read(member)
    flat = np.frombuffer(data, tensor.storage.dtype)[tensor.offset :]
    strides = [stride * flat.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides).copy()


def interpret(program: bytes) -> Mapping[str, _Tensor]:
    """Walk the opcodes of a pickled state dict.

    Raises:
      Refused: for an opcode or name that is not on the list, or a result that is no dictionary of
        tensors.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}

    def since_mark() -> list[Any]:
        start = max(i for i, item in enumerate(stack) if item is _MARK)
        items = stack[start + 1 :]
        del stack[start:]
        return items

    def pop(count: int) -> list[Any]:
        if len(stack) < count:
            raise IndexError
        items = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return items

    try:
        for opcode, argument, position in pickletools.genops(program):
            match opcode.name:
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    return _state_dict(*pop(1))
                case "MARK":
                    stack.append(_MARK)
                case "BINUNICODE" | "SHORT_BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1":
                    stack.append(argument)
                case "NONE" | "NEWTRUE" | "NEWFALSE":
                    stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_TUPLE":
                    stack.append(())
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    stack.append(tuple(pop(int(opcode.name[-1]))))
                case "TUPLE":
                    stack.append(tuple(since_mark()))
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "SETITEM":
                    key, value = pop(2)
                    _update(stack[-1], [key, value])
                case "SETITEMS":
                    items = since_mark()
                    _update(stack[-1], items)
                case "GLOBAL":
                    stack.append(_allowed(argument))
                case "STACK_GLOBAL":
                    stack.append(_allowed(" ".join(pop(2))))
                case "BINPERSID":
                    stack.append(_storage(*pop(1)))
                case "REDUCE":
                    stack.append(_call(*pop(2)))
                case "BUILD":
                    # A state dict carries the versions of its modules as an attribute: not needed.
                    (state,) = pop(1)
                    if not isinstance(stack[-1], dict) or set(state) != {"_metadata"}:
                        raise Refused(f"it sets attributes: {state!r:.80}")
                case other:
                    raise Refused(f"its pickle uses the opcode {other} at byte {position}")
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, UnicodeError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"its pickle is damaged ({type(error).__name__}: {error})") from None
    raise Refused("its pickle has no end")


def _allowed(name: Any) -> _Global:
    if name not in _GLOBALS:
        raise Refused(f"its pickle would import {name.replace(' ', '.', 1)!r}")
    return _Global(name)


def _storage(persistent: Any) -> _Storage:
    match persistent:
        case ("storage", _Global(name), str(key), str(), int(count)) if name in _STORAGES:
            return _Storage(_STORAGES[name], key, count)
    raise Refused(f"its pickle refers to {persistent!r:.80}, which is no storage of floats")


def _call(function: Any, arguments: Any) -> Any:
    match function, arguments:
        case _Global(name), () if name == _DICT:
            return {}
        case (
            _Global(name),
            (_Storage() as storage, int(offset), tuple(shape), tuple(strides), bool(), dict(), *_),
        ) if name == _TENSOR:
            numbers = (offset, *shape, *strides)
            if len(shape) == len(strides) and all(type(n) is int and n >= 0 for n in numbers):
                return _Tensor(storage, offset, shape, strides)
    raise Refused(f"its pickle would call {function!r:.60} with {arguments!r:.80}")


def _update(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict) or len(items) % 2:
        raise Refused("its pickle sets items of something that is no dictionary")
    target.update(zip(items[::2], items[1::2], strict=True))


def _state_dict(result: Any) -> Mapping[str, _Tensor]:
    if not isinstance(result, dict):
        raise Refused(f"it holds {type(result).__name__}, not a dictionary of tensors")
    for key, value in result.items():
        if not isinstance(key, str) or not isinstance(value, _Tensor):
            raise Refused(f"its entry {key!r:.60} is no tensor")
    return result
