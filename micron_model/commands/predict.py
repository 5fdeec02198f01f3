"""``micron predict``."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from ..data.databases.prepared import FaceConfig
from ..evaluation.person import adapt_to_person
from ..loading import load_recognizer
from ..plain_text import cell_of_terminal, say
from ..prediction import Candidate, note_of, predict
from ..prediction_figures import figure_of_candidates, figure_of_curve
from ..progress import ProgressBar, working
from ..recognizers.base import Recognizer, recipe_class
from ..resumable import claimed
from ..spotting import SpotConfig
from ..training.problems import report_problems
from ..visualize import save_figure
from ..whole_file import write_whole
from .answer import Answer, answering, to_json


@dataclass
class Predict:
    """Find movements of a face in a video, and say which class each that is short enough would be."""

    video: tyro.conf.Positional[Path]
    """A video, or a folder of images."""
    model: str = "out/recognizer"
    """Folder of a recognizer (`micron finetune` writes one), or one of the Hugging Face hub: hf://owner/name."""
    out: Path = Path("out/predict")
    """Folder of the pictures and of candidates.json."""
    recognizer: str | None = None
    """Of a recognizer outside this package: what it is, package.module:Recipe."""
    fps: float | None = None
    """Frame rate of a folder of images (30 if not given), or of a video in place of what it states."""
    adapt: Path | None = None
    """A csv of labelled clips of the person in the video, with the columns clip (a folder of images or a video) and
    emotion: they adapt the recognizer first."""
    adapt_steps: int = 5
    """Steps of the gradient on those clips."""
    json: bool = False
    """Print one JSON document, that of candidates.json, instead of a table."""
    spot: tyro.conf.OmitArgPrefixes[SpotConfig] = field(default_factory=SpotConfig)

    def run(self, console: Console) -> None:
        with answering(self.json) as answer:
            recipe = None if self.recognizer is None else recipe_class(self.recognizer)
            with working("loading the recognizer", console):
                model = load_recognizer(self.model, recipe)
            if self.adapt is not None:
                face = FaceConfig(margin=self.spot.margin, stabilize=self.spot.stabilize)
                model = adapt_to_person(
                    model, self.adapt, steps=self.adapt_steps, recipe=recipe, face=face, console=console
                )
            with claimed(self.out):
                self._run(model, console, answer)

    def _run(self, model: Recognizer, console: Console, answer: Answer) -> None:
        with ProgressBar(console=console) as progress:
            followed = progress.add_task("frames", total=None)
            analysis = predict(
                self.video, model, self.spot, fps=self.fps,
                on_frame=lambda done, total: progress.update(followed, completed=done, total=total),
            )  # fmt: skip
        for name in ("candidates.json", "curve.png", "candidates.png"):  # of another video, perhaps
            (self.out / name).unlink(missing_ok=True)
        if analysis.left:
            first, reason = next(iter(analysis.left.items()))
            say(
                console,
                f"{len(analysis.left)} of {len(analysis.curve)} frames could not be laid over the others, and nothing "
                f"in them is a movement; the first, {first}: {reason}",
            )
        save_figure(figure_of_curve(analysis), self.out / "curve.png")
        seen = figure_of_candidates(analysis, model, self.spot.margin)
        if seen is not None:
            save_figure(seen, self.out / "candidates.png")
        note = note_of(model)
        pictures = ["curve.png", *(["candidates.png"] if seen is not None else [])]
        answer.document = {
            "note": note, **analysis.as_json(), "spotting": asdict(self.spot), "pictures": pictures, "out": self.out,
        }  # fmt: skip
        write_whole(self.out / "candidates.json", to_json(answer.document) + "\n")
        table = Table(
            "onset", "apex", "offset", "frames", "length", "kind", "class, given that it is one; or why"
        )
        movements = sorted(
            [*analysis.candidates, *analysis.longer, *analysis.ignored], key=lambda m: m.frames
        )
        for movement in movements:
            what, kind = movement.spotted.reason, movement.spotted.kind
            if isinstance(movement, Candidate):
                classes = sorted(movement.probabilities.items(), key=lambda item: -item[1])
                what = ", ".join(f"{name} {p:.2f}" for name, p in classes if p >= 0.01)
            table.add_row(
                *(f"{s:.2f} s" for s in movement.seconds),
                "–".join(map(str, movement.frames)),
                f"{movement.duration:.2f} s",
                kind if kind in ("micro", "longer") else f"ignored: {kind}",
                cell_of_terminal(what),
            )
        shown = Console(file=sys.stdout, highlight=False)
        report_problems(analysis.problems, console)
        for line in analysis.notes:
            say(console, line)
        say(console, f"pictures and candidates.json: {self.out}")
        if self.json:
            return
        if movements:
            shown.print(table)
        if not (analysis.candidates or analysis.longer):
            say(
                shown,
                f"no movement of the face stands out. It is fastest at {analysis.highest[0]:.2f} s: "
                f"{analysis.curve.max():.2f} of the {analysis.threshold:.2f} that the curve must reach (--strength)",
            )
        say(shown, note)
