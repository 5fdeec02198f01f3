"""Learning from known movement: pairs of warps, the loss on them, and the inputs that help."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from micron_model import preset
from micron_model.data import ShardPairs, SyntheticClip
from micron_model.data.clips.flow import flow_less_median
from micron_model.data.clips.in_memory import InMemoryClip
from micron_model.data.clips.pairs import FramePairs, collate
from micron_model.data.clips.warps import warped_pair
from micron_model.models.micron_bert import EncoderState
from micron_model.models.vit import locally_normalized
from micron_model.training import PretrainConfig, pretrain
from micron_model.training.log import read_log

MOVEMENT = {
    "movement": 1.0, "gamma": 0.0, "aggregation": "off", "poi": "off", "tied_start": True, "embed_size": 16,
    "normalized_input": 9, "flow_input": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def warps():
    """Sixteen warped pairs of two faces, at 96 pixels."""
    faces = [SyntheticClip(subject, "surprise").read([0], 96)[0] for subject in (0, 1)]
    return [warped_pair(faces[i % 2], np.random.default_rng(i), 8) for i in range(16)]


def test_the_flow_of_a_warped_pair_is_the_movement_that_it_states(warps):
    wide = [pair for pair in warps if pair.moved.max() > 1]
    assert len(wide) >= 4
    for still, warped, moved in wide:
        flow = np.linalg.norm(flow_less_median(still, warped), axis=0)
        length = flow.reshape(12, 8, 12, 8).mean((1, 3)).ravel() * 64 / 96  # in pixels of a 64×64 frame
        assert np.corrcoef(length, moved)[0, 1] > 0.6
        widest = moved > 0.7 * moved.max()
        assert length[widest].mean() == pytest.approx(moved[widest].mean(), rel=0.4)


def test_neither_view_is_sharper_and_their_light_and_noise_are_their_own(warps):
    detail = np.array(
        [[np.abs(np.diff(view.astype(float), axis=2)).mean() for view in (w.still, w.warped)] for w in warps]
    )
    ratio = np.log(detail[:, 0] / detail[:, 1])
    assert abs(ratio.mean()) < 3 * ratio.std() / 4  # of sixteen
    assert all((w.still != w.warped).mean() > 0.3 for w in warps)
    assert np.std([w.still.mean() - float(w.warped.mean()) for w in warps]) > 5


def test_a_seed_repeats_a_warp_and_pairs_have_it_beside_theirs(clips):
    plain, warped = (FramePairs(clips, 32, seed=1, warp=warp) for warp in (0, 8))
    for i in range(3):
        sample = warped[i]
        assert sample["moved"].shape == (16,)
        for name, value in warped[i].items():
            if torch.is_tensor(value):
                assert torch.equal(value, sample[name])
        for name, value in plain[i].items():
            assert torch.equal(sample[name], value) if torch.is_tensor(value) else sample[name] == value
    batch = collate([warped[i] for i in range(3)])
    assert batch["still"].shape == batch["warped"].shape == (3, 3, 32, 32)
    assert "moved" not in collate([plain[0]])


def test_training_on_warps_alone_reads_no_later_frame(clips, tmp_path):
    """And sees the warps that it would see with them."""
    read = []

    class Watched(InMemoryClip):
        def read(self, indices, size):
            read.append(len(indices))
            return super().read(indices, size)

    data = [Watched(clip, 32) for clip in clips[:2]]
    config = preset("tiny", **MOVEMENT, image_size=32, width=32, depth=1)
    for motion, count in (((0, 255), 1), ((0, 254), 2)):  # pairs are chosen by what both show
        read.clear()
        training = PretrainConfig(steps=1, batch_size=2, motion=motion)
        pretrain(training, config, data, tmp_path / str(count), console=Console(quiet=True))
        assert set(read) == {count}
    alone, both = (FramePairs(data, 32, warp=8, later=later)[3] for later in (False, True))
    assert "later" not in alone
    assert all(torch.equal(alone[name], both[name]) for name in ("frames", "still", "warped", "moved"))


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_pairs_of_shards_have_warps_too(shards):
    (sample,) = (s for _, s in zip(range(1), ShardPairs(shards, 24, warp=8), strict=False))
    assert sample["warped"].shape == (3, 24, 24)
    assert sample["moved"].shape == (9,)


def test_the_loss_is_that_of_its_formula_and_falls_with_the_order(small):
    model = small(poi="off")
    moved = torch.rand(3, 16, generator=torch.Generator().manual_seed(0))
    most = torch.zeros(3, 16, dtype=torch.bool).scatter(1, moved.topk(4).indices, True)
    for change in (10 * moved, -10 * moved, torch.randn(3, 16)):
        model.movement_map = lambda *_, change=change: change
        expected = torch.stack(
            [F.softplus(c[~m][None] - c[m][:, None]).mean() for c, m in zip(change, most, strict=True)]
        )
        state = EncoderState(*[moved] * 3)
        torch.testing.assert_close(model.forward_movement(state, state, moved), expected.mean())
        weight = torch.tensor([0.5, 2.5, 0.0])
        weighted = (expected * weight).mean()
        torch.testing.assert_close(model.forward_movement(state, state, moved, weight), weighted)


def test_a_patch_that_is_the_same_has_no_change(small, pair):
    model = small(**MOVEMENT | {"flow_input": False})  # Farnebäck's of a frame to itself is not quite 0
    onset, apex = pair
    same = model.movement_map(*model.encode_pair(onset, onset))
    torch.testing.assert_close(same, torch.zeros_like(same), atol=1e-5, rtol=0)
    assert model.movement_map(*model.encode_pair(onset, apex)).abs().mean() > 1e-3


def test_gain_and_offset_of_the_light_fall_out(pair):
    frames = pair[0] / 255
    x = torch.linspace(0.8, 1.2, 32)
    lit = frames * x + 0.1
    before, after = (locally_normalized(f, 9) for f in (frames, lit))
    assert (after - before).abs().mean() < 0.1 * before.abs().mean()
    assert (lit - frames).abs().mean() > 0.1 * frames.std()


def test_flow_is_a_further_input_of_the_later_frame_alone(small, pair):
    model = small(flow_input=True)
    onset, apex = pair
    flow = model.flow(onset, apex)
    expected = np.stack([flow_less_median(*(x.numpy() for x in p)) for p in zip(onset, apex, strict=True)])
    torch.testing.assert_close(flow, torch.from_numpy(2 * expected))  # in pixels of a frame of 64 rows
    before, after = model.encode_pair(onset, apex)
    torch.testing.assert_close(before.patches, model.encode(onset).patches)
    torch.testing.assert_close(after.patches, model.encode(apex, flow).patches)
    assert (after.patches - model.encode(apex).patches).abs().max() > 1e-3
    normalized = model.encode_pair(*(model.normalize(f) for f in pair))
    torch.testing.assert_close(normalized[1].patches, after.patches)
    assert small().flow(onset, apex) is None


def test_a_swapped_patch_brings_its_flow(small, pair):
    model = small(flow_input=True).eval()
    frames, later = pair
    seen = []
    model.encoder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    swap = torch.arange(16).expand(4, -1) % 3 == 0
    model({"frames": frames, "later": later, "swap": swap}, torch.Generator().manual_seed(0))
    flow = model.flow(frames, later)
    pixels = F.interpolate(swap.view(4, 1, 4, 4).float(), scale_factor=8)
    torch.testing.assert_close(seen[0][:4, 3:], flow * pixels)
    torch.testing.assert_close(seen[0][4:, 3:], flow)


def test_a_wider_window_is_centred_on_its_patch(small, pair):
    narrow, wide = small(), small(embed_size=12)
    weight = torch.zeros(32, 3, 12, 12)
    weight[:, :, 2:10, 2:10] = narrow.encoder.patch_embed.weight.unflatten(1, (8, 8, 3)).permute(0, 3, 1, 2)
    state = {k: v for k, v in narrow.state_dict().items() if k != "encoder.patch_embed.weight"}
    wide.load_state_dict(state | {"encoder.patch_embed.weight": weight.flatten(1)})
    torch.testing.assert_close(wide.encode(pair[0]).patches, narrow.encode(pair[0]).patches)


def test_the_loss_can_be_learned(small, clips):
    model = small(**MOVEMENT)
    batch = collate([FramePairs(clips, 32, warp=8)[i] for i in range(8)])
    batch = {name: value for name, value in batch.items() if torch.is_tensor(value)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        losses.append(model(batch)["loss"])
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.15


def test_training_on_movement_alone_is_logged_and_repeats(clips, training, tmp_path):
    config = preset("tiny", image_size=32, width=32, decoder_width=32, depth=1, decoder_depth=1, **MOVEMENT)
    models = [
        pretrain(training(steps=3), config, clips, tmp_path / run, console=Console(quiet=True))
        for run in "ab"
    ]
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)
    log = [entry for entry in read_log(tmp_path / "a") if "loss" in entry]
    assert all(entry["loss"] == pytest.approx(entry["loss_movement"]) for entry in log)
    assert all(entry["loss_reconstruction"] == 0 for entry in log)
    assert type(models[0]).from_pretrained(tmp_path / "a" / "model").config == config


def test_the_losses_add_up_and_the_papers_form_has_no_movement_loss(small, pair, clips):
    model = small(movement=2.0, aggregation="mse", beta=0.5)
    batch = collate([FramePairs(clips, 32, warp=8)[i] for i in range(4)])
    batch = {name: value for name, value in batch.items() if torch.is_tensor(value)}
    result = model(batch, torch.Generator().manual_seed(0))
    expected = result["loss_reconstruction"] + 0.5 * result["loss_aggregation"] + 2 * result["loss_movement"]
    torch.testing.assert_close(result["loss"].detach(), expected)
    assert result["loss_movement"] > 0
    plain = small()(batch, torch.Generator().manual_seed(0))
    assert plain["loss_movement"] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embed_size": 6}, "embed_size=6; it must be patch_size=8 and an even number of pixels"),
        ({"embed_size": 11}, "embed_size=11; it must be patch_size=8 and an even number of pixels"),
        ({"normalized_input": 4}, "normalized_input=4; it must be 0 or an odd number of pixels"),
        ({"gamma": 0.0}, "nothing else trains micro-attention"),
        ({"movement": -1.0}, "none may be negative"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        preset("tiny", **settings)
