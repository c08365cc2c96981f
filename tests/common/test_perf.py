"""Time accounting on a hand-wound clock, utilisation, the profiler window, the compile cache."""

import contextlib
import os
import signal
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from common.chips import find_chip
from common.perf import (
    Ledger,
    ProfileConfig,
    Profiler,
    memory_in_use,
    param_count,
    utilization,
)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


# --- ledger ---------------------------------------------------------------------------------------


def test_every_second_is_charged_once(clock):
    with Ledger(clock) as ledger:
        clock.now += 1  # other
        with ledger("init"):
            clock.now += 2
        with ledger("eval"):
            clock.now += 3
            with ledger("data"):
                clock.now += 4
            clock.now += 5
        with ledger("step"):
            clock.now += 10
            seconds = ledger.seconds()
    clock.now += 1000  # after the run
    assert seconds == {
        "init": 2, "compile": 0, "data": 4, "step": 10, "eval": 8, "save": 0, "other": 1
    }  # fmt: skip
    assert ledger.seconds() == seconds
    assert sum(seconds.values()) == 25
    assert ledger.goodput() == 10 / 25


def test_an_exception_ends_an_activity(clock):
    with Ledger(clock) as ledger:
        with contextlib.suppress(KeyError), ledger("step"):
            clock.now += 2
            raise KeyError
        clock.now += 3
        assert ledger.seconds()["step"] == 2
        assert ledger.seconds()["other"] == 3


def test_a_run_without_time_has_no_goodput(clock):
    with Ledger(clock) as ledger:
        assert ledger.goodput() == 0


def test_rates_are_over_the_training_time_since_the_last_log(clock):
    with Ledger(clock) as ledger:
        with ledger("compile"):
            clock.now += 50
        assert ledger.rates() == {}
        with ledger("step"):
            clock.now += 1.5
        with ledger("data"):
            clock.now += 0.5
        ledger.completed(steps=4, examples=400)
        with ledger("eval"):
            clock.now += 30
        with ledger("save"):
            clock.now += 30
        assert ledger.rates() == {"steps_per_second": 2, "examples_per_second": 200}
        with ledger("step"):
            clock.now += 1
        ledger.completed(steps=1, examples=100)
        clock.now += 1  # other
        ledger.completed(steps=1, examples=100)
        assert ledger.rates() == {"steps_per_second": 1, "examples_per_second": 100}
        assert ledger.rates() == {}


# --- FLOPs and parameters -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("cpu", None),
        ("NVIDIA GeForce RTX 3090", None),
    ],
)
def test_peak_flops(kind, peak):
    chip = find_chip(kind)
    assert (None if chip is None else chip.flops) == peak


def test_utilization():
    tpus = 4 * [types.SimpleNamespace(device_kind="TPU v4")]
    assert utilization(110e12, 5.0, tpus) == {"flops_per_second": 550e12, "mfu": 0.5}
    assert utilization(2e9, 3.0, jax.devices("cpu")) == {"flops_per_second": 6e9}


def test_memory_is_that_of_the_fullest_device(monkeypatch):
    def device(**stats):
        return types.SimpleNamespace(memory_stats=lambda: stats or None)

    full = {"bytes_in_use": 3, "peak_bytes_in_use": 9, "bytes_limit": 10}
    devices = [device(bytes_in_use=5, peak_bytes_in_use=6), device(**full), device()]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    expected = {"memory_bytes": 3.0, "memory_peak_bytes": 9.0, "memory_limit_bytes": 10.0}
    assert memory_in_use() == expected
    monkeypatch.setattr(jax, "local_devices", lambda: [device()])
    assert memory_in_use() == {}


def test_param_count():
    params = {"a": jnp.zeros((2, 3)), "b": [jax.ShapeDtypeStruct((4,), jnp.float32), jnp.ones(())]}
    assert param_count(params) == 11


# --- profiler -------------------------------------------------------------------------------------


