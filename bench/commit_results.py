"""What ``bench/gpu.sh`` measured on another machine, to be committed: ``python bench/commit_results.py RESULTS.json``.

Writes ``bench/results/<machine>.json`` and ``.png``, and in two READMEs what stands between ``<!-- <machine>: all -->``
or ``<!-- <machine>: targets -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gpu_targets
import report
import timing_gpu

ROOT = Path(__file__).parents[1]
READMES = (ROOT / "README.md", ROOT / "bench" / "results" / "README.md")
HEADER = """\
| | ours | over the plain formula | over `torch.compile` | over others | of the ceiling | extra MiB, of the formula |
|---|---|---|---|---|---|---|
"""


def _times(ratio: float) -> str:
    return f"{ratio:.2f}×" if ratio < 9.995 else f"{ratio:.0f}×"


def _mebibytes(variant: dict[str, Any]) -> str:
    size = variant.get("extra_bytes", 0) / 2**20
    return f"{size:.0f}" if size >= 100 else f"{size:.2g}"


def _line(row: dict[str, Any]) -> str:
    variants = row["variants"]
    against = {name: _times(v["times_ours"]) for name, v in variants.items() if "times_ours" in v}
    kernels = [row["ours"], *(name for name in variants if name not in (row["ours"], *report.PEERS))]
    ours = ", ".join(f"{name} {report.duration(variants[name]['seconds'])}" for name in kernels)
    others = [f"{name} {against[name]}" for name in report.PEERS if name in against]
    cells = [
        f"{row['operator']} {row['case']}" + (f", {row['way']}" if row["way"] != timing_gpu.CALLS else ""),
        ours,
        against.get("eager", ""),
        against.get("compiled", ""),
        ", ".join(other for other in others if not other.startswith(("eager ", "compiled "))),
        report.notes(variants[row["ours"]]),
        ", ".join(_mebibytes(variants[name]) for name in (row["ours"], "eager") if name in variants),
    ]
    return f"| {' | '.join(cells)} |"


def _conditions(output: dict[str, Any]) -> str:
    info, variants = output["machine_info"], [entry["extra_info"] for entry in output["benchmarks"]]
    rate, bandwidth = (
        max((v[name] for v in variants if name in v), default=0.0)
        for name in ("matrix_rate", "copy_bandwidth")
    )
    return (
        f"{info['machine']}, driver {info['driver']}, CUDA {info['cuda']}, torch {info['torch']}, Triton "
        f"{info['triton']}, {output['datetime'][:10]}; measured beside: bf16 products at {rate / 1e12:.0f} "
        f"TFLOP/s, copies at {bandwidth / 1e12:.2f} TB/s."
    )


def tables(output: dict[str, Any], *, targets: bool) -> str:
    """In Markdown: the calls that targets speak of; or everything, and whether the targets were reached."""
    rows = [row for row in report.rows(output["benchmarks"]) if row["ours"]]
    if not targets:
        lines = "\n".join(map(_line, rows))
        return f"{_conditions(output)}\n\n{HEADER}{lines}\n\n```\n{gpu_targets.table(rows)}\n```"
    rows = [row for row in rows if any(target.is_of(row) for target in gpu_targets.TARGETS)]
    lines = "\n".join(_line(row) for row in rows if row["way"] == timing_gpu.CALLS)
    return f"{_conditions(output)}\n\n{HEADER}{lines}"


def main(path: Path, results: Path = READMES[1].parent, readmes: tuple[Path, ...] = READMES) -> None:
    output = json.loads(path.read_text())
    for entry in output["benchmarks"]:
        entry["stats"].pop("data", None)  # every single time is too much to commit
    to = results / report.file_of(output["machine_info"])
    report.keep_what_was_not_run(output, to)
    to.write_text(json.dumps(output, indent=4))
    report.plot(output, to.with_suffix(".png"))
    for readme in readmes:
        text = readme.read_text()
        for what in ("all", "targets"):
            begin, end = f"<!-- {to.stem}: {what} -->\n", "<!-- end -->"
            before, found, rest = text.partition(begin)
            if found:
                written = tables(output, targets=what == "targets")
                text = f"{before}{begin}{written}\n{end}{rest.partition(end)[2]}"
        readme.write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
