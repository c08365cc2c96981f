"""Sources of images, decoding, and loading by several threads."""

import io
import threading

import datasets
import numpy as np
import pytest
from PIL import Image

from alignment.images.decode import BadImageError, check_header, decode
from alignment.images.loading import check_images, load_batches
from alignment.images.preprocess import named
from alignment.images.sources import ArrayImages, ImageSource, open_images


def picture(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encode(image, kind="png", **options):
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(
        buffer, kind, **options
    )
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Three classes with images of several kinds and sizes, and a file that is none."""
    for i, name in enumerate(("dog/b.png", "cat/2.PNG", "cat/10.png", "ape/x/y.png")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture(8 + i, 9, 3, seed=i)))
    (tmp_path / "photos" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "photos" / ".hidden.png").write_text("no image")
    return tmp_path / "photos"


def test_a_folder_is_read_in_the_order_of_its_paths(folder, caplog):
    source = open_images(folder)
    assert source.names.tolist() == ["ape/x/y.png", "cat/10.png", "cat/2.PNG", "dog/b.png"]
    assert source.label_names.tolist() == ["ape", "cat", "dog"]
    assert source.labels.tolist() == [0, 1, 1, 2]
    for row, seed in enumerate((3, 2, 1, 0)):
        np.testing.assert_array_equal(source.image(row), picture(8 + seed, 9, 3, seed=seed))
    assert [image.shape for image in source.read([3, 0])] == [(8, 9, 3), (11, 9, 3)]
    assert "1 files are no images" in caplog.text
    (folder / "one.png").write_bytes(encode(picture(4, 4, 3)))
    assert open_images(folder).labels is None


def test_kinds_of_images_become_rgb():
    grey, rgb = picture(5, 6), picture(5, 6, 3)
    np.testing.assert_array_equal(decode(encode(grey), where=""), grey[..., None].repeat(3, -1))
    alpha = np.concatenate([rgb, picture(5, 6, 1)], -1)
    np.testing.assert_array_equal(decode(encode(alpha), where=""), rgb)
    palette = Image.fromarray(rgb).quantize(200)
    expected = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(decode(encode(palette), where=""), expected)
    transparent = encode(palette, transparency=bytes([0] * 200))
    np.testing.assert_array_equal(decode(transparent, where=""), expected)
    ink = decode(encode(Image.fromarray(rgb).convert("CMYK"), "jpeg"), where="")
    assert ink.shape == (5, 6, 3)
    one_bit = decode(encode(Image.fromarray(grey > 127)), where="")
    np.testing.assert_array_equal(one_bit[..., 0], 255 * (grey > 127))


def test_bad_images_say_what_and_where():
    whole = encode(picture(64, 64, 3), "jpeg")
    for content, message in (
        (b"", "cannot identify image file"),
        (b"no image at all", "cannot identify image file"),
        (whole[: len(whole) // 2], "truncated"),
        (encode(picture(4, 4).astype(np.uint16)), "more than 8 bits a channel"),
        (encode(Image.new("1", (10_000, 9_000))), "more than 89,478,485 pixels"),
        (encode(Image.new("1", (14_000, 13_000))), "more than 89,478,485 pixels"),
    ):
        with pytest.raises(BadImageError, match=message) as error:
            decode(content, where="a/b.png (row 3)")
        assert "a/b.png (row 3)" in str(error.value)
    check_header(whole[: len(whole) // 2], where="")  # is only seen in decoding
    with pytest.raises(BadImageError, match="more than 89"):
        check_header(encode(Image.new("1", (10_000, 9_000))), where="")


def test_arrays_are_read_with_their_names_and_classes(tmp_path):
    images = picture(3, 4, 5, 3)
    np.savez(
        tmp_path / "a.npz",
        images=images,
        source=np.array([b"x", b"y", b"z"]),
        label=np.array([1, 0, 1], np.uint8),
        class_names=["cat", "dog"],
        coarse=np.array([0, 0, 0]),
        coarse_names=["animal"],
    )
    source = open_images(tmp_path / "a.npz")
    np.testing.assert_array_equal(source.image(1), images[1])
    assert source.names.tolist() == ["x", "y", "z"]
    assert (source.labels.tolist(), source.label_names.tolist()) == ([1, 0, 1], ["cat", "dog"])
    assert (source.coarse.tolist(), source.coarse_names.tolist()) == ([0, 0, 0], ["animal"])
    np.savez(tmp_path / "b.npz", images=images[..., 0], labels=["dog", "cat", "dog"])
    grey = open_images(tmp_path / "b.npz")
    np.testing.assert_array_equal(grey.image(2), images[2, ..., :1].repeat(3, -1))
    assert grey.names.tolist() == ["0", "1", "2"]
    assert (grey.labels.tolist(), grey.label_names.tolist()) == ([1, 0, 1], ["cat", "dog"])


def test_shared_images_are_read(shared_alignment):
    sample = open_images(shared_alignment / "imagenet_sample" / "imagenet_1000x64px.npz")
    assert len(sample) == len(sample.label_names) == 1000  # by WordNet ids: two are called "crane"
    assert sample.image(7).shape == (64, 64, 3)
    pairs = open_images(
        shared_alignment / "alignet_validation" / "alignet_vs_unalignet_200pairs_128px.npz"
    )
    assert (len(pairs), pairs.labels) == (400, None)
    assert pairs.names[0].startswith("n")


def test_data_sets_are_read(tmp_path):
    rows = [encode(picture(4, 5, 3, seed=i)) for i in range(3)]
    features = datasets.Features(
        img=datasets.Image(),
        fine_label=datasets.ClassLabel(names=["cat", "dog", "car"]),
        coarse_label=datasets.ClassLabel(names=["animal", "thing"]),
    )
    columns = {
        "img": [{"bytes": row, "path": None} for row in rows],
        "fine_label": [2, 0, 1],
        "coarse_label": [1, 0, 0],
    }
    made = datasets.Dataset.from_dict(columns, features=features)
    made.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(test=made).save_to_disk(tmp_path / "parts")
    for source in (open_images(tmp_path / "one"), open_images(tmp_path / "parts", split="test")):
        np.testing.assert_array_equal(source.image(1), picture(4, 5, 3, seed=1))
        assert len(source) == 3
        assert source.label_names[source.labels].tolist() == ["car", "cat", "dog"]
        assert source.coarse_names[source.coarse].tolist() == ["thing", "animal", "animal"]
    with pytest.raises(ValueError, match="no split 'train'; it has test"):
        open_images(tmp_path / "parts")
    made.remove_columns("img").save_to_disk(tmp_path / "blind")
    with pytest.raises(ValueError, match="no column of images"):
        open_images(tmp_path / "blind")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": np.zeros(3)}, "no array 'images'; it holds 'labels'"),
        ({"images": np.zeros((3, 4, 4, 3))}, "must be uint8 .* not float64"),
        ({"images": np.zeros((3, 4, 4, 2), np.uint8)}, r"not uint8 of \(3, 4, 4, 2\)"),
        (
            {"images": picture(3, 4, 4, 3), "label": np.zeros(2)},
            r"3 images, but labels .*\(2,\)",
        ),
        ({"images": picture(3, 4, 4, 3), "names": ["a", "b", "a"]}, "'a' occurs more than once"),
    ],
)
def test_bad_arrays_are_refused(arrays, message, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message) as error:
        open_images(tmp_path / "a.npz")
    assert "a.npz" in str(error.value)


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no images at .*say datasets:NAME"):
        open_images(tmp_path / "missing")
    with pytest.raises(ValueError, match="holds no image files"):
        open_images(tmp_path)


class Counting(ImageSource):
    """Images of different sizes, of which some are bad; notes who reads."""

    def __init__(self, count):
        self.names = np.arange(count).astype(str)
        self.threads = set()
        self.read_so_far = 0

    def image(self, row):
        self.threads.add(threading.current_thread())
        self.read_so_far += 1
        if row % 7 == 3:
            raise BadImageError(f"row {row} is bad")
        return picture(5 + row, 40 - row, 3, seed=row)


@pytest.mark.parametrize("workers", [1, 4])
def test_batches_do_not_depend_on_the_workers(workers):
    rows = np.random.default_rng(0).permutation(30)
    source, preprocessing = Counting(30), named("clip", 6)
    batches = list(load_batches(source, rows, preprocessing, batch_size=8, workers=workers))
    assert [len(batch.rows) for batch in batches] == [8, 8, 8, 6]
    np.testing.assert_array_equal(np.concatenate([batch.rows for batch in batches]), rows)
    for row, image in zip(rows, np.concatenate([b.images for b in batches]), strict=True):
        expected = np.zeros((6, 6, 3), np.uint8)
        if row % 7 != 3:
            expected = preprocessing.resize(picture(5 + row, 40 - row, 3, seed=row))
        np.testing.assert_array_equal(image, expected)
    bad = {row: text for batch in batches for row, text in batch.bad.items()}
    assert bad == {row: f"row {row} is bad" for row in range(3, 30, 7)}
    assert len(source.threads) <= workers


def test_all_batches_are_read_by_the_same_threads():
    """A loop asks for one batch after another: it must not start threads for each."""
    source = Counting(32)
    for start in range(0, 32, 8):
        rows = range(start, start + 8)
        list(load_batches(source, rows, named("clip", 6), batch_size=8, workers=3))
    assert len(source.threads) <= 3


def test_reading_stops_with_its_user():
    source = Counting(1000)
    batches = load_batches(source, range(1000), named("clip", 6), batch_size=8, workers=2)
    next(batches)
    batches.close()
    assert source.read_so_far <= 32  # three batches ahead, and one


def test_headers_are_checked(folder):
    (folder / "cat" / "zero.jpg").write_bytes(b"")
    source = open_images(folder)
    found = check_images(source, range(len(source)))
    assert list(found) == [3]
    assert "cat/zero.jpg (row 3) cannot be decoded" in found[3]
    assert check_images(ArrayImages(picture(3, 4, 4, 3)), range(3)) == {}
