"""What the page shows of a video, or of two pictures."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from micron_kernels import frame_difference

from ..commands.answer import to_json
from ..data.clips.faces import inside_outline
from ..data.clips.flow import flow_less_median
from ..data.clips.frames import VideoClip, write_image
from ..data.clips.synthetic import CLASSES, FPS, SyntheticClip
from ..face_pair import Faces, compare
from ..html_page import png
from ..models.micron_bert import MicronBERT
from ..prediction import Movement, faces_of, note_of, predict
from ..prediction_figures import figure_of_curve
from ..recognizers.base import Recognizer
from ..spotting import SpotConfig
from ..visualize import Overlay, above_zero, change_maps, limits_of, map_image

#: Side of a face in pixels where no model states one, and of a cell of its maps.
_SIDE, _CELL = 128, 8
#: Side of a picture that is shown.
_SHOWN = 256
#: Movements of which pictures are made, the strongest.
_PICTURED = 20


@dataclass(frozen=True)
class Result:
    """What came of a piece of work."""

    document: dict[str, Any]
    """As ``micron predict --json`` has it; of each movement also its pictures, and of the video its curve."""
    pictures: dict[str, bytes]
    """PNGs, by the names that the document has."""

    def zipped(self) -> bytes:
        """All of it in one file."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("candidates.json", to_json(self.document))
            for name, data in self.pictures.items():
                archive.writestr(name, data)
        return buffer.getvalue()


@dataclass(frozen=True)
class Looking:
    """With what is looked.

    Attributes:
        recognizer: names classes; without one, none is.
        maps: a μ-BERT for maps of micro-attention and Patch of Interest; without one, these are missing.
        spot: which movements are marked.
        seconds: the longest video.
    """

    recognizer: Recognizer | None = None
    maps: MicronBERT | None = None
    spot: SpotConfig = field(default_factory=SpotConfig)
    seconds: float = 180.0

    @property
    def side(self) -> int:
        """Of the faces in pixels."""
        return _SIDE if self.maps is None else self.maps.config.image_size

    def video(
        self, path: Path, name: str, progress: Callable[[int, int], object], *, fps: float | None = None
    ) -> Result:
        """Of a video or, with ``fps``, a folder of images.

        Raises:
            ValueError: it is longer than ``seconds``, or what :func:`predict` raises.
        """
        if path.is_file():
            clip = VideoClip.open(path)
            if len(clip) > self.seconds * clip.fps:
                raise ValueError(
                    f"{path}: lasts {len(clip) / clip.fps:.0f} s, and {self.seconds:g} are allowed; cut it, or raise "
                    "the limit (micron serve --seconds)"
                )
        analysis = predict(path, self.recognizer, self.spot, fps=fps, on_frame=progress)
        document = {"note": note_of(self.recognizer), **analysis.as_json(), "source": name}
        document["curve"] = analysis.curve.round(4).tolist()
        document["passed_over"] = [text.replace(str(path), name) for text in document["passed_over"]]
        document["notes"] = [text.replace(str(path), name) for text in document["notes"]]
        entries = [
            (movement, entry)
            for kind in ("candidates", "longer", "ignored")
            for movement, entry in zip(getattr(analysis, kind), document[kind], strict=True)
        ]
        entries.sort(key=lambda pair: -pair[0].spotted.strength)
        shown = sorted(entries[:_PICTURED], key=lambda pair: pair[0].frames)
        pictures = {"curve.png": png(figure_of_curve(analysis))}
        movements: list[Movement] = [movement for movement, _ in shown]
        for number, (faces, (_, entry)) in enumerate(
            zip(faces_of(path, analysis, movements, self.side, self.spot, fps=fps), shown, strict=True), 1
        ):
            entry["pictures"] = []
            for title, stem, picture, scale in self._panels(faces):
                file = f"{number:02}-{stem}.png"
                entry["pictures"].append({"title": title, "file": file, "range": scale})
                pictures[file] = picture
        return Result(document, pictures)

    def pair(self, onset: Path, apex: Path, names: Mapping[Path, str]) -> Result:
        """Of two pictures of a face.

        Raises:
            ValueError: they are no pictures, or differ in size.
        """
        faces, notes = compare(onset, apex, self.side, self.spot.margin, stabilize=self.spot.stabilize)
        for path, name in names.items():
            notes = [note.replace(str(path), name) for note in notes]
        listed, pictures = [], {}
        for title, stem, picture, scale in self._panels(faces):
            pictures[f"{stem}.png"] = picture
            listed.append({"title": title, "file": f"{stem}.png", "range": scale})
        document = {
            "note": note_of(None),
            "source": [names[onset], names[apex]],
            "notes": notes,
            "pictures": listed,
        }
        return Result(document, pictures)

    def synthetic(self, folder: Path, progress: Callable[[int, int], object]) -> Result:
        """Of a clip that is made for it, in a folder that is empty: one face, three movements."""
        for number, frame in enumerate(_synthetic_frames()):
            write_image(folder / f"{number:04}.png", frame)
        return self.video(folder, "the synthetic clip", progress, fps=FPS)

    def _panels(self, faces: Faces) -> Iterator[tuple[str, str, bytes, list[float] | None]]:
        """Title, name, PNG and, of a map, its least and largest value."""
        for title, stem, face in (
            ("onset", "onset", faces.onset),
            ("apex", "apex", faces.apex),
            ("apex, laid over the onset", "registered", faces.registered),
        ):
            yield title, stem, _png(face.transpose(1, 2, 0), cv2.INTER_CUBIC), None
        for title, stem, values, limits in self._maps(faces):
            inside = faces.place and inside_outline(faces.place, self.side, self.side // len(values))
            overlay = Overlay(torch.from_numpy(faces.registered), values, limits, inside)
            yield title, stem, _png(map_image(overlay), cv2.INTER_NEAREST), list(limits_of(overlay))

    def _maps(self, faces: Faces) -> Iterator[tuple[str, str, Tensor, tuple[float, float] | None]]:
        """Title, name, values and limits of the colours."""
        onset, apex = (torch.from_numpy(face)[None] for face in (faces.onset, faces.registered))
        if self.maps is None:
            cells = self.side // _CELL
            difference = frame_difference(apex, onset, _CELL).unflatten(1, (cells, cells))
            found = {"difference": difference}
        else:
            found = change_maps(self.maps, onset, apex)
        yield "mean difference of grey levels", "difference", found["difference"][0], None
        flow = np.linalg.norm(flow_less_median(faces.onset, faces.registered), axis=0)
        cells = self.side // _CELL
        mean = torch.from_numpy(cv2.resize(flow, (cells, cells), interpolation=cv2.INTER_AREA))
        yield "optical flow, pixels", "flow", mean, None
        if self.maps is not None:
            change = found["micro_attention"][0]
            yield "micro-attention", "micro-attention", change, above_zero(change)
            yield "Patch of Interest", "patch-of-interest", found["poi"][0], None


def _png(image: np.ndarray, interpolation: int) -> bytes:
    """Of an RGB image (H, W, 3), uint8."""
    shown = cv2.resize(image, (_SHOWN, _SHOWN), interpolation=interpolation)
    return cv2.imencode(".png", shown[:, :, ::-1])[1].tobytes()


def _synthetic_frames() -> Iterator[np.ndarray]:
    """BGR; at rest between three movements of one face."""
    subject, side = 1, 128
    for label in list(CLASSES)[:3]:
        clip = SyntheticClip(subject, label)
        for number in range(len(clip) + round(FPS / 4)):
            yield clip.read([number], side)[0].transpose(1, 2, 0)[:, :, ::-1]
