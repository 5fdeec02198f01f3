"""Which movements of a face are found in long videos, and what is taken for one: against the plain difference curve.

    python bench/experiments/spotting.py run       # videos are made, followed and judged: spotting.json, spotting.md
    python bench/experiments/spotting.py report    # spotting.md alone

Videos of ten seconds, 30 frames a second, of synthetic faces: micro-expressions (at most 0.5 s) and longer movements,
with and without blinks, looks aside, turning heads and changes of light, beside the movements or over them, all with
noise and compression; some hold no movement. A movement is found where a marked interval overlaps its own by half of
what both cover (IoU ≥ 0.5), one each.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cpuinfo
import cv2
import numpy as np
import scipy.ndimage
import torch

from micron_model.data import SyntheticClip
from micron_model.data.clips.faces import Box, cut, find_face
from micron_model.data.clips.motion import pair_motion
from micron_model.data.clips.nuisances import compression, sensor_noise, to_uint8
from micron_model.data.clips.stabilize import Stabilizer
from micron_model.data.clips.synthetic import CLASSES, PLACES, Manner, _Moving, _neutral, pixels
from micron_model.following import Follower
from micron_model.spotting import MICRO, SpotConfig, spot

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
FPS, FRAMES, SIZE = 30.0, 300, 160
#: Videos of each kind and seed: how many, with movements, and distractors beside them ("apart") or over them.
VIDEOS: dict[str, tuple[int, bool, str | None]] = {
    "plain": (4, True, None), "distractors": (4, True, "apart"), "distractors at the same time": (4, True, "together"),
    "still": (1, False, None), "still, distractors": (2, False, "apart"),
}  # fmt: skip


class Event(NamedTuple):
    """What happens: frames, and of what kind (micro, longer; blink, gaze, head, light)."""

    onset: int
    apex: int
    held: int
    """Frames at the apex."""
    offset: int
    kind: str

    def course(self, frame: int) -> float:
        """Share of its size at a frame: raised cosines up and down."""
        if frame <= self.apex:
            phase = (frame - self.onset) / (self.apex - self.onset)
        else:
            phase = (self.offset - frame) / (self.offset - self.apex - self.held)
        return float((1 - np.cos(np.pi * np.clip(phase, 0, 1))) / 2)


@dataclass(frozen=True)
class Eyes(SyntheticClip):
    """Both eyes alone go a way (x, y) at the apex, in pixels of a 64×64 frame."""

    way: tuple[float, float] = (0.0, 3.0)

    def _expression(self, frame: int) -> Iterator[_Moving]:
        for side in ("left", "right"):
            length = float(np.hypot(*self.way))
            yield _Moving(np.array(PLACES[f"lid {side}"]), np.array(self.way) / length, length, 0.06)


#: Frames of rise, hold and fall, from and to.
_COURSES = {
    "micro": ((3, 6), (0, 1), (4, 8)), "longer": ((8, 16), (4, 25), (8, 18)), "blink": ((2, 4), (0, 1), (3, 6)),
    "gaze": ((2, 3), (8, 40), (2, 3)), "head": ((6, 18), (0, 20), (6, 18)), "light": ((2, 8), (0, 30), (2, 8)),
}  # fmt: skip


DISTRACTORS = ("blink", "gaze", "head", "light")


@dataclass(frozen=True)
class Video:
    frames: np.ndarray
    """(T, 3, 160, 160), uint8."""
    events: list[Event]


def _schedule(kinds: list[str], rng: np.random.Generator) -> list[Event]:
    """One after another, in an order that is drawn, at rest for at least a third of a second between them."""
    drawn = []
    for kind in rng.permutation(kinds):
        rise, held, fall = (int(rng.integers(low, high + 1)) for low, high in _COURSES[kind])
        drawn.append((str(kind), rise, held, fall))
    free = FRAMES - 20 - sum(rise + held + fall + 10 for _, rise, held, fall in drawn)
    gaps = np.sort(rng.integers(0, free + 1, len(drawn)))
    events, used = [], 15
    for gap, (kind, rise, held, fall) in zip(gaps, drawn, strict=True):
        onset = int(used + gap)
        events.append(Event(onset, onset + rise, held, onset + rise + held + fall, kind))
        used += rise + held + fall + 10
    return events


def make(moving: bool, distracted: str | None, *identity: int) -> Video:
    """A video; everything about it follows from the arguments."""
    seed, subject = identity[0], identity[-1]
    rng = np.random.default_rng((*identity, int(moving), (None, "apart", "together").index(distracted)))
    kinds = ["micro"] * int(rng.integers(1, 4)) + ["longer"] * int(rng.integers(0, 2)) if moving else []
    if distracted == "apart":
        kinds += [k for k in DISTRACTORS if rng.random() < 0.7]
    events = _schedule(kinds, rng)
    if distracted == "together":
        for event in events[:]:
            kind = str(rng.choice(DISTRACTORS))
            rise, held, fall = (int(rng.integers(low, high + 1)) for low, high in _COURSES[kind])
            onset = int(rng.integers(max(0, event.onset - (rise + held + fall) // 2), event.apex + 1))
            events.append(Event(onset, onset + rise, held, onset + rise + held + fall, kind))
    fields = [_field(event, seed, subject, number, rng) for number, event in enumerate(events)]
    x, y = pixels(SIZE)
    neutral = _neutral(SyntheticClip(subject, "happiness", seed), SIZE).astype(np.float32)
    sway = np.zeros((FRAMES, 2))
    if distracted:
        sway = scipy.ndimage.gaussian_filter1d(rng.normal(0, 6, (FRAMES, 2)), 12, axis=0)
    gains = [(rng.choice([-1, 1]) * rng.uniform(0.1, 0.3), rng.uniform(-0.1, 0.1)) for _ in events]
    frames = []
    for i in range(FRAMES):
        field, gain = np.zeros((SIZE, SIZE, 2)) + sway[i], np.ones((SIZE, SIZE))
        for event, size, (step, slope) in zip(events, fields, gains, strict=True):
            share = event.course(i)
            if share and event.kind == "light":
                gain += share * (step + slope * (2 * x / SIZE - 1))
            elif share:
                field += share * size
        from_x, from_y = (x - field[..., 0]).astype(np.float32), (y - field[..., 1]).astype(np.float32)
        seen = cv2.remap(neutral, from_x, from_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        seen = (seen * gain[..., None]).transpose(2, 0, 1)[None]
        noisy = sensor_noise(seen, rng, deviation=4.0 if distracted else 2.5)
        frames.append(to_uint8(compression(noisy, rng, quality=80 if distracted else 92))[0])
    return Video(np.stack(frames), events)


def _field(event: Event, seed: int, subject: int, number: int, rng: np.random.Generator) -> np.ndarray:
    """Displacement (160, 160, 2) at an event's apex, in pixels."""
    amplitude = {"micro": (0.7, 2.0), "longer": (1.0, 3.0)}.get(event.kind, (0.0, 0.0))
    label = str(rng.choice(list(CLASSES)))
    clip = SyntheticClip(subject, label, seed, repeat=number + 1, manner=Manner(amplitude))
    if event.kind == "blink":
        clip = Eyes(subject, label, seed, way=(0.0, rng.uniform(2, 4)))
    elif event.kind == "gaze":
        clip = Eyes(
            subject, label, seed, way=(rng.choice([-1, 1]) * rng.uniform(0.7, 1.5), rng.uniform(-0.3, 0.3))
        )
    elif (
        event.kind == "head"
    ):  # it shifts, tilts, and turns about the neck: the middle of a face is nearer than its sides
        x, y = (axis / SIZE - 0.5 for axis in pixels(SIZE))
        shift, turn, tilt = rng.normal(0, 4, 2), rng.normal(0, 3, 2), rng.normal(0, 0.04) * SIZE
        near = (1 - 4 * x**2 - 4 * y**2).clip(0)[..., None]
        return shift + turn * near + tilt * np.stack([-y, x], -1)
    elif event.kind == "light":
        return np.zeros((SIZE, SIZE, 2))
    return clip.displacement(clip.apex, SIZE)


