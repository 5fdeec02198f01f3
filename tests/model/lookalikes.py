"""Look-alikes of the databases for the tests, and changes to them."""

import shutil

import openpyxl

from micron_model.data.databases import smic
from micron_model.data.databases.lookalike import LookalikeConfig, make_lookalike

#: Five clips of each of three subjects, of frames too small to show a face.
TINY = {"subjects": 3, "side": 8}


def tiny_lookalike(dataset, root, **settings):
    make_lookalike(dataset, root, LookalikeConfig(**(TINY | settings)))
    return root


def only(folder, pattern):
    (found,) = folder.glob(pattern)
    return found


def change_sheet(path, change):
    """Open a workbook, let ``change`` write to its first worksheet, and save it."""
    book = openpyxl.load_workbook(path)
    change(book.worksheets[0])
    book.save(path)


def copy(tree, out):
    return shutil.copytree(tree, out)


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
