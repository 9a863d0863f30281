"""What a run cost: floating point operations, memory and time per volume."""

from __future__ import annotations

import contextlib
import math
import sys
from pathlib import Path

import torch
from torch import nn

# Written beside every stored count. 1, or no entry: torch's formulas on CPU operators, which multiply the weight
# gradient of a grouped convolution by its groups (up to 256 times too much) and miss LSTMs and fused attention. 2: as
# count_operations says.
FLOPS_RULE = 2


def flops_per_sample(method: nn.Module, batch: dict[str, torch.Tensor]) -> int | None:
    """Floating point operations of one training step, forward and backward, divided by its samples.

    Counted on fake tensors: nothing is computed, and neither weights, statistics nor random states change.

    Args:
        method: ``forward(batch)`` gives a dict with ``loss``; on the CPU.
        batch: one micro-batch; only shapes and types are read.

    Returns:
        None where the network has an operator that needs values.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    tensors = {**dict(method.named_parameters()), **dict(method.named_buffers())}
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = {name: mode.from_tensor(value) for name, value in tensors.items()}
            inputs = {name: mode.from_tensor(value) for name, value in batch.items()}
            with count_operations() as counter:
                torch.func.functional_call(method, fake, (inputs,))["loss"].backward()
    except (RuntimeError, NotImplementedError, ValueError, TypeError):
        return None
    return round(counter.get_total_flops() / len(next(iter(batch.values()))))


@contextlib.contextmanager
def count_operations():
    """Count what runs inside, on fake tensors and the meta device too; ``get_total_flops()`` of what it gives.

    A multiplication and an addition are two operations. Counted are matrix products (so linear and recurrent layers,
    and attention as its two products forward and four backward) and convolutions: two operations for every weight and
    every place where it is used, for the output, the input's gradient and the weights' gradient alike; padding counts
    as voxels. Activation checkpointing adds the forward pass that it repeats. Norms, activations, biases, softmax,
    pooling, resizing and the optimizer are not counted.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    aten = torch.ops.aten
    rules = {
        aten.convolution_backward: _convolution_backward,
        aten.mkldnn_rnn_layer: _recurrent,
        aten.mkldnn_rnn_layer_backward: lambda *shapes, **_: 2 * _recurrent(*shapes),
    }
    # fused attention of the CPU would hide its products
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=rules) as counter:
        yield counter


def _recurrent(x, to_gates, from_state, *_args, **_) -> int:
    """Operations of one layer and direction over a sequence, as oneDNN runs it on CPUs; shapes, ``x`` (T, B, C)."""
    return 2 * x[0] * x[1] * (math.prod(to_gates) + math.prod(from_state))


def _convolution_backward(
    grad_out, x, weight, _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups, wanted, **_
) -> int:
    """Operations of the gradients that are ``wanted`` (of input, weights, bias); arguments are shapes.

    ``weight`` has the channels of one group only, so its size has the groups in it. torch's own formula (2.14) takes
    the kernel's gradient to join all input channels with all output channels.
    """
    places = x if transposed else grad_out
    each = 2 * places[0] * math.prod(places[2:]) * math.prod(weight)
    return each * (bool(wanted[0]) + bool(wanted[1]))


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
