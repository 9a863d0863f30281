"""The video method on two gloo processes against one: losses, gradients and weights after training steps."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from voco.encoders.cnn3d import CNN3D, SPEC
from voco.methods.video import VideoClassification
from voco.methods.video_options import VideoOptions
from voco.rng import generator

# options of each run
PARITY = {
    "linear": {"dropout": 0.25, "label_smoothing": 0.1, "flip_prob": 0.5},
    "sequence": {"head": "gru"},
}


def build(options):
    torch.manual_seed(0)
    return VideoClassification(CNN3D(SPEC, (4, 6, 8)), list("abc"), VideoOptions(**options)).double()


def make_batch(method, step, own):
    """Four clips, or the two of one process."""
    frames = [torch.randint(0, 256, (4, 4, 4, 1), generator=generator(step, i), dtype=torch.uint8) for i in range(4)]
    frames = [f.repeat_interleave(4, 0).repeat_interleave(4, 1).repeat_interleave(4, 2) for f in frames]
    draws = [method.sampler(generator(step, i, "draws")) for i in range(4)]
    batch = {name: torch.stack([d[name] for d in draws]) for name in draws[0]}
    batch |= {"frames": torch.stack(frames), "label": torch.tensor([0, 1, 2, step % 3])}
    return batch if own is None else {k: v[2 * own : 2 * own + 2] for k, v in batch.items()}


def train(name, own, wrap):
    method = build(PARITY[name])
    optimiser = torch.optim.AdamW(method.parameters(), 1e-3)
    run, losses, gradients = wrap(method), [], None
    for step in range(5):
        found = run(make_batch(method, step, own))
        found["loss"].backward()
        gradients = gradients or {k: p.grad.clone() for k, p in method.named_parameters() if p.grad is not None}
        optimiser.step()
        optimiser.zero_grad()
        method.after_step()
        losses.append(torch.stack([found[k].detach() for k in ("loss", "top1", "top2")]))
    return {"losses": torch.stack(losses), "gradients": gradients, "state": method.state_dict()}


def parallel(method):
    return DistributedDataParallel(method, find_unused_parameters=method.find_unused, broadcast_buffers=False)


def work(folder: Path, own: int) -> None:
    dist.init_process_group("gloo", f"file://{folder}/group", rank=own, world_size=2, timeout=timedelta(seconds=60))
    torch.save({name: train(name, own, parallel) for name in PARITY}, folder / f"rank{own}.pt")
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
    one, pair = train(name, None, lambda method: method), [found[name] for found in ranks]
    gaps = {"loss": ((pair[0]["losses"] + pair[1]["losses"]) / 2 - one["losses"]).abs().max().item()}
    for part in ("gradients", "state"):
        assert all(found[part].keys() == one[part].keys() for found in pair)
        gaps[part] = max((found[part][k] - v).abs().max().item() for found in pair for k, v in one[part].items())
    assert max(gaps.values()) < 1e-8, gaps
    assert not torch.equal(pair[0]["losses"], pair[1]["losses"])


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]))
