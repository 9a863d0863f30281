"""The encoder half of SwinUNETR, with ``use_v2`` as VoCo pretrains it and without; parameter names are MONAI's.

Built from MONAI's own blocks, without the decoders, so that published VoCo files fit name by name and the numbers are
MONAI's; ``decoder=True`` adds them (``voco.encoders.decoders``). Embedding: the averages of five maps side by side,
24 x feature size (``models/voco_head.py`` of the public VoCo code).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from voco.encoders.base import Encoder, register_encoder
from voco.encoders.spec import InputSpec
from voco.errors import InputError

# At 32^3 the deepest map is one voxel, on which instance normalisation is undefined.
SPEC = InputSpec(
    axes="RAS",
    spacing_mm=(1.5, 1.5, 1.5),
    windows=((-175.0, 250.0),),
    size=(64, 64, 64),
    min_size=(64, 64, 64),
    size_multiple=(32, 32, 32),
)
# Layer normalisation runs over channels, so that here the deepest map may be one voxel. The window and the missing
# spacing are those of NVIDIA's self-supervised training, which did not resample.
SWINVIT_SPEC = replace(SPEC, spacing_mm=None, windows=((-1000.0, 1000.0),), size=(96, 96, 96), min_size=(32, 32, 32))


# Which of the eight voxels of a 2x2x2 block go where in the vector that a merging layer projects, by (D, H, W) offset
# in the network's axes. MONAI up to 1.4 took two of them twice and left two out, and all published weights were
# trained so (both VoCo repositories pin 1.3.0); MONAI from 1.5 on takes each once, under the same tensor names
# (Project-MONAI/MONAI issues 4757, 7324, 8284).
MERGINGS = {
    "all": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)),
    "repeated": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)),
}


class _SwinEncoder(Encoder):
    """What both encoders below share: MONAI's SwinTransformer, run step by step.

    Args:
        input_spec: channels and axes of the input.
        feature_info: see ``Encoder``.
        feature_size: width F of the first stage, a multiple of 12.
        drop_path_rate: stochastic depth, growing linearly over the blocks.
        use_v2: a residual convolution block before each stage.
        merging: ``all`` or ``repeated``, see ``MERGINGS``.
    """

    def __init__(
        self,
        input_spec: InputSpec,
        feature_info: list[dict],
        feature_size: int,
        drop_path_rate: float,
        use_v2: bool,
        merging: str,
    ):
        if merging not in MERGINGS:
            raise InputError(f"merging must be one of {', '.join(MERGINGS)}; found {merging!r}")
        from monai.networks.nets.swin_unetr import SwinTransformer

        super().__init__(input_spec, feature_info)
        with _HostLinspace():
            self.swinViT = SwinTransformer(
                in_chans=input_spec.channels,
                embed_dim=feature_size,
                window_size=(7, 7, 7),
                patch_size=(2, 2, 2),
                depths=(2, 2, 2, 2),
                num_heads=(3, 6, 12, 24),
                drop_path_rate=drop_path_rate,
                use_v2=use_v2,
            )
        for stage in self._stages:
            stage.downsample = _Merging(stage.downsample, MERGINGS[merging])

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        super().set_grad_checkpointing(enable)
        for stage in self._stages:
            for block in stage.blocks:
                block.use_checkpoint = enable

    @property
    def _stages(self) -> list:
        vit = self.swinViT
        return [vit.layers1[0], vit.layers2[0], vit.layers3[0], vit.layers4[0]]

    def _hidden_states(self, x: Tensor) -> list[Tensor]:
        # MONAI's SwinTransformer.forward step by step, so that its convolutions can be checkpointed as well.
        vit = self.swinViT
        convs = (vit.layers1c, vit.layers2c, vit.layers3c, vit.layers4c) if vit.use_v2 else (None,) * 4
        x = vit.pos_drop(vit.patch_embed(x))
        hidden = [vit.proj_out(x, normalize=True)]
        for conv, stage in zip(convs, self._stages):
            x = x if conv is None else self._run(conv[0], x.contiguous())
            x = stage(x.contiguous())
            hidden.append(vit.proj_out(x, normalize=True))
        return hidden


class SwinUNETREncoder(_SwinEncoder):
    """SwinTransformer plus the five convolution blocks that SwinUNETR puts on its hidden states.

    ``pyramid`` gives what VoCo pools: strides 1, 2, 4, 8, 32. A segmentation decoder also wants the raw hidden state
    at stride 16, which carries no block of its own: ``decoder_maps`` gives all six.

    Args:
        input_spec: channels and axes of the input.
        feature_size: width F of the first stage, a multiple of 12; the stages are F, 2F, 4F, 8F, 16F wide.
        drop_path_rate: stochastic depth, growing linearly over the blocks.
        use_v2: a residual convolution block before each stage, as VoCo has; NVIDIA's and SuPreM's weights do without.
        merging: ``all``, or ``repeated`` for weights that were trained with MONAI up to 1.4, see ``MERGINGS``.
    """

    pooling = "pyramid"
    stem_keys = (
        "swinViT.patch_embed.proj.weight",
        "encoder1.layer.conv1.conv.weight",
        "encoder1.layer.conv3.conv.weight",
    )

    def __init__(
        self,
        input_spec: InputSpec,
        feature_size: int,
        drop_path_rate: float = 0.0,
        use_v2: bool = True,
        merging: str = "all",
    ):
        from monai.networks.blocks import UnetrBasicBlock

        blocks = {"encoder1": (1, 1), "encoder2": (1, 2), "encoder3": (2, 4), "encoder4": (4, 8), "encoder10": (16, 32)}
        info = [
            {"num_chs": width * feature_size, "reduction": (stride,) * 3, "module": name}
            for name, (width, stride) in blocks.items()
        ]
        super().__init__(input_spec, info, feature_size, drop_path_rate, use_v2, merging)
        for name, (width, _) in blocks.items():
            block = UnetrBasicBlock(
                spatial_dims=3,
                in_channels=input_spec.channels if name == "encoder1" else width * feature_size,
                out_channels=width * feature_size,
                kernel_size=3,
                stride=1,
                norm_name="instance",
                res_block=True,
            )
            self.add_module(name, block)

    def decoder_maps(self, x: Tensor) -> list[Tensor]:
        """The six maps that a SwinUNETR decoder wants, strides 1, 2, 4, 8, 16, 32, canonical axes.

        The one at stride 16 (8F channels) is the bare hidden state.
        """
        self._check_input(x)
        hidden = self._hidden_states(x)
        maps = self._blocks(x, hidden)
        return [self._canonical(m) for m in (*maps[:4], hidden[3], maps[4])]

    def _blocks(self, x: Tensor, hidden: list[Tensor]) -> list[Tensor]:
        inputs = (x, hidden[0], hidden[1], hidden[2], hidden[4])
        modules = (self.encoder1, self.encoder2, self.encoder3, self.encoder4, self.encoder10)
        return [self._run(module, m) for module, m in zip(modules, inputs)]

    def _maps(self, x: Tensor) -> list[Tensor]:
        return self._blocks(x, self._hidden_states(x))

    def _deepest(self, x: Tensor) -> Tensor:
        return self._run(self.encoder10, self._hidden_states(x)[4])


class SwinViTEncoder(_SwinEncoder):
    """SwinTransformer alone: its five hidden states, strides 2 to 32, F to 16F wide; ``pool`` averages the deepest.

    For NVIDIA's self-supervised files, which hold nothing else of a SwinUNETR: every number that it gives comes from
    the file, where the convolution blocks of a SwinUNETR would stay random. Arguments as ``SwinUNETREncoder``.
    """

    stem_keys = ("swinViT.patch_embed.proj.weight",)

    def __init__(self, input_spec: InputSpec, feature_size: int, drop_path_rate: float = 0.0, merging: str = "all"):
        modules = ("patch_embed", "layers1", "layers2", "layers3", "layers4")
        info = [
            {"num_chs": feature_size * 2**i, "reduction": (2 ** (i + 1),) * 3, "module": f"swinViT.{name}"}
            for i, name in enumerate(modules)
        ]
        super().__init__(input_spec, info, feature_size, drop_path_rate, False, merging)

    def _maps(self, x: Tensor) -> list[Tensor]:
        return self._hidden_states(x)


class _Merging(nn.Module):
    """Patch merging with MONAI's tensors, whatever the installed MONAI gathers: half the size, twice the channels."""

    def __init__(self, layer: nn.Module, offsets: tuple[tuple[int, int, int], ...]):
        super().__init__()
        self.reduction = layer.reduction
        self.norm = layer.norm
        self.offsets = offsets

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W, C) with even sizes to (B, D/2, H/2, W/2, 2C)."""
        return self.reduction(self.norm(torch.cat([x[:, d::2, h::2, w::2] for d, h, w in self.offsets], -1)))


class _HostLinspace(TorchFunctionMode):
    """MONAI reads the stochastic depth rates off a tensor, which fails on the meta device: keep that one on the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def _register(name: str, alias: tuple[str, ...], feature_size: int, use_v2: bool) -> None:
    summary = f"SwinUNETR encoder{'' if use_v2 else ' without v2'}, feature size {feature_size}"

    @register_encoder(name, *alias, family="swinunetr", input_spec=SPEC, summary=summary)
    def build(
        input_spec: InputSpec, drop_path_rate: float = 0.0, merging: str = "all", decoder: bool = False
    ) -> SwinUNETREncoder:
        from voco.encoders.decoders import SwinUNETRWithDecoder

        kind = SwinUNETRWithDecoder if decoder else SwinUNETREncoder
        return kind(input_spec, feature_size, drop_path_rate, use_v2, merging)


for _size, _feature_size in {"t": 12, "b": 48, "l": 96, "h": 192}.items():
    _register(f"swinunetr_{_size}", (f"swin_{_size}",), _feature_size, True)
for _size, _feature_size in {"t": 12, "s": 24, "b": 48}.items():
    _register(f"swinunetr_v1_{_size}", (), _feature_size, False)


@register_encoder(
    "swinvit_b",
    family="swinunetr",
    input_spec=SWINVIT_SPEC,
    summary="the SwinTransformer of SwinUNETR alone, feature size 48 (NVIDIA's self-supervised weights)",
)
def swinvit_b(input_spec: InputSpec, drop_path_rate: float = 0.0, merging: str = "all") -> SwinViTEncoder:
    return SwinViTEncoder(input_spec, 48, drop_path_rate, merging)
