"""The README's example, run as a reader would, and a Flax NNX model through the core."""

import dataclasses
import pathlib
import re

import jax.numpy as jnp
import numpy as np
from flax import nnx

from common import ArrayData, Experiment, LogConfig, Mean, OptimConfig, Task, train

README = pathlib.Path(__file__).parents[2] / "README.md"


def test_the_readme_trains_a_task_of_the_readers_own():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    example = next(block for block in blocks if "class Line(Task)" in block)
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    found = np.asarray(names["result"].params["slope"])
    np.testing.assert_allclose(found, [1, 2, 3], atol=0.01)


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(3, 16, rngs=rngs)
        self.out = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(jnp.tanh(self.hidden(x)))[:, 0]


@dataclasses.dataclass(frozen=True)
class NnxTask(Task):
    """An NNX model: split once into arrays, merged inside the traced loss."""

    def init(self, key):
        return nnx.to_pure_dict(nnx.state(Net(nnx.Rngs(key))))

    def loss(self, params, batch, rngs):
        graph, state = nnx.split(nnx.eval_shape(lambda: Net(nnx.Rngs(0))))
        nnx.replace_by_pure_dict(state, params)
        error = nnx.merge(graph, state)(batch["x"]) - batch["y"]
        return {"loss": Mean.of(error**2)}

    def data(self, *, batch_size, seed):
        x = np.random.default_rng(0).normal(size=(512, 3)).astype(np.float32)
        return ArrayData({"x": x, "y": x.sum(1)}, batch_size=batch_size, seed=seed)


def test_an_nnx_model_trains():
    result = train(
        Experiment(
            task=NnxTask(),
            steps=200,
            batch_size=64,
            optim=OptimConfig(learning_rate=0.02),
            log=LogConfig(every=100, progress=False),
        )
    )
    assert set(result.params) == {"hidden", "out"}
    assert result.metrics["train/loss"] < 0.1
