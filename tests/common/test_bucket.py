"""A run's own files in a bucket, which a file system in memory stands in for.

Checkpoints are Orbax's matter, which reads and writes `gs://` itself: without network there is
nothing to test here.
"""

import json
from typing import ClassVar

import numpy as np
import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from common import runs
from common.files import AppendingFile, absolute, is_remote, local_copy, local_folder
from common.goodput import Account, GoodputLog
from common.writers import JsonlWriter, write_manifest

RUN = "gs://bucket/runs/a"


class Bucket(MemoryFileSystem):
    protocol = ("gcs", "gs")
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("gs://", "memory://"))


@pytest.fixture(autouse=True)
def bucket(monkeypatch):
    files = Bucket(skip_instance_cache=True)
    files.store.clear()
    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", lambda name: files)
    return files


def test_the_log_of_a_run_that_resumes(bucket):
    for first in (0, 2):
        writer = JsonlWriter(f"{RUN}/metrics.jsonl", resume_step=first)
        for step in range(first + 1, first + 4):
            writer.write(step, {"train/loss": 1 / step})
        writer.close()
    lines = [json.loads(x) for x in bucket.cat("gs://bucket/runs/a/metrics.jsonl").splitlines()]
    assert [x["step"] for x in lines] == [1, 2, 3, 4, 5]


def test_a_torn_last_line_is_dropped(bucket):
    bucket.pipe("gs://bucket/log", b"whole\ntorn")
    with pytest.warns(UserWarning, match="dropped a torn last line"):
        file = AppendingFile("gs://bucket/log")
    file.append(b"next\n")
    file.close()
    assert bucket.cat("gs://bucket/log") == b"whole\nnext\n"


def test_manifest_and_account(bucket):
    write_manifest(RUN, {"a": 1})
    write_manifest(RUN, {"a": 2})
    assert len(json.loads(bucket.cat(f"{RUN}/manifest.json"))["starts"]) == 2
    seconds = dict.fromkeys(("init", "compile", "data", "step", "eval", "save", "other"), 1.0)
    for _ in range(2):
        with GoodputLog(RUN) as log:
            log.write(0, seconds)
            log.write(10, seconds, 0.5)
    assert [s.lost_steps for s in Account.read(RUN).starts] == [10, 0]
    writer = JsonlWriter(f"{RUN}/metrics.jsonl")
    writer.write(10, {"train/loss": 0.5})
    assert "goodput" in runs.show(RUN)
    assert bucket.cat(f"{RUN}/goodput.png").startswith(b"\x89PNG")


def test_each_line_is_there_at_once(bucket, tmp_path):
    assert is_remote(RUN)
    assert not is_remote(tmp_path)
    assert str(absolute(RUN)) == RUN
    assert absolute("runs/a").is_absolute()
    file = AppendingFile(f"{RUN}/x")
    for count, line in enumerate((b"a\n", b"b\n"), 1):
        file.append(line)
        assert bucket.cat(f"{RUN}/x") == b"a\nb\n"[: 2 * count]


def test_results_of_libraries_that_write_to_disks_only(bucket, tmp_path):
    for path in (RUN, str(tmp_path / "run")):
        with local_folder(f"{path}/export") as folder:
            (folder / "model").mkdir()
            np.savez(folder / "model" / "weights.npz", a=np.arange(3))
        with local_copy(f"{path}/export/model/weights.npz") as file, np.load(file) as arrays:
            np.testing.assert_array_equal(arrays["a"], [0, 1, 2])
    assert bucket.exists(f"{RUN}/export/model/weights.npz")
    assert (tmp_path / "run" / "export" / "model" / "weights.npz").is_file()


def test_nothing_is_sent_of_a_folder_whose_writing_failed(bucket):
    def write_half():
        with local_folder(RUN) as folder:
            (folder / "half").touch()
            raise RuntimeError("half")

    with pytest.raises(RuntimeError, match="half"):
        write_half()
    assert not bucket.exists(f"{RUN}/half")
