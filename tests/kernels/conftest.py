import pytest

import emulated
import harness
from micron_kernels import _implementation
from micron_kernels.info import OPERATORS

if emulated.why_not() is None:
    _implementation.NAMES = (*_implementation.NAMES, "emulated")
    for _ops in OPERATORS.values():
        _ops.IMPLEMENTATIONS["emulated"] = emulated.Emulated(_ops.native)


@pytest.fixture(autouse=True)
def _skip_dtypes_that_an_implementation_does_not_compute_in(request):
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    ops = getattr(request.module, "ops", None)
    if ops and "target" in parameters and "dtype" in parameters:
        impl, _ = parameters["target"]
        if not harness.computes_in(ops, impl, parameters["dtype"]):
            pytest.skip(f"{impl} has no kernel for {parameters['dtype']}")
