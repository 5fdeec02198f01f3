"""From a database on the disk to what is to be learned of it; and a recognizer that has learned all of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from ..data.clips.inputs import ClipInput, Values, take
from ..data.databases.classes import SCHEMES, Labelled, label
from ..data.databases.corpus import Corpus
from ..data.databases.datasets import load_dataset
from ..data.databases.expressions import Expression
from ..data.databases.prepared import FaceConfig, Prepared, prepare
from ..plain_text import say
from ..progress import ProgressBar, working
from ..recognizers.base import Examples, MacroExamples, Recipe, Recognizer, Start, name_of
from ..recognizers.fitting import features_of
from ..training.problems import report_problems
from .protocols import Fold, cde, check_census, hde, loso

#: The classes where no scheme is asked for: those that most papers on the database report.
_SCHEMES = {"casme2": "casme2-5", "samm": "samm-5", "smic": "3", "casme3": "casme3-3", "megc2019": "3"}
_PROTOCOLS = {"loso": loso, "cde": cde, "hde": hde}


class Task(NamedTuple):
    """What is to be learned, and how it is tested."""

    expressions: list[Expression]
    labels: list[str]
    """The class of each expression."""
    classes: tuple[str, ...]
    folds: list[Fold]
    values: Mapping[str, Values]
    """What is kept of each clip, by the key of the input that made it."""
    about: Mapping[str, str] = {}
    """What a report says of the data."""
    stamps: Sequence[str] = ()
    """What every output must say."""
    scheme: str = ""
    """Of the classes."""
    macro: Mapping[str, MacroExamples] = {}
    """Macro-expressions beside the clips, by the key of the input that made them (``macro.with_macro``)."""

    def values_of(self, clip_input: ClipInput) -> Values:
        """Raises ValueError if the task was loaded without that input."""
        if clip_input.key not in self.values:
            raise ValueError(
                f"the task has no values of the input {clip_input.key!r}, only of {', '.join(map(repr, self.values))}: "
                "load it with that input too"
            )
        return self.values[clip_input.key]

    def examples(self, recipe: Recipe, start: Start) -> Examples:
        """All clips as a recipe learns from them, not embedded.

        Raises:
            ValueError: the task has no values of its input, or no macro-expressions and the recipe wants some.
        """
        clip_input = recipe.clip_input(start)
        macro = None
        if recipe.macro is not None:
            macro = self.macro.get(clip_input.key)
            if macro is None:
                raise ValueError(
                    f"macro={str(recipe.macro)!r}, but the task has no macro-expressions of the input "
                    f"{clip_input.key!r}: add them with evaluation.macro.with_macro"
                )
        labels = positions(self.labels, self.classes)
        subjects = [e.subject for e in self.expressions]
        return Examples(self.values_of(clip_input), labels, subjects, macro=macro)


def positions(labels: Sequence[str], classes: Sequence[str]) -> Tensor:
    """(n,) int64: the place of each label among the classes."""
    return torch.tensor([classes.index(label) for label in labels])


def load_task(
    dataset: str,
    root: str | Path,
    inputs: ClipInput | Sequence[ClipInput],
    *,
    protocol: Literal["loso", "cde", "hde"] | None = "loso",
    scheme: str | None = None,
    face: FaceConfig | None = None,
    cache: Path | None = None,
    allow_differences: bool = False,
    check: Callable[[list[Expression]], list[str]] = lambda expressions: [],
    console: Console | None = None,
    **options: Any,
) -> Task:
    """Read a database, choose the classes, cut the faces and encode them; each step says what it left out.

    Args:
        dataset: key of ``DATASETS``.
        root: the folder it was unpacked into.
        inputs: what recognizers are given of a clip, for example ``recipe.clip_input(start)``; a clip of which one
            cannot be made is left out for all.
        protocol: "loso", leave one subject out; "cde", the same over the composite; "hde", train on two databases, test
            on the third; None for no folds.
        scheme: of the classes, a key of ``SCHEMES``; if not given, "3" for smic and megc2019, else casme2-5, samm-5 or
            casme3-3.
        face: how faces are cut.
        cache: a folder for what is made of the clips.
        allow_differences: go on although the census differs from the official counts; the task is stamped with it.
        check: may refuse the clips before their faces are cut, or say what every output must say.
        console: where is said what is left out; standard error by default.
        options: of the loader of the database.

    Raises:
        ValueError: the census differs, nothing is left, or what ``check`` raises.
        FileNotFoundError: something of the database is not there.
    """
    console = console or Console(stderr=True)
    wanted = {x.key: x for x in (inputs if isinstance(inputs, Sequence) else [inputs])}
    scheme = scheme or _SCHEMES[dataset]
    with working(f"reading {dataset}", console):
        expressions, census = load_dataset(dataset, root, **options)
    stamps = check_census([census], allow_differences=allow_differences)
    chosen = label(expressions, scheme)
    stamps += check(chosen.expressions)
    counts = chosen.describe(scheme)
    for line in (*stamps, counts):
        say(console, line)
    prepared = {}
    with ProgressBar(console=console) as progress:
        shown = progress.add_task("faces", total=len(wanted) * len(chosen.expressions))
        for key, clip_input in wanted.items():
            prepared[key] = prepare(
                chosen.expressions, clip_input, face or FaceConfig(), cache,
                advance=lambda: progress.update(shown, advance=1),
            )  # fmt: skip
    remarks = [remark for found in prepared.values() for remark in found.remarks]
    report_problems([x for found in prepared.values() for x in found.problems], console, "clips are left out")
    report_problems(remarks, console, "clips are used all the same")
    if any(remark.reason.startswith("no face") for remark in remarks):
        say(
            console,
            "Where frames are faces already, --no-detect takes them whole; --boxes gives faces found by others",
        )
    kept, values = _in_all(prepared)
    label_of = dict(zip(((e.dataset, e.name) for e in chosen.expressions), chosen.labels, strict=True))
    labels = [label_of[e.dataset, e.name] for e in kept]
    if left := len(chosen.expressions) - len(kept):
        stamps.append(f"{left} of {len(chosen.expressions)} clips could not be read and are left out")
        counts = Labelled(kept, labels, chosen.dropped).describe(scheme)
        counts += f"; {left} that could not be read"
    return Task(
        kept,
        labels,
        SCHEMES[scheme].classes,
        _PROTOCOLS[protocol](kept) if protocol else [],
        values,
        {"dataset": dataset, "classes": counts},
        stamps,
        scheme,
    )


def _in_all(prepared: Mapping[str, Prepared]) -> tuple[list[Expression], dict[str, Values]]:
    """The expressions that every input could be made of, and their values."""
    names = {key: [(e.dataset, e.name) for e in found.expressions] for key, found in prepared.items()}
    common = set.intersection(*map(set, names.values()))
    if not common:
        raise ValueError("there is no clip of which every input can be made")
    values = {
        key: take(found.values, [i for i, name in enumerate(names[key]) if name in common])
        for key, found in prepared.items()
    }
    first = next(iter(prepared))
    return [
        e for e, name in zip(prepared[first].expressions, names[first], strict=True) if name in common
    ], values


def refuse_overlap(corpus: Corpus, expressions: Sequence[Expression], *, allow: bool = False) -> list[str]:
    """Refuse a model that was pre-trained on subjects it would be tested on.

    Returns:
        What every output must say; only if ``allow``.

    Raises:
        ValueError: it has seen them, or it is not known, and that is not allowed.
    """
    if corpus.clips is None:
        line = "It is not known what the model was pre-trained on, so it may have seen the subjects it is tested on"
    else:
        seen = corpus.overlap(expressions)
        if not seen:
            return []
        line = f"The model was pre-trained on frames of {len(seen)} of the subjects it is tested on: {', '.join(seen)}"
    if not allow:
        raise ValueError(
            f"{line}. Pre-train without them, or allow it with --allow-overlap; every output then says so"
        )
    return [line]


def finetune(
    task: Task,
    recipe: Recipe,
    start: Start | None = None,
    *,
    seed: int = 0,
    device: str = "cpu",
    on_epoch: Callable[[int], object] = lambda epoch: None,
    on_features: Callable[[int], object] = lambda clips: None,
) -> Recognizer:
    """A recognizer that has learned all clips of a task, for use on other videos.

    Args:
        task: loaded with the recipe's input.
        recipe: builds and trains it.
        start: where it starts from; ``recipe.start()`` if not given.
        seed: of all that is random.
        device: where it is trained.
        on_epoch: called after each epoch with its number.
        on_features: called with the number of clips whose features were computed, where that is done once.

    Returns:
        The recognizer, on the CPU, in evaluation mode.
    """
    start = recipe.start() if start is None else start
    examples = task.examples(recipe, start)
    recognizer = recipe.build(start, task.classes, seed=seed).to(device).eval()
    if recipe.embeds_once:
        examples = examples._replace(
            values=features_of(
                recognizer, examples.values, precision=recipe.inference_precision, advance=on_features
            ),
            embedded=True,
        )
    recipe.fit(recognizer, examples, seed=seed, on_epoch=on_epoch)
    config = recognizer.config
    config.recognizer, config.trained_on = name_of(recipe), task.about.get("classes", "")
    return recognizer.cpu().eval()
