"""``micron evaluate`` and ``micron finetune``."""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    TypeVar,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import tyro
from rich.console import Console
from rich.table import Table

from ..data.clips.inputs import ClipInput
from ..data.databases.expressions import Expression
from ..data.databases.prepared import FaceConfig
from ..evaluation.adaptation import without_clips
from ..evaluation.adaptation_outputs import scores_of, table_of
from ..evaluation.evaluator import EvaluateConfig, Evaluation, entrants, evaluate
from ..evaluation.history import figure_of_histories, read_histories, write_history
from ..evaluation.macro import with_macro
from ..evaluation.metrics import score
from ..evaluation.outputs import write_outputs
from ..evaluation.predictions import ANOTHER_PROTOCOL, read_predictions
from ..evaluation.protocols import training_of_parts
from ..evaluation.published import PUBLISHED
from ..evaluation.task import Task, finetune, load_task, refuse_overlap
from ..model_card import Training
from ..plain_text import say
from ..progress import ProgressBar, working
from ..recognizers.base import BUILT_IN, Recipe, name_of, recipe_class
from ..resumable import claimed
from ..training.run import device_type
from ..visualize import save_figure
from .answer import Answer, answering
from .data import DatasetName, Source
from .score import print_score

_Recipe = TypeVar("_Recipe", bound=Recipe)
_Name = Annotated[
    str,
    tyro.conf.arg(
        help=f"{', '.join(BUILT_IN)}, or one of your own as package.module:Recipe. This help shows the settings of the "
        "one that is named."
    ),
]


@dataclass
class Clips:
    """Which clips, and how their faces are cut."""

    scheme: Literal["3", "casme2-5", "samm-5", "casme3-3", "casme3-4", "casme3-7"] | None = None
    """The classes: "3" are those of MEGC 2019. If not given: 3 for smic and megc2019, else casme2-5, samm-5 or
    casme3-3."""
    source: tyro.conf.OmitArgPrefixes[Source] = field(default_factory=Source)
    face: FaceConfig = field(default_factory=FaceConfig)
    cache: Path = Path("out/faces")
    """Folder of faces that were cut before."""
    allow_differences: bool = False
    """Go on although the census differs from the official counts; every output says so."""

    def load(
        self,
        dataset: str,
        root: Path,
        inputs: ClipInput | Sequence[ClipInput],
        console: Console,
        macro: Path | None = None,
        allow_overlap: bool = False,
        **options: Any,
    ) -> Task:
        """``macro``: macro-expressions for the first of the inputs."""
        if macro is not None and not macro.exists():  # said before faces are cut
            raise FileNotFoundError(f"{macro}: no such file or folder")
        task = load_task(
            dataset, root, inputs, scheme=self.scheme, face=self.face, cache=self.cache,
            allow_differences=self.allow_differences, console=console, **options, **self.source.options,
        )  # fmt: skip
        if macro is None:
            return task
        first = inputs[0] if isinstance(inputs, Sequence) else inputs
        return with_macro(
            task, macro, first, face=self.face, cache=self.cache, allow_overlap=allow_overlap, console=console
        )


def _devices(names: str) -> list[str]:
    """Raises RuntimeError for a GPU where torch sees none."""
    kinds = {name: device_type(name) for name in names.split(",")}
    return [kind if name == "auto" else name for name, kind in kinds.items()]


