"""Named random streams: fold in the name, then the step.

A stream depends on its own name, the seed and the step alone. Adding a stream, or drawing twice
from one, never shifts another.
"""

import dataclasses
import zlib

import jax
from jax import Array
from jaxtyping import Key


def stream(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """Derive the key of the stream `name` from a typed key."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rngs:
    """The random streams of one microbatch of one step: `rngs("dropout")` is a typed key."""

    key: Array
    """Typed key of the run."""
    step: Array
    """Optimizer step, int32."""
    microbatch: Array | int = 0
    """Index of the microbatch within the step."""

    def __call__(self, name: str) -> Key[Array, ""]:
        """Return the key of the stream `name` at this step and microbatch."""
        key = jax.random.fold_in(stream(self.key, name), self.step)
        return jax.random.fold_in(key, self.microbatch)
