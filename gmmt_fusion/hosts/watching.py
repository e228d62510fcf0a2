"""Stepping in right after a module is imported, and rewriting the host's own before it runs."""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any


class Watcher(importlib.abc.MetaPathFinder):
    """The first of `sys.meta_path`: lets the others find a module, and calls back when it has run.

    Args:
        after: {module: function of it}, called when the module was executed.
        is_host: whether a file is one of the host's own; such a module is given to `host`.
        host: called when one of the host's modules was executed.
        missing: makes a module of the host's that it does not have, or returns None.
        paths: beginnings of texts in the host's files, and what to put in their place.
    """

    def __init__(
        self,
        after: Mapping[str, Callable[[ModuleType], None]],
        is_host: Callable[[str | None], bool],
        host: Callable[[ModuleType], None],
        missing: Callable[[str], importlib.abc.Loader | None],
        paths: Mapping[str, str],
    ) -> None:
        self.after, self.is_host, self.host = after, is_host, host
        self.missing, self.paths = missing, paths
        self.threads = threading.local()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if getattr(self.threads, "searching", False):
            return None  # a finder that searches again, as those of editable installs do
        self.threads.searching = True
        try:
            spec = _search(self, fullname, path, target)
        finally:
            self.threads.searching = False
        if spec is None:
            loader = self.missing(fullname)
            return importlib.machinery.ModuleSpec(fullname, loader) if loader else None
        if spec.loader is None:
            return spec
        if self.is_host(spec.origin):
            if self.paths and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
                spec.loader = Rewriting(spec.name, spec.loader.path, self.paths)
            spec.loader = Watched(spec.loader, self.host)
        elif fullname in self.after:
            spec.loader = Watched(spec.loader, self.after[fullname])
        return spec


def _search(
    skip: object, fullname: str, path: Sequence[str] | None, target: ModuleType | None
) -> importlib.machinery.ModuleSpec | None:
    for finder in list(sys.meta_path):
        if finder is not skip and hasattr(finder, "find_spec"):
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                return spec
    return None


class Watched(importlib.abc.Loader):
    """A module's own loader, and a call of `after` with the module when it has run."""

    def __init__(self, own: Any, after: Callable[[ModuleType], None]) -> None:
        self.own, self.after = own, after

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self.own.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.own
        if module.__spec__ is not None:
            module.__spec__.loader = self.own
        self.own.exec_module(module)
        self.after(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)


class Rewriting(importlib.machinery.SourceFileLoader):
    """A module from source, without the file of bytecode, some of whose path names are replaced."""

    def __init__(self, fullname: str, path: str, paths: Mapping[str, str]) -> None:
        super().__init__(fullname, path)
        self.paths = paths

    def get_code(self, fullname: str) -> CodeType:
        return compile_with_paths(self.path, self.paths)


def compile_with_paths(file: str, paths: Mapping[str, str]) -> CodeType:
    """The code of a Python file in which every text that begins with a key of `paths` begins with
    its value.

    A key matches whole folders: "/data" is not found in "/database".
    """
    tree = ast.parse(Path(file).read_bytes(), file)
    if paths:
        tree = _Paths(paths).visit(tree)
    return compile(tree, file, "exec", dont_inherit=True)


class _Paths(ast.NodeTransformer):
    def __init__(self, paths: Mapping[str, str]) -> None:
        # the longest first: /data/LasHeR before /data
        self.paths = sorted(paths.items(), key=lambda pair: -len(pair[0]))

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        if isinstance(node.value, str):
            for old, new in self.paths:
                if node.value == old or node.value.startswith(old.rstrip("/") + "/"):
                    text = new + node.value[len(old.rstrip("/")) :]
                    return ast.copy_location(ast.Constant(text, node.kind), node)
        return node
