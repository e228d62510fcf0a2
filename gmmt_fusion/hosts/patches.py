"""Attributes of other people's modules and classes that are replaced, and put back."""

from __future__ import annotations

from typing import Any

MISSING = object()


class Patches:
    """What was replaced in this process, by whom it was asked for.

    As a context manager it puts everything back at the end.
    """

    def __init__(self) -> None:
        self.replaced: list[tuple[Any, str, Any]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:  # a module or a class of anybody's
        """owner.name = value, until `undo`."""
        self.replaced.append((owner, name, vars(owner).get(name, MISSING)))
        setattr(owner, name, value)

    def undo(self) -> None:
        """Put everything back, what was replaced last first."""
        while self.replaced:
            owner, name, value = self.replaced.pop()
            if value is MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, value)

    def __enter__(self) -> Patches:
        return self

    def __exit__(self, *args: object) -> None:
        self.undo()
