"""Spreadsheets as they are distributed, copied and damaged."""

import time

import openpyxl
import pytest

from micron_model.data.databases.sheets import Column, find_sheet, read_sheet, read_tables

COLUMNS = (Column("subject", "Subject"), Column("filename", "Filename"), Column("onset", "Onset Frame"))
HEADER = [column.name for column in COLUMNS]


def write_book(path, **worksheets):
    book = openpyxl.Workbook()
    book.remove(book.worksheets[0])
    for title, rows in worksheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def write_csv(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return path


def test_the_header_is_found_beneath_notes_and_rows_keep_their_numbers(tmp_path):
    notes = [["Subject and Filename name a folder"], [], ["seen by", None, "two coders"]]
    path = write_book(
        tmp_path / "a.xlsx", A=[*notes, HEADER, ["006", "006_1_2", 5562], [], [7, "007_3_1", 12]]
    )
    first, second = read_sheet(path, COLUMNS).rows
    assert (first.number, first["subject"], first["filename"], first["onset"]) == (
        *(5, "006", "006_1_2", "5562"),
    )
    assert (second.number, second["subject"]) == (7, "7")
    assert second.where == f"{path}, row 7"


def test_columns_are_read_by_name_wherever_they_are(tmp_path):
    spaced = write_book(
        tmp_path / "a.xlsx", A=[["OnsetFrame", None, "filename ", "Subject"], [46, "x", "EP", 1]]
    )
    copied = write_csv(tmp_path / "b.csv", "Subject,Unnamed: 2,Filename,Onset_Frame", "01,,EP,46.0")
    for path, subject in ((spaced, "1"), (copied, "01")):
        (row,) = read_sheet(path, COLUMNS).rows
        assert [row[column.role] for column in COLUMNS] == [subject, "EP", "46"]
        assert len(row.cells) == 3


def test_a_subject_stored_as_a_fraction_keeps_its_number(tmp_path):
    (row,) = read_sheet(write_csv(tmp_path / "a.csv", "Subject", "12.0"), COLUMNS[:1]).rows
    assert row["subject"] == "12"


def test_the_named_worksheet_is_taken_of_several(tmp_path):
    path = write_book(
        tmp_path / "a.xlsx",
        FULL=[HEADER, ["1", "no", 1]],
        MICRO_ONLY=[HEADER, ["1", "yes", 1]],
        Legend=[["nothing"]],
    )
    (row,) = read_sheet(path, COLUMNS, worksheet="MICRO_ONLY").rows
    assert row["filename"] == "yes"
    with pytest.raises(
        ValueError,
        match=r"several worksheets have such a header \(FULL, MICRO_ONLY\); save the one",
    ):
        read_sheet(path, COLUMNS)


def test_a_sheet_without_header_or_column_is_refused_with_what_it_has(tmp_path):
    path = write_book(tmp_path / "a.xlsx", First=[["who", "file"], [1, 2]])
    with pytest.raises(ValueError, match=r"no row of First has the cells 'Subject', 'Filename'"):
        read_sheet(path, COLUMNS)
    path = write_book(tmp_path / "b.xlsx", A=[["Subject", None, "Filename", "Start"]])
    with pytest.raises(
        ValueError,
        match=r"no column 'Onset Frame'; its columns are Subject, Filename, Start\. .*--columns onset NAME$",
    ):
        read_sheet(path, COLUMNS)


@pytest.mark.parametrize("damage", ["cut short", "no archive", "empty", "another archive"])
def test_a_damaged_workbook_is_named_without_a_traceback(tmp_path, damage):
    path = write_book(tmp_path / "a.xlsx", A=[HEADER, *([str(i), "EP", i] for i in range(200))])
    whole = path.read_bytes()
    other = {
        "cut short": whole[: len(whole) // 2],
        "no archive": b"<html>please log in</html>",
        "empty": b"",
        "another archive": b"PK\x05\x06" + bytes(18),
    }
    path.write_bytes(other[damage])
    with pytest.raises(ValueError, match=r"a\.xlsx: cannot be read as a spreadsheet .*download it again"):
        read_sheet(path, COLUMNS)


def test_old_workbooks_and_what_is_no_text_are_refused(tmp_path):
    for name in ("a.xls", "a.xlsx"):  # a workbook with a password is one of the old kind
        (tmp_path / name).write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")
        with pytest.raises(
            ValueError, match=r"old \.xls files, and .* are not read; save it as \.xlsx or \.csv"
        ):
            read_sheet(tmp_path / name, COLUMNS)
    (tmp_path / "a.csv").write_bytes(b"Subject\0")
    with pytest.raises(ValueError, match=r"a\.csv: is no text; a sheet is \.xlsx"):
        read_sheet(tmp_path / "a.csv", COLUMNS)


@pytest.mark.parametrize("separator", [";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_separators_and_encodings_of_other_programs_are_read(tmp_path, separator, encoding):
    rows = [HEADER, ["1", "EP, 01", "46"], ["2", "Müller", "7"]]
    path = tmp_path / "a.csv"
    path.write_bytes("\n".join(separator.join(row) for row in rows).encode(encoding))
    sheet = read_sheet(path, COLUMNS)
    assert [list(row.cells.values()) for row in sheet.rows] == rows[1:]
    assert [note.split(":")[0] for note in sheet.notes] == (["a.csv"] if encoding == "latin-1" else [])


def test_well_known_names_of_columns_are_taken_and_said_once_and_others_can_be_given(tmp_path):
    path = write_csv(tmp_path / "a.csv", "sub,filename_o,Onset,Start", "1,EP,46,9", "2,EP,47,10")
    sheet = read_sheet(path, COLUMNS)
    assert [row["onset"] for row in sheet.rows] == ["46", "47"]
    assert sheet.notes == (
        "a.csv: the column 'sub' is taken for 'Subject'",
        "a.csv: the column 'filename_o' is taken for 'Filename'",
        "a.csv: the column 'Onset' is taken for 'Onset Frame'",
    )
    assert [row["onset"] for row in read_sheet(path, COLUMNS, given={"onset": "start"}).rows] == ["9", "10"]
    with pytest.raises(ValueError, match=r"no column 'begin'; its columns are sub, .*: --columns onset NAME"):
        read_sheet(path, COLUMNS, given={"onset": "begin"})
    with pytest.raises(ValueError, match=r"--columns peak: the columns of .* are subject, filename, onset"):
        read_sheet(path, COLUMNS, given={"peak": "Onset"})


def test_a_formatted_cell_at_the_last_row_takes_neither_time_nor_memory(tmp_path):
    book = openpyxl.Workbook()
    book.active.append(HEADER)
    book.active.append(["1", "EP", 46])
    book.active["C1048576"].font = openpyxl.styles.Font(bold=True)
    book.save(tmp_path / "a.xlsx")
    began = time.process_time()
    tables, _ = read_tables(tmp_path / "a.xlsx")
    assert time.process_time() - began < 10
    assert tables == {"Sheet": {1: HEADER, 2: ["1", "EP", "46"]}}


def test_the_sheet_is_found_by_its_name_else_if_it_is_the_only_one(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "sub01").mkdir()
    for name in (
        "notes/CODING.XLSX",
        "~$coding.xlsx",
        "._coding.xlsx",
        "sub01/coding.csv",
        "notes/other.txt",
    ):
        (tmp_path / name).touch()
    assert find_sheet(tmp_path, r"sub\d+", "coding").name == "CODING.XLSX"
    assert find_sheet(tmp_path, r"sub\d+", "facs").name == "CODING.XLSX"
    (tmp_path / "other.csv").touch()
    assert find_sheet(tmp_path, r"sub\d+", "coding").name == "CODING.XLSX"
    with pytest.raises(
        ValueError, match=r"holds several spreadsheets: .*other\.csv, .*CODING\.XLSX; name the one"
    ):
        find_sheet(tmp_path, r"sub\d+", "facs")
    assert find_sheet(tmp_path, r"sub\d+", "facs", "other.csv") == tmp_path / "other.csv"


def test_a_missing_sheet_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no spreadsheet such as sheet\.xlsx in it; put"):
        find_sheet(tmp_path, "x", "coding")
    with pytest.raises(FileNotFoundError, match="away: no such folder"):
        find_sheet(tmp_path / "away", "x", "coding")
    with pytest.raises(FileNotFoundError, match=r"away\.xlsx: no such file"):
        read_sheet(find_sheet(tmp_path, "x", "coding", "away.xlsx"), COLUMNS)
