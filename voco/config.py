"""Command line and YAML to dataclasses, in one place: the only file that knows jsonargparse.

A stage describes its settings as dataclasses, one per group (``--data.root``, ``--train.lr`` …). A group may depend on
a name (``--method.name``): the name is read first and one flat parser is built for it, because unions of dataclasses
do not survive being saved and read again.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from voco import plugins
from voco.errors import InputError
from voco.files import write_text

_NUMBER = re.compile(r"-(\d|\.\d)")
_WORD = re.compile(r"-(?!-\w|h$)")  # a word that begins with a dash, or is one


@dataclasses.dataclass(frozen=True)
class Schema:
    """The settings of one command.

    Attributes:
        prog: the program's name in usage lines.
        description: what the command does, for ``--help``.
        top: dataclass of the settings without a prefix (``--out``, ``--seed``).
        groups: prefix to dataclass, or to a function that gives ``{name: dataclass}`` where ``--prefix.name`` chooses;
            it is called when plugins are loaded. A dataclass with a field ``preset`` has ``presets``, ``{preset: nested
            values}``: ``--prefix.preset`` replaces its defaults.
        registries: prefix to a function that gives the registry of its names, of groups whose name a plugin may add.
        follows: prefix to the prefix whose name chooses among its dataclasses, where that is another one.
        config_dir: folder in which ``--config NAME`` is also looked for.
    """

    prog: str
    description: str
    top: type
    groups: Mapping[str, Any]
    config_dir: Path
    registries: Mapping[str, Callable[[], Any]] = dataclasses.field(default_factory=dict)
    follows: Mapping[str, str] = dataclasses.field(default_factory=dict)


def parse(schema: Schema, argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Read settings: dataclass defaults, then the preset, then each ``--config``, then single options.

    Returns:
        ``{"out": …, "data": DataConfig(…), …}``: top settings by name, groups as dataclass instances; and ``plugins``,
        name and digest of each that was loaded, where any were.

    Raises:
        InputError: a config file that does not exist or cannot be read, or a plugin that is missing.
        SystemExit: unknown or ill-typed options (usage goes to stderr).
    """
    argv = _find_configs(plugins.take(sys.argv[1:] if argv is None else argv), schema)
    _check_plugins(argv)
    parser, classes = _build_parser(schema, argv)
    argv = _spell_out(argv, classes, schema.top)
    values = parser.parse_args(argv).as_dict()
    top = {f.name: values[f.name] for f in dataclasses.fields(schema.top)}
    config = top | {prefix: _instance(cls, values[prefix]) for prefix, cls in classes.items()}
    needed = plugins.loaded(*(_owners(schema, config) if plugins.any_installed() else ()))
    return config | ({"plugins": plugins.records(needed)} if needed else {})


def _owners(schema: Schema, config: Mapping[str, Any]) -> list[str | None]:
    """The plugins that filed the names that were chosen."""
    chosen = [(schema.registries.get(prefix), config[prefix]) for prefix in schema.groups]
    return [found().owner(group.name) for found, group in chosen if found is not None]


def to_dict(config: Mapping[str, Any]) -> dict:
    """Plain nested values of what ``parse`` returned, ready for YAML or JSON."""
    return {k: _plain(v) for k, v in config.items()}


