import os
import sys

import pytest
import torch

if not torch.cuda.is_available():  # before Triton is imported: its kernels then run on CPU tensors
    os.environ["TRITON_INTERPRET"] = "1"


#: What takes longest begins first: no process is then left alone with one of these at the end (make test).
LONG = (
    "test_diagonal_attention.py",
    "test_triton_compiles.py",
    "test_equality.py",
    "test_frame_difference.py",
    "test_examples.py",
    "test_poi_topk.py",
    "test_diagonal_attention_in_torch.py",
    "test_setup.py",
    "test_compilers.py",
)


def pytest_configure():
    from micron_kernels import _extension

    if _extension.module is None and any(_extension.PACKAGE.glob("_native*")):
        raise pytest.UsageError(  # every test of a native kernel would be skipped
            f"{_extension.reason}; to build it: MICRON_BUILD=cpu {sys.executable} setup.py build_ext --inplace"
        )


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
