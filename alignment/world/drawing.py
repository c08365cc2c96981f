"""Small colour drawings of things, made of a few painted shapes.

A thing is a list of parts in a square from -1 to 1 (x to the right, y down). What its kind has in
common with its kin are some parts (an eye, windows, leaves, a handle); its coat has a hue that the
basic class shares with one in every other kind, and a pattern that tells the subordinate class;
place, size, tilt and background mean nothing.
"""

import colorsys
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8

Shape = Literal["ellipse", "box", "triangle"]
Paint = Literal["coat", "dark", "light", "green", "wood"]

COLOURS: Mapping[str, tuple[float, float, float]] = {
    "dark": (0.12, 0.12, 0.14),
    "light": (0.95, 0.95, 0.9),
    "green": (0.25, 0.6, 0.2),
    "wood": (0.5, 0.33, 0.16),
}
"""Paints that do not depend on the coat."""
PATTERNS = ("plain", "stripes", "spots", "checks")
FAMILIES = 3
"""Families of hues."""
COATS = FAMILIES * len(PATTERNS)
"""Coats: in each family of hues one with each pattern, its hue a little off the others'."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One painted shape."""

    shape: Shape
    """Its outline; a triangle points up."""
    x: float
    """Centre."""
    y: float
    """Centre."""
    width: float
    """Half of its width."""
    height: float
    """Half of its height."""
    paint: Paint = "coat"
    """Its paint."""
    tilt: float = 0.0
    """Rotation, degrees."""


def _eye(x: float, y: float) -> list[Part]:
    return [Part("ellipse", x, y, 0.13, 0.13, "light"), Part("ellipse", x, y, 0.07, 0.07, "dark")]


def _windows(y: float, *at: float) -> list[Part]:
    return [Part("box", x, y, 0.09, 0.1, "light") for x in at]


def _wheels(y: float, *at: float) -> list[Part]:
    return [Part("ellipse", x, y, 0.19, 0.19, "dark") for x in at]


def _leaves(y: float) -> list[Part]:
    return [
        Part("ellipse", side * 0.24, y, 0.24, 0.1, "green", tilt=side * -30) for side in (-1, 1)
    ]


_HANDLE = Part("box", 0.0, 0.25, 0.09, 0.65, "wood")

THINGS: Mapping[str, Mapping[str, Sequence[Part]]] = {
    "animal": {
        "dog": [
            *[Part("box", x, 0.5, 0.09, 0.3) for x in (-0.4, 0.35)],
            Part("ellipse", 0.0, 0.15, 0.6, 0.3),
            Part("ellipse", 0.55, -0.25, 0.3, 0.27),
            Part("triangle", 0.45, -0.6, 0.12, 0.18),
            *_eye(0.6, -0.3),
        ],
        "bird": [
            *[Part("box", x, 0.6, 0.04, 0.3, "dark") for x in (-0.1, 0.15)],
            Part("ellipse", 0.0, 0.1, 0.5, 0.35, tilt=-20),
            Part("triangle", -0.15, -0.3, 0.25, 0.4, tilt=-30),
            Part("ellipse", 0.45, -0.35, 0.27, 0.25),
            Part("triangle", 0.8, -0.33, 0.1, 0.15, "dark", tilt=90),
            *_eye(0.5, -0.4),
        ],
        "fish": [
            Part("triangle", -0.65, 0.0, 0.32, 0.3, tilt=90),
            Part("triangle", 0.0, -0.4, 0.22, 0.2),
            Part("ellipse", 0.1, 0.0, 0.65, 0.36),
            *_eye(0.45, -0.08),
        ],
    },
    "vehicle": {
        "car": [
            Part("box", 0.0, -0.2, 0.42, 0.22),
            Part("box", 0.0, 0.15, 0.8, 0.22),
            *_windows(-0.2, -0.2, 0.2),
            *_wheels(0.42, -0.42, 0.42),
        ],
        "bus": [
            Part("box", 0.0, -0.1, 0.8, 0.5),
            *_windows(-0.25, -0.5, -0.17, 0.17, 0.5),
            *_wheels(0.45, -0.45, 0.45),
        ],
        "boat": [
            Part("box", 0.0, -0.15, 0.06, 0.6, "dark"),
            Part("triangle", 0.3, -0.45, 0.25, 0.3, "light"),
            Part("ellipse", 0.0, 0.35, 0.8, 0.3),
            Part("box", -0.15, 0.05, 0.35, 0.2),
            *_windows(0.3, -0.4, 0.0, 0.4),
        ],
    },
    "plant": {
        "tree": [
            Part("box", 0.0, 0.5, 0.1, 0.45, "dark"),
            Part("ellipse", 0.0, -0.3, 0.6, 0.5),
            *_leaves(0.45),
        ],
        "flower": [
            Part("box", 0.0, 0.4, 0.05, 0.5, "green"),
            *[
                Part("ellipse", 0.3 * np.sin(a), -0.4 - 0.3 * np.cos(a), 0.22, 0.22)
                for a in np.arange(5) * 2 * np.pi / 5
            ],
            Part("ellipse", 0.0, -0.4, 0.15, 0.15, "light"),
            *_leaves(0.5),
        ],
        "cactus": [
            Part("box", 0.0, 0.1, 0.22, 0.75),
            *[Part("box", x, y, 0.1, 0.3) for x, y in ((-0.5, -0.2), (0.5, -0.1))],
            *[Part("box", x, 0.15, 0.25, 0.09) for x in (-0.35, 0.35)],
            *_leaves(-0.55),
        ],
    },
    "tool": {
        "hammer": [_HANDLE, Part("box", 0.0, -0.5, 0.55, 0.22)],
        "spade": [_HANDLE, Part("ellipse", 0.0, -0.5, 0.36, 0.42)],
        "axe": [_HANDLE, Part("triangle", 0.25, -0.4, 0.4, 0.38, tilt=-90)],
    },
}
"""Parts of the things, by superordinate and basic class; later parts lie on top."""


