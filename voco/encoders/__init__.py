"""Encoders by name: ``create_encoder("swin_b")``, ``list_encoders("*swin*")``, ``load_encoder("runs/x")``.

Importing this package registers every architecture and imports none of MONAI, torchvision or timm; a family imports
what it is built from when one of its encoders is created.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from voco.encoders import (  # noqa: F401  (they register themselves)
    cnn3d,
    i3resnet,
    mvit,
    nnunet,
    penet,
    resnet3d,
    s3d,
    sequences,
    slices,
    slowfast,
    swin3d,
    swinunetr,
    video_bottleneck,
    video_resnet,
    x3d,
)
from voco.encoders.base import ENCODERS, Encoder
from voco.encoders.spec import InputSpec
from voco.errors import InputError

if TYPE_CHECKING:
    from voco.weights.resolve import Weights

__all__ = ["ENCODERS", "Encoder", "InputSpec", "create_encoder", "list_encoders", "load_encoder"]


def create_encoder(
    name: str,
    *,
    checkpoint: str | Path | None = None,
    window: Sequence[float] | Sequence[Sequence[float]] | None = None,
    input_spec: InputSpec | dict | None = None,
    which: str = "auto",
    inflate: str = "repeat",
    **arguments,
) -> Encoder:
    """Build an encoder, with random weights or with those of a file.

    Args:
        name: ``arch`` or ``arch.tag``, e.g. ``"swin3d_t"`` or ``"swin3d_t.kinetics400"``. A tag names published
            weights: it sets the input that they were trained for and, without ``checkpoint``, downloads them.
        checkpoint: weights file of any project, encoder folder, run folder, tag (of a part of the network too, such as
            ``"slices/vgg16.imagenet"`` for ``viptt``), or Hugging Face id; see ``voco.weights.load.load_weights``. A
            file that is known by its name or its format brings its input.
        window: Hounsfield window ``(low, high)`` in place of the default one, or several for several input channels.
        input_spec: replaces the default as a whole; ``window`` still goes on top.
        which: which network of a checkpoint that holds several, by name (``student``, ``ema``); see ``load_weights``.
        inflate: how kernels of a 2D network become 3D ones: ``repeat`` or ``centre``.
        arguments: keywords of the architecture; they win over those that belong to the weights.

    Returns:
        The encoder, in evaluation mode; ``encoder.load_report`` says what was loaded. Models and methods that train it
        turn training mode on themselves.

    Raises:
        InputError: unknown name, tag or argument, or weights that do not fit.
    """
    arch_name, _, tag = name.partition(".")
    arch_name = ENCODERS.canonical(arch_name)
    arch = ENCODERS[arch_name]
    arch.check_arguments(arch_name, arguments)
    weights = None
    if tag or checkpoint is not None:
        from voco.weights.resolve import resolve

        weights = resolve(arch_name, tag, checkpoint)
    start = _start(arch_name, weights, arguments)
    spec, arguments = start.input_spec, {**start.arguments, **arguments}
    if input_spec is not None:
        spec = InputSpec.from_dict(input_spec) if isinstance(input_spec, dict) else input_spec
    if window is not None:
        spec = with_windows(spec, window)

    encoder = arch.build(spec, **arguments)
    encoder.name, encoder.arguments, encoder.provenance = arch_name, dict(arguments), list(start.provenance)
    asked = encoder.input_spec
    if weights is not None and weights.source is not None and weights.source.arch != arch_name:
        encoder.load_part(weights.source.name, which=which)
    elif weights is not None:
        from voco.weights.load import load_weights

        load_weights(encoder, weights.path, which=which, inflate=inflate)
    # weights of a part bring how it was fed; what the caller asked for wins
    if input_spec is not None:
        encoder.input_spec = asked
    elif window is not None:
        encoder.input_spec = with_windows(encoder.input_spec, window)
    return encoder.eval()


@dataclass(frozen=True)
class _Start:
    """What comes with weights: how they are fed, the arguments of their network, and their history."""

    input_spec: InputSpec
    arguments: dict = field(default_factory=dict)
    provenance: list[dict] = field(default_factory=list)


def _start(arch_name: str, weights: Weights | None, arguments: dict) -> _Start:
    """Of our own folder, else of the published record, else of the file's plan or format, else the default."""
    if weights is None:
        return _Start(ENCODERS[arch_name].input_spec)
    from voco.weights.folder import read_config
    from voco.weights.recognise import recognise_as

    config, source = read_config(weights.path), weights.source
    part = config["arch"] if config else source.arch if source is not None else ""
    if part and fnmatchcase(part, ENCODERS[arch_name].part):
        # load_part brings what belongs to the weights; the network that they are of is named here.
        known = inspect.signature(ENCODERS[arch_name].build).parameters
        model = {"backbone": part.partition("/")[2]} if "backbone" in known else {}
        return _Start(ENCODERS[arch_name].input_spec, model)
    if config:
        if config["arch"] != arch_name:
            raise InputError(
                f"{weights.path} holds a {config['arch']}, not a {arch_name}; "
                f"name that architecture, or use voco.load_encoder"
            )
        spec = InputSpec.from_dict(config["input_spec"])
        return _Start(spec, dict(config["arguments"]), list(config["provenance"]))
    if source is not None:
        # A file under another digest may well be fine (converted, resaved), but its history should say so, and details
        # of its network are then read off the file.
        published = source.is_published_file(weights.path) if weights.path.is_file() else None
        entry = source.to_dict() | {"file_is_the_published_one": published}
        if published is not False:
            return _Start(source.input_spec, dict(source.arguments), [entry])
        guess = recognise_as(arch_name, weights.path, arguments)
        return _Start(source.input_spec, guess.arguments if guess else {}, [entry])
    if plan := _plan(arch_name, weights.path):
        entry = {"source": "nnssl", "file": weights.path.name, "network": plan.class_name, "dataset": plan.dataset}
        return _Start(plan.input_spec, plan.arguments, [entry])
    if weights.path.is_file() and (guess := recognise_as(arch_name, weights.path, arguments)):
        return _Start(guess.input_spec, guess.arguments)
    return _Start(ENCODERS[arch_name].input_spec)


def _plan(arch_name: str, path: Path):
    """The adaptation plan of an nnssl checkpoint, for the architectures that those hold."""
    if ENCODERS[arch_name].family != "nnunet":
        return None
    from voco.weights.nnssl import plan_of

    plan = plan_of(path)
    if plan is not None and plan.arch != arch_name:
        raise InputError(f"{path.name} holds a {plan.class_name}, which is {plan.arch} here, not {arch_name}")
    return plan


def list_encoders(pattern: str = "*") -> list[str]:
    """Registered architecture names that match a shell pattern, sorted; aliases such as ``swin_b`` are not listed."""
    return ENCODERS.names(pattern)


def load_encoder(source: str | Path) -> Encoder:
    """An encoder that ``save_encoder`` or a training run wrote, in evaluation mode.

    Args:
        source: encoder folder, run folder that holds one, a Hugging Face hub id ``owner/name``, or a weights file of
            another project, whose architecture is then recognised.

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
    if len(windows) == 3 and spec.rgb_mean and spec.rgb_std:
        mean, std = spec.rgb_mean, spec.rgb_std
    elif len(windows) != spec.channels:
        mean = (sum(mean) / len(mean),) * len(windows)
        std = (sum(std) / len(std),) * len(windows)
    return replace(spec, windows=windows, mean=mean, std=std)
