"""Pairs from shards: their order, going on with it, and what is said of damage."""

import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from torch.utils.data import DataLoader

from micron_model.addresses import Address
from micron_model.data import FrameError, Problem, ShardPairs, are_shards, find_shards
from micron_model.data.clips.frames import decode_image
from micron_model.data.shards.read import fingerprint, read_shard
from writers import grey, write_images, write_small_shards

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


def take(pairs, count):
    return [sample for _, sample in zip(range(count), pairs, strict=False)]


def names(samples):
    return [(s["source"], s["position"], s["frames"].float().mean().item()) for s in samples]


def sources_of(samples):
    return [s["source"] for s in samples]


def test_a_pair_is_two_frames_of_a_run(shards):
    for sample in take(ShardPairs(shards, 24, pairs_per_run=20), 120):
        t, later = (int(n) for n in re.findall(r"frames (\d+) and (\d+)", sample["source"])[0])
        assert 5 <= later - t <= 11
        assert sample["frames"].shape == sample["later"].shape == (3, 24, 24)
        assert abs(sample["frames"].float().mean() - 3 * t) <= 3
        assert abs(sample["later"].float().mean() - 3 * later) <= 3
        assert sample["problems"] == []
    assert take(ShardPairs(shards, 16), 1)[0]["frames"].shape == (3, 16, 16)


def test_half_of_the_pairs_are_mirrored(tmp_path):
    frames = np.zeros((20, 3, 24, 24), np.uint8)
    frames[..., :12] = 200
    write_small_shards([write_images(tmp_path / "clip", frames)], tmp_path / "out")
    shards = find_shards([tmp_path / "out"])
    left = [s["frames"][..., :12].float().mean() > 100 for s in take(ShardPairs(shards, 24), 100)]
    assert 30 < sum(left) < 70
    assert all((s["frames"] == s["later"]).all() for s in take(ShardPairs(shards, 24), 20))
    assert all(s["frames"][..., 0].min() > 100 for s in take(ShardPairs(shards, 24, flip=False), 20))


def test_delta_is_scaled_by_the_rate_of_the_run(tmp_path):
    write_small_shards(
        [write_images(tmp_path / "clip", np.zeros((240, 3, 8, 8), np.uint8))],
        tmp_path / "out",
        size=8,
        fps=200.0,
    )
    pairs = take(ShardPairs(find_shards([tmp_path / "out"]), 8, pairs_per_run=50), 400)
    deltas = {int(s["source"].split()[-1]) - int(s["source"].split()[-3]) for s in pairs}
    assert deltas == set(range(33, 74))  # 5 to 11 at 30 a second


def test_missing_frames_are_never_drawn(tmp_path):
    folder = write_images(tmp_path / "clip", grey(30))
    for i in (*range(1, 30, 2), 30):
        (folder / f"img{i}.png").write_bytes(b"")
    write_small_shards([folder], tmp_path / "out")
    for sample in take(ShardPairs(find_shards([tmp_path / "out"]), 24), 40):
        t, later = int(sample["source"].split()[-3]), int(sample["source"].split()[-1])
        assert t % 2 == later % 2 == 1
        assert 4 <= later - t <= 11
        assert sample["problems"] == []


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_stream_is_the_same_each_time(shards, workers):
    def stream(seed):
        loader = DataLoader(ShardPairs(shards, 24, seed), batch_size=None, num_workers=workers)
        return names(take(loader, 60))

    first = stream(1)
    assert stream(1) == first
    assert stream(2) != first
    assert len({source for source, *_ in first}) > 40


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 0), (3, 2), (8, 0)])
def test_consumers_share_the_pairs_of_an_epoch(shards, ranks, workers):
    """Six shards: with 8 consumers each reads all of them."""
    alone = sorted(sources_of(take(ShardPairs(shards, 24), 24)))
    together = []
    for rank in range(ranks):
        loader = DataLoader(
            ShardPairs(shards, 24, rank=rank, ranks=ranks), batch_size=None, num_workers=workers
        )
        for sample in take(loader, 60):
            if sample["position"][0] == 0:
                together.append(sample["source"])
    assert sorted(together) == alone


