"""Multiscale vision transformers as CT encoders: frames become depth. Parameter names are torchvision's.

Sources: Fan et al., Multiscale Vision Transformers, ICCV 2021 (v1); Li et al., MViTv2, CVPR 2022 (v2); names and layout
of ``torchvision.models.video.mvit_v1_b`` and ``mvit_v2_s``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from voco.encoders.base import Encoder, register_encoder
from voco.encoders.layers import drop_path, half_as_float, initialise_linears
from voco.encoders.spec import InputSpec, kinetics_spec
from voco.encoders.strides import reduced_depth_strides
from voco.weights.positions import resize_bicubic, resize_linear

# Two patches and the class token are left in the deepest map of the smallest crop.
SPEC = kinetics_spec(size=(16, 224, 224), min_size=(4, 32, 32))
SPEC_32 = kinetics_spec(size=(32, 224, 224), min_size=(4, 32, 32))

_STAGES = (0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3)  # of the 16 blocks
_KERNEL, _STRIDE = (3, 7, 7), (2, 4, 4)
_PLANE = 224 // _STRIDE[1]  # tokens a side at the published size, which sets the lengths of the tables
_NORM_EPS = 1e-6

Grid = tuple[int, int, int]


class Tokens(NamedTuple):
    """Class token and patches (B, 1 + d * h * w, C) with the grid (d, h, w) of the patches."""

    values: Tensor
    grid: Grid

    def map(self) -> Tensor:
        """The patches as (B, C, d, h, w)."""
        return self.values[:, 1:].transpose(1, 2).unflatten(2, self.grid)


class MViTEncoder(Encoder):
    """Four stages of a multiscale transformer, without its classifier.

    ``pool`` is the class token, as published; the maps are the patches at the end of each stage, the last normalised.
    Takes any size: v2 resizes its relative positions at run time as torchvision does, v1 its absolute ones.

    Args:
        input_spec: channels of the input.
        version: 1 (absolute positions, wider after the MLP) or 2 (relative positions, residual pooling, wider in the
            attention).
        frames: depth of the clips that the weights saw; sets the length of the tables of positions.
        depth_stride: 2 as published; 1 moves the patch kernel of three slices by one slice at a time.
        drop_path_rate: chance that the last block is left out per volume in training, growing linearly over the
            blocks; torchvision trains with 0.2.
        kv_stride: in-plane stride of keys and values in the first stage, halved at each further one; 4 for the
            published ImageNet network.
        width: channels of the first stage; each further one has twice as many.
    """

    pooling = "class_token"
    stem_keys = ("conv_proj.weight",)

    def __init__(
        self,
        input_spec: InputSpec,
        version: int,
        frames: int,
        depth_stride: int | None = None,
        drop_path_rate: float = 0.0,
        kv_stride: int = 8,
        width: int = 96,
    ):
        (depth,) = reduced_depth_strides(_STRIDE[:1], depth_stride, "mvit")
        widths = [width * 2**stage for stage in _STAGES]
        # Where a stage begins, v1 widens in the MLP of the block before it and v2 in the attention of the first block.
        outs = widths[1:] + widths[-1:] if version == 1 else widths
        ins = widths if version == 1 else [widths[0], *outs[:-1]]
        last = [i for i, stage in enumerate(_STAGES) if stage not in _STAGES[i + 1 :]]
        super().__init__(
            input_spec,
            [
                {
                    "num_chs": outs[i],
                    "reduction": (depth, _STRIDE[1] * 2**stage, _STRIDE[2] * 2**stage),
                    "module": f"blocks.{i}",
                }
                for stage, i in enumerate(last)
            ],
        )
        self.conv_proj = nn.Conv3d(
            input_spec.channels, width, _KERNEL, stride=(depth, *_STRIDE[1:]), padding=tuple(k // 2 for k in _KERNEL)
        )
        grid = (frames // _STRIDE[0], _PLANE, _PLANE)
        self.pos_encoding = PositionalEncoding(grid, width, absolute=version == 1)
        blocks = []
        for i, stage in enumerate(_STAGES):
            halves = i > 0 and stage > _STAGES[i - 1]
            table = (grid[0], _PLANE // 2 ** (stage - halves)) if version == 2 else None
            attention = _Attention(
                ins[i], widths[i], 2**stage, 2 if halves else 1, max(kv_stride // 2**stage, 1), version, table
            )
            blocks.append(_Block(ins[i], widths[i], outs[i], attention, drop_path_rate * i / (len(_STAGES) - 1)))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(outs[-1], eps=_NORM_EPS)
        self._last_blocks = last
        initialise_linears(self)

    def pool(self, x: Tensor) -> Tensor:
        """The class token: (B, 768), at least float32."""
        self._check_input(x)
        return half_as_float(self._stages(x)[-1].values[:, 0])

    def _maps(self, x: Tensor) -> list[Tensor]:
        return [tokens.map() for tokens in self._stages(x)]

    def _stages(self, x: Tensor) -> list[Tokens]:
        """Class token and patches at the end of each stage."""
        patches = self.conv_proj(x)
        tokens = Tokens(self.pos_encoding(patches), tuple(patches.shape[2:]))
        stages = []
        for i, block in enumerate(self.blocks):
            tokens = self._run(block, tokens)
            if i in self._last_blocks:
                stages.append(tokens)
        stages[-1] = Tokens(self.norm(tokens.values), tokens.grid)
        return stages


class PositionalEncoding(nn.Module):
    """Puts the class token in front of the patches and, in v1, adds what tells positions apart.

    Args:
        grid: (d, h, w) that the tables of positions are made for.
        width: channels of the tokens.
        absolute: whether there are such tables: one for the plane, one for depth, one row for the class token.
    """

    def __init__(self, grid: Grid, width: int, absolute: bool):
        super().__init__()
        self.grid, self.absolute = grid, absolute
        self.class_token = nn.Parameter(torch.empty(width))
        if absolute:
            self.spatial_pos = nn.Parameter(torch.empty(grid[1] * grid[2], width))
            self.temporal_pos = nn.Parameter(torch.empty(grid[0], width))
            self.class_pos = nn.Parameter(torch.empty(width))
        for table in self.parameters():
            nn.init.normal_(table, std=0.02)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, C, d, h, w) to (B, 1 + d * h * w, C)."""
        grid = tuple(patches.shape[2:])
        values, token = patches.flatten(2).transpose(1, 2), self.class_token
        if self.absolute:
            plane = resize_bicubic(self.spatial_pos, self.grid[1:], grid[1:])
            depth = resize_linear(self.temporal_pos, grid[0])
            values = values + (depth[:, None] + plane[None]).flatten(0, 1)
            token = token + self.class_pos
        return torch.cat([token.to(values.dtype).expand(len(values), 1, -1), values], 1)


