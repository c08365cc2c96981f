"""Configs, their JSON form, and the command line."""

import dataclasses
import enum
import functools
import importlib
import json
import math
import pathlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import make_dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from common import Experiment, LogConfig, Preempted, cli, config
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


class Color(enum.Enum):
    RED = "red"


class Loose:
    """What is no dataclass."""


def ramp(step, peak):
    return peak * step


def rate(peak):
    def schedule(step):
        return ramp(step, peak)

    return schedule


@dataclasses.dataclass(frozen=True)
class Held:
    x: Any


def middle(array, by):
    return array.at[2500].add(by) if isinstance(array, jax.Array) else array + by * (array == 2500)


@pytest.mark.parametrize(
    ("value", "form", "other"),
    [
        (np.arange(5000.0), None, middle(np.arange(5000.0), 1e-9)),
        (jnp.arange(5000.0), None, middle(jnp.arange(5000.0), 0.5)),
        (ramp, {"function": f"{__name__}.ramp"}, rate),
        (functools.partial(ramp, peak=1), None, functools.partial(ramp, peak=2)),
        (functools.partial(ramp, 1), None, functools.partial(ramp, 2)),
        (
            rate(0.5),
            {"function": f"{__name__}.rate.<locals>.schedule", "captured": {"peak": 0.5}},
            rate(0.6),
        ),
        (optax.cosine_decay_schedule(1, 5), None, optax.cosine_decay_schedule(1, 6)),
        (optax.adamw, None, optax.adam),
        (np.sin, {"function": "numpy.sin"}, jnp.sin),
        (Toy(width=3).predict, None, Toy(width=4).predict),
        (Held(1), {"class": f"{__name__}.Held", "x": 1}, Experiment),
        (frozenset({"b", "a"}), ["a", "b"], frozenset({"b"})),
        (math.nan, "NaN", math.inf),
        (np.float32(0.5), 0.5, np.float32(0.25)),
        (jnp.bfloat16, "bfloat16", jnp.float32),
        (np.dtype("float32"), "float32", np.dtype("float64")),
        (Color.RED, "red", None),
        (pathlib.Path("a/b"), "a/b", pathlib.Path("a")),
        (1, 1.0, True),
    ],
)
def test_a_config_is_known_by_its_content(value, form, other):
    held = config.to_dict(Held(value))
    assert json.loads(json.dumps(held, allow_nan=False)) == held
    assert " at 0x" not in str(held)
    if form is not None:
        assert config.diff(held, {**held, "x": form}) == {}
    assert config.diff(held, config.to_dict(Held(other))) != {}


def test_a_config_is_the_same_in_every_process():
    held = "Held((frozenset('abcdef'), rate(.5), jnp.arange(9)))"
    code = f"from tests.common.test_cli import *; print(config.to_dict({held}))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(config.to_dict(eval(held)))


def test_arrays_of_numpy_and_jax_are_known_alike():
    array = np.arange(7, dtype=np.float32)
    assert config.to_dict(Held(array)) == config.to_dict(Held(jnp.asarray(array)))


@pytest.mark.parametrize("value", [lambda step: 0.1, Loose(), np.array([Loose()]), [].append])
def test_what_another_process_could_not_recognise_is_refused_at_the_first_start(value, tmp_path):
    changed = dataclasses.replace(experiment(workdir=str(tmp_path)), hang_timeout=Held((value,)))
    with pytest.raises(ValueError, match=r"^hang_timeout\.x\.0 is .*function with a name"):
        train(changed)
    assert not (tmp_path / "config.json").exists()


def test_a_run_that_keeps_nothing_may_hold_anything():
    log = LogConfig(every=2, tensorboard=False, progress=False, wandb_project=Loose())
    train(experiment(steps=2, log=log))


def test_json_with_a_function_is_refused_in_one_message():
    @dataclasses.dataclass(frozen=True)
    class Schedule:
        name: Literal["cosine", "linear"] | Callable[[int], float] = "cosine"

    text = config.to_json(Held(Schedule(functools.partial(ramp, peak=1))))
    with pytest.raises(ValueError, match=r"^x\.name is a function \(.*ramp.*cannot be read[^;]*$"):
        config.from_json(make_dataclass("Outer", [("x", Schedule)]), text)


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
    rows = read_sweep(path)
    assert [tuple(row["settings"].values()) for row in rows] == [
        ("4", "0"), ("4", "1"), ("8", "0"), ("8", "1"),
    ]  # fmt: skip
    assert len({row["metrics"]["test/loss"] for row in rows}) == 4
    assert (path.parent / "run" / "task.width=4,seed=0" / "config.json").exists()
    assert (path.parent / "run" / "sweep.md").read_text().startswith("| task.width | seed | ")


def read_sweep(path):
    return json.loads((path.parent / "run" / "sweep.json").read_text())


