"""The video method: frames equal a scan of the same gray levels, the loss is the literal one, and it learns motion."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from voco import create_encoder
from voco.encoders import ENCODERS, with_windows
from voco.encoders.base import Encoder
from voco.encoders.cnn3d import CNN3D, SPEC
from voco.encoders.spec import InputSpec, kinetics_spec
from voco.errors import InputError
from voco.methods.video import VideoClassification, VideoDraws
from voco.methods.video_options import VideoOptions
from voco.rng import generator
from voco.video_input import frames_to_input

MOVES = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}


class Plain(Encoder):
    """One convolution; enough to have ``prepare``."""

    def __init__(self, spec):
        super().__init__(spec, [{"num_chs": 4, "reduction": (2, 2, 2)}])
        self.layer = nn.Conv3d(spec.channels, 4, 2, 2)

    def _maps(self, x):
        return [self.layer(x)]


def moving_blob(label, seed, size=(16, 32, 32)):
    """A square that moves a pixel a frame, from a place and in a gray that tell nothing: (T, H, W, 1)."""
    frames, rng = torch.full((*size, 1), 40, dtype=torch.uint8), generator(seed, label)
    y, x = (int(torch.randint(n, (), generator=rng)) for n in size[1:])
    gray = int(torch.randint(120, 256, (), generator=rng))
    dy, dx = list(MOVES.values())[label]
    for t in range(size[0]):
        rows, columns = (torch.arange(p, p + 8) % n for p, n in zip((y + t * dy, x + t * dx), size[1:]))
        frames[t, rows[:, None], columns] = gray
    return frames


def make_batch(method, seeds):
    labels = [seed % 4 for seed in seeds]
    draws = [method.sampler(generator(1, seed)) for seed in seeds]
    batch = {name: torch.stack([d[name] for d in draws]) for name in draws[0]}
    frames = torch.stack([moving_blob(label, seed) for label, seed in zip(labels, seeds)])
    return batch | {"frames": frames, "label": torch.tensor(labels), "case": torch.tensor(seeds)}


def small_method(dtype=torch.float32, **options):
    torch.manual_seed(0)
    return VideoClassification(CNN3D(SPEC, (4, 8, 12, 16)), list(MOVES), VideoOptions(**options)).to(dtype)


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        (kinetics_spec((8, 16, 16), (4, 8, 8)), (8, 16, 12)),
        (InputSpec(axes="RAS", mean=(0.2,), std=(0.5,), size_multiple=(4, 8, 4)), (6, 13, 8)),
    ],
)
def test_gray_frames_equal_a_scan_of_the_same_levels(spec, size):
    encoder = Plain(spec)
    frames = torch.randint(0, 256, (2, *size, 1), generator=generator(0), dtype=torch.uint8)
    low, high = spec.windows[0]
    hu = torch.round(low + frames[..., 0].double() / 255 * (high - low)).to(torch.int16).unsqueeze(1)
    x = frames_to_input(encoder, frames)
    expected = encoder.prepare(hu)
    assert x.shape == expected.shape
    step = 0.51 / (high - low) / spec.std[0]  # half a Hounsfield unit
    assert (x - expected).abs().max() < step


def test_colours_become_luma_or_their_own_channel():
    frames = torch.randint(0, 256, (2, 4, 8, 8, 3), generator=generator(0), dtype=torch.uint8)
    unit = frames.double() / 255
    mean, std = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
    spec = kinetics_spec((4, 8, 8), (4, 8, 8), mean, std)
    luma = 0.299 * unit[..., 0] + 0.587 * unit[..., 1] + 0.114 * unit[..., 2]
    gray = (luma - sum(mean) / 3) / (sum(std) / 3)
    torch.testing.assert_close(frames_to_input(Plain(spec), frames)[:, 0].double(), gray, rtol=0, atol=1e-5)

    windows = [(-600.0, 900.0), (-100.0, 900.0), (-160.0, 240.0)]
    encoder = Plain(with_windows(spec, windows))
    x = frames_to_input(encoder, frames).double()
    for c in range(3):
        torch.testing.assert_close(x[:, c], (unit[..., c] - mean[c]) / std[c], rtol=0, atol=1e-5)
    repeated = frames_to_input(encoder, frames[..., :1]).double()
    torch.testing.assert_close(repeated[:, 2], (unit[..., 0] - mean[2]) / std[2], rtol=0, atol=1e-5)


def test_brightness_and_contrast_are_the_literal_formula():
    frames = torch.randint(0, 256, (2, 4, 8, 8, 1), generator=generator(0), dtype=torch.uint8)
    encoder = Plain(InputSpec(windows=((0.0, 1.0),)))
    changed = frames_to_input(encoder, frames, brightness=torch.tensor([0.1, -0.2]), contrast=torch.tensor([1.3, 0.5]))
    for i, (b, c) in enumerate(((0.1, 1.3), (-0.2, 0.5))):
        expected = ((frames[i, ..., 0] / 255 - 0.5) * c + 0.5 + b).clamp(0, 1)
        torch.testing.assert_close(changed[i, 0], expected, rtol=0, atol=1e-6)


def test_wrong_clips_and_encoders_are_refused_in_words():
    encoder = CNN3D(SPEC)
    frames = torch.zeros(1, 16, 16, 16, 3, dtype=torch.uint8)
    with pytest.raises(InputError, match=r"8 frames of 16x16 pixels .* at least 16 frames of 16x16"):
        frames_to_input(encoder, frames[:, :8])
    with pytest.raises(InputError, match="too small"):
        VideoClassification(encoder, list("ab"), clip_size=(8, 16, 16))
    with pytest.raises(InputError, match=r"uint8 of shape \(B, T, H, W, 3\)"):
        frames_to_input(encoder, frames.float())
    with pytest.raises(InputError, match="uint8"):
        frames_to_input(encoder, frames[..., :2])
    with pytest.raises(InputError, match=r"one channel .* takes 2"):
        VideoClassification(create_encoder("cnn3d_s", window=[(0, 1), (2, 3)]), list("ab"))
    with pytest.raises(InputError, match="two different classes"):
        VideoClassification(encoder, ["walk"])
    with pytest.raises(InputError, match="head must be one of linear"):
        VideoOptions(head="cnn")
    with pytest.raises(InputError, match="flip_prob"):
        VideoOptions(flip_prob=1.5)


def test_draws_are_of_the_right_kind_and_depend_on_the_generator_alone():
    draws = VideoDraws(flip_prob=0.3, jitter=0.2, dropout=0.5, features=400)
    draws = pickle.loads(pickle.dumps(draws))
    many = [draws(generator(0, i)) for i in range(300)]
    assert all(torch.equal(v, draws(generator(0, 7))[k]) for k, v in many[7].items())
    stacked = {k: torch.stack([d[k] for d in many]) for k in many[0]}
    assert stacked["crop"].shape == (300, 2) and stacked["crop"].min() >= 0 and stacked["crop"].max() < 1
    assert stacked["start"].std() > 0.2
    assert 0.2 < stacked["flip"].float().mean() < 0.4 and 0.45 < stacked["keep"].float().mean() < 0.55
    assert 0.15 < stacked["brightness"].abs().max() <= 0.2 and 0.15 < (stacked["contrast"] - 1).abs().max() <= 0.2
    other = VideoDraws()(generator(0, 7))
    assert torch.equal(other["start"], many[7]["start"]) and not other["flip"] and other["contrast"] == 1


def test_loss_and_accuracies_are_the_literal_ones():
    method = small_method(torch.float64, label_smoothing=0.1, dropout=0.25, flip_prob=0.5)
    batch = make_batch(method, range(8))
    batch["flip"] = torch.arange(8) % 2 == 0
    found = method(batch)

    frames = batch["frames"].clone()
    for i in range(0, 8, 2):
        frames[i] = frames[i][:, :, torch.arange(31, -1, -1)]
    x = frames_to_input(method.encoder, frames, brightness=batch["brightness"], contrast=batch["contrast"])
    features = method.encoder.forward_features(x).mean((2, 3, 4)) * batch["keep"] / 0.75
    logits = features @ method.head.weight.T + method.head.bias
    logarithm = logits - logits.exp().sum(1, keepdim=True).log()
    target = torch.full((8, 4), 0.1 / 4, dtype=torch.float64)
    target[torch.arange(8), batch["label"]] += 0.9
    torch.testing.assert_close(found["loss"], -(target * logarithm).sum(1).mean())
    rank = (logits > logits[torch.arange(8), batch["label"]][:, None]).sum(1)
    assert found["top1"] == (rank == 0).double().mean() and found["top3"] == (rank < 3).double().mean()
    assert set(found) == {"loss", "top1", "top3"} and found["loss"].requires_grad and not found["top1"].requires_grad
    torch.testing.assert_close(method.eval().logits(batch["frames"]).shape, torch.Size([8, 4]))


@pytest.mark.parametrize("plain", [True, False])
def test_accumulation_equals_one_batch_without_batch_statistics(plain):
    torch.manual_seed(0)
    encoder = Plain(SPEC) if plain else CNN3D(SPEC, (4, 8, 12, 16))
    method = VideoClassification(encoder, list(MOVES), VideoOptions(label_smoothing=0.1)).double().train()
    batch = make_batch(method, range(8))
    parameters = [p for p in method.parameters() if p.requires_grad]
    whole = torch.autograd.grad(method(batch)["loss"], parameters)
    for size in (1, 4):
        parts = [{k: v[i : i + size] for k, v in batch.items()} for i in range(0, 8, size)]
        loss = sum(method(part)["loss"] for part in parts) / len(parts)
        gap = max((a - b).abs().max().item() for a, b in zip(whole, torch.autograd.grad(loss, parameters)))
        assert (gap < 1e-10) if plain else (gap > 1e-4)


def test_every_parameter_gets_a_gradient_and_two_classes_have_one_accuracy():
    method = VideoClassification(CNN3D(SPEC, (4, 6)), ["a", "b"])
    batch = {"frames": torch.randint(0, 256, (2, 16, 16, 16, 1), dtype=torch.uint8), "label": torch.tensor([0, 1])}
    found = method(batch)
    found["loss"].backward()
    assert set(found) == {"loss", "top1"} and method.colour == "gray"
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in method.parameters())


def test_learns_which_way_something_moves():
    method = small_method()
    optimiser = torch.optim.AdamW(method.parameters())
    for step in range(60):
        optimiser.param_groups[0]["lr"] = 8e-3 * min(1, (60 - step) / 25)
        method(make_batch(method, range(16 * step, 16 * step + 16)))["loss"].backward()
        optimiser.step()
        optimiser.zero_grad()
        method.after_step()
    method.eval()
    with torch.no_grad():
        held = make_batch(method, range(10_000, 10_064))
        assert (method.logits(held["frames"]).argmax(1) == held["label"]).float().mean() > 0.9
        # every frame of a clip the same: which way it moves cannot be told
        still = method.logits(held["frames"][:, :1].expand(-1, 16, -1, -1, -1)).argmax(1)
        assert (still == held["label"]).float().mean() < 0.5


@pytest.mark.parametrize(("classes", "parameters"), [(10, 15_775_568), (5, 15_770_443)])
def test_viptt_with_its_last_layer_has_the_published_number_of_parameters(classes, parameters):
    if "viptt" not in ENCODERS:
        pytest.skip("viptt is not registered")
    with torch.device("meta"):
        method = VideoClassification(create_encoder("viptt"), [str(i) for i in range(classes)])
    assert sum(p.numel() for p in method.parameters()) == parameters


@pytest.mark.parametrize("head", ["mean", "attention", "lstm", "bilstm", "gru"])
def test_sequence_heads_read_time_in_order_and_get_gradients(head):
    pytest.importorskip("voco.sequence")
    method = small_method(torch.float64, head=head)
    batch = make_batch(method, range(4))
    method(batch)["loss"].backward()
    assert method.find_unused
    assert all(p.grad is not None for p in method.temporal.parameters())
    method.eval()
    alone = torch.cat([method.logits(batch["frames"][i : i + 1]) for i in range(4)])
    torch.testing.assert_close(alone, method.logits(batch["frames"]))


def test_a_sequence_head_takes_flattened_slices():
    encoder = create_encoder("slices/resnet18", pool="flatten", plane=(64, 64))
    method = VideoClassification(encoder, ["a", "b"], VideoOptions(head="gru"), clip_size=(2, 64, 64))
    frames = torch.zeros(1, 2, 64, 64, 3, dtype=torch.uint8)
    assert encoder.num_features == 4 * 512 and method.logits(frames).shape == (1, 2)
