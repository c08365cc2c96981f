"""Speed of the features of vision transformers, against transformers with torch.

    python -m benchmarks.alignment.vit_forward

Both compute the features of the same images in float32 from the same random weights, on all cores
of the CPU, or on the GPU where there is one, in turn in one process; the peer is eager, with
torch's fused attention, and on a GPU also compiled. Times are medians.

Writes `vit_forward.json` and `vit_forward.md` beside this file (`vit_forward_gpu.*` on a GPU).
"""

import dataclasses
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping

# Torch's waiting threads would keep the cores busy while the other side runs.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import jax
import numpy as np
import transformers
import tyro

from alignment.images.preprocess import named
from alignment.vit.hf_format import render_config
from alignment.vit.model import bind, init, preset
from alignment.vit.pretrained import save_pretrained
from common.flops import count_flops
from common.report import provenance, table

try:
    import torch
except ImportError:
    raise SystemExit("this needs torch: pip install 'jax-three-papers[parity]'") from None

OUTPUT = pathlib.Path(__file__).with_suffix(".json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure features of images."""

    models: tuple[str, ...] = ("siglip-b16", "clip-b32", "dino-s16")
    """Presets."""
    images: int = 8
    """Images of a batch."""
    repeats: int = 7
    """Timings of each."""


def measure(name: str, arguments: Arguments) -> dict[str, float | str]:
    """Return seconds of ours and of torch, and the largest difference of their features."""
    config = preset(name)
    params = jax.jit(init, static_argnums=0)(config, jax.random.key(0))
    rng = np.random.default_rng(0)
    shape = (arguments.images, config.image_size, config.image_size, 3)
    images = rng.normal(size=shape).astype(np.float32)
    on_gpu = jax.default_backend() == "gpu"
    kind = render_config(config)["architectures"][0]
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(folder, config, params, preprocessing=named("alignet", config.image_size))
        extra = {"add_pooling_layer": False} if kind == "ViTModel" else {}
        model = getattr(transformers, kind).from_pretrained(folder, **extra).eval()
    device = torch.device("cuda" if on_gpu else "cpu")
    model = model.to(device)
    pixels = torch.tensor(images.transpose(0, 3, 1, 2), device=device)
    ours = jax.jit(lambda params, images: bind(config, params)(images))
    placed = jax.device_put(images)

    def torch_features(run: Callable) -> torch.Tensor:
        with torch.inference_mode():
            found = run(pixel_values=pixels)
        if kind == "ViTModel":
            return found.last_hidden_state[:, 0]
        return found.image_embeds if config.projection else found.pooler_output

    peers: Mapping[str, Callable] = {"torch": model}
    if on_gpu:
        peers = {**peers, "torch.compile": torch.compile(model)}

    def run_peer(peer: Callable) -> None:
        torch_features(peer)
        if on_gpu:
            torch.cuda.synchronize()

    settings: dict[str, Callable[[], object]] = {
        "ours": lambda: jax.block_until_ready(ours(params, placed)),
        **{name: lambda peer=peer: run_peer(peer) for name, peer in peers.items()},
    }
    for work in settings.values():
        work()
        work()
    times: dict[str, list[float]] = {name: [] for name in settings}
    for _ in range(arguments.repeats):
        for setting, work in settings.items():
            start = time.perf_counter()
            work()
            times[setting].append(time.perf_counter() - start)
    expected = torch_features(model).cpu().numpy()
    found = np.asarray(ours(params, placed))
    return {
        "model": name,
        **{setting: statistics.median(values) for setting, values in times.items()},
        "difference": float(np.abs(found - expected).max() / np.abs(expected).max()),
        "flops": count_flops(ours, params, images),
    }


def main() -> None:
    """Measure, and write the table."""
    arguments = tyro.cli(Arguments)
    results = [measure(name, arguments) for name in arguments.models]
    about = provenance() | {"torch": torch.__version__, "transformers": transformers.__version__}
    output = OUTPUT
    if jax.default_backend() == "gpu":
        output = OUTPUT.with_name("vit_forward_gpu.json")
    output.write_text(json.dumps({**about, "results": results}, indent=1) + "\n")
    peers = [key for key in results[0] if str(key).startswith("torch")]
    rows = [
        [
            str(row["model"]),
            f"{arguments.images / float(row['ours']):.1f}",
            f"{float(row['flops']) / float(row['ours']) / 1e9:.0f}",
            *(f"{float(row[peer]) / float(row['ours']):.2f}" for peer in peers),
            f"{float(row['difference']):.0e}",
        ]
        for row in results
    ]
    head = ["model", "images/s", "Gflop/s", *(f"speed against {p}" for p in peers), "difference"]
    text = [
        "# Features of vision transformers",
        f"{about['machine']}; {about['date']}; {about['versions']}, torch {about['torch']}, "
        f"transformers {about['transformers']}.",
        f"    {about['command']}",
        f"{arguments.images} images a batch, float32, medians of {arguments.repeats}; the "
        "difference of the features is relative to the largest.",
        table(head, rows),
    ]
    output.with_suffix(".md").write_text("\n\n".join(text) + "\n")
    print(output.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