def test_an_epoch_has_each_run_alike_and_the_next_another_order(shards):
    samples = take(ShardPairs(shards, 24, pairs_per_run=3), 36)
    assert [s["position"][0] for s in samples] == [0] * 18 + [1] * 18
    first, second = ([s["source"].split()[0] for s in part] for part in (samples[:18], samples[18:]))
    assert sorted(first) == sorted(second)
    assert first != second


@pytest.mark.parametrize(
    ("count", "workers", "stopped_after"),
    [(6, 0, 1), (6, 0, 4), (6, 0, 30), (6, 2, 7), (1, 2, 7), (1, 2, 20)],
)
def test_going_on_equals_never_stopping(shards, count, workers, stopped_after):
    def loader(**settings):
        return DataLoader(ShardPairs(shards[:count], 24, **settings), batch_size=None, num_workers=workers)

    whole = names(take(loader(), 50))
    seen = take(loader(), stopped_after)
    start = {sample["consumer"]: sample["position"] for sample in seen}
    rest = take(loader(start=start, first_worker=stopped_after), 50 - stopped_after)
    assert names(seen) + names(rest) == whole


def test_going_on_decodes_nothing_that_was_before(shards, monkeypatch):
    samples = take(ShardPairs(shards, 24), 10)
    decoded = []

    def counted(data, size):
        decoded.append(data)
        return decode_image(data, size)

    monkeypatch.setattr("micron_model.data.shards.read.decode_image", counted)
    pairs = ShardPairs(shards, 24, start={0: samples[-1]["position"]})
    take(pairs, 1)
    assert len(decoded) == 2


# Damage


def damaged(path, change):
    data = bytearray(Path(path).read_bytes())
    change(data)
    Path(path).write_bytes(data)


def header_of(path, number):
    with tarfile.open(path) as tar:
        return tar.getmembers()[number].offset


def cut(path):
    damaged(path, lambda data: data.__delitem__(slice(header_of(path, 9) + 600, None)))


def cut_at_a_header(path):
    damaged(path, lambda data: data.__delitem__(slice(header_of(path, 9), None)))


def spoil_a_header(path):
    at = header_of(path, 9)
    damaged(path, lambda data: data.__setitem__(slice(at, at + 512), b"x" * 512))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut, r"cannot be read to its end \(unexpected end of data\)"),
        (cut_at_a_header, "is damaged, or cut short: what follows is passed over"),
        (spoil_a_header, "is damaged, or cut short: what follows is passed over"),
    ],
)
def test_what_can_be_read_of_a_damaged_shard_is_used(shards, damage, reason):
    whole, _ = read_shard(shards[0])
    damage(shards[0])
    (run,), problems = read_shard(shards[0])
    assert run.frames.items() < whole[0].frames.items()
    assert len(run.frames) == 8
    assert re.fullmatch(reason, problems[0].reason)
    assert "frames are missing, the first is" in problems[1].reason
    samples = take(ShardPairs(shards, 24), 60)
    assert {p for s in samples for p in s["problems"]} == set(problems)
    assert sum(s["source"].startswith(run.clip + " ") for s in samples) >= 10


def test_a_shard_that_is_missing_is_passed_over(shards):
    whole = sources_of(take(ShardPairs(shards, 24), 24))
    lost = {source for source in whole if source in sources_of(take(ShardPairs(shards[:1], 24), 4))}
    Path(shards[0]).unlink()
    samples = take(ShardPairs(shards, 24), 40)
    assert [s for s in whole if s not in lost][:20] == sources_of(samples)[:20]
    problems = [p for s in samples for p in s["problems"]]
    assert set(problems) == {Problem(shards[0], "cannot be read to its end (No such file or directory)")}


