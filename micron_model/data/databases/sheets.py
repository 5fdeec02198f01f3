"""The spreadsheets in which databases list their expressions: rows by the names of their columns."""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...faults import raise_if_of_the_machine
from ...limits import NoFile, TooLarge, check_archive, check_cells, open_file, read_file
from .folders import folders

if TYPE_CHECKING:
    from openpyxl import Workbook

_SUFFIXES = {".xlsx", ".xlsm", ".xls", ".csv", ".tsv"}
_SEPARATORS = ",;\t|"
#: Other names under which copies of the sheets have a column, where there is no doubt of what is meant.
_ALIASES = {
    "subject": ("Subject", "sub", "Subject ID", "Subject No"),
    "filename": ("Filename", "Filename_o", "Clip"),
    "onset": ("Onset Frame", "Onset", "OnsetF"),
    "apex": ("Apex Frame", "Apex", "ApexF"),
    "offset": ("Offset Frame", "Offset", "OffsetF"),
    "emotion": ("Estimated Emotion", "Emotion", "Label"),
    "dataset": ("Dataset", "Database"),
    "label": ("Label", "Class", "Emotion"),
}


def _key(column: str) -> str:
    """Copies of one sheet write ``OnsetFrame`` and ``Onset Frame``."""
    return re.sub(r"[\s_]", "", column).lower()


class Column(NamedTuple):
    """What is asked of a sheet.

    Attributes:
        role: what ``--columns`` calls it, and how a row is asked for its cell.
        name: what the database calls it.
        required: without it, a row's cell is empty.
    """

    role: str
    name: str
    required: bool = True


@dataclass(frozen=True)
class Row:
    """One row under the header.

    Attributes:
        sheet: the file.
        number: as spreadsheet programs count, the topmost row of the file being 1.
        cells: text by role.
    """

    sheet: Path
    number: int
    cells: Mapping[str, str]

    def __getitem__(self, role: str) -> str:
        return self.cells[role]

    @property
    def where(self) -> str:
        return f"{self.sheet}, row {self.number}"


class Sheet(NamedTuple):
    """What is read of a file.

    Attributes:
        path: the file.
        rows: in their order.
        columns: what the file calls the columns that it has, by role.
        notes: what is to be said of how it was read.
    """

    path: Path
    rows: list[Row]
    columns: Mapping[str, str]
    notes: tuple[str, ...] = ()


#: Cells by the number of the row; empty rows are left out.
_Table = dict[int, list[str]]


def _text(cell: object) -> str:
    """A whole number may be stored as 1.0; in a subject, the 0 would be taken for the number."""
    text = "" if cell is None else str(cell).strip()
    return re.sub(r"^(-?\d+)\.0+$", r"\1", text)


def read_tables(path: Path) -> tuple[dict[str, _Table], tuple[str, ...]]:
    """The cells of each worksheet as text, row by row, and what is to be said; a csv is one worksheet.

    What a file is shows in its first bytes. In text, cells are separated by whatever gives the most regular table.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, because it is cut short, locked by a password, or an old .xls.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    with open_file(path) as file:
        begins = file.read(8)
    if begins == b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" or path.suffix.lower() == ".xls":
        raise ValueError(
            f"{path}: old .xls files, and workbooks with a password, are not read; save it as .xlsx or .csv"
        )
    if path.suffix.lower() not in {".xlsx", ".xlsm"} and not begins.startswith(b"PK"):
        text, notes = _decode(read_file(path), path)
        return {path.name: _separate(text, path)}, notes
    import openpyxl

    try:
        check_archive(path)
        with warnings.catch_warnings(), open_file(path) as file:
            warnings.simplefilter("ignore", UserWarning)  # openpyxl speaks of styles it does not know
            return _read_worksheets(path, openpyxl.load_workbook(file, read_only=True, data_only=True)), ()
    except (TooLarge, NoFile):
        raise
    except Exception as error:  # a damaged archive raises whatever its parsers stumble over
        raise_if_of_the_machine(error, path)
        raise ValueError(
            f"{path}: cannot be read as a spreadsheet ({type(error).__name__}: {error}); unpack or download it again"
        ) from None


def _decode(data: bytes, path: Path) -> tuple[str, tuple[str, ...]]:
    """All that is needed of a sheet is ASCII, so in an encoding that is not known the rest may be wrong."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace"), ()
    if b"\0" in data:
        raise ValueError(f"{path}: is no text; a sheet is .xlsx, or .csv in UTF-8")
    try:
        return data.decode("utf-8-sig"), ()
    except UnicodeDecodeError:
        return data.decode("latin-1"), (
            f"{path.name}: is not text in UTF-8, and read as Latin-1; names with letters beyond a to z may be wrong",
        )


def _separate(text: str, path: Path) -> _Table:
    tables = []
    for separator in _SEPARATORS:
        try:
            rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
        except csv.Error as error:
            raise ValueError(f"{path}: {error}") from None
        tables.append([[_text(cell) for cell in row] for row in rows])
    chosen = max(tables, key=_regularity)
    return {number: row for number, row in enumerate(chosen, 1) if any(row)}


def _regularity(rows: Sequence[Sequence[str]]) -> tuple[int, int]:
    """How many rows are of the usual width, and how wide that is."""
    widths = Counter(len(row) for row in rows if any(row))
    width, count = max(widths.items(), key=lambda item: (item[1], item[0]), default=(1, 0))
    return (count, width) if width > 1 else (0, 1)


