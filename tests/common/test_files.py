"""Files that are whole or not there."""

import contextlib
import os
import pathlib
import threading

import pytest

from common.files import replacing


def test_what_fails_leaves_the_old_content_and_nothing_beside_it(tmp_path):
    path = tmp_path / "new" / "a.json"
    with replacing(path) as draft:
        draft.write_text("old")
        assert not path.exists()
    with contextlib.suppress(RuntimeError), replacing(path) as draft:
        draft.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["a.json"]


def test_several_may_write_one_file(tmp_path):
    both, path = threading.Barrier(2), tmp_path / "a"
    failures = []

    def write(text: str) -> None:
        try:
            with replacing(path) as draft:
                draft.write_text(text)
                both.wait(10)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in "xy"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert path.read_text() in ("x", "y")


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_others_may_read_what_they_could_read_before(umask, tmp_path):
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "a") as draft:
            draft.write_text("")
    finally:
        os.umask(before)
    assert pathlib.Path(tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~umask
