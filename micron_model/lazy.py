"""Names of a package that are imported when they are first asked for.

So a module of the package can be imported without what its other names need, and ``import micron_model`` costs nothing.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of ``package``, whose names stand in ``homes`` with the module of each."""
    module = sys.modules[package]

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(f".{homes[name]}", package), name)
        setattr(module, name, found)
        return found

    return find, lambda: sorted({*vars(module), *homes})
