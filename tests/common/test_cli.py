"""Configs, their JSON form, and the command line."""

import dataclasses
import importlib
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from common import Experiment, Preempted, cli, config
from common.loop import train
from tests.common.toy import Toy, experiment

CONFIG = """
import dataclasses
from tests.common.toy import experiment

def config():
    return dataclasses.replace(experiment(), workdir={workdir!r})
"""


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / "toy.py"
    file.write_text(CONFIG.format(workdir=str(tmp_path / "run")))
    return file


def test_json_round_trip():
    original = experiment(Toy(width=5))
    assert config.from_json(Experiment[Toy], config.to_json(original)) == original


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stepz": 3}, "unknown config key 'stepz'; did you mean 'steps'"),
        ({"steps": "many"}, "steps: .*valid integer"),
        ({"optim": {"learning_rate": -1.0}}, "optim: .*learning_rate"),
    ],
)
def test_json_with_a_mistake_is_refused(change, message):
    data = json.loads(config.to_json(experiment())) | change
    with pytest.raises(ValueError, match=message):
        config.from_json(Experiment[Toy], json.dumps(data))


def test_diff_names_the_keys_that_differ():
    a, b = (config.to_dict(experiment(Toy(width=w), seed=s)) for w, s in ((4, 0), (8, 1)))
    assert config.diff(a, b) == {"task.width": (4, 8), "seed": (0, 1)}


def test_arrays_in_a_config_are_known_by_their_content():
    @dataclasses.dataclass(frozen=True)
    class Held:
        x: np.ndarray

    a, b = np.arange(5000.0), np.arange(5000.0)
    assert config.to_dict(Held(a)) == config.to_dict(Held(b))
    b[2500] += 1e-12
    assert list(config.diff(config.to_dict(Held(a)), config.to_dict(Held(b)))) == ["x"]


def test_cadences_must_fit_the_steps_of_a_call():
    with pytest.raises(ValueError, match=r"log\.every = 2 must be a positive multiple .* = 3"):
        experiment(step=experiment().step.__class__(per_call=3))


def test_train_and_typed_overrides(path):
    cli.main(train, [str(path), "--task.width", "4", "--steps", "4"])
    saved = json.loads((path.parent / "run" / "config.json").read_text())
    assert saved["task"]["width"] == 4
    assert saved["steps"] == 4
    manifest = json.loads((path.parent / "run" / "manifest.json").read_text())
    assert len(manifest["starts"]) == 1


def test_show_prints_shapes_and_shardings_without_training(path, capsys):
    cli.main(train, ["show", str(path), "--mesh.fsdp", "2"])
    out = capsys.readouterr().out
    assert "in/kernel" in out
    assert "(8, 16)" in out
    assert "parameters: 145 (145 trained, 0 frozen)" in out
    assert "'fsdp': 2" in out
    assert not (path.parent / "run").exists()


def test_a_function_in_a_config_file_gives_way_to_a_name(path, capsys):
    text = path.read_text().replace("experiment()", "experiment(optim=OPTIM)")
    head = "import optax\nfrom common import OptimConfig\n"
    head += "OPTIM = OptimConfig(name=optax.scale_by_lion, schedule=lambda step: 1.0)\n"
    path.write_text(head + text)
    assert callable(cli.resolve(path, []).optim.schedule)
    changed = cli.resolve(path, ["--optim.schedule", "linear", "--optim.name", "sgd"]).optim
    assert (changed.schedule, changed.name) == ("linear", "sgd")
    with pytest.raises(SystemExit):
        cli.resolve(path, ["--optim.schedule", "liner"])
    assert "'warmup_stable_decay'" in capsys.readouterr().err


def test_sweep_runs_the_grid_and_tabulates(path, capsys):
    grid = ["--grid", "task.width=4,8", "--grid", "seed=0,1", "--steps", "4"]
    cli.main(train, ["sweep", str(path), *grid])
    rows = json.loads((path.parent / "run" / "sweep.json").read_text())
    assert [(row["task.width"], row["seed"]) for row in rows] == [
        ("4", "0"), ("4", "1"), ("8", "0"), ("8", "1"),
    ]  # fmt: skip
    assert len({row["test/loss"] for row in rows}) == 4
    assert (path.parent / "run" / "task.width=4,seed=0" / "config.json").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--optim.lerning_rate", "1"], "learning-rate"),
        (["--optim.name", "adan"], "'adam'"),
        (["--mesh.data", "3"], "needs 3 devices, and there are 8"),
        (["--batch_size", "12"], "batch_size 12 does not divide"),
    ],
)
def test_mistakes_end_with_one_clear_error(path, args, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(train, [str(path), *args])
    assert stopped.value.code in (1, 2)
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_a_missing_config_file_names_those_that_exist(path, capsys):
    with pytest.raises(SystemExit):
        cli.main(train, [str(path.with_name("toi.py"))])
    assert str(path) in capsys.readouterr().err


def test_mistakes_in_a_users_task_keep_their_traceback(path, monkeypatch):
    def broken(self, params, batch, rngs):
        raise ValueError("shapes do not match")

    monkeypatch.setattr(Toy, "loss", broken)
    with pytest.raises(ValueError, match="shapes do not match"):
        cli.main(train, [str(path)])


@pytest.mark.parametrize("own", [True, False])
def test_checks_anywhere_in_a_commands_package_end_in_one_line(own, tmp_path, monkeypatch, capsys):
    files = {
        "shop/__init__.py": "",
        "shop/stock/__init__.py": "",
        "shop/checks.py": "def check(order):\n    raise ValueError(f'no {order.what}')\n",
        "elsewhere.py": "def check(order):\n    raise ValueError(f'no {order.what}')\n",
        "shop/stock/sell.py": "import dataclasses\n"
        f"from {'shop.checks' if own else 'elsewhere'} import check\n"
        "@dataclasses.dataclass\nclass Order:\n    what: str\n"
        "def run(order):\n    check(order)\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("shop", "shop.stock", "shop.stock.sell", "shop.checks", "elsewhere"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    sell = importlib.import_module("shop.stock.sell")
    with pytest.raises(SystemExit if own else ValueError):
        cli.command(sell.run, sell.Order, ["--what", "tea"])
    assert ("error: no tea" in capsys.readouterr().err) == own


def test_what_the_system_says_of_a_file_ends_in_one_line(path, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="1"):
        cli.main(train, [str(path), "--workdir", str(tmp_path / "file" / "run")])
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_a_cluster_that_is_described_wrongly_ends_in_one_line(path, monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(SystemExit, match=r"^error: JAX_NUM_PROCESSES = 'two'"):
        cli.main(train, [str(path)])


def test_help_lists_every_field_with_its_docstring(path):
    root = pathlib.Path(__file__).parents[2]
    code = "from common import cli, train; import sys; cli.main(train, sys.argv[1:])"
    out = subprocess.run(
        [sys.executable, "-c", code, str(path), "--help"],
        cwd=root, env={"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for option in ("--task.width", "--optim.learning-rate", "--checkpoint.every", "--mesh.fsdp"):
        assert option in out
    assert "Optimizer steps of the whole run." in out


def test_a_stopped_run_says_so_and_exits_with_143(path, capsys):
    def stopped(config):
        raise Preempted("stopped at step 5 of 12; the same command resumes")

    with pytest.raises(SystemExit) as exit_:
        cli.main(stopped, [str(path)])
    assert exit_.value.code == 143
    assert "stopped at step 5 of 12" in capsys.readouterr().err
