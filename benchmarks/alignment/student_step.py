"""Speed of a student's training step, against transformers with torch.

    python -m benchmarks.alignment.student_step

The student is ViT-B/16 (SigLIP's, or another preset) with its triplet head of 1,024 outputs, in
float32. A step embeds the images of a few triplets, takes the Jensen-Shannon divergence at
temperature 100, and moves all parameters by Adam with decay towards their start. Ours is the whole
step of the trainer (`common.step`: gradient norm, skipping of non-finite steps, metrics); the peer
is the model of transformers, eager, with torch's fused Adam and the decay by `_foreach_lerp_`. Both
start from the same weights, see the same pixels and labels, use all cores, and take steps in
turn, each in a process of its own; their losses after these steps are compared.

How much a faster program around the matrix products could still gain is told by the products alone,
each in the library's own speed, measured in the same run.

Then the same triplets, drawn so that they share images, with each distinct image embedded once
(gathered after the tower) against each triplet's three images embedded for itself.

Writes `student_step.json` and `student_step.md` beside this file.
"""

import dataclasses
import functools
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

# Torch's waiting threads would keep the cores busy while the other side runs.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import jax
import numpy as np
import tyro

from alignment.images.preprocess import named
from alignment.student import Student
from alignment.triplets.batches import TripletImages
from alignment.vit.config import ViTConfig, preset
from alignment.vit.pretrained import save_pretrained
from benchmarks.timing import Apart, in_turn
from common import Data, Experiment, OptimConfig
from common.data.arrays import WHOLE, Arrays, Part
from common.report import provenance, table
from common.setup import prepare

RATE = 3e-5
HEAD = 1024
TAU = 100.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure a student's training step."""

    model: str = "siglip-b16"
    """Preset of the backbone."""
    image_size: int = 224
    """Side of the images, pixels."""
    scan: bool = False
    """Run the blocks by `lax.scan`; unrolled, they are faster on a CPU."""
    triplets: int = 2
    """Triplets of a step, three images each, in the comparison with torch."""
    shared_triplets: int = 4
    """Triplets of a step in the comparison of shared images."""
    shared_images: int = 4
    """Distinct images that they share."""
    repeats: int = 5
    """Steps of each side that are timed."""
    torch: bool = True
    """Measure the peer."""


def make_batch(groups: int, triplets: int, images: int, size: int) -> dict[str, np.ndarray]:
    """Draw pixels, triplets within groups of images, and labels."""
    rng = np.random.default_rng(0)
    order = [
        rng.permuted(np.tile(np.arange(images), (triplets, 1)), axis=1)[:, :3]
        for _ in range(groups)
    ]
    similarities = -np.sort(-rng.normal(0, 2, (groups, triplets, 3)), -1)
    return {
        "images": rng.integers(0, 256, (groups, images, size, size, 3), np.uint8),
        "triplets": np.stack(order).astype(np.int32),
        "similarities": similarities.astype(np.float32),
    }


