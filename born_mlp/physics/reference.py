"""Closed forms and independent ODE solutions that the recursion is checked against."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy.integrate import solve_ivp
from scipy.special import iv, jv, yv


def power_well(strength: float, exponent: float = 0.0) -> float:
    """Scattering length of `U(x) = strength * x^exponent` inside the range, by Bessel functions.

    With `nu = 1/(exponent + 2)` and `zeta = 2 nu sqrt(strength)`,
    `u = sqrt(x) J_nu(zeta x^(1/2nu))` and `a_0 = 1 - J_nu(zeta) / (sqrt(strength) J_(nu-1)(zeta))`;
    I instead of J for repulsion.
    Exponent 0 is the square well, `1 - tan k / k`, or the barrier, `1 - tanh k / k`.
    """
    if strength == 0:
        return 0.0
    nu, k = 1 / (exponent + 2), np.sqrt(abs(strength))
    bessel = jv if strength > 0 else iv
    return float(1 - bessel(nu, 2 * nu * k) / (k * bessel(nu - 1, 2 * nu * k)))


def exponential_well(strength: float, decay: float) -> float:
    """Scattering length of `U(x) = strength * exp(-x/decay)`, cut off at x = 1; strength > 0.

    `u` is the combination of `J_0` and `Y_0` of `2 decay sqrt(strength) exp(-x/2 decay)` that
    vanishes at the origin.
    """
    k = np.sqrt(strength)
    start, end = 2 * decay * k, 2 * decay * k * np.exp(-0.5 / decay)
    u = yv(0, start) * jv(0, end) - jv(0, start) * yv(0, end)
    # d/dx of a Bessel function of order 0 at `end`: minus order 1, times d(end)/dx = -end/2 decay.
    slope = (yv(0, start) * jv(1, end) - jv(0, start) * yv(1, end)) * end / (2 * decay)
    return float(1 - u / slope)


def delta_shell(strength: float, radius: float) -> float:
    """Scattering length of `U(x) = strength * delta(x - radius)`: `-s R^2 / (1 - s R)`."""
    return -strength * radius**2 / (1 - strength * radius)


def _integrate(
    derivative: Callable[[float, np.ndarray, float], np.ndarray],
    potential: Float[np.ndarray, "d"],
    start: np.ndarray,
) -> np.ndarray:
    """Integrate `y' = derivative(x, y, U)` from 0 to 1, restarting at every jump of U."""
    d = len(potential)
    y = start
    for i, strength in enumerate(potential):
        y = solve_ivp(
            derivative,
            (i / d, (i + 1) / d),
            y,
            method="DOP853",
            rtol=1e-13,
            atol=1e-15,
            args=(float(strength),),
        ).y[:, -1]
    return y


def ode_scattering_length(potential: Float[np.ndarray, "d"]) -> float:
    """Scattering length of a step potential from `u'' = -U u` by DOP853."""

    def derivative(_x: float, y: np.ndarray, strength: float) -> np.ndarray:
        return np.array([y[1], -strength * y[0]])

    u, slope = _integrate(derivative, potential, np.array([0.0, 1.0]))
    return float(1 - u / slope)


def riccati_scattering_length(potential: Float[np.ndarray, "d"]) -> float:
    """Scattering length of a step potential from `a' = -U (x - a)^2` by DOP853.

    Only for potentials that bind no state, cut off at any radius: `a` must meet no pole.
    """

    def derivative(x: float, a: np.ndarray, strength: float) -> np.ndarray:
        return -strength * (x - a) ** 2

    return float(_integrate(derivative, potential, np.zeros(1))[0])
