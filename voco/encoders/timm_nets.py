"""timm's 2D networks without their heads: built, looked at once on the meta device, and run to maps.

timm's records of strides and widths are not taken on trust: a network without its storage is run on a small input and
what comes out is noted. That costs no arithmetic and finds the head as well: what gets no gradient from the map.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from voco.errors import InputError

_MOST_PREFIX_TOKENS = 64  # class and register tokens in front of the patches
# A multiple of the usual strides and patches (64, 32, 28, 16, 14, 8 …), so that they can be read off a map.
_TRIAL_EDGE = 448


@dataclass(frozen=True)
class Layout:
    """What one timm network looks like from outside.

    Attributes:
        widths: channels of the maps, shallow to deep, at most one per stride; the last is the network's own output.
        strides: of the same maps in the plane.
        modules: names of the modules that make them.
        indices: which of timm's intermediate maps those are, without the last.
        stem_keys: tensors whose second dimension is the number of input channels.
        smallest: edge of the smallest plane.
        multiple: what the edges of a plane have to be multiples of.
        plane: (H, W) of a network that takes no other size, else None.
        unused: parameters that the maps do not depend on: the head.
        arguments: keywords for timm.
    """

    widths: tuple[int, ...]
    strides: tuple[int, ...]
    modules: tuple[str, ...]
    indices: tuple[int, ...]
    stem_keys: tuple[str, ...]
    smallest: int
    multiple: int
    plane: tuple[int, int] | None
    unused: frozenset[str]
    arguments: dict = field(default_factory=dict)

    def plane_of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the deepest map."""
        return -(-height // self.strides[-1]), -(-width // self.strides[-1])


def build_net(model: str, channels: int, layout: Layout) -> nn.Module:
    """A timm network without its head, random weights, nothing random in its forward pass."""
    return _without(_create(model, channels, layout.arguments), layout.unused)


def deepest_map(net: nn.Module, x: Tensor, layout: Layout) -> Tensor:
    """Output of the network as a map: (N, C, H, W) to (N, F, h, w)."""
    return _as_map(net, net.forward_features(x), layout.plane_of(*x.shape[-2:]))


def all_maps(net: nn.Module, x: Tensor, layout: Layout) -> list[Tensor]:
    """The maps of ``layout``, shallow to deep."""
    if not layout.indices:
        return [deepest_map(net, x, layout)]
    last, maps = net.forward_intermediates(x, indices=list(layout.indices), output_fmt="NCHW")
    return [*maps, _as_map(net, last, layout.plane_of(*x.shape[-2:]))]


@functools.cache
def look_at(model: str, plane: tuple[int, int] | None = None) -> Layout:
    """Run a network on the meta device and note what it does.

    Args:
        model: timm's name, without a tag.
        plane: (H, W) that it will be given, where that is known; built for it if it takes one size only.

    Raises:
        InputError: a network that gives no map of the plane, or whose stem mixes colours and pixels.
    """
    from timm.models import get_pretrained_cfg

    cfg = get_pretrained_cfg(model)
    usual = tuple(cfg.input_size[1:]) if cfg else (224, 224)
    # Building for a look must not move the random numbers that the real weights are drawn with.
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        arguments, net, output = _any_size(model, bool(cfg and cfg.fixed_input_size))
        fixed = None if net is not None else (plane or usual)
        if fixed:
            arguments, net, output = _one_size(model, usual, fixed)
        edge = fixed or (_TRIAL_EDGE, _TRIAL_EDGE)
        stride, width = _stride_and_width(model, net, output, edge)
        unused = _without_gradient(net, output)
        net = _without(net, unused)
        maps = _intermediates(net, edge, stride)
        trial = Layout(
            widths=(*(m[1] for m in maps), width),
            strides=(*(m[2] for m in maps), stride),
            modules=(*(m[3] for m in maps), _maker(net, width)),
            indices=tuple(m[0] for m in maps),
            stem_keys=_stem_keys(model, net, arguments, cfg),
            smallest=1,
            multiple=1,
            plane=fixed,
            unused=unused,
            arguments=arguments,
        )
        # Attention over one token has nothing to learn.
        return trial if fixed else _with_sizes(net, trial, model, least=2 if output.ndim == 3 else 1)


def _create(model: str, channels: int, arguments: dict) -> nn.Module:
    import timm
    from timm.layers import DropPath
    from timm.models import is_model_in_modules

    if is_model_in_modules(model, ["vgg"]):
        # VGG's head of 100 M values would be drawn, which takes seconds, and then be thrown away.
        arguments = {**arguments, "mlp_ratio": 1 / 4096}
    net = timm.create_model(model, pretrained=False, in_chans=channels, num_classes=0, **arguments)
    for module in net.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif isinstance(module, DropPath):
            module.drop_prob = 0.0
    return net


# What timm's networks raise for keywords that they do not take and for sizes that do not fit.
_REFUSALS = (TypeError, AssertionError, RuntimeError, ValueError, IndexError, AttributeError)


def _any_size(model: str, fixed: bool) -> tuple[dict, nn.Module | None, Tensor | None]:
    """Keywords with which a network takes planes of any size, the network, its output; None where there are none."""
    for arguments in ({"dynamic_img_size": True}, {"strict_img_size": False}) if fixed else ({},):
        try:
            net = _create(model, 1, arguments)
            net.forward_features(torch.zeros(2, 1, _TRIAL_EDGE // 2, _TRIAL_EDGE // 2))
            return arguments, net, net.forward_features(torch.zeros(2, 1, _TRIAL_EDGE, _TRIAL_EDGE))
        except _REFUSALS:
            continue
    return {}, None, None


def _one_size(model: str, usual: tuple, plane: tuple) -> tuple[dict, nn.Module, Tensor]:
    """The same for a network that is built for one size."""
    for arguments in ({"img_size": plane}, *([{}] if plane == usual else [])):
        try:
            net = _create(model, 1, arguments)
            return arguments, net, net.forward_features(torch.zeros(2, 1, *plane))
        except _REFUSALS as error:
            reason = error
    raise InputError(
        f"timm's {model} cannot be run on slices of {plane[0]}x{plane[1]} ({str(reason)[:200]}); "
        f"its usual size is {usual[0]}x{usual[1]}"
    )


def _stride_and_width(model: str, net: nn.Module, output: object, size: tuple) -> tuple[int, int]:
    """Of the network's output, as a map or as tokens of one."""
    if isinstance(output, Tensor) and output.ndim == 4:
        last = _channels_last(net, output)
        rows, width = (output.shape[1], output.shape[3]) if last else (output.shape[2], output.shape[1])
        return round(size[0] / rows), width
    if isinstance(output, Tensor) and output.ndim == 3:
        info = getattr(net, "feature_info", None)
        for stride in [entry["reduction"] for entry in reversed(info)] if isinstance(info, list) else []:
            patches = -(-size[0] // stride) * -(-size[1] // stride)
            if 0 <= output.shape[1] - patches <= _MOST_PREFIX_TOKENS:
                return stride, output.shape[2]
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise InputError(f"timm's {model} gives no map of a slice ({shape} from {size[0]}x{size[1]}); choose another")


def _as_map(net: nn.Module, output: Tensor, plane: tuple[int, int]) -> Tensor:
    if output.ndim == 4:
        return output.permute(0, 3, 1, 2) if _channels_last(net, output) else output
    tokens = output[:, output.shape[1] - plane[0] * plane[1] :]
    return tokens.transpose(1, 2).unflatten(2, plane)


def _channels_last(net: nn.Module, output: Tensor) -> bool:
    return getattr(net, "output_fmt", "NCHW") == "NHWC" and output.shape[3] == net.num_features


def _without_gradient(net: nn.Module, output: Tensor) -> frozenset[str]:
    output.sum().backward()
    unused = frozenset(name for name, parameter in net.named_parameters() if parameter.grad is None)
    net.zero_grad(set_to_none=True)
    return unused


def _without(net: nn.Module, unused: frozenset[str]) -> nn.Module:
    """Cut the modules and parameters that the maps do not depend on."""
    for name, module in list(net.named_modules()):
        parameters = [f"{name}.{key}" for key, _ in module.named_parameters()]
        if name and parameters and unused.issuperset(parameters):
            parent, _, child = name.rpartition(".")
            setattr(net.get_submodule(parent), child, nn.Identity())
    for name, _ in list(net.named_parameters()):
        if name in unused:
            parent, _, child = name.rpartition(".")
            setattr(net.get_submodule(parent), child, None)
    return net


def _intermediates(net: nn.Module, size: tuple, deepest: int) -> list[tuple[int, int, int, str]]:
    """Index, width, stride and module of the maps above the deepest, the last one of each stride."""
    if not hasattr(net, "forward_intermediates"):
        return []
    try:
        _, maps = net.forward_intermediates(torch.zeros(2, 1, *size), output_fmt="NCHW")
    except _REFUSALS:
        return []
    info = net.feature_info if isinstance(net.feature_info, list) else []
    found = {}
    for index, m in enumerate(maps):
        stride = round(size[0] / m.shape[2])
        if stride < deepest:
            module = f"net.{info[index]['module']}" if len(info) == len(maps) else "net"
            found[stride] = (index, m.shape[1], stride, module if _has(net, module) else "net")
    return [found[stride] for stride in sorted(found)]


def _maker(net: nn.Module, width: int) -> str:
    info = net.feature_info[-1] if isinstance(getattr(net, "feature_info", None), list) else {}
    module = f"net.{info.get('module')}"
    return module if info.get("num_chs") == width and _has(net, module) else "net"


def _has(net: nn.Module, module: str) -> bool:
    try:
        net.get_submodule(module.removeprefix("net.") if module != "net" else "")
        return True
    except AttributeError:
        return False


def _stem_keys(model: str, net: nn.Module, arguments: dict, cfg) -> tuple[str, ...]:
    """Tensors whose shape follows the input channels, found by building with others."""
    twin = dict(_create(model, 2, arguments).named_parameters())
    keys = [name for name, p in net.named_parameters() if name in twin and twin[name].shape != p.shape]
    if not keys or any(twin[key].shape[1] != 2 or net.get_parameter(key).shape[1] != 1 for key in keys):
        raise InputError(
            f"the stem of timm's {model} does not take channels as they are (it rearranges pixels); choose another"
        )
    return tuple(f"net.{key}" for key in keys)


def _with_sizes(net: nn.Module, layout: Layout, model: str, least: int) -> Layout:
    """Find the smallest plane, and whether edges have to be multiples of the stride."""
    stride = layout.strides[-1]
    smallest = next((n * stride for n in range(least, 8) if _fits(net, layout, n * stride)), None)
    if smallest is None:
        raise InputError(f"timm's {model} gives maps whose size does not follow its strides; choose another")
    free = all(_fits(net, layout, edge) for edge in (smallest + 1, smallest + stride // 2, 4 * stride - 1))
    return replace(layout, smallest=smallest, multiple=1 if free else stride)


def _fits(net: nn.Module, layout: Layout, edge: int) -> bool:
    """Whether a plane of that size runs in training mode and gives the maps that the strides promise."""
    try:
        maps = all_maps(net, torch.zeros(2, 1, edge, edge), layout)
    except _REFUSALS:
        return False
    expected = [(2, width, *[-(-edge // stride)] * 2) for width, stride in zip(layout.widths, layout.strides)]
    return [tuple(m.shape) for m in maps] == expected


def batch_norms(net: nn.Module) -> list[nn.Module]:
    """Modules that use statistics of the batch in training mode."""
    return [m for m in net.modules() if "running_var" in m._buffers or isinstance(m, nn.modules.batchnorm._BatchNorm)]


def closest(name: str, names: Sequence[str]) -> list[str]:
    """Names that a mistyped one may mean."""
    import difflib

    return difflib.get_close_matches(name, names, n=3, cutoff=0.5)
