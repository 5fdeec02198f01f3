"""The demo: train a tiny μ-BERT on movement and show what micro-attention sees before and after, beside plain means."""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from . import html_page, visualize
from .data import SyntheticClip, synthetic_clips
from .data.clips.in_memory import InMemoryClip
from .data.clips.nuisances import disturb
from .data.clips.stabilize import stabilized
from .data.clips.synthetic import CLASSES, FPS
from .evaluation.localisation import PLAIN, MovedPairs, OfFaces, difference, interval, micro_attention
from .models.config import MOVEMENT, MicronBERTConfig, preset
from .models.micron_bert import MicronBERT
from .plain_text import in_page, say
from .progress import working
from .resumable import claimed
from .training import CheckpointError, PretrainConfig, pretrain
from .training.log import read_log
from .whole_file import write_whole

TRAINED_SUBJECTS = range(64)
HELD_OUT_SUBJECTS = range(1000, 1012)
#: Levels of nuisances that the table shows, and what they are called there.
LEVELS = {"none": "nothing else", "light": "light", "head": "the head", "all": "light, head, noise, JPEG"}
#: Of how many frames of a synthetic clip one is learned from: the others are much the same.
_EVERY = 8
_BEFORE, _AFTER = "micro-attention untrained", "micro-attention trained"
_AS_IT_IS = "difference, as it is"


@dataclass
class DemoConfig:
    """What the demo trains and shows."""

    model: MicronBERTConfig = field(default_factory=lambda: preset("tiny", **MOVEMENT))
    training: PretrainConfig = field(
        default_factory=lambda: PretrainConfig(
            steps=200, batch_size=16, learning_rate=1e-3, warmup=0.1, evaluate_every=25, checkpoint_every=100
        )
    )


class HeldOut:
    """Onset–apex pairs of subjects that are not trained on, at every level of ``LEVELS``."""

    def __init__(self, size: int, patch_size: int):
        self.clips = synthetic_clips(HELD_OUT_SUBJECTS)
        of_faces = {str(s): [c for c in self.clips if c.subject == s] for s in HELD_OUT_SUBJECTS}
        self.pairs = {level: MovedPairs.make(of_faces, level, size, patch_size) for level in LEVELS}

    def maps(self, model: MicronBERT) -> dict[str, np.ndarray]:
        """A model's maps at each level, each apex laid over its onset."""
        was_training = model.training
        model.eval()
        found = {level: micro_attention(model, pairs.registered) for level, pairs in self.pairs.items()}
        model.train(was_training)
        return found

    def judged(self, maps: Mapping[str, np.ndarray]) -> dict[str, OfFaces]:
        """AUROC of the maps of each level."""
        return {level: pairs.judged(maps[level]) for level, pairs in self.pairs.items()}


#: AUROC of each method at each level.
Measured = dict[str, dict[str, OfFaces]]


def _measure(held_out: HeldOut, before: MicronBERT, after: MicronBERT) -> Measured:
    pairs = held_out.pairs
    as_they_are = {level: difference(p.as_they_are, p.patch_size) for level, p in pairs.items()}
    maps = {
        name: {level: PLAIN[name](p.registered, p.patch_size) for level, p in pairs.items()}
        for name in ("difference", "patch-normalised difference", "Farnebäck flow")
    } | {_BEFORE: held_out.maps(before), _AFTER: held_out.maps(after)}
    measured = {_AS_IT_IS: held_out.judged(as_they_are)}
    measured |= {f"{name}, head held": held_out.judged(of_level) for name, of_level in maps.items()}
    for name in ("difference", "Farnebäck flow", _AFTER):
        outlined = {level: p.outlined(maps[name][level]) for level, p in pairs.items()}
        measured[f"{name}, head held, in its outline"] = held_out.judged(outlined)
    return measured


def _mean(of_faces: OfFaces) -> float:
    return interval([of_faces])[0]


def _best_plain(measured: Measured) -> dict[str, str]:
    """The plain means of the highest AUROC at each level."""
    plain = [name for name in measured if not name.startswith((_BEFORE, _AFTER))]
    return {level: max(plain, key=lambda name: _mean(measured[name][level])) for level in LEVELS}


