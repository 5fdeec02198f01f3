import pytest

import emulated
import harness
from micron_kernels import _implementation
from micron_kernels.info import OPERATORS

if emulated.why_not() is None:
    _implementation.NAMES = (*_implementation.NAMES, "emulated")
    for _name in emulated.OPERATORS:
        _ops = OPERATORS[_name]
        _ops.IMPLEMENTATIONS["emulated"] = emulated.Emulated(_ops.native)


@pytest.fixture(autouse=True)
def _skip_what_an_implementation_cannot_serve(request):
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    ops = getattr(request.module, "ops", None)
    if ops and "target" in parameters:
        impl, device = parameters["target"]
        why = harness.cannot(ops, impl, device, *([parameters["dtype"]] if "dtype" in parameters else []))
        if why is not None:
            pytest.skip(f"{impl} {why}")
