"""What a model's card says, and that nothing in it is what others wanted it to be."""

import hashlib
import json
import re

import pytest

from micron_model import pretrain
from micron_model.model_card import Training, digest
from micron_model.recognizers.flow import FlowRecognizer, FlowRecognizerConfig

NASTY = "<script>x</script>`\n```\n# [a](http://b) ![](c) \u202e"


@pytest.fixture
def model():
    return FlowRecognizer(FlowRecognizerConfig(classes=(NASTY, "b"), size=32, parts=4))


def blocks(card):
    return [json.loads(text) for text in re.findall(r"^```json\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)]


def test_a_card_says_what_a_model_has_learned_from_and_its_scores(model, tmp_path):
    training = Training(
        "3 clips",
        subjects=["casme2/2", "casme2/1", "casme2/2"],
        settings={"epochs": 4},
        scores={"UF1": "0.5"},
    )
    model.save_pretrained(tmp_path, training=training)
    card = (tmp_path / "README.md").read_text()
    assert f"2 subjects; SHA-256 of their names, sorted, a line each: `{digest(training.subjects)}`" in card
    assert digest(training.subjects) == hashlib.sha256(b"casme2/1\ncasme2/2").hexdigest()
    found = blocks(card)
    assert {"data": "3 clips"} in found
    assert {"epochs": 4} in found
    assert {"UF1": "0.5"} in found
    assert any(block.get("size") == 32 for block in found)


def test_what_others_named_stays_inside_its_block(model, tmp_path):
    model.save_pretrained(tmp_path, training=Training(NASTY, settings={NASTY: NASTY}, scores={NASTY: 1}))
    card = (tmp_path / "README.md").read_text()
    ours = re.sub(r"^```json\n.*?^```$", "", card, flags=re.DOTALL | re.MULTILINE)
    assert "script" not in ours
    assert "`\n" not in ours.replace("`.\n", "").replace("`\n\n", "")
    assert "\u202e" not in card
    assert all(heading in ours for heading in ("## Scores", "## Limits", "## Settings"))


def test_what_is_not_known_is_said(model, tmp_path):
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "This is not known of it." in card
    assert "None is known of this model." in card


def test_a_card_is_written_again_unless_it_is_a_person_s(model, tmp_path):
    model.save_pretrained(tmp_path, training=Training("first"))
    model.save_pretrained(tmp_path, training=Training("second"))
    card = tmp_path / "README.md"
    assert '"second"' in card.read_text()
    assert '"first"' not in card.read_text()
    card.write_text("mine")
    model.save_pretrained(tmp_path)
    assert card.read_text() == "mine"


@pytest.mark.parametrize("change", [lambda m: m.fold(), lambda m: m.half()], ids=["folded", "half"])
def test_a_model_that_could_not_be_loaded_again_is_not_saved(small, tmp_path, change):
    model = small()
    change(model)
    with pytest.raises(ValueError, match=r"MicronBERT cannot be saved: .*Save a model before fold"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_pre_training_states_its_clips_and_settings(small_config, training, clips, tmp_path):
    pretrain(training(steps=1), small_config, clips, tmp_path / "run")
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    listed = json.loads((tmp_path / "run" / "model" / "corpus.json").read_text())["clips"]
    assert (
        f"{len(listed)} clips of a pre-training; SHA-256 of their names, sorted, a line each: `{digest(listed)}`"
        in card
    )
    assert any(block.get("steps") == 1 and block.get("batch_size") == 4 for block in blocks(card))
