"""What a weights file is, before anything is built: project, architecture, published source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from voco.encoders import create_encoder
from voco.encoders.base import ENCODERS, Encoder
from voco.encoders.spec import InputSpec
from voco.errors import InputError
from voco.weights.contents import Contents
from voco.weights.examine import EXAMPLES, Examination, examine, misfit
from voco.weights.families import families
from voco.weights.formats import Family
from voco.weights.networks import sole_words, suffixes
from voco.weights.nnssl import NNSSL_WRAPPER, PLAN_FILE, NnsslPlan, plan_of
from voco.weights.read import read_tensors
from voco.weights.report import LoadReport
from voco.weights.sources import WeightSource, source_of_file, sources_of, usual_input

# Share of the parameters from which on a file that does not fit was meant for the network.
_NEAR = 0.5


@dataclass(frozen=True)
class Guess:
    """One architecture that a file fits.

    Attributes:
        arch: registered name; ``arguments`` are the keywords that fit.
        report: what loading would do.
        source: the published record that has the file's digest or else its name, else None.
        input_spec: how the weights are fed, as the file, its record or others of its format say; else the default.
        paths: of the tensors that would be used.
    """

    arch: str
    arguments: dict = field(default_factory=dict)
    report: LoadReport | None = None
    source: WeightSource | None = None
    input_spec: InputSpec | None = None
    paths: tuple[str, ...] = ()

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
    contents = read_tensors(path)
    if plan := _plan(path, contents):
        guess = _try(plan.arch, plan.arguments, contents, path)
        found = [replace(guess, input_spec=plan.input_spec)] if guess else []
    else:
        found = next((guesses for names in _listings(contents) if (guesses := _guesses(names, contents, path))), [])
    if found:
        contents.verify(found[0].paths)
    return found


def _guesses(names: str, contents: Contents, path: Path) -> list[Guess]:
    archs = [arch for family in families().values() for arch in _candidates(family, names)]
    guesses = [_best_variant(arch, {}, contents, path) for arch in archs]
    # Of twins the one that needs least adapting, then the one whose published file has this name.
    found = [guess for guess in guesses if guess is not None]
    return sorted(found, key=lambda g: (*_effort(g), g.source is None, g.arch))


def nearest_miss(path: Path) -> str | None:
    """What keeps a file that fits no encoder from the one that it comes closest to, in words.

    For files with a damaged, renamed or missing tensor: here one mark of a format is enough to try its family.

    Args:
        path: weights file for which ``recognise`` finds nothing.

    Returns:
        The architecture and its objection, or None where the file fills less than half of any.
    """
    contents = read_tensors(path)
    names = next(_listings(contents))
    misses = []
    for arch in (arch for family in families().values() for arch in _candidates(family, names, least=1)):
        for variant in _variants(arch, {}):
            encoder, found = _examined(arch, variant, contents)
            if found.fit.coverage >= _NEAR and (problem := misfit(encoder, found)):
                rank = found.fit.coverage, -len(found.match.strangers), -len(found.fit.missing)
                misses.append((rank, f"{arch} ({found.report.format}), but {problem}"))
    return max(misses, key=lambda miss: miss[0])[1] if misses else None


def _listings(contents: Contents) -> Iterator[str]:
    """The names in a file behind every prefix, a line each; then also without words that may be wrappers in them."""
    names = {path: path for path in contents.tensors}
    yield _listing(names)
    words = sole_words((("", path) for path in names), ())
    for left_out in [{word} for word in words] + ([set(words)] if len(words) > 1 else []):
        yield _listing(".".join(word for word in path.split(".") if word not in left_out) for path in names)


def _listing(paths: Iterable[str]) -> str:
    return "\n".join(dict.fromkeys(name for path in paths for _, name in suffixes(path)))


def _candidates(family: Family, names: str, least: int | None = None) -> list[str]:
    """Encoders of a family to try for a file with such names."""
    formats = [fmt for fmt in family.formats if fmt.marks and fmt.may_be(names, least)]
    if any(fmt.encoders is None for fmt in formats):
        return [name for name in ENCODERS if ENCODERS[name].family == family.name]
    return list(dict.fromkeys(name for fmt in formats for name in fmt.encoders(names)))


def _plan(path: Path, contents: Contents) -> NnsslPlan | None:
    """The adaptation plan of an nnssl checkpoint; other files are not read a second time to look for one."""
    named = any(NNSSL_WRAPPER in way for way in contents.wrappers.values())
    return plan_of(path) if named or (path.parent / PLAN_FILE).is_file() else None


def recognise_as(arch: str, path: Path, arguments: Mapping) -> Guess | None:
    """How a file of another project fits one architecture: with which arguments, and fed how; None where it does not.

    Projects differ in details of a network that its tensors may show (an additional norm) or not (which slices a
    pathway takes); the latter follow from the project.

    Args:
        arch: registered name.
        path: weights file.
        arguments: keywords that are given and not open to choice.
    """
    return _best_variant(arch, arguments, read_tensors(path), path)


def _best_variant(arch: str, arguments: Mapping, contents: Contents, path: Path) -> Guess | None:
    records = sources_of(arch)
    guesses = [guess for variant in _variants(arch, arguments) if (guess := _try(arch, variant, contents, path))]

    def unusual(guess: Guess) -> tuple[bool, bool]:
        published = guess.source is not None and guess.source.is_published_file(path) is not False
        of_file = [dict(guess.source.arguments)] if published else []
        of_format = [dict(source.arguments) for source in records if source.format == guess.report.format]
        return tuple(
            bool(usual) and any({**wanted, **arguments} != guess.arguments for wanted in usual)
            for usual in (of_file, of_format)
        )

    return min(guesses, key=lambda guess: (*_effort(guess), *unusual(guess)), default=None)


def _variants(arch: str, arguments: Mapping) -> list[dict]:
    """Arguments to try: the default and those of each published record, all with the given ones."""
    variants = [{**variant, **arguments} for variant in ({}, *(source.arguments for source in sources_of(arch)))]
    return [variant for i, variant in enumerate(variants) if variant not in variants[:i]]


def _effort(guess: Guess) -> tuple[float, int]:
    return -guess.report.coverage, len(guess.report.adapted)


def _examined(arch: str, arguments: dict, contents: Contents) -> tuple[Encoder, Examination]:
    with torch.device("meta"):
        encoder = create_encoder(arch, **arguments)
    return encoder, examine(encoder, contents)


def _try(arch: str, arguments: dict, contents: Contents, path: Path) -> Guess | None:
    encoder, found = _examined(arch, arguments, contents)
    if misfit(encoder, found):
        return None
    source = source_of_file(arch, path)
    usual = source.input_spec if source else usual_input(arch, found.report.format)
    spec = usual or ENCODERS[arch].input_spec
    return Guess(arch, arguments, found.report, source, spec, tuple(found.match.paths()))


def load_recognised(path: Path) -> Encoder:
    """The encoder that a weights file of another project is for, filled and in evaluation mode.

    Raises:
        InputError: unreadable file, or one that fits no encoder.
    """
    guesses = recognise(path)
    if not guesses:
        contents = read_tensors(path)
        tensors = contents.within(contents.largest())
        keys = ", ".join(f"{key} {tuple(value.shape)}" for key, value in list(tensors.items())[:EXAMPLES])
        near = nearest_miss(path)
        raise InputError(
            f"{path.name} fits no encoder that is known here; "
            + (f"the nearest is {near}\n" if near else "")
            + f"it holds {len(tensors)} tensors: {keys}; "
            f"`voco encoders` lists what there is, create_encoder(NAME, checkpoint=FILE) says what one of them misses"
        )
    best = guesses[0]
    name = best.source.name if best.source else best.arch
    return create_encoder(name, checkpoint=path, **best.arguments)
