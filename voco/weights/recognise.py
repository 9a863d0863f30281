"""What a weights file is, before anything is built: project, architecture, published source."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from voco.encoders import create_encoder
from voco.encoders.base import ENCODERS, Encoder
from voco.encoders.spec import InputSpec
from voco.errors import InputError
from voco.weights.examine import EXAMPLES, examine, misfit
from voco.weights.families import families
from voco.weights.match import stripped
from voco.weights.nnssl import plan_of
from voco.weights.read import read_tensors
from voco.weights.report import LoadReport
from voco.weights.sources import WeightSource, source_of_file, sources_of, usual_input


@dataclass(frozen=True)
class Guess:
    """One architecture that a file fits.

    Attributes:
        arch: registered name; ``arguments`` are the keywords that fit.
        report: what loading would do.
        source: the published record that has the file's name, else None.
        input_spec: how the weights are fed, as the file, its record or others of its format say; else the default.
    """

    arch: str
    arguments: dict = field(default_factory=dict)
    report: LoadReport | None = None
    source: WeightSource | None = None
    input_spec: InputSpec | None = None

    def describe(self) -> str:
        """``slow_r50 (pytorchvideo)``, with arguments where they matter."""
        arguments = "".join(f", {key}={value}" for key, value in self.arguments.items())
        return f"{self.arch}{arguments} ({self.report.format})"


def recognise(path: Path) -> list[Guess]:
    """Architectures that a weights file fits, the best first; empty where none does.

    Marks of the formats choose the families; their encoders are built on the meta device, so that neither weights nor
    time are spent, and each is asked whether the file fits.

    Args:
        path: weights file. It is opened without running code in it.

    Raises:
        InputError: the file cannot be read.
    """
    tensors, wrapper, chosen = read_tensors(path)
    if plan := plan_of(path):
        guess = _try(plan.arch, plan.arguments, tensors, wrapper, chosen, path.name, plan.input_spec)
        return [guess] if guess else []
    names = [name for key in tensors for name, _ in stripped(key)]
    guesses = []
    for family in families().values():
        if not any(fmt.marks and fmt.may_be(names) for fmt in family.formats):
            continue
        for arch in (name for name in ENCODERS if ENCODERS[name].family == family.name):
            for arguments in _variants(arch):
                guesses.append(_try(arch, arguments, tensors, wrapper, chosen, path.name))
    # Of twins the one that needs least adapting, then the one whose published file has this name.
    found = [guess for guess in guesses if guess is not None]
    return sorted(found, key=lambda g: (-g.report.coverage, len(g.report.adapted), g.source is None, g.arch))


def _variants(arch: str) -> list[dict]:
    variants = [{}]
    for source in sources_of(arch):
        if dict(source.arguments) not in variants:
            variants.append(dict(source.arguments))
    return variants


def _try(
    arch: str, arguments: dict, tensors, wrapper, chosen, file: str, input_spec: InputSpec | None = None
) -> Guess | None:
    with torch.device("meta"):
        encoder = create_encoder(arch, **arguments)
    found = examine(encoder, tensors, file, wrapper=wrapper, chosen=chosen)
    if misfit(encoder, found):
        return None
    source = source_of_file(arch, file)
    usual = source.input_spec if source else usual_input(arch, found.report.format)
    spec = input_spec or usual or ENCODERS[arch].input_spec
    return Guess(arch, arguments, found.report, source, spec)


def load_recognised(path: Path) -> Encoder:
    """The encoder that a weights file of another project is for, filled and in evaluation mode.

    Raises:
        InputError: unreadable file, or one that fits no encoder.
    """
    guesses = recognise(path)
    if not guesses:
        tensors, *_ = read_tensors(path)
        keys = ", ".join(f"{key} {tuple(value.shape)}" for key, value in list(tensors.items())[:EXAMPLES])
        raise InputError(
            f"{path.name} fits no encoder that is known here; it holds {len(tensors)} tensors: {keys}; "
            f"`voco encoders` lists what there is, create_encoder(NAME, checkpoint=FILE) says what one of them misses"
        )
    best = guesses[0]
    name = best.source.name if best.source else best.arch
    return create_encoder(name, checkpoint=path, **best.arguments).eval()
