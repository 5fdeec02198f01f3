"""What ``micron_model`` offers."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import micron_model


def test_every_name_is_there_and_listed():
    assert set(micron_model.__all__) == micron_model._HOMES.keys() <= set(dir(micron_model))
    for name in micron_model.__all__:
        assert getattr(micron_model, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = micron_model.nothing


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
