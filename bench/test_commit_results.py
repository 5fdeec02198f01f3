import json

import commit_results


def entry(variant, seconds, **facts):
    case = "forward bf16 (64, 1, 784, 512)"
    about = {"operator": "diagonal_attention", "case": case, "way": "calls", "variant": variant}
    stats = {"median": seconds, "data": [seconds]}
    return {
        "group": f"diagonal_attention {case}, calls",
        "fullname": f"bench/bench_diagonal_attention.py::test_forward[{variant}]",
        "extra_info": about | facts,
        "stats": stats,
    }


def test_a_machine_s_results_and_tables_are_written_with_what_is_slower(tmp_path):
    info = {"machine": "NVIDIA H200", "driver": "580", "cuda": "13.0", "torch": "2.11", "triton": "3.6.0"}
    entries = [
        entry("triton", 207e-6, extra_bytes=2**19, times_ours=1.0, times_floor=3.5),
        entry("native", 653e-6, times_ours=3.1),
        entry("eager", 280e-6, extra_bytes=150 * 2**20, times_ours=1.33),
        entry("compiled", 167e-6, times_ours=0.802),
        entry("flex", 226e-6, times_ours=1.08),
    ]
    measured = {"machine_info": info, "benchmarks": entries, "datetime": "2026-11-26T05:20:23"}
    (tmp_path / "results.json").write_text(json.dumps(measured))
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- nvidia-h200: targets -->\nold\n<!-- end -->\nafter\n")
    for _ in range(2):  # again, over what it wrote
        commit_results.main(tmp_path / "results.json", tmp_path, (readme,))
    text = readme.read_text()
    row = "| diagonal_attention forward bf16 (64, 1, 784, 512) | triton 207 µs, native 653 µs | 1.33× | 0.80× | "
    assert f"{row}flex 1.08× | 3.50× floor | 0.5, 150 |\n<!-- end -->\nafter\n" in text
    assert text.startswith(
        "before\n<!-- nvidia-h200: targets -->\nNVIDIA H200, driver 580, CUDA 13.0, torch 2.11, "
    )
    committed = json.loads((tmp_path / "nvidia-h200.json").read_text())
    assert len(committed["benchmarks"]) == 5
    assert all("data" not in found["stats"] for found in committed["benchmarks"])
    assert (tmp_path / "nvidia-h200.png").stat().st_size > 0
