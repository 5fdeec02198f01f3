"""Macro-expressions beside the clips of a task: whose classes they have, and that none is of a tested subject."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from ..data.clips.inputs import ClipInput
from ..data.databases import macro
from ..data.databases.classes import SCHEMES
from ..data.databases.prepared import FaceConfig, prepare
from ..plain_text import say
from ..progress import ProgressBar, counting
from ..recognizers.base import MacroExamples
from ..training.problems import report_problems
from .task import Task, positions


def with_macro(
    task: Task,
    path: Path,
    clip_input: ClipInput,
    *,
    face: FaceConfig | None = None,
    cache: Path | None = None,
    allow_overlap: bool = False,
    console: Console | None = None,
) -> Task:
    """The task, and beside it macro-expressions for recognizers of that input.

    An emotion counts as the class that it counts as in any database of the task's scheme; what no class holds is left
    out, and said, as are classes that no macro-expression shows. An apex that is not listed is spotted.

    Args:
        task: what ``load_task`` gave; only with folds it has tested subjects.
        path: as ``macro.load`` takes it.
        clip_input: that of the recipe whose ``macro`` asks for them.
        face: how faces are cut.
        cache: a folder for what is made of the clips.
        allow_overlap: go on although they may show subjects that are tested; the task is stamped with it.
        console: where is said what is left out; standard error by default.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: they have no labels, none has a class of the task, or they may show tested subjects.
    """
    console = console or Console(stderr=True)
    with counting("reading macro-expressions", console) as advance:
        expressions, census = macro.load(path, advance)
    report_problems(census.dropped, console, "macro-expressions are left out")
    stamps = []
    tested = [task.expressions[i] for i in sorted({i for fold in task.folds for i in fold.test})]
    if seen := macro.overlap(expressions, path, tested):
        named = ", ".join(seen)
        line = (
            f"The macro-expressions of {path} may show {len(seen)} of the subjects that are tested: {named}"
        )
        if not allow_overlap:
            raise ValueError(
                f"{line}. Leave them out of the list, or, if these are other people of the same number, say so: in a "
                "column dataset, or by names as in 'anna'. --allow-overlap goes on; every output then says so"
            )
        stamps.append(line)
    scheme = SCHEMES[task.scheme]
    class_of = {e.emotion: scheme.class_named(e.emotion) for e in expressions}
    known = [e for e in expressions if class_of[e.emotion] is not None]
    counted = Counter(e.emotion for e in expressions)
    unknown = ", ".join(f"{emotion} {counted[emotion]}" for emotion, name in class_of.items() if name is None)
    if not known:
        raise ValueError(
            f"{path}: none of the {len(expressions)} macro-expressions ({unknown}) has a class of scheme "
            f"{scheme.name!r}, which are {', '.join(task.classes)}"
        )
    with ProgressBar(console=console) as progress:
        shown = progress.add_task("faces of macro-expressions", total=len(known))
        prepared = prepare(
            known, clip_input, replace(face or FaceConfig(), spot_apex=True), cache,
            advance=lambda: progress.update(shown, advance=1),
        )  # fmt: skip
    report_problems(prepared.problems, console, "macro-expressions are left out")
    report_problems(prepared.remarks, console, "macro-expressions are used all the same")
    labels = [str(class_of[e.emotion]) for e in prepared.expressions]
    counts = Counter(labels)
    lacking = [name for name in task.classes if not counts[name]]
    subjects = [e.subject for e in prepared.expressions]
    about = (
        f"{len(labels)} macro-expressions of {len(set(subjects))} people "
        f"({', '.join(f'{name} {counts[name]}' for name in task.classes)}) from {path}; of no class and left out: "
        f"{unknown or 'none'}; classes that they do not show: {', '.join(lacking) or 'none'}"
    )
    for line in (*stamps, about):
        say(console, line)
    examples = MacroExamples(prepared.values, positions(labels, task.classes), subjects)
    return task._replace(
        macro={**task.macro, clip_input.key: examples},
        about={**task.about, "macro-expressions": about},
        stamps=[*task.stamps, *stamps],
    )
