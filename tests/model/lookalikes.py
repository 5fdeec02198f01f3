"""Look-alikes of the databases for the tests, and changes to them."""

import shutil

import openpyxl

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