@pytest.fixture
def trace_calls(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda path: calls.append(("start", path)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(("stop",)))
    return calls


@pytest.mark.parametrize(
    ("steps", "started", "stopped"),
    [
        (range(20), 5, 8),
        (range(0, 40, 4), None, None),  # calls of 4 steps jump over 5, 6, 7
        (range(0, 40, 2), 6, 8),
        (range(6, 20), 6, 8),  # resumed inside the window
        (range(8, 20), None, None),  # resumed after it
        (range(7), 5, None),  # the run ends inside the window
    ],
)
def test_profiler_window(tmp_path, trace_calls, steps, started, stopped):
    seen = {}
    with Profiler(ProfileConfig(start_step=5, steps=3), tmp_path) as profiler:
        for step in steps:
            before = len(trace_calls)
            profiler.before_step(step, jnp.zeros(()))
            for call in trace_calls[before:]:
                seen[call[0]] = step
    assert seen == {k: v for k, v in {"start": started, "stop": stopped}.items() if v is not None}
    expected = [] if started is None else [("start", str(tmp_path / "profile")), ("stop",)]
    assert trace_calls == expected


def test_profiler_writes_a_trace(tmp_path):
    with Profiler(ProfileConfig(start_step=1, steps=1), tmp_path) as profiler:
        for step in range(3):
            profiler.before_step(step, jnp.zeros(()))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_signal_asks_for_a_trace(tmp_path, trace_calls):
    with Profiler(ProfileConfig(start_step=100, steps=2), tmp_path) as profiler:
        for step in range(10):
            if step in (3, 7):
                os.kill(os.getpid(), signal.SIGUSR1)
            before = len(trace_calls)
            profiler.before_step(step, jnp.zeros(()))
            assert len(trace_calls) - before == (step in (3, 5, 7, 9))
    assert [call[0] for call in trace_calls] == ["start", "stop"] * 2
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


@pytest.mark.parametrize("ends", [False, True])
def test_a_trace_of_the_users_own_is_left_alone(ends, tmp_path, caplog):
    """One that is under way, or one that ends ours."""
    profiler = Profiler(ProfileConfig(start_step=1, steps=1), tmp_path / "ours")
    with profiler:
        profiler.before_step(0, jnp.zeros(()))
        if not ends:
            jax.profiler.start_trace(str(tmp_path / "own"))
        profiler.before_step(1, jnp.zeros(()))
        jax.profiler.stop_trace()
        profiler.before_step(2, jnp.zeros(()))
    assert "no whole trace in" in caplog.text


def test_no_profile(tmp_path, trace_calls):
    with Profiler(ProfileConfig(), None) as profiler:
        profiler.before_step(0, None)
    assert trace_calls == []
    with pytest.raises(ValueError, match="set workdir"):
        Profiler(ProfileConfig(start_step=0), None)


@pytest.mark.parametrize("fields", [{"start_step": -1}, {"steps": 0}])
def test_bad_profile(fields):
    with pytest.raises(
        ValueError, match=r"profile.start_step must be at least 0, or None, and profile.steps"
    ):
        ProfileConfig(**fields)


# --- compile cache --------------------------------------------------------------------------------

COMPILE = """
import sys
import jax, jax.numpy as jnp
from common.perf import enable_compile_cache

hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
jax.jit(lambda x: x + 1)(1.0)  # a notebook has compiled before
enable_compile_cache(*sys.argv[1:])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3)))
print(jax.config.jax_compilation_cache_dir, hits.count("/jax/compilation_cache/cache_hits"))
"""


def test_a_user_without_a_home_has_no_cache():
    code = "import os; os.getuid = lambda: 987654; from common import perf, files;" + (
        "perf.enable_compile_cache(); import jax;"
        "print(files.user_cache(), jax.config.jax_compilation_cache_dir)"
    )
    environment = {
        k: v for k, v in os.environ.items()
        if k not in ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR")
    }  # fmt: skip
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    assert run.stdout == "None None\n"


@pytest.mark.parametrize(
    ("arguments", "variables", "folder"),
    [
        (["given"], {"JAX_COMPILATION_CACHE_DIR": "configured"}, "given"),
        ([], {"JAX_COMPILATION_CACHE_DIR": "configured"}, "configured"),
        ([], {"XDG_CACHE_HOME": "user"}, "user/jax-three-papers"),
    ],
)
def test_compile_cache(tmp_path, arguments, variables, folder):
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {k: str(tmp_path / v) for k, v in variables.items()}
    command = [sys.executable, "-c", COMPILE, *(str(tmp_path / a) for a in arguments)]

    def compile_once():
        run = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        found, hits = run.stdout.split()
        assert found == str(tmp_path / folder)
        return int(hits)

    assert compile_once() == 0
    assert any((tmp_path / folder).iterdir())
    if arguments:
        assert compile_once() > 0
