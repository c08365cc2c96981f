"""The teacher and the triplets that it labels, for AligNet and for the control."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy.stats import entropy

from alignment.cluster import __main__ as cluster
from alignment.features import Features
from alignment.files import read_arrays
from alignment.judgments import Standardisation, Transform, pair_logits, read_names
from alignment.teacher import __main__ as teacher
from alignment.teacher.fit import FitConfig
from alignment.triplets import __main__ as triplets
from alignment.triplets.shared_images import Pool
from benchmarks.alignment.students.data import Arguments, concepts, image_file


def make_teacher(arguments: Arguments) -> Transform:
    """Fit the transform of CLIP's features of the THINGS objects to VICE's choices."""
    folder, out = arguments.workdir / "teacher", arguments.workdir / "teacher" / "transform.npz"
    data = arguments.shared / "alignment"
    names = read_names(data / "things_spose" / "unique_id.txt")
    clip = np.load(
        data / "things_features" / "clip-vit-base-p32-embeddings.npy", allow_pickle=False
    )
    if not out.is_file():
        Features(features=clip, names=names, model="CLIP ViT-B/32").write(folder / "things.npz")
        teacher.run(
            teacher.Arguments(
                features=folder / "things.npz",
                triplets=data / "things_triplets" / "things_human_triplets_300k.npz",
                embeddings=(data / "vice" / "vice_things_final_embedding.npy",),
                lambdas=(1e-2, 3e-2, 1e-1, 3e-1),
                fit=FitConfig(steps=arguments.teacher_steps),
                out=out,
            )
        )
    return Transform.read(out)


def label_entropy(features: Float[np.ndarray, "n p"], drawn: Int[np.ndarray, "m 3"]) -> float:
    """Return the mean entropy, in nats, of the choices between images."""
    p = jax.nn.softmax(pair_logits(jnp.asarray(features, jnp.float32), drawn))
    return float(entropy(np.asarray(p, np.float64), axis=1).mean())


def make_triplets(arguments: Arguments, pool: Pool) -> dict[str, float]:
    """Make the triplets of AligNet and control; return the entropies of their labels."""
    out = arguments.workdir
    transform = make_teacher(arguments)
    clip = Features.read(out / "teacher" / "things.npz").features
    train = read_arrays(image_file(arguments, "tiny_imagenet_train"))
    row = concepts(arguments)[train["labels"]]
    known = row >= 0
    # Different classes in each triplet, so that no similarity is that of an image with itself.
    rng = np.random.default_rng(0)
    drawn = rng.choice(np.unique(row[known]), (20_000, 3))
    drawn = drawn[(np.sort(drawn, 1)[:, 1:] != np.sort(drawn, 1)[:, :-1]).all(1)]
    target = label_entropy(transform(clip), drawn)
    low, high = 0.1, 100.0
    for _ in range(40):  # the larger the scale, the lower the entropy
        scale = (low * high) ** 0.5
        low, high = (scale, high) if label_entropy(scale * clip, drawn) > target else (low, scale)
    own = transform.standardisation
    scaled = dataclasses.replace(
        transform, standardisation=Standardisation(mean=scale * own.mean, std=scale * own.std)
    )
    features, path = out / "teacher" / "train.npz", out / "teacher" / "scaled.npz"
    Features(
        features=(scale * clip[row[known]]).astype(np.float32),
        names=train["names"][known],
        model="CLIP ViT-B/32 of the class's THINGS concept",
        labels=train["labels"][known],
        label_names=train["label_names"],
    ).write(features)
    scaled.write(path)
    clusters = out / "teacher" / "clusters.npz"
    cluster.run(
        cluster.Arguments(
            features=features, out=clusters, transform=path, clusters=arguments.clusters
        )
    )
    settings: dict[str, Any] = {
        "features": features,
        "clusters": clusters,
        "out": out / "triplets",
        "train": arguments.train_triplets,
        "val": 2048,
        "pool": pool,
    }
    triplets.run(triplets.Arguments(transform=path, **settings))
    triplets.run(triplets.Arguments(untransformed=True, **settings))
    return {"AligNet": target, "control": label_entropy(scale * clip, drawn), "scale": scale}
