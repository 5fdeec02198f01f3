"""Training data as tar shards: runs of consecutive frames as JPEGs, in the layout that webdataset reads.

A sample of a shard is a run: ``<key>.json``, {"clip", "subject", "fps", "frames": numbers of the frames in their
clip, ascending}, then ``<key>.<number>.jpg`` for each of those frames.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from itertools import islice
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from rich.console import Console
from webdataset import TarWriter

from ...limits import read_json
from ...plain_text import say
from ...progress import ProgressBar, working
from ...resumable import claimed
from ...signals import NotedSignals, end_with_parent
from ...whole_file import whole_file
from ..clips.faces import find_face
from ..clips.find import describe_clips, find_clips
from ..clips.frames import Problem
from ..clips.stabilize import Stabilizer
from .plan import Run, ShardConfig, check_plan, fingerprint, plan_shards


class ShardError(RuntimeError):
    """A shard that could not be written; those that were finished are intact."""


class ShardingStopped(Exception):
    """A signal ended the writing; finished shards stay, and the same call goes on after them."""

    def __init__(self, signal_number: int, done: int, total: int, out: Path):
        name = signal.Signals(signal_number).name
        super().__init__(
            f"stopped by {name}: {done} of {total} shards are in {out}; the same command writes the rest"
        )
        self.signal_number = signal_number


class _Stop(Exception):
    """Raised between two frames, so that a shard in the making is dropped."""


class Written(NamedTuple):
    """What :func:`write_shards` wrote, now and before."""

    shards: int
    runs: int
    frames: int
    problems: list[Problem]


def _jpeg(frame: np.ndarray, quality: int) -> bytes:
    """A frame (3, size, size), RGB. 4:4:4, since chroma at half the resolution blurs motion below a pixel."""
    settings = [
        *(cv2.IMWRITE_JPEG_QUALITY, quality),
        *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
    ]
    return cv2.imencode(".jpg", frame.transpose(1, 2, 0)[:, :, ::-1], settings)[1].tobytes()


def _write_run(tar: TarWriter, run: Run, images: dict[int, bytes]) -> None:
    numbers = list(images)
    about = {"clip": run.clip.name, "subject": run.subject, "fps": run.clip.fps, "frames": numbers}
    # Two calls, because one would sort the images before the json.
    tar.write({"__key__": run.key, "json": json.dumps(about).encode()})
    tar.write({"__key__": run.key} | {f"{number:08d}.jpg": images[number] for number in numbers})


def _laid(
    frames: Iterator[tuple[int, np.ndarray | Problem]], run: Run
) -> Iterator[tuple[int, np.ndarray | Problem]]:
    """Frames (3, size, size) laid over the first of them; one that cannot be is left, and why is told once a run."""
    stabilizer, told = None, False
    for i, frame in frames:
        if isinstance(frame, Problem):
            yield i, frame
            continue
        image = np.ascontiguousarray(frame.transpose(1, 2, 0))
        if stabilizer is None:
            stabilizer = Stabilizer(image, find_face(image))
        else:
            image, found = stabilizer(image)
            if found.failure is not None and not told:
                told = True
                yield (
                    i,
                    Problem(run.clip.name, f"from frame {i} on, some are left as they are: {found.failure}"),
                )
        yield i, image.transpose(2, 0, 1)


def _write_shard(
    path: Path, runs: Sequence[Run], config: ShardConfig, stopped: Callable[[], bool]
) -> dict[str, Any]:
    """Write a shard and the file beside it that says it is finished; returns what that file says.

    The bytes depend on the runs and settings alone.
    """
    count, frames = 0, 0
    problems: dict[Problem, None] = {}
    try:
        with (
            whole_file(path) as file,
            TarWriter(file, user="", group="", mode=0o644, mtime=0, encoder=False, compress=False) as tar,
        ):
            for run in runs:
                images = {}
                frames_of_run = run.clip.decode(run.start, run.stop, config.size)
                for i, frame in _laid(frames_of_run, run) if config.stabilize else frames_of_run:
                    if stopped():
                        raise _Stop
                    if isinstance(frame, Problem):
                        problems[frame] = None
                    else:
                        images[run.first + i - run.start] = _jpeg(frame, config.quality)
                if len(images) >= 2:
                    _write_run(tar, run, images)
                    count, frames = count + 1, frames + len(images)
        finished = {"runs": count, "frames": frames, "problems": [list(p) for p in problems]}
        with whole_file(path.with_suffix(".json")) as file:
            file.write(json.dumps(finished).encode())
    except OSError as error:
        raise ShardError(
            f"{path}: could not be written ({error.strerror}); finished shards are intact, and the same command "
            "writes the rest once that is mended"
        ) from None
    return finished


def _finished(path: Path) -> dict[str, Any] | None:
    """What is said of a shard that is finished."""
    try:
        if not path.is_file():
            return None
        said = read_json(path.with_suffix(".json"))
        problems = said["problems"]
        counted = all(type(said[name]) is int for name in ("runs", "frames"))
        listed = isinstance(problems, list) and all(isinstance(p, list) and len(p) == 2 for p in problems)
        return said if counted and listed else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


_stop_of_worker: Event


def _start_worker(stop: Event) -> None:
    global _stop_of_worker
    _stop_of_worker = stop
    for number in (signal.SIGTERM, signal.SIGINT):  # a terminal sends them to all; the parent sets ``stop``
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)
    end_with_parent()


def _write_in_worker(path: Path, runs: Sequence[Run], config: ShardConfig) -> dict[str, Any]:
    return _write_shard(path, runs, config, _stop_of_worker.is_set)


def _write_all(
    tasks: dict[Path, list[Run]], config: ShardConfig, workers: int, signals: NotedSignals
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Shards as they are finished."""
    workers = min(workers, len(tasks))
    if workers <= 1:
        for path, runs in tasks.items():
            yield path, _write_shard(path, runs, config, lambda: signals.received is not None)
        return
    # A fork could copy a lock that a thread of torch or OpenCV holds.
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        # Imported once, not once a worker: each worker imports again what the main script imported.
        loaded = [name for name in (__name__, "micron_model.cli") if name in sys.modules]
        context.set_forkserver_preload(loaded)
    stop = context.Event()
    remaining = iter(tasks.items())
    pending: dict[Future[dict[str, Any]], Path] = {}
    pool = ProcessPoolExecutor(workers, context, _start_worker, (stop,))
    try:
        while True:
            for path, runs in islice(remaining, 2 * workers - len(pending)):
                pending[pool.submit(_write_in_worker, path, [run.cut() for run in runs], config)] = path
            if not pending:
                return
            done, _ = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            if signals.received is not None:
                raise _Stop
            for future in done:
                yield pending.pop(future), future.result()
    except BrokenProcessPool:
        if signals.received is not None:
            raise _Stop from None
        raise ShardError(
            "a process that wrote shards was killed, perhaps for want of memory; finished shards are intact, and "
            "the same command with fewer workers writes the rest"
        ) from None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _claim(out: Path, plan: dict[str, Any]) -> None:
    """Make ``out`` the folder of this plan, and remove what a killed run left half-written."""
    path = out / "plan.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if path.exists():
            check_plan(path, plan)
        elif any(out.glob("*.tar")):
            raise ValueError(
                f"{out}: holds tar files and no plan.json that says of what; give another folder"
            )
        else:
            with whole_file(path) as file:
                file.write(json.dumps(plan, indent=1).encode())
        for stale in out.glob(".*.part"):
            stale.unlink()
    except OSError as error:
        raise ShardError(f"{out}: cannot be written to ({error.strerror})") from None


