"""The command ``micron``."""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar, Union, cast

import torch
import tyro
from rich.console import Console

from micron_kernels import info as kernels_info

from .commands.answer import Status, answering
from .commands.data import DataCommand
from .commands.predict import Predict
from .commands.recognition import Evaluate, Finetune, options_of_every_recognizer, parse_with_recognizer
from .commands.score import Score
from .commands.serve import Serve
from .data import Clip, find_clips, synthetic_clips
from .data.clips.faces import inside_outline
from .data.clips.find import describe_clips
from .data.clips.pairs import longest_delta
from .data.databases.corpus import Corpus
from .data.shards.plan import ShardConfig
from .data.shards.read import are_shards, find_shards
from .data.shards.write import ShardingStopped, write_shards
from .demo import TRAINED_SUBJECTS, DemoConfig, run_demo
from .face_pair import compare
from .faults import in_words
from .loading import load_model
from .models import products
from .models.config import MicronBERTConfig, preset
from .models.micron_bert import MicronBERT
from .plain_text import say, visible
from .progress import lines_while, working
from .recognizers.base import Recipe
from .recognizers.micron_bert import MicronBERTRecipe
from .saved_model import find_folder
from .training import PretrainConfig, Stopped, pretrain
from .training.problems import report_problems
from .visualize import change_maps, figure_of_pairs, save_figure


@dataclass
class Demo:
    """Pre-train a tiny μ-BERT on synthetic clips and write a report with pictures."""

    out: Path = Path("out/demo")
    """Folder of the log, the checkpoint, the model and the report; an earlier demo there is replaced."""
    config: tyro.conf.OmitArgPrefixes[DemoConfig] = field(default_factory=DemoConfig)

    def run(self, console: Console) -> None:
        run_demo(self.config, self.out, console)


@dataclass
class Pretrain:
    """Pre-train a μ-BERT on your frames: videos, folders of images, or shards."""

    data: tuple[str, ...] = ()
    """Videos (mp4, avi, mov), folders of images (a folder with images is a clip), folders of either; or shards as
    `micron shard` writes them: folders of them, patterns, URLs as webdataset takes them
    ("https://host/shard-{000000..000123}.tar", "pipe:command"). Without any, the synthetic clips."""
    allow_commands: bool = False
    """Run the commands that --data names with "pipe:", in a shell."""
    out: Path = Path("out/pretrain")
    """Folder of the log, the checkpoint and the model."""
    resume: bool = False
    """Go on from the checkpoint in the folder."""
    fps: float | None = None
    """Frame rate of folders of images (30 if not given), and of videos in place of what they state."""
    preset: Literal["tiny", "base"] = "base"
    """Settings to start from; any of --model.* changes them."""
    training: PretrainConfig = field(default_factory=PretrainConfig)
    model: MicronBERTConfig = field(default_factory=MicronBERTConfig)
    start: Annotated[str | None, tyro.conf.arg(name="model.from")] = None
    """Begin with the weights, and the settings, of a model: a folder, hf://owner/name, or a checkpoint of the
    authors'."""

    def _from(self) -> tuple[MicronBERT, Corpus] | None:
        """The model to begin with, whose settings are taken, and what it has seen."""
        if self.start is None:
            return None
        model, given = load_model(self.start), preset(self.preset)
        found = asdict(model.config)
        changed = {n: v for n, v in asdict(self.model).items() if v != getattr(given, n)}
        if different := [f"{n} is {found[n]!r}, not {v!r}" for n, v in changed.items() if found[n] != v]:
            raise ValueError(f"{self.start}: {'; '.join(different)}: its settings are those of its weights")
        self.model = model.config
        return model, Corpus.read(find_folder(self.start)) if not Path(self.start).is_file() else Corpus(None)

    def _find(self, console: Console) -> Sequence[Clip] | Sequence[str]:
        if not self.data:
            clips = synthetic_clips(TRAINED_SUBJECTS)
            console.print(f"no --data: training on {len(clips)} synthetic clips")
            return clips
        if are_shards(self.data):
            with working("looking for shards", console):
                shards = find_shards(self.data, allow_commands=self.allow_commands)
            console.print(f"{len(shards)} shards")
            return shards
        with working("looking for clips", console):
            found, problems = find_clips(self.data, fps=self.fps)
        report_problems(problems, console)
        console.print(f"{len(found)} clips, {sum(len(clip) for clip in found)} frames")
        for line in describe_clips(found):
            say(console, line)
        short = [c for c in found if len(c) - 1 < longest_delta(self.training.delta, c.fps)]
        if short:
            console.print(f"{len(short)} clips are shorter than the widest δ: their pairs are nearer")
        return found

    def run(self, console: Console) -> None:
        # Of the processes that torchrun starts, each looks for the data and one says what it found.
        first = console if int(os.environ.get("RANK", 0)) == 0 else Console(quiet=True)
        with working("loading the model", first):
            start = self._from()
        data = self._find(first)
        pretrain(self.training, self.model, data, self.out, resume=self.resume, start=start, console=console)
        say(first, f"model: {self.out / 'model'}")


