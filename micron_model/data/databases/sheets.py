"""The spreadsheets in which databases list their expressions: rows by the names of their columns."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import openpyxl

from ...faults import raise_if_of_the_machine
from ...limits import NoFile, TooLarge, check_archive, check_cells, open_file, read_csv
from .folders import folders

_SUFFIXES = {".xlsx", ".xlsm", ".xls", ".csv"}


def _key(column: str) -> str:
    """Copies of one sheet write ``OnsetFrame`` and ``Onset Frame``."""
    return re.sub(r"[\s_]", "", column).lower()


@dataclass(frozen=True)
class Row:
    """One row under the header.

    Attributes:
        sheet: the file.
        number: as spreadsheet programs count, the topmost row of the file being 1.
        cells: text by column; ask for it as ``row["Onset Frame"]``.
    """

    sheet: Path
    number: int
    cells: dict[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells[_key(column)]

    @property
    def where(self) -> str:
        return f"{self.sheet}, row {self.number}"


def _text(cell: object) -> str:
    """A whole number may be stored as 1.0; in a subject, the 0 would be taken for the number."""
    text = "" if cell is None else str(cell).strip()
    return re.sub(r"^(-?\d+)\.0+$", r"\1", text)


def read_tables(path: Path) -> dict[str, list[list[str]]]:
    """The cells of each worksheet as text, row by row; a csv is one worksheet.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, because it is cut short, locked by a password, or an old .xls.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix.lower() == ".xls":
        raise ValueError(f"{path}: old .xls files are not read; save it as .xlsx or .csv")
    if path.suffix.lower() == ".csv":
        return {path.name: [[_text(cell) for cell in row] for row in read_csv(path)]}
    try:
        check_archive(path)
        with warnings.catch_warnings(), open_file(path) as file:
            warnings.simplefilter("ignore", UserWarning)  # openpyxl speaks of styles it does not know
            return _read_worksheets(path, openpyxl.load_workbook(file, read_only=True, data_only=True))
    except (TooLarge, NoFile):
        raise
    except Exception as error:  # a damaged archive raises whatever its parsers stumble over
        raise_if_of_the_machine(error, path)
        raise ValueError(
            f"{path}: cannot be read as a spreadsheet ({type(error).__name__}: {error}); unpack or download it again"
        ) from None


def _read_worksheets(path: Path, book: openpyxl.Workbook) -> dict[str, list[list[str]]]:
    """A row at a time, so that a sheet of more cells than are taken is left where it passes that."""
    tables: dict[str, list[list[str]]] = {}
    count = 0
    for sheet in book.worksheets:
        sheet.reset_dimensions()  # what it states of them may be wrong
        rows = tables[sheet.title] = []
        for row in sheet.iter_rows(values_only=True):
            count += max(1, len(row))
            check_cells(count, path)
            rows.append([_text(cell) for cell in row])
    return tables


def read_sheet(
    path: Path, columns: Sequence[str], *, header: str = "Subject", worksheet: str = ""
) -> list[Row]:
    """The rows of a sheet under its header, without empty ones.

    The header is the first row with the cell ``header``. Columns without a name are left out, and what is written
    above the header is passed over. Upper and lower case, spaces and underscores in names of columns are one.

    Args:
        path: an .xlsx or .csv file.
        columns: those that must be there.
        header: a cell that is in the header.
        worksheet: the one to take if several have such a header.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, no worksheet has the header, several do, or a column is missing.
    """
    tables = read_tables(path)
    headers = {
        name: next((i for i, row in enumerate(rows) if _key(header) in map(_key, row)), None)
        for name, rows in tables.items()
    }
    usable = [name for name, i in headers.items() if i is not None]
    named = [name for name in usable if _key(name) == _key(worksheet)]
    if not usable:
        raise ValueError(
            f"{path}: no row of {', '.join(tables)} has the cell {header!r}, with which the header is found"
        )
    if len(named or usable) > 1:
        raise ValueError(
            f"{path}: several worksheets have a header ({', '.join(usable)}); keep the one to be read, or name it "
            f"{worksheet or 'alone'!r}"
        )
    rows, start = tables[(named or usable)[0]], headers[(named or usable)[0]]
    assert start is not None
    places: dict[str, int] = {}
    for i, name in enumerate(rows[start]):
        if name and not name.startswith("Unnamed:"):
            places.setdefault(_key(name), i)
    missing = [column for column in columns if _key(column) not in places]
    if missing:
        there = ", ".join(name for name in rows[start] if name)
        raise ValueError(f"{path}: no column {', '.join(map(repr, missing))}; its columns are {there}")
    found = []
    for i, row in enumerate(rows[start + 1 :], start + 2):
        cells = {name: row[place] if place < len(row) else "" for name, place in places.items()}
        if any(cells.values()):
            found.append(Row(path, i, cells))
    return found


def find_sheet(root: Path, holds: str, named: str, given: str | Path | None = None) -> Path:
    """The spreadsheet under ``root``: the only one whose name has the pattern ``named``, or the only one at all.

    Args:
        root: the folder that was unpacked.
        holds: pattern of the folders of frames, which are not searched.
        named: pattern to be found in the name of the file.
        given: a file to take instead; a path, or one relative to ``root``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: there are several.
    """
    if given is not None:
        path = Path(given)
        return path if path.exists() or not (root / path).exists() else root / path
    files = [
        path
        for folder in folders(root, holds)
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith((".", "~$"))
    ]
    matching = [path for path in files if re.search(named, path.name, re.IGNORECASE)]
    candidates = matching or files
    if not candidates:
        raise FileNotFoundError(
            f"{root}: no spreadsheet (.xlsx or .csv) beside the frames; put it there, or name it with sheet"
        )
    if len(candidates) > 1:
        listed = ", ".join(map(str, candidates))
        raise ValueError(f"{root} holds several spreadsheets: {listed}; name the one to be read with sheet")
    return candidates[0]
