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
    forward, scores, rows, passes = (
        [k for k in kernels if name in k.name] for name in ("forward_k", "score_grad", "row_grad", "pass_k")
    )
    for k in forward + scores + passes:
        (chunks,) = map(int, re.findall(r"Li(\d)E", k.name))
        warps, blocks = 12 if k in passes else 9, 2 if chunks <= 2 else 1
        assert 65536 // (k.registers * 32) >= blocks * warps, "the blocks that are to share an SM"
        assert not k.used_too_early(), "sums of products that have not been waited for"
    for k in forward + scores:
        (chunks,) = map(int, re.findall(r"Li(\d)E", k.name))
        # Three starts of a part; up to 512 columns also the other chunks of two, and two tiles of few keys.
        assert k.count("HGMMA") == {1: 12, 2: 24, 8: 56}[chunks]
        assert k.count("UTMALDG")
        assert k.count("SYNCS")
        # A branch within a start would make two groups of its products, and a wait for all but one end the first.
        groups = [x.count("HGMMA") for x in "\n".join(k.instructions).split("gsb0") if "HGMMA" in x]
        assert groups.count(4 if chunks == 1 else 8) >= 3
        # Two parts, of 32 or 64 scores a thread, are worked on while the products of the next are under way.
        assert k.under_products() >= 2 * (64 if chunks == 8 else 32)
        cycles = k.cycles(64 * chunks)
        if k in forward:
            assert cycles.issued <= {1: 800, 2: 890, 8: 1300}[chunks]
            assert cycles.exponentials <= {1: 960, 2: 1088, 8: 1088}[chunks]
        assert cycles.at_once <= {1: 1200, 2: 1280, 8: 4096}[chunks]
    for k in forward + rows:  # tokens move in vectors, statistics one by one
        assert k.widths("LDG")[16] >= 8
        assert 2 not in k.widths("LDG") | k.widths("STG")
        assert k.widths("STG")[16] >= 1