def _read_worksheets(path: Path, book: Workbook) -> dict[str, _Table]:
    """A row at a time, so that a sheet of more cells than are taken is left where it passes that.

    A cell that is formatted and empty, at the last row there can be, makes a million empty rows; they are not kept.
    """
    tables: dict[str, _Table] = {}
    count = 0
    for sheet in book.worksheets:
        sheet.reset_dimensions()  # what it states of them may be wrong
        rows = tables[sheet.title] = {}
        for number, row in enumerate(sheet.iter_rows(values_only=True), 1):
            if any(cell is not None for cell in row):
                count += len(row)
                check_cells(count, path)
                rows[number] = [_text(cell) for cell in row]
    return tables


def _places(header: Sequence[str], columns: Sequence[Column], given: Mapping[str, str]) -> dict[str, int]:
    """Where each column is that is there: as it is given, as the database calls it, or else by another name."""
    there: dict[str, int] = {}
    for i, name in enumerate(header):
        if name and not name.startswith("Unnamed:"):
            there.setdefault(_key(name), i)
    found = {}
    for role, name, _ in columns:
        names = [given[role]] if role in given else [name, *_ALIASES.get(role, ())]
        place = next((there[_key(n)] for n in names if _key(n) in there), None)
        if place is not None:
            found[role] = place
    return found


def read_sheet(
    path: Path, columns: Sequence[Column], *, worksheet: str = "", given: Mapping[str, str] | None = None
) -> Sheet:
    """The rows of a sheet under its header, without empty ones.

    The header is the first row that has all columns that must be there; what is written above is passed over. Upper
    and lower case, spaces and underscores in names of columns are one, and well-known other names are taken.

    Args:
        path: an .xlsx or .csv file.
        columns: those that are asked for.
        worksheet: the one to take if several have such a header.
        given: what this file calls a column, by role.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, no worksheet has the header, several do, or ``given`` has no such role.
    """
    given = given or {}
    roles = [column.role for column in columns]
    if unknown := [role for role in given if role not in roles]:
        raise ValueError(f"--columns {unknown[0]}: the columns of {path} are {', '.join(roles)}")
    required = {column.role for column in columns if column.required} | set(given)
    tables, notes = read_tables(path)
    found = {
        name: [(number, _places(row, columns, given)) for number, row in table.items()]
        for name, table in tables.items()
    }
    headers = {
        name: next(((number, places) for number, places in rows if required <= set(places)), None)
        for name, rows in found.items()
    }
    usable = {name: header for name, header in headers.items() if header is not None}
    if not usable:
        raise ValueError(_no_header(path, columns, given, tables, found))
    named = [name for name in usable if _key(name) == _key(worksheet)]
    if len(named or usable) > 1:
        raise ValueError(
            f"{path}: several worksheets have such a header ({', '.join(usable)}); save the one to be read as .csv, "
            "and give that with --sheet"
        )
    chosen = (named or list(usable))[0]
    start, places = usable[chosen]
    header = tables[chosen][start]
    said = [
        f"{path.name}: the column {header[places[role]]!r} is taken for {name!r}"
        for role, name, _ in columns
        if role in places and role not in given and _key(header[places[role]]) != _key(name)
    ]
    rows = []
    for number, row in tables[chosen].items():
        cells = {role: row[places[role]] if places.get(role, len(row)) < len(row) else "" for role in roles}
        if number > start and any(cells.values()):
            rows.append(Row(path, number, cells))
    return Sheet(path, rows, {role: header[place] for role, place in places.items()}, (*notes, *said))


def _no_header(
    path: Path,
    columns: Sequence[Column],
    given: Mapping[str, str],
    tables: Mapping[str, _Table],
    found: Mapping[str, Sequence[tuple[int, dict[str, int]]]],
) -> str:
    """Why there is none: the row that comes nearest lacks columns."""
    sought = {role: given.get(role, name) for role, name, required in columns if required or role in given}
    rows = [(len(places.keys() & sought), name, n, places) for name, r in found.items() for n, places in r]
    most, name, number, places = max(rows, key=lambda row: row[0], default=(0, "", 0, {}))
    if not most:
        cells = ", ".join(map(repr, sought.values()))
        return (
            f"{path}: no row of {', '.join(tables)} has the cells {cells}, by which the header is known; "
            "--columns says what they are called, for example --columns subject Person"
        )
    missing = [role for role in sought if role not in places]
    wanted = ", ".join(repr(sought[role]) for role in missing)
    there = ", ".join(cell for cell in tables[name][number] if cell)
    return (
        f"{path}: no column {wanted}; its columns are {there}. If one of them is meant, say which: "
        f"--columns {missing[0]} NAME"
    )


def find_sheet(
    root: Path, holds: str, named: str, given: str | Path | None = None, *, example: str = "sheet.xlsx"
) -> Path:
    """The spreadsheet under ``root``: the only one whose name has the pattern ``named``, or the only one at all.

    Args:
        root: the folder that was unpacked.
        holds: pattern of the folders of frames, which are not searched.
        named: pattern to be found in the name of the file.
        given: a file to take instead; a path, or one relative to ``root``.
        example: what it is called, for the message where there is none.

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
            f"{root}: no spreadsheet such as {example} in it; put it there, or name it with --sheet"
        )
    if len(candidates) > 1:
        listed = ", ".join(map(str, candidates))
        raise ValueError(f"{root} holds several spreadsheets: {listed}; name the one to be read with --sheet")
    return candidates[0]
