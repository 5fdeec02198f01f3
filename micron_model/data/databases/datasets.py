"""The databases of micro-expressions by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from . import casme2, casme3, megc2019, samm, smic
from .expressions import Dataset
from .listed import Reading

DATASETS: dict[str, Callable[..., Dataset]] = {
    "casme2": casme2.load,
    "samm": samm.load,
    "smic": smic.load,
    "casme3": casme3.load,
    "megc2019": megc2019.load,
}


def load_dataset(name: str, root: str | Path, **options: Any) -> Dataset:
    """What the loader of that name gives; an option that is None is as if it were not given.

    Raises:
        ValueError: there is no such dataset, or it has no such option; or what the loader raises.
        FileNotFoundError: what the loader raises.
    """
    if name not in DATASETS:
        raise ValueError(f"dataset={name!r} is none of {', '.join(DATASETS)}")
    given = {option: value for option, value in options.items() if value is not None}
    known = list(inspect.signature(DATASETS[name]).parameters)[1:]
    for option in given:
        if option not in known:
            of_reading = [field.name for field in fields(Reading)]
            names = [x for option in known for x in (of_reading if option == "reading" else [option])]
            takes = ", ".join(f"--{x.replace('_', '-')}" for x in names)
            raise ValueError(f"--{option} is no option of {name}; it takes {takes}")
    return DATASETS[name](root, **given)
