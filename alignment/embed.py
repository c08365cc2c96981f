"""Features of a set of images: the first stage.

    python -m alignment.embed --images photos --model google/siglip-base-patch16-224 \
        --output features.npz

Images are a folder, a `.npz` file or a data set (`images.sources`), models Hugging Face folders or
names on the hub. Features are written in parts to `features.npz.parts`, and put together at the
end: a run that was killed goes on after the last part when started again. On many hosts each does
other parts, in a folder that all of them see.
"""

import dataclasses
import hashlib
import json
import logging
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float

from alignment.embedder import Embedder
from alignment.features import Features
from alignment.files import read_arrays, write_arrays
from alignment.images.loading import ImageBatch, check_images, load_batches
from alignment.images.preprocess import Preprocessing, named
from alignment.images.sources import ImageSource, open_images
from alignment.vit.pretrained import Pretrained, from_pretrained
from common import cli
from common.config import refuse_changes, to_dict
from common.files import replace
from common.mesh import MeshConfig, make_mesh
from common.progress import Progress

logger = logging.getLogger(__name__)

NATIVE = "native"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Compute features of images."""

    images: str
    """Folder of images, .npz file with `images`, folder of a Hugging Face data set, or
    datasets:NAME."""
    model: str
    """Folder of a checkpoint or of a training run that has exported one, or name on the hub."""
    output: pathlib.Path
    """File of features to write, .npz."""
    split: str = "train"
    """Which part of a data set."""
    preprocessing: str = NATIVE
    """What is done to the images: the model's own (native), or alignet (the whole image by OpenCV's
    cubic interpolation, pixels from 0 to 1), vit, dino, clip, siglip, siglip2."""
    image_size: int | None = None
    """Side that images are resized to, pixels; the model's own if not given."""
    bad_images: Literal["error", "skip"] = "error"
    """What to do about images that cannot be used, or whose features are not finite: stop, or leave
    them out and report them."""
    batch_size: int = 64
    """Images that the devices of a host take at a time."""
    workers: int | None = None
    """Threads that decode and resize; as many as there are processors if not given."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type to compute in."""
    part: int = 4096
    """Images of a part, after which work is saved."""
    mesh: MeshConfig = MeshConfig()
    """Devices of each host; batches are split over data and fsdp."""


def run(arguments: Arguments) -> pathlib.Path:
    """Compute the features, and return the file that they were written to.

    Raises:
      FileNotFoundError, ValueError: for a source, model or output that does not fit, or an image
        that cannot be used, with its name and row.
    """
    source = open_images(arguments.images, split=arguments.split)
    checkpoint = load(arguments.model, image_size=arguments.image_size)
    preprocessing = checkpoint.preprocessing
    if arguments.preprocessing != NATIVE:
        preprocessing = named(arguments.preprocessing, checkpoint.config.image_size)
    record = {
        "model": arguments.model,
        "model sha256": _digest_of_model(checkpoint.folder),
        "preprocessing": to_dict(preprocessing),
        "images": len(source),
        "names sha256": hashlib.sha256("\n".join(source.names).encode()).hexdigest(),
        "dtype": arguments.dtype,
        "bad_images": arguments.bad_images,
    }
    output, settings = arguments.output, arguments.output.with_suffix(".json")
    if output.exists():
        _check_record(settings, record, output)
        print(f"{output} is there already, made in the same way")
        return output
    folder = output.with_name(f"{output.name}.parts")
    in_parts = {**record, "part": arguments.part}
    if (folder / "record.json").exists():
        _check_record(folder / "record.json", in_parts, folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "record.json", in_parts)
    _embed_parts(arguments, source, checkpoint, preprocessing, folder)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("alignment.embed")
    if jax.process_index() == 0:
        features, skipped = _merge(folder, source, arguments, str(preprocessing))
        _write_json(settings, {**record, "skipped": skipped})
        features.write(output)
        shutil.rmtree(folder)
        print(f"written: {output}, {settings}")
    return output


def load(model: str, *, image_size: int | None = None) -> Pretrained:
    """Read a model: folder of a checkpoint, or of a run that has exported one, or hub name."""
    export = pathlib.Path(model) / "export"
    return from_pretrained(export if export.is_dir() else model, image_size=image_size)


