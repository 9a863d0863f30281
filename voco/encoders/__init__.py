"""Encoders by name: ``create_encoder("swin_b")``, ``list_encoders("*swin*")``, ``load_encoder("runs/x")``.

Importing this package registers every architecture and imports none of MONAI, torchvision or timm; a family imports
what it is built from when one of its encoders is created.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from voco.encoders import cnn3d, swinunetr, video_resnet  # noqa: F401  (they register themselves)
from voco.encoders.base import ENCODERS, Encoder
from voco.encoders.spec import InputSpec
from voco.errors import InputError

if TYPE_CHECKING:
    from voco.weights.sources import WeightSource

__all__ = ["ENCODERS", "Encoder", "InputSpec", "create_encoder", "list_encoders", "load_encoder"]


def create_encoder(
    name: str,
    *,
    checkpoint: str | Path | None = None,
    window: Sequence[float] | Sequence[Sequence[float]] | None = None,
    input_spec: InputSpec | dict | None = None,
    which: str = "auto",
    **arguments,
) -> Encoder:
    """Build an encoder, with random weights or with those of a file.

    Args:
        name: ``arch`` or ``arch.tag``, e.g. ``"swin_b"`` or ``"swin_b.voco_ssl"``. A tag names published weights: it
            sets the input that they were trained for and needs ``checkpoint``.
        checkpoint: weights file, encoder folder or run folder; see ``voco.weights.load.load_weights``. A folder of
            ours also brings its input spec.
        window: Hounsfield window ``(low, high)`` in place of the default one, or several for several input channels.
        input_spec: replaces the default as a whole; ``window`` still goes on top.
        which: which network of a checkpoint that holds several: ``auto``, ``student``, ``teacher``, ``ema``.
        arguments: keywords of the architecture.

    Returns:
        The encoder, in training mode as any new module; ``encoder.load_report`` says what was loaded.

    Raises:
        InputError: unknown name, tag or argument, or weights that do not fit.
    """
    arch_name, _, tag = name.partition(".")
    arch_name = ENCODERS.canonical(arch_name)
    arch = ENCODERS[arch_name]
    arch.check_arguments(arch_name, arguments)
    source = _source(arch_name, tag, checkpoint) if tag else None
    spec, provenance = _default_spec(arch_name, source, checkpoint)
    if input_spec is not None:
        spec = InputSpec.from_dict(input_spec) if isinstance(input_spec, dict) else input_spec
    if window is not None:
        spec = with_windows(spec, window)

    encoder = arch.build(spec, **arguments)
    encoder.name, encoder.arguments, encoder.provenance = arch_name, dict(arguments), provenance
    if checkpoint is not None:
        from voco.weights.load import load_weights

        load_weights(encoder, checkpoint, which=which)
        if source is not None and Path(checkpoint).expanduser().is_file():
            # A file under another hash may well be fine (converted, resaved), but its history should say so.
            published = source.is_published_file(Path(checkpoint).expanduser())
            encoder.provenance = [{**provenance[0], "file_is_the_published_one": published}]
    return encoder


def list_encoders(pattern: str = "*") -> list[str]:
    """Registered architecture names that match a shell pattern, sorted; aliases such as ``swin_b`` are not listed."""
    return ENCODERS.names(pattern)


def load_encoder(source: str | Path) -> Encoder:
    """An encoder that ``save_encoder`` or a training run wrote, ready for use (evaluation mode).

    Args:
        source: encoder folder, run folder that holds one, or a Hugging Face hub id ``owner/name``.

    Raises:
        InputError: no such folder, a folder that is not an encoder, files that do not belong together, or a hub id
            that cannot be reached.
    """
    from voco.weights.export import load_encoder as load

    return load(source)


def with_windows(spec: InputSpec, window: Sequence[float] | Sequence[Sequence[float]]) -> InputSpec:
    """The same spec with other Hounsfield windows; mean and std follow the number of channels.

    Raises:
        InputError: not one (low, high) pair or a list of them.
    """
    pairs = [window] if window and not isinstance(window[0], Sequence) else window
    try:
        windows = tuple((float(low), float(high)) for low, high in pairs)
    except (TypeError, ValueError):
        windows = ()
    if not windows:
        raise InputError(f"a window is (low, high) in HU or a list of such pairs, found {window!r}")
    mean, std = spec.mean, spec.std
    if len(windows) != spec.channels:
        mean = (sum(mean) / len(mean),) * len(windows)
        std = (sum(std) / len(std),) * len(windows)
    return replace(spec, windows=windows, mean=mean, std=std)


def _source(arch_name: str, tag: str, checkpoint) -> WeightSource:
    from voco.weights.sources import find_source

    source = find_source(arch_name, tag)
    if checkpoint is None:
        raise InputError(source.how_to_get())
    return source


def _default_spec(arch_name: str, source: WeightSource | None, checkpoint) -> tuple[InputSpec, list[dict]]:
    """Input spec and history that come with the weights: of our own folder, else of the tag, else the default."""
    if checkpoint is not None:
        from voco.weights.folder import read_config

        if config := read_config(checkpoint):
            if config["arch"] != arch_name:
                raise InputError(
                    f"{checkpoint} holds a {config['arch']}, not a {arch_name}; "
                    f"name that architecture, or use voco.load_encoder"
                )
            return InputSpec.from_dict(config["input_spec"]), list(config["provenance"])
    if source is not None:
        return source.input_spec, [source.to_dict()]
    return ENCODERS[arch_name].input_spec, []