def test_a_shard_deleted_while_iterating_is_passed_over(shards):
    stream = iter(ShardPairs(shards, 24))
    first = next(stream)
    for shard in shards[1:]:
        Path(shard).unlink()
    samples = [first, *take(stream, 11)]
    assert {p.path for s in samples for p in s["problems"]} <= set(shards[1:])
    assert len({p.path for s in samples for p in s["problems"]}) >= 4


def rewrite(path, change):
    """The shard with the content of each of its files changed; a file changed to None is left out."""
    with tarfile.open(path) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}
    with open(path, "wb") as file, webdataset.TarWriter(file, encoder=False) as tar:
        for name, data in files.items():
            if (new := change(name, data)) is not None:
                key, _, suffix = name.partition(".")
                tar.write({"__key__": key, suffix: new})


def test_a_jpeg_that_cannot_be_decoded_is_named_and_drawn_anew(shards):
    (run,), _ = read_shard(shards[0])
    bad = sorted(run.frames)[10]
    rewrite(shards[0], lambda name, data: b"broken" if name.endswith(f".{bad:08d}.jpg") else data)
    samples = take(ShardPairs(shards[:1], 24, pairs_per_run=50), 50)
    assert {p for s in samples for p in s["problems"]} == {
        Problem(shards[0], f"{run.key}: frame {bad} is not an image that can be decoded (6 bytes)")
    }
    assert [s["position"] for s in samples] == [(0, 0, i + 1) for i in range(50)]
    assert not any(re.search(rf"frames {bad} |and {bad}$", s["source"]) for s in samples)


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        (b"{", "its json does not describe a run"),
        (b"[]", "its json does not describe a run"),
        (b'{"clip": "c", "fps": NaN, "frames": [0, 1]}', r"does not describe a run \(fps is nan\)"),
        (b'{"clip": "c", "fps": 1e999, "frames": [0, 1]}', r"does not describe a run \(fps is inf\)"),
        (b'{"clip": "c", "fps": 30, "frames": null}', "does not describe a run"),
        (b'{"clip": "c", "frames": [0, 1]}', "has no 'fps'"),
        (
            b'{"clip": "c", "fps": 30, "frames": [700, 800]}',
            "2 of its 2 frames are missing, the first is 700",
        ),
        (b'{"clip": "c", "fps": 30, "frames": []}', "has 0 frames; a pair needs 2"),
        (b"[" * 100_000, "does not describe a run"),
        (None, "has no 'json'"),
    ],
)
def test_a_bad_json_is_named(shards, about, reason):
    (run,), _ = read_shard(shards[0])
    rewrite(shards[0], lambda name, data: about if name.endswith(".json") else data)
    runs, problems = read_shard(shards[0])
    assert runs == []
    assert problems[0].path == shards[0]
    assert re.search(f"^{run.key}: .*{reason}", problems[0].reason)
    with pytest.raises(
        FrameError, match=rf"epoch of 1 shards had not one pair for consumer 0 of 1 .*{run.key}: "
    ):
        take(ShardPairs(shards[:1], 24), 1)


def test_an_epoch_without_a_pair_is_an_error(shards):
    for shard in shards:
        Path(shard).write_bytes(b"")
    with pytest.raises(FrameError, match=r"shard-00000\d\.tar: cannot be read to its end \(empty file\)"):
        take(ShardPairs(shards, 24), 1)


def test_shards_without_a_run_are_an_error(tmp_path):
    webdataset.TarWriter(str(tmp_path / "a.tar")).close()
    with pytest.raises(FrameError, match=r"an epoch of 1 shards had not one pair .*: they hold no run"):
        take(ShardPairs([str(tmp_path / "a.tar")], 24), 1)


def test_consumers_that_take_turns_notice_that_nothing_can_be_decoded(shards):
    for shard in shards:
        rewrite(shard, lambda name, data: b"broken" if name.endswith(".jpg") else data)
    with pytest.raises(
        FrameError, match=r"consumer 5 of 8 .*is not an image that can be decoded \(6 bytes\)"
    ):
        take(ShardPairs(shards, 24, rank=5, ranks=8), 1)


