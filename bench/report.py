"""What pytest-benchmark does not show: tables of ratios and of the machine's ceilings, a plot, a machine's results."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import cpuinfo
import gpu_targets
import timing_cpu
import timing_gpu
import torch

from micron_kernels import _extension

Entry = dict[str, Any]
#: What a user would otherwise run, with the colour of its bars.
PEERS = {
    "eager": "#0072B2",
    "compiled": "#D55E00",
    "torch.topk": "#009E73",
    "flash": "#CC79A7",
    "efficient": "#E69F00",
    "flex": "#56B4E9",
    "published structure": "#999999",
}
#: What of a machine's ceiling is reached.
SHARES = {
    "share_of_fma_peak": "FMA peak",
    "share_of_bandwidth": "bandwidth",
    "share_of_matrix_rate": "matrix rate",
    "share_of_copy_bandwidth": "copy bandwidth",
}


def _cpu_name() -> str:
    """With family and model: virtual machines of different processors give the same name."""
    cpu = cpuinfo.get_cpu_info()
    name = cpu.get("brand_raw", platform.machine())
    return (
        f"{name} (family {cpu['family']}, model {cpu['model']})"
        if "family" in cpu and "model" in cpu
        else name
    )


@functools.cache
def machine_info(device: torch.device) -> dict[str, Any]:
    """What times depend on."""
    built = _extension.module
    if device.type == "cpu":
        return {
            "machine": _cpu_name(),
            "instruction_set": built.instruction_set() if built else None,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "compiler": built.compiler if built else None,
        }
    driver = None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    return {
        "machine": torch.cuda.get_device_name(device),
        "driver": driver,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": next((found.version for found in importlib.metadata.distributions(name="triton")), None),
        "cuda_architectures": built.cuda_architectures if built else None,
    }


def file_of(info: dict[str, Any]) -> str:
    """The name of a machine's results."""
    name = f"{info['machine']} {info.get('instruction_set') or ''}"
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-').lower()}.json"


def default_path(device: torch.device) -> Path:
    return Path(__file__).parent / "results" / file_of(machine_info(device))


def keep_what_was_not_run(output: dict[str, Any], path: Path) -> None:
    """To ``output`` is added what ``path`` holds of the files that were not run, if the machine is the same."""

    def module(entry: Entry) -> str:
        return entry["fullname"].split("::")[0]

    ran = {module(entry) for entry in output["benchmarks"]}
    before = json.loads(path.read_text()) if path.exists() else {}
    if before.get("machine_info") == output["machine_info"]:
        kept = [entry for entry in before["benchmarks"] if module(entry) not in ran]
        output["benchmarks"] = sorted(kept + output["benchmarks"], key=module)


def rows(entries: list[Entry]) -> list[dict[str, Any]]:
    """Of each group of entries: operator, case, way, its variants, the one that ratios refer to, the best peer."""
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        info = entry["extra_info"]
        row = found.setdefault(
            entry["group"], {"variants": {}} | {name: info[name] for name in ("operator", "case", "way")}
        )
        row["variants"][info["variant"]] = {"seconds": entry["stats"]["median"], **info}
    for row in found.values():
        variants = row["variants"]
        row["ours"] = next((name for name, v in variants.items() if v.get("times_ours") == 1), None)
        peers = [name for name, v in variants.items() if name in PEERS and "times_ours" in v]
        row["best_peer"] = min(peers, key=lambda name: variants[name]["seconds"], default=None)
    return list(found.values())


def duration(seconds: float) -> str:
    """Three digits."""
    unit, size = next((u for u in (("s", 1), ("ms", 1e-3)) if seconds >= u[1]), ("µs", 1e-6))
    value = seconds / size
    return f"{value:.0f} {unit}" if value >= 99.95 else f"{value:#.3g} {unit}"


