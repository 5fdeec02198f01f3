"""A report of recognition: one page of HTML, its pictures, and the csv files that its numbers come from."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import html_page
from ..plain_text import in_csv, in_page, to_csv
from ..whole_file import write_whole
from .figures import figure_of_confusions, figure_of_features
from .metrics import LEVEL, Measure, Score, score
from .predictions import LEAKY, Predictions, write_predictions
from .published import AS_PUBLISHED, Published

_PACKAGES = ("micron-kernels", "scipy", "openpyxl", "opencv-python-headless", "scikit-image", "matplotlib")

_THIS_RUN = "this run"

_STYLE = """
.banner { background: #b00020; color: white; padding: 0.7rem 1rem; margin: 1rem 0; }
.banner p { margin: 0.2rem 0; font-weight: 600; }
"""


class Features(NamedTuple):
    """What the classifier sees of each clip, for a picture."""

    values: np.ndarray
    """(n, d), finite."""
    labels: Sequence[str]
    """The true class of each."""
    datasets: Sequence[str]


class Picture(NamedTuple):
    """A picture made elsewhere, for example the heat map of a clip."""

    title: str
    caption: str
    png: bytes


def write_report(
    out: Path,
    *,
    title: str,
    predictions: Predictions,
    baselines: Mapping[str, Predictions],
    settings: Mapping[str, Any],
    published: Sequence[Published] = (),
    features: Features | None = None,
    pictures: Sequence[Picture] = (),
    stamps: Sequence[str] = (),
    parts: str = "",
    further: Sequence[tuple[str, str]] = (),
) -> Path:
    """Write ``report.html``, self-contained, its PNGs, ``predictions.csv``, ``scores.csv``, ``subjects.csv`` and a csv
    of each baseline to ``out``.

    Args:
        title: of the page.
        predictions: of all folds and seeds.
        baselines: of the same clips, by name.
        settings: of the run; may be nested.
        published: what others report on this task.
        features: shown by their first two principal components.
        pictures: shown in this order.
        stamps: what must be said on top, beyond what the predictions themselves call for.
        parts: what was trained on for the scores of single datasets (``protocols.training_of_parts``).
        further: sections of another origin: title and HTML.

    Returns:
        The path of the page.

    Raises:
        ValueError: a baseline is of other clips, or has another truth for one.
        RuntimeError: a file cannot be written.
    """
    for name, baseline in baselines.items():
        _check_same_clips(name, baseline, predictions)
    scores = score(predictions)
    beside = {name: score(baseline) for name, baseline in baselines.items()}
    all_stamps = list(dict.fromkeys([*scores.stamps, *stamps, *_leaky(beside)]))
    drawn = {"confusions": html_page.png(figure_of_confusions(scores.shown, stamps=all_stamps))}
    if features is not None:
        drawn["features"] = html_page.png(
            figure_of_features(*features, predictions.classes, stamps=all_stamps)
        )
    drawn |= {f"picture-{i}": picture.png for i, picture in enumerate(pictures, 1)}

    write_predictions(out / "predictions.csv", predictions)
    for name, baseline in baselines.items():
        write_predictions(out / f"baseline-{re.sub(r'[^A-Za-z0-9]+', '-', name)}.csv", baseline)
    runs = {_THIS_RUN: scores, **beside}
    write_whole(out / "scores.csv", _csv(_score_rows(runs, all_stamps, parts)))
    write_whole(out / "subjects.csv", _csv(_subject_rows(predictions, all_stamps)))
    for name, data in drawn.items():
        write_whole(out / f"{name}.png", data)
    sections = [
        ("", banner(all_stamps)),
        ("Scores", _score_table(runs, published) + _score_note(scores)),
        *([("By dataset", _part_table(runs, parts))] if len(scores.parts) > 1 else []),
        ("Classes", _class_table(scores)),
        (
            "Confusions",
            html_page.image(drawn["confusions"], "confusion matrices: rows true, columns predicted"),
        ),
        *further,
        *_feature_section(drawn),
        *[(p.title, _picture(p)) for p in pictures],
        ("Subjects", html_page.grid(_subject_rows(predictions, ()))),
        (
            "Settings",
            html_page.table([("epoch chosen", ", ".join(scores.selections)), *_flat(settings), *_versions()]),
        ),
    ]
    leaky = "LEAKY: " * (LEAKY in scores.selections)
    page = html_page.page(f"{leaky}{title}", sections, style=_STYLE)
    write_whole(out / "report.html", page)
    return out / "report.html"


def _check_same_clips(name: str, baseline: Predictions, predictions: Predictions) -> None:
    ours, theirs = predictions.truths, baseline.truths
    if ours.keys() != theirs.keys():
        dataset, clip = min(ours.keys() ^ theirs.keys())
        raise ValueError(
            f"baseline {name!r}: {len(theirs)} clips, the predictions {len(ours)}, and {dataset} {clip} is in one of "
            "them only; both must be of the same clips"
        )
    for (dataset, clip), truth in ours.items():
        if theirs[dataset, clip] != truth:
            raise ValueError(
                f"baseline {name!r}: the truth of {dataset} {clip} is {theirs[dataset, clip]!r}, in the predictions "
                f"{truth!r}; a baseline trained on shuffled labels is tested against the true ones"
            )


def _leaky(baselines: Mapping[str, Score]) -> list[str]:
    return [f"Baseline {name!r}: {LEAKY}" for name, scores in baselines.items() if LEAKY in scores.selections]


def banner(stamps: Sequence[str]) -> str:
    """HTML of what must be said."""
    lines = "".join(f"<p>{in_page(stamp)}</p>" for stamp in stamps)
    return f'<div class="banner">{lines}</div>' if stamps else ""


def _measured(measure: Measure) -> tuple[str, str]:
    return str(measure), measure.interval_text


def _score_table(runs: Mapping[str, Score], published: Sequence[Published]) -> str:
    rows: list[list[Any]] = [
        ["Full, all folds pooled", "UF1", "UAR", "accuracy", "clips", "subjects", "seeds"]
    ]
    kinds: list[str] = []
    for name, scores in runs.items():
        full = scores.full
        measures = map(_measured, (full.uf1, full.uar, full.accuracy))
        rows.append([name, *measures, full.clips, full.subjects, len(scores.seeds)])
        kinds.append("" if kinds else "first")
    for row in published:
        small = f"{AS_PUBLISHED}{'; ' * bool(row.note)}{row.note}"
        rows.append([(row.method, small), f"{row.uf1:.3f}", f"{row.uar:.3f}", "", "", "", ""])
        kinds.append("published")
    return html_page.grid(rows, kinds)


def _score_note(scores: Score) -> str:
    if len(scores.seeds) > 1:
        text = f"Mean ± standard deviation over seeds; in brackets the {LEVEL:.0%} interval of the mean"
    else:
        text = f"In brackets the {LEVEL:.0%} interval"
    text += (
        f", of a bootstrap over subjects. One confusion matrix over all {scores.folds} folds; UF1 and UAR are means "
        "over the classes that have clips."
    )
    return f'<p class="note">{text}</p>'


def _part_table(runs: Mapping[str, Score], trained: str) -> str:
    rows: list[list[Any]] = [["", "UF1", "UAR", "accuracy", "clips", "subjects", "not counted"]]
    kinds = []
    for dataset in runs[_THIS_RUN].parts:
        for name, scores in runs.items():
            part = scores.parts[dataset]
            measures = map(_measured, (part.uf1, part.uar, part.accuracy))
            rows.append([(dataset, name), *measures, part.clips, part.subjects, ", ".join(part.absent)])
            kinds.append("first" if name == _THIS_RUN else "")
    note = in_page(f"{trained} A class that has no clip in a dataset is not counted there.".strip())
    return html_page.grid(rows, kinds) + f'<p class="note">{note}</p>'


def _class_table(scores: Score) -> str:
    full = scores.full
    rows: list[list[Any]] = [
        ["", *(f"clips in {part.name}" for part in scores.shown), "F1 (Full)", "recall (Full)"]
    ]
    for name in scores.classes:
        measures = (
            "no clip" if np.isnan(value) else f"{value:.3f}"
            for value in (full.class_f1[name], full.class_recall[name])
        )
        rows.append([name, *(part.counts[name] for part in scores.shown), *measures])
    return html_page.grid(rows)


def _confusions(picture: bytes, scores: Score) -> str:
    clips = "Clips, mean over seeds" if len(scores.seeds) > 1 else "Clips"
    note = f"{clips}, and their share of the true class, which the colour shows. Rows are the truth."
    image = html_page.image(picture, "confusion matrices: rows true, columns predicted")
    return f'{image}<p class="note">{note}</p>'


def _feature_section(drawn: Mapping[str, bytes]) -> list[tuple[str, str]]:
    if "features" not in drawn:
        return []
    picture = html_page.image(drawn["features"], "first two principal components of the features")
    note = "What the classifier sees of each clip, in the two directions in which it varies most."
    return [("Features", f'{picture}<p class="note">{note}</p>')]


def _picture(picture: Picture) -> str:
    return html_page.image(picture.png, picture.title) + f'<p class="note">{in_page(picture.caption)}</p>'


def _score_rows(runs: Mapping[str, Score], stamps: Sequence[str], trained: str) -> list[list[Any]]:
    measures = ("uf1", "uar", "accuracy")
    numbers = [f"{m}{suffix}" for m in measures for suffix in ("", "_sd", "_low", "_high")]
    rows: list[list[Any]] = [
        ["predictions", "part", "clips", "subjects", "seeds", *numbers, "stamps", "trained"]
    ]
    for name, scores in runs.items():
        for part in (scores.full, *scores.parts.values()):
            values = [value for m in measures for value in _numbers(getattr(part, m))]
            said = "; ".join(stamps)
            rows.append(
                [name, part.name, part.clips, part.subjects, len(scores.seeds), *values, said, trained]
            )
    return rows


def _numbers(measure: Measure) -> list[str]:
    return [f"{value:.6f}" for value in (measure.mean, measure.sd, *measure.interval)]


def _subject_rows(predictions: Predictions, stamps: Sequence[str]) -> list[list[Any]]:
    """A row a subject: its clips, those of each class, and the share that was right, mean over seeds."""
    clips: dict[str, Counter[str]] = {}
    seen: set[tuple[str, str]] = set()
    right: dict[str, list[bool]] = {}
    for row in predictions.rows:
        if (row.dataset, row.clip) not in seen:
            seen.add((row.dataset, row.clip))
            clips.setdefault(row.subject, Counter())[row.truth] += 1
        right.setdefault(row.subject, []).append(row.truth == row.prediction)
    said = ["; ".join(stamps)] * bool(stamps)
    rows: list[list[Any]] = [
        ["subject", "clips", *predictions.classes, "accuracy", *["stamps"] * bool(stamps)]
    ]
    for subject in sorted(clips, key=lambda name: (name.rsplit("/")[0], int(name.rsplit("/")[-1]))):
        counts = [clips[subject][name] for name in predictions.classes]
        rows.append([subject, sum(counts), *counts, f"{np.mean(right[subject]):.3f}", *said])
    return rows


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    return to_csv(
        [in_csv(cell) if isinstance(cell, str) and not _is_number(cell) else cell for cell in row]
        for row in rows
    )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
            rows.append((f"{prefix}{name}", shown))
    return rows


def _versions() -> list[tuple[str, str]]:
    packages = []
    for name in _PACKAGES:
        try:
            packages.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            packages.append(f"{name} (not installed)")
    rows = [
        (
            "versions",
            f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}",
        ),
        ("packages", ", ".join(packages)),
    ]
    commit = _commit()
    return [*rows, ("commit", commit)] if commit else rows


def _commit() -> str:
    """Of the repository that this file is tracked in; empty if there is none."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(
            command, cwd=here.parent, check=True, capture_output=True, text=True, timeout=20
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{commit}{' with changes' if changes else ''}"
