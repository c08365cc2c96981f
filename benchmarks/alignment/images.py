"""How many images a processor core prepares: decoding and resizing, by number of workers.

    python -m benchmarks.alignment.images

Two kinds of input: JPEG files as large as ImageNet's (500 x 375; the shared ImageNet pictures of
128 pixels, enlarged, with noise that brings the files to ImageNet's 110 kB), and photographs of 64
pixels in memory (`imagenet_1000x64px.npz`). All become 224 x 224. Rates are medians over passes of
the same images, the settings taking turns; every pass is compared with the first one, image by
image: order and pixels must not depend on the workers.

Writes `images.json` and `images.md` beside this file.
"""

import dataclasses
import io
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

import cv2
import numpy as np
import tyro
from PIL import Image

from alignment.images.decode import decode
from alignment.images.loading import load_batches
from alignment.images.preprocess import PREPROCESSINGS, Preprocessing, named
from alignment.images.sources import ImageSource, open_images
from common.report import provenance, table

OUTPUT = pathlib.Path(__file__).with_suffix(".json")
SIZE, BATCH = 224, 64
NOISE = 18.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure decoding and resizing."""

    data: pathlib.Path = pathlib.Path("../shared/data/alignment")
    """Folder with `alignet_validation` and `imagenet_sample`."""
    images: int = 400
    """Images of a pass."""
    repeats: int = 5
    """Passes of each setting."""
    workers: tuple[int, ...] = (1, 2, 4)
    """Numbers of threads."""


def write_files(folder: pathlib.Path, source: pathlib.Path, count: int) -> float:
    """Write JPEG files; return their mean size, bytes."""
    with np.load(source, allow_pickle=False) as file:
        images = file["images"]
    rng, sizes = np.random.default_rng(0), []
    for i in range(count):
        large = cv2.resize(images[i % len(images)], (500, 375), interpolation=cv2.INTER_CUBIC)
        noisy = np.clip(large + rng.normal(0, NOISE, large.shape), 0, 255).astype(np.uint8)
        path = folder / f"{i:05d}.jpg"
        Image.fromarray(noisy).save(path, quality=92)
        sizes.append(path.stat().st_size)
    return statistics.mean(sizes)


def one_pass(
    source: ImageSource, preprocessing: Preprocessing, count: int, workers: int
) -> tuple[float, np.ndarray]:
    """Return the seconds of a pass, and its images."""
    rows = np.arange(count)
    start = time.perf_counter()
    batches = list(load_batches(source, rows, preprocessing, batch_size=BATCH, workers=workers))
    return time.perf_counter() - start, np.concatenate([batch.images for batch in batches])


def throughput(source: ImageSource, count: int, arguments: Arguments) -> list[dict[str, float]]:
    """Measure images/s for each number of workers.

    Raises:
      AssertionError: if a number of workers gives other images, or another order.
    """
    preprocessing = named("alignet", SIZE)
    times: dict[int, list[float]] = {workers: [] for workers in arguments.workers}
    _, expected = one_pass(source, preprocessing, count, 1)
    for _ in range(arguments.repeats):
        for workers in arguments.workers:
            seconds, images = one_pass(source, preprocessing, count, workers)
            np.testing.assert_array_equal(images, expected)
            times[workers].append(seconds)
    cores = os.cpu_count() or 1
    rates = {workers: count / statistics.median(t) for workers, t in times.items()}
    return [
        {
            "workers": workers,
            "images_per_second": rate,
            "per_core": rate / min(workers, cores),
        }
        for workers, rate in rates.items()
    ]


def parts(folder: pathlib.Path, repeats: int) -> dict[str, float]:
    """Return the milliseconds of one thread for the parts of an image's way."""
    content = (folder / "00000.jpg").read_bytes()
    image = decode(content, where="")
    small = image[:64, :64].copy()

    def clock(work: Callable[[], object]) -> float:
        times = []
        for _ in range(max(20, 10 * repeats)):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return 1000 * statistics.median(times)

    found = {
        "decode 500 x 375": clock(lambda: decode(content, where="")),
        "the same by Pillow alone": clock(
            lambda: np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        ),
        "resize 64 x 64, alignet": clock(lambda: named("alignet", SIZE).resize(small)),
    }
    for name in PREPROCESSINGS:
        preprocessing = named(name, SIZE)
        found[f"resize 500 x 375, {name}"] = clock(lambda p=preprocessing: p.resize(image))
    return found


def main() -> None:
    """Measure, and write the tables."""
    arguments = tyro.cli(Arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        pairs = arguments.data / "alignet_validation" / "alignet_vs_unalignet_200pairs_128px.npz"
        size = write_files(folder, pairs, arguments.images)
        results = {
            "JPEG files, 500 x 375": throughput(open_images(folder), arguments.images, arguments),
            "64 x 64 in memory": throughput(
                open_images(arguments.data / "imagenet_sample" / "imagenet_1000x64px.npz"),
                arguments.images,
                arguments,
            ),
        }
        costs = parts(folder, arguments.repeats)
    about = provenance()
    content = {**about, "bytes_per_file": size, "throughput": results, "milliseconds": costs}
    OUTPUT.write_text(json.dumps(content, indent=1) + "\n")
    rows = [
        [what, str(row["workers"]), f"{row['images_per_second']:.0f}", f"{row['per_core']:.0f}"]
        for what, found in results.items()
        for row in found
    ]
    text = [
        "# Preparing images",
        f"{about['machine']}; {about['date']}; {about['versions']}.",
        f"    {about['command']}",
        f"{arguments.images} images a pass to {SIZE} x {SIZE} (alignet: OpenCV's cubic "
        f"interpolation), files of {size / 1000:.0f} kB on average, medians of "
        f"{arguments.repeats} passes. All numbers of workers gave the same images in the same "
        "order. Per core: divided by the cores that so many threads can use.",
        table(["input", "workers", "images/s", "images/s per core"], rows),
        "Milliseconds of one thread:",
        table(["part", "ms"], [[name, f"{value:.2f}"] for name, value in costs.items()]),
    ]
    OUTPUT.with_suffix(".md").write_text("\n\n".join(text) + "\n")
    print(OUTPUT.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
