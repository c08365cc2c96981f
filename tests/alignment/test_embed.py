"""The command that computes features: what it writes, resuming, several hosts, bad images."""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from alignment import embed
from alignment.embedder import Embedder
from alignment.features import Features
from alignment.images.preprocess import named
from alignment.vit.model import bind, preset
from alignment.vit.pretrained import save_pretrained
from tests.alignment.test_vit import lively

CONFIG = preset("siglip-tiny")


def picture(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_pretrained(folder, CONFIG, lively(CONFIG), preprocessing=named("siglip", 32))
    return folder


@pytest.fixture
def images(tmp_path):
    """A file of 21 images of 40 x 36 pixels with classes."""
    path = tmp_path / "images.npz"
    np.savez(path, images=picture(21, 40, 36, 3), labels=np.arange(21) % 3)
    return path


def arguments(images, model, **changes):
    known = {
        "images": str(images),
        "model": str(model),
        "output": images.parent / "features.npz",
        "batch_size": 8,
        "part": 6,
    }
    return embed.Arguments(**(known | changes))


def expected(preprocessing, rows=range(21)):
    """Return the features, image by image, without any of the machinery."""
    pixels = np.stack([preprocessing.resize(picture(21, 40, 36, 3)[row]) for row in rows])
    inputs = preprocessing.normalise(pixels)
    return np.asarray(jax.jit(lambda p, x: bind(CONFIG, p)(x))(lively(CONFIG), inputs))


def assert_near(found, wanted):
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def test_features_are_those_of_the_model(images, model):
    found = Features.read(embed.run(arguments(images, model)))
    assert_near(found.features, expected(named("siglip", 32)))
    assert found.names.tolist() == [str(i) for i in range(21)]
    assert found.labels.tolist() == [i % 3 for i in range(21)]
    assert found.model == str(model)
    assert json.loads(found.preprocessing)["name"] == "siglip"
    assert sorted(p.name for p in images.parent.iterdir()) == [
        "features.json",
        "features.npz",
        "images.npz",
    ]


def test_the_preprocessing_is_chosen_by_name_and_written(images, model):
    found = Features.read(embed.run(arguments(images, model, preprocessing="alignet")))
    assert_near(found.features, expected(named("alignet", 32)))
    assert json.loads(found.preprocessing)["filter"] == "opencv_cubic"
    assert json.loads(images.with_name("features.json").read_text())["preprocessing"]["size"] == 32


def test_devices_size_of_parts_and_workers_do_not_matter(images, model):
    for part, workers in ((21, 1), (4, 3)):
        output = images.parent / f"{part}.npz"
        embed.run(arguments(images, model, part=part, workers=workers, output=output))
        assert_near(Features.read(output).features, expected(named("siglip", 32)))


def test_a_killed_run_goes_on(images, model, monkeypatch):
    """After its third part; what is there is not computed again."""
    write, written = embed.write_arrays, []

    def failing(path, arrays):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        write(path, arrays)

    monkeypatch.setattr(embed, "write_arrays", failing)
    with pytest.raises(KeyboardInterrupt):
        embed.run(arguments(images, model))
    parts = images.parent / "features.npz.parts"
    assert len(list(parts.glob("part-*.npz"))) == 3
    monkeypatch.setattr(embed, "write_arrays", write)
    loaded, load = [], embed.load_batches

    def spying(source, rows, *args, **kwargs):
        loaded.extend(rows)
        return load(source, rows, *args, **kwargs)

    monkeypatch.setattr(embed, "load_batches", spying)
    with pytest.raises(ValueError, match=r"made with other settings \(dtype: 'float32' ->"):
        embed.run(arguments(images, model, dtype="bfloat16"))
    with pytest.raises(ValueError, match=r"made with other settings \(part: 6 -> 7\)"):
        embed.run(arguments(images, model, part=7))
    found = Features.read(embed.run(arguments(images, model)))
    assert loaded == [18, 19, 20]
    assert_near(found.features, expected(named("siglip", 32)))
    assert not parts.exists()


def test_what_is_there_is_not_computed_again_nor_overwritten(images, model, monkeypatch, capsys):
    embed.run(arguments(images, model))
    before = (images.parent / "features.npz").read_bytes()
    monkeypatch.setattr(embed, "Embedder", None)
    embed.run(arguments(images, model, part=5, workers=2))
    assert "is there already" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"preprocessing\.name: 'siglip' -> 'alignet'"):
        embed.run(arguments(images, model, preprocessing="alignet"))
    (images.parent / "features.json").unlink()
    with pytest.raises(ValueError, match=r"but not .*features\.json"):
        embed.run(arguments(images, model))
    assert (images.parent / "features.npz").read_bytes() == before


