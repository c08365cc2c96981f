"""S-wave scattering at zero energy: the target functions of the Born-series experiment.

Units: `x = r / rho` with the range `rho`, `V(r) = -hbar^2 / (2 mu rho^2) U(x)` and `U = 0` for
`x > 1`, so that `u'' = -U u`, `u(0) = 0`, `U > 0` attracts, and lengths come in units of `rho`.
"""