class Share(NamedTuple):
    """What this process does of an evaluation, and where."""

    part: tuple[int, int]
    devices: list[str]
    workers: int | None

    @staticmethod
    def check(part: str | None) -> tuple[int, int] | None:
        """What ``part`` says, if it is given; raises ValueError if it says nothing."""
        if part is None:
            return None
        found = re.fullmatch(r"(\d+)/(\d+)", part)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f"part={part!r}; it must be I/N with I from 1 to N, for example 2/8")
        return int(found[1]), int(found[2])

    @classmethod
    def of(cls, part: str | None, device: str, workers: int | None) -> Share:
        """As ``part`` says, or torchrun; its processes on one machine share out GPUs and processors.

        Raises:
            ValueError: ``part`` is none, or is given beside torchrun's.
        """
        ranks = int(os.environ.get("WORLD_SIZE", 1))
        devices = _devices(device)
        given = cls.check(part)
        if given is not None:
            if ranks > 1:
                raise ValueError(f"part={part!r} beside torchrun, which shares the folds out by itself")
            return cls(given, devices, workers)
        if ranks == 1:
            return cls((1, 1), devices, workers)
        local, beside = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        if devices == ["cuda"]:
            devices = [f"cuda:{local}"]
        if workers is None and devices == ["cpu"]:
            workers = max(1, (os.cpu_count() or 1) // beside)
        return cls((int(os.environ["RANK"]) + 1, ranks), devices, workers)


def parse_with_recognizer(command: type[Any], prog: str, arguments: Sequence[str]) -> Any:
    """The recognizer decides which settings there are, so it is read first."""
    first = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    first.add_argument("--recognizer", default="micron-bert")
    name = first.parse_known_args(arguments)[0].recognizer
    try:
        recipe = recipe_class(name)
    except ValueError as error:
        first.error(str(error))
    return tyro.cli(command[recipe], prog=prog, args=arguments)


def options_of_every_recognizer() -> type[Any]:
    """A class with the fields of all recipes of this package: a shell's completion cannot ask which one was named."""
    found: dict[str, Any] = {}
    for recipe in map(recipe_class, BUILT_IN):
        for name, kind in get_type_hints(recipe, include_extras=True).items():
            if name not in (field.name for field in fields(cast(Any, recipe))) or is_dataclass(kind):
                continue  # one that is wrapped has a name of its own
            choices = [*get_args(found[name]), *get_args(kind)] if name in found else []
            found[name] = (
                Literal[tuple(dict.fromkeys(choices))] if get_origin(kind) is Literal and choices else kind
            )
    return make_dataclass("Options", list(found.items()))


@dataclass
class Evaluate(Generic[_Recipe]):
    """Train and test a recognizer fold by fold, no subject on both sides, and write scores and a report."""

    dataset: tyro.conf.Positional[DatasetName]
    """Which database; megc2019 is the composite of the first three."""
    root: tyro.conf.Positional[Path]
    """The folder it was unpacked into."""
    recipe: tyro.conf.OmitArgPrefixes[_Recipe]
    recognizer: _Name = "micron-bert"
    protocol: Literal["loso", "cde", "hde"] = "loso"
    """Leave one subject out; the same over the composite (cde); train on two databases, test on the third (hde)."""
    clips: tyro.conf.OmitArgPrefixes[Clips] = field(default_factory=Clips)
    out: Path = Path("out/evaluate")
    """Folder of predictions, scores and report. The same command again does the folds that are missing."""
    device: str = "auto"
    """auto: a GPU if there is one; several with commas, "cuda:0,cuda:1"."""
    workers: int | None = None
    """Processes; as many as GPUs, or as processors, if not given."""
    part: str | None = None
    """I/N, for example 2/8: of N calls on several machines that share the folds out in one folder --out, the I-th, from
    1 on. What torchrun starts shares them out by itself. Whoever finishes last writes the report."""
    allow_overlap: bool = False
    """Go on although the model was pre-trained on subjects it is tested on, or macro-expressions may show them; every
    output says so."""
    json: bool = False
    """Print one JSON document instead of tables."""
    config: tyro.conf.OmitArgPrefixes[EvaluateConfig] = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        Share.check(self.part)

    def run(self, console: Console) -> None:
        with answering(self.json) as answer:
            self._run(console, answer)

    def _run(self, console: Console, answer: Answer) -> None:
        self.out.mkdir(parents=True, exist_ok=True)  # who cannot write there hears of it before faces are cut
        start = self.recipe.start()
        entered = entrants(self.recipe, start, self.config)

        def check(expressions: list[Expression]) -> list[str]:
            corpora = dict.fromkeys(entrant.start.corpus for entrant in entered.values())
            return [x for c in corpora for x in refuse_overlap(c, expressions, allow=self.allow_overlap)]

        task = self.clips.load(
            self.dataset, self.root, [entrant.clip_input for entrant in entered.values()], console,
            macro=self.recipe.macro, allow_overlap=self.allow_overlap, protocol=self.protocol, check=check,
        )  # fmt: skip
        share = Share.of(self.part, self.device, self.workers)
        evaluation = evaluate(
            task, self.recipe, start, self.config, self.out, devices=share.devices, workers=share.workers,
            part=share.part, allow_overlap=self.allow_overlap, console=console,
        )  # fmt: skip
        answer.document = {
            "finished": evaluation is not None,
            "dataset": self.dataset,
            "protocol": self.protocol,
            "recognizer": name_of(self.recipe),
            "out": self.out,
        }
        if evaluation is None:
            return
        known = "composite" if self.dataset == "megc2019" else f"{self.dataset}-{len(task.classes)}"
        rows = [row for row in PUBLISHED if row.task == known and self.protocol != "hde"]
        with working("writing the report", console):
            report = write_outputs(
                self.out, task, self.recipe, start, evaluation, self.config, about={"protocol": self.protocol},
                published=rows,
            )  # fmt: skip
            scores = score(evaluation.predictions)
        if self.json:
            baselines = {name: score(found).as_json() for name, found in evaluation.baselines.items()}
            found = {
                "report": report,
                "stamps": task.stamps,
                "scores": scores.as_json(),
                "baselines": baselines,
            }
            if evaluation.adapted:
                found["adapted"] = {
                    kind: {setting.selection: score(of).as_json() for setting, of in by.items()}
                    for kind, by in evaluation.adapted.items()
                }
            answer.document = {**answer.document, **found}
        else:
            parts = training_of_parts(task.folds, task.expressions)
            print_score(scores, Console(highlight=False), parts=parts)
            self._print_adapted(evaluation, task)
        say(console, f"report: {report}")

    def _print_adapted(self, evaluation: Evaluation, task: Task) -> None:
        if not evaluation.adapted:
            return
        shown = Console(highlight=False)
        for line in (ANOTHER_PROTOCOL, *without_clips(task, self.recipe, self.config)):
            say(shown, line)
        header, *measured = table_of(scores_of(evaluation.adapted))
        table = Table(*header)
        for cells in measured:
            table.add_row(*cells)
        shown.print(table)


def _scores_of(predictions: Path, classes: Sequence[str]) -> dict[str, Any]:
    """Of networks trained as the one at hand, on subjects that none of them saw; for its card."""
    found = score(read_predictions(predictions, classes))
    measures = {
        part.name: {
            "UF1": f"{part.uf1} {part.uf1.interval_text}",
            "UAR": f"{part.uar} {part.uar.interval_text}",
            "clips": part.counts,
            "subjects": part.subjects,
        }
        for part in found.shown
    }
    return {
        "of": f"{found.folds} folds, {len(found.seeds)} seeds, epoch: {', '.join(found.selections)}",
        "stamps": found.stamps,
        **measures,
    }


@dataclass
class Finetune(Generic[_Recipe]):
    """Train a recognizer on all clips of a database, for use on other videos."""

    dataset: tyro.conf.Positional[DatasetName]
    """Which database."""
    root: tyro.conf.Positional[Path]
    """The folder it was unpacked into."""
    recipe: tyro.conf.OmitArgPrefixes[_Recipe]
    recognizer: _Name = "micron-bert"
    clips: tyro.conf.OmitArgPrefixes[Clips] = field(default_factory=Clips)
    out: Path = Path("out/recognizer")
    """Folder of the recognizer."""
    scores: Path | None = None
    """The predictions.csv of `micron evaluate` with the same settings: the model's card then states its scores."""
    seed: int = 0
    """Of the classifier's weights, of the order of the clips and of their augmentation."""
    device: str = "auto"
    """auto: a GPU if there is one."""

    def run(self, console: Console) -> None:
        with claimed(self.out):
            self._run(console)

    def _run(self, console: Console) -> None:
        if (self.out / "config.json").exists():
            raise ValueError(f"{self.out}: holds a model already; give another folder")
        start = self.recipe.start()
        task = self.clips.load(
            self.dataset,
            self.root,
            self.recipe.clip_input(start),
            console,
            macro=self.recipe.macro,
            protocol=None,
        )
        for line in self.recipe.remarks(task.examples(self.recipe, start)):
            say(console, line)
        training = Training(
            data=task.about.get("classes", ""),
            subjects=[e.subject for e in task.expressions],
            clips=start.corpus.clips,
            settings={"recognizer": name_of(self.recipe), **self.recipe.settings(), "seed": self.seed},
            scores={} if self.scores is None else _scores_of(self.scores, task.classes),
        )
        with ProgressBar(console=console) as progress:
            if self.recipe.embeds_once:
                features = progress.add_task("features", total=len(task.expressions))
            shown = progress.add_task("epochs", total=getattr(self.recipe, "epochs", None))
            recognizer = finetune(
                task, self.recipe, start, seed=self.seed, device=_devices(self.device)[0],
                on_epoch=lambda epoch: progress.update(shown, completed=epoch),
                on_features=lambda clips: progress.update(features, advance=clips),
            )  # fmt: skip
        try:
            recognizer.save_pretrained(self.out, training=training)
            if recognizer.history:
                write_history(self.out / "epochs.csv", recognizer.history)
                save_figure(figure_of_histories(read_histories(self.out)), self.out / "epochs.png")
        except RuntimeError as error:
            kept = Path(tempfile.mkdtemp(prefix="micron-recognizer-"))
            recognizer.save_pretrained(kept, training=training)
            raise RuntimeError(f"{error}. What was trained is kept in {kept}: move it") from None
        say(console, f"recognizer: {self.out}")
