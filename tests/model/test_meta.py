"""Two levels of learning: inner steps, the gradient through them, tasks, and the auxiliary losses, against formulas."""

import importlib
import math

import pytest
import torch
import torch.nn.functional as F

from micron_kernels import _implementation
from micron_kernels.testing import assert_within_rounding
from micron_model.recognizers.alignment import Contrastive
from micron_model.recognizers.meta import (
    Branches,
    Subjects,
    cosine_of,
    descend,
    gradients_of,
    tasks_of_epoch,
)
from micron_model.recognizers.micron_bert import MicronBERTRecognizer

ops = importlib.import_module("micron_kernels.diagonal_attention.ops")  # a function hides its package
CLASSES = ("happiness", "surprise", "disgust")


def scalar(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def test_an_inner_step_and_the_outer_gradient_are_those_of_the_written_out_formula():
    """p_S = (a·x + b − y)², a_S = c·a²/2, λ; p_Q = (a'·u + b' − v)² at a' = a − α ∂, b' = b − β ∂."""
    x, y, u, v, c, weight = 1.5, 0.3, -0.7, 0.9, 0.8, 0.4
    a, b, alpha, beta = scalar(0.6), scalar(-0.2), scalar(0.1), scalar(0.05)

    def losses(at):
        return (at["a"] * x + at["b"] - y) ** 2, c * at["a"] ** 2 / 2

    for second_order in (True, False):
        moved, (taken,) = descend(
            losses, {"a": a, "b": b}, {"a": alpha, "b": beta}, steps=1, weight=weight, shared={"a"},
            second_order=second_order,
        )  # fmt: skip
        found = torch.autograd.grad((moved["a"] * u + moved["b"] - v) ** 2, [a, b, alpha, beta])
        residual = 0.6 * x - 0.2 - y
        of_a, of_b = 2 * residual * x + weight * c * 0.6, 2 * residual
        a1, b1 = 0.6 - 0.1 * of_a, -0.2 - 0.05 * of_b
        outer = 2 * (a1 * u + b1 - v)
        curved = float(second_order)
        expected = [
            outer * (u * (1 - curved * 0.1 * (2 * x * x + weight * c)) - curved * 0.05 * 2 * x),
            outer * (-curved * u * 0.1 * 2 * x + 1 - curved * 0.05 * 2),
            -outer * u * of_a,
            -outer * of_b,
        ]
        assert [float(moved[name].detach()) for name in "ab"] == pytest.approx([a1, b1], rel=1e-14)
        assert [float(x) for x in found] == pytest.approx(expected, rel=1e-13)
        assert float(taken.measured["gradient cosine"]) == math.copysign(1, residual * x * c * 0.6)


def test_the_cosine_is_of_the_shared_layers_alone_and_what_is_beside_has_its_own_gradient():
    shared, head, beside = torch.tensor([1.0, 2.0]), torch.tensor([3.0]), torch.tensor([0.5])
    for tensor in (shared, head, beside):
        tensor.requires_grad_()
    primary, auxiliary = shared[0] + 5 * head.sum(), (shared.sum() * beside).sum()
    found = gradients_of(
        primary, auxiliary, {"shared": shared, "head": head}, weight=2.0, beside=[beside], shared={"shared"}
    )
    assert [g.tolist() for g in found.joint] == [[2.0, 1.0], [5.0]]
    assert [g.tolist() for g in found.beside] == [[3.0]]
    assert float(found.measured["gradient cosine"]) == pytest.approx(math.sqrt(0.5))
    assert cosine_of([torch.zeros(2)], [torch.ones(2)]) == 0


@pytest.fixture
def bilevel(small, pair):
    """A function: the query loss after two inner steps of a small μ-BERT, and what it depends on."""

    def make(dtype):
        torch.manual_seed(0)
        recognizer = MicronBERTRecognizer.from_pretrained_backbone(
            small(tied_start=True), CLASSES, regions=2
        ).to(dtype)
        alignment = Contrastive(2 * 2 * 32).to(dtype)
        values = torch.stack([recognizer.backbone.normalize(frames).to(dtype) for frames in pair], 1)
        labels, macro = torch.tensor([0, 1, 2, 1]), torch.tensor([1, 2])
        parameters = dict(recognizer.named_parameters())
        inner = [name for names in recognizer.layers_from_the_top()[:3] for name in names]
        rate = torch.tensor(1e-2, dtype=dtype, requires_grad=True)
        branches = Branches(recognizer)

        def query_loss():
            def losses(at):
                logits, features = branches.at(at, values, 2)
                return F.cross_entropy(logits, labels[:2]), alignment(
                    features[:2], labels[:2], features[2:], macro
                )

            moved, _ = descend(
                losses, parameters, dict.fromkeys(inner, rate), steps=2, weight=0.5, second_order=True
            )
            return F.cross_entropy(branches.at(moved, values[2:], 2)[0], labels[2:])

        return query_loss, parameters, rate

    return make


def test_the_outer_gradient_of_a_small_model_is_that_of_finite_differences(bilevel):
    query_loss, parameters, rate = bilevel(torch.float64)
    tensors = [*parameters.values(), rate]
    gradients = torch.autograd.grad(query_loss(), tensors)
    assert all(g.abs().max() > 0 for g in gradients if g.numel() > 32)
    generator = torch.Generator().manual_seed(0)
    for chosen in (tensors, [rate]):
        directions = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in chosen]
        norm = torch.cat([d.flatten() for d in directions]).norm()
        directions = [d / norm for d in directions]
        grads = [gradients[[x is t for t in tensors].index(True)] for x in chosen]
        expected = sum((g * d).sum() for g, d in zip(grads, directions, strict=True))
        step, ends = 2e-5, []
        for sign in (1, -1):
            with torch.no_grad():
                for x, d in zip(chosen, directions, strict=True):
                    x.add_(sign * step * d)
            ends.append(float(query_loss().detach()))
            with torch.no_grad():
                for x, d in zip(chosen, directions, strict=True):
                    x.sub_(sign * step * d)
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(expected), rel=1e-5)


