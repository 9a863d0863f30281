"""Video Swin as CT encoders: frames become depth. Parameter names are torchvision's.

Source: Liu et al., Video Swin Transformer, CVPR 2022; names and layout of ``torchvision.models.video.swin3d_*``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from voco.encoders.base import Encoder, register_encoder
from voco.encoders.layers import drop_path, initialise_linears
from voco.encoders.spec import IMAGENET, InputSpec, kinetics_spec
from voco.encoders.strides import reduced_depth_strides

# Two tokens are left in the deepest map of the smallest crop: over one token attention is constant and learns nothing.
SPEC = kinetics_spec(size=(32, 224, 224), min_size=(4, 32, 32), **IMAGENET)

_PATCH = (2, 4, 4)
_NORM_EPS = 1e-5
_OTHER_REGION = -100.0


class Swin3DEncoder(Encoder):
    """The four stages of a 3D Swin transformer, without its classifier; the last map is normalised.

    Takes any size: patches, windows and merged patches are padded with zeros at their far ends, as published.

    Args:
        input_spec: channels of the input.
        width: channels of the first stage; each further one has twice as many.
        blocks: per stage.
        heads: per stage.
        depth_stride: 2 as published; 1 moves the patches of two slices by one slice at a time. Either way the patch of
            the last slice is filled up with a slice of zeros where it needs one.
        drop_path_rate: chance that the last block is left out per volume in training, growing linearly over the
            blocks; torchvision trains with 0.1.
        attention_window: tokens (D, H, W) that attend to each other; (16, 7, 7) in the published SSv2 weights.
    """

    stem_keys = ("patch_embed.proj.weight",)

    def __init__(
        self,
        input_spec: InputSpec,
        width: int,
        blocks: tuple[int, ...],
        heads: tuple[int, ...],
        depth_stride: int | None = None,
        drop_path_rate: float = 0.0,
        attention_window: tuple[int, int, int] = (8, 7, 7),
    ):
        (depth,) = reduced_depth_strides(_PATCH[:1], depth_stride, "swin3d")
        plane = _PATCH[1]
        super().__init__(
            input_spec,
            [
                {
                    "num_chs": width * 2**i,
                    "reduction": (depth, plane * 2**i, plane * 2**i),
                    "module": f"features.{2 * i}",
                }
                for i in range(len(blocks))
            ],
        )
        self.patch_embed = _PatchEmbed(input_spec.channels, width, depth)
        window, total, features = tuple(attention_window), sum(blocks), []
        for stage, (count, number) in enumerate(zip(blocks, heads)):
            dim, first = width * 2**stage, sum(blocks[:stage])
            if stage:
                features.append(_PatchMerging(dim // 2))
            rates = [drop_path_rate * (first + j) / (total - 1) for j in range(count)]
            features.append(
                nn.Sequential(*[_Block(dim, number, window, j % 2 == 1, rate) for j, rate in enumerate(rates)])
            )
        self.features = nn.Sequential(*features)
        self.norm = nn.LayerNorm(width * 2 ** (len(blocks) - 1), eps=_NORM_EPS)
        initialise_linears(self)

    def _maps(self, x: Tensor) -> list[Tensor]:
        maps, x = [], self.patch_embed(x)
        for module in self.features:
            if isinstance(module, _PatchMerging):
                x = self._run(module, x)
                continue
            for block in module:
                x = self._run(block, x)
            maps.append(x)
        maps[-1] = self.norm(maps[-1])
        return [m.permute(0, 4, 1, 2, 3) for m in maps]


class _PatchEmbed(nn.Module):
    """Patches of 2 x 4 x 4 voxels to tokens: (B, C, D, H, W) to (B, d, h, w, width)."""

    def __init__(self, channels: int, width: int, depth_stride: int):
        super().__init__()
        self.proj = nn.Conv3d(channels, width, _PATCH, stride=(depth_stride, *_PATCH[1:]))
        self.norm = nn.LayerNorm(width, eps=_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        # As many tokens as ceil(n / stride), each with a whole patch.
        pads = [
            (-(-n // stride) - 1) * stride + patch - n
            for n, patch, stride in zip(x.shape[2:], self.proj.kernel_size, self.proj.stride)
        ]
        x = self.proj(F.pad(x, (0, pads[2], 0, pads[1], 0, pads[0])))
        return self.norm(x.permute(0, 2, 3, 4, 1))


class _PatchMerging(nn.Module):
    """Four neighbours in a plane become one token of twice the width."""

    def __init__(self, dim: int):
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim, eps=_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[3] % 2, 0, x.shape[2] % 2))
        # The order of the neighbours (down first, then right) is part of the weights.
        neighbours = [x[:, :, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(neighbours, -1)))


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int, window: tuple[int, int, int], shifted: bool, drop_rate: float):
        super().__init__()
        self.drop_rate = drop_rate
        self.norm1 = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.attn = WindowAttention(dim, heads, window, shifted)
        self.norm2 = nn.LayerNorm(dim, eps=_NORM_EPS)
        # The third place is the dropout of the published networks, where it is 0; it keeps their numbering.
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._sometimes(self.attn(self.norm1(x)))
        return x + self._sometimes(self.mlp(self.norm2(x)))

    def _sometimes(self, branch: Tensor) -> Tensor:
        return drop_path(branch, self.drop_rate if self.training else 0.0)


class WindowAttention(nn.Module):
    """Attention within 3D windows of tokens, with a learned bias for every offset between two of them.

    Args:
        dim: width of the tokens.
        heads: number of attention heads.
        window: (D, H, W) in tokens; an axis with fewer tokens is one window.
        shifted: whether the windows of this block are moved by half a window, on axes that have several.
    """

    def __init__(self, dim: int, heads: int, window: tuple[int, int, int], shifted: bool):
        super().__init__()
        self.heads, self.window, self.shifted = heads, window, shifted
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        rows = (2 * window[0] - 1) * (2 * window[1] - 1) * (2 * window[2] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.empty(rows, heads))
        nn.init.normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, D, H, W, C) to the same shape."""
        size = tuple(x.shape[1:4])
        window = tuple(min(n, w) for n, w in zip(size, self.window))
        shift = tuple(w // 2 if self.shifted and n > w else 0 for n, w in zip(size, self.window))
        pads = [-n % w for n, w in zip(size, window)]
        x = F.pad(x, (0, 0, 0, pads[2], 0, pads[1], 0, pads[0]))
        padded = tuple(x.shape[1:4])
        if any(shift):
            x = x.roll([-s for s in shift], (1, 2, 3))

        windows = _partition(x, window)
        batch, count, length, dim = windows.shape
        qkv = self.qkv(windows).reshape(batch * count, length, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        bias = self.relative_bias(window)[None]
        if any(shift):
            bias = bias + _region_mask(padded, window, shift, x.device)[:, None]
            bias = bias.expand(batch, -1, -1, -1, -1).flatten(0, 1)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        out = self.proj(out.transpose(1, 2).reshape(batch, count, length, dim))

        out = _unpartition(out, window, padded)
        if any(shift):
            out = out.roll(shift, (1, 2, 3))
        return out[:, : size[0], : size[1], : size[2]]

    def relative_bias(self, window: tuple[int, int, int]) -> Tensor:
        """Bias between all tokens of a window, which may be smaller than ``self.window``.

        Video Swin and torchvision cut the index table of the full window instead, ``index[:n, :n]``. Tokens are
        numbered depth first, so that is right where only depth is cut and wrong where height or width is: the first n
        tokens of the full window are then other tokens than those of the small one.

        Returns:
            (heads, n, n) with n the tokens in ``window``.
        """
        table = self.relative_position_bias_table.reshape(*(2 * w - 1 for w in self.window), self.heads)
        offsets = []
        for axis, (small, full) in enumerate(zip(window, self.window)):
            place = torch.arange(small, device=table.device)
            shape = [1] * 6
            shape[axis] = shape[axis + 3] = small
            offsets.append((place[:, None] - place[None, :] + full - 1).reshape(shape))
        length = window[0] * window[1] * window[2]
        return table[tuple(offsets)].reshape(length, length, self.heads).permute(2, 0, 1)


def _partition(x: Tensor, window: tuple[int, int, int]) -> Tensor:
    """(B, D, H, W, C) to (B, windows, tokens of a window, C)."""
    batch, depth, height, width, channels = x.shape
    d, h, w = window
    x = x.reshape(batch, depth // d, d, height // h, h, width // w, w, channels)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(batch, -1, d * h * w, channels)


def _unpartition(x: Tensor, window: tuple[int, int, int], size: tuple[int, int, int]) -> Tensor:
    """Inverse of ``_partition``."""
    d, h, w = window
    x = x.reshape(x.shape[0], size[0] // d, size[1] // h, size[2] // w, d, h, w, x.shape[-1])
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(x.shape[0], *size, x.shape[-1])


def _region_mask(
    size: tuple[int, int, int], window: tuple[int, int, int], shift: tuple[int, int, int], device: torch.device
) -> Tensor:
    """(windows, tokens, tokens): strongly negative between tokens that the roll brought together from opposite ends."""
    regions = torch.zeros(1, *size, 1, dtype=torch.long, device=device)
    for axis, (n, s) in enumerate(zip(size, shift)):
        shape = [1] * 5
        shape[axis + 1] = n
        regions = regions + 2**axis * (torch.arange(n, device=device) >= n - s).long().reshape(shape)
    regions = _partition(regions, window)[0, :, :, 0]
    return (regions[:, :, None] != regions[:, None, :]) * _OTHER_REGION


def _register(size: str, width: int, blocks: tuple[int, ...], heads: tuple[int, ...], summary: str) -> None:
    def build(
        input_spec: InputSpec,
        depth_stride: int | None = None,
        drop_path_rate: float = 0.0,
        attention_window: tuple[int, int, int] = (8, 7, 7),
    ) -> Swin3DEncoder:
        return Swin3DEncoder(input_spec, width, blocks, heads, depth_stride, drop_path_rate, attention_window)

    register_encoder(f"swin3d_{size}", family="swin3d", input_spec=SPEC, summary=summary)(build)


_register("t", 96, (2, 2, 6, 2), (3, 6, 12, 24), "Video Swin-T, 28 M (Kinetics-400 weights exist)")
_register("s", 96, (2, 2, 18, 2), (3, 6, 12, 24), "Video Swin-S, 50 M (Kinetics-400 weights exist)")
_register("b", 128, (2, 2, 18, 2), (4, 8, 16, 32), "Video Swin-B, 88 M (Kinetics-400 weights exist)")
