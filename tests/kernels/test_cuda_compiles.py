"""Every CUDA source, by nvcc, without a GPU: registers, spills, shared memory, and what became of the inner loops.

What the installation compiled for an architecture is looked at as it is (MICRON_BUILD=cuda); the rest is compiled here.
"""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import sass_report  # noqa: E402

SOURCES = sorted((ROOT / "csrc").glob("*/cuda.cu"))


@pytest.mark.skipif(sass_report.nvcc() is None, reason="nvcc was not found")
@pytest.mark.skipif(not SOURCES, reason="the source is not at hand")
@pytest.mark.parametrize("architecture", ["80", "90a", "100a", "120a"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.parent.name)
def test_kernels_compile_without_spills(source, architecture, tmp_path):
    log = sass_report.compile_(source, architecture, tmp_path / "kernels.cubin")
    looks_inside = architecture == "90a" and source.parent.name == "diagonal_attention"
    kernels = sass_report.kernels(log, architecture, tmp_path / "kernels.cubin" if looks_inside else None)
    assert kernels
    assert not [k.name for k in kernels if k.spilled or k.stack]
    assert not re.findall(r"C75\d\d.*", log), "wgmma was serialised, or setmaxnreg ignored"
    assert all(k.static_shared <= 8 * 1024 for k in kernels), "MOST_STATIC of launch.h"
    if not looks_inside:
        return
    if sass_report.disassembler() is None:
        pytest.skip("there is no nvdisasm")
    forward, scores, rows = (
        [k for k in kernels if name in k.name] for name in ("forward_k", "score_grad", "row_grad")
    )
    for k in forward + scores:
        # Products of 128, 64 and 32 keys, four each; tensor copies and barriers of shared memory.
        assert k.count("HGMMA") == 12
        assert k.count("UTMALDG")
        assert k.count("SYNCS")
    for k in forward + rows:  # tokens move in vectors, statistics one by one
        assert k.widths("LDG")[16] >= 8
        assert 2 not in k.widths("LDG") | k.widths("STG")
        assert k.widths("STG")[16] >= 1
