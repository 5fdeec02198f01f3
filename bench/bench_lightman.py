"""An outer step of lightman against an ordinary step of fine-tuning on as many clips.

Half of the clips are support and half query; with macro-expressions a third are each. A rate of 0 leaves the weights
as they are, so that every call does the same.
"""

import torch
import torch.nn.functional as F
from timing import Case, contest

from micron_model import MicronBERT, preset
from micron_model.data.databases.corpus import Corpus
from micron_model.recognizers.base import Examples, MacroExamples
from micron_model.recognizers.lightman import BiLevel, LightmanRecipe
from micron_model.recognizers.micron_bert import MicronBERTRecipe, start_from

CLASSES = ("negative", "positive", "surprise")
WAYS = {
    "first order": {"order": "first"},
    "second order": {},
    "first order, macro": {"order": "first", "macro": True},
    "second order, macro": {"macro": True},
}
#: Clips of a step, in two tasks.
CLIPS = {"tiny": 24, "base": 12}


@contest(cpu=(["fine-tuning", *WAYS], ["tiny"]), cuda=(["fine-tuning", *WAYS], ["base"]))
def test_outer_step(bench, size):
    torch.manual_seed(0)
    model = MicronBERT(preset(size if bench.full else "tiny", **({} if bench.full else {"image_size": 32})))
    count, side = CLIPS[size] if bench.full else 12, model.config.image_size
    wrapped = MicronBERTRecipe(learning_rate=0.0, flip=False, shift=0, brightness=0, balance="off")
    start = start_from(model, Corpus(()))
    values = torch.randint(0, 256, (count, 2, 3, side, side), dtype=torch.uint8).to(bench.device)
    labels = torch.arange(count) % len(CLASSES)

    def fine_tuning():
        recognizer = wrapped.build(start, CLASSES, seed=0).to(bench.device).train()
        optimizer = wrapped.optimizer_of(recognizer)

        def step():
            with torch.autocast("cuda", torch.bfloat16, enabled=bench.gpu):
                logits = recognizer(wrapped.augment(recognizer, values, torch.Generator()))
            loss = F.cross_entropy(logits.float(), labels.to(bench.device))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(recognizer.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.detach()

        return step

    def outer(macro=False, **settings):
        recipe = LightmanRecipe(wrapped, **settings)
        recognizer = recipe.build(start, CLASSES, seed=0).to(bench.device).train()
        micro = count * 2 // 3 if macro else count
        beside = MacroExamples(values, labels, ["m"] * count) if macro else None
        train = Examples(values[:micro], labels[:micro], ["a", "b"] * (micro // 2), macro=beside)
        training = BiLevel(recipe, recognizer, train, torch.Generator())
        halves = [range(k * micro // 4, (k + 1) * micro // 4) for k in range(4)]
        tasks = [("a", list(halves[0]), list(halves[1])), ("b", list(halves[2]), list(halves[3]))]

        def step():
            training.generator.manual_seed(0)
            return training.step(tasks, 1)["query loss"]

        return step

    ways = {"fine-tuning": fine_tuning(), **{name: outer(**settings) for name, settings in WAYS.items()}}
    title = f"{size}, {side}², {count} clips, {'bf16' if bench.gpu else 'fp32'}"
    return Case("lightman", title, ways, {}, expected=ways["fine-tuning"], expected_of=ways)
