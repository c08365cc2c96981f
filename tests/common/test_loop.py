"""What the loop does beside its steps: transfers, waits for the device, the first line."""

import dataclasses
import functools
import io
import re

import jax
from jax._src import array

from common import LogConfig, OptimConfig, ParamGroup, distributed, loop, train
from common.setup import prepare
from tests.common.toy import Toy, experiment

LOG = LogConfig(every=4, tensorboard=False, progress=False)


class Plain(Toy):
    """Toy task without evaluators, which are not in the hot path."""

    def evaluators(self):
        return ()


def test_nothing_is_transferred_implicitly(tmp_path, monkeypatch):
    guard = jax.transfer_guard("disallow")
    # The barrier is the last thing before the loop.
    monkeypatch.setattr(distributed, "barrier", lambda _: guard.__enter__())
    try:
        train(experiment(Plain(), log=LOG, workdir=str(tmp_path)))
    finally:
        guard.__exit__(None, None, None)


def test_the_device_is_waited_for_at_the_logging_interval_only(monkeypatch):
    """And there, only once the next call is under way."""
    monkeypatch.setattr(loop, "prepare", functools.partial(prepare_spied, events := []))
    spy = functools.partial(spied, events)
    monkeypatch.setattr(jax, "block_until_ready", spy(jax.block_until_ready))
    for name in ("block_until_ready", "__array__", "__float__", "__int__", "__bool__", "item"):
        monkeypatch.setattr(array.ArrayImpl, name, spy(getattr(array.ArrayImpl, name)))
    value = array.ArrayImpl._value
    monkeypatch.setattr(array.ArrayImpl, "_value", property(spy(value.fget)))
    train(experiment(Plain(), log=LOG))
    text = "".join(events)[events.index("s") :]
    assert re.fullmatch(r"sssssw+ssssw+sssw+", text)


def spied(events, method):
    def call(*args, **kwargs):
        events.append("w")
        return method(*args, **kwargs)

    return call


def prepare_spied(events, config):
    """The parts of a run on one device, whose calls are asynchronous, that note each call."""
    setup = prepare(config, jax.devices()[:1])

    def step(*args):
        events.append("s")
        return setup.train_step(*args)

    return dataclasses.replace(setup, train_step=step)


def test_the_first_line_says_what_is_trained_on_what(tmp_path, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    groups = (ParamGroup(pattern="in/.*", freeze=True), ParamGroup(pattern=".*"))
    optim = OptimConfig(name="adam", learning_rate=1e-2, groups=groups)
    log = LogConfig(every=4, tensorboard=False)
    train(experiment(optim=optim, log=log, workdir=str(tmp_path)))
    assert stream.getvalue().splitlines()[0] == (
        "8 x cpu (data=8), 17 trained and 128 frozen parameters, batch 16, steps 0 to 12, "
        f"{tmp_path}"
    )