def in_words(measured: Measured) -> str:
    """Where the trained map is ahead of the best plain means, and where it is not, by paired intervals over faces.

    Both have what they want: the head held, and the outline of the face.
    """
    groups: dict[str, list[str]] = {"ahead": [], "level": [], "behind": []}
    for level, name in _best_plain(measured).items():
        ours, theirs = measured[f"{_AFTER}, head held, in its outline"][level], measured[name][level]
        _, low, high = interval([{face: ours[face] - theirs[face] for face in ours}])
        place = "ahead" if low > 0 else "behind" if high < 0 else "level"
        groups[place].append(f"{LEVELS[level]} ({_mean(ours):.3f}; {name} {_mean(theirs):.3f})")
    sentences = {
        "ahead": "Given the outline of the face, it is ahead of the best plain means where there changes beside it: ",
        "level": "Level with them (the 95 % interval of the difference holds 0): ",
        "behind": "Behind them, and they are the better choice: ",
    }
    return " ".join(f"{sentences[place]}{'; '.join(levels)}." for place, levels in groups.items() if levels)


def _grid(values: np.ndarray, held: MovedPairs) -> Tensor:
    """Maps (B, N) as (B, rows, columns)."""
    rows = held.registered.shape[-1] // held.patch_size
    return torch.from_numpy(np.asarray(values, np.float32)).unflatten(1, (rows, -1))


def _figure_of_maps(held_out: HeldOut, before: MicronBERT, after: MicronBERT, shown: Sequence[int]) -> Any:
    held = held_out.pairs["all"]
    as_it_is, laid = held.as_they_are[shown], held.registered[shown]
    maps = [
        _grid(difference(as_it_is, held.patch_size), held),
        _grid(difference(laid, held.patch_size), held),
        _grid(micro_attention(before, laid), held),
        _grid(micro_attention(after, laid), held),
        _grid(held.moved[shown], held),
    ]
    cells: list[list[Any]] = []
    for row, pair in enumerate(torch.from_numpy(as_it_is)):
        frames = pair[1], *torch.from_numpy(laid[row, 1])[None].expand(4, -1, -1, -1)
        overlays = (
            visualize.Overlay(f, m[row], visualize.above_zero(m[row]))
            for f, m in zip(frames, maps, strict=True)
        )
        cells.append([pair[0], pair[1], *overlays])
    clips, size = [held_out.clips[i] for i in shown], held.registered.shape[-1]
    return visualize.figure_of_cells(
        cells,
        titles=["onset", "apex", "plain difference", "the same, head held", "micro-attention,\nuntrained",
                "micro-attention,\ntrained", "true motion (px)"],
        labels=[f"{clip.label}\n{clip.amplitude * size / 64:.1f} px" for clip in clips],
        scale="from 0 to the highest of the map",
    )  # fmt: skip


def _figure_of_film(clip: SyntheticClip, held: MovedPairs, before: MicronBERT, after: MicronBERT) -> Any:
    """A clip under all nuisances: each frame against the first."""
    size, patch_size = held.registered.shape[-1], held.patch_size
    moments = {
        "first frame": 0, "onset": clip.onset, "rising": (clip.onset + clip.apex) // 2, "apex": clip.apex,
        "falling": (clip.apex + clip.offset) // 2, "offset": clip.offset,
    }  # fmt: skip
    numbers = list(moments.values())
    recorded = disturb(clip.read(numbers, size), "all", np.random.default_rng(0))
    laid = stabilized(recorded)[0]
    against_first, laid_against_first = (
        np.stack([np.stack([frames[0], frame]) for frame in frames]) for frames in (recorded, laid)
    )
    moved = np.stack([clip.moved(0, number, size, patch_size) for number in numbers])
    rows = {
        "difference\nfrom the first": (recorded, difference(against_first, patch_size)),
        "the same,\nhead held": (laid, difference(laid_against_first, patch_size)),
        "micro-attention,\nuntrained": (laid, micro_attention(before, laid_against_first)),
        "micro-attention,\ntrained": (laid, micro_attention(after, laid_against_first)),
        "true motion": (laid, moved),
    }
    cells: list[list[Any]] = [list(torch.from_numpy(recorded)), list(torch.from_numpy(laid))]
    for frames, values in rows.values():
        maps = _grid(values, held)
        limits = visualize.above_zero(maps)
        cells.append(
            [visualize.Overlay(f, m, limits) for f, m in zip(torch.from_numpy(frames), maps, strict=True)]
        )
    titles = [f"{name}, {number / clip.fps:.2f} s" for name, number in moments.items()]
    return visualize.figure_of_cells(
        cells,
        titles=titles,
        labels=["as recorded", "head held,\nover the first", *rows],
        scale="from 0 to the highest of the row",
    )


