"""Published weights of timm's 2D networks as records, made on the spot from timm's own list."""

from __future__ import annotations

import functools
from collections import defaultdict
from pathlib import PurePosixPath

from voco.encoders.slices import PREFIX, slice_spec
from voco.weights.sources import WeightSource

# timm says what weights were trained on by parts of the tag only.
_DATA = {
    "in1k": "ImageNet-1k",
    "in12k": "ImageNet-12k",
    "in21k": "ImageNet-22k",
    "in22k": "ImageNet-22k",
    "inw21k": "ImageNet-22k",
    "laion2b": "LAION-2B",
    "laion400m": "LAION-400M",
    "laiona": "LAION-Aesthetics",
    "datacompxl": "DataComp-1B",
    "datacomp1b": "DataComp-1B",
    "dfn2b": "DFN-2B",
    "dfn5b": "DFN-5B",
    "dfndr2b": "DFNDR-2B",
    "merged2b": "Merged-2B",
    "openai": "WIT-400M",
    "webli": "WebLI",
    "metaclip": "MetaCLIP",
    "metaclip2": "MetaCLIP 2",
    "yfcc100m": "YFCC-100M",
    "yfcc15m": "YFCC-15M",
    "cc12m": "CC-12M",
    "ig1b": "Instagram-1B",
    "lvd142m": "LVD-142M",
    "lvd1689m": "LVD-1689M",
    "sat493m": "SAT-493M",
    "jft": "JFT-300M",
    "sa1b": "SA-1B",
}
_IMAGENET, _IMAGENET_TAGS = "ImageNet-1k", ("imagenet", "imagenet1k")


@functools.cache
def timm_sources(arch: str) -> tuple[WeightSource, ...]:
    """Records of all weights that timm lists for a slice encoder, its default first.

    ``imagenet`` and ``imagenet1k`` are further names of the first that was trained on ImageNet-1k.

    Args:
        arch: ``slices/MODEL``.
    """
    from timm.models import get_pretrained_cfg

    model = arch.removeprefix(PREFIX)
    tags = _tags().get(model, [])
    default = getattr(get_pretrained_cfg(model), "tag", "")
    records, named = [], False
    for tag in sorted(tags, key=lambda tag: (tag != default, tag)):
        cfg = get_pretrained_cfg(f"{model}.{tag}")
        data = trained_on(tag)
        also = _IMAGENET_TAGS if _IMAGENET in data and not named else ()
        named = named or bool(also)
        records.append(_record(arch, model, tag, cfg, data, also))
    return tuple(records)


def trained_on(tag: str) -> tuple[str, ...]:
    """Names of data sets in a tag of timm: ``augreg_in21k_ft_in1k`` is ImageNet-22k, then ImageNet-1k."""
    return tuple(dict.fromkeys(_DATA[part] for part in tag.split("_") if part in _DATA)) or ("unknown",)


@functools.cache
def _tags() -> dict[str, list[str]]:
    import timm

    found = defaultdict(list)
    for name in timm.list_pretrained():
        model, _, tag = name.partition(".")
        if tag:
            found[model].append(tag)
    return dict(found)


def _record(arch: str, model: str, tag: str, cfg, data: tuple[str, ...], also: tuple[str, ...]) -> WeightSource:
    if cfg.hf_hub_id:
        name = cfg.hf_hub_filename or "model.safetensors"
        repository = f"{cfg.hf_hub_id}{model}.{tag}" if cfg.hf_hub_id.endswith("/") else cfg.hf_hub_id
        url = f"https://huggingface.co/{repository}/resolve/main/{name}"
        # All repositories call their file alike; a name of its own keeps two of them apart in one folder.
        file = f"{model}.{tag}{PurePosixPath(name).suffix}"
    else:
        url = cfg.url
        file = PurePosixPath(url).name
    return WeightSource(
        arch=arch,
        tag=tag,
        file=file,
        url=url,
        input_spec=slice_spec(model, tag),
        licence=cfg.license or "none stated for the weights; code Apache-2.0",
        citation=" ".join(_parts(cfg.paper_name, cfg.paper_ids, cfg.origin_url)) or "Wightman, PyTorch Image Models",
        data=data,
        format="timm",
        note="2D network over slices; data sets as timm's tag says",
        also=also,
    )


def _parts(*values: object) -> list[str]:
    return [", ".join(value) if isinstance(value, (list, tuple)) else str(value) for value in values if value]
