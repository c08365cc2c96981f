"""Weights of other libraries: tensors stored under flat keys, and the parameters they stand for.

A checkpoint is a mapping from key to `StoredTensor`, whose shape is known before it is read. A list
of `Entry` says where each parameter is in it, and serves both directions.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from jax import Array

from common.files import replacing
from common.task import Params
from common.tree import named_leaves


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor that lies in a file."""

    file: pathlib.Path
    """The file."""
    key: str
    """Its key there."""
    shape: tuple[int, ...]
    """Its shape."""
    read: Callable[[], np.ndarray]
    """Reads it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """Where one of our parameters is in a checkpoint."""

    name: str
    """Slash-joined name of the parameter."""
    keys: tuple[str, ...]
    """Key of the tensor; the key for each layer where the parameter stacks layers."""
    shape: tuple[int, ...]
    """Shape of each stored tensor; ours is a reshape of it."""
    transpose: bool = False
    """Whether the stored matrix is (outputs, inputs), as torch keeps linear maps."""
    stacked: bool = False
    """Whether the parameter has a leading axis of layers."""


def open_safetensors(path: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """List the tensors of a `.safetensors` file, or of all files that an `.index.json` names.

    Raises:
      FileNotFoundError: if a file is not there.
      ValueError: for a file that is damaged, or does not hold what the index says.
    """
    path = pathlib.Path(path)
    if path.suffix != ".json":
        return _open_file(path)
    files = read_index(path)
    opened = {name: _open_file(path.parent / name) for name in sorted(set(files.values()))}
    for key, name in files.items():
        if key not in opened[name]:
            raise ValueError(f"{path} places {key} in {name}, which does not hold it")
    return {key: opened[name][key] for key, name in files.items()}


def read_index(path: pathlib.Path) -> dict[str, str]:
    """Read the file name of each key from the index of a checkpoint in several files.

    Raises:
      ValueError: for a damaged index, or one that names files outside its own folder.
    """
    try:
        files = json.loads(path.read_text())["weight_map"]
        names = {str(key): str(name) for key, name in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is no index with a 'weight_map' of keys and files") from None
    for name in set(names.values()):
        if pathlib.PurePath(name).name != name:
            raise ValueError(f"{path} names {name!r}, which is no file of the same folder")
    return names


def _open_file(path: pathlib.Path) -> dict[str, StoredTensor]:
    try:
        # Only the header is read; the file is mapped, and kept open by the tensors' readers.
        file = safetensors.safe_open(path, framework="numpy")
        return {
            key: StoredTensor(
                file=path,
                key=key,
                shape=tuple(file.get_slice(key).get_shape()),
                read=lambda key=key: file.get_tensor(key),  # type: ignore[misc]
            )
            for key in file.keys()  # noqa: SIM118
        }
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from None


def write_safetensors(path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray]) -> None:
    """Write tensors to a file as torch libraries expect it; a crash leaves the old file."""
    with replacing(path) as draft:
        safetensors.numpy.save_file(dict(tensors), draft, metadata={"format": "pt"})


def check_keys(stored: Mapping[str, StoredTensor], expected: Iterable[str], *, where: Any) -> None:
    """Refuse a checkpoint that lacks a key, or has one too many.

    Raises:
      ValueError: with all such keys.
    """
    expected = set(expected)
    missing, surplus = sorted(expected - set(stored)), sorted(set(stored) - expected)
    problems = [
        f"{what} {len(keys)} key(s): {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}"
        for what, keys in (("lacks", missing), ("has unknown", surplus))
        if keys
    ]
    if problems:
        raise ValueError(f"{where} {' and '.join(problems)}")


def load(entries: Sequence[Entry], stored: Mapping[str, StoredTensor], like: Params) -> Params:
    """Read parameters from a checkpoint, after all shapes have been checked.

    Args:
      entries: one for each parameter.
      stored: the checkpoint, with all of the entries' keys.
      like: the parameters, or their shapes.

    Returns:
      The parameters: float32 arrays on the host, in the tree of `like`.

    Raises:
      ValueError: if a tensor does not have the entry's shape.
    """
    shapes = {name: leaf.shape for name, leaf in named_leaves(like)}
    for entry in entries:
        for tensor in (stored[key] for key in entry.keys):
            if tensor.shape != entry.shape:
                raise ValueError(
                    f"{tensor.file}: {tensor.key} has shape {tensor.shape}, but "
                    f"{entry.name} {shapes[entry.name]} of the model needs {entry.shape}"
                )
    loaded = {}
    for entry in entries:
        # Filled layer by layer, so that no more than one tensor is in memory twice.
        array = np.empty(shapes[entry.name], np.float32)
        for target, key in zip(array if entry.stacked else [array], entry.keys, strict=True):
            values = stored[key].read()
            target[...] = (values.T if entry.transpose else values).reshape(target.shape)
        loaded[entry.name] = array
    return jax.tree.unflatten(jax.tree.structure(like), [loaded[name] for name in shapes])


def export(entries: Sequence[Entry], params: Any) -> dict[str, np.ndarray]:
    """Turn parameters into the tensors of a checkpoint, by key."""
    arrays: dict[str, Array] = dict(named_leaves(params))
    tensors = {}
    for entry in entries:
        array = np.asarray(jax.device_get(arrays[entry.name]))
        for layer, key in zip(array if entry.stacked else [array], entry.keys, strict=True):
            shape = entry.shape[::-1] if entry.transpose else entry.shape
            tensor = layer.reshape(shape)
            tensors[key] = np.ascontiguousarray(tensor.T if entry.transpose else tensor)
    return tensors