def _settings(config: DemoConfig) -> str:
    default, model = preset("tiny"), config.model
    changed = [
        f"{name}={value!r}" for name, value in asdict(model).items() if value != getattr(default, name)
    ]
    options = ", ".join(changed) or "none: the paper's settings"
    return html_page.table(
        [
            ("options beyond the paper's form", options),
            ("model", f"{model.image_size}×{model.image_size}, patches of {model.patch_size}, width {model.width}, "
             f"{model.depth} blocks of the encoder, roles {model.roles!r}"),
            ("training", f"{config.training.steps} steps of {config.training.batch_size} pairs, AdamW, peak "
             f"learning rate {config.training.learning_rate:g}, seed {config.training.seed}"),
            ("data", f"{len(TRAINED_SUBJECTS)} synthetic identities × {len(CLASSES)} classes at {FPS:g} frames a "
             f"second, one frame of {_EVERY}; {len(HELD_OUT_SUBJECTS)} other identities held out. All come from two "
             "photographs"),
            ("versions", f"Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} "
             "threads"),
        ]
    )  # fmt: skip


def _table(measured: Measured) -> str:
    rows: list[list[Any]] = [["map", *LEVELS.values()]]
    for name, of_level in measured.items():
        found = [interval([of_level[level]]) for level in LEVELS]
        rows.append([name, *((f"{mean:.3f}", f"{low:.3f} – {high:.3f}") for mean, low, high in found)])
    return html_page.grid(rows, ["first" if name.startswith(_AFTER) else "" for name in measured])


def write_report(
    before: MicronBERT, after: MicronBERT, held_out: HeldOut, config: DemoConfig, out: Path, started: float
) -> dict[str, Any]:
    """Write ``report.html``, its PNGs, a pair of faces and ``results.json`` to ``out``; return the results.

    Args:
        before: the network as training began with it.
        after: the same trained.
        held_out: what both are judged by.
        config: of the demo.
        out: the folder of the run, with its log.
        started: ``time.perf_counter()`` when the demo began.
    """
    log = read_log(out)
    steps = [entry for entry in log if "loss" in entry]
    measured = _measure(held_out, before, after)
    shown = list(range(0, len(held_out.clips), len(CLASSES) + 1))[:4]
    best = {level: _mean(measured[name][level]) for level, name in _best_plain(measured).items()}
    figures = {
        "film": _figure_of_film(held_out.clips[shown[0]], held_out.pairs["all"], before, after),
        "maps": _figure_of_maps(held_out, before, after, shown),
        "auroc": visualize.figure_of_auroc(log, best),
        "losses": visualize.figure_of_losses(log),
    }
    images = {name: html_page.png(figure) for name, figure in figures.items()}
    for name, data in images.items():
        write_whole(out / f"{name}.png", data)
    clip = held_out.clips[shown[0]]  # for `micron heatmap`, where there is no face at hand
    for name, frame in zip(("onset", "apex"), clip.read([clip.onset, clip.apex], 256), strict=True):
        write_whole(out / f"{name}.png", cv2.imencode(".png", frame[::-1].transpose(1, 2, 0))[1].tobytes())
    results = {
        "auroc": {
            name: {
                level: dict(zip(("mean", "low", "high"), interval([x]), strict=True))
                for level, x in of_level.items()
            }
            for name, of_level in measured.items()
        },
        "in_words": in_words(measured),
        "loss_first": steps[0]["loss"],
        "loss_last": steps[-1]["loss"],
        "seconds": time.perf_counter() - started,
    }
    write_whole(out / "results.json", json.dumps(results, indent=2) + "\n")
    write_whole(out / "report.html", _render(images, measured, results, held_out, config))
    return results