def test_hosts_share_the_work(images, model, monkeypatch):
    """Each computes every third part; the first puts them together."""
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(embed.multihost_utils, "sync_global_devices", lambda name: None)
    loaded, load = {}, embed.load_batches
    for host in (2, 1, 0):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        loaded[host] = []

        def spying(source, rows, *args, host=host, **kwargs):
            loaded[host].extend(map(int, rows))
            return load(source, rows, *args, **kwargs)

        monkeypatch.setattr(embed, "load_batches", spying)
        output = embed.run(arguments(images, model))
        assert output.exists() == (host == 0)
    assert sorted(row for rows in loaded.values() for row in rows) == list(range(21))
    assert loaded[1] == [*range(6, 12)]
    assert loaded[0] == [*range(6), *range(18, 21)]
    monkeypatch.undo()
    assert_near(Features.read(output).features, expected(named("siglip", 32)))


HOST = """
import sys, jax
jax.config.update("jax_platforms", "cpu")
host, port, *arguments = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", 2, int(host))
from alignment import embed
embed.main(arguments)
"""


@pytest.mark.slow
def test_two_processes_write_one_file(images, model):
    """For real: each has two devices of its own, and they wait for each other."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    output = images.parent / "features.npz"
    options = {"images": images, "model": model, "output": output, "part": 4, "batch-size": 4}
    flags = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", HOST, str(host), str(port), *flags],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for host in (0, 1)
    ]
    for process in hosts:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert_near(Features.read(output).features, expected(named("siglip", 32)))
    assert not output.with_name("features.npz.parts").exists()


@pytest.fixture
def photos(tmp_path):
    """Seven images of their own sizes, of which one is cut off and one no image."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(7):
        Image.fromarray(picture(30 + i, 40, 3, seed=i)).save(folder / f"{i}.jpg")
    whole = (folder / "3.jpg").read_bytes()
    (folder / "3.jpg").write_bytes(whole[: len(whole) // 2])
    return folder


def test_bad_images_stop_or_are_skipped(photos, model, caplog):
    (photos / "5.jpg").write_bytes(b"no image")
    with pytest.raises(
        ValueError, match=r"5\.jpg \(row 5\) cannot be decoded: .*--bad-images skip"
    ):
        embed.run(arguments(photos, model))
    # Before anything was computed: not even the cut-off one was seen, which only decoding shows.
    assert not list(photos.parent.glob("features.npz.parts/part*"))
    output = photos.parent / "other.npz"
    embed.run(arguments(photos, model, bad_images="skip", output=output))
    found = Features.read(output)
    assert found.names.tolist() == ["0.jpg", "1.jpg", "2.jpg", "4.jpg", "6.jpg"]
    skipped = json.loads(output.with_suffix(".json").read_text())["skipped"]
    assert len(skipped) == 2
    assert "3.jpg (row 3) cannot be decoded: " in skipped[0]
    assert "1 image(s) are left out, the first: " in caplog.text
    preprocessing = named("siglip", 32)
    pixels = [preprocessing.resize(np.asarray(Image.open(photos / name))) for name in found.names]
    embedder = Embedder(CONFIG, lively(CONFIG), preprocessing, batch_size=2)
    assert_near(found.features, embedder(np.stack(pixels)))


def test_features_that_are_not_finite_are_seen(images, model, tmp_path):
    params = jax.tree.map(np.array, lively(CONFIG))
    params["positions"][0, 0] = np.nan
    save_pretrained(tmp_path / "nan", CONFIG, params, preprocessing=named("siglip", 32))
    with pytest.raises(ValueError, match=r"^0 \(row 0\): its features are not finite; 6 such"):
        embed.run(arguments(images, tmp_path / "nan"))


def test_half_precision_is_near(images, model):
    found = Features.read(embed.run(arguments(images, model, dtype="bfloat16"))).features
    wanted = expected(named("siglip", 32))
    assert found.dtype == np.float32
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()
    assert np.abs(found - wanted).max() > 0


def test_the_command_line_says_what_is_wrong(images, model, capsys):
    options = {"images": images, "model": model, "output": "x.npz", "preprocessing": "aligned"}
    with pytest.raises(SystemExit):
        embed.main([part for key, value in options.items() for part in (f"--{key}", str(value))])
    assert "no preprocessing 'aligned'; did you mean 'alignet'" in capsys.readouterr().err