def test_more_consumers_than_pairs_take_turns(shards):
    for rank in range(7):
        (sample,) = take(ShardPairs(shards[:1], 24, rank=rank, ranks=7), 1)
        assert sample["position"][0] == max(0, rank - 3)


# Names of shards


def test_shards_are_found_by_every_name(shards, tmp_path):
    out = tmp_path / "out"
    for source in (out, out / "*.tar", out / "shard-{000000..000005}.tar"):
        assert find_shards([source]) == shards
        assert are_shards([source])
    pipe = f"pipe:cat {out}/shard-{{000000..000005}}.tar"
    assert are_shards([pipe])
    assert find_shards([pipe], allow_commands=True) == [f"pipe:cat {shard}" for shard in shards]
    assert find_shards(["http://host/{a,b}.tar"]) == ["http://host/a.tar", "http://host/b.tar"]
    assert find_shards([shards[3], shards[1]]) == [shards[3], shards[1]]


def test_clips_and_shards_are_told_apart(shards, sources, tmp_path):
    assert not are_shards(sources)
    assert not are_shards([])
    assert not are_shards([tmp_path / "missing"])
    assert are_shards([tmp_path / "missing.tar"])
    with pytest.raises(ValueError, match=r"shard-000000\.tar is shards and .*in is not: train on one kind"):
        are_shards([*sources, shards[0]])


@pytest.mark.parametrize("name", ["none.tar", "none-*.tar", "none-{1..3}.tar", "empty"])
def test_a_name_without_a_shard_is_an_error(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"(none|empty).*: no such shard, nor a folder or pattern"):
        find_shards([tmp_path / name])


def test_a_pipe_gives_what_the_file_gives(shards):
    pipes = find_shards([f"pipe:cat {shard}" for shard in shards], allow_commands=True)
    assert names(take(ShardPairs(pipes, 24), 40)) == names(take(ShardPairs(shards, 24), 40))


def test_a_pipe_that_fails_is_named_and_what_it_sent_is_used(shards):
    pipe = Address(f"pipe:cat {shards[0]}; exit 3")
    runs, problems = read_shard(pipe)
    assert runs == read_shard(shards[0])[0]
    assert problems == [Problem(pipe, "its command ended with status 3")]
    runs, problems = read_shard(Address("pipe:exit 4"))
    assert (runs, len(problems)) == ([], 2)
    assert problems[1].reason == "its command ended with status 4"
    assert (
        read_shard(Address("none://x.tar"))[1][0].reason
        == "cannot be read to its end (none://x.tar: no gopen handler defined)"
    )


def test_the_fingerprint_is_of_names_and_sizes(shards, tmp_path):
    before = fingerprint(shards)
    assert before.startswith("6 shards ")
    (tmp_path / "out").rename(tmp_path / "moved")
    moved = find_shards([tmp_path / "moved"])
    assert fingerprint(moved) == before
    assert fingerprint(moved[:5]) != before
    cut(moved[2])
    assert fingerprint(moved) != before
    assert fingerprint([Address("pipe:" + "x" * 5000)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shards": []}, "shards is empty"),
        ({"delta": (0, 3)}, r"delta=\(0, 3\)"),
        ({"pairs_per_run": 0}, "pairs_per_run=0; it must be at least 1"),
        ({"rank": 2, "ranks": 2}, r"rank=2 of ranks=2; it must be in \[0, ranks\)"),
        ({"start": {0: (0, 6, 0)}}, r"start\[0\]=\(0, 6, 0\); it must be \(epoch, shard below 6, pair\)"),
    ],
)
def test_bad_settings_of_pairs_are_named(shards, settings, message):
    with pytest.raises(ValueError, match=message):
        ShardPairs(**({"shards": shards, "size": 24} | settings))
