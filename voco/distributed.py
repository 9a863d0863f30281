"""Batches that span all ranks: gathering with gradient, and BatchNorm statistics over every process, on CPU and GPU.

torch's own SyncBatchNorm runs on GPUs only. Convention: every rank computes a loss, and the run minimises their mean,
which is what DistributedDataParallel's averaging of gradients does.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from voco.errors import InputError


def world_size() -> int:
    """Number of processes of the run; 1 when no process group exists."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process; 0 when no process group exists."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather(x: Tensor) -> Tensor:
    """Rows of all ranks in rank order, without gradient: (B, ...) -> (ranks * B, ...). Every rank needs the same B."""
    if world_size() == 1:
        return x.detach()
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        return gather(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        # every rank's loss saw these rows: their gradients add up (gloo has no reduce_scatter, so the whole is summed)
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def gather_with_gradient(x: Tensor) -> Tensor:
    """Rows of all ranks in rank order, with gradient: (B, ...) -> (ranks * B, ...).

    The gradient of a row is the sum over the losses of all ranks. Every rank needs the same B. With one process, or
    without a process group, ``x`` itself.
    """
    return x if world_size() == 1 else _Gather.apply(x)


class _GlobalNorm(torch.autograd.Function):
    """Batch normalisation with statistics over all ranks.

    Returns the output, and over all ranks the mean, the biased variance and the number of values per channel.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float):
        wide = x if x.dtype == torch.float64 else x.float()
        dims = [0, *range(2, x.dim())]
        # Two passes here and a merge of (mean, squared deviations) over ranks: sums of squares would cancel.
        var, mean = torch.var_mean(wide, dims, correction=0)
        count = mean.new_full((1,), x.numel() // x.shape[1])
        means, variances, counts = gather(torch.cat([mean, var, count]).unsqueeze(0)).split(
            [len(mean), len(mean), 1], 1
        )
        share, count = counts / counts.sum(), counts.sum()
        mean = (share * means).sum(0)
        var = (share * (variances + (means - mean).square())).sum(0)
        scale = torch.rsqrt(var + eps)
        out = (wide - _wide(mean, x)) * _wide(scale, x)
        if weight is not None:
            out = out * _wide(weight, x) + _wide(bias, x)
        ctx.save_for_backward(x, weight, mean, scale, count)
        ctx.mark_non_differentiable(mean, var, count)
        return out.to(x.dtype), mean, var, count

    @staticmethod
    def backward(ctx, grad: Tensor, *_):
        x, weight, mean, scale, count = ctx.saved_tensors
        grad = grad.to(mean.dtype)
        dims = [0, *range(2, x.dim())]
        unit = (x - _wide(mean, x)) * _wide(scale, x)
        sums = torch.stack([grad.sum(dims), (grad * unit).sum(dims)])
        grad_bias, grad_weight = (None, None) if weight is None else (sums[0].clone(), sums[1].clone())
        dist.all_reduce(sums)
        sums = sums / count
        inner = grad - _wide(sums[0], x) - unit * _wide(sums[1], x)
        factor = scale if weight is None else scale * weight
        return (inner * _wide(factor, x)).to(x.dtype), grad_weight, grad_bias, None


def _wide(per_channel: Tensor, x: Tensor) -> Tensor:
    return per_channel.view(1, -1, *[1] * (x.dim() - 2))


class _GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm whose training statistics cover all ranks; with one process it is torch's own, to the bit.

    Ranks may bring different numbers of values, which count accordingly, but every rank must call it equally often, and
    run backward through it. In evaluation mode nothing is exchanged: ranks score different numbers of cases.
    """

    def forward(self, x: Tensor) -> Tensor:
        if world_size() == 1 or not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        out, mean, var, count = _GlobalNorm.apply(x, self.weight, self.bias, self.eps)
        if self.track_running_stats and self.running_mean is not None:
            self.num_batches_tracked.add_(1)
            momentum = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
            unbiased = var * (count / (count - 1).clamp(min=1))
            self.running_mean.lerp_(mean.to(self.running_mean), momentum)
            self.running_var.lerp_(unbiased.to(self.running_var), momentum)
        return out


class GlobalBatchNorm1d(_GlobalBatchNorm, nn.BatchNorm1d):
    pass


class GlobalBatchNorm2d(_GlobalBatchNorm, nn.BatchNorm2d):
    pass


class GlobalBatchNorm3d(_GlobalBatchNorm, nn.BatchNorm3d):
    pass


class GlobalBatchNormAct2d(GlobalBatchNorm2d):
    """timm's BatchNormAct2d, which drops and activates what it has normalised."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


def spans_ranks(module: nn.Module) -> bool:
    """Whether a forward pass of ``module`` now takes the statistics of a BatchNorm over several ranks."""
    return world_size() > 1 and any(isinstance(m, _GlobalBatchNorm) and m.training for m in module.modules())


def largest(value: int, device: torch.device) -> int:
    """The largest of the ranks' whole numbers; ``device`` is one that the process group can send from."""
    if world_size() == 1:
        return value
    found = torch.tensor(value, device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


@torch.no_grad()
def average_running_statistics(module: nn.Module) -> None:
    """Give every rank the mean over the ranks of the running statistics of all BatchNorms in ``module``.

    Where ranks normalise by their own batches, their running statistics drift apart, and with them what the same
    weights predict. Called after each step, every rank holds the one model that is saved.
    """
    if world_size() == 1:
        return
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    buffers = [b for m in norms if m.running_mean is not None for b in (m.running_mean, m.running_var)]
    if not buffers:
        return
    together = torch.cat([b.double() for b in buffers])
    dist.all_reduce(together)
    for buffer, mean in zip(buffers, (together / world_size()).split([len(b) for b in buffers])):
        buffer.copy_(mean)


_GLOBAL = {
    nn.BatchNorm1d: GlobalBatchNorm1d,
    nn.BatchNorm2d: GlobalBatchNorm2d,
    nn.BatchNorm3d: GlobalBatchNorm3d,
}


def _global_class(module: nn.Module) -> type | None:
    # by its name: tensor code does not import timm
    if type(module).__name__ == "BatchNormAct2d" and type(module).__module__.startswith("timm."):
        return GlobalBatchNormAct2d
    return _GLOBAL.get(type(module))


def convert_batchnorm(module: nn.Module) -> nn.Module:
    """Make the training statistics of every BatchNorm in ``module`` cover all ranks; changes ``module`` in place.

    Parameters, buffers, their names, evaluation mode and, with one process, every result stay as they are.

    Args:
        module: any module; a BatchNorm itself is fine.

    Returns:
        ``module``.

    Raises:
        InputError: with several processes, a BatchNorm of an own class, whose forward is not known here.
    """
    known = tuple(_GLOBAL.values())
    for name, child in module.named_modules():
        if replacement := _global_class(child):
            # Changing the class keeps parameters, buffers, hooks and references of others to this very module.
            child.__class__ = replacement
        elif (
            isinstance(child, nn.modules.batchnorm._BatchNorm)
            and not isinstance(child, (*known, nn.SyncBatchNorm))
            and world_size() > 1
        ):
            raise InputError(
                f"{name or 'the module'} is a {type(child).__name__}, whose statistics cannot be taken over all "
                "processes; choose norm_scope 'local' (in fine-tuning --train.batchnorm local), or run one process"
            )
    return module
