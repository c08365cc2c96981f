"""The Python that make takes: the newest that runs. A shim that fails is skipped."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FAILS = "#!/bin/sh\necho 'not found: this version is not selected' >&2\nexit 127\n"
RUNS = f'#!/bin/sh\nexec {sys.executable} "$@"\n'

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def commands(folder: pathlib.Path, pythons: dict[str, str], *arguments: str) -> str:
    """Return what `make test` would run where only these Pythons are."""
    for name, text in pythons.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    make = shutil.which("make")
    # Without what a make that runs these tests hands on.
    outer = ("PYTHON", "VENV", "TESTS", "MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS")
    environment = {k: v for k, v in os.environ.items() if k not in outer} | {"PATH": str(folder)}
    (folder / "sh").symlink_to("/bin/sh")
    return subprocess.run(
        [make, "-n", "test", "VENV=venv-of-the-test", *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.parametrize(
    ("pythons", "taken"),
    [
        ({"python3.14": FAILS, "python3.13": RUNS, "python3.11": RUNS}, "python3.13"),
        ({"python3.13": FAILS, "python3.11": RUNS, "python3": RUNS}, "python3.11"),
        ({"python3.13": FAILS, "python3": RUNS}, "python3"),
    ],
)
def test_the_newest_that_runs_is_taken(tmp_path, pythons, taken):
    assert f"\n{taken} -m venv venv-of-the-test\n" in "\n" + commands(tmp_path, pythons)


def test_another_can_be_named(tmp_path):
    found = commands(tmp_path, {"python3.13": RUNS, "mine": RUNS}, "PYTHON=mine")
    assert "mine -m venv venv-of-the-test\n" in found


def test_some_tests_can_be_named(tmp_path):
    found = commands(tmp_path, {"python3.13": RUNS}, "TESTS=tests/common")
    assert found.rstrip().endswith("tests/common")