def _render(
    images: Mapping[str, bytes], measured: Measured, results: Mapping[str, Any], held_out: HeldOut, config: DemoConfig
) -> str:  # fmt: skip
    def image(name: str, description: str) -> str:
        return html_page.image(images[name], description)

    first, last = (_mean(measured[f"{name}, head held"]["all"]) for name in (_BEFORE, _AFTER))
    verdict = (
        f'<p class="big">Where light, head, noise and compression change from frame to frame, the map of '
        f"micro-attention finds the patches of a face that moved with an AUROC of <b>{first:.3f}</b> before training "
        f"and <b>{last:.3f}</b> after {config.training.steps} steps, on faces that it was not trained on; the plain "
        f"difference has {_mean(measured[_AS_IT_IS]['all']):.3f}. All of it took {results['seconds']:.0f} s.</p>"
        f"<p>{in_page(results['in_words'])}</p>"
    )
    left = max(pairs.left for pairs in held_out.pairs.values())
    return html_page.page(
        "μ-BERT: what micro-attention sees",
        [
            ("", verdict),
            (
                "A clip, frame by frame",
                image("film", "a clip under all nuisances, and what is seen of each frame against the first")
                + '<p class="note">A micro-expression of known motion, under another light, another pose of the head, '
                "noise and JPEG in every frame. The plain difference sees all of these. Laying each frame over the "
                "first takes the head out, micro-attention the light; trained, it shows what moved, and little "
                "before the onset. Colours are common to a row.</p>",
            ),
            (
                "What moved between onset and apex",
                image("maps", "onset, apex, differences, micro-attention before and after training, true motion")
                + '<p class="note">Pairs under all nuisances; rows are labelled with the class and the displacement '
                "at the apex. The map of micro-attention is log p(apex, apex) − log p(onset, apex): how much less a "
                "patch looks like itself than if nothing had changed.</p>",
            ),
            (
                "Beside plain means",
                _table(measured)
                + '<p class="note">AUROC of each map against the quarter of the patches that truly moved most, by what '
                f"else changes from frame to frame: the mean over {len(HELD_OUT_SUBJECTS)} held-out identities, below "
                f"it the 95 % interval of a bootstrap over them. {len(held_out.clips)} pairs, each apex laid over its "
                f"onset, but in the first row; {left} at most of a level could not be. The outline is an ellipse in "
                "the box of the face: nothing outside it is taken to move. More nuisances, more plain "
                "means, and faces of photographs that were not trained on: bench/experiments/localisation.md.</p>",
            ),
            (
                "Training",
                image("auroc", "AUROC of the map over training, and of the best plain means")
                + image("losses", "loss over training")
                + '<p class="note">What it learns from are pairs made of one frame each, parts of which are displaced '
                "by known lengths, under a light, noise and compression of their own: the loss asks the map to rank "
                "the patches that moved most above the others. No labels of expressions are used.</p>",
            ),
            ("Settings", _settings(config)),
        ],
    )  # fmt: skip


def run_demo(config: DemoConfig, out: Path, console: Console) -> dict[str, Any]:
    """Train, measure and report into ``out``, replacing an earlier demo there.

    Raises:
        CheckpointError: ``out`` holds a run that is not a demo.
        Claimed: another process writes to ``out``.
    """
    with claimed(out):
        return _run_demo(config, out, console)


def _run_demo(config: DemoConfig, out: Path, console: Console) -> dict[str, Any]:
    started = time.perf_counter()
    settings = out / "demo.json"
    if (out / "checkpoint.pt").exists():
        if not settings.exists():
            raise CheckpointError(f"{out} holds a run that is not a demo: give another folder with --out")
        for name in ("checkpoint.pt", "log.jsonl", "results.json", "report.html"):
            (out / name).unlink(missing_ok=True)
        shutil.rmtree(out / "model", ignore_errors=True)
    write_whole(settings, json.dumps(asdict(config), indent=2) + "\n")
    size, patch_size = config.model.image_size, config.model.patch_size
    with working("making synthetic clips of known movement", console):
        held_out = HeldOut(size, patch_size)
        clips = [InMemoryClip(clip, size, _EVERY) for clip in synthetic_clips(TRAINED_SUBJECTS)]
    with torch.random.fork_rng(devices=[]):  # the weights that training begins with
        torch.manual_seed(config.training.seed)
        before = MicronBERT(config.model).eval()

    def evaluate(model: MicronBERT) -> dict[str, float]:
        return {
            f"auroc_{level}": _mean(found) for level, found in held_out.judged(held_out.maps(model)).items()
        }

    after = pretrain(config.training, config.model, clips, out, evaluate=evaluate, console=console).cpu()
    with working("measuring, and writing the report", console):
        results = write_report(before, after, held_out, config, out, started)
    ours = [results["auroc"][f"{name}, head held"]["all"]["mean"] for name in (_BEFORE, _AFTER)]
    console.print(f"AUROC of the map under all nuisances: {ours[0]:.3f} untrained, {ours[1]:.3f} trained")
    say(console, results["in_words"])
    say(console, f"report: {out / 'report.html'}, after {results['seconds']:.0f} s")
    return results
