"""What ``micron_model`` offers."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import micron_model

#: What frames, sheets, pictures and the command line need, and the networks do not.
LOADERS = "webdataset braceexpand cv2 openpyxl pandas PIL matplotlib scipy skimage rich tyro tensorboard"
#: Whatever of a model needs neither frames on disk nor a picture.
MODELS = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in sys.argv[1].split():
            return super().find_spec(name, path, target)

sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
from micron_model import (
    SLSTT, MicronBERT, PretrainConfig, import_timm_vit, load_model, load_official, load_official_slstt,
    load_recognizer, preset,
)
from micron_model.models.slstt import slstt_preset
import torch

model = MicronBERT(preset("tiny", image_size=32)).eval()
frames = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
assert model.compare(frames, frames)[1].isfinite().all()
slstt_preset("tiny")
"""


@pytest.mark.parametrize("package", ["", ".data", ".evaluation", ".recognizers", ".training"])
def test_every_name_is_there_and_listed(package):
    found = importlib.import_module(f"micron_model{package}")
    assert set(found.__all__) == found._HOMES.keys() <= set(dir(found))
    for name in found.__all__:
        value = getattr(found, name)
        assert name.isupper() or getattr(value, "__name__", name) == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = found.nothing


def test_models_need_none_of_the_loaders_libraries():
    subprocess.run([sys.executable, "-c", MODELS, LOADERS], check=True)


def test_importing_it_imports_no_torch():
    command = "import micron_model, sys; sys.exit('torch' in sys.modules or 'cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command]).returncode == 0


def test_no_module_hides_a_function_of_its_name():
    packages = [
        name
        for _, name, is_package in pkgutil.walk_packages(micron_model.__path__, "micron_model.")
        if is_package
    ]
    for package in map(importlib.import_module, ["micron_model", *packages]):
        for module in pkgutil.iter_modules(package.__path__):
            found = getattr(package, module.name, None)
            assert not callable(found), f"{package.__name__}.{module.name} is a module and a function"


def test_the_command_line_starts_without_what_it_may_not_need():
    """Each takes most of a second to import, or more, and every command would wait for it."""
    slow = ("torch._dynamo", "scipy.stats", "pandas", "triton", "openpyxl")
    command = f"import micron_model.cli, sys; print([name for name in {slow} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
