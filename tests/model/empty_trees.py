"""Trees of the databases whose frames are empty files, for all that reads no frame."""

import csv

from micron_model.data.databases import smic

CASME2_HEADER = ["Subject", "Filename", "OnsetFrame", "ApexFrame", "OffsetFrame", "Estimated Emotion"]
CASME2_ROWS = [["1", "EP01_01f", "5", "7", "9", "happiness"], ["2", "EP02_01f", "15", "17", "19", "disgust"]]


def write_rows(path, rows, separator=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file, delimiter=separator).writerows(rows)
    return path


def casme2_tree(root, rows=CASME2_ROWS, *, header=CASME2_HEADER, tree="CASME2-RAW", separator=","):
    for subject, filename, onset, _, offset, *_ in CASME2_ROWS:
        touch(root / tree / f"sub{int(subject):02d}" / filename, range(int(onset), int(offset) + 1))
    write_rows(root / "CASME2-coding.csv", [header, *rows], separator)
    return root


def intervals(dataset):
    return {e.name: (e.onset, e.apex, e.offset) for e in dataset.expressions}


READ = {"sub01/EP01_01f": (5, 7, 9), "sub02/EP02_01f": (15, 17, 19)}


def touch(folder, numbers, name="img{}.jpg"):
    """Frames that are not read, so that they need no content."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / name.format(number)).touch()


def whole_smic(tree, without=()):
    """All 164 clips of SMIC-HS, those in ``without`` empty."""
    for name in smic.NAMES:
        subject, code, _ = name.split("_")
        folder = tree / subject / "micro" / smic.EMOTIONS[code] / name
        touch(folder, [] if name in without else [11, 12, 13], "reg_image{:06d}.bmp")
