"""Random streams depend on name, step and microbatch, and on nothing else."""

import jax
import jax.numpy as jnp
import numpy as np

from common import Rngs


def bits(seed=0, step=0, microbatch=0, name="dropout") -> tuple[int, ...]:
    rngs = Rngs(jax.random.key(seed), jnp.asarray(step, jnp.int32), microbatch)
    return tuple(np.asarray(jax.random.key_data(rngs(name))).tolist())


def test_a_stream_changes_with_each_of_its_arguments_and_only_with_them():
    drawn = [bits(), bits(seed=1), bits(step=1), bits(microbatch=1), bits(name="noise")]
    assert len(set(drawn)) == len(drawn)
    assert bits() == drawn[0]


def test_drawing_from_one_stream_does_not_shift_another():
    rngs = Rngs(jax.random.key(0), jnp.zeros((), jnp.int32))
    before = jax.random.key_data(rngs("a"))
    rngs("b")
    np.testing.assert_array_equal(before, jax.random.key_data(rngs("a")))
