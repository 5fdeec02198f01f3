import subprocess
import sys

import pytest
import torch

import fresh
from micron_kernels import diagonal_attention, frame_difference, swap_patches, topk_mask
from micron_kernels.testing import assert_within_rounding, guarded_memory, poisoned_memory

CALLS = {
    "diagonal_attention": lambda impl: diagonal_attention(*torch.randn(3, 1, 1, 4, 4), impl=impl),
    "frame_difference": lambda impl: frame_difference(*torch.rand(2, 1, 3, 4, 4), 2, impl=impl),
    "poi_topk": lambda impl: topk_mask(torch.rand(1, 4), 2, impl=impl),
    "swap_patches": lambda impl: swap_patches(
        *torch.rand(2, 1, 3, 4, 4), torch.zeros(1, 4, dtype=torch.bool), 2, impl=impl
    ),
}


@pytest.mark.parametrize("operator", CALLS)
def test_an_implementation_that_is_not_there_is_refused(operator, monkeypatch):
    from micron_kernels.info import OPERATORS

    monkeypatch.delitem(OPERATORS[operator].IMPLEMENTATIONS, "native", raising=False)
    with pytest.raises(RuntimeError, match=f"{operator}: impl='native' needs the compiled extension"):
        CALLS[operator]("native")


@pytest.mark.parametrize("package", ["micron_kernels", "micron_model"])
def test_import_needs_no_optional_package(package):
    code = f"""
import sys
for name in ("triton", "torchvision", "timm", "tensorboard", "pandas"):
    sys.modules[name] = None
import {package}
"""
    fresh.output_of(code, warnings=["error"])


def test_micron_kernels_needs_torch_alone():
    code = """
import sys
import torch
before = set(sys.modules)
import micron_kernels, micron_kernels.nn
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(new - set(sys.stdlib_module_names) - {"micron_kernels", "torch"}))
"""
    assert fresh.output_of(code).strip() == "[]"


def test_info_names_every_operator_and_what_is_active():
    result = subprocess.run(
        [sys.executable, "-m", "micron_kernels.info"], check=True, capture_output=True, text=True
    )
    for word in (*CALLS, torch.__version__, "reference", "triton"):
        assert word in result.stdout


def test_the_guard_notices_a_write_outside():
    with (
        pytest.raises(AssertionError, match="memory after a tensor of 40 bytes was overwritten"),
        guarded_memory(),
    ):
        torch.empty(10).as_strided((11,), (1,)).zero_()


def test_poisoned_memory_is_poisoned():
    with poisoned_memory():
        assert torch.empty(100).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_rounding_rule_can_fail():
    oracle = torch.tensor([1.0, 2.0], dtype=torch.float64)
    none = torch.zeros(2)
    assert_within_rounding("x", oracle.float(), oracle, plain_error=none)
    with pytest.raises(AssertionError, match="x: error"):
        assert_within_rounding("x", (oracle + 1e-6).float(), oracle, plain_error=none)
    with pytest.raises(AssertionError, match="NaN"):
        assert_within_rounding("x", oracle.float() * torch.nan, oracle, plain_error=none)
