"""What ``voco inspect`` says of encoders and weights files, and the tables of ``voco encoders``."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from voco.errors import InputError

if TYPE_CHECKING:
    from voco.encoders import InputSpec
    from voco.weights.recognise import Guess


def table(rows: dict[str, object]) -> Iterator[str]:
    """Two aligned columns; rows without a value are left out."""
    width = max(len(key) for key in rows)
    for key, value in rows.items():
        if value is not None and value != "":
            yield f"{key:<{width}}  {value}"


def describe_encoder(path: Path) -> Iterator[str]:
    """An encoder folder of ours, or the one in a run folder."""
    from voco.encoders import InputSpec
    from voco.weights.folder import find_encoder_folder, read_config

    config = read_config(path)
    weights = find_encoder_folder(path) / "model.safetensors"
    yield from table(
        {
            "kind": f"encoder; load with voco.load_encoder({str(path)!r})",
            "arch": config["arch"],
            "arguments": ", ".join(f"{key}={value}" for key, value in config["arguments"].items()),
            "parameters": _parameters(weights) if weights.is_file() else "model.safetensors is missing",
        }
    )
    yield from _input(InputSpec.from_dict(config["input_spec"]))
    for number, entry in enumerate(config["provenance"], 1):
        yield f"training {number}"
        plain = {key: value for key, value in entry.items() if isinstance(value, (str, int, float)) and value != ""}
        for name in ("results", "lines"):  # a score without what it stands beside says nothing
            plain |= {f"{name[:-1]}: {key}": f"{value:.3f}" for key, value in (entry.get(name) or {}).items()}
        yield from (f"  {line}" for line in (table(plain) if plain else ()))
        if entry.get("verdict"):
            yield from ("  did it learn?", *(f"    {sentence}" for sentence in entry["verdict"]))


def _parameters(file: Path) -> str:
    """Counted from the header: the weights themselves are not read."""
    with open(file, "rb") as stream:
        head = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    count = 0
    for name, tensor in head.items():
        if name != "__metadata__":
            size = 1
            for n in tensor["shape"]:
                size *= n
            count += size
    return f"{count / 1e6:.2f} M with buffers, {file.stat().st_size / 1e6:.1f} MB"


def describe_weights(path: Path) -> Iterator[str]:
    """A weights file of any project: what is inside, which encoders it fits and how it would be fed."""
    from voco.weights.folder import find_encoder_folder
    from voco.weights.read import read_tensors
    from voco.weights.recognise import nearest_miss, recognise

    if find_encoder_folder(path) is not None:
        yield from describe_encoder(path.parent)
        return
    contents, guesses = read_tensors(path), recognise(path)
    wrapper = ".".join(guesses[0].report.wrapper) if guesses else contents.largest()
    tensors = contents.within(wrapper)
    yield from table(
        {
            "kind": "weights file (read without running any code from it)",
            "tensors": f"{len(tensors)}, {sum(t.numel() for t in tensors.values()) / 1e6:.2f} M values",
            "under": wrapper,
        }
    )
    if not guesses:
        names = [f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items()]
        yield from table(
            {
                "fits": "no encoder that is known here; `voco encoders` lists them",
                "nearest": " ".join((nearest_miss(path) or "").split()),
                "first": ", ".join(names[:5]),
                "last": ", ".join(names[-5:]),
            }
        )
        return
    yield from _guess(path, guesses[0])
    if len(guesses) > 1:
        yield from table({"also": ", ".join(guess.describe() for guess in guesses[1:])})


def _guess(path: Path, guess: Guess) -> Iterator[str]:
    report, source = guess.report, guess.source
    name = source.name if source else guess.arch
    more = "".join(f", {key}={value!r}" for key, value in guess.arguments.items()) if source is None else ""
    rows = {
        "fits": guess.describe(),
        "load": f'voco.create_encoder("{name}", checkpoint={str(path)!r}{more})',
        "network": f"{report.which}; which= (--encoder.which) takes {' or '.join(report.others)} instead"
        if report.others
        else "",
        "filled": f"{report.coverage:.1%} of the parameters, {len(report.loaded)} tensors as they are",
        "adapted": _counted(report.adapted.values()),
        "left out": _counted(report.dropped.values()),
        "missing": ", ".join(report.missing[:5]),
        "not known": ", ".join(report.unexpected[:5]),
    }
    if source is not None:
        same = source.is_published_file(path)
        rows |= {
            "published as": f"{source.file}, {source.url}",
            "checksum": {
                True: f"it is the published file ({source.checksum})",
                False: f"it is NOT the published file, which has {source.checksum}",
                None: "none is published to compare with",
            }[same],
            "licence": source.licence,
            "trained on": ", ".join(source.data),
            "note": source.note,
            "cite": source.citation,
        }
    yield from table(rows)
    yield from _input(guess.input_spec)


def _counted(rules: Iterable[str]) -> str:
    rules = list(rules)
    return ", ".join(f"{rules.count(rule)} ({rule})" for rule in sorted(set(rules)))


def _input(spec: InputSpec) -> Iterator[str]:
    yield "input"
    rows = {
        "axes": f"{spec.axes} (directions of increasing index)",
        "window HU": windows(spec),
        "mean, std": "; ".join(f"{mean:.4g}, {std:.4g}" for mean, std in zip(spec.mean, spec.std)),
        "of three windows": f"{spec.rgb_mean}, {spec.rgb_std}" if spec.rgb_mean else "",
        "spacing mm": size(spec.spacing_mm) if spec.spacing_mm else "any (the weights state none)",
        "size": f"{size(spec.size)} (D H W), at least {size(spec.min_size)}",
        "multiples": size(spec.size_multiple) if max(spec.size_multiple) > 1 else "",
    }
    yield from (f"  {line}" for line in table(rows))


def size(values: Sequence[float]) -> str:
    """``64x64x64``."""
    return "x".join(f"{n:g}" for n in values)


def windows(spec: InputSpec) -> str:
    """``[-100, 900]``, one per channel."""
    return " ".join(f"[{low:g}, {high:g}]" for low, high in spec.windows)


def describe_encoders(pattern: str) -> Iterator[str]:
    """A line per architecture and per published file whose name, alias or ``arch.tag`` match a shell pattern.

    Raises:
        InputError: nothing matches.
    """
    from voco.encoders import ENCODERS
    from voco.weights.sources import all_sources, sources_of

    architectures, weights = [], []
    under = next((prefix for prefix in ENCODERS.prefixes if pattern.startswith(prefix)), None)
    for name in ENCODERS.names(f"{under}*") if under else ENCODERS:
        arch, aliases, sources = ENCODERS[name], ENCODERS.aliases(name), sources_of(name)
        found = [s for s in sources if any(fnmatch.fnmatch(f"{n}.{s.tag}", pattern) for n in (name, *aliases))]
        if any(fnmatch.fnmatch(item, pattern) for item in (name, *aliases)):
            found = sources
        elif not found:
            continue
        spec = arch.input_spec
        architectures.append(
            [name, ", ".join(aliases), size(spec.size), size(spec.min_size), windows(spec), arch.summary]
        )
        weights += [_source_row(source) for source in found]
    architectures += [
        [f"{prefix}NAME", "", "", "", "", f"{summary}; `voco encoders '{prefix}*'` lists them"]
        for prefix, summary in ENCODERS.prefixes.items()
        if not under and fnmatch.fnmatch(f"{prefix}NAME", pattern)
    ]
    if not under:  # recorded files of networks that are listed by their prefix alone
        named = [s for s in all_sources().values() if s.arch.startswith(tuple(ENCODERS.prefixes))]
        weights += [_source_row(s) for s in named if fnmatch.fnmatch(f"{s.arch}.{s.tag}", pattern)]
    if not architectures:
        known = f"`voco encoders '{under}*'` lists all" if under else f"known: {', '.join(ENCODERS)}"
        raise InputError(f"no encoder matches {pattern!r}; {known}")
    yield from _columns(["encoder", "also", "size", "smallest", "window HU", "what it is"], architectures)
    if weights:
        yield ""
        head = ["weights", "size", "axes", "window HU", "mean", "std", "trained on", "file", "checksum", "licence"]
        yield from _columns(head, weights)


def _source_row(source) -> list[str]:
    spec = source.input_spec
    numbers = ("/".join(f"{value:.3g}" for value in values) for values in (spec.mean, spec.std))
    by_hand = "" if source.download else " (by hand)"
    check = (source.sha256 or source.md5)[:8] or "none"
    return [
        source.name,
        size(spec.size),
        spec.axes,
        windows(spec),
        *numbers,
        ", ".join(source.data),
        f"{source.file}{by_hand}",
        check,
        source.licence,
    ]


def _columns(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
