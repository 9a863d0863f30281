"""2D-VoCo with a network of timm on two gloo processes against one: losses, gradients and weights."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from voco.encoders import create_encoder
from voco.geometry import Geometry
from voco.methods.options2d import resolve
from voco.methods.voco2d import VoCo2D
from voco.rng import generator

PARTS = ("loss", "intra", "intra_positive", "intra_negative", "inter", "reg", "logit_mean")
RUNS = {"default": {}, "published_v2": {"norm_scope": "global", "inter_scope": "global"}}


def build(preset):
    torch.manual_seed(0)
    options = replace(resolve(preset).options, projector_dim=16, slices=2, **RUNS[preset])
    encoder = create_encoder("slices/test_efficientnet", window=(-1000, 500))
    return VoCo2D(encoder, Geometry(crop=32), resolve(preset).augmentation, options).double()


def make_batch(method, seed, own):
    """Four volumes, or the two of one process."""
    hu = [torch.randint(-1000, 500, (4, 12, 12), generator=generator(seed, i)) for i in range(4)]
    hu = [h.repeat_interleave(8, 0).repeat_interleave(8, 1).repeat_interleave(8, 2).to(torch.int16) for h in hu]
    draws = [method.sampler(generator(seed, i)) for i in range(4)]
    batch = {name: torch.stack([d[name] for d in draws]) for name in draws[0]}
    batch |= {"hu": torch.stack(hu), "case": torch.arange(4)}
    return batch if own is None else {k: v[2 * own : 2 * own + 2] for k, v in batch.items()}


def train(preset, own, wrap):
    """Losses per step, first gradients and the final state."""
    method = build(preset)
    run, losses, gradients = wrap(method), [], None
    optimiser = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 1e-2)
    for step in range(2):
        found = run(make_batch(method, step, own))
        found["loss"].backward()
        gradients = gradients or {k: p.grad.clone() for k, p in method.named_parameters() if p.requires_grad}
        optimiser.step()
        optimiser.zero_grad()
        method.after_step()
        losses.append(torch.stack([found[k].detach() for k in PARTS]))
    return {"losses": torch.stack(losses), "gradients": gradients, "state": method.state_dict()}


def work(folder: Path, own: int) -> None:
    dist.init_process_group("gloo", f"file://{folder}/group", rank=own, world_size=2, timeout=timedelta(seconds=60))
    torch.save({name: train(name, own, DistributedDataParallel) for name in RUNS}, folder / f"rank{own}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks2d")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    runs = [subprocess.Popen([sys.executable, __file__, str(folder), str(r)], env=environment) for r in range(2)]
    try:
        assert [run.wait(timeout=200) for run in runs] == [0, 0]
    finally:
        for run in runs:
            run.kill()
    return [torch.load(folder / f"rank{r}.pt", weights_only=True) for r in range(2)]


@pytest.mark.parametrize("preset", RUNS)
def test_two_processes_equal_one(ranks, preset):
    """With timm's fused norms and a teacher projector that is trained: the statistics must cover both processes."""
    one, pair = train(preset, None, lambda method: method), [found[preset] for found in ranks]
    losses = (pair[0]["losses"] + pair[1]["losses"]) / 2
    gaps = {"loss": (losses - one["losses"]).abs().max().item()}
    for part in ("gradients", "state"):
        assert all(found[part].keys() == one[part].keys() for found in pair)
        gaps[part] = max((f[part][k] - v).abs().max().item() for f in pair for k, v in one[part].items())
    assert max(gaps.values()) < 1e-8, gaps
    assert any(k.startswith("teacher.projector") for k in one["gradients"]) == (preset == "published_v2")


def test_fused_norms_keep_every_result_in_one_process():
    plain, converted = create_encoder("slices/test_efficientnet"), build("default").float().encoder
    plain.load_state_dict(converted.state_dict())
    assert {type(m).__name__ for m in converted.modules()} >= {"GlobalBatchNormAct2d"}
    x = torch.randn(2, 1, 3, 32, 32, generator=generator(0))
    assert torch.equal(plain.train().pool(x), converted.train().pool(x))
    assert all(torch.equal(v, converted.state_dict()[k]) for k, v in plain.state_dict().items())
    assert torch.equal(plain.eval().pool(x), converted.eval().pool(x))


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]))