def notes(variant: dict[str, Any]) -> str:
    """How far from what the machine allows."""
    notes = [f"{variant['times_floor']:.2f}× floor"] if "times_floor" in variant else []
    for key, what in SHARES.items():
        if key in variant:
            notes.append(f"{variant[key]:.0%} of {what}")
    if "seconds_over_operators" in variant:
        notes.append(f"{duration(variant['seconds_over_operators'])} over them")
    return ", ".join(notes[:2])


def tables(entries: list[Entry]) -> str:
    """One table an operator: median time, times ours, memory beside the result, share of the machine's ceiling."""
    lines = []
    all_rows = rows(entries)
    for operator in dict.fromkeys(row["operator"] for row in all_rows):
        lines += ["", f"{operator:<30}{'median':>10}{'times ours':>13}{'extra MiB':>12}   of the ceiling"]
        for row in (r for r in all_rows if r["operator"] == operator):
            lines.append(f"  {row['case']}, {row['way']}")
            ours = row["variants"].get(row["ours"], {})
            if "floor_seconds" in ours:
                rates = (
                    f"{ours['matrix_rate'] / 1e12:.0f} TFLOP/s and {ours['copy_bandwidth'] / 1e12:.2f} TB/s"
                )
                lines[-1] += f": floor {duration(ours['floor_seconds'])}, of {rates}"
            for name, variant in row["variants"].items():
                ratio = f"{variant['times_ours']:.2f}×" if "times_ours" in variant else ""
                memory = f"{variant['extra_bytes'] / 2**20:.2f}" if "extra_bytes" in variant else ""
                line = f"    {name:<26}{duration(variant['seconds']):>10}{ratio:>13}{memory:>12}"
                lines.append(f"{line}   {notes(variant)}".rstrip())
    if any(row["way"] == timing_gpu.CALLS for row in all_rows):
        lines.append("\n" + gpu_targets.table(all_rows))
    return "\n".join(lines)


def plot(output: dict[str, Any], path: Path) -> None:
    """Bars: how many times faster ours is than each thing a user would otherwise run."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print(f"no {path}: matplotlib is not installed")
        return

    info = output["machine_info"]
    groups = [
        (
            f"{row['operator']}  {row['case']}",
            {
                name: v["times_ours"]
                for name, v in row["variants"].items()
                if name in PEERS and "times_ours" in v
            },
        )
        for row in rows(output["benchmarks"])
        if row["way"] in (timing_gpu.CALLS, timing_cpu.ONE)
    ]
    groups = [(case, bars) for case, bars in groups if bars]
    if not groups:
        return
    most = max(len(bars) for _, bars in groups)
    figure = Figure(figsize=(9, 0.17 * most * len(groups) + 1.8), layout="constrained")
    axes = figure.subplots()
    height = 0.72 / most
    labelled = set()
    for place, (_, bars) in enumerate(groups):
        for i, (peer, value) in enumerate(bars.items()):
            y = place + (i - (len(bars) - 1) / 2) * height
            label = None if peer in labelled else f"over {peer}"
            labelled.add(peer)
            axes.barh(y, value, height=height * 0.94, color=PEERS[peer], label=label)
            axes.text(value * 1.03, y, f"{value:.1f}×", va="center", fontsize=6.5, in_layout=False)
    axes.axvline(1, color="0.3", lw=1)
    axes.set_xscale("log")
    ticks = [0.5, 1, 2, 5, 10, 20, 50, 100]
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.grid(axis="x", alpha=0.3)
    axes.set_yticks(range(len(groups)), [case for case, _ in groups], fontsize=7)
    axes.set_ylim(len(groups) - 0.4, -0.6)
    how = "calls, cold L2" if "cuda" in info else "one thread"
    axes.set_xlabel(f"times faster than the alternative (log scale), {how}")
    what = f"CUDA {info['cuda']}, triton {info['triton']}" if "cuda" in info else info["instruction_set"]
    axes.set_title(f"{info['machine']}, {what}, torch {info['torch']}", fontsize=9)
    figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=4)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.7), max(high * 1.2, 3))  # small gains must look small
    figure.savefig(path, dpi=120)
