"""How a tile is chosen: by timing once, on disk, and never by the length of the sequence."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

_triton = pytest.importorskip("micron_kernels._triton")
Tile = _triton.Tile
TILES = [Tile(64, 64, 32), Tile(128, 64, 32, num_warps=8, num_stages=2)]


@pytest.fixture
def machine(monkeypatch):
    """A GPU on which the second tile is always the faster one; what was timed and what was launched there."""
    seen = SimpleNamespace(timed=[], launched=[], capturing=False)

    def autotune(configs, key, cache_results):
        assert cache_results, "the winner must be kept on disk"

        def decorate(kernel):
            tuner = SimpleNamespace(best_config=configs[1])

            def run(*arguments, **constants):
                seen.timed.append((key, constants))

            return type(
                "Tuner", (), {"__getitem__": lambda self, grid: run, "best_config": tuner.best_config}
            )()

        return decorate

    monkeypatch.setattr(_triton.triton, "autotune", autotune)
    monkeypatch.setattr(
        _triton,
        "launch",
        lambda kernel, grid, *arguments, **constants: seen.launched.append((grid, constants)),
    )
    monkeypatch.setattr(_triton, "_fastest", {})
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: seen.capturing)
    return seen


kernel = SimpleNamespace(fn="kernel")


def call(length, dtype=torch.bfloat16, width=512, tiles=TILES):
    x = torch.empty(length, width, dtype=dtype, device="meta")
    _triton.launch_tiled(kernel, lambda block: -(-length // block), tiles, x, length, WIDTH=width)


def test_the_winner_is_timed_once_whatever_the_length(machine):
    for length in (784, 3136, 17):
        call(length)
    assert [key for key, _ in machine.timed] == [["WIDTH"]]
    assert [grid for grid, _ in machine.launched] == [(25,), (1,)]
    assert all(constants["num_warps"] == 8 for _, constants in machine.launched)


def test_another_width_or_dtype_is_timed_anew(machine):
    call(784)
    call(784, width=64)
    call(784, dtype=torch.float16)
    assert len(machine.timed) == 3


def test_a_capture_takes_the_first_tile_and_forgets_it(machine):
    machine.capturing = True
    call(784)
    machine.capturing = False
    call(784)
    assert [constants["BLOCK_M"] for _, constants in machine.launched] == [64]
    assert len(machine.timed) == 1


def test_one_tile_is_not_timed(machine):
    call(784, tiles=TILES[:1])
    assert not machine.timed
    assert machine.launched == [((13,), {"WIDTH": 512, **vars(TILES[0])})]