def recorder(failing=()):
    """Return what stands for training: it writes down the configs, and fails for some seeds."""

    def run(config):
        run.configs.append(config)
        if config.seed in failing:
            raise FloatingPointError(f"seed {config.seed} | diverged")
        return {"loss": 0.5 * config.seed, "bad": math.nan}

    run.configs = []
    return run


def test_a_failed_point_does_not_end_a_sweep_and_is_run_again_alone(path, monkeypatch, capsys):
    command = ["sweep", str(path), "--grid", "seed=0,1,2"]
    run = recorder(failing=[1])
    with pytest.raises(SystemExit, match="1"):
        cli.main(run, command)
    assert "1 of 3 points failed (seed=1)" in capsys.readouterr().err
    first = read_sweep(path)
    assert [row.get("error") for row in first] == [
        None, "FloatingPointError: seed 1 | diverged", None,
    ]  # fmt: skip
    assert first[2]["metrics"] == {"loss": 1.0, "bad": "NaN"}

    run = recorder()
    cli.main(run, command)
    assert [config.seed for config in run.configs] == [1]
    again = read_sweep(path)
    assert again[1]["metrics"] == {"loss": 0.5, "bad": "NaN"}
    assert [again[0], again[2]] == [first[0], first[2]]
    assert "error" not in again[1]
    assert "| seed | loss | bad |" in capsys.readouterr().out

    # Another config is another sweep, in which no old number stands.
    run = recorder()
    cli.main(run, [*command, "--steps", "8"])
    assert [config.seed for config in run.configs] == [0, 1, 2]


def test_a_sweep_that_is_stopped_keeps_what_it_has(path, monkeypatch):
    def run(config):
        if config.seed:
            raise Preempted("stopped")
        return {"loss": 0.5}

    with pytest.raises(Preempted):
        cli.main(run, ["sweep", str(path), "--grid", "seed=0,1"])
    assert [row["metrics"] for row in read_sweep(path)] == [{"loss": 0.5}]


def test_fields_of_all_types_can_be_swept(path, monkeypatch):
    run = recorder()
    grid = ["log.progress=True,False", "checkpoint.accept_config_change=seed,task. log.", "seed=1"]
    cli.main(run, ["sweep", str(path), *(part for g in grid for part in ("--grid", g))])
    changes = (("seed",), ("task.", "log."))
    assert [(c.log.progress, c.checkpoint.accept_config_change, c.seed) for c in run.configs] == [
        (progress, change, 1) for progress in (True, False) for change in changes
    ]
    assert len({c.workdir for c in run.configs}) == 4


