"""Uninterrupted runs that the others are compared with."""

import pathlib

import pytest

from tests.mp import launch


@pytest.fixture(scope="session")
def alone(tmp_path_factory) -> pathlib.Path:
    """A run of one process with eight devices."""
    folder = tmp_path_factory.mktemp("alone")
    launch.succeed(["-m", "tests.mp.script", folder], folder, processes=1, devices=8)
    return folder


@pytest.fixture(scope="session")
def pair(tmp_path_factory) -> pathlib.Path:
    """A run of two processes with four devices each."""
    folder = tmp_path_factory.mktemp("pair")
    launch.succeed(["-m", "tests.mp.script", folder], folder)
    return folder
