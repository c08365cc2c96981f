"""Names of the leaves of a pytree, and first-match regular-expression rules over them."""

import re
from collections.abc import Sequence
from typing import Any, TypeVar

import jax

Value = TypeVar("Value")


def path_name(path: Sequence[Any]) -> str:
    """Join a jax key path with slashes: `params/layers/0/kernel`."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """List the leaves of `tree` with their slash-joined names, in traversal order."""
    return [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def split(tree: Any, mask: Any) -> tuple[Any, Any]:
    """Split a tree into the leaves where `mask` is true and the others; None is in a gap's place.

    JAX and optax take None for an empty tree, so that each part can be mapped, differentiated and
    optimised without the other.
    """
    chosen = jax.tree.map(lambda leaf, keep: leaf if keep else None, tree, mask)
    others = jax.tree.map(lambda leaf, keep: None if keep else leaf, tree, mask)
    return chosen, others


def join(a: Any, b: Any) -> Any:
    """Put the two parts of `split` together again."""
    return jax.tree.map(lambda x, y: y if x is None else x, a, b, is_leaf=lambda x: x is None)


def match_rules(rules: Sequence[tuple[str, Value]], tree: Any, *, what: str) -> Any:
    """Give every leaf of `tree` the value of the first rule whose pattern matches its whole name.

    Args:
      rules: `(pattern, value)` pairs, most specific first; a pattern must match the whole name
        (`re.fullmatch`), so `.*kernel` means every kernel and `.*` means everything.
      tree: pytree whose leaves are named by `path_name`.
      what: what the rules are, for the error messages ("sharding rule", "parameter group").

    Returns:
      A pytree shaped like `tree` that holds the values.

    Raises:
      ValueError: if a leaf is covered by no rule, a pattern matches no leaf, or a pattern is not
        a regular expression.
    """
    patterns = []
    for pattern, _ in rules:
        try:
            patterns.append(re.compile(pattern))
        except re.error as error:
            raise ValueError(f"{what} {pattern!r} is not a regular expression: {error}") from None

    matched = [False] * len(patterns)
    uncovered: list[str] = []

    def first_match(path: Sequence[Any], _: Any) -> Value | None:
        name = path_name(path)
        hits = [i for i, pattern in enumerate(patterns) if pattern.fullmatch(name)]
        for i in hits:
            matched[i] = True
        if not hits:
            uncovered.append(name)
            return None
        return rules[hits[0]][1]

    values = jax.tree_util.tree_map_with_path(first_match, tree)
    names = [name for name, _ in named_leaves(tree)]
    if uncovered:
        raise ValueError(
            f"no {what} covers {', '.join(uncovered)}; add one, or end the list with '.*'"
        )
    unused = [pattern.pattern for pattern, used in zip(patterns, matched, strict=True) if not used]
    if unused:
        raise ValueError(
            f"{what} {', '.join(map(repr, unused))} matches no parameter; the names are: "
            + ", ".join(names)
        )
    return values