def test_points_never_share_a_folder(path, monkeypatch):
    run = recorder()
    cli.main(run, ["sweep", str(path), "--grid", "log.wandb_project=a/b,a_b,a%2Fb,'a b'"])
    folders = [pathlib.Path(c.workdir) for c in run.configs]
    assert len(set(folders)) == 4
    assert {folder.parent for folder in folders} == {path.parent / "run"}


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (["seed=0", "seed=1"], "names seed twice"),
        (["task.eval_every=4", "task.eval-every=2"], "names task.eval-every twice"),
        (["seed=0,1,0"], "lists a value twice"),
        (["workdir=a,b"], "workdir cannot be swept"),
        (["seed"], "is not FIELD=V1,V2"),
        (["log.wandb_project=it's"], "No closing quotation"),
        ([], "at least one --grid"),
    ],
)
def test_grids_that_say_nothing_clear_are_refused(grid, message, path, monkeypatch, capsys):
    run = recorder()
    with pytest.raises(SystemExit, match="2"):
        cli.main(run, ["sweep", str(path), *(part for g in grid for part in ("--grid", g))])
    assert message in capsys.readouterr().err
    assert run.configs == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--optim.lerning_rate", "1"], "learning-rate"),
        (["--optim.name", "adan"], "'adam'"),
        (["--mesh.data", "3"], "needs 3 devices, and there are 8"),
        (["--batch_size", "12"], "batch_size 12 does not divide"),
        (["--seed", "-1"], "seed must be at least 0 and under 2**32, and a whole number; got -1"),
        (["--steps", "3000000000"], "steps must be at least 1 and under 2**31"),
    ],
)
def test_mistakes_end_with_one_clear_error(path, args, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(train, [str(path), *args])
    assert stopped.value.code == 2  # no restart mends it
    err = " ".join(capsys.readouterr().err.replace("│", "").split())  # out of tyro's box
    assert message in err
    assert "Traceback" not in err


def test_a_missing_config_file_names_those_that_exist(path, capsys):
    with pytest.raises(SystemExit):
        cli.main(train, [str(path.with_name("toi.py"))])
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def config():\n    return Experimnt()", "toy.py, line 2: NameError: name 'Experimnt'"),
        ("from common import Experiment\n\n\ndef config():\n    return Experiment(stepz=1)",
         "toy.py, line 5: TypeError:"),
        ("def config(:\n    pass", "toy.py, line 1: SyntaxError:"),
        ("import nothing_of_this_name", "toy.py, line 1: ModuleNotFoundError:"),
        ("import sibling\nconfig = sibling.config\n", "sibling.py, line 1: SyntaxError:"),
        ("from tests.common.toy import experiment\nconfig = lambda: experiment(steps=3e9)",
         "error: steps must be at least 1 and under 2**31, and a whole number; got 3000000000.0"),
    ],
)  # fmt: skip
def test_a_config_file_that_is_wrong_ends_in_one_line(text, message, path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    path.with_name("sibling.py").write_text("def config(:\n")
    path.write_text(text)
    with pytest.raises(SystemExit, match="2"):
        cli.main(train, [str(path)])
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_a_config_file_may_import_the_one_beside_it(path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "sibling", raising=False)
    path.rename(path.with_name("sibling.py"))
    path.write_text("import dataclasses, json, sibling\n\ndef config():\n"
                    "    return dataclasses.replace(sibling.config(), seed=7)\n")  # fmt: skip
    # What is installed goes first.
    path.with_name("statistics.py").write_text("raise RuntimeError\n")
    monkeypatch.delitem(sys.modules, "statistics", raising=False)
    assert cli.resolve(path, []).seed == 7
    importlib.import_module("statistics")


def test_functions_of_a_config_file_have_a_name_that_stays(path):
    path.write_text(CONFIG.format(workdir="x") + "\ndef schedule(step):\n    return 0.1\n")
    for _ in range(2):
        cli.load_config(path)
        function = sys.modules["config_toy"].schedule
        assert config.to_dict(Held(function))["x"] == {"function": "config_toy.schedule"}


def test_a_tilde_is_the_users_home(path, tmp_path, monkeypatch):
    @dataclasses.dataclass
    class Arguments:
        images: pathlib.Path
        others: tuple[str, ...] = ()

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cli.resolve(path, ["--workdir=~/runs/a"]).workdir == f"{tmp_path}/home/runs/a"
    path.write_text(CONFIG.format(workdir="~/b"))
    assert cli.resolve(path, []).workdir == f"{tmp_path}/home/b"
    found = []
    cli.command(found.append, Arguments, ["--images=~/c", "--others", "~/d", "e~/f", "~ 5"])
    assert found[0].images == tmp_path / "home" / "c"
    assert found[0].others == (f"{tmp_path}/home/d", "e~/f", "~ 5")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheduled(Toy):
    schedule: Literal["cosine", "linear"] | Callable[[int], float] = abs
    """Name or function."""


def test_a_field_for_a_name_or_a_function_takes_the_names(path, capsys):
    path.write_text("from tests.common.test_cli import Scheduled, experiment\n\n"
                    "def config():\n    return experiment(Scheduled())\n")  # fmt: skip
    assert cli.resolve(path, ["--seed", "2"]).task.schedule is abs
    assert cli.resolve(path, ["--task.schedule", "linear"]).task.schedule == "linear"
    with pytest.raises(SystemExit):
        cli.resolve(path, ["--task.schedule", "linar"])
    assert "'linear'" in capsys.readouterr().err


def test_every_setting_of_the_core_can_be_given(path):
    resolved = cli.resolve(path, ["--log.profile.start_step", "3", "--log.profile.steps", "2"])
    assert (resolved.log.profile.start_step, resolved.log.profile.steps) == (3, 2)


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


def test_a_cluster_that_is_described_wrongly_ends_in_one_line(path, monkeypatch, capsys):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(SystemExit, match="2"):
        cli.main(train, [str(path)])
    assert capsys.readouterr().err.startswith("error: JAX_NUM_PROCESSES = 'two'")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Out:
    out: pathlib.Path
    """File."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outs:
    first: Out
    """Where."""


def test_a_command_that_writes_to_disks_refuses_a_bucket(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.command(lambda _: pytest.fail("it ran"), Outs, ["--first.out", "gs://bucket/x.npz"])
    assert "error: --first.out gs:/bucket/x.npz: a bucket's address" in capsys.readouterr().err
    found = []
    cli.command(found.append, Outs, ["--first.out", "a:b/x.npz"])
    assert found == [Outs(first=Out(out=pathlib.Path("a:b/x.npz")))]


def test_help_lists_every_field_with_its_docstring(path):
    root = pathlib.Path(__file__).parents[2]
    code = "from common import cli, train; import sys; cli.main(train, sys.argv[1:])"
    out = subprocess.run(
        [sys.executable, "-c", code, str(path), "--help"],
        cwd=root, env={"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for option in ("--task.width", "--optim.learning-rate", "--checkpoint.every", "--mesh.fsdp",
                   "--log.profile.start-step"):  # fmt: skip
        assert option in out
    assert "Optimizer steps of the whole run." in out


def test_a_stopped_run_says_so_and_exits_with_143(path, capsys):
    def stopped(config):
        raise Preempted("stopped at step 5 of 12; the same command resumes")

    with pytest.raises(SystemExit) as exit_:
        cli.main(stopped, [str(path)])
    assert exit_.value.code == 143
    assert "stopped at step 5 of 12" in capsys.readouterr().err
