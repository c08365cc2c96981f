"""Imports run one way: configs -> projects -> common -> libraries. Read from the syntax trees."""

import ast
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PROJECTS = ("alignment", "born_mlp", "molt5_multitask")
PACKAGES = ("common", *PROJECTS, "configs")
MAY_IMPORT = {
    "common": {"common"},
    **{project: {project, "common"} for project in PROJECTS},
    "configs": set(PACKAGES),
}
USES_TORCH = {pathlib.Path("molt5_multitask/metrics/fcd.py")}  # of the extra [fcd], when called
USES_PRIVATE_JAX = pathlib.Path("common/internals.py")
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def sources() -> list[pathlib.Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Yield the absolute name of every imported module, those inside functions included."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                parts = package.split(".")
                base = parts[: len(parts) - level + 1] if level else []
                found = ".".join([*base, *([module] if module else [])])
                # What is imported from a package may itself be a module.
                yield from (f"{found}.{alias.name}" for alias in names)
            case ast.Call(
                func=ast.Attribute(attr="import_module")
                | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name


def unpickles(tree: ast.AST) -> bool:
    """Whether some call passes `allow_pickle` as anything but the literal False."""
    return any(
        isinstance(node, ast.keyword)
        and node.arg == "allow_pickle"
        and not (isinstance(node.value, ast.Constant) and node.value.value is False)
        for node in ast.walk(tree)
    )


def violations(path: pathlib.Path, source: str) -> list[str]:
    """List what the file at `path`, relative to the root, imports or calls and must not."""
    private = ("jax._", "jaxlib._", "jax.interpreters", "jax.lib")
    package, in_nn = path.parts[0], path.parts[:2] == ("common", "nn")
    tree = ast.parse(source, filename=str(path))
    found = []
    for name in imports(tree, ".".join(path.parent.parts)):
        top = name.split(".")[0]
        if top in PACKAGES and top not in MAY_IMPORT[package]:
            found.append(f"{path} imports {name}: dependencies run configs -> projects -> common")
        if top in ("tests", "benchmarks"):
            found.append(f"{path} imports {name}, which is not installed with the packages")
        if top == "flax" and package == "common" and not in_nn:
            found.append(f"{path} imports {name}: only common/nn may know Flax")
        if name.startswith(private) and path != USES_PRIVATE_JAX:
            found.append(f"{path} imports {name}: private names of JAX are for {USES_PRIVATE_JAX}")
        if top in UNPICKLERS:
            found.append(f"{path} imports {name}: nothing unpickles")
        if top == "torch" and path not in USES_TORCH:
            found.append(f"{path} imports {name}: torch is for tests and benchmarks")
    if unpickles(tree):
        found.append(f"{path} passes allow_pickle: nothing unpickles")
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_dependencies_run_one_way(path):
    assert violations(path.relative_to(ROOT), path.read_text()) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("common/loop.py", "import born_mlp"),
        ("common/loop.py", "def f():\n    from alignment.losses import kl"),
        ("common/data/arrays.py", "from configs import born_mlp"),
        ("common/loop.py", "import importlib\nimportlib.import_module('born_mlp.mlp')"),
        ("born_mlp/train.py", "from molt5_multitask import task"),
        ("born_mlp/train.py", "from configs.born_mlp import paper"),
        ("born_mlp/diagrams/draw.py", "from ...alignment import losses"),
        ("common/step.py", "from flax import nnx"),
        ("common/step.py", "from tests import conftest"),
        ("common/step.py", "from jax._src import core"),
        ("common/step.py", "import importlib\nimportlib.import_module('jax._src.core')"),
        ("alignment/data.py", "import pickle"),
        ("alignment/data.py", "import numpy as np\nnp.load('x', allow_pickle=True)"),
        ("alignment/data.py", "import numpy as np\nnp.load('x', allow_pickle=flag)"),
        ("molt5_multitask/weights.py", "import torch.nn"),
        ("configs/born_mlp/paper.py", "import torch"),
    ],
)
def test_violations_are_found(path, source):
    assert len(violations(pathlib.Path(path), source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("common/nn/attention.py", "from flax import nnx"),
        ("common/data/arrays.py", "from . import prefetch\nfrom ..metrics import Mean"),
        ("born_mlp/train.py", "from common import train\nfrom born_mlp import mlp\nimport flax"),
        ("configs/born_mlp/paper.py", "from born_mlp import task\nfrom common.optim import x"),
        ("alignment/data.py", "import numpy as np\nnp.load('x', allow_pickle=False)"),
    ],
)
def test_the_rest_is_allowed(path, source):
    assert violations(pathlib.Path(path), source) == []
