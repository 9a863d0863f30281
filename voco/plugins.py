"""Code of a user beside this package: methods, tasks, metrics and encoders in a file or module of its own.

A plugin is loaded where somebody names it (``--plugin``, ``voco.load_plugin``) or has installed it (the entry points
``voco.plugins``), never because a file that is read names it. Files name what they need, with a digest, and what is
missing is one sentence.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from voco import registry
from voco.errors import InputError

GROUP = "voco.plugins"
FILE = "plugins.json"
# How processes that are started anew, such as a loader's, learn which code their samples need.
_FOR_CHILDREN = "VOCO_PLUGINS_OF_PARENT"


@dataclass(frozen=True)
class Plugin:
    """Loaded code.

    Attributes:
        name: of the file without ``.py``, of the module, or of the entry point.
        digest: 16 hex digits of SHA-256 over its source.
        source: where it was loaded from: an absolute path, or a module.
        asked: somebody named it, so that files of a run say that they need it.
    """

    name: str
    digest: str
    source: str
    asked: bool = True


_LOADED: dict[str, Plugin] = {}
_INSTALLED: list[str] = []  # "done" once the entry points were loaded


def load_plugin(source: str | Path) -> Plugin:
    """Import a user's file or module, whose registrations are then known by name; a second time does nothing.

    Args:
        source: path of a ``.py`` file, or the name of a module that can be imported.

    Raises:
        InputError: nothing there, code that cannot be run, or another plugin of that name.
    """
    text = str(source)
    path = Path(text).expanduser()
    if path.suffix == ".py" or path.is_file():
        if not path.is_file():
            raise InputError(f"--plugin {text}: there is no such file; expected a Python file or a module")
        path = path.resolve()
        return _add(Plugin(path.stem, _digest([path]), str(path)), lambda: _import_file(path))
    if not all(part.isidentifier() for part in text.split(".")):
        raise InputError(f"--plugin {text!r} is neither a Python file nor the name of a module")
    return _add(Plugin(text, _digest_of_module(text), text), lambda: importlib.import_module(text))


def load_installed() -> None:
    """Load the plugins that installed packages offer as entry points; once.

    Raises:
        InputError: one of them cannot be loaded.
    """
    if _INSTALLED:
        return
    _INSTALLED.append("done")
    for point in metadata.entry_points(group=GROUP):
        if point.name not in _LOADED:
            _add(Plugin(point.name, _digest_of_module(point.module), point.module, asked=False), point.load)


def load_all(sources: Sequence[str]) -> None:
    """Load what is installed, then what a command line names."""
    load_installed()
    for source in sources:
        load_plugin(source)


def take(argv: Sequence[str]) -> list[str]:
    """Load what ``--plugin`` names on a command line, which is left without those words.

    Raises:
        InputError: a plugin that cannot be loaded, or ``--plugin`` without one.
    """
    load_installed()
    left, words = [], iter(argv)
    for word in words:
        if word == "--plugin":
            source = next(words, None)
            if source is None or source.startswith("--"):
                raise InputError("--plugin needs a Python file or the name of a module")
            load_plugin(source)
        elif word.startswith("--plugin="):
            load_plugin(word.partition("=")[2])
        else:
            left.append(word)
    return left


def loaded(*owners: str | None) -> list[Plugin]:
    """Plugins that somebody named, and the installed ones among ``owners``."""
    return [plugin for plugin in _LOADED.values() if plugin.asked or plugin.name in owners]


def any_installed() -> bool:
    """Whether packages offer plugins, of which only those in use count."""
    return any(not plugin.asked for plugin in _LOADED.values())


def records(plugins: Sequence[Plugin]) -> list[dict[str, str]]:
    """Name and digest of each, for files."""
    return [{"name": plugin.name, "digest": plugin.digest} for plugin in plugins]


def record_of(*owners: str | None) -> list[dict[str, str]]:
    """Name and digest of the plugins that filed names, as ``Registry.owner`` gives them; None is no plugin."""
    return records([_LOADED[name] for name in dict.fromkeys(owners) if name])


def check(where: str | Path, stored: Any) -> None:
    """Refuse to go on without the plugins that a file names.

    Args:
        where: the file, for the sentence.
        stored: what ``records`` gave; anything else stands for none.

    Raises:
        InputError: which are missing.
    """
    items = [item for item in stored or () if isinstance(item, Mapping)] if isinstance(stored, list) else []
    missing = [item for item in items if item.get("name") not in _LOADED]
    if not missing:
        return
    load_installed()
    missing = [f"{item.get('name')} (digest {item.get('digest')})" for item in items if item["name"] not in _LOADED]
    if missing:
        many = len(missing) > 1
        raise InputError(
            f"{where} needs the plugin{'s' if many else ''} {', '.join(missing)}, which {'are' if many else 'is'} not "
            "loaded: give --plugin with the file or module again (in Python: voco.load_plugin)"
        )


def changes(where: str | Path, stored: Any) -> list[str]:
    """Sentences on plugins whose code is not what a file says it was."""
    known = {item["name"]: item.get("digest") for item in stored or ()}
    return [
        f"the plugin {plugin.name} has changed since {where} was written: digest {known[plugin.name]} then, "
        f"{plugin.digest} now"
        for plugin in _LOADED.values()
        if known.get(plugin.name, plugin.digest) != plugin.digest
    ]


def _add(plugin: Plugin, run: Callable[[], object]) -> Plugin:
    known = _LOADED.get(plugin.name)
    if known is not None:
        if known.source == plugin.source or known.digest == plugin.digest:
            return known
        raise InputError(f"two plugins are called {plugin.name}: {known.source} and {plugin.source}; rename one")
    with registry.filed_by(plugin.name):
        try:
            run()
        except InputError as error:
            raise InputError(f"plugin {plugin.source}: {error}") from error
        except Exception as error:  # whatever a user's code may do
            why = f"{type(error).__name__}: {error}{_place(error, plugin.source)}"
            raise InputError(f"plugin {plugin.source} cannot be loaded: {why}") from error
    _LOADED[plugin.name] = plugin
    if plugin.asked:
        os.environ[_FOR_CHILDREN] = json.dumps([p.source for p in _LOADED.values() if p.asked])
    return plugin


def _import_file(path: Path) -> None:
    # Beside this module, so that a process that is started anew finds it there: unpickling imports this one first.
    name = f"{__name__}.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look for their module there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _place(error: Exception, source: str) -> str:
    """Where in the plugin it happened."""
    if isinstance(error, SyntaxError):
        return f" (line {error.lineno})"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == source]
    return f" (line {lines[-1]})" if lines else ""


def _digest_of_module(name: str) -> str:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise InputError(f"plugin {name}: no module of that name can be imported, and no file is there")
    if spec.submodule_search_locations:
        return _digest(
            sorted(file for folder in spec.submodule_search_locations for file in Path(folder).rglob("*.py"))
        )
    return _digest([Path(spec.origin)] if spec.origin and Path(spec.origin).is_file() else [])


def _digest(files: Sequence[Path]) -> str:
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]


if multiprocessing.parent_process() is not None:
    for _source in json.loads(os.environ.get(_FOR_CHILDREN, "[]")):
        load_plugin(_source)