def difference_intervals(faces: np.ndarray, strength: float = 8.0) -> list[tuple[int, int]]:
    """The baseline, of faces (T, 3, 96, 96): a half second about each peak of the difference curve that stands out.

    The motion of each frame against the mean of those a quarter second before and after, less the mean of that motion
    at the same two frames (after Moilanen, Zhao and Pietikäinen, ICPR 2014, with grey levels in place of LBP).
    """
    frames, reach, places = torch.from_numpy(faces), round(MICRO / 2 * FPS), torch.arange(len(faces))
    before, after = (places - reach).clamp(min=0), (places + reach).clamp(max=len(faces) - 1)
    motion = torch.cat([
        pair_motion((frames[b].float() + frames[a].float()) / 510, frames[p].float() / 255, 8)
        for b, a, p in zip(before.split(64), after.split(64), places.split(64), strict=True)
    ])  # fmt: skip
    curve = motion - (motion[before] + motion[after]) / 2
    centre = curve.median()
    stands = (curve - centre) / (1.4826 * (curve - centre).abs().median()).clamp(min=1e-6)
    highest = torch.nn.functional.max_pool1d(stands[None], 4 * reach + 1, 1, 2 * reach)[0]
    peaks = ((stands == highest) & (stands >= strength)).nonzero()[:, 0].tolist()
    return [(t - reach, t + reach) for t in peaks if reach <= t < len(faces) - reach]


