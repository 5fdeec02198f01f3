"""Look-alikes of macro-expressions: the movements of the other look-alikes, several pixels wide and longer."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from ..clips.synthetic import Manner
from .folders import Layout
from .lookalike_clips import LookalikeConfig, Planned, rendered, write_frames
from .macro import CREMA_D, LIST

EMOTIONS = (
    *("happiness", "surprise", "disgust", "repression", "others"),
    *("anger", "fear", "sadness", "contempt"),
)
LAYOUTS = (
    Layout("listed", r"person\d+", "person01"),
    Layout("folders", r"person\d+", "person01"),
    Layout("crema-d", r"VideoFlash", "VideoFlash"),
)
_FPS = 30
_SENTENCES = ("IEO", "TIE", "IOM", "IWW", "TAI", "MTI", "IWL", "ITH", "DFA", "ITS", "TSI", "WSI")
_INTENSITIES = ("XX", "LO", "MD", "HI")


def widened(manner: Manner) -> Manner:
    """As people differ in a micro-expression, but 3 to 6 pixels of a 64×64 frame wide and as slow as a clip allows."""
    return replace(manner, amplitude=(3.0, 6.0), rise=(13, 16), fall=(15, 18))


def emotions(layout: str | None) -> list[str]:
    """Those of a layout's clips."""
    return [emotion for emotion in EMOTIONS if layout != "crema-d" or emotion in CREMA_D.values()]


def write(root: Path, plan: Sequence[Planned], config: LookalikeConfig) -> None:
    """Folders of images and a csv of them; folders alone; or videos."""
    layout = config.layout or "listed"
    if layout == "crema-d":
        _write_videos(root / "VideoFlash", plan, config)
        return
    rows = [("clip", "subject", "emotion")]
    for planned in plan:
        person = f"person{planned.subject:02d}"
        clip = f"{person}/{planned.emotion}/{planned.order + 1:02d}"
        write_frames(root / clip, planned, config, "{:03d}.jpg")
        rows.append((clip, person, planned.emotion))
    if layout == "listed":
        with open(root / LIST, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)


def _write_videos(folder: Path, plan: Sequence[Planned], config: LookalikeConfig) -> None:
    folder.mkdir()
    codes = {emotion: code for code, emotion in CREMA_D.items()}
    for planned in plan:
        if not planned.has_frames:
            continue
        sentence, intensity = _SENTENCES[planned.order % 12], _INTENSITIES[planned.order // 12 % 4]
        name = f"{1000 + planned.subject}_{sentence}_{codes[planned.emotion]}_{intensity}.mp4"
        side = (config.side, config.side)
        video = cv2.VideoWriter(str(folder / name), cv2.VideoWriter.fourcc(*"mp4v"), _FPS, side)
        if not video.isOpened():
            raise RuntimeError(f"{folder / name}: OpenCV cannot write this video; take another --layout")
        for frame in rendered(planned, config):
            video.write(np.ascontiguousarray(frame.transpose(1, 2, 0)[:, :, ::-1]))
        video.release()
