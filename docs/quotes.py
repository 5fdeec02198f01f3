"""Numbers that pages repeat from bench/: ``python docs/quotes.py`` writes them anew, after new results.

A quote is a piece of a page with a hole ``{}`` for each number. tests/test_docs.py holds the pages against it.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ZEN3, ZEN5, H200 = "amd-epyc-family-25-model-1-avx2", "amd-epyc", "nvidia-h200"
BASE, WIDTH_128 = "(4, 1, 784, 512)", "(4, 4, 784, 128)"
LEVELS = ("none", "light", "head", "compression", "noise", "all")
UNSEEN, TRAINED = "Unseen faces", "Trained photographs"


@functools.cache
def results(machine: str) -> dict[tuple[str, str], float]:
    """(group, variant) -> how many times longer than ours that alternative takes."""
    entries = json.loads((ROOT / "bench" / "results" / f"{machine}.json").read_text())["benchmarks"]
    found = [(x["group"], x["extra_info"]) for x in entries]
    return {(group, x["variant"]): x["times_ours"] for group, x in found if "times_ours" in x}


def times(
    machine: str, case: str, *peers: str, way: str = "1 thread", digits: int | None = None
) -> list[str]:
    return [rounded(results(machine)[f"{case}, {way}", peer], digits) for peer in peers]


def between(machine: str, case: str, peer: str, way: str = "1 thread") -> list[str]:
    """The least and the most of the cases that begin so."""
    found = [
        x
        for (group, variant), x in results(machine).items()
        if variant == peer and group.startswith(case) and group.endswith(way)
    ]
    return [rounded(min(found)), rounded(max(found))]


def rounded(ratio: float, digits: int | None = None) -> str:
    """With one decimal place, none from ten on."""
    return f"{ratio:.{digits if digits is not None else 1 if ratio < 9.95 else 0}f}"


@functools.cache
def table(page: str, heading: str, row: str) -> dict[str, list[str]]:
    """A row of a table that an experiment wrote: the numbers in each cell, by column."""
    text = (ROOT / "bench" / "experiments" / page).read_text()
    lines = [[x.strip() for x in line.split("|")[1:-1]] for line in text[text.index(heading) :].splitlines()]
    columns = next(cells for cells in lines if len(cells) > 1)
    (cells,) = [cells for cells in lines if " | ".join(cells).startswith(row)][:1]
    return {name: re.findall(r"\d*\.\d+", cell) for name, cell in zip(columns, cells, strict=True)}


def auroc(row: str, *levels: str, of: str = UNSEEN) -> list[str]:
    return [table("localisation.md", of, row)[level][0] for level in levels or LEVELS]


def best_plain(*levels: str, of: str = UNSEEN) -> list[str]:
    plain = ("difference, r", "patch-normalised difference, r", "Farnebäck flow, r", "DIS flow, r")
    return [max(auroc(row, level, of=of)[0] for row in plain) for level in levels or LEVELS]


def f1(videos: str) -> str:
    return table("spotting.md", "# Which", f"{videos}, 12 | `micron_model")["movements P / R / F1"][2]


def worth_to_recognition() -> tuple[str, list[str]]:
    """The table of what pre-training on movement is worth to recognition: its rows, and their numbers."""
    casme2, composite, unseen = "CASME II, hard", "composite, hard", "all"
    network, features = "μ-BERT with flow as an input", "μ-BERT, movement, flow"
    one, other = "slstt.md", "movement_recognition.md"
    # file, flow's row, that of random weights, and of the pre-trained
    trained = one, "flow and", f"{network}, trained from", f"{network}, trained, pre"
    frozen = one, "flow and", f"{network}, frozen, un", f"{network}, frozen, pre"
    of_map = one, "flow and", f"{network}, map, frozen, un", f"{network}, map, frozen, pre"
    logistic = other, "flow,", f"{features}, untrained |", f"{features} |"
    logistic_of_map = other, "flow,", f"{features}, untrained: map", f"{features}: map"
    rows = [
        ("recognizer, all of it trained, CASME II", trained, casme2),
        ("the same, composite", trained, composite),
        ("recognizer, frozen, CASME II", frozen, casme2),
        ("the same, composite", frozen, composite),
        ("**recognizer, frozen, of the map**, CASME II", of_map, casme2),
        ("the same, composite", of_map, composite),
        ("its features, logistic regression, CASME II", logistic, casme2),
        ("the same, composite", logistic, composite),
        ("the same, seven unseen faces, all disturbs", logistic, unseen),
        ("**map of 8 × 8 patches**, logistic regression, CASME II", logistic_of_map, casme2),
        ("the same, composite", logistic_of_map, composite),
        ("the same, seven unseen faces, all disturbs", logistic_of_map, unseen),
    ]
    pieces, numbers = [], []
    for name, (file, *of_rows), column in rows:
        flow, before, after = (table(file, "| ", row)[column][:2] for row in of_rows)
        gain = float(after[0]) - float(before[0])
        bold = "**" if "map" in of_rows[-1] else ""
        pieces.append(f"| {name} | {{}} ± {{}} | {bold}{{}} ± {{}}{bold} | +{{}} | {{}} |")
        numbers += [x.removeprefix("0") for x in (*before, *after, f"{gain:.2f}", flow[0])]
    return "\n".join(pieces), numbers


def quotes() -> Iterator[tuple[str, str, list[str]]]:
    """(page, piece, numbers)."""
    forward, both = (f"diagonal_attention {x} fp32" for x in ("forward", "forward + backward"))
    plain = ("eager", "compiled")
    two = functools.partial(times, digits=2)
    gpu = functools.partial(times, H200, way="calls")

    zen5, zen3 = times(ZEN5, f"{forward} {BASE}", *plain), two(ZEN3, f"{forward} {BASE}", *plain)
    zen5_both, zen3_both = times(ZEN5, f"{both} {BASE}", *plain), two(ZEN3, f"{both} {BASE}", *plain)
    narrow = [x for machine in (ZEN5, ZEN3) for x in times(machine, f"{forward} {WIDTH_128}", *plain)]
    cells = "{}×, {}× | {}×, {}× |"
    yield "README.md", f"| `diagonal_attention` {BASE} | {cells}", [*zen5, *zen3]
    yield "README.md", f"| the same, forward + backward | {cells}", [*zen5_both, *zen3_both]
    yield "README.md", f"| `diagonal_attention` {WIDTH_128} | {cells}", narrow
    step = [
        *between(ZEN5, "pretrain_step base", "published structure", way=""),
        *two(ZEN3, "pretrain_step base, 2 pairs, fp32", "published structure"),
    ]
    yield "README.md", "over the structure of the published code | {} to {}× | {}× |", step
    wide = "(64, 1, 784, 512)"
    slow = gpu(f"{forward} {wide}", *plain, digits=2)
    yield "README.md", "`torch.compile` takes {} of our time", slow[1:]

    page = "docs/operators/diagonal_attention.md"
    rows = " | {}× | {}× |\n| the same, forward + backward | {}× | {}× |"
    half = [gpu(f"diagonal_attention {x} bf16 {wide}", *plain) for x in ("forward", "forward + backward")]
    yield page, f"| AMD Zen 5, one thread, fp32 {BASE}{rows}", [*zen5, *zen5_both]
    yield page, f"| AMD Zen 3, one thread, fp32 {BASE}{rows}", [*zen3, *zen3_both]
    yield page, f"| NVIDIA H200, bf16 {wide}{rows}", [*half[0], *half[1]]
    yield page, f"| NVIDIA H200, **fp32** {wide} | {{}}×, slower | {{}}×, slower |", slow

    page = "docs/operators/frame_difference.md"
    frames = "frame_difference uint8 224² B=32 T=1"
    all_of_zen3 = [x for peer in plain for x in between(ZEN3, "frame_difference", peer, way="")]
    yield page, "| AMD Zen 5, one thread | {}× | {}× |", times(ZEN5, frames, *plain)
    yield page, "| AMD Zen 3, one or two threads, every size and dtype | {} to {}× | {} to {}× |", all_of_zen3

    page = "docs/operators/poi_topk.md"
    topk, mask, select = "poi_topk topk_mask", "poi_topk mask_tokens", "poi_topk select_tokens"
    yield page, "| AMD Zen 5: `topk_mask` | {} to {}× |", between(ZEN5, topk, "torch.topk")
    kept = [*between(ZEN5, mask, "eager"), *between(ZEN5, select, "torch.topk")]
    yield page, "| AMD Zen 5: `mask_tokens`, `select_tokens` | {} to {}×, {} to {}× |", kept
    kept = [*between(ZEN3, topk, "torch.topk"), *between(ZEN3, mask, "eager")]
    yield page, "| AMD Zen 3: `topk_mask`, `mask_tokens` | {} to {}×, {} to {}× |", kept

    swap = "swap_patches uint8 224² B=32"
    yield "docs/operators/swap_patches.md", "| AMD Zen 5, one thread | {}× | {}× |", times(ZEN5, swap, *plain)

    trained, without_flow = "movement, flow, registered", "movement, registered"
    ahead = [auroc(trained, "none"), best_plain("none"), auroc(trained, "all"), best_plain("all")]
    piece = "AUROC {} against {} where nothing disturbs, {} against {} under light"
    yield "README.md", piece, [x for pair in ahead for x in pair]
    outlined = [auroc(f"{row}, registered, outlined") for row in ("Farnebäck flow", "movement, flow")]
    piece = "flow has {} and {} and the trained map {} and {}"
    yield "README.md", piece, [row[level] for row in outlined for level in (0, -1)]
    page = "docs/models/micron_bert.md"
    six = ", ".join(["{}"] * 6)
    yield page, f"flow has {six} and the trained map {six}", [x for row in outlined for x in row]
    yield (
        page,
        "| best of plain difference, normalised difference, Farnebäck and DIS flow |" + " {} |" * 6,
        best_plain(),
    )
    yield page, "with flow as an input |" + " **{}** |" * 6, auroc(trained)
    yield page, "| the same without flow |" + " {} |" * 6, auroc(without_flow)
    yield page, "| paper's form, untrained, tied start |" + " {} |" * 6, auroc("untrained, registered")
    yield page, *worth_to_recognition()
    kept = [*auroc("difference, registered", "none", of=TRAINED), *auroc(trained, "none", of=TRAINED)]
    yield page, "the plain difference keeps {} against {} where nothing else changes", kept

    found = [f1(videos) for videos in ("plain", "distractors", "distractors at the same time")]
    piece = "F1 of {} where nothing disturbs, {} among blinks and turning heads, {} where one comes"
    yield "README.md", piece, found
    piece = "F1 of {} where nothing disturbs, {} among blinks, looks aside and turning heads, {} where one"
    yield "docs/own_video.md", piece, found


def written(text: str, piece: str, numbers: list[str]) -> str:
    """``text`` with these numbers in ``piece``, wherever its lines break; ValueError if it is not there once."""
    between_holes = [r"\s+".join(map(re.escape, re.split(r"\s+", part))) for part in piece.split("{}")]
    found = list(re.finditer(r"(\d*\.?\d+)".join(between_holes), text))
    if len(found) != 1:
        raise ValueError(f"{len(found)} times, not once: {piece!r}")
    for at, number in reversed([*enumerate(numbers, 1)]):
        start, end = found[0].span(at)
        text = text[:start] + number + text[end:]
    return text


def main() -> None:
    for page, piece, numbers in quotes():
        path = ROOT / page
        path.write_text(written(path.read_text(), piece, numbers))


if __name__ == "__main__":
    main()