def matches(found: list[tuple[int, int]], true: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Pairs of positions of found and true intervals with IoU ≥ 0.5, each once, the best first."""
    overlaps = []
    for i, (a, b) in enumerate(found):
        for j, (c, d) in enumerate(true):
            shared = max(0, min(b, d) - max(a, c) + 1)
            overlaps.append((shared / (max(b, d) - min(a, c) + 1), i, j))
    pairs: list[tuple[int, int]] = []
    for overlap, i, j in sorted(overlaps, reverse=True):
        if overlap >= 0.5 and all(i != k and j != m for k, m in pairs):
            pairs.append((i, j))
    return pairs


def judge(found: list[tuple[int, int, str]], events: list[Event]) -> Counter[str]:
    """What is counted of a video: found, true, matched; of micro-expressions; what false ones lie on."""
    counts: Counter[str] = Counter()
    for name, kinds in (("all", ("micro", "longer")), ("micro", ("micro",))):
        marked = [(a, b) for a, b, kind in found if kind in kinds]
        true = [(e.onset, e.offset) for e in events if e.kind in kinds]
        pairs = matches(marked, true)
        counts += Counter(
            {f"{name} found": len(marked), f"{name} true": len(true), f"{name} both": len(pairs)}
        )
        if name == "all":
            matched = {i for i, _ in pairs}
            for i, (a, b) in enumerate(marked):
                if i not in matched:
                    on = [e.kind for e in events if e.onset <= b and a <= e.offset]
                    counts[f"false on {on[0] if on else 'nothing'}"] += 1
            missed = {j for _, j in pairs}
            moves = [e for e in events if e.kind in kinds]
            counts.update(f"missed {e.kind}" for j, e in enumerate(moves) if j not in missed)
    counts.update(f"there {e.kind}" for e in events)
    return counts


def spotted(video: Video) -> dict[str, list[tuple[int, int, str]]]:
    """Intervals and kinds that each method marks."""
    images = [np.ascontiguousarray(f.transpose(1, 2, 0)) for f in video.frames]
    box = find_face(images[0]) or Box(SIZE * 0.14, SIZE * 0.14, SIZE * 0.72)
    follower, stabilizer, faces = Follower(images[0], box), Stabilizer(images[0], box), []
    for image in images:
        follower(image)
        faces.append(cut(stabilizer(image)[0], box, 0.1, 96))
    ours = [(s.onset, s.offset, s.kind) for s in spot(follower.track(), FPS, SpotConfig()).movements]
    return {
        "cells": [s for s in ours if s[2] in ("micro", "longer")],
        "difference": [(a, b, "micro") for a, b in difference_intervals(np.stack(faces))],
    }


def run(seeds: tuple[int, ...]) -> dict[str, Any]:
    rows: dict[str, dict[str, Counter[str]]] = {}
    begun = time.process_time()
    for kind, (count, moving, distracted) in VIDEOS.items():
        for seed in seeds:
            for number in range(count):
                video = make(moving, distracted, seed, number)
                for method, found in spotted(video).items():
                    counts = rows.setdefault(method, {}).setdefault(f"{kind}/{seed}", Counter())
                    counts += judge(found, video.events)
            print(kind, seed, {m: dict(r[f"{kind}/{seed}"]) for m, r in rows.items()}, flush=True)
    cpu = cpuinfo.get_cpu_info().get("brand_raw", "an unnamed processor")
    return {"seeds": seeds, "cpu": cpu, "cpu_seconds": round(time.process_time() - begun), "rows": rows}


TITLES = {
    "cells": "`micron_model.spotting`",
    "difference": "plain difference curve, half a second about its peaks",
}


def _scores(counts: Counter[str], name: str) -> tuple[float, float, float]:
    """Precision, recall and F1, 0 where nothing is there to be counted."""
    both, found, true = (counts[f"{name} {part}"] for part in ("both", "found", "true"))
    return both / max(found, 1), both / max(true, 1), 2 * both / max(found + true, 1)


def _listed(counts: Counter[str], first: str) -> str:
    named = {key.removeprefix(first): n for key, n in sorted(counts.items()) if key.startswith(first) and n}
    return ", ".join(f"{name} {n}" for name, n in named.items()) or "none"


def report(results: dict[str, Any]) -> str:
    """The table, in Markdown: counts of all seeds together, the least and greatest F1 of a seed."""
    lines = [
        "# Which movements are found",
        "",
        f"By `spotting.py run` and `report`: seeds {', '.join(map(str, results['seeds']))}, {results['cpu_seconds']} "
        f"CPU-seconds on {results['cpu']}. Matched at IoU ≥ 0.5; F1 of the least and of the greatest seed in brackets.",
        "",
        "| videos | method | movements P / R / F1 | of at most 0.5 s P / R / F1 | marked wrongly on | missed |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for kind, (count, moving, _) in VIDEOS.items():
        for method, title in TITLES.items():
            parts = [Counter(results["rows"][method][f"{kind}/{seed}"]) for seed in results["seeds"]]
            total = sum(parts, Counter[str]())
            cells = []
            for name in ("all", "micro"):
                f1 = [_scores(part, name)[2] for part in parts]
                p, r, f = _scores(total, name)
                cells.append(
                    f"{p:.2f} / {r:.2f} / **{f:.2f}** [{min(f1):.2f}, {max(f1):.2f}]" if moving else ""
                )
            lines.append(
                f"| {kind}, {count * len(parts)} | {title} | {cells[0]} | {cells[1]} | "
                f"{_listed(total, 'false on ')} | {_listed(total, 'missed ')} |"
            )
    there = {kind: sum((Counter(r) for k, r in results["rows"]["cells"].items() if k.split("/")[0] == kind),
                       Counter[str]()) for kind in VIDEOS}  # fmt: skip
    lines += ["", "What the videos hold:", ""]
    lines += [f"- {kind}: {_listed(counts, 'there ')}" for kind, counts in there.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    written = arguments.out / "spotting.json"
    if arguments.what == "run":
        written.write_text(json.dumps(run(tuple(arguments.seeds)), indent=1) + "\n")
    (arguments.out / "spotting.md").write_text(report(json.loads(written.read_text())))


if __name__ == "__main__":
    main()
