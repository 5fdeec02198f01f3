"""``micron data``: look at a database before anything is learned from it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro
from rich.console import Console

from ..data.databases import macro
from ..data.databases.datasets import load_dataset
from ..data.databases.expressions import Census, Dataset
from ..data.databases.listed import Reading
from ..data.databases.lookalike import LookalikeConfig, make_lookalike
from ..data.databases.megc2019 import PARTS, Part
from ..plain_text import say, visible
from ..progress import counting, working
from .answer import Status, answering

DatasetName = Literal["casme2", "samm", "smic", "casme3", "megc2019"]
_WithMacro = Literal[DatasetName, "macro"]


@dataclass
class Source:
    """Where the parts of a database are, if the folder does not say."""

    layout: str | None = None
    """Of several layouts of the frames, the one to read."""
    sheet: Path | None = None
    """The sheet, if it is elsewhere or one of several; of megc2019, its csv."""
    columns: dict[str, str] | None = None
    """What the sheet calls its columns, in pairs: subject, filename, onset, apex, offset, emotion, each followed by its
    name there, for example --columns onset Start emotion Class. Of megc2019: dataset, subject, filename, label, by
    name, or by number from 1 where its csv has no header."""
    apexes: Path | None = None
    """Of smic and megc2019: a csv with columns clip and apex, the apexes of SMIC as spotted by other means."""
    reading: tyro.conf.OmitArgPrefixes[Reading] = field(default_factory=Reading)
    casme2: Path | None = None
    """Of megc2019: the folder of CASME II, if ROOT does not hold it under its name."""
    casme2_layout: str | None = None
    """Of megc2019: the layout of CASME II, if not --layout."""
    casme2_sheet: Path | None = None
    """Of megc2019: the sheet of CASME II, if it is elsewhere or one of several."""
    casme2_columns: dict[str, str] | None = None
    """Of megc2019: what the sheet of CASME II calls its columns."""
    samm: Path | None = None
    """Of megc2019: the folder of SAMM, if ROOT does not hold it under its name."""
    samm_layout: str | None = None
    """Of megc2019: the layout of SAMM, if not --layout."""
    samm_sheet: Path | None = None
    """Of megc2019: the sheet of SAMM, if it is elsewhere or one of several."""
    samm_columns: dict[str, str] | None = None
    """Of megc2019: what the sheet of SAMM calls its columns."""
    smic: Path | None = None
    """Of megc2019: the folder of SMIC, if ROOT does not hold it under its name."""
    smic_layout: str | None = None
    """Of megc2019: the layout of SMIC, if not --layout."""
    smic_sheet: Path | None = None
    """Of megc2019: the sheet of SMIC, if it is elsewhere or one of several."""
    smic_columns: dict[str, str] | None = None
    """Of megc2019: what the sheet of SMIC calls its columns."""

    @property
    def options(self) -> dict[str, Any]:
        """Those that were given, as loaders take them."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        for part in PARTS:
            of_part = {name: given.pop(f"{part}_{name}", None) for name in ("layout", "sheet", "columns")}
            if any(value is not None for value in of_part.values()):
                given[part] = Part(given.get(part), **of_part)
        return given

    def load(self, dataset: str, root: Path) -> Dataset:
        return load_dataset(dataset, root, **self.options)


@dataclass
class DataCheck:
    """Print what is found of a database beside the official census; the exit status is 3 if they differ."""

    dataset: tyro.conf.Positional[_WithMacro]
    """macro: clips of macro-expressions, as --macro takes them; they have no official census."""
    root: tyro.conf.Positional[Path]
    """The folder that you unpacked; its sheet and frames are found in it."""
    source: tyro.conf.OmitArgPrefixes[Source] = field(default_factory=Source)
    every: bool = False
    """List each row that is dropped, incomplete or noted, also where many are alike."""
    json: bool = False
    """Print one JSON document instead, which lists all of them."""

    def run(self, console: Console) -> int:
        with answering(self.json) as answer:
            census = self._census(console)
            answer.document = census.as_json()
            if not self.json:
                sys.stdout.write(visible(census.describe(every=self.every), 10**7, keep="\n") + "\n")
                sys.stdout.flush()
        if census.differences:
            say(console, "no protocol runs on this census, unless it is told to with --allow-differences")
        return Status.DIFFERS if census.differences else Status.DONE

    def _census(self, console: Console) -> Census:
        if self.dataset != "macro":
            with working(f"reading {self.dataset}", console):
                return self.source.load(self.dataset, self.root).census
        if given := [name for name, value in vars(self.source).items() if value != getattr(Source(), name)]:
            raise ValueError(
                f"--{given[0].replace('_', '-')} is for a database's sheet and frames; macro has none"
            )
        with counting("reading macro-expressions", console) as advance:
            return macro.load(self.root, advance).census


@dataclass
class MakeLookalike:
    """Write a small tree that looks like a database, with warped photographs as frames, to try out the rest."""

    dataset: tyro.conf.Positional[_WithMacro]
    """macro: macro-expressions of other people, the same movements several pixels wide; layouts listed, folders,
    crema-d."""
    root: tyro.conf.Positional[Path]
    """A folder that is not there yet, or empty."""
    config: tyro.conf.OmitArgPrefixes[LookalikeConfig] = field(default_factory=LookalikeConfig)

    def run(self, console: Console) -> None:
        with working("writing clips", console):
            count = make_lookalike(self.dataset, self.root, self.config)
        say(console, f"{count} clips: {self.root}")


DataCommand = Union[  # noqa: UP007  (mypy and tyro read a Union of Annotated)
    Annotated[DataCheck, tyro.conf.subcommand("check")],
    Annotated[MakeLookalike, tyro.conf.subcommand("make-lookalike")],
]