class _OneBatch(Data):
    def __init__(self, batch: Arrays) -> None:
        self._batch = batch

    def batch(self, step: int, part: Part = WHOLE) -> Arrays:  # noqa: ARG002
        return {name: array[part] for name, array in self._batch.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step(Student):
    """The student's task: one batch, again and again."""

    given: Arrays
    """The batch."""

    def data(self, *, batch_size: int, seed: int) -> Data:  # noqa: ARG002
        """Return the batch."""
        return _OneBatch(self.given)


class Ours:
    """The trainer's step, compiled."""

    def __init__(self, model: ViTConfig, batch: Arrays) -> None:
        groups, triplets = batch["triplets"].shape[:2]
        images = batch["images"].shape[1]
        task = Step(
            model=model,
            head=HEAD,
            given=batch,
            eval_samplings=(),
            data_set=TripletImages(
                root="", images="", group_triplets=triplets, group_images=max(3, images)
            ),
        )
        self.images = groups * images
        setup = self.setup = prepare(
            Experiment(
                task=task,
                steps=100_000,
                batch_size=groups * triplets,
                optim=OptimConfig(
                    learning_rate=RATE, schedule="constant", weight_decay=1.0, decay_to_init=True
                ),
            )
        )
        self._state = setup.init_state()
        self.start = jax.device_get(self._state.params)
        stacked = {name: array[None] for name, array in batch.items()}
        begin = time.perf_counter()
        self._step = setup.train_step.lower(self._state, stacked).compile()
        self.compile_seconds = time.perf_counter() - begin
        self._batch, self._totals = stacked, (0.0, 0.0)
        planned = self._step.memory_analysis()
        self.temporary_megabytes = planned.temp_size_in_bytes / 1e6

    def __call__(self) -> float:
        """Take a step and return its loss."""
        self._state, window = self._step(self._state, self._batch)
        loss = jax.device_get(window)["loss"]
        now = float(loss.total), float(loss.weight)
        total, weight = (a - b for a, b in zip(now, self._totals, strict=True))
        self._totals = now
        return total / weight


class Torch:
    """The peer, from the same weights; it embeds the three images of each triplet."""

    def __init__(self, model: ViTConfig, params: Any, batch: Arrays) -> None:
        import torch
        import transformers

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        with tempfile.TemporaryDirectory() as folder:
            preprocessing = named("alignet", model.image_size)
            save_pretrained(folder, model, params["backbone"], preprocessing=preprocessing)
            config = json.loads((pathlib.Path(folder) / "config.json").read_text())
            kind = getattr(transformers, config["architectures"][0])
            self.model = kind.from_pretrained(folder)
        self.model.train()
        self.head = torch.nn.Linear(model.features, HEAD)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor(params["triplet_head"]["kernel"].T))
            self.head.bias.zero_()
        self._parameters = [*self.model.parameters(), *self.head.parameters()]
        self._parameters = [p for p in self._parameters if p.requires_grad]
        self._start = [p.detach().clone() for p in self._parameters]
        self._optimizer = torch.optim.Adam(self._parameters, lr=RATE, fused=True)
        images = batch["images"][0, batch["triplets"][0]]  # (t, 3, s, s, 3)
        if batch["triplets"].shape[1] == 1:
            images = batch["images"][
                np.arange(len(batch["images"]))[:, None], batch["triplets"][:, 0]
            ]
        flat = images.reshape(-1, *images.shape[2:])
        self._pixels = torch.tensor(np.ascontiguousarray(flat.transpose(0, 3, 1, 2)))
        self._similarities = torch.tensor(batch["similarities"].reshape(-1, 3))
        self._torch = torch

    def _loss(self) -> Any:
        torch, functional = self._torch, self._torch.nn.functional
        found = self.model(pixel_values=self._pixels.float() / 255)
        pooled = getattr(found, "pooler_output", None)
        if pooled is None or self.model.config.model_type == "vit":
            pooled = found.last_hidden_state[:, 0]
        z = self.head(pooled).reshape(-1, 3, HEAD)
        dots = torch.stack([(z[:, a] * z[:, b]).sum(-1) for a, b in ((0, 1), (0, 2), (1, 2))], -1)
        log_p = functional.log_softmax(self._similarities, -1)
        log_q = functional.log_softmax(dots / TAU, -1)
        log_m = torch.logaddexp(log_p, log_q) - np.log(2)
        kl = [(log.exp() * (log - log_m)).sum(-1) for log in (log_p, log_q)]
        return (sum(kl) / 2).mean()

    def __call__(self) -> float:
        """Take a step and return its loss."""
        self._optimizer.zero_grad()
        loss = self._loss()
        loss.backward()
        with self._torch.no_grad():
            # Decoupled: from the parameters before the step, as ours.
            self._torch._foreach_lerp_(self._parameters, self._start, RATE)
        self._optimizer.step()
        return loss.item()


def products(config: ViTConfig, images: int) -> list[tuple[int, int, int, int]]:
    """List the forward products of the blocks' linear maps as (rows, inputs, outputs, count)."""
    rows = images * (config.grid**2 + config.prefix)
    d, m, layers = config.width, config.mlp, config.layers
    return [
        (images * config.grid**2, 3 * config.patch**2, d, 1),
        (rows, d, d, 4 * layers),
        (rows, d, m, layers),
        (rows, m, d, layers),
    ]


def products_alone(config: ViTConfig, images: int, *, repeats: int) -> dict[str, float]:
    """Return the wall seconds of a step's matrix products, without anything between them."""
    import torch

    seconds = {"ours": 0.0, "torch": 0.0}
    operations = 0.0
    for n, wide, out, count in products(config, images):
        x, w, dy = (np.ones(shape, np.float32) for shape in ((n, wide), (wide, out), (n, out)))
        for a, b, call in (
            (x, w, lambda a, b: a @ b),
            (dy, w, lambda a, b: a @ b.T),
            (x, dy, lambda a, b: a.T @ b),
        ):
            compiled, on_device = jax.jit(call), jax.device_put((a, b))
            tensors = torch.tensor(a), torch.tensor(b)
            times = in_turn(
                {
                    "ours": lambda f=compiled, ab=on_device: f(*ab).block_until_ready(),
                    "torch": lambda f=call, ab=tensors: f(*ab),
                },
                repeats=repeats,
            )
            for side in seconds:
                seconds[side] += count * times[side]["median wall"]
            operations += 2.0 * n * wide * out * count
    return {**seconds, "operations": operations}