def _embed_parts(
    arguments: Arguments,
    source: ImageSource,
    checkpoint: Pretrained,
    preprocessing: Preprocessing,
    folder: pathlib.Path,
) -> None:
    """Compute the parts of this host that are not there yet."""
    size = arguments.part
    mine = range(jax.process_index(), -(-len(source) // size), jax.process_count())
    rows = {part: np.arange(part * size, min((part + 1) * size, len(source))) for part in mine}
    total = sum(map(len, rows.values()))
    rows = {part: r for part, r in rows.items() if not _part_file(folder, part).exists()}
    left = sum(map(len, rows.values()))
    if not rows:
        return
    workers, on_bad = arguments.workers, arguments.bad_images
    _report(check_images(source, np.concatenate(list(rows.values())), workers=workers), on_bad)
    embedder = Embedder(
        checkpoint.config,
        checkpoint.params,
        preprocessing,
        batch_size=arguments.batch_size,
        dtype=arguments.dtype,
        mesh=make_mesh(arguments.mesh, jax.local_devices()),
    )

    def batches() -> Iterator[tuple[ImageBatch, np.ndarray]]:
        for part in rows.values():
            for batch in load_batches(
                source, part, preprocessing, batch_size=arguments.batch_size, workers=workers
            ):
                _report(batch.bad, on_bad, seen=True)
                yield batch, batch.images

    done = total - left
    with Progress(total, start=done, description="embed", unit="image") as progress:
        stream = embedder.stream(batches())
        for part, expected in rows.items():
            pieces, bad, count = [], dict[int, str](), 0
            while count < len(expected):
                batch, features = next(stream)
                wrong = _not_finite(batch, features, source)
                _report(wrong, on_bad)
                bad |= batch.bad | wrong
                pieces.append(features)
                count += len(features)
                progress.update(done := done + len(features), {})
            kept = ~np.isin(expected, list(bad))
            write_arrays(
                _part_file(folder, part),
                {
                    "rows": expected[kept],
                    "features": np.concatenate(pieces)[kept],
                    "skipped": np.array([*bad.values()], dtype=str),
                },
            )


def _not_finite(
    batch: ImageBatch, features: Float[np.ndarray, "B f"], source: ImageSource
) -> dict[int, str]:
    rows = batch.rows[~np.isfinite(features).all(1)]
    return {
        int(row): f"{source.names[row]} (row {row}): its features are not finite"
        for row in rows
        if row not in batch.bad
    }


def _report(
    bad: Mapping[int, str], on_bad: Literal["error", "skip"], *, seen: bool = False
) -> None:
    """Stop for bad images, or warn of them.

    Raises:
      ValueError: with the first of them.
    """
    if not bad:
        return
    first = next(iter(bad.values()))
    if on_bad == "error":
        raise ValueError(
            f"{first}; {len(bad):,} such image(s) here. Repair them, or leave them out with "
            "--bad-images skip"
        )
    if not seen:
        logger.warning("%s image(s) are left out, the first: %s", f"{len(bad):,}", first)


def _merge(
    folder: pathlib.Path, source: ImageSource, arguments: Arguments, preprocessing: str
) -> tuple[Features, list[str]]:
    """Put the parts together; also return what was left out."""
    rows, features, skipped = [], [], []
    for part in range(-(-len(source) // arguments.part)):
        path = _part_file(folder, part)
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: all hosts must see the same folder {folder.parent}"
            )
        arrays = read_arrays(path, required=("rows", "features", "skipped"))
        rows.append(arrays["rows"])
        features.append(arrays["features"])
        skipped += arrays["skipped"].tolist()
    kept = np.concatenate(rows)
    if skipped:
        print(f"{len(skipped):,} of {len(source):,} images were left out, see the .json")
    found = Features(
        features=np.concatenate(features),
        names=source.names[kept],
        model=arguments.model,
        preprocessing=preprocessing,
        labels=None if source.labels is None else source.labels[kept],
        label_names=source.label_names,
        coarse=None if source.coarse is None else source.coarse[kept],
        coarse_names=source.coarse_names,
    )
    return found, skipped


def _part_file(folder: pathlib.Path, part: int) -> pathlib.Path:
    return folder / f"part-{part:06d}.npz"


def _digest_of_model(folder: pathlib.Path) -> str:
    digest = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("model*.safetensors*")]):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _check_record(path: pathlib.Path, record: Mapping[str, Any], what: pathlib.Path) -> None:
    """Refuse what was made in another way, or by something else."""
    if not path.is_file():
        raise ValueError(f"{what} is there, but not {path}, which says how it was made; move it")
    before = json.loads(path.read_text())
    before.pop("skipped", None)
    refuse_changes(before, record, what=f"{what} was made", advice="move it, or write elsewhere")


def _write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    replace(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    cli.command(run, Arguments, argv, processes="many")


if __name__ == "__main__":
    main()
