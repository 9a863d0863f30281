"""Two gloo processes against one: gathering with gradient and BatchNorm over all ranks."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from voco.distributed import convert_batchnorm, gather, gather_with_gradient, rank, world_size
from voco.errors import InputError
from voco.rng import generator

NORMS = {
    "1d": (nn.BatchNorm1d, {}, (6, 3)),
    "1d_sequence": (nn.BatchNorm1d, {"affine": False}, (6, 3, 5)),
    "2d_average": (nn.BatchNorm2d, {"momentum": None}, (6, 3, 4, 2)),
    "3d": (nn.BatchNorm3d, {"eps": 1e-3, "momentum": 0.3}, (4, 3, 2, 3, 2)),
    "3d_untracked": (nn.BatchNorm3d, {"track_running_stats": False}, (4, 3, 2, 3, 2)),
}


class OwnNorm(nn.BatchNorm2d):
    pass


def make_norm(name):
    kind, settings, shape = NORMS[name]
    norm = kind(3, **settings).double()
    if norm.affine:
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([0.5, 2.0, -1.0]))
            norm.bias.copy_(torch.tensor([0.1, 0.0, 3.0]))
    batches = [torch.randn(shape, generator=generator(name, i), dtype=torch.float64) * 2 + i for i in range(2)]
    return norm, batches, torch.randn(shape, generator=generator(name, "target"), dtype=torch.float64)


def run_norm(norm, batches, target):
    """Two training steps' forward, the second one's gradients, then evaluation."""
    with torch.no_grad():
        norm(batches[0])
    x = batches[1].clone().requires_grad_()
    out = norm(x)
    (out * target).sum().backward()
    buffers = {k: v.clone() for k, v in norm.named_buffers()}
    grads = {k: v.grad for k, v in norm.named_parameters()}
    return {"out": out.detach(), "x": x.grad, "eval": norm.eval()(batches[0]).detach(), "buffers": buffers} | grads


def work(folder: Path, own: int) -> None:
    dist.init_process_group(
        "gloo", f"file://{folder}/group", rank=own, world_size=2, timeout=timedelta(seconds=60)
    )  # fmt: skip
    found = {"place": (rank(), world_size())}
    x = (torch.arange(6.0).view(3, 2) + 10 * own).double().requires_grad_()
    rows = gather_with_gradient(x)
    weight = torch.randn(6, 2, generator=generator("weight", own), dtype=torch.float64)
    (rows.square() * weight).sum().backward()
    found |= {"rows": rows.detach(), "grad": x.grad, "case": gather(torch.tensor([own, own + 7]))}
    found["flags"] = gather(torch.tensor([own == 0, True]))
    for name in NORMS:
        norm, batches, target = make_norm(name)
        half = len(target) // 2
        part = slice(own * half, (own + 1) * half)
        found[name] = run_norm(convert_batchnorm(norm), [b[part] for b in batches], target[part])
    far = torch.randn(8, 2, generator=generator("far")) + 1e4
    found["far"] = convert_batchnorm(nn.BatchNorm1d(2))(far[own * 4 : own * 4 + 4]).detach()
    try:
        convert_batchnorm(nn.Sequential(OwnNorm(3)))
    except InputError as error:
        found["refused"] = str(error)
    torch.save(found, folder / f"rank{own}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    runs = [subprocess.Popen([sys.executable, __file__, str(folder), str(r)], env=environment) for r in range(2)]
    try:
        assert [run.wait(timeout=100) for run in runs] == [0, 0]
    finally:
        for run in runs:
            run.kill()
    return [torch.load(folder / f"rank{r}.pt", weights_only=True) for r in range(2)]


def test_gather_and_its_gradient(ranks):
    assert [r["place"] for r in ranks] == [(0, 2), (1, 2)]
    rows = torch.cat([torch.arange(6.0).view(3, 2), torch.arange(6.0).view(3, 2) + 10]).double()
    weight = sum(torch.randn(6, 2, generator=generator("weight", r), dtype=torch.float64) for r in range(2))
    for own, found in enumerate(ranks):
        assert torch.equal(found["rows"], rows)
        torch.testing.assert_close(found["grad"], (2 * rows * weight)[3 * own : 3 * own + 3])
        assert found["case"].tolist() == [0, 7, 1, 8] and found["flags"].tolist() == [True, True, False, True]


@pytest.mark.parametrize("name", NORMS)
def test_batchnorm_of_two_processes_equals_one(ranks, name):
    one = run_norm(*make_norm(name))
    pair = [found[name] for found in ranks]
    keys = ["out", "x"] if NORMS[name][1].get("track_running_stats", True) is False else ["out", "x", "eval"]
    for key in keys:
        torch.testing.assert_close(torch.cat([found[key] for found in pair]), one[key], rtol=1e-10, atol=1e-10)
    for key in {"weight", "bias"} & set(one):
        torch.testing.assert_close(pair[0][key] + pair[1][key], one[key], rtol=1e-10, atol=1e-10)
    for found in pair:
        assert found["buffers"].keys() == one["buffers"].keys()
        for key, value in one["buffers"].items():
            torch.testing.assert_close(found["buffers"][key], value, rtol=1e-10, atol=1e-10)


def test_far_from_zero_the_variance_does_not_cancel(ranks):
    far = (torch.randn(8, 2, generator=generator("far")) + 1e4).double()
    expected = (far - far.mean(0)) / (far.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(torch.cat([r["far"] for r in ranks]).double(), expected, rtol=0, atol=2e-3)


def test_an_unknown_batchnorm_is_refused_when_it_matters(ranks):
    assert all("OwnNorm" in found["refused"] and "norm_scope" in found["refused"] for found in ranks)
    convert_batchnorm(OwnNorm(3))  # one process: nothing would change


def test_one_process_is_torch_to_the_bit():
    assert (rank(), world_size()) == (0, 1)
    for name in NORMS:
        norm, batches, target = make_norm(name)
        converted = convert_batchnorm(nn.ModuleDict({"a": copy.deepcopy(norm)}))
        assert list(converted.state_dict()) == [f"a.{key}" for key in norm.state_dict()]
        plain, own = run_norm(norm, batches, target), run_norm(converted["a"], batches, target)
        for key in plain.keys() - {"buffers"}:
            assert torch.equal(plain[key], own[key])
        for key, value in plain["buffers"].items():
            assert torch.equal(value, own["buffers"][key])
    x = torch.ones(2, 3, requires_grad=True)
    assert gather_with_gradient(x) is x and torch.equal(gather(x), x)


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]))