def _inside(part: Part, x: Float[np.ndarray, "s s"], y: Float[np.ndarray, "s s"]) -> np.ndarray:
    """Return the distance to the outline of a part, roughly, positive inside."""
    angle = np.deg2rad(part.tilt)
    dx, dy = x - part.x, y - part.y
    u = np.cos(angle) * dx + np.sin(angle) * dy
    v = np.cos(angle) * dy - np.sin(angle) * dx
    match part.shape:
        case "ellipse":
            radius = np.hypot(u / part.width, v / part.height)
            return (1 - radius) * min(part.width, part.height)
        case "box":
            return np.minimum(part.width - np.abs(u), part.height - np.abs(v))
        case "triangle":
            slope = part.width / (2 * part.height)
            side = (slope * (v + part.height) - np.abs(u)) / np.hypot(1, slope)
            return np.minimum(side, part.height - v)


def _coat(coat: int, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the colour of a coat at each place: (s, s, 3)."""
    family, pattern = divmod(coat, len(PATTERNS))
    hue = family / FAMILIES + 0.05 * (pattern - 1.5) + rng.normal(0, 0.01)
    bright = np.array(colorsys.hsv_to_rgb(hue % 1, 0.75, rng.uniform(0.75, 0.95)))
    dim = np.array(colorsys.hsv_to_rgb(hue % 1, 0.85, 0.35))
    a, b = rng.uniform(0, 2 * np.pi, 2)
    waves = {
        "plain": np.ones_like(x),
        "stripes": np.sin(16 * x + a),
        "spots": 0.6 - np.cos(12 * x + a) * np.cos(12 * y + b),
        "checks": np.sin(10 * x + a) * np.sin(10 * y + b),
    }
    mix = np.clip(0.5 + 2 * waves[PATTERNS[pattern]], 0, 1)[..., None]
    return mix * bright + (1 - mix) * dim


def _background(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a wavy mixture of two random colours: (s, s, 3)."""
    first, second = rng.uniform(0.2, 0.8) + rng.uniform(-0.2, 0.2, (2, 3))
    wave, phase = rng.normal(0, 5, 2), rng.uniform(0, 2 * np.pi)
    mix = 0.5 + 0.5 * np.sin(wave[0] * x + wave[1] * y + phase)[..., None]
    return mix * first + (1 - mix) * second


def draw(
    parts: Sequence[Part], *, coat: int, size: int, noise: float, rng: np.random.Generator
) -> UInt8[np.ndarray, "s s 3"]:
    """Draw a thing at a random place, size and tilt before a random background.

    Args:
      parts: the thing.
      coat: its coat, 0 to `COATS - 1`.
      size: side of the image, pixels.
      noise: standard deviation of the noise of each pixel and colour, of a range of 1.
      rng: source of all that is random.
    """
    grid = (np.arange(size) + 0.5) * 2 / size - 1
    x, y = np.meshgrid(grid, grid)
    image = _background(x, y, rng)
    scale, angle = rng.uniform(0.7, 0.95), np.deg2rad(rng.uniform(-20, 20))
    dx, dy = rng.uniform(-0.15, 0.15, 2)
    u = (np.cos(angle) * (x - dx) + np.sin(angle) * (y - dy)) / scale * rng.choice((-1, 1))
    v = (np.cos(angle) * (y - dy) - np.sin(angle) * (x - dx)) / scale
    coated = _coat(coat, u, v, rng)
    for part in parts:
        paint = coated if part.paint == "coat" else np.array(COLOURS[part.paint])
        # Edges are as soft as a pixel is wide.
        cover = np.clip(0.5 + _inside(part, u, v) * scale * size / 2, 0, 1)[..., None]
        image = (1 - cover) * image + cover * paint
    image += rng.normal(0, noise, image.shape)
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
