"""Parameters that a run takes over from a checkpoint of another run."""

import re
import textwrap
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from orbax.checkpoint import v1 as ocp

from common import distributed
from common.checkpoint import checksums, reading_alone
from common.files import PathLike, absolute
from common.task import Params
from common.tree import named_leaves, path_name


def take_parameters(params: Params, path: PathLike, patterns: Sequence[str]) -> Params:
    """Replace parameters by those of a checkpoint, the averaged ones where they are kept.

    The checkpoint may be of another model and from other devices: it must hold a parameter of the
    same name and shape for each one that is taken. To be called by all processes.

    Args:
      params: parameters on the devices.
      path: work folder of a run, whose newest checkpoint is read, or one checkpoint.
      patterns: regular expressions of the whole names to take; the others are left as they are.

    Returns:
      Parameters in the types and layout of `params`.

    Raises:
      ValueError: if a pattern matches no parameter; if there is no checkpoint, or it cannot be
        read; if it lacks a parameter or has it in another shape, naming all of these.
    """
    wanted = _select(params, patterns)
    checkpoint = _find(path)
    try:
        recorded = ocp.metadata(checkpoint).metadata
        state = recorded["state"]
        field = "params" if state.get("ema") is None else "ema"
        there = dict(named_leaves(state[field]))
    except Exception as error:  # Orbax raises many types for a torn or foreign checkpoint.
        raise _unreadable(checkpoint, repr(error)) from error
    wrong = [
        f"{name}: {tuple(there[name].shape) if name in there else 'missing'}, expected {leaf.shape}"
        for name, leaf in wanted.items()
        if name not in there or tuple(there[name].shape) != leaf.shape
    ]
    if wrong:
        raise ValueError(
            f"start_from: parameters of {checkpoint} do not fit; leave them out by "
            "start_from_parameters, or change the model:\n  " + "\n  ".join(wrong)
        )

    def abstract(key: Any, leaf: Any) -> Any:
        name = path_name(key)
        sharding: Sharding = NamedSharding(mesh, PartitionSpec())
        if name.startswith(prefix) and name.removeprefix(prefix) in wanted:
            sharding = wanted[name.removeprefix(prefix)].sharding
        elif name != "checksums":
            return ocp.PLACEHOLDER  # is not read
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    mesh, prefix = jax.tree.leaves(params)[0].sharding.mesh, f"state/{field}/"
    try:
        with reading_alone():
            read = ocp.load(checkpoint, jax.tree_util.tree_map_with_path(abstract, recorded))
    except Exception as error:
        raise _unreadable(checkpoint, str(error) or repr(error)) from error
    found = {name: leaf for name, leaf in named_leaves(read["state"][field]) if name in wanted}
    # The sums are in the order of a state whose structure is not known here.
    written = set(np.asarray(read["checksums"]).tolist())
    summed = zip(found, np.asarray(checksums(list(found.values()))).tolist(), strict=True)
    if torn := [name for name, total in summed if total not in written]:
        raise _unreadable(checkpoint, f"not what was written: {', '.join(torn)}")

    def take(key: Any, leaf: Array) -> Array:
        name = path_name(key)
        return found[name].astype(leaf.dtype) if name in found else leaf

    return jax.tree_util.tree_map_with_path(take, params)


def _select(params: Params, patterns: Sequence[str]) -> dict[str, Array]:
    named = dict(named_leaves(params))
    wanted: dict[str, Array] = {}
    for pattern in patterns:
        try:
            matching = {name: leaf for name, leaf in named.items() if re.fullmatch(pattern, name)}
        except re.error as error:
            raise ValueError(
                f"start_from_parameters: {pattern!r} is not a regular expression: {error}"
            ) from None
        if not matching:
            raise ValueError(
                f"start_from_parameters: {pattern!r} matches no parameter; the names are: "
                + ", ".join(named)
            )
        wanted |= matching
    return wanted


def _find(path: PathLike) -> epath.Path:
    """Return the checkpoint at a path: itself, or the newest one of a work folder."""
    folder = absolute(path)
    saved = folder / "checkpoints"
    steps = [int(p.name) for p in saved.iterdir() if p.name.isdigit()] if saved.is_dir() else []
    candidates = [saved / str(step) for step in sorted(steps, reverse=True)] or [folder]
    found = next((str(c) for c in candidates if (c / "_CHECKPOINT_METADATA").exists()), None)
    found = distributed.agree(found)  # that run may be going on
    if found is None:
        raise ValueError(
            f"start_from: {folder} is neither the work folder of a run with checkpoints nor a "
            "checkpoint, such as runs/a/checkpoints/500"
        )
    return epath.Path(found)


def _unreadable(checkpoint: epath.Path, reason: str) -> ValueError:
    return ValueError(
        f"start_from: {checkpoint} cannot be read: {textwrap.shorten(reason, 200)}; "
        "name another checkpoint"
    )
