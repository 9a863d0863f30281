"""What a run cost: floating point operations, memory and time per volume."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn


def flops_per_sample(method: nn.Module, batch: dict[str, torch.Tensor]) -> int | None:
    """Floating point operations of one training step, forward and backward, divided by its samples.

    Counted on fake tensors: nothing is computed, and neither weights, statistics nor random states change. A
    multiplication and an addition are two operations; matrix products, convolutions and attention are counted, as
    torch counts them.

    Args:
        method: ``forward(batch)`` gives a dict with ``loss``; on the CPU.
        batch: one micro-batch; only shapes and types are read.

    Returns:
        None where the network has an operator that needs values.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    tensors = {**dict(method.named_parameters()), **dict(method.named_buffers())}
    counter = FlopCounterMode(display=False)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = {name: mode.from_tensor(value) for name, value in tensors.items()}
            inputs = {name: mode.from_tensor(value) for name, value in batch.items()}
            with counter:
                torch.func.functional_call(method, fake, (inputs,))["loss"].backward()
    except (RuntimeError, NotImplementedError, ValueError, TypeError):
        return None
    return round(counter.get_total_flops() / len(next(iter(batch.values()))))


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory in use so far: of the GPU by tensors, of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage would also count what the parent held when it started this process
        line = next((text for text in status.read_text().splitlines() if text.startswith("VmHWM:")), None)
        if line is not None:
            return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