def measure(arguments: Arguments) -> dict[str, Any]:
    """Measure all of it."""
    model = preset(arguments.model, image_size=arguments.image_size, scan=arguments.scan)
    found: dict[str, Any] = {}
    images = 3 * arguments.triplets
    batch = make_batch(arguments.triplets, 1, 3, model.image_size)
    ours = Ours(model, batch)
    found["compile seconds"] = ours.compile_seconds
    found["flops"] = ours.setup.flops
    found["images"] = images
    if arguments.torch:
        peer = Apart(functools.partial(Torch, model, ours.start, batch))
        found["steps"] = in_turn({"ours": ours, "torch": peer}, repeats=arguments.repeats)
        print({s: t["median wall"] for s, t in found["steps"].items()}, flush=True)
        peer.close()
        found["products"] = products_alone(model, images, repeats=arguments.repeats)
        print("products", found["products"], flush=True)
    del ours
    shared = make_batch(1, arguments.shared_triplets, arguments.shared_images, model.image_size)
    apart = {
        "images": shared["images"][0][shared["triplets"][0]],
        "triplets": np.tile(np.arange(3, dtype=np.int32), (arguments.shared_triplets, 1, 1)),
        "similarities": shared["similarities"].reshape(-1, 1, 3),
    }
    sides = {"shared": Ours(model, shared), "apart": Ours(model, apart)}
    times = in_turn(sides, repeats=arguments.repeats)
    for name, side in sides.items():
        times[name] |= {"images": side.images, "temporary MB": side.temporary_megabytes}
    found["shared"] = times
    print({s: t["median wall"] for s, t in times.items()}, flush=True)
    return found


def largest_gap(losses: Sequence[Sequence[float]]) -> float:
    """Return the largest relative difference of two lists of losses."""
    return max(abs(a / b - 1) for a, b in zip(*losses, strict=True))


def report(arguments: Arguments, found: Mapping[str, Any]) -> str:
    """Write the tables."""
    parts = []
    images = found["images"]
    if "steps" in found:
        steps = found["steps"]
        rows = []
        for clock in ("wall", "processor"):
            a, b = (steps[side][f"median {clock}"] for side in ("ours", "torch"))
            rows.append(
                (
                    clock,
                    f"{a:.2f}",
                    f"{b:.2f}",
                    f"{images / a:.2f}",
                    f"{images / b:.2f}",
                    f"{b / a:.2f}",
                )
            )
        header = ("clock", "ours, s", "torch, s", "ours, images/s", "torch, images/s", "gain")
        alone, ours, peer = (
            found["products"],
            steps["ours"]["median wall"],
            steps["torch"]["median wall"],
        )
        giga = alone["operations"] / 1e9
        gap = largest_gap([steps[side]["results"] for side in ("ours", "torch")])
        parts += [
            f"## A step on {arguments.triplets} triplets ({images} images)",
            table(header, rows),
            f"The losses of the two, at all steps, differ by {gap:.0e} at most. The step is "
            f"{found['flops'] / 1e9:.0f} GFLOP: {found['flops'] / ours / 1e9:.0f} GFLOP/s in ours.",
            f"The {giga:.0f} GFLOP of the linear maps alone take XLA {alone['ours']:.2f} s "
            f"({giga / alone['ours']:.0f} GFLOP/s; {alone['ours'] / ours:.0%} of our step), and "
            f"torch {alone['torch']:.2f} s ({giga / alone['torch']:.0f} GFLOP/s; "
            f"{alone['torch'] / peer:.0%} of its step). With everything else free, our gain would "
            f"be {peer / alone['ours']:.2f}.",
        ]
    shared, apart = found["shared"]["shared"], found["shared"]["apart"]
    rows = [
        (
            name,
            str(side["images"]),
            f"{side['median wall']:.2f}",
            f"{arguments.shared_triplets / side['median wall']:.2f}",
            f"{side['temporary MB']:.0f}",
        )
        for name, side in (("each distinct image once", shared), ("three a triplet", apart))
    ]
    gap = largest_gap([shared["results"], apart["results"]])
    parts += [
        f"## {arguments.shared_triplets} triplets that share {arguments.shared_images} images",
        table(("images are embedded", "images", "s", "triplets/s", "temporary memory, MB"), rows),
        f"Their losses, at all steps, differ by {gap:.0e} at most.",
    ]
    return "\n\n".join(parts)


def main(arguments: Arguments) -> None:
    """Measure, and write the results."""
    found = measure(arguments)
    origin = provenance()
    here = pathlib.Path(__file__)
    document = {**origin, "arguments": dataclasses.asdict(arguments), **found}
    here.with_suffix(".json").write_text(json.dumps(document, indent=2) + "\n")
    parts = [
        "# A training step of the student",
        f"{origin['machine']}; {origin['date']}; {origin['versions']}; `{origin['command']}`",
        f"{arguments.model}, {arguments.image_size} pixels, float32, blocks "
        f"{'in a scan' if arguments.scan else 'unrolled'}; medians of {arguments.repeats} steps. "
        "What is what: see `student_step.py`.",
        report(arguments, found),
    ]
    here.with_suffix(".md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
