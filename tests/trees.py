"""The leaves of nested containers, in their order."""

from collections.abc import Iterator
from typing import Any


def leaves(tree: Any) -> Iterator[Any]:
    """Everything in dicts, lists and tuples that is none of them."""
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, list | tuple):
        yield tree
        return
    for branch in tree:
        yield from leaves(branch)
