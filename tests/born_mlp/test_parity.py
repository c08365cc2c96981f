"""The Taylor coefficients against torch, which shares no code with us."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from born_mlp import taylor
from born_mlp.mlp import MLP

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("activation", ["tanh", "gelu", "silu", "softplus", "sigmoid"])
def test_derivatives_equal_those_of_torch(activation):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    functions = {
        "tanh": torch.tanh,
        "gelu": functional.gelu,
        "silu": functional.silu,
        "softplus": functional.softplus,
        "sigmoid": torch.sigmoid,
    }
    mlp = MLP(in_features=3, hidden=(6, 5), activation=activation)
    params = mlp.init(jax.random.key(1), gain=1.5, dtype=jnp.float64)
    point = np.array([0.3, -0.7, 0.2])
    weights = [
        (torch.tensor(np.array(p["kernel"])), torch.tensor(np.array(p["bias"]))) for p in params
    ]

    def network(x):
        for kernel, bias in weights[:-1]:
            x = functions[activation](x @ kernel + bias)
        kernel, bias = weights[-1]
        return (x @ kernel + bias)[0]

    reference = torch.func.grad(network)
    for order in range(1, 5):
        ours = taylor.derivative(mlp, params, jnp.asarray(point), order, packed=False)
        theirs = reference(torch.tensor(point)).detach().numpy()
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12 * np.abs(theirs).max())
        reference = torch.func.jacfwd(reference)
