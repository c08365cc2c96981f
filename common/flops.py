"""Model FLOPs of a training step, counted in the traced loss and its gradient.

Counted are matrix products, convolutions included: 2mkn for (m, k) by (k, n). The backward pass is
that of the parameters that train, and what is recomputed in it counts once (model FLOPs, Chowdhery
et al., arXiv:2204.02311, appendix B). XLA's own count takes a loop for one turn of it.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from common.rng import Rngs
from common.step import StepConfig, make_gradient, make_loss
from common.task import Batch, Params, Task
from common.tree import split


def training_flops(
    task: Task, config: StepConfig, params: Params, batch: Batch, trainable: Any
) -> float:
    """Count the operations of one optimizer step over all devices, without compute.

    Args:
      task: the task.
      config: how a step is computed.
      params: shapes of all parameters.
      batch: shapes of a batch.
      trainable: which parameters train.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (params, batch))
    trained, frozen = split(shapes[0], trainable)
    loss = make_loss(task, config)

    def gradient(trained: Params, frozen: Params, batch: Batch) -> Any:
        rngs = Rngs(jax.random.key(0), jnp.zeros((), jnp.int32))

        def saving(params: Params, batch: Batch, rngs: Rngs) -> Any:
            return without_remat(lambda p, b: loss(p, b, rngs), params, batch)

        return make_gradient(saving, of="sum")(trained, frozen, batch, rngs)

    return count_flops(gradient, trained, frozen, shapes[1])


def count_flops(function: Callable[..., Any], *args: Any) -> float:
    """Count the operations of the products in a function of arrays, or of their shapes.

    A scan counts its length times, a branch as the most expensive one, and a loop whose turns are
    not known once.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def without_remat(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function whose backward pass recomputes nothing."""
    traced, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    saving = core.ClosedJaxpr(_saving(traced.jaxpr), traced.consts)
    found = core.jaxpr_as_fun(saving)(*jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shape), found)


def _saving(jaxpr: core.Jaxpr) -> core.Jaxpr:
    """Let all rematerialisation in a program save everything."""

    def mend(value: Any) -> Any:
        if isinstance(value, core.ClosedJaxpr):
            return core.ClosedJaxpr(_saving(value.jaxpr), value.consts)
        if isinstance(value, core.Jaxpr):
            return _saving(value)
        return tuple(map(mend, value)) if type(value) is tuple else value

    equations = []
    for equation in jaxpr.eqns:
        params = {name: mend(value) for name, value in equation.params.items()}
        if "prevent_cse" in params and "policy" in params:  # jax.checkpoint
            params["policy"] = jax.checkpoint_policies.everything_saveable
        equations.append(equation.replace(params=params))
    return jaxpr.replace(eqns=equations)


def _count(jaxpr: core.Jaxpr) -> float:
    return sum(map(_count_equation, jaxpr.eqns))


def _count_equation(equation: core.JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    inputs: list[Any] = [variable.aval for variable in equation.invars]
    outputs: list[Any] = [variable.aval for variable in equation.outvars]
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        lengths = [inputs[0].shape[axis] for axis in contracted]
        return 2.0 * math.prod(lengths) * outputs[0].size
    if name == "conv_general_dilated":
        kernel = inputs[1]
        features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        # An input that is spread by zeros, as in the backward pass of a stride, meets few of them.
        products = kernel.size / features / math.prod(params["lhs_dilation"])
        return 2.0 * products * outputs[0].size
    inner = [_count(jaxpr) for jaxpr in _programs(list(params.values()))]
    if name == "cond":
        return max(inner)
    times = {"scan": "length", "shard_map": "mesh"}.get(name)
    if times is None:
        return sum(inner)
    factor = params[times] if name == "scan" else params[times].size
    return factor * sum(inner)


def _programs(values: Any) -> list[core.Jaxpr]:
    found = []
    for value in values:
        if isinstance(value, core.ClosedJaxpr):
            found.append(value.jaxpr)
        elif isinstance(value, core.Jaxpr):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found += _programs(value)
    return found
