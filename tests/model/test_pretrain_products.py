"""Pre-training multiplies as it did before it was stopped, and all its ranks alike."""

import pytest
from rich.console import Console

from micron_model.models import products
from micron_model.training import (
    checkpoint,
    pretrain,
)
from micron_model.training.distributed import Ranks
from micron_model.training.run import Run

QUIET = Console(quiet=True)


@pytest.fixture
def choices(monkeypatch):
    """What this process has chosen to multiply with, as a dictionary that a test may change."""
    monkeypatch.delenv("MICRON_PRODUCTS")
    monkeypatch.setattr(products, "_choices", {})
    return products._choices


def test_a_resumed_run_multiplies_as_before(training, small_config, clips, tmp_path, choices, capsys):
    def resume():
        pretrain(training(steps=2), small_config, clips, tmp_path, resume=True, console=Console(width=400))
        return capsys.readouterr().out

    products.use({"attention": "matrices", "linear": "torch"}, "the test")
    pretrain(training(steps=2), small_config, clips, tmp_path, console=QUIET)
    choices.clear()
    products.use({"attention": "flash"}, "the test")
    assert "products" not in resume()
    assert products.choices() == {"attention": "matrices", "linear": "torch"}
    content = checkpoint.load(tmp_path / "checkpoint.pt")
    content["products"]["processor"] = "another processor"
    checkpoint.save(tmp_path / "checkpoint.pt", content)
    choices.clear()
    assert "attention=matrices, linear=torch, kept from another processor, where this run was" in resume()
    assert products.chosen("attention") == "matrices"


def test_a_run_that_cannot_multiply_as_before_says_so(
    training, small_config, clips, tmp_path, choices, capsys, monkeypatch
):
    products.use({"attention": "matrices"}, "the test")
    pretrain(training(steps=2), small_config, clips, tmp_path, console=QUIET)
    monkeypatch.setenv("MICRON_PRODUCTS", "attention=flash")
    choices.clear()
    pretrain(training(steps=2), small_config, clips, tmp_path, resume=True, console=Console(width=400))
    assert (
        "attention=flash as MICRON_PRODUCTS says, not matrices: the losses will differ"
        in capsys.readouterr().out
    )
    assert products.chosen("attention") == "flash"


class OneOfTwo(Ranks):
    """A rank whose neighbour's part in what is gathered is known: that of rank 0 for rank 1."""

    def __init__(self, rank, chosen_by_first):
        super().__init__(rank, 2)
        object.__setattr__(self, "chosen_by_first", chosen_by_first)

    def gather(self, value):
        return [self.chosen_by_first if value == {} else value, value]


def test_ranks_multiply_as_the_first_of_them(training, small_config, clips, tmp_path, choices, monkeypatch):
    first = dict.fromkeys(products.PRODUCTS, "torch") | {"attention": "matrices"}
    products.use({"attention": "flash"}, "measured by rank 1")
    run = Run(training(), small_config, clips, tmp_path, OneOfTwo(1, first))
    run.agree_on_products()
    assert products.choices() == first
    monkeypatch.setenv("MICRON_PRODUCTS", "attention=flash")
    with pytest.raises(
        ValueError, match=r"cannot multiply alike \(rank 0: attention=flash as .* not matrices"
    ):
        run.agree_on_products()