class _Block(nn.Module):
    """Attention and MLP; either of the two makes the tokens wider, and the shortcut around it is projected."""

    def __init__(self, in_dim: int, dim: int, out_dim: int, attention: _Attention, drop_rate: float):
        super().__init__()
        self.drop_rate = drop_rate
        self.norm1 = nn.LayerNorm(in_dim, eps=_NORM_EPS)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, eps=_NORM_EPS)
        # The third place is the dropout of the published networks, where it is 0; it keeps their numbering.
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Identity(), nn.Linear(4 * dim, out_dim))
        self.widens_attention = in_dim != dim
        self.project = nn.Linear(in_dim, out_dim) if in_dim != out_dim else None

    def forward(self, tokens: Tokens) -> Tokens:
        x, grid = tokens
        normed = self.norm1(x)
        attended, grid_after = self.attn(normed, grid)
        shortcut = self.project(normed) if self.widens_attention else x
        x = self._max_pooled(shortcut, grid) + self._sometimes(attended)
        normed = self.norm2(x)
        shortcut = x if self.project is None or self.widens_attention else self.project(normed)
        return Tokens(shortcut + self._sometimes(self.mlp(normed)), grid_after)

    def _max_pooled(self, x: Tensor, grid: Grid) -> Tensor:
        if (stride := self.attn.query_stride) == 1:
            return x
        pooled = F.max_pool3d(Tokens(x, grid).map(), (1, 3, 3), stride=(1, stride, stride), padding=(0, 1, 1))
        return torch.cat([x[:, :1], pooled.flatten(2).transpose(1, 2)], 1)

    def _sometimes(self, branch: Tensor) -> Tensor:
        return drop_path(branch, self.drop_rate if self.training else 0.0)


