"""Where the networks of a file are, judged by its names alone: which paths lead to one, and how to call each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

# A prefix leads to a network if it accounts for this share of the tensors that the best one accounts for.
_SHARE = 0.5
PLAIN = "plain"
# What copies of a trained network are called. At a tie the other network is taken; nothing else depends on it.
_COPY = re.compile(
    r"(?:^|[._])(ema|teacher|target|momentum|key|k|avg|averag\w*|swa|shadow|slow|ma)(?:$|[._])", re.IGNORECASE
)


def suffixes(path: str) -> Iterator[tuple[str, str]]:
    """A path cut in two at every dot: ("", "a.b.c"), ("a", "b.c"), ("a.b", "c")."""
    yield "", path
    place = path.find(".")
    while place >= 0:
        yield path[:place], path[place + 1 :]
        place = path.find(".", place + 1)


def network_roots(counts: Mapping[str, int]) -> list[str]:
    """Prefixes that lead to a network of their own, the fullest first.

    Args:
        counts: prefix -> tensors of the encoder that are found behind it, in the order of the file.
    """
    fullest = max(counts.values(), default=0)
    roots: list[str] = []
    for root in sorted(counts, key=lambda root: -counts[root]):  # stable: at a tie as in the file
        inside = any(f"{root}.".startswith(f"{r}." if r else "") or f"{r}.".startswith(f"{root}.") for r in roots)
        if counts[root] >= _SHARE * fullest and not inside:
            roots.append(root)
    return roots


def network_names(roots: Sequence[str]) -> dict[str, str]:
    """A short name for each network: what their paths do not share.

    ``state_dict.student.backbone`` and ``state_dict.teacher.backbone`` are student and teacher; a path with nothing of
    its own is ``plain``.
    """
    paths = {root: root.split(".") if root else [] for root in roots}
    if len(paths) > 1:
        for end in (0, -1):
            while all(paths.values()) and len({path[end] for path in paths.values()}) == 1:
                for path in paths.values():
                    path.pop(end)
    short = {root: next((w for w in path if is_copy(w)), path[0]) if path else PLAIN for root, path in paths.items()}
    if len(set(short.values())) == len(short):
        return short
    return {root: ".".join(path) or PLAIN for root, path in paths.items()}


def chosen_roots(which: str, names: Mapping[str, str]) -> list[str]:
    """The networks that a user's word means: by whole path or name, by a part of the path, by a word in such a part."""
    word = re.compile(rf"(?<![a-z0-9]){re.escape(which)}(?![a-z0-9])", re.IGNORECASE)
    for fits in (
        lambda root: which in (root, names[root]),
        lambda root: f".{which}." in f".{root}.",
        lambda root: word.search(root) is not None,
    ):
        if found := [root for root in names if fits(root)]:
            return found
    return []


def is_copy(name: str) -> bool:
    """Whether a network's name says that it is an average or a target of another one."""
    return _COPY.search(name) is not None


def sole_words(names: Iterable[tuple[str, str]], known: Iterable[str], above: Collection[str] = ()) -> list[str]:
    """Words that may stand for a wrapper around modules in the middle of names, ``_orig_mod`` or ``module``.

    A wrapper is the only thing in the module that it wraps, everywhere.

    Args:
        names: path of a dictionary and dotted name of a tensor in it.
        known: names of an encoder, whose own words are no wrappers.
        above: words of a prefix, which are wrappers only if they stand elsewhere too.

    Returns:
        The words, those that stand in most modules first.
    """
    children: dict[tuple[str, str], set[str]] = {}
    for wrapper, name in names:
        for place, rest in suffixes(name):
            word, dot, _ = rest.partition(".")
            children.setdefault((wrapper, place), set()).add(word if dot else "")
    alone = Counter(next(iter(found)) for found in children.values() if len(found) == 1)
    shared = {word for found in children.values() if len(found) > 1 for word in found}
    none = {word for name in known for word in name.split(".")} | shared | {word for word in above if alone[word] < 2}
    return [word for word, _ in alone.most_common() if word and not word.isdigit() and word not in none]