def write_shards(
    sources: Sequence[str | Path],
    out: Path,
    config: ShardConfig,
    *,
    workers: int | None = None,
    console: Console | None = None,
) -> Written:
    """Write the frames of all clips under ``sources`` as ``out/shard-000000.tar`` and so on.

    Clips are cut into runs, and the runs of all clips are shuffled over the shards. Beside each shard, a json of the
    same name counts its runs and frames and lists the files that were passed over; ``out/plan.json`` holds settings
    and a fingerprint of the clips. The same call again writes what is missing, and the same bytes.

    A frame that cannot be decoded is left out of its run, and a run with fewer than two frames out of its shard.

    Args:
        sources: what :func:`find_clips` takes.
        out: a folder; must not hold other shards.
        config: what the shards hold.
        workers: processes; as many as processors if not given. 1 writes in this one.
        console: where progress is shown; standard error by default.

    Returns:
        How many shards, runs and frames ``out`` holds, and every file that was passed over, each once.

    Raises:
        FileNotFoundError: a source does not exist.
        ValueError: no clip, or not one frame could be decoded; or ``out`` holds shards of other settings or clips.
        ShardError: the disk is full, or ``out`` cannot be written to.
        ShardingStopped: SIGTERM or SIGINT came.
        Claimed: another process writes to ``out``.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers}; at least 1 process must write")
    console = console or Console(stderr=True)
    with working("looking for clips", console):
        clips, problems = find_clips(sources, fps=config.fps)
        shards = plan_shards(clips, sources, config)
        # The clips are there for who trains on the shards and must know whom the model has seen.
        plan = {
            "settings": asdict(config),
            "data": fingerprint(clips),
            "clips": [clip.name for clip in clips],
        }
    for line in describe_clips(clips):
        say(console, line)
    with contextlib.ExitStack() as claims:
        try:
            claims.enter_context(claimed(out))
        except OSError as error:
            raise ShardError(f"{out}: cannot be written to ({error.strerror})") from None
        _claim(out, plan)
        return _write_missing(shards, out, config, problems, workers, console)


def _write_missing(
    shards: Sequence[list[Run]],
    out: Path,
    config: ShardConfig,
    problems: list[Problem],
    workers: int | None,
    console: Console | None,
) -> Written:
    """The shards that ``out`` lacks; see :func:`write_shards`."""
    tasks = {out / f"shard-{i:06d}.tar": runs for i, runs in enumerate(shards)}
    finished = {path: said for path in tasks if (said := _finished(path)) is not None}
    remaining = {path: runs for path, runs in tasks.items() if path not in finished}
    planned = {path: sum(map(len, runs)) for path, runs in tasks.items()}
    with (
        NotedSignals() as signals,
        ProgressBar("{task.fields[rate]:.0f}/s", console=console or Console(stderr=True)) as progress,
    ):
        task = progress.add_task(
            "frames", total=sum(planned.values()), completed=sum(planned[path] for path in finished), rate=0.0
        )
        began, frames = time.perf_counter(), 0
        try:
            for path, said in _write_all(remaining, config, workers or os.cpu_count() or 1, signals):
                finished[path] = said
                frames += planned[path]
                rate = frames / (time.perf_counter() - began)
                progress.update(task, advance=planned[path], rate=rate)
        except _Stop:
            assert signals.received is not None
            raise ShardingStopped(signals.received, len(finished), len(tasks), out) from None
    for path in tasks:
        problems += [Problem(*problem) for problem in finished[path]["problems"]]
    problems = list(dict.fromkeys(problems))
    runs, frames = (sum(said[name] for said in finished.values()) for name in ("runs", "frames"))
    written = Written(len(tasks), runs, frames, problems)
    if not written.frames:
        for path in (*tasks, *(path.with_suffix(".json") for path in tasks), out / "plan.json"):
            path.unlink()
        listed = "; ".join(f"{p.path}: {p.reason}" for p in problems[:5])
        raise ValueError(f"no run of 2 frames could be decoded: {listed}")
    return written
