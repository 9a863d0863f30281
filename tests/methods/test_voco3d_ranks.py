"""VoCo 3D on two gloo processes against one: losses, gradients and weights after training steps."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from voco.encoders.base import Encoder
from voco.encoders.cnn3d import CNN3D, SPEC
from voco.encoders.spec import InputSpec
from voco.geometry import Augmentation, Geometry
from voco.methods.options import VoCoOptions
from voco.methods.voco3d import VoCo3D
from voco.rng import generator

PARTS = ("loss", "intra", "intra_positive", "intra_negative", "inter", "reg", "logit_mean")
V1 = {"teacher": "model", "intra": "symmetric", "negative": "square", "inter_weight": 0.0}


class Plain(Encoder):
    """One convolution without batch statistics."""

    def __init__(self):
        super().__init__(InputSpec(), [{"num_chs": 12, "reduction": (4, 4, 4)}])
        self.layer = nn.Conv3d(1, 12, 5, 4, 2)

    def _maps(self, x):
        return [self.layer(x).tanh()]


def build(encoder="cnn", dtype=torch.float64, kind=VoCo3D, **options):
    torch.manual_seed(0)
    encoder = Plain() if encoder == "plain" else CNN3D(SPEC, (4, 6, 8, 12))
    augmentation = Augmentation(flip_prob=0.2, turn_prob=0.2, shift_prob=0.5)
    return kind(encoder, Geometry(crop=16), augmentation, VoCoOptions(projector_dim=32, **options)).to(dtype)


def make_batch(method, seed=0, case=(0, 1, 2, 3), own=None):
    """Four volumes, or the two of one process."""
    hu = [torch.randint(-1000, 500, (1, 6, 6), generator=generator(seed, i)) for i in range(4)]
    hu = [h.repeat_interleave(16, 0).repeat_interleave(8, 1).repeat_interleave(8, 2).to(torch.int16) for h in hu]
    draws = [method.sampler(generator(seed, i)) for i in range(4)]
    batch = {name: torch.stack([d[name] for d in draws]) for name in draws[0]}
    batch |= {"hu": torch.stack(hu), "case": torch.tensor(case)}
    return batch if own is None else {k: v[2 * own : 2 * own + 2] for k, v in batch.items()}


def blur_teacher(method):
    """A teacher that differs from the student, as after some steps."""
    for tensor in method.teacher.parameters():
        tensor.data += 0.05 * torch.randn(tensor.shape, generator=generator(9, tensor.numel())).to(tensor)
    return method


# Two processes against one. Each entry: options, encoder, dtype, steps, allowed difference.
PARITY = {
    "float64": ({}, "cnn", torch.float64, 20, 1e-8),
    "model_teacher": ({**V1, "ema_timing": "before_step"}, "cnn", torch.float64, 5, 1e-8),
    "dropout": ({"feature_dropout": "crop"}, "cnn", torch.float64, 3, 1e-8),
    "local_norm": ({"norm_scope": "local", "projector_norm": "instance"}, "plain", torch.float64, 20, 1e-8),
    "float32": ({}, "cnn", torch.float32, 3, 1e-4),
}


def without_onednn(function):
    @functools.wraps(function)
    def wrapped(*args):
        before, torch.backends.mkldnn.enabled = torch.backends.mkldnn.enabled, False
        try:
            return function(*args)
        finally:
            torch.backends.mkldnn.enabled = before

    return wrapped


@without_onednn
def train(name, own, wrap):
    """First gradients, losses per step, and the final state of one process's run of ``PARITY[name]``.

    Without oneDNN: its float32 convolutions choose their algorithm by batch size and number of threads, and on some
    CPUs differ by more (4e-6 of the loss against float64, 7e-8 without it) than what is tested here.
    """
    options, encoder, dtype, steps, _ = PARITY[name]
    method = build(encoder, dtype, **options)
    kind = torch.optim.SGD if name == "model_teacher" else torch.optim.AdamW
    optimiser = kind([p for p in method.parameters() if p.requires_grad], 1e-3)
    run = wrap(method)
    losses, gradients = [], None
    for step in range(steps):
        found = run(make_batch(method, step, (0, 1, 2, 2) if step % 2 else (0, 1, 2, 3), own))
        found["loss"].backward()
        gradients = gradients or {k: p.grad.clone() for k, p in method.named_parameters() if p.grad is not None}
        optimiser.step()
        optimiser.zero_grad()
        method.after_step()
        losses.append(torch.stack([found[k].detach() for k in PARTS]))
    return {"losses": torch.stack(losses), "gradients": gradients, "state": method.state_dict()}


class InHalves(VoCo3D):
    """One process that pairs volumes as two processes do when each keeps to its own."""

    def _inter(self, student, teacher, case):
        halves = zip(student.chunk(2), teacher.chunk(2), case.chunk(2))
        return sum(super(InHalves, self)._inter(*half) for half in halves) / 2


def work(folder: Path, own: int) -> None:
    dist.init_process_group("gloo", f"file://{folder}/group", rank=own, world_size=2, timeout=timedelta(seconds=60))
    found = {name: train(name, own, DistributedDataParallel) for name in PARITY}
    method = blur_teacher(build(inter_scope="local"))
    parts = method(make_batch(method, own=own))
    found["pairs"] = {name: parts[name].detach() for name in PARTS}
    torch.save(found, folder / f"rank{own}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    runs = [subprocess.Popen([sys.executable, __file__, str(folder), str(r)], env=environment) for r in range(2)]
    try:
        assert [run.wait(timeout=100) for run in runs] == [0, 0]
    finally:
        for run in runs:
            run.kill()
    return [torch.load(folder / f"rank{r}.pt", weights_only=True) for r in range(2)]


@pytest.mark.parametrize("name", PARITY)
def test_two_processes_equal_one(ranks, name):
    tolerance = PARITY[name][-1]
    one, pair = train(name, None, lambda method: method), [found[name] for found in ranks]
    losses = (pair[0]["losses"] + pair[1]["losses"]) / 2
    gaps = {"loss": (losses - one["losses"]).abs().max().item()}
    # AdamW scales the gradients that norms make 0 (biases before them): rounding, in float32, moves such weights
    for part in ("gradients", "state") if PARITY[name][2] == torch.float64 else ("gradients",):
        keys = one[part].keys()
        assert all(found[part].keys() == keys for found in pair)
        gaps[part] = max((found[part][k] - one[part][k]).abs().max().item() for found in pair for k in keys)
    assert max(gaps.values()) < tolerance, gaps
    assert all(torch.equal(pair[0]["state"][k], v) for k, v in pair[1]["state"].items())


def test_pairs_inside_each_process(ranks):
    method = blur_teacher(build(kind=InHalves))
    expected = method(make_batch(method))
    pair = [found["pairs"] for found in ranks]
    assert pair[0]["inter"] != pair[1]["inter"] and pair[0]["intra"] == pair[1]["intra"]
    for name in PARTS:
        torch.testing.assert_close((pair[0][name] + pair[1][name]) / 2, expected[name].detach(), rtol=1e-9, atol=1e-9)


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]))