def save_yaml(config: Mapping[str, Any], path: Path) -> None:
    """Write the resolved settings so that ``--config path`` repeats the run; whole or not at all."""
    write_text(path, yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` to ``{"a.b": 1}``."""
    flat = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def changed(old: Mapping[str, Any], new: Mapping[str, Any], ignore: Sequence[str] = ()) -> list[str]:
    """Sentences ``key: old -> new`` for settings that differ; ``ignore`` lists keys or prefixes ending in a dot."""
    old, new = flatten(old), flatten(new)

    def counts(key: str) -> bool:
        return not any(key == i or (i.endswith(".") and key.startswith(i)) for i in ignore)

    keys = [k for k in dict.fromkeys([*old, *new]) if counts(k)]
    missing = "(not set)"
    return [
        f"{k}: {old.get(k, missing)} -> {new.get(k, missing)}"
        for k in keys
        if old.get(k, missing) != new.get(k, missing)
    ]


def _instance(cls: type, values: Mapping[str, Any]):
    """A dataclass from nested values; a trailing underscore stands for names that Python reserves (``with``)."""
    hints = typing.get_type_hints(cls)
    made = {}
    for item in dataclasses.fields(cls):
        value = values[item.name.rstrip("_")]
        made[item.name] = _instance(hints[item.name], value) if dataclasses.is_dataclass(hints[item.name]) else value
    return cls(**made)


def _plain(value):
    if dataclasses.is_dataclass(value):
        return {f.name.rstrip("_"): _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _find_configs(argv: list[str], schema: Schema) -> list[str]:
    """Replace ``--config NAME`` by a path: as given, else in the stage's folder, with or without ``.yaml``."""
    argv = [part for arg in argv for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    for i, arg in enumerate(argv[:-1]):
        if arg != "--config":
            continue
        name = argv[i + 1]
        places = [Path(name), schema.config_dir / name, schema.config_dir / f"{name}.yaml"]
        found = next((p for p in places if p.is_file()), None)
        if found is None:
            known = ", ".join(sorted(p.stem for p in schema.config_dir.glob("*.yaml")))
            raise InputError(f"no config file {name!r}; give a path to a YAML file or one of: {known}")
        argv[i + 1] = str(found)
    return argv


def _check_plugins(argv: list[str]) -> None:
    """Refuse settings, and a run folder to go on in, whose plugins are not loaded: no name of theirs would be known."""
    for key, value in itertools.pairwise(argv):
        path = {"--config": Path(value), "--out": Path(value) / "config.yaml"}.get(key)
        if path is None or not path.is_file():
            continue
        values = _read_yaml(str(path))
        if "plugin" in values:
            raise InputError(f"{path}: settings cannot load code; give --plugin on the command line instead")
        plugins.check(path, values.get("plugins"))
        for note in plugins.changes(path, values.get("plugins")):
            print(f"note: {note}", file=sys.stderr)


def _chosen(argv: list[str], key: str, default: str) -> str:
    """The last value of ``--key`` among config files and options, before any parser exists."""
    value, prefix = default, f"--{key}"
    group, name = key.split(".")
    for i, arg in enumerate(argv):
        if arg == "--config" and i + 1 < len(argv):
            value = ((_read_yaml(argv[i + 1]).get(group)) or {}).get(name, value)
    for i, arg in enumerate(argv):
        if arg == prefix and i + 1 < len(argv):
            value = argv[i + 1]
        elif arg.startswith(prefix + "="):
            value = arg.split("=", 1)[1]
    return value


def _read_yaml(path: str) -> dict:
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable YAML: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} should hold settings as 'key: value' lines; found {type(values).__name__}")
    return values


def _build_parser(schema: Schema, argv: list[str]):
    from jsonargparse import ActionConfigFile, ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=schema.prog, description=schema.description)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with settings; may be given several times")
    parser.add_argument(
        "--plugin",
        metavar="FILE_OR_MODULE",
        help="Python file or module with methods, tasks, metrics or encoders of your own; may be given several times",
    )
    # of a saved config: what it needs, which nothing here loads
    parser.add_argument("--plugins", type=list, default=None, help=argparse.SUPPRESS)
    parser.add_class_arguments(schema.top, help="run")
    classes = {}
    for prefix, group in schema.groups.items():
        name = None
        if not isinstance(group, type):
            group = group()
            chooser = schema.follows.get(prefix, prefix)
            name = _chosen(argv, f"{chooser}.name", next(iter(group)))
            if name not in group:
                raise InputError(f"unknown {chooser} {name!r}; known: {', '.join(group)}")
            group = group[name]
        classes[prefix] = group
        reserved = {f.name for f in dataclasses.fields(group) if f.name.endswith("_")}
        parser.add_class_arguments(group, prefix, help=(group.__doc__ or prefix).strip().splitlines()[0], skip=reserved)
        for item in dataclasses.fields(group):
            if item.name in reserved:
                default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
                hint = typing.get_type_hints(group)[item.name]
                parser.add_argument(
                    f"--{prefix}.{item.name.rstrip('_')}", type=hint, default=default, help=item.metadata.get("help")
                )
        if presets := getattr(group, "presets", {}):
            preset = _chosen(argv, f"{prefix}.preset", "default")
            if preset not in presets:
                raise InputError(f"unknown {prefix}.preset {preset!r}; known: {', '.join(presets)}")
            parser.set_defaults({f"{prefix}.{k}": v for k, v in flatten(presets[preset]).items()})
    return parser, classes


def _keys(prefix: str, cls: type, wanted: Callable[[Any], bool]) -> set[str]:
    """Options of a dataclass and of those inside it whose type is ``wanted``."""
    keys = set()
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            keys |= _keys(f"{prefix}{name}.", hint, wanted)
        elif wanted(hint):
            keys.add(f"--{prefix}{name.rstrip('_')}")
    return keys


def _is_list(hint) -> bool:
    if typing.get_origin(hint) is dict:  # of lists, maybe, but written as {key: [value, …]}
        return False
    return any(typing.get_origin(t) in (list, tuple) for t in (hint, *typing.get_args(hint)))


def _quoted(value: str) -> str:
    """A word as YAML reads it back: ``-``, ``?`` and ``1.0`` would be something else, ``none`` is not."""
    try:
        plain = yaml.safe_load(f"[{value}]") == [value]
    except yaml.YAMLError:
        plain = False
    return value if plain or value in ("null", "") or "," in value else json.dumps(value)


def _spell_out(argv: list[str], classes: Mapping[str, type], top: type) -> list[str]:
    """Write ``--data.spacing 5 1.25 1.25`` as the parser wants it, ``[5, 1.25, 1.25]``, and ``--plan`` as true."""
    groups = [("", top), *((f"{p}.", c) for p, c in classes.items())]
    lists = set().union(*(_keys(p, c, _is_list) for p, c in groups))
    words = set().union(*(_keys(p, c, lambda hint: _is_list(hint) and "list[str]" in str(hint)) for p, c in groups))
    flags = set().union(*(_keys(p, c, lambda hint: hint is bool) for p, c in groups))
    out, i = [], 0
    while i < len(argv):
        key, _, inline = argv[i].partition("=")
        i += 1
        if key not in lists:
            out.append(argv[i - 1])
            if argv[i - 1] in flags and (i == len(argv) or argv[i].startswith("--")):
                out.append("true")
            continue
        values = [inline] if inline else []
        taken = _WORD if key in words else _NUMBER
        while i < len(argv) and (not argv[i].startswith("-") or taken.match(argv[i])):
            values.append(argv[i])
            i += 1
        if key in words:
            values = [value if value.startswith("[") else _quoted(value) for value in values]
        text = ", ".join(values)
        out += [key, text if text.startswith("[") or text in ("null", "") else f"[{text}]"]
    return out
