"""Settings of the study, its images, and the THINGS concepts of their classes."""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Int

from alignment.files import write_arrays
from alignment.vit.config import ViTConfig, preset

SHARED = pathlib.Path(__file__).parents[3].parent / "shared" / "data"
Model = Literal["start", "AligNet", "control"]
Scores = dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Train the start, the students and their controls, and compare them."""

    workdir: pathlib.Path = pathlib.Path("runs/alignment/students")
    """Folder of everything in between."""
    shared: pathlib.Path = SHARED
    """Folder of the shared data."""
    size: Literal[32, 64] = 64
    """Side of the images, pixels; 32 are means of 2 x 2."""
    patch: int = 8
    """Side of a patch."""
    width: int = 128
    """Width of the ViT; its MLP has four times as much."""
    layers: int = 4
    """Blocks."""
    start_epochs: float = 10.0
    """Passes over the training images for the start; the longest part of all on a CPU."""
    student_steps: int = 800
    """Steps of each student."""
    student_rate: float = 3e-4
    """Peak of the students' learning rate."""
    taus: tuple[float, ...] = (100.0, 200.0, 500.0, 1000.0, 2000.0)
    """Temperatures of the student's choices to take from."""
    pull: float = 1.5
    """Sum over the steps of learning rate times decay towards the start, as published."""
    teacher_steps: int = 2000
    """Steps of the teacher's fits."""
    clusters: int = 20
    """Clusters of the teacher's features."""
    train_triplets: int = 65_536
    """Training triplets, a multiple of 256."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the students."""
    level_triplets: int = 20_000
    """Test triplets of each kind."""
    images_per_class: int | None = None
    """Take the first images of each class only, for a trial."""

    @property
    def model(self) -> ViTConfig:
        """The architecture of start and students."""
        return preset(
            "vit-tiny",
            image_size=self.size,
            patch=self.patch,
            width=self.width,
            mlp=4 * self.width,
            layers=self.layers,
            heads=self.width // 32,
        )


def reader(folder: pathlib.Path) -> Callable[..., dict[str, np.ndarray]]:
    """Return the function that decodes the image files; it lies beside them."""
    spec = importlib.util.spec_from_file_location("read_images", folder / "read_images.py")
    if spec is None or spec.loader is None or not (folder / "read_images.py").is_file():
        raise FileNotFoundError(f"no read_images.py in {folder}: give --shared")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load


def image_file(arguments: Arguments, name: str) -> pathlib.Path:
    """Decode an image file once, and return where its pixels lie."""
    path = arguments.workdir / "images" / f"{name}_{arguments.size}.npz"
    if not path.is_file():
        folder = arguments.shared / "images"
        load, size = reader(folder), arguments.size if name.startswith("tiny") else 32
        found = load(
            folder / f"{name}.npz", **({"size": 32} if size == 32 and "tiny" in name else {})
        )
        keep = np.ones(len(found["label"]), bool)
        if arguments.images_per_class is not None:
            order = np.argsort(found["label"], kind="stable")
            counts = np.bincount(found["label"])
            place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
            keep = np.zeros(len(order), bool)
            keep[order[place < arguments.images_per_class]] = True
        write_arrays(
            path,
            {
                "images": found["images"][keep],
                "names": np.char.decode(found["source"], "utf-8")[keep],
                "labels": found["label"][keep].astype(np.int32),
                "label_names": found["class_names"],
                "coarse": found["coarse"][keep].astype(np.int32),
                "coarse_names": found["coarse_names"],
            },
        )
    return path


def concepts(arguments: Arguments) -> Int[np.ndarray, "classes"]:
    """Return the THINGS row of each class, or of what it is a kind of; -1 for none."""
    lines = (arguments.shared / "images" / "class_to_things.tsv").read_text("utf-8").splitlines()
    header, *rows = (line.split("\t") for line in lines)
    at = {
        name: header.index(name)
        for name in ("dataset", "label", "things_row", "broader_things_row")
    }
    found = np.full(200, -1)
    for row in rows:
        if row[at["dataset"]] == "tiny_imagenet":
            value = row[at["things_row"]] or row[at["broader_things_row"]]
            if value:
                found[int(row[at["label"]])] = int(value)
    return found
