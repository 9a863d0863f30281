"""The encoder half of SwinUNETR (with ``use_v2``), as VoCo pretrains it; parameter names are MONAI's.

Built from MONAI's own blocks, without the decoders, so that published VoCo files fit name by name and the numbers are
MONAI's. Embedding: the averages of five maps side by side, 24 x feature size (``models/voco_head.py`` of the public
VoCo code).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from voco.encoders.base import Encoder, register_encoder
from voco.encoders.spec import InputSpec

# At 32^3 the deepest map is one voxel, on which instance normalisation is undefined.
SPEC = InputSpec(
    axes="RAS",
    spacing_mm=(1.5, 1.5, 1.5),
    windows=((-175.0, 250.0),),
    size=(64, 64, 64),
    min_size=(64, 64, 64),
    size_multiple=(32, 32, 32),
)


class SwinUNETREncoder(Encoder):
    """SwinTransformer plus the five convolution blocks that SwinUNETR puts on its hidden states.

    ``pyramid`` gives what VoCo pools: strides 1, 2, 4, 8, 32. A segmentation decoder also wants the raw hidden state
    at stride 16, which carries no block of its own: ``decoder_maps`` gives all six.

    Args:
        input_spec: channels and axes of the input.
        feature_size: width F of the first stage, a multiple of 12; the stages are F, 2F, 4F, 8F, 16F wide.
        drop_path_rate: stochastic depth, growing linearly over the blocks.
    """

    pooling = "pyramid"
    stem_keys = (
        "swinViT.patch_embed.proj.weight",
        "encoder1.layer.conv1.conv.weight",
        "encoder1.layer.conv3.conv.weight",
    )
    # A published file fills every tensor; one that does not is another network or was cut.
    minimum_coverage = 1.0

    def __init__(self, input_spec: InputSpec, feature_size: int, drop_path_rate: float = 0.0):
        from monai.networks.blocks import UnetrBasicBlock
        from monai.networks.nets.swin_unetr import SwinTransformer

        blocks = {"encoder1": (1, 1), "encoder2": (1, 2), "encoder3": (2, 4), "encoder4": (4, 8), "encoder10": (16, 32)}
        super().__init__(
            input_spec,
            [
                {"num_chs": width * feature_size, "reduction": (stride,) * 3, "module": name}
                for name, (width, stride) in blocks.items()
            ],
        )
        with _HostLinspace():
            self.swinViT = SwinTransformer(
                in_chans=input_spec.channels,
                embed_dim=feature_size,
                window_size=(7, 7, 7),
                patch_size=(2, 2, 2),
                depths=(2, 2, 2, 2),
                num_heads=(3, 6, 12, 24),
                drop_path_rate=drop_path_rate,
                use_v2=True,
            )
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

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        super().set_grad_checkpointing(enable)
        for stage in self._stages:
            for block in stage.blocks:
                block.use_checkpoint = enable

    def decoder_maps(self, x: Tensor) -> list[Tensor]:
        """The six maps that a SwinUNETR decoder wants, strides 1, 2, 4, 8, 16, 32, canonical axes.

        The one at stride 16 (8F channels) is the bare hidden state.
        """
        self._check_input(x)
        hidden = self._hidden_states(x)
        maps = self._blocks(x, hidden)
        return [self._canonical(m) for m in (*maps[:4], hidden[3], maps[4])]

    @property
    def _stages(self) -> list:
        vit = self.swinViT
        return [vit.layers1[0], vit.layers2[0], vit.layers3[0], vit.layers4[0]]

    def _hidden_states(self, x: Tensor) -> list[Tensor]:
        # MONAI's SwinTransformer.forward step by step, so that its convolutions can be checkpointed as well.
        vit = self.swinViT
        convs = (vit.layers1c[0], vit.layers2c[0], vit.layers3c[0], vit.layers4c[0])
        x = vit.pos_drop(vit.patch_embed(x))
        hidden = [vit.proj_out(x, normalize=True)]
        for conv, stage in zip(convs, self._stages):
            x = stage(self._run(conv, x.contiguous()).contiguous())
            hidden.append(vit.proj_out(x, normalize=True))
        return hidden

    def _blocks(self, x: Tensor, hidden: list[Tensor]) -> list[Tensor]:
        inputs = (x, hidden[0], hidden[1], hidden[2], hidden[4])
        modules = (self.encoder1, self.encoder2, self.encoder3, self.encoder4, self.encoder10)
        return [self._run(module, m) for module, m in zip(modules, inputs)]

    def _maps(self, x: Tensor) -> list[Tensor]:
        return self._blocks(x, self._hidden_states(x))

    def _deepest(self, x: Tensor) -> Tensor:
        return self._run(self.encoder10, self._hidden_states(x)[4])


class _HostLinspace(TorchFunctionMode):
    """MONAI reads the stochastic depth rates off a tensor, which fails on the meta device: keep that one on the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def _register(size: str, feature_size: int) -> None:
    summary = f"SwinUNETR encoder, feature size {feature_size}"

    @register_encoder(f"swinunetr_{size}", f"swin_{size}", family="swinunetr", input_spec=SPEC, summary=summary)
    def build(input_spec: InputSpec, drop_path_rate: float = 0.0) -> SwinUNETREncoder:
        return SwinUNETREncoder(input_spec, feature_size, drop_path_rate)


for _size, _feature_size in {"t": 12, "b": 48, "l": 96, "h": 192}.items():
    _register(_size, _feature_size)
