"""What a weights file filled, what it did not, and what was left over."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class LoadReport:
    """Result of loading one file into one encoder. Keys of ``loaded``, ``adapted``, ``missing`` are the encoder's.

    Attributes:
        file: name of the file, without its folder.
        encoder: registered name of the encoder.
        loaded: tensors taken as they were (names converted).
        adapted: tensors changed to fit, with the rule that was used.
        missing: tensors of the encoder that the file did not fill; they keep their initial values.
        unexpected: keys of the file that were not used and mean nothing to us (as they stood in the file).
        dropped: keys of the file that an encoder has no use for, with what they are ("classifier").
        coverage: share of the encoder's parameters, by volume, that the file filled.
        wrapper: keys that were unwrapped to reach the tensors, outermost first, e.g. ``("state_dict",)``.
        which: the network that was taken from a file that holds several, else None.
        others: names of the other ones, each of which can be asked for.
        format: project whose names the file uses.
    """

    file: str
    encoder: str
    loaded: tuple[str, ...]
    adapted: dict[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    coverage: float = 0.0
    wrapper: tuple[str, ...] = ()
    which: str | None = None
    format: str = ""
    dropped: dict[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.adapted) + len(self.missing)
        text = (
            f"{self.file} -> {self.encoder}: {len(self.loaded) + len(self.adapted)} of {total} tensors, "
            f"{self.coverage:.1%} of the parameters"
        )
        if self.format:
            text += f", names of {self.format}"
        if self.which:
            text += f" (from its {self.which}; which= takes {' or '.join(self.others)} instead)"
        if self.adapted:
            rules = sorted(set(self.adapted.values()))
            text += f"; {len(self.adapted)} adapted ({', '.join(rules)})"
        if self.missing:
            text += f"; missing {_few(self.missing)}"
        if self.dropped:
            text += f"; left out {len(self.dropped)} ({', '.join(sorted(set(self.dropped.values())))})"
        if self.unexpected:
            text += f"; not used {_few(self.unexpected)}"
        return text

    def to_dict(self) -> dict:
        """Everything, for ``run.json``."""
        return {
            "file": self.file,
            "encoder": self.encoder,
            "wrapper": list(self.wrapper),
            "which": self.which,
            "others": list(self.others),
            "format": self.format,
            "coverage": self.coverage,
            "counts": {
                "loaded": len(self.loaded),
                "adapted": len(self.adapted),
                "missing": len(self.missing),
                "unexpected": len(self.unexpected),
                "dropped": len(self.dropped),
            },
            "loaded": list(self.loaded),
            "adapted": dict(self.adapted),
            "missing": list(self.missing),
            "unexpected": list(self.unexpected),
            "dropped": dict(self.dropped),
        }


def _few(keys: tuple[str, ...]) -> str:
    shown = ", ".join(keys[:3])
    return f"{len(keys)}: {shown}{', …' if len(keys) > 3 else ''}"
