"""The state of a pre-training run, what a checkpoint holds of it, and when a run may go on from one."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.clips.frames import Clip
from ..data.databases.corpus import Corpus
from ..models import products
from ..models.config import MicronBERTConfig
from ..models.micron_bert import MicronBERT
from ..saved_model import check_finite, differences, name_of
from . import checkpoint
from .batches import Positions, fingerprint, sort_out
from .config import FREE, PretrainConfig
from .distributed import Ranks


def device_type(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise RuntimeError(f"device={name!r}, but torch sees no GPU; 'auto' takes what there is")
    return torch.device(name).type


def resolve_device(name: str, ranks: Ranks) -> torch.device:
    kind = device_type(name)
    if ranks.count > 1 and kind == "cuda":
        return torch.device("cuda", ranks.local)
    return torch.device(kind if name == "auto" else name)


def _optimizer(model: nn.Module, config: PretrainConfig, device: torch.device) -> torch.optim.AdamW:
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in trained if p.dim() == 2]
    others = [p for name, p in trained if p.dim() != 2]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=fused or None)


class Run:
    """The state of a run: what a checkpoint holds."""

    def __init__(
        self,
        config: PretrainConfig,
        model_config: MicronBERTConfig,
        data: Sequence[Clip] | Sequence[str],
        out: Path,
        ranks: Ranks,
    ):
        self.config, self.out, self.ranks = config, out, ranks
        self.device = resolve_device(config.device, ranks)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = MicronBERT(model_config).to(self.device).train()
        self.optimizer = _optimizer(self.model, config, self.device)
        self.step = 0
        self.skipped_in_a_row = 0
        self.positions: Positions = {}
        self.seen: list[str] | None = []
        """Clips that the weights it began with were trained on; None if they are not known."""
        self.shards = len(sort_out(data)[1])
        described = fingerprint(data)
        everywhere = ranks.gather(described)
        if len(set(everywhere)) > 1:
            raise ValueError(f"the ranks see different data: {everywhere}. All must be given the same")
        # Through JSON, so that what is compared on resuming is what a file can hold.
        self.settings = json.loads(
            json.dumps(
                {
                    "training": asdict(config),
                    "model": asdict(model_config),
                    "data": described,
                    "ranks": ranks.count,
                    "readers": ranks.count * max(1, config.workers) if self.shards else None,
                }
            )
        )

    @property
    def path(self) -> Path:
        return self.out / "checkpoint.pt"

    def save(self, positions: Positions) -> None:
        """Every rank calls it; the first writes."""
        everywhere = self.ranks.gather(positions)
        if not self.ranks.is_first:
            return
        content = {
            "step": self.step,
            "skipped_in_a_row": self.skipped_in_a_row,
            "positions": {consumer: place for part in everywhere for consumer, place in part.items()},
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "settings": self.settings,
            "seen": self.seen,
            "products": {"processor": products.processor(), "chosen": products.choices()},
        }
        checkpoint.save(self.path, content)
        if self.config.keep_every and self.step % self.config.keep_every == 0:
            checkpoint.save(self.out / f"checkpoint-{self.step}.pt", content)

    def start_from(self, model: MicronBERT, seen: Corpus) -> None:
        """Begin with the weights of a model that was trained on what is ``seen``."""
        self.model.load_state_dict(model.state_dict())
        self.seen = None if seen.clips is None else list(seen.clips)

    def corpus(self, data: Sequence[Clip] | Sequence[str]) -> Corpus:
        """What the model has seen: data, and what the weights it began with had."""
        here = Corpus.of(data).clips
        return Corpus(None if here is None or self.seen is None else tuple(sorted({*here, *self.seen})))

    def resume(self) -> list[str]:
        """Go on from the checkpoint; what a user should know of it, in words."""
        content = checkpoint.load(self.path, self.device)
        for name in ("step", "skipped_in_a_row", "positions", "model", "optimizer", "settings"):
            if name not in content:
                raise checkpoint.CheckpointError(
                    f"{self.path}: has no {name!r}; it is not a checkpoint of pretrain"
                )
        try:
            self._check_settings(content["settings"])
            self._check_values(content)
            self.model.load_state_dict(content["model"])
            # The rest of an optimizer's state are its settings, which this run has of its own.
            groups = self.optimizer.state_dict()["param_groups"]
            state = {"state": content["optimizer"]["state"], "param_groups": groups}
            self.optimizer.load_state_dict(state)
        except checkpoint.CheckpointError:
            raise
        except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise checkpoint.CheckpointError(
                f"{self.path}: is no checkpoint of this run ({reason})"
            ) from None
        self.step, self.skipped_in_a_row = content["step"], content["skipped_in_a_row"]
        self.positions, self.seen = content["positions"], content.get("seen", [])
        if content["settings"]["readers"] != self.settings["readers"]:
            # Asked for, or it would have been refused: a new epoch for every reader.
            epoch = 1 + max((place[0] for place in self.positions.values()), default=-1)
            self.positions = dict.fromkeys(range(self.settings["readers"] or 0), (epoch, 0, 0))
        told = []
        if (before := content["settings"]["training"]["steps"]) < self.config.steps:
            told.append(
                f"steps was {before}, is {self.config.steps}: the learning rate goes on where that has it"
            )
        try:
            return told + self._take_products(content.get("products"))
        except (TypeError, LookupError, AttributeError) as error:
            raise checkpoint.CheckpointError(f"{self.path}: its products are none ({error})") from None

    def _take_products(self, stored: dict[str, Any] | None) -> list[str]:
        """Let the libraries multiply that did before, so that the losses stay the same."""
        if stored is None or not stored["chosen"] or self.device.type != "cpu":
            return []
        changed = products.use(stored["chosen"], f"kept from {self.path}")
        if changed:
            return [f"products: {'; '.join(changed)}: the losses will differ by rounding"]
        if stored["processor"] == products.processor():
            return []
        listed = ", ".join(f"{product}={name}" for product, name in stored["chosen"].items())
        return [
            f"products: {listed}, kept from {stored['processor']}, where this run was, so that its losses stay "
            f"the same; {products.VARIABLE} chooses others"
        ]

    def agree_on_products(self) -> None:
        """Several ranks take what the first finds to be fastest; one measures when it comes to it."""
        if self.ranks.count == 1 or self.device.type != "cpu":
            return
        of_first = self.ranks.gather(products.choices(all=True) if self.ranks.is_first else {})[0]
        everywhere = self.ranks.gather(products.use(of_first, "chosen by rank 0"))
        if any(everywhere):
            told = "; ".join(f"rank {rank}: {', '.join(x)}" for rank, x in enumerate(everywhere) if x)
            raise ValueError(
                f"the ranks cannot multiply alike ({told}): give all the same {products.VARIABLE}"
            )

    def _check_values(self, content: dict[str, Any]) -> None:
        """Raises ValueError for what no run of these settings can have written."""
        for name, most in (("step", self.config.steps), ("skipped_in_a_row", 10**6)):
            if type(content[name]) is not int or not 0 <= content[name] <= most:
                raise ValueError(f"{name} is {content[name]!r:.80}; it must lie in [0, {most}]")
        for consumer, place in content["positions"].items():
            if (
                type(consumer) is not int
                or len(place) != 3
                or any(type(n) is not int or n < 0 for n in place)
                or place[1] >= self.shards
            ):
                raise ValueError(f"positions has {consumer!r:.80}: {place!r:.80}")
        seen = content.get("seen", [])
        if seen is not None and not (isinstance(seen, list) and all(isinstance(x, str) for x in seen)):
            raise ValueError(f"seen is {seen!r:.80}; it must be names of clips")
        tensors = content["model"]
        stated = {name: (tuple(x.shape), name_of(x.dtype)) for name, x in tensors.items()}
        if listed := differences(self.model.state_dict(), stated):
            raise ValueError(f"does not hold the weights of this model: {'; '.join(listed)}")
        check_finite(tensors, self.path)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for number, moments in content["optimizer"]["state"].items():
            if not isinstance(number, int) or not 0 <= number < len(parameters):
                raise ValueError(f"the optimizer knows no parameter {number!r:.80}")
            if set(moments) != {"step", "exp_avg", "exp_avg_sq"}:
                raise ValueError(f"the optimizer holds {', '.join(map(str, moments))} of parameter {number}")
            for name, value in moments.items():
                shape = () if name == "step" else parameters[number].shape
                least = -math.inf if name == "exp_avg" else 0
                fits = value.shape == shape and value.dtype == torch.float32
                if not fits or not torch.isfinite(value).all() or (value < least).any():
                    raise ValueError(
                        f"the optimizer's {name} of parameter {number} does not fit, is not finite, or negative"
                    )

    def _check_settings(self, stored: dict[str, Any]) -> None:
        differences = []
        for part in ("training", "model"):
            for name, value in self.settings[part].items():
                before = stored[part].get(name)
                if before != value and name not in FREE and not (name == "steps" and before < value):
                    differences.append(f"{name} was {before!r}, is {value!r}")
        if stored["data"] != self.settings["data"]:
            differences.append(f"data was {stored['data']}, is {self.settings['data']}")
        if differences:
            raise checkpoint.CheckpointError(
                f"{self.path}: belongs to a run with other settings: {'; '.join(differences)}. "
                "Give the same settings, or another folder"
            )
        for name, what in (("ranks", "ranks"), ("readers", "readers of shards (ranks × workers)")):
            if stored[name] != self.settings[name] and not self.config.other_ranks:
                raise checkpoint.CheckpointError(
                    f"{self.path}: belongs to a run of {stored[name]} {what}, this one has {self.settings[name]}: "
                    "its steps would have other pairs. Start as many, or allow it with --training.other-ranks"
                )
