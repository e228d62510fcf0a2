"""Attributes of other people's modules and classes that are replaced, and put back."""

from __future__ import annotations

import contextlib
from typing import Any

MISSING = object()


class Patches(contextlib.ExitStack):
    """What was replaced in this process; at the end of a `with` block everything is put back, what
    was replaced last first.

    `callback` takes what else is to be done then. active: whether anything is replaced.
    """

    active = False

    def set(self, owner: Any, name: str, value: Any) -> None:  # a module or a class of anybody's
        """owner.name = value, until the end."""
        own = vars(owner).get(name, MISSING)
        if own is MISSING:
            self.callback(delattr, owner, name)
        else:
            self.callback(setattr, owner, name, own)
        setattr(owner, name, value)
        self.active = True

    def __exit__(self, *error: Any) -> bool:
        self.active = False
        return bool(super().__exit__(*error))
