"""Files of the right form that a run goes on from, with other content: refused with their path, or made again."""

import csv
import os
import socket
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from made_up import expression
from micron_model.data import find_clips
from micron_model.resumable import Claimed, claimed
from micron_model.training import CheckpointError, PretrainConfig, pretrain
from micron_model.whole_file import write_whole
from writers import grey, write_images


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of two steps, its settings and clips."""
    folder = tmp_path_factory.mktemp("run")
    clips, _ = find_clips([write_images(folder / "clip", grey(20))])
    return folder, clips


def settings_of(small_config, **changes):
    config = PretrainConfig(
        **({"steps": 2, "batch_size": 2, "checkpoint_every": 1, "workers": 0, "device": "cpu"} | changes)
    )
    return config, small_config


@pytest.fixture
def checkpoint(stopped, small_config, tmp_path):
    """The path of a checkpoint, and a function that goes on from it."""
    _, clips = stopped
    config, model = settings_of(small_config)
    out = tmp_path / "out"
    pretrain(config, model, clips, out)
    return out / "checkpoint.pt", lambda: pretrain(config, model, clips, out, resume=True)


def change(name, value):
    def apply(content):
        content[name] = value

    return apply


def spoil_model(content):
    next(iter(content["model"].values()))[..., 0] = float("nan")


def without_a_weight(content):
    del content["model"][next(iter(content["model"]))]


def half(content):
    content["model"] = {n: x.half() for n, x in content["model"].items()}


def expanded(content):
    name, x = next(iter(content["model"].items()))
    content["model"][name] = torch.zeros(1).expand(x.shape)


def moments(value):
    def apply(content):
        content["optimizer"]["state"][0]["exp_avg"] = value

    return apply


def spoil_moment(name, spoil):
    def apply(content):
        moments = content["optimizer"]["state"][0]
        moments[name] = spoil(moments[name])

    return apply


def without_a_moment(content):
    del content["optimizer"]["state"][0]["exp_avg_sq"]


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (change("step", -1), "step is -1; it must lie in"),
        (change("step", 10**9), "step is 1000000000"),
        (change("step", True), "step is True"),
        (change("step", "2"), "step is '2'"),
        (change("skipped_in_a_row", 1.5), "skipped_in_a_row is 1.5"),
        (change("positions", {0: (0, -1, 0)}), "positions has 0"),
        (change("positions", [1]), "no checkpoint of this run"),
        (change("settings", {}), "no checkpoint of this run"),
        (change("settings", []), "no checkpoint of this run"),
        (change("model", {}), "does not hold the weights of this model: missing: "),
        (change("model", 3), "no checkpoint of this run"),
        (change("optimizer", {}), "no checkpoint of this run"),
        (
            change("optimizer", {"state": {99999: {}}, "param_groups": []}),
            "the optimizer knows no parameter 99999",
        ),
        (change("products", 3), "its products are none"),
        (spoil_model, "NaN or infinity"),
        (without_a_weight, "missing: "),
        (half, "is F16, not F32"),
        (expanded, "holds less"),
        (moments(torch.zeros(7)), "does not fit, is not finite, or negative"),
        (moments(torch.zeros(())), "does not fit"),
        (spoil_moment("exp_avg", lambda x: x * float("nan")), "does not fit, is not finite"),
        (spoil_moment("exp_avg", lambda x: x.double()), "does not fit"),
        (spoil_moment("exp_avg_sq", lambda x: x - 1), "does not fit, is not finite, or negative"),
        (spoil_moment("step", lambda x: x - 100), "does not fit, is not finite, or negative"),
        (without_a_moment, "the optimizer holds step, exp_avg of parameter 0"),
        (moments(3), "no checkpoint of this run"),
    ],
)
def test_a_checkpoint_with_other_content_is_refused(checkpoint, tamper, message):
    path, go_on = checkpoint
    content = torch.load(path, weights_only=True)
    tamper(content)
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"checkpoint\.pt: .*{message}"):
        go_on()


@pytest.mark.parametrize("line", ["[]", "3", "{}", '{"step": "a"}', "[" * 100_000, "\udcff", '{"step": 1'])
def test_a_log_with_other_content_is_gone_on_with(checkpoint, line):
    path, go_on = checkpoint
    log = path.parent / "log.jsonl"
    before = log.read_text()
    log.write_bytes(f"{line}\n{before}".encode(errors="surrogateescape"))
    go_on()
    assert log.read_text() == before


def test_a_place_beyond_the_shards_is_named_with_the_checkpoint(shards, small_config, tmp_path):
    config, model = settings_of(small_config)
    out = tmp_path / "run"
    pretrain(config, model, shards, out)
    content = torch.load(out / "checkpoint.pt", weights_only=True)
    content["positions"] = {0: (0, len(shards), 0)}
    torch.save(content, out / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: .*positions has 0: \(0, 6, 0\)"):
        pretrain(config, model, shards, out, resume=True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes what POSIX has")
@pytest.mark.parametrize("kind", ["symbolic link", "dangling link", "hard link", "pipe"])
def test_a_lock_that_leads_elsewhere_costs_nothing(tmp_path, kind):
    precious, lock = tmp_path / "precious", tmp_path / "out" / ".lock"
    lock.parent.mkdir()
    if kind == "dangling link":
        lock.symlink_to(precious)
    elif kind == "pipe":
        os.mkfifo(lock)
    else:
        precious.write_text("mine")
        (lock.symlink_to if kind == "symbolic link" else lock.hardlink_to)(precious)
    with pytest.raises(Claimed, match=r"\.lock: is no lock"), claimed(lock.parent):
        pass
    assert not precious.exists() or precious.read_text() == "mine"


def test_a_temporary_name_that_leads_elsewhere_costs_nothing(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    writer = f"{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}"
    (tmp_path / f".file.{writer}.part").symlink_to(precious)
    write_whole(tmp_path / "file", "ours")
    assert (precious.read_text(), (tmp_path / "file").read_text()) == ("mine", "ours")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes what POSIX has")
def test_features_in_a_pipe_are_none(tmp_path):
    from micron_model.evaluation.evaluator import features_in

    os.mkfifo(tmp_path / "features.npy")
    assert features_in(tmp_path) is None


def test_the_settings_of_an_optimizer_are_those_of_the_run(checkpoint):
    path, go_on = checkpoint
    content = torch.load(path, weights_only=True)
    for group in content["optimizer"]["param_groups"]:
        group |= {"maximize": True, "betas": (0.0, 0.0), "weight_decay": 100.0}
    torch.save(content, path)
    go_on()


def test_an_epoch_of_folds_is_of_the_run_that_asks(tmp_path):
    from micron_model.evaluation.config import EvaluateConfig
    from micron_model.evaluation.evaluator import _features_path, features_in
    from micron_model.evaluation.folds import Job, finished, path_of
    from micron_model.evaluation.predictions import Prediction, Predictions, write_predictions
    from micron_model.evaluation.protocols import loso
    from micron_model.evaluation.task import Task

    expressions = [expression(subject=f"sub{i:02d}", name=f"clip{i}") for i in range(1, 4)]
    labels, classes = ["a", "b", "a"], ("a", "b")
    folds = loso(expressions)
    task = Task(expressions, labels, classes, folds, {})
    job, config = Job("model", 0, 0), EvaluateConfig()
    (i,) = folds[0].test
    e = expressions[i]
    right = Prediction(e.dataset, e.subject, e.name, labels[i], "a", (1.0, 0.0), folds[0].name, 0, "last")
    path = path_of(tmp_path, job, task)
    assert finished(tmp_path, job, task, config) is None
    for changed in (
        {},
        {"clip": "other"},
        {"seed": 1},
        {"fold": "casme2/2"},
        {"truth": "b"},
        {"selection": "inner"},
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_predictions(path, Predictions(classes, (replace(right, **changed),)))
        if changed:
            with pytest.raises(ValueError, match=r"\.csv: holds .*delete it to do the fold again"):
                finished(tmp_path, job, task, config)
        else:
            assert finished(tmp_path, job, task, config) == [right]
    with open(path, newline="") as file:
        header, *_ = csv.reader(file)
    path.write_text(",".join(header) + "\n")
    with pytest.raises(ValueError, match=r"\.csv: there is no prediction"):
        finished(tmp_path, job, task, config)
    for content in (np.zeros(3), np.zeros((3, 2), np.float64), np.array([{}], object)):
        np.save(_features_path(tmp_path, "model"), content, allow_pickle=True)
        assert features_in(tmp_path) is None