@dataclass
class Shard:
    """Write videos and folders of images as tar shards, for pre-training on millions of frames."""

    data: tuple[Path, ...]
    """Videos (mp4, avi, mov), folders of images (a folder with images is a clip), folders of either."""
    out: Path = Path("out/shards")
    """Folder of the shards. The same command again writes what is missing."""
    workers: int | None = None
    """Processes that write; as many as processors if not given."""
    config: tyro.conf.OmitArgPrefixes[ShardConfig] = field(default_factory=ShardConfig)

    def run(self, console: Console) -> None:
        written = write_shards(self.data, self.out, self.config, workers=self.workers, console=console)
        report_problems(written.problems, console)
        say(console, f"{written.shards} shards, {written.runs} runs, {written.frames} frames: {self.out}")


@dataclass
class Heatmap:
    """Draw what changed between two frames of one face: the face is found, its apex laid over its onset, and what lies
    outside its outline left out of the maps."""

    onset: tyro.conf.Positional[Path]
    """Image of the face before."""
    apex: tyro.conf.Positional[Path]
    """Image of the face after."""
    model: str = "out/demo/model"
    """Folder of a model (pretrain and demo write one), or one of the Hugging Face hub: hf://owner/name."""
    out: Path = Path("heatmap.png")
    """The picture to write."""
    gain: float = 4.0
    """Factor of the difference."""
    margin: float = 0.1
    """Added on each side of the box of the face, as a share of its side."""
    stabilize: bool = True
    """Lay the apex over the onset, so that the head keeps still."""

    def __post_init__(self) -> None:
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin={self.margin}; it is a share of the face's side, in [0, 1)")

    def run(self, console: Console) -> None:
        with working("loading the model", console):
            model = load_model(self.model)
        size = model.config.image_size
        faces, notes = compare(self.onset, self.apex, size, self.margin, stabilize=self.stabilize)
        for note in notes:
            say(console, note)
        onset, apex = (torch.from_numpy(face)[None] for face in (faces.onset, faces.registered))
        inside = faces.place and inside_outline(faces.place, size, model.config.patch_size)
        figure = figure_of_pairs(onset, apex, change_maps(model, onset, apex), gain=self.gain, inside=inside)
        save_figure(figure, self.out)
        say(console, f"heat maps: {self.out}")


@dataclass
class Info:
    """Print versions, devices, which implementation of each operator is active, and who multiplies on the CPU."""

    json: bool = False
    """Print one JSON document instead."""

    def run(self, console: Console) -> None:
        names = ("numpy", "opencv-python-headless", "scikit-image", "safetensors", "huggingface_hub")
        packages = {name: importlib.metadata.version(name) for name in names}
        with answering(self.json) as answer:
            with working("measuring who multiplies fastest", console):
                of_products = products.facts()
            answer.document = {**kernels_info.facts(), "packages": packages, "products": of_products}
            if not self.json:
                versions = [f"{name:<24}{version}" for name, version in packages.items()]
                lines = [kernels_info.describe(), "", *versions, "", products.describe()]
                sys.stdout.write("\n".join(lines) + "\n")


