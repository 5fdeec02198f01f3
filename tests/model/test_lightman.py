"""lightman as a recognizer: trained in two levels, beside macro-expressions; saved, adapted, refused."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from made_up import expression
from micron_model.cli import main
from micron_model.data.databases.corpus import Corpus
from micron_model.evaluation.evaluator import EvaluateConfig, evaluate
from micron_model.evaluation.history import read_histories
from micron_model.evaluation.outputs import write_outputs
from micron_model.evaluation.protocols import loso
from micron_model.evaluation.task import Task, finetune
from micron_model.loading import load_recognizer
from micron_model.recognizers.base import Examples, MacroExamples
from micron_model.recognizers.fitting import logits_of
from micron_model.recognizers.flow import FlowRecipe
from micron_model.recognizers.lightman import HARMS, BiLevel, LightmanOverSLSTT, LightmanRecipe
from micron_model.recognizers.micron_bert import MicronBERTRecipe, start_from

CLASSES = ("negative", "positive", "surprise")


def lightman(epochs=2, precision="auto", balance="loss", **settings):
    wrapped = MicronBERTRecipe(epochs=epochs, batch_size=8, regions=2, precision=precision, balance=balance)
    return LightmanRecipe(wrapped, **settings)


@pytest.fixture
def start(small):
    return start_from(small(tied_start=True), Corpus(()))


def clips(count, size=32):
    """(n, 2, 3, S, S): an onset, and an apex of which one of three parts is brighter."""
    generator = torch.Generator().manual_seed(count)
    pairs = torch.randint(0, 200, (count, 1, 3, size, size), dtype=torch.uint8, generator=generator)
    pairs = pairs.repeat(1, 2, 1, 1, 1)
    for i in range(count):
        row = 8 * (i % 3)
        pairs[i, 1, :, row : row + 8] += 50
    return pairs


@pytest.fixture
def train():
    """Twelve clips of three subjects, beside six of macro-expressions."""
    labels = torch.tensor([0, 1, 2] * 4)
    macro = MacroExamples(clips(6), labels[:6], ["m1"] * 3 + ["m2"] * 3)
    return Examples(clips(12), labels, ["casme2/1"] * 3 + ["casme2/2"] * 4 + ["casme2/3"] * 5, macro=macro)


def weights_of(recipe, start, train, seed=0):
    recognizer = recipe.build(start, CLASSES, seed=0)
    recipe.fit(recognizer, train, seed=seed)
    return torch.cat([p.detach().flatten() for p in recognizer.parameters()]), recognizer


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"order": "first"},
        {"inner_steps": 0},
        {"macro": None},
    ],
)
@pytest.mark.filterwarnings("ignore:lightman. for 3 epochs")
def test_its_losses_fall_and_are_measured_each_epoch(start, train, settings):
    recipe = lightman(epochs=8, **settings)
    recipe.wrapped.learning_rate, recipe.wrapped.shift, recipe.wrapped.flip = 3e-3, 0, False
    aligned = "macro" not in settings
    _, recognizer = weights_of(recipe, start, train if aligned else train._replace(macro=None))
    assert len(recognizer.history) == 8
    losses = {"loss"} if settings.get("inner_steps") == 0 else {"query loss", "support loss"}
    auxiliary = {"auxiliary loss", "gradient cosine"} if aligned else set()
    assert recognizer.history[0].keys() == losses | auxiliary
    for name in losses:
        assert recognizer.history[-1][name] < recognizer.history[0][name]
    as_they_started = recognizer.config.inner_rates == pytest.approx((1e-2, 1e-2), rel=1e-6)
    assert as_they_started == (settings.get("inner_steps") == 0)


def test_the_same_seed_gives_the_same_weights_whatever_the_global_generator(start, train):
    recipe = lightman(epochs=1)
    torch.manual_seed(1)
    first, _ = weights_of(recipe, start, train)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    again, _ = weights_of(recipe, start, train)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, weights_of(recipe, start, train, seed=1)[0])


def test_the_orders_differ_and_so_do_trainings_with_and_without_macro_expressions(start, train):
    found = [
        weights_of(recipe, start, examples)[0]
        for recipe, examples in (
            (lightman(epochs=1), train),
            (lightman(epochs=1, order="first"), train),
            (lightman(epochs=1), train._replace(macro=None)),
        )
    ]
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_an_outer_step_is_of_the_loss_before_inner_steps_and_of_that_of_other_clips_after_them(start, train):
    recipe = lightman(inner_rate=1e-30, balance="off")
    recipe.wrapped.shift, recipe.wrapped.flip, recipe.wrapped.brightness = 0, False, 0
    recognizer = recipe.build(start, CLASSES, seed=0)
    training = BiLevel(recipe, recognizer, train._replace(macro=None), torch.Generator())
    training._two_levels([0, 1], [4, 5, 6], 2)
    found = [p.grad.clone() for p in recognizer.parameters()]
    recognizer.zero_grad()
    for chosen in ([0, 1], [4, 5, 6]):
        logits = recognizer(recipe.wrapped.augment(recognizer, train.values[chosen], torch.Generator()))
        (torch.nn.functional.cross_entropy(logits, train.labels[chosen]) / 2).backward()
    for ours, p in zip(found, recognizer.parameters(), strict=True):
        torch.testing.assert_close(ours, p.grad, rtol=1e-4, atol=1e-6)


def test_mixed_precision_is_near_fp32(start, train):
    exact, rounded = (
        weights_of(lightman(epochs=1, precision=p), start, train)[1].history[0] for p in ("fp32", "bf16")
    )
    assert 0 < abs(exact["query loss"] - rounded["query loss"]) < 0.05 * exact["query loss"]


def test_remarks_count_joined_subjects_and_say_that_nothing_is_aligned(train):
    few = train._replace(subjects=["a"] * 10 + ["b", "c"], macro=None)
    joined, off = lightman().remarks(few)
    assert "2 of 3 subjects share one task" in joined
    assert "no clips of macro-expressions (--macro), so the auxiliary loss is off" in off
    assert lightman().remarks(train) == []


def test_an_auxiliary_task_that_harms_is_said(start, train, monkeypatch):
    for cosines, said in (([-0.1, -0.2, -0.1], True), ([-0.1, 0.2, -0.1, -0.1], False)):
        rows = iter(cosines)
        monkeypatch.setattr(
            "micron_model.recognizers.lightman.BiLevel.epoch",
            lambda self, number, rows=rows: {"gradient cosine": next(rows)},
        )
        recipe = lightman(epochs=len(cosines))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            weights_of(recipe, start, train)
        assert (HARMS in [str(w.message) for w in caught]) == said


# Adapting


def test_an_adaptation_is_gradient_descent_on_the_last_layers_of_a_copy(start, train):
    recipe = MicronBERTRecipe(regions=2, adapt_rate=1e-2)
    recognizer = recipe.build(start, CLASSES, seed=0).eval()
    before = {name: p.clone() for name, p in recognizer.named_parameters()}
    few = train.at([0, 4])
    found = dict(recipe.adapt(recognizer, few, steps=2, seed=0).named_parameters())
    expected = recipe.build(start, CLASSES, seed=0).eval()
    head, block, *_ = expected.layers_from_the_top()
    last = [p for name, p in expected.named_parameters() if name in (*head, *block)]
    for _ in range(2):
        loss = torch.nn.functional.cross_entropy(expected(few.values), few.labels)
        gradients = torch.autograd.grad(loss, last)
        with torch.no_grad():
            for p, g in zip(last, gradients, strict=True):
                p.sub_(1e-2 * g)
    for name, p in expected.named_parameters():
        torch.testing.assert_close(found[name], p)
        assert torch.equal(before[name], dict(recognizer.named_parameters())[name])


def test_a_saved_one_is_loaded_by_its_name_and_adapts_by_what_it_learned(start, train, tmp_path):
    task = Task(
        [expression(subject=f"sub{i % 3 + 1:02d}", name=str(i)) for i in range(12)],
        [CLASSES[i % 3] for i in range(12)], CLASSES, [], {lightman().clip_input(start).key: train.values},
    )  # fmt: skip
    trained = finetune(task, lightman(), start)
    trained.save_pretrained(tmp_path)
    loaded = load_recognizer(tmp_path)
    assert loaded.config.recognizer == "lightman"
    assert loaded.config.inner_rates == trained.config.inner_rates
    adapted = [LightmanRecipe().adapt(r, train.at([0, 1]), steps=1, seed=0) for r in (trained, loaded)]
    results = [logits_of(r, train.values) for r in adapted]
    assert torch.equal(*results)
    assert not torch.equal(results[0], logits_of(loaded, train.values))


def test_adaptations_that_cannot_be_are_refused(start, train):
    recipe = MicronBERTRecipe(regions=2)
    recognizer = recipe.build(start, CLASSES, seed=0).eval()
    with pytest.raises(ValueError, match="no labelled clip to adapt to"):
        recipe.adapt(recognizer, train.at([]), steps=1, seed=0)
    with pytest.raises(ValueError, match="steps=-1; it must be at least 0"):
        recipe.adapt(recognizer, train, steps=-1, seed=0)
    with pytest.raises(ValueError, match="adaptation diverges: after step 1 of 2, with rates of up to 1e"):
        replace(recipe, adapt_rate=1e9).adapt(recognizer, train, steps=2, seed=0)
    with pytest.raises(ValueError, match="no inner rates: lightman did not train it"):
        lightman().adapt(recognizer, train, steps=1, seed=0)
    with pytest.raises(ValueError, match="flow takes no gradient steps"):
        FlowRecipe().adapt(FlowRecipe().build(start, CLASSES, seed=0), train, steps=1, seed=0)


# Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inner_steps": 6}, r"inner_steps=6; it must lie in \[0, 5\]"),
        ({"inner_rate": 0.0}, "inner_rate=0.0; it must be positive and finite"),
        ({"inner_rate": float("inf")}, "inner_rate=inf; it must be positive and finite"),
        ({"align_weight": float("nan")}, "align_weight=nan; it must be positive and finite"),
        ({"task_clips": 2}, "task_clips=2; it must be at least 3"),
        ({"balance": "sampling"}, "balance='sampling'; lightman draws clips by subject"),
        ({"wrapped": MicronBERTRecipe(freeze="encoder")}, "features of micron-bert, which are frozen"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        LightmanRecipe(**settings) if "wrapped" in settings else lightman(**settings)


def test_a_rate_that_diverges_is_stopped_with_step_and_task(start, train):
    with pytest.raises(
        ValueError,
        match=r"diverges at step 1 \(epoch 1\), task casme2/\d: the query loss is .*inner rates of up to 1e\+06",
    ):
        weights_of(lightman(inner_rate=1e6), start, train)


def test_macro_clips_that_cannot_be_aligned_with_are_refused(start, train):
    none = MacroExamples(clips(0), torch.zeros(0, dtype=torch.int64), [])
    with pytest.raises(ValueError, match="no clip of a macro-expression"):
        weights_of(lightman(), start, train._replace(macro=none))


# A whole evaluation


def test_an_evaluation_goes_on_exactly_and_its_report_shows_the_trainings(start, train, tmp_path):
    expressions = [expression(subject=f"sub{i % 3 + 1:02d}", name=str(i)) for i in range(12)]
    recipe = lightman(epochs=1)
    values = {recipe.clip_input(start).key: train.values}
    task = Task(
        expressions, [CLASSES[i % 3] for i in (0, 1, 2, 1, 2, 0) * 2], CLASSES, loso(expressions), values
    )
    config, quiet = EvaluateConfig(seeds=1, shuffled=False, baselines=()), Console(quiet=True)
    first = evaluate(task, recipe, start, config, tmp_path, workers=1, console=quiet)
    (lost, *_), kept = sorted((tmp_path / "folds").rglob("*.csv")), {}
    for path in (lost, tmp_path / "epochs" / lost.relative_to(tmp_path / "folds")):
        kept[path] = path.read_bytes()
        path.unlink()
    assert evaluate(task, recipe, start, config, tmp_path, workers=1, console=quiet) == first
    assert all(path.read_bytes() == content for path, content in kept.items())
    histories = read_histories(tmp_path / "epochs" / "model-0")
    assert [sorted(h) for h in histories] == [["query loss", "support loss"]] * 3
    page = write_outputs(tmp_path, task, recipe, start, first, config, about={"protocol": "loso"})
    assert "Mean over the 3 trainings" in page.read_text()


def test_its_settings_and_those_of_what_it_wraps_are_on_the_command_line(capsys):
    for name, wrapped in (("lightman", "--layer-decay"), ("lightman-slstt", "--aggregator")):
        with pytest.raises(SystemExit) as ended:
            main(["evaluate", "--recognizer", name, "--help"])
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        assert all(o in shown for o in ("--macro", "--align-weight", "--inner-rate", "--order", wrapped))


def test_over_slstt_with_a_trained_encoder(train):
    recipe = LightmanOverSLSTT()
    recipe.wrapped.epochs = 1
    images = torch.randint(0, 256, (4, 11, 3, 64, 64), dtype=torch.uint8)
    examples = Examples(images, train.labels[:4], ["a", "a", "b", "b"])
    recognizer = recipe.build(recipe.start(), CLASSES, seed=0)
    before = recognizer.network.encoder.patch_embed.weight.clone()
    recipe.fit(recognizer, examples, seed=0)
    assert not torch.equal(before, recognizer.network.encoder.patch_embed.weight)
    assert json.loads(json.dumps(recipe.settings()))["aggregator"] == "lstm"
