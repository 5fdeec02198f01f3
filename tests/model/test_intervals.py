"""Onset, apex and offset as the sheets state them, and what is made of impossible ones."""

import pytest

from micron_model.data.databases.listed import Unusable, read_interval


@pytest.mark.parametrize(
    ("cells", "trusted", "expected"),
    [
        (("5", "8", "12"), "offset", (5, 8, 12, "annotation", 0)),
        (("5", "5", "5"), "offset", (5, 5, 5, "annotation", 0)),
        (("5", "/", "12"), "offset", (5, 8, 12, "midpoint", 1)),
        (("5", "", "12"), "apex", (5, 8, 12, "midpoint", 1)),
        (("5", "3", "12"), "apex", (5, 8, 12, "midpoint", 1)),
        (("5", "20", "12"), "offset", (5, 8, 12, "midpoint", 1)),
        (("5", "20", "12"), "apex", (5, 20, 20, "annotation", 1)),
        (("5", "8", "0"), "offset", (5, 8, 8, "annotation", 1)),
        (("0", "8", "0"), "apex", (0, 8, 8, "annotation", 1)),
        (("5", "8", ""), "apex", (5, 8, 8, "annotation", 1)),
    ],
)
def test_intervals_are_mended_by_one_rule(cells, trusted, expected):
    found = read_interval(*cells, trusted=trusted)
    assert (found.onset, found.apex, found.offset, found.apex_from, len(found.notes)) == expected


@pytest.mark.parametrize("cells", [("/", "8", "12"), ("-1", "8", "12"), ("5", "/", "0"), ("5", "3", "4")])
def test_intervals_that_cannot_be_mended_are_refused(cells):
    with pytest.raises(Unusable, match=r"no number of a frame|comes after its onset"):
        read_interval(*cells, trusted="apex")
