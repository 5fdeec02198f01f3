"""``micron data``: look at a database before anything is learned from it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Union

import tyro
from rich.console import Console

from ..data.databases.datasets import load_dataset
from ..data.databases.expressions import Dataset
from ..data.databases.lookalike import LookalikeConfig, make_lookalike
from ..plain_text import say, visible

DatasetName = Literal["casme2", "samm", "smic", "casme3", "megc2019"]


@dataclass
class Source:
    """Where the parts of a database are, if the folder does not say."""

    layout: str | None = None
    """Of several layouts of the frames, the one to read."""
    sheet: Path | None = None
    """The sheet, if it is elsewhere or one of several; of megc2019, its csv."""
    apexes: Path | None = None
    """Of smic and megc2019: a csv with columns clip and apex, the apexes of SMIC as spotted by other means."""
    casme2: Path | None = None
    """Of megc2019: the folder of CASME II, if it is not in ROOT."""
    samm: Path | None = None
    """Of megc2019: the folder of SAMM, if it is not in ROOT."""
    smic: Path | None = None
    """Of megc2019: the folder of SMIC, if it is not in ROOT."""

    def load(self, dataset: str, root: Path) -> Dataset:
        return load_dataset(dataset, root, **vars(self))


@dataclass
class DataCheck:
    """Print what is found of a database beside the official census; the exit status is 1 if they differ."""

    dataset: tyro.conf.Positional[DatasetName]
    root: tyro.conf.Positional[Path]
    """The folder that you unpacked; its sheet and frames are found in it."""
    source: tyro.conf.OmitArgPrefixes[Source] = field(default_factory=Source)

    def run(self, console: Console) -> int:
        census = self.source.load(self.dataset, self.root).census
        sys.stdout.write(visible(census.describe(), 10**7, keep="\n") + "\n")
        sys.stdout.flush()
        if census.differences:
            say(console, "no protocol runs on this census unless it is told to")
        return 1 if census.differences else 0


@dataclass
class MakeLookalike:
    """Write a small tree that looks like a database, with warped photographs as frames, to try out the rest."""

    dataset: tyro.conf.Positional[DatasetName]
    root: tyro.conf.Positional[Path]
    """A folder that is not there yet, or empty."""
    config: tyro.conf.OmitArgPrefixes[LookalikeConfig] = field(default_factory=LookalikeConfig)

    def run(self, console: Console) -> None:
        count = make_lookalike(self.dataset, self.root, self.config)
        say(console, f"{count} clips: {self.root}")


DataCommand = Union[  # noqa: UP007  (mypy and tyro read a Union of Annotated)
    Annotated[DataCheck, tyro.conf.subcommand("check")],
    Annotated[MakeLookalike, tyro.conf.subcommand("make-lookalike")],
]
