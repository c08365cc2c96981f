"""The README's example of Taylor coefficients, run as a reader would."""

import pathlib
import re

import numpy as np

README = pathlib.Path(__file__).parents[2] / "README.md"


def test_the_readme_differentiates_a_network():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    example = next(block for block in blocks if "taylor.derivatives" in block)
    # The tests run in double precision already; the switch itself would outlast this test.
    switch = [line for line in example.splitlines() if "jax_enable_x64" in line]
    assert len(switch) == 1
    names: dict = {}
    exec(compile(example.replace(switch[0], ""), "README.md", "exec"), names)
    assert names["fourth"].shape == (1000, 3876)
    assert names["fourth"].dtype == np.float64
    assert np.abs(names["hessian"]).max() > 0