class Command(Protocol):
    """What every command is."""

    def run(self, console: Console) -> int | None:
        """Do it. The exit status is what this returns; None is 0."""
        ...


_Recipe = TypeVar("_Recipe", bound=Recipe)
_Command = Union[  # noqa: UP007  (mypy and tyro read a Union of Annotated)
    Annotated[Demo, tyro.conf.subcommand("demo")],
    Annotated[Pretrain, tyro.conf.subcommand("pretrain")],
    Annotated[Shard, tyro.conf.subcommand("shard")],
    Annotated[Heatmap, tyro.conf.subcommand("heatmap")],
    Annotated[
        DataCommand, tyro.conf.subcommand("data", description="Check a database, or write a look-alike.")
    ],
    Annotated[Evaluate[_Recipe], tyro.conf.subcommand("evaluate")],
    Annotated[Finetune[_Recipe], tyro.conf.subcommand("finetune")],
    Annotated[Predict, tyro.conf.subcommand("predict")],
    Annotated[Score, tyro.conf.subcommand("score")],
    Annotated[Serve, tyro.conf.subcommand("serve")],
    Annotated[Info, tyro.conf.subcommand("info")],
]

#: What a user can mend, or the machine; everything else is our fault and keeps its traceback.
_USER_ERRORS = (ValueError, OSError, MemoryError, RuntimeError)


_COMPLETION, _SHELLS = ("--tyro-print-completion", "--tyro-write-completion"), ("bash", "zsh", "tcsh", "fish")


def _parse(arguments: Sequence[str]) -> Command:
    recipe: Any = MicronBERTRecipe
    if arguments and arguments[0].replace("_", "-") in _COMPLETION:
        if arguments[1:2] not in [[s] for s in _SHELLS]:
            argparse.ArgumentParser(prog="micron", add_help=False).error(
                f"{arguments[0]} {'|'.join(_SHELLS)}"
            )
        recipe = options_of_every_recognizer()
    for name, command in (("evaluate", Evaluate), ("finetune", Finetune)):
        if list(arguments[:1]) == [name]:
            return parse_with_recognizer(command, f"micron {name}", arguments[1:])
    # The preset decides the defaults that --help shows and --model.* changes, so it is read first.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", choices=("tiny", "base"), default="base")
    if list(arguments[:1]) == ["pretrain"]:
        chosen = first.parse_known_args(arguments[1:])[0].preset
        default = Pretrain(preset=chosen, model=preset(chosen))
        return tyro.cli(Pretrain, prog="micron pretrain", args=arguments[1:], default=default)
    command = cast(Any, _Command)[recipe]
    return cast(
        Command,
        tyro.cli(command, prog="micron", args=arguments, description="Micro-expressions: μ-BERT."),
    )


def _say(console: Console, message: str) -> None:
    say(console, f"micron: {message}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # of a console that has not every sign: others are escaped
            stream.reconfigure(errors="backslashreplace")
    console = Console(stderr=True)
    try:
        given = sys.argv[1:] if arguments is None else arguments
        command = _parse(given)
        with lines_while(f"micron {given[0]}", console):
            return command.run(console) or Status.DONE
    except (Stopped, ShardingStopped) as stopped:
        _say(console, str(stopped))
        return 128 + stopped.signal_number
    except KeyboardInterrupt:
        _say(console, "interrupted; what was finished is kept")
        return 128 + signal.SIGINT
    except BrokenPipeError:  # whoever read what is printed has gone
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (or the interpreter complains when it flushes)
        return 128 + 13  # SIGPIPE, which not every system has
    except _USER_ERRORS as error:
        _say(console, f"error: {visible(in_words(error), 10**5)}")  # in one line, whatever it quotes
        return Status.FAILED
    except Exception:
        console.file.write(visible(traceback.format_exc(), 10**6, keep="\n"))
        _say(console, "this is a fault of micron; please report it, with the lines above")
        return Status.DEFECT


if __name__ == "__main__":
    sys.exit(main())