def test_second_order_by_native_kernels_is_that_of_the_reference_within_rounding(bilevel, monkeypatch):
    if "native" not in ops.IMPLEMENTATIONS:
        pytest.skip("the extension is not built")

    def gradients(dtype):
        query_loss, parameters, rate = bilevel(dtype)
        return torch.autograd.grad(query_loss(), [*parameters.values(), rate])

    native = gradients(torch.float32)
    monkeypatch.setattr(_implementation, "ORDER", {"cpu": ("reference", "native")})
    monkeypatch.setattr(ops._choose, "_chosen", {})
    reference, oracle = gradients(torch.float32), gradients(torch.float64)
    flat = [torch.cat([g.flatten() for g in found]) for found in (native, reference, oracle)]
    assert_within_rounding("outer gradient", flat[0], flat[2], plain_error=flat[1].double() - flat[2])


# Tasks


def test_a_task_has_other_clips_on_both_sides_and_an_epoch_has_every_clip_once():
    subjects = ["a"] * 23 + ["b"] * 4 + ["c"] * 2
    labels = torch.tensor([0] * 12 + [1] * 11 + [0, 1, 0, 2] + [0, 1])
    tasks = tasks_of_epoch(Subjects.of(subjects), labels, 8, torch.Generator().manual_seed(0))
    assert sorted(i for _, *sides in tasks for side in sides for i in side) == list(range(29))
    assert sorted(name for name, *_ in tasks) == ["a"] * 3 + ["b", "c"]
    for name, support, query in tasks:
        assert {subjects[i] for i in (*support, *query)} == {name}
        assert 0 < len(support) - len(query) + 2 <= 3
        if name == "a":
            assert len(support) + len(query) <= 8
            assert {int(labels[i]) for i in support} == {int(labels[i]) for i in query} == {0, 1}
    again = tasks_of_epoch(Subjects.of(subjects), labels, 8, torch.Generator().manual_seed(0))
    assert tasks == again
    assert tasks != tasks_of_epoch(Subjects.of(subjects), labels, 8, torch.Generator().manual_seed(1))


def test_a_single_clip_of_a_class_is_as_often_on_either_side():
    subjects, labels = Subjects.of("aaa"), torch.tensor([0, 0, 1])
    generator = torch.Generator().manual_seed(0)
    tasks = [tasks_of_epoch(subjects, labels, 16, generator)[0] for _ in range(200)]
    assert 70 < sum(2 in query for _, _, query in tasks) < 130


@pytest.mark.parametrize(
    ("subjects", "tasks", "joined"),
    [
        ("aabbc", {"aa", "bbc"}, 2),
        ("aaabcd", {"aaa", "bcd"}, 3),
        ("ab", {"ab"}, 2),
        ("aabb", {"aa", "bb"}, 0),
    ],
)
def test_a_subject_who_cannot_make_a_task_is_joined_with_others_and_counted(subjects, tasks, joined):
    found = Subjects.of(subjects)
    made = {"".join(sorted(subjects[i] for i in clips)) for clips in found.clips.values()}
    assert (len(made), found.joined) == (len(tasks), joined)
    assert sorted(map(len, made)) == sorted(map(len, tasks))


def test_one_clip_makes_no_task():
    with pytest.raises(ValueError, match="1 clips; a task needs two"):
        Subjects.of("a")


# Auxiliary losses


@torch.no_grad()
def test_the_contrastive_loss_is_its_formula():
    torch.manual_seed(0)
    alignment = Contrastive(6).double()
    micro, macro = torch.randn(3, 6).double(), torch.randn(4, 6).double()
    labels, targets = torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1, 3])
    z, w = (F.normalize(alignment.projection(x), dim=1) for x in (micro, macro))
    total = 0.0
    for i, positives in ((0, [0]), (1, [1, 2])):  # no macro clip is of class 2
        shares = [math.exp(float(z[i] @ w[j]) / 0.1) for j in range(4)]
        total -= sum(math.log(shares[j] / sum(shares)) for j in positives) / len(positives)
    assert float(alignment(micro, labels, macro, targets)) == pytest.approx(total / 2, rel=1e-12)
    assert float(alignment(micro[2:], labels[2:], macro, targets)) == 0
