"""The tables, and the files under ``results/``."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import gpu_targets
import torch

from micron_kernels import _extension

ROWS: list[dict[str, Any]] = []
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


def cpu_name() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        if found:
            return found[1]
    return platform.processor() or platform.machine()


def _cpu_facts() -> dict[str, Any]:
    return {
        "machine": cpu_name(),
        "threads": torch.get_num_threads(),
        "instruction_set": _extension.module.instruction_set() if _extension.module else None,
        "torch": torch.__version__,
        "compiler": _extension.module.compiler if _extension.module else None,
    }


def _gpu_facts(device: torch.device) -> dict[str, Any]:
    driver = triton = None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        triton = importlib.metadata.version("triton")
    return {
        "machine": torch.cuda.get_device_name(device),
        "driver": driver,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": triton,
        "cuda_architectures": _extension.module.cuda_architectures if _extension.module else None,
    }


def _ours_and_peers(row: dict[str, Any]) -> list[str]:
    lines = []
    for name, v in row["variants"].items():
        if "error" in v:
            lines.append(f"{name} failed: {v['error']}")
            continue
        line = f"{name} {v['milliseconds']:.3f}" if "timed" in row else f"{name} {v['milliseconds']:.2f}"
        if "times_ours" in v:
            line += f" ({v['times_ours']:.2f}×)"
        if "extra_bytes" in v:
            line += f" {v['extra_bytes'] / 2**20:.2f} MiB"
        for key, what in (
            ("times_floor", "× its floor"),
            ("share_of_matrix_rate", " of the matrix rate"),
            ("share_of_copy_bandwidth", " of the copy bandwidth"),
        ):
            if key in v:
                line += f", {v[key]:.2f}{what}" if key == "times_floor" else f", {v[key]:.0%}{what}"
        lines.append(line)
    return lines


def tables() -> str:
    """One table an operator, as text, and what was aimed at on a GPU."""
    lines = []
    for operator in dict.fromkeys(row["operator"] for row in ROWS):
        lines.append(
            f"\n{operator}: ms (its time over ours, median over rounds), extra memory beside the result"
        )
        for row in (r for r in ROWS if r["operator"] == operator):
            cells = _ours_and_peers(row)
            for key, what in (("share_of_fma_peak", "FMA peak"), ("share_of_bandwidth", "bandwidth")):
                if key in row:
                    cells.append(f"{row[key]:.0%} of {what}")
            if "floor_milliseconds" in row:
                cells.append(
                    f"floor {row['floor_milliseconds']:.4f}, of {row['matrix_rate'] / 1e12:.0f} TFLOP/s "
                    f"and {row['copy_bandwidth'] / 1e12:.2f} TB/s"
                )
            if "times_best_peer" in row:
                cells.append(f"{row['ours']} over the best peer, {row['best_peer']}: "
                             f"{row['times_best_peer']:.2f}×")  # fmt: skip
            how = row.get("timed") or f"{row['threads']} thread{'s' if row['threads'] > 1 else ' '}"
            lines.append(f"  {row['case']:<34} {how}")
            lines += [f"      {cell}" for cell in cells]
    if any("timed" in row for row in ROWS):
        lines.append("\n" + gpu_targets.table(ROWS))
    return "\n".join(lines)


def write(device: torch.device, path: str | None) -> Path:
    """``results/<machine>.json`` or ``path``; operators that were not timed now keep their rows."""
    result = _gpu_facts(device) if device.type == "cuda" else _cpu_facts()
    result["date"] = datetime.date.today().isoformat()
    name = re.sub(r"[^A-Za-z0-9]+", "-", result["machine"]).strip("-").lower()
    target = Path(path) if path else Path(__file__).parent / "results" / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    if target.exists():
        before = json.loads(target.read_text())
        if all(before.get(name) == result[name] for name in result if name != "date"):
            rows = [r for r in before["rows"] if r["operator"] not in {row["operator"] for row in ROWS}]
    result["rows"] = sorted(rows + ROWS, key=lambda row: row["operator"])
    target.write_text(json.dumps(result, indent=1) + "\n")
    return target


def plot(results: Path) -> None:
    """Beside ``results``, bars: how many times faster ours is than each thing a user would otherwise run."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print(f"no plot beside {results}: matplotlib is not installed")
        return

    result = json.loads(results.read_text())
    gpu = "driver" in result
    groups = [
        (
            f"{row['operator']}  {row['case']}",
            {p: v["times_ours"] for p, v in row["variants"].items() if p in PEERS and "times_ours" in v},
        )
        for row in result["rows"]
        if (row["timed"] == "calls" if gpu else row["threads"] == 1)
    ]
    groups = [(case, bars) for case, bars in groups if bars]
    most = max((len(bars) for _, bars in groups), default=1)
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
    ticks = [1, 2, 5, 10, 20, 50, 100]
    axes.set_xticks(ticks, [f"{tick}×" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.grid(axis="x", alpha=0.3)
    axes.set_yticks(range(len(groups)), [case for case, _ in groups], fontsize=7)
    axes.invert_yaxis()
    how = "calls, cold L2" if gpu else "one thread"
    axes.set_xlabel(f"times faster than the alternative (log scale), {how}")
    what = f"CUDA {result['cuda']}, triton {result['triton']}" if gpu else result["instruction_set"]
    axes.set_title(f"{result['machine']}, {what}, torch {result['torch']}", fontsize=9)
    if labelled:
        axes.legend(fontsize=8, frameon=False, loc="lower right")
    axes.margins(x=0.12)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.7), max(high, 3))  # small gains must look small
    figure.savefig(results.with_suffix(".png"), dpi=120)
