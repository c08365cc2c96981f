"""Do features follow a hierarchy of classes, and do they more so after alignment than before?"""

import collections
import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from alignment.evaluation.rsa import rdm, upper_triangle
from common.files import PathLike

RELATIONS = ("same subordinate", "same basic", "same superordinate", "different superordinate")
"""Of two images, by the finest class that they share."""


class Hierarchy:
    """An is-a relation: a tree such as that of BREEDS, or a graph such as WordNet's."""

    def __init__(self, edges: Sequence[tuple[str, str]]) -> None:
        """Take `(parent, child)` pairs.

        Raises:
          ValueError: if they go in a circle.
        """
        self._parents: dict[str, list[str]] = collections.defaultdict(list)
        children: dict[str, list[str]] = collections.defaultdict(list)
        for parent, child in edges:
            self._parents[child].append(parent)
            children[parent].append(child)
        self.nodes = children.keys() | self._parents.keys()
        # Breadth first from the roots: the depth of a node is that of its shortest path.
        self._up: dict[str, str | None] = {
            node: None for node in sorted(self.nodes) if not self._parents.get(node)
        }
        queue = collections.deque(self._up)
        while queue:
            node = queue.popleft()
            for child in sorted(children[node]):
                if child not in self._up:
                    self._up[child] = node
                    queue.append(child)
        if circle := sorted(self.nodes - self._up.keys()):
            raise ValueError(f"the hierarchy has a circle: {circle[0]!r} is under no root")

    @classmethod
    def read(cls, path: PathLike) -> "Hierarchy":
        """Read `parent child` lines.

        Raises:
          FileNotFoundError, ValueError: naming the file, and the line at fault.
        """
        if not pathlib.Path(path).is_file():
            raise FileNotFoundError(f"no file {path}")
        edges = []
        for number, line in enumerate(pathlib.Path(path).read_text("utf-8").splitlines(), 1):
            if not line.strip():
                continue
            match line.split():
                case [parent, child]:
                    edges.append((parent, child))
                case _:
                    raise ValueError(
                        f"{path}, line {number}: expected `parent child`, got {line!r}"
                    )
        try:
            return cls(edges)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def path(self, node: str) -> list[str]:
        """Return the way from the root to a node, both included; the shortest, where several are.

        Raises:
          ValueError: for an unknown node.
        """
        if node not in self._up:
            raise ValueError(f"the hierarchy has no node {node!r}")
        found = [node]
        while (up := self._up[found[-1]]) is not None:
            found.append(up)
        return found[::-1]

    def at_depth(self, nodes: Sequence[str], depth: int) -> list[str]:
        """Return the ancestor of each node at a depth, 0 the root; a shallower node is its own."""
        return [path[min(depth, len(path) - 1)] for path in map(self.path, nodes)]

    def ancestors(self, node: str) -> set[str]:
        """Return all nodes above, on every path."""
        found: set[str] = set()
        queue = [node]
        while queue:
            for parent in self._parents.get(queue.pop(), ()):
                if parent not in found:
                    found.add(parent)
                    queue.append(parent)
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageClasses:
    """The classes of n images on three levels; int (n,) each."""

    subordinate: Int[np.ndarray, "n"]
    """The finest class."""
    basic: Int[np.ndarray, "n"]
    """The class of a middle level. Where there are but two, the same as `subordinate`."""
    superordinate: Int[np.ndarray, "n"]
    """The coarsest class."""

    @classmethod
    def of_hierarchy(
        cls, hierarchy: Hierarchy, nodes: Sequence[str], *, basic: int, superordinate: int
    ) -> "ImageClasses":
        """Take the ancestors of each image's class at two depths.

        BREEDS' tasks of 13 superclasses are at depth 3 of its tree, those of 17 at depth 5.
        """

        def numbers(names: Sequence[str]) -> np.ndarray:
            return np.unique(names, return_inverse=True)[1]

        return cls(
            subordinate=numbers(nodes),
            basic=numbers(hierarchy.at_depth(nodes, basic)),
            superordinate=numbers(hierarchy.at_depth(nodes, superordinate)),
        )

    def take(self, rows: Int[np.ndarray, "m"]) -> "ImageClasses":
        """Return the classes of some of the images."""
        return ImageClasses(
            subordinate=self.subordinate[rows],
            basic=self.basic[rows],
            superordinate=self.superordinate[rows],
        )

    def relations(self) -> Int[np.ndarray, "pairs"]:
        """Return the relation of each pair of images, a row of RELATIONS: upper triangle."""
        relation = np.full((len(self.basic),) * 2, 3)
        levels = (self.superordinate, 2), (self.basic, 1), (self.subordinate, 0)
        for classes, number in levels:
            relation[classes[:, None] == classes] = number
        return upper_triangle(relation)


def relative_distances(features: Float[np.ndarray, "n p"]) -> Float[np.ndarray, "pairs"]:
    """Return cosine distances over their mean: upper triangle."""
    distances = upper_triangle(rdm(features))
    return distances / distances.mean()


def sample_images(count: int, limit: int, seed: int = 0) -> Int[np.ndarray, "m"]:
    """Return the rows of at most `limit` of `count` images, drawn at random."""
    rows = np.arange(count)
    if count > limit:
        rows = np.sort(np.random.default_rng(seed).choice(count, limit, replace=False))
    return rows


def distances_by_relation(
    features: Float[np.ndarray, "n p"], classes: ImageClasses, *, prefix: str = ""
) -> dict[str, float]:
    """Return the mean relative distance of the pairs of each relation that occurs."""
    relations, distances = classes.relations(), relative_distances(features)
    return {
        prefix + name: float(distances[relations == number].mean())
        for number, name in enumerate(RELATIONS)
        if (relations == number).any()
    }


def distance_changes(
    before: Float[np.ndarray, "n p"], after: Float[np.ndarray, "n q"], classes: ImageClasses
) -> dict[str, Float[np.ndarray, "pairs"]]:
    """Return how the relative distance of each pair changed, by relation.

    `d_after / mean(d_after) - d_before / mean(d_before)` with cosine distances d, below zero for an
    approach. The paper's own formula is not published with its code.
    """
    change = relative_distances(after) - relative_distances(before)
    relations = classes.relations()
    return {
        name: change[relations == number]
        for number, name in enumerate(RELATIONS)
        if (relations == number).any()
    }
