"""Spreadsheets as they are distributed, copied and damaged."""

import openpyxl
import pytest

from micron_model.data.databases.sheets import find_sheet, read_sheet

COLUMNS = ("Subject", "Filename", "Onset Frame")


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
        tmp_path / "a.xlsx", A=[*notes, COLUMNS, ["006", "006_1_2", 5562], [], [7, "007_3_1", 12]]
    )
    first, second = read_sheet(path, COLUMNS)
    assert (first.number, first["Subject"], first["Filename"], first["Onset Frame"]) == (
        *(5, "006", "006_1_2", "5562"),
    )
    assert (second.number, second["Subject"]) == (7, "7")
    assert second.where == f"{path}, row 7"


def test_columns_are_read_by_name_wherever_they_are(tmp_path):
    spaced = write_book(
        tmp_path / "a.xlsx", A=[["OnsetFrame", None, "filename ", "Subject"], [46, "x", "EP", 1]]
    )
    copied = write_csv(tmp_path / "b.csv", "Subject,Unnamed: 2,Filename,Onset_Frame", "01,,EP,46.0")
    for path, subject in ((spaced, "1"), (copied, "01")):
        (row,) = read_sheet(path, COLUMNS)
        assert [row[name] for name in COLUMNS] == [subject, "EP", "46"]
        assert len(row.cells) == 3


def test_a_subject_stored_as_a_fraction_keeps_its_number(tmp_path):
    (row,) = read_sheet(write_csv(tmp_path / "a.csv", "Subject", "12.0"), ["Subject"])
    assert row["Subject"] == "12"


def test_the_named_worksheet_is_taken_of_several(tmp_path):
    path = write_book(
        tmp_path / "a.xlsx",
        FULL=[COLUMNS, ["1", "no", 1]],
        MICRO_ONLY=[COLUMNS, ["1", "yes", 1]],
        Legend=[["nothing"]],
    )
    (row,) = read_sheet(path, COLUMNS, worksheet="MICRO_ONLY")
    assert row["Filename"] == "yes"
    with pytest.raises(ValueError, match=r"several worksheets have a header \(FULL, MICRO_ONLY\)"):
        read_sheet(path, COLUMNS)


def test_a_sheet_without_header_or_column_is_refused_with_what_it_has(tmp_path):
    path = write_book(tmp_path / "a.xlsx", First=[["sub", "file"], [1, 2]])
    with pytest.raises(ValueError, match=r"no row of First has the cell 'Subject'"):
        read_sheet(path, COLUMNS)
    path = write_book(tmp_path / "b.xlsx", A=[["Subject", None, "Filename", "Onset"]])
    with pytest.raises(
        ValueError, match=r"no column 'Onset Frame'; its columns are Subject, Filename, Onset$"
    ):
        read_sheet(path, COLUMNS)


@pytest.mark.parametrize("damage", ["cut short", "no archive", "empty", "another archive"])
def test_a_damaged_workbook_is_named_without_a_traceback(tmp_path, damage):
    path = write_book(tmp_path / "a.xlsx", A=[COLUMNS, *([str(i), "EP", i] for i in range(200))])
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


def test_text_that_is_not_utf8_and_old_workbooks_are_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes("Subject\nMüller".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.csv: is not text in UTF-8"):
        read_sheet(tmp_path / "a.csv", ["Subject"])
    (tmp_path / "a.xls").write_bytes(b"\xd0\xcf\x11\xe0")
    with pytest.raises(ValueError, match=r"old \.xls files are not read; save it as \.xlsx or \.csv"):
        read_sheet(tmp_path / "a.xls", ["Subject"])


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
    with pytest.raises(FileNotFoundError, match="no spreadsheet"):
        find_sheet(tmp_path, "x", "coding")
    with pytest.raises(FileNotFoundError, match="away: no such folder"):
        find_sheet(tmp_path / "away", "x", "coding")
    with pytest.raises(FileNotFoundError, match=r"away\.xlsx: no such file"):
        read_sheet(find_sheet(tmp_path, "x", "coding", "away.xlsx"), COLUMNS)