class _Attention(nn.Module):
    """Attention of pooled queries to pooled keys and values.

    Args:
        in_dim, dim: width of the tokens before and in the attention.
        heads: number of attention heads.
        query_stride: 2 where the map shrinks; v1 pools queries there only, v2 everywhere.
        kv_stride: of keys and values, counted from the map that comes in.
        version: 1 or 2.
        table: depth and side of the grid of tokens that the relative positions are made for; None without them.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        heads: int,
        query_stride: int,
        kv_stride: int,
        version: int,
        table: tuple[int, int] | None,
    ):
        super().__init__()
        self.heads, self.query_stride, self.residual = heads, query_stride, version == 2
        self.qkv = nn.Linear(in_dim, 3 * dim)
        self.project = nn.Sequential(nn.Linear(dim, dim))
        width = dim // heads
        self.pool_q = _Pool(width, query_stride) if version == 2 or query_stride > 1 else None
        self.pool_k = _Pool(width, kv_stride)
        self.pool_v = _Pool(width, kv_stride)
        self.rel_pos_h = self.rel_pos_w = self.rel_pos_t = None
        if table is not None:
            depth, side = table
            plane = 2 * max(side // query_stride, side // kv_stride) - 1
            self.rel_pos_h = _table(plane, width)
            self.rel_pos_w = _table(plane, width)
            self.rel_pos_t = _table(2 * depth - 1, width)

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """(B, 1 + patches, C) and their grid to the same after the attention."""
        batch, length, _ = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, query_grid = self.pool_q(qkv[0], grid) if self.pool_q is not None else (qkv[0], grid)
        key, key_grid = self.pool_k(qkv[1], grid)
        value, _ = self.pool_v(qkv[2], grid)
        bias = None if self.rel_pos_h is None else self._relative_bias(query, query_grid, key_grid).to(query.dtype)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        if self.residual:
            out = torch.cat([out[:, :, :1], out[:, :, 1:] + query[:, :, 1:]], 2)
        return self.project(out.transpose(1, 2).flatten(2)), query_grid

    def _relative_bias(self, query: Tensor, query_grid: Grid, key_grid: Grid) -> Tensor:
        """(B, heads, 1 + queries, 1 + keys): a product with the query per axis; the class token has none."""
        patches = query[:, :, 1:].unflatten(2, query_grid)
        total = 0
        # Axis by axis: letters of the query's position, and where the key's position goes.
        for axis, (letter, table) in enumerate(zip("dhw", (self.rel_pos_t, self.rel_pos_h, self.rel_pos_w))):
            rows = _relative_rows(table, query_grid[axis], key_grid[axis]).to(query.dtype)
            part = torch.einsum(f"bndhwc,{letter}kc->bndhwk", patches, rows)
            shape = [1, 1, 1]
            shape[axis] = key_grid[axis]
            total = total + part.unflatten(-1, shape)
        return F.pad(total.flatten(5).flatten(2, 4), (1, 0, 1, 0))


class _Pool(nn.Module):
    """Depthwise convolution of the patches of each head, then a norm of patches and class token."""

    def __init__(self, width: int, stride: int):
        super().__init__()
        self.pool = nn.Conv3d(width, width, 3, stride=(1, stride, stride), padding=1, groups=width, bias=False)
        self.norm_act = nn.Sequential(nn.LayerNorm(width, eps=_NORM_EPS))

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """(B, heads, 1 + patches, width) and their grid to the same after pooling."""
        batch, heads = x.shape[:2]
        pooled = self.pool(Tokens(x.flatten(0, 1), grid).map())
        values = pooled.flatten(2).transpose(1, 2).unflatten(0, (batch, heads))
        return self.norm_act(torch.cat([x[:, :, :1], values], 2)), tuple(pooled.shape[2:])


def _table(length: int, width: int) -> nn.Parameter:
    table = nn.Parameter(torch.empty(length, width))
    nn.init.normal_(table, std=0.02)
    return table


def _relative_rows(table: Tensor, queries: int, keys: int) -> Tensor:
    """Rows (queries, keys, C) of a table of relative positions along one axis.

    The coarser of the two grids is stretched over the finer one, and the table resized to the offsets between them.
    """
    query_step, key_step = max(keys / queries, 1.0), max(queries / keys, 1.0)
    query = torch.arange(queries, device=table.device)[:, None] * query_step
    key = (torch.arange(keys, device=table.device)[None, :] - (keys - 1)) * key_step
    return resize_linear(table, 2 * max(queries, keys) - 1)[(query - key).long()]


@register_encoder(
    "mvit_v1_b", "mvit_b_16x4", family="mvit", input_spec=SPEC, summary="MViT-B 16x4, 37 M (Kinetics-400 weights exist)"
)
def mvit_v1_b(
    input_spec: InputSpec, depth_stride: int | None = None, drop_path_rate: float = 0.0, kv_stride: int = 8
) -> MViTEncoder:
    return MViTEncoder(input_spec, 1, 16, depth_stride, drop_path_rate, kv_stride)


@register_encoder(
    "mvit_b_32x3", family="mvit", input_spec=SPEC_32, summary="MViT-B 32x3, 37 M (Kinetics-400 weights exist)"
)
def mvit_b_32x3(input_spec: InputSpec, depth_stride: int | None = None, drop_path_rate: float = 0.0) -> MViTEncoder:
    return MViTEncoder(input_spec, 1, 32, depth_stride, drop_path_rate)


@register_encoder(
    "mvit_v2_s", family="mvit", input_spec=SPEC, summary="MViTv2-S 16x4, 35 M (Kinetics-400 weights exist)"
)
def mvit_v2_s(input_spec: InputSpec, depth_stride: int | None = None, drop_path_rate: float = 0.0) -> MViTEncoder:
    return MViTEncoder(input_spec, 2, 16, depth_stride, drop_path_rate)
