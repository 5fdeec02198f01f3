"""Pairs of frames from tar shards, as ``micron shard`` writes them and webdataset reads them."""

from __future__ import annotations

import bisect
import glob
import hashlib
import json
import math
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ...addresses import Address, expand, open_address, why_it_ended
from ...faults import describe, raise_if_of_the_machine
from ...limits import TooLarge, open_file
from ..clips.frames import FrameError, Problem, decode_image
from ..clips.pairs import check_delta, draw_delta, stabilized_pair, warped
from .unpack import Unpacked

#: (epoch, number of the shard in that epoch's order, number of the next pair in that shard)
Position = tuple[int, int, int]


def are_shards(sources: Sequence[str | Path]) -> bool:
    """Whether ``sources`` are shards, not clips: tar files, patterns of them, URLs, folders that hold tar files.

    Raises:
        ValueError: some are and some are not.
    """

    def is_shard(source: str | Path) -> bool:
        return any(
            isinstance(path, Address) or path.endswith(".tar") or any(Path(path).glob("*.tar"))
            for path in expand(source, allow_commands=True)
        )

    kinds = {str(source): is_shard(source) for source in sources}
    if len(set(kinds.values())) > 1:
        shard, clip = (next(s for s, kind in kinds.items() if kind is wanted) for wanted in (True, False))
        raise ValueError(
            f"{shard} is shards and {clip} is not: train on one kind, or write the clips as shards too (micron shard)"
        )
    return any(kinds.values())


def find_shards(sources: Sequence[str | Path], *, allow_commands: bool = False) -> list[str | Address]:
    """The shards that ``sources`` name, in their order: files by absolute paths, and addresses.

    Args:
        sources: as the user typed them: tar files, folders that hold tar files, globs, and what webdataset takes:
            URLs, ``pipe:`` and a command that writes a tar to its standard output, braces
            (``shard-{000000..000123}.tar``) in any of them. What is found in a folder or by a glob is a file,
            whatever its name.
        allow_commands: run what stands after ``pipe:``, in a shell.

    Raises:
        FileNotFoundError: a path, a folder or a glob has no shard.
        ValueError: a command that is not allowed, or braces that cannot be expanded.
    """
    shards: list[str | Address] = []
    for source in sources:
        for path in expand(source, allow_commands=allow_commands):
            if isinstance(path, Address):
                shards.append(path)
                continue
            if os.path.isdir(path):
                found = [str(p) for p in Path(path).glob("*.tar")]
            else:
                found = [path] if os.path.lexists(path) else glob.glob(path)
            if not found:
                raise FileNotFoundError(f"{path}: no such shard, nor a folder or pattern that has any")
            shards += sorted(map(os.path.abspath, found))
    return shards


def fingerprint(shards: Sequence[str | Address]) -> str:
    """What shards are, for the check that a run goes on with the data it began with.

    A function of their names, without the folder, and of the sizes of those that are local files.
    """

    def size(shard: str | Address) -> str:
        is_file = not isinstance(shard, Address) and Path(shard).is_file()
        return str(Path(shard).stat().st_size) if is_file else "of unknown size"

    described = "\n".join(f"{_name(shard)} {size(shard)}" for shard in shards)
    return (
        f"{len(shards)} shards {hashlib.sha256(described.encode(errors='surrogateescape')).hexdigest()[:16]}"
    )


def _name(shard: str) -> str:
    return shard.rsplit("/", 1)[-1]


