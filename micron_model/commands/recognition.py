"""``micron evaluate``, ``micron finetune`` and ``micron predict``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from ..data.databases.classes import SCHEMES, Labelled, label
from ..data.databases.corpus import Corpus
from ..data.databases.expressions import Expression
from ..data.databases.prepared import FaceConfig, prepare
from ..evaluation.evaluator import EvaluateConfig, Task, evaluate, progress_bar
from ..evaluation.metrics import score
from ..evaluation.outputs import write_outputs
from ..evaluation.protocols import cde, check_census, hde, loso
from ..evaluation.published import PUBLISHED
from ..loading import load_model, load_recognizer
from ..models.config import preset
from ..models.micron_bert import MicronBERT
from ..prediction import NOT_A_VERDICT, SpotConfig, figure_of_candidates, figure_of_curve, predict
from ..recognizers.fitting import FinetuneConfig, features_of, fit
from ..recognizers.micron_bert import Recognizer
from ..resumable import claimed
from ..training.problems import report_problems
from ..training.run import device_type
from ..visualize import save_figure
from ..whole_file import write_whole
from .data import DatasetName, Source
from .score import print_score

#: The classes where no scheme is asked for: those that most papers on the database report.
_SCHEMES = {"casme2": "casme2-5", "samm": "samm-5", "smic": "3", "casme3": "casme3-3", "megc2019": "3"}
_PROTOCOLS = {"loso": loso, "cde": cde, "hde": hde}


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


@dataclass
class Start:
    """The model to start from."""

    model: str = "out/pretrain/model"
    """Folder of a pre-trained model (pretrain and demo write one), one of the Hugging Face hub (hf://owner/name), a
    checkpoint of the authors' (a file), or "none" for random weights."""
    preset: Literal["tiny", "base"] = "base"
    """Size of a model of random weights."""
    device: str = "auto"
    """auto: a GPU if there is one; several with commas, "cuda:0,cuda:1"."""

    def load(self) -> tuple[MicronBERT, Corpus]:
        if self.model == "none":
            torch.manual_seed(0)
            return MicronBERT(preset(self.preset)).eval(), Corpus(())
        return load_model(self.model), Corpus.read(self.model)

    @property
    def devices(self) -> list[str]:
        """Raises RuntimeError for a GPU where torch sees none."""
        kinds = {name: device_type(name) for name in self.device.split(",")}
        return [kind if name == "auto" else name for name, kind in kinds.items()]


@dataclass(frozen=True)
class _Labelled:
    """Clips that are ready to be learned."""

    expressions: list[Expression]
    labels: list[str]
    classes: tuple[str, ...]
    pairs: torch.Tensor
    about: dict[str, str]
    stamps: list[str]


def _load(
    dataset: str,
    root: Path,
    clips: Clips,
    size: int,
    console: Console,
    check: Callable[[list[Expression]], list[str]] = lambda expressions: [],
) -> _Labelled:
    """Read a database, choose the classes, cut the faces; each step says what it left out.

    ``check`` may refuse the clips before their faces are cut, or say what every output must say.
    """
    scheme = clips.scheme or _SCHEMES[dataset]
    expressions, census = clips.source.load(dataset, root)
    stamps = check_census([census], allow_differences=clips.allow_differences)
    chosen = label(expressions, scheme)
    stamps += check(chosen.expressions)
    counts = chosen.describe(scheme)
    for line in (*stamps, counts):
        console.print(line, markup=False, highlight=False)
    with progress_bar(console) as progress:
        shown = progress.add_task("faces", total=len(chosen.expressions))
        prepared = prepare(
            chosen.expressions,
            size,
            clips.face,
            clips.cache,
            advance=lambda: progress.update(shown, advance=1),
        )
    report_problems(prepared.problems, console)
    label_of = dict(zip(((e.dataset, e.name) for e in chosen.expressions), chosen.labels, strict=True))
    labels = [label_of[e.dataset, e.name] for e in prepared.expressions]
    if left := len(chosen.expressions) - len(prepared.expressions):
        stamps.append(f"{left} of {len(chosen.expressions)} clips could not be read and are left out")
        counts = Labelled(prepared.expressions, labels, chosen.dropped).describe(scheme)
        counts += f"; {left} that could not be read"
    about = {"dataset": dataset, "classes": counts}
    return _Labelled(prepared.expressions, labels, SCHEMES[scheme].classes, prepared.pairs, about, stamps)


def _check_overlap(corpus: Corpus, expressions: list[Expression], allow: bool) -> list[str]:
    """Refuse a model that was pre-trained on subjects it would be tested on.

    Returns:
        What every output must say; only if ``allow``.
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


@dataclass
class Evaluate:
    """Train and test a recognizer fold by fold, no subject on both sides, and write scores and a report."""

    dataset: tyro.conf.Positional[DatasetName]
    """Which database; megc2019 is the composite of the first three."""
    root: tyro.conf.Positional[Path]
    """The folder it was unpacked into."""
    protocol: Literal["loso", "cde", "hde"] = "loso"
    """Leave one subject out; the same over the composite (cde); train on two databases, test on the third (hde)."""
    start: tyro.conf.OmitArgPrefixes[Start] = field(default_factory=Start)
    clips: tyro.conf.OmitArgPrefixes[Clips] = field(default_factory=Clips)
    out: Path = Path("out/evaluate")
    """Folder of predictions, scores and report. The same command again does the folds that are missing."""
    workers: int | None = None
    """Processes; as many as GPUs, or as processors, if not given."""
    allow_overlap: bool = False
    """Go on although the model was pre-trained on subjects it is tested on; every output says so."""
    config: tyro.conf.OmitArgPrefixes[EvaluateConfig] = field(default_factory=EvaluateConfig)

    def run(self, console: Console) -> None:
        model, corpus = self.start.load()
        data = _load(
            self.dataset, self.root, self.clips, model.config.image_size, console,
            lambda expressions: _check_overlap(corpus, expressions, self.allow_overlap),
        )  # fmt: skip
        folds = _PROTOCOLS[self.protocol](data.expressions)
        task = Task(data.expressions, data.labels, data.classes, folds)
        evaluation = evaluate(
            task, data.pairs, model, self.config, self.out, devices=self.start.devices, workers=self.workers,
            console=console,
        )  # fmt: skip
        about = data.about | {"protocol": self.protocol, "pre-trained model": self.start.model}
        known = "composite" if self.dataset == "megc2019" else f"{self.dataset}-{len(data.classes)}"
        rows = [row for row in PUBLISHED if row.task == known and self.protocol != "hde"]
        report = write_outputs(
            self.out,
            task,
            data.pairs,
            model,
            evaluation,
            self.config,
            about=about,
            published=rows,
            stamps=data.stamps,
        )
        print_score(score(evaluation.predictions), Console(highlight=False))
        console.print(f"report: {report}", markup=False)


@dataclass
class Finetune:
    """Train a recognizer on all clips of a database, for use on other videos."""

    dataset: tyro.conf.Positional[DatasetName]
    """Which database."""
    root: tyro.conf.Positional[Path]
    """The folder it was unpacked into."""
    start: tyro.conf.OmitArgPrefixes[Start] = field(default_factory=Start)
    clips: tyro.conf.OmitArgPrefixes[Clips] = field(default_factory=Clips)
    out: Path = Path("out/recognizer")
    """Folder of the recognizer."""
    seed: int = 0
    """Of the classifier's weights, of the order of the clips and of their augmentation."""
    regions: int = 4
    """Features are pooled over regions × regions parts of the face."""
    finetune: tyro.conf.OmitArgPrefixes[FinetuneConfig] = field(default_factory=FinetuneConfig)

    def run(self, console: Console) -> None:
        with claimed(self.out):
            self._run(console)

    def _run(self, console: Console) -> None:
        if (self.out / "config.json").exists():
            raise ValueError(f"{self.out}: holds a model already; give another folder")
        backbone, _ = self.start.load()
        data = _load(self.dataset, self.root, self.clips, backbone.config.image_size, console)
        torch.manual_seed(self.seed)
        model = Recognizer.from_pretrained_backbone(backbone, data.classes, regions=self.regions)
        model.config.trained_on = data.about["classes"]
        model.to(self.start.devices[0])
        truth = torch.tensor([data.classes.index(name) for name in data.labels])
        inputs = features_of(model.eval(), data.pairs) if self.finetune.freeze == "encoder" else data.pairs
        with progress_bar(console) as progress:
            shown = progress.add_task("epochs", total=self.finetune.epochs)
            fit(
                model, inputs, truth, self.finetune, seed=self.seed,
                on_epoch=lambda epoch: progress.update(shown, completed=epoch),
            )  # fmt: skip
        model.cpu().save_pretrained(self.out)
        console.print(f"recognizer: {self.out}", markup=False)


@dataclass
class Predict:
    """Find candidate micro-expressions in a video of a face, and say which class each would be."""

    video: tyro.conf.Positional[Path]
    """A video, or a folder of images."""
    model: str = "out/recognizer"
    """Folder of a recognizer (`micron finetune` writes one), or one of the Hugging Face hub: hf://owner/name."""
    out: Path = Path("out/predict")
    """Folder of the pictures and of candidates.json."""
    fps: float | None = None
    """Frame rate of a folder of images (30 if not given), or of a video in place of what it states."""
    spot: tyro.conf.OmitArgPrefixes[SpotConfig] = field(default_factory=SpotConfig)

    def run(self, console: Console) -> None:
        model = load_recognizer(self.model)
        with claimed(self.out):
            self._run(model, console)

    def _run(self, model: Recognizer, console: Console) -> None:
        analysis = predict(self.video, model, self.spot, fps=self.fps)
        save_figure(figure_of_curve(analysis), self.out / "curve.png")
        heatmaps = figure_of_candidates(analysis, model)
        if heatmaps is not None:
            save_figure(heatmaps, self.out / "heatmaps.png")
        note = NOT_A_VERDICT.format(trained_on=model.config.trained_on or "an unknown set of clips")
        found = {"note": note, **analysis.as_json(), "spotting": asdict(self.spot)}
        write_whole(self.out / "candidates.json", json.dumps(found, indent=1, ensure_ascii=False))
        table = Table("from", "apex", "to", "strength", "class, given that it is one")
        for candidate in analysis.candidates:
            classes = sorted(candidate.probabilities.items(), key=lambda item: -item[1])
            likely = ", ".join(f"{name} {p:.2f}" for name, p in classes if p >= 0.01)
            table.add_row(
                *(f"{s:.2f} s" for s in candidate.seconds), f"{candidate.spotted.strength:.0f}", likely
            )
        shown = Console(file=sys.stdout, highlight=False)
        shown.print(table if analysis.candidates else "nothing stands out: no candidate")
        shown.print(note, markup=False)
        console.print(f"pictures and candidates.json: {self.out}", markup=False)
