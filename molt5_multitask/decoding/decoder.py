"""Decoding of any number of inputs in batches of few shapes."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from common.mesh import (
    BATCH_AXES,
    MeshConfig,
    await_simulated,
    make_mesh,
    parameter_shardings,
    place,
)
from common.task import Params
from molt5_multitask.config import EOS, T5Config
from molt5_multitask.decoding.search import Hypotheses, Search
from molt5_multitask.model import bind

FIRST_BUCKET = 32
"""Shortest row of inputs."""
FIRST_CACHE = 64
"""Tokens that the cache holds at first."""


class Decoded(NamedTuple):
    """What was decoded of one input, best first."""

    ids: list[list[int]]
    """Generated ids, up to eos where it was written, without it."""
    scores: list[float]
    """Their scores, see `Hypotheses`."""


class Decoder:
    """A model with a search, compiled once for each bucket of input lengths.

    Batches have a fixed number of rows, and inputs are padded to the next power of two. The cache
    starts small and doubles when it is full, so that short outputs do not pay for `max_length`;
    a size is compiled when it is first needed. A batch stops when all of its examples are done.
    """

    def __init__(
        self,
        config: T5Config,
        params: Params,
        search: Search,
        *,
        max_length: int = 512,
        rows: int = 16,
        dtype: str = "float32",
        mesh: Mesh | None = None,
    ) -> None:
        """Send the parameters to the devices.

        Args:
          config: architecture.
          params: parameters.
          search: beam search or sampling.
          max_length: most tokens of an output, the start token and eos included.
          rows: rows of a batch, a multiple of the mesh's data * fsdp devices.
          dtype: type of parameters and activations; scores are float32 in any case.
          mesh: devices over which rows and parameters are split; the process's first device by
            default.

        Raises:
          ValueError: for a maximum length below 2, or rows that do not divide over the mesh.
        """
        if max_length < 2:
            raise ValueError(f"max_length = {max_length} must be 2 at least: start token and eos")
        self._mesh = make_mesh(MeshConfig(), jax.local_devices()[:1]) if mesh is None else mesh
        devices = math.prod(self._mesh.shape[axis] for axis in BATCH_AXES)
        if rows % devices:
            raise ValueError(
                f"rows = {rows} must be a multiple of the {devices} data * fsdp devices"
            )
        self._config, self._search, self.rows = config, search, rows
        self._length = max_length - 1
        self._dtype = dtype
        self._step_layers = jax.jit(lambda params: bind(config, params).step_layers())
        self._begin = jax.jit(self._begin_batch)
        self._advance = jax.jit(self._advance_batch, donate_argnums=2)
        self._grow = jax.jit(lambda cache, tokens: cache.grow(tokens), static_argnums=1)
        self._result = jax.jit(search.result)
        self.use(params)

    def use(self, params: Params) -> None:
        """Decode with these parameters from now on; nothing is compiled anew."""
        cast = jax.tree.map(lambda x: np.asarray(x).astype(self._dtype, copy=False), params)
        shardings = parameter_shardings(self._config.sharding_rules(), cast, self._mesh)
        self._params = jax.device_put(cast, shardings)
        self._layers = self._step_layers(self._params)

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        parts: tuple[Any, ...] = (self._begin, self._advance, self._grow, self._result)
        return sum(part._cache_size() for part in parts)

    def __call__(
        self, sources: Sequence[Sequence[int]], *, first_number: int = 0
    ) -> Iterator[tuple[int, Decoded]]:
        """Decode inputs, longest first.

        Args:
          sources: token ids of each input, eos included.
          first_number: the number of the first input; random draws depend on the numbers.

        Yields:
          The index of an input in `sources` and its result, whenever a batch is done.
        """
        order = sorted(range(len(sources)), key=lambda i: -len(sources[i]))
        for start in range(0, len(order), self.rows):
            rows = order[start : start + self.rows]
            numbers = np.zeros(self.rows, np.int32)
            numbers[: len(rows)] = np.array(rows) + first_number
            found = self.decode(*_padded([sources[i] for i in rows], self.rows), numbers)
            for i, ids, scores in zip(rows, found.ids, found.scores, strict=False):
                yield i, Decoded([_until_eos(text) for text in ids.tolist()], scores.tolist())

    def decode(
        self,
        inputs: Int[np.ndarray, "B L"],
        segments: Int[np.ndarray, "B L"],
        numbers: Int[np.ndarray, "B"],
    ) -> Hypotheses:
        """Decode one batch.

        Args:
          inputs: token ids.
          segments: 1 where there is an input, 0 at padding and in unused rows.
          numbers: number of each example, on which random draws depend.

        Returns:
          The hypotheses, on the host.
        """
        batch = place((inputs, segments, numbers), self._mesh)
        cache, state = self._wait(self._begin(self._params, *batch))
        while True:
            cache, state = self._wait(self._advance(self._params, self._layers, (cache, state)))
            if cache.tokens >= self._length or state.done.all():
                return jax.device_get(self._result(state))
            cache = self._wait(self._grow(cache, min(2 * cache.tokens, self._length)))

    def _begin_batch(self, params: Params, inputs: Any, segments: Any, numbers: Any) -> Any:
        model = bind(self._config, params)
        cache = model.init_cache(
            model.encode(inputs, segments),
            segments,
            beams=self._search.width,
            max_tokens=min(FIRST_CACHE, self._length),
        )
        unused = ~(segments > 0).any(1)
        return self._split((cache, self._search.start(numbers, length=self._length, unused=unused)))

    def _advance_batch(self, params: Params, layers: Any, carry: Any) -> Any:
        """Decode until all examples are done, or the cache or the text is full."""
        model = bind(self._config, params)
        steps = min(carry[0].tokens, self._length)

        def unfinished(carry: Any) -> Any:
            cache, state = carry
            return (cache.index < steps) & ~state.done.all()

        def step(carry: Any) -> Any:
            cache, state = carry
            logits, cache = model.decode_step(layers, cache, state.tokens)
            state = self._search.take(state, logits)
            return cache.reorder(state.parents), state

        return self._split(jax.lax.while_loop(unfinished, step, carry))

    def _split(self, tree: Any) -> Any:
        """Keep the examples, which are the first axis of all arrays, split over the devices."""
        sharding = NamedSharding(self._mesh, PartitionSpec(BATCH_AXES))
        return jax.tree.map(
            lambda x: jax.lax.with_sharding_constraint(x, sharding) if x.ndim else x, tree
        )

    def _wait(self, outputs: Any) -> Any:
        await_simulated(outputs, self._mesh)
        return outputs


def _padded(
    sources: Sequence[Sequence[int]], rows: int
) -> tuple[Int[np.ndarray, "B L"], Int[np.ndarray, "B L"]]:
    """Return ids and segments of a batch with the length of a bucket."""
    longest = max(map(len, sources))
    length = max(FIRST_BUCKET, 1 << (longest - 1).bit_length())
    inputs, segments = np.zeros((2, rows, length), np.int32)
    for row, ids in enumerate(sources):
        inputs[row, : len(ids)] = ids
        segments[row, : len(ids)] = 1
    return inputs, segments


def _until_eos(ids: list[int]) -> list[int]:
    return ids[: ids.index(EOS)] if EOS in ids else ids