def _generator(*parts: object) -> np.random.Generator:
    """Random numbers that ``parts`` alone decide."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


class Run(NamedTuple):
    """Consecutive frames of a clip; those that could not be read when the shard was written are missing."""

    key: str
    clip: str
    fps: float
    frames: dict[int, bytes]
    """JPEGs by their numbers in the clip, ascending."""


def _members(shard: str, note: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """The files in a tar as webdataset's functions pass them on, up to its end or to what is damaged.

    webdataset's own loop ends without a word at a damaged header, and when a command fails late.
    """
    from webdataset.gopen import Pipe, set_options

    stream: BinaryIO | Pipe | None = None
    endless = False
    try:
        stream = open_address(shard) if isinstance(shard, Address) else open_file(shard)
        set_options(stream, ignore_errors=True)  # or a pipe that fails would drop what it had sent
        with tarfile.open(fileobj=cast(BinaryIO, Unpacked(stream)), mode="r|") as tar:
            for member in tar:
                if member.issparse():
                    note(f"{member.name} is sparse, which would unpack to what is not there: passed over")
                    continue
                file = tar.extractfile(member) if member.isreg() else None
                if file is not None:
                    yield {"fname": member.name, "data": file.read(), "__url__": shard}
            if tar.fileobj is not None and tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                note("is damaged, or cut short: what follows is passed over")
    except Exception as error:  # a handler of URLs may raise anything
        raise_if_of_the_machine(error, shard)
        note(f"cannot be read to its end ({describe(error)})")
        endless = isinstance(error, TooLarge)
    if isinstance(stream, Pipe):
        while not endless and stream.read(
            1 << 16
        ):  # a command whose output is closed early would seem to fail
            pass
        stream.close()
        if stream.status not in stream.ignore_status:
            note(why_it_ended(Address(shard), stream.status))
    elif stream is not None:
        stream.close()


def _run(sample: dict[str, Any], note: Callable[[str], None]) -> Run | None:
    """The run that a sample of webdataset holds, or None and a note."""
    key = sample["__key__"]
    try:
        about = json.loads(sample["json"])
        clip, fps, numbers = str(about["clip"]), float(about["fps"]), [int(n) for n in about["frames"]]
        if not 0 < fps < math.inf:
            raise ValueError(f"fps is {fps}")
    except KeyError as error:
        note(f"{key}: has no {error}")
        return None
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        note(f"{key}: its json does not describe a run ({error})")
        return None
    matches = ((re.fullmatch(r"([0-9]{1,18})\.jpg", suffix), data) for suffix, data in sample.items())
    images = {int(match[1]): data for match, data in matches if match}
    frames = {n: images[n] for n in sorted(set(numbers)) if n in images}
    missing = [n for n in numbers if n not in images]
    if missing:
        note(f"{key}: {len(missing)} of its {len(numbers)} frames are missing, the first is {missing[0]}")
    if len(frames) < 2:
        note(f"{key}: has {len(frames)} frames; a pair needs 2")
        return None
    return Run(key, clip, fps, frames)


def read_shard(shard: str | Address) -> tuple[list[Run], list[Problem]]:
    """The runs of a shard, their images still compressed, and what was wrong with it."""
    from webdataset.tariterators import group_by_keys

    problems: list[Problem] = []

    def note(reason: str) -> None:
        problems.append(Problem(shard, reason))

    def note_duplicate(error: Exception) -> bool:
        note(str(error.args[0]).partition(" dict_keys")[0])
        return True

    samples = group_by_keys(_members(shard, note), handler=note_duplicate)
    runs = [run for sample in samples if (run := _run(sample, note)) is not None]
    return runs, problems


def nearest_pair(numbers: Sequence[int], delta: int) -> tuple[int, int]:
    """Of ascending numbers, the two whose distance is nearest to ``delta``; of several such, the first.

    Each number has at most two partners that could be nearest: the last before t + δ and the first after it.
    """
    best: tuple[int, int, int] | None = None
    for i, t in enumerate(numbers[:-1]):
        after = bisect.bisect_left(numbers, t + delta, i + 1)
        for k in (after - 1, after):
            if i < k < len(numbers):
                found = (abs(numbers[k] - t - delta), t, numbers[k])
                best = found if best is None else min(best, found)
    assert best is not None, "two numbers at least"
    return best[1:]


class ShardPairs(IterableDataset):
    """Frames (t, t+δ) of one clip from shards, for ever, in an order that seed and consumers decide.

    A consumer is a worker of a DataLoader on a rank. Each epoch permutes the shards. If there are at least as many
    as consumers, each consumer takes whole shards, else each takes its share of the pairs of every shard; all
    consumers together see every pair of an epoch once. Pair i of a shard depends on (seed, epoch, name of the shard,
    i) alone. A shard is read whole into memory, its images compressed; only those of a pair are decoded.

    The order changes with the number of ranks and workers: a run that is resumed keeps both.

    Args:
        shards: what :func:`find_shards` gives: a string that is no ``Address`` is the path of a file.
        size: side of the frames in pixels.
        seed: of all draws.
        delta: range of δ, both ends included, in frames at ``delta_fps``; scaled to each run's rate.
        delta_fps: frame rate that ``delta`` is meant at.
        flip: mirror half of the pairs left to right.
        pairs_per_run: pairs that are drawn from each run in an epoch.
        stabilize: lay the later frame over the earlier one, as :class:`FramePairs` does.
        warp: side of a patch in pixels, as :class:`FramePairs` has it.
        later: False decodes the earlier frame of each pair alone, as there.
        rank: of this process, in [0, ranks).
        ranks: processes that share the shards.
        start: for a consumer (rank · workers + logical worker), the ``position`` of its last sample: it goes on
            after it. One that is not named begins at the beginning.
        first_worker: worker w of the DataLoader is logical worker (w + first_worker) % workers. A DataLoader asks its
            worker 0 first, so after b batches first_worker=b goes on where it was.
    """

    def __init__(
        self,
        shards: Sequence[str],
        size: int,
        seed: int = 0,
        *,
        delta: tuple[float, float] = (5, 11),
        delta_fps: float = 30.0,
        flip: bool = True,
        pairs_per_run: int = 4,
        stabilize: bool = False,
        warp: int = 0,
        later: bool = True,
        rank: int = 0,
        ranks: int = 1,
        start: Mapping[int, Position] | None = None,
        first_worker: int = 0,
    ):
        if not shards:
            raise ValueError("shards is empty; there is nothing to draw pairs from")
        check_delta(delta)
        if pairs_per_run < 1:
            raise ValueError(f"pairs_per_run={pairs_per_run}; it must be at least 1")
        if not 0 <= rank < ranks:
            raise ValueError(f"rank={rank} of ranks={ranks}; it must be in [0, ranks)")
        for consumer, position in (start or {}).items():
            if len(position) != 3 or min(position) < 0 or position[1] >= len(shards):
                raise ValueError(
                    f"start[{consumer}]={position}; it must be (epoch, shard below {len(shards)}, pair)"
                )
        self.shards, self.size, self.seed = list(shards), size, seed
        self.delta, self.delta_fps, self.flip, self.pairs_per_run = delta, delta_fps, flip, pairs_per_run
        self.stabilize, self.warp, self.later = stabilize, warp, later
        self.rank, self.ranks, self.first_worker = rank, ranks, first_worker
        self.start = dict(start or {})

    def _draw(self, run: Run, rng: np.random.Generator) -> tuple[int, int, bool]:
        numbers = list(run.frames)
        delta = draw_delta(rng, run.fps, numbers[-1] - numbers[0], self.delta, self.delta_fps)
        starts = [t for t in numbers if t + delta in run.frames]
        if starts:
            t = starts[int(rng.integers(len(starts)))]
            later = t + delta
        else:
            t, later = nearest_pair(numbers, delta)
        return t, later, self.flip and bool(rng.integers(2))

    def _pair(
        self, shard: str, run: Run, draw: tuple[Any, ...], problems: list[Problem]
    ) -> dict[str, Any] | None:
        """A pair of a run; one that cannot be decoded is drawn anew a few times."""
        for attempt in range(4):
            t, later, flipped = self._draw(run, _generator(*draw, attempt))
            images: Any = []
            wanted = (t, later) if self.later else (t,)
            for number in wanted:
                try:
                    images.append(decode_image(run.frames[number], self.size))
                except FrameError as error:
                    problems.append(Problem(shard, f"{run.key}: frame {number} {error}"))
            if len(images) == len(wanted):
                source = f"{run.clip} frames {t} and {later}" if self.later else f"{run.clip} frame {t}"
                images = np.stack(images)
                if self.stabilize and self.later:
                    images, problem = stabilized_pair(images, source)
                    problems += problem
                pair = torch.from_numpy(images)
                views = dict(zip(("frames", "later"), pair.flip(-1) if flipped else pair, strict=False))
                sample = {**views, "source": source}
                if self.warp:
                    sample |= warped(views["frames"], _generator("warp", *draw, attempt), self.warp)
                return sample
        return None

    def _epoch(
        self, epoch: int, shard: int, pair: int, consumer: int, consumers: int, problems: list[Problem]
    ) -> Iterator[dict[str, Any] | None]:
        """The samples of an epoch, from a pair of a shard on; what is met on the way is added to ``problems``.

        None in place of the pairs of a shard that are all another consumer's.
        """
        by_shard = len(self.shards) >= consumers
        step = 1 if by_shard else consumers
        order = _generator("shards", self.seed, epoch).permutation(len(self.shards))
        for k in range(shard, len(order)):
            if by_shard and k % consumers != consumer:
                continue
            path = self.shards[order[k]]
            draw = (self.seed, epoch, _name(path))
            runs, faults = read_shard(path)
            problems += faults
            pairs = _generator("pairs", *draw).permutation(len(runs) * self.pairs_per_run)
            # Who takes the first pair changes: a consumer would starve if every shard had fewer than consumers.
            first = (consumer - k - epoch) % step
            for i in range(pair if k == shard and pair else first, len(pairs), step):
                sample = self._pair(path, runs[pairs[i] % len(runs)], (*draw, i), problems)
                if sample is not None:
                    yield {**sample, "position": (epoch, k, i + step)}
            if 0 < len(pairs) <= first:
                yield None
            del runs  # before the next shard is read

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Samples as :class:`FramePairs` has them, with ``position`` (see ``start``) and ``consumer``.

        What cannot be read is passed over; the next sample lists it in ``problems``. Raises FrameError after an
        epoch without one pair.
        """
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        consumer = self.rank * workers + (number + self.first_worker) % workers
        consumers = self.ranks * workers
        first, shard, pair = self.start.get(consumer, (0, 0, 0))
        problems: list[Problem] = []
        barren = 0  # epochs in a row without a pair
        for epoch in count(first):
            found = bool(shard or pair)  # of an epoch that is gone on with, pairs may have been seen
            turn = True
            for sample in self._epoch(epoch, shard, pair, consumer, consumers, problems):
                if sample is None:
                    turn = False
                else:
                    found = True
                    yield {**sample, "problems": list(dict.fromkeys(problems)), "consumer": consumer}
                    problems.clear()
            barren = 0 if found else barren + 1
            if barren > (0 if turn else consumers):  # by then, every pair had its turn
                reasons = "; ".join(f"{p.path}: {p.reason}" for p in list(dict.fromkeys(problems))[-3:])
                raise FrameError(
                    f"an epoch of {len(self.shards)} shards had not one pair for consumer {consumer} of {consumers} "
                    f"(ranks × workers): {reasons or 'they hold no run'}"
                )
            shard = pair = 0
