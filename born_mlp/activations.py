"""Activation functions with their towers of derivatives `[phi, phi', ..., phi^(m)]`.

The vertices of the diagrams are the entries of these towers. Each is written in closed form, with
one evaluation of the transcendental functions shared by all orders, and without subtracting nearly
equal numbers in either tail. Any other elementwise function gets its tower by Taylor-mode autodiff.
"""

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import jet

from common.choices import suggestion

Tower = Callable[[Array, int], list[Array]]
"""`(z, order) -> [phi(z), phi'(z), ..., phi^(order)(z)]`, each of the shape of z."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Activation:
    """An elementwise function and its derivatives of any order."""

    name: str
    """Name used in configs, figures and messages."""
    function: Callable[[Array], Array]
    """The function itself, for evaluating a network."""
    tower: Tower
    """All derivatives up to an order; prefer the method `derivatives`, which checks the order."""
    smooth: bool = True
    """Whether derivatives of order 2 and higher exist everywhere."""

    def derivatives(self, z: Array, order: int) -> list[Array]:
        """Return `[phi(z), phi'(z), ..., phi^(order)(z)]`, each of the shape and dtype of `z`.

        Differentiable in `z` to any order: the derivative of each entry is the next entry, so that
        gradients are as stable in the tails as the values.

        Raises:
            ValueError: `order` is negative, or at least 2 for an activation that is not smooth.
        """
        if order < 0:
            raise ValueError(f"the order of a derivative must be at least 0, got {order}")
        self.require_smooth(order)
        return _shift_rule(z, order, self.tower)

    def require_smooth(self, order: int) -> None:
        """Raise ValueError where derivatives of `order` do not exist everywhere."""
        if order >= 2 and not self.smooth:
            raise ValueError(
                f"activation {self.name!r} has no derivative of order {order}: its slope jumps, so "
                "Taylor coefficients of order 2 and higher vanish or are undefined; use a smooth "
                "activation such as 'gelu', 'silu', 'softplus' or 'tanh'"
            )


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _shift_rule(z: Array, order: int, tower: Tower) -> list[Array]:
    return tower(z, order)


@_shift_rule.defjvp
def _shift_rule_jvp(
    order: int, tower: Tower, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[list[Array], list[Array]]:
    values = _shift_rule(primals[0], order + 1, tower)
    return values[:-1], [slope * tangents[0] for slope in values[1:]]


def _horner(coefficients: Sequence[float], x: Array) -> Array:
    """Evaluate `sum_j coefficients[j] x^j`; the coefficients are Python numbers."""
    value = jnp.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        value = value * x + c if c else value * x
    return value


@functools.cache
def _tanh_polynomials(order: int) -> tuple[tuple[int, ...], ...]:
    """Integer `R_k` with `tanh^(k) = R_k(s)` for odd k, `t R_k(s)` for even k; `s = 1 - t^2`.

    From `t' = s` and `s' = -2 t s`.
    """
    rows: list[tuple[int, ...]] = [(1,)]
    for k in range(order):
        new = [0] * (len(rows[-1]) + 1)
        for j, c in enumerate(rows[-1]):
            new[j] -= 2 * j * c
            if k % 2 == 0:
                new[j + 1] += (2 * j + 1) * c
        while new[-1] == 0 and len(new) > 1:
            new.pop()
        rows.append(tuple(new))
    return tuple(rows)


def _tanh(z: Array, order: int) -> list[Array]:
    t = jnp.tanh(z)
    if order == 0:
        return [t]
    # 1 - t^2 would lose every digit in the tails.
    e = jnp.exp(-2 * jnp.abs(z))
    s = 4 * e / (1 + e) ** 2
    rows = _tanh_polynomials(order)
    return [t] + [
        _horner(rows[k], s) * t if k % 2 == 0 else _horner(rows[k], s) for k in range(1, order + 1)
    ]


def _sigmoid(z: Array, order: int) -> list[Array]:
    # sigmoid(z) = (1 + tanh(z / 2)) / 2, but this sum cancels for z << 0.
    tower = _tanh(z / 2, order)
    return [jax.nn.sigmoid(z)] + [tower[k] * 0.5 ** (k + 1) for k in range(1, order + 1)]


def _softplus(z: Array, order: int) -> list[Array]:
    value = [jnp.logaddexp(z, 0.0)]
    return value + _sigmoid(z, order - 1) if order else value


def _normal_cdf(z: Array, order: int) -> list[Array]:
    """Phi, its density g, and `(-1)^(k-1) He_(k-1) g` with the Hermite recurrence."""
    tower = [0.5 * jax.lax.erfc(-z * math.sqrt(0.5))]
    if order >= 1:
        tower.append(jnp.exp(-0.5 * z * z) * (1 / math.sqrt(2 * math.pi)))
    if order >= 2:
        tower.append(-z * tower[1])
    for k in range(2, order):
        tower.append(-(z * tower[k] + (k - 1) * tower[k - 1]))
    return tower


def _times_z(z: Array, tower: list[Array]) -> list[Array]:
    """Derivatives of `z s(z)`: `z s^(k) + k s^(k-1)`."""
    return [z * tower[0]] + [z * tower[k] + k * tower[k - 1] for k in range(1, len(tower))]


def _silu(z: Array, order: int) -> list[Array]:
    return _times_z(z, _sigmoid(z, order))


def _gelu(z: Array, order: int) -> list[Array]:
    return _times_z(z, _normal_cdf(z, order))


def _gelu_tanh(z: Array, order: int) -> list[Array]:
    """`z sigmoid(w(z))` with a cubic w, by the Bell recursion for a composition."""
    scale, cubic = 2 * math.sqrt(2 / math.pi), 0.044715
    outer = _sigmoid(scale * (z + cubic * z**3), order)
    inner = [
        scale * (1 + 3 * cubic * z * z),
        6 * scale * cubic * z,
        jnp.full_like(z, 6 * scale * cubic),
    ]
    # bell[n][k] = B_{n,k}(w', w'', w'''), B_{n,k} = sum_j C(n-1, j) w^(j+1) B_{n-1-j,k-1}.
    bell: list[list[Array | float]] = [[1.0]]
    for n in range(1, order + 1):
        row: list[Array | float] = [0.0]
        for k in range(1, n + 1):
            terms = [
                math.comb(n - 1, j) * inner[j] * bell[n - 1 - j][k - 1]
                for j in range(min(3, n - k + 1))
            ]
            row.append(sum(terms[1:], start=terms[0]))
        bell.append(row)
    composed = [outer[0]] + [
        sum((outer[k] * bell[n][k] for k in range(2, n + 1)), start=outer[1] * bell[n][1])
        for n in range(1, order + 1)
    ]
    return _times_z(z, composed)


def _sin(z: Array, order: int) -> list[Array]:
    sin, cos = jnp.sin(z), jnp.cos(z)
    return [(sin, cos, -sin, -cos)[k % 4] for k in range(order + 1)]


def _exp(z: Array, order: int) -> list[Array]:
    return [jnp.exp(z)] * (order + 1)


def _relu(z: Array, order: int) -> list[Array]:
    step = (z > 0).astype(z.dtype)
    return [jax.nn.relu(z), step, *[jnp.zeros_like(z)] * (order - 1)][: order + 1]


def _exact_gelu(z: Array) -> Array:
    return jax.nn.gelu(z, approximate=False)


ACTIVATIONS: dict[str, Activation] = {
    name: Activation(name=name, function=function, tower=tower, smooth=name != "relu")
    for name, function, tower in (
        ("tanh", jnp.tanh, _tanh),
        ("gelu", _exact_gelu, _gelu),
        ("gelu_tanh", jax.nn.gelu, _gelu_tanh),
        ("silu", jax.nn.silu, _silu),
        ("softplus", jax.nn.softplus, _softplus),
        ("sigmoid", jax.nn.sigmoid, _sigmoid),
        ("sin", jnp.sin, _sin),
        ("exp", jnp.exp, _exp),
        ("relu", jax.nn.relu, _relu),
    )
}
"""The activations with a closed tower, by name. `gelu` is the exact form, `gelu_tanh` the usual
approximation, which is also what `jax.nn.gelu` computes unless told otherwise."""

_NOT_SMOOTH = (
    *(jnp.abs, jax.nn.relu6, jax.nn.leaky_relu, jax.nn.elu, jax.nn.celu, jax.nn.selu),
    *(jax.nn.hard_tanh, jax.nn.hard_sigmoid, jax.nn.hard_silu),
)


@functools.cache
def polynomial(coefficients: tuple[float, ...]) -> Activation:
    """The activation `sum_j coefficients[j] z^j`, ascending, with all its derivatives."""
    if not coefficients:
        raise ValueError("a polynomial activation needs at least one coefficient")

    def tower(z: Array, order: int) -> list[Array]:
        rows = [tuple(map(float, coefficients))]
        for _ in range(order):
            rows.append(tuple(j * c for j, c in enumerate(rows[-1]))[1:] or (0.0,))
        return [_horner(row, z) for row in rows]

    return Activation(
        name=f"polynomial{coefficients}", function=lambda z: tower(z, 0)[0], tower=tower
    )


def resolve(activation: "str | Callable[[Array], Array] | Activation") -> Activation:
    """Return the `Activation` of a name, of an elementwise function, or itself.

    A function that has a closed tower under some name (`jnp.tanh`, `jax.nn.silu`, ...) gets that
    one; any other gets its tower from `jax.experimental.jet`, or from nested forward mode where
    jet cannot differentiate it. Functions from outside `jax.nn` are taken to be smooth.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name nor an elementwise function.
    """
    if isinstance(activation, Activation):
        return activation
    if isinstance(activation, str):
        if activation not in ACTIVATIONS:
            hint = suggestion(activation, ACTIVATIONS)
            raise ValueError(
                f"unknown activation {activation!r}; {hint}, or pass an elementwise function"
            )
        return ACTIVATIONS[activation]
    if not callable(activation):
        raise TypeError(
            f"an activation is a name or an elementwise function, got {type(activation).__name__}"
        )
    return _from_function(activation)


@functools.cache
def _from_function(function: Callable[[Array], Array]) -> Activation:
    for known in ACTIVATIONS.values():
        if known.function is function:
            return known
    name = getattr(function, "__name__", repr(function))
    probe = jax.ShapeDtypeStruct((2,), jnp.float32)
    if jax.eval_shape(function, probe) != probe:
        raise TypeError(
            f"activation {name!r} is not elementwise: it maps an array of shape (2,) and dtype "
            f"float32 to {jax.eval_shape(function, probe)}"
        )
    tower = functools.partial(_jet_tower, function)
    try:
        jax.eval_shape(lambda z: tower(z, 2), probe)
    # jet fails in many ways: a leaked tracer at any custom_jvp (softplus, logaddexp, relu; jax
    # issue 30352), KeyError or NotImplementedError at a primitive that has no rule.
    except Exception as error:
        warnings.warn(
            f"jax.experimental.jet cannot differentiate the activation {name!r} "
            f"({type(error).__name__}); its derivatives are taken by nested forward mode instead: "
            "as exact, but slower to compile from order 4 on",
            stacklevel=3,
        )
        tower = functools.partial(_nested_tower, function)
    return Activation(name=name, function=function, tower=tower, smooth=function not in _NOT_SMOOTH)


def _jet_tower(function: Callable[[Array], Array], z: Array, order: int) -> list[Array]:
    if order == 0:
        return [function(z)]
    series = [jnp.ones_like(z)] + [jnp.zeros_like(z)] * (order - 1)
    value, derivatives = jet.jet(function, (z,), (series,))
    return [value, *derivatives]


def _nested_tower(function: Callable[[Array], Array], z: Array, order: int) -> list[Array]:
    if order == 0:
        return [function(z)]
    lower = functools.partial(_nested_tower, function, order=order - 1)
    values, slopes = jax.jvp(lower, (z,), (jnp.ones_like(z),))
    return [values[0], *slopes]
