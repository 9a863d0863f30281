"""Downloads over loopback: only whole, checked files reach the caches, and every failure says what to do."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import save_file

from voco.encoders import create_encoder
from voco.encoders.spec import InputSpec
from voco.errors import InputError
from voco.weights.download import cached_path, fetch, fetch_hub_file
from voco.weights.export import save_encoder
from voco.weights.sources import WeightSource

CONTENT = bytes(range(256)) * 400
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server(BaseHTTPRequestHandler):
    """Serves ``files`` (path to bytes); ``sent`` cuts answers short; a hub's headers and listing come along."""

    files: dict[str, bytes]
    sent: int | None
    requests: list[str]

    def do_GET(self):
        self.requests.append(f"{self.command} {self.path}")
        path = self.path.split("?")[0]
        if path.startswith("/api/models/owner/name"):
            names = sorted(p.rsplit("/resolve/main/")[1] for p in self.files if "/resolve/" in p)
            listing = {"id": "owner/name", "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
            tree = [{"type": "file", "path": n, "size": 1, "oid": "0" * 40} for n in names]
            return self._answer(json.dumps(tree if "/tree/" in path else listing).encode(), "application/json")
        path = path.replace(f"/resolve/{COMMIT}/", "/resolve/main/")
        if path not in self.files:
            self.send_response(404)
            if "/resolve/" in path:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        return self._answer(self.files[path], "application/octet-stream")

    do_HEAD = do_GET

    def _answer(self, body, kind):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: self.sent])

    def log_message(self, *_):
        pass


@contextmanager
def serve(files, sent=None):
    kind = type("Handler", (Server,), {"files": files, "sent": sent, "requests": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        kind.address = f"http://127.0.0.1:{server.server_port}"
        try:
            yield kind
        finally:
            server.shutdown()


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """Empty caches; and the hub's address is one where nobody listens."""
    from huggingface_hub import constants

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "torch" / "hub" / "checkpoints"


def record(url, **more):
    fields = {"arch": "slow_r50", "tag": "kinetics400", "file": "SLOW.pyth", "licence": "", "citation": "", "data": ()}
    return WeightSource(url=url, input_spec=InputSpec(size=(8, 32, 32)), **{**fields, **more})


def assert_nothing_left(folder):
    assert not folder.exists() or list(folder.iterdir()) == []


SHA256, MD5 = hashlib.sha256(CONTENT).hexdigest(), hashlib.md5(CONTENT).hexdigest()


@pytest.mark.parametrize("digest", [{"sha256": SHA256}, {"sha256": SHA256[:8].upper()}, {"md5": MD5}, {}])
def test_a_file_is_fetched_once(digest, caches):
    with serve({"/zoo/SLOW.pyth": CONTENT}) as server:
        source = record(f"{server.address}/zoo/SLOW.pyth", **digest)
        assert cached_path(source) is None
        path = fetch(source)
        assert path == cached_path(source) == caches / "SLOW.pyth"
        assert path.read_bytes() == CONTENT
        assert list(caches.iterdir()) == [path]
        asked = len(server.requests)
        assert fetch(source) == path
        assert len(server.requests) == asked


def test_local_addresses_work(caches, tmp_path):
    (tmp_path / "x.pyth").write_bytes(CONTENT)
    assert fetch(record((tmp_path / "x.pyth").as_uri(), md5=MD5)).read_bytes() == CONTENT


def assert_says_what_to_do(caught, source, caches):
    message = str(caught.value)
    for part in (source.name, f"fetch {source.file} from {source.url}", str(caches / source.file), "checkpoint=PATH"):
        assert part in message, part
    assert_nothing_left(caches)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "404"),
        ("cut", r"cut after 1,000 of 102,400 bytes"),
        ("other", r"another file \(102,400 bytes\)"),
        ("offline", "refused"),
    ],
)
def test_what_is_not_the_whole_file_is_not_kept(kind, reason, caches):
    files = {} if kind == "missing" else {"/SLOW.pyth": CONTENT}
    with serve(files, sent=1000 if kind == "cut" else None) as server:
        address = "http://127.0.0.1:9" if kind == "offline" else server.address
        # No digest where the connection is cut: the size alone must tell.
        digest = {} if kind == "cut" else {"sha256": "00" * 32 if kind == "other" else SHA256}
        source = record(f"{address}/SLOW.pyth", **digest)
        with pytest.raises(InputError, match=reason) as caught:
            fetch(source)
    assert_says_what_to_do(caught, source, caches)


def test_a_wrong_file_in_the_cache_is_named(caches):
    source = record("http://127.0.0.1:9/SLOW.pyth", sha256=SHA256[:8])
    caches.mkdir(parents=True)
    (caches / "SLOW.pyth").write_bytes(CONTENT[:-1])
    with pytest.raises(
        InputError, match=f"not the published SLOW.pyth: expected sha256 {SHA256[:8]}.*delete"
    ) as caught:
        fetch(source)
    assert str(caches / "SLOW.pyth") in str(caught.value)
    (caches / "SLOW.pyth").write_bytes(CONTENT)
    assert fetch(source) == caches / "SLOW.pyth"


def test_files_behind_a_page_are_put_there_by_hand(caches):
    source = record("https://drive.google.com/x", download=False)
    with pytest.raises(InputError, match="by hand") as caught:
        fetch(source)
    assert_says_what_to_do(caught, source, caches)
    caches.mkdir(parents=True)
    (caches / source.file).write_bytes(CONTENT)
    assert fetch(source) == caches / source.file


@pytest.fixture
def hub(caches, monkeypatch):
    """A hub on loopback whose one repository holds the files that a test asks for."""
    from huggingface_hub import constants

    files: dict[str, bytes] = {}
    with serve(files) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        server.put = lambda name, body: files.__setitem__(f"/owner/name/resolve/main/{name}", body)
        yield server


def test_files_of_the_hub_come_from_its_cache(hub, monkeypatch):
    hub.put("VoCo.pt", CONTENT)
    source = record("https://huggingface.co/owner/name/resolve/main/VoCo.pt", md5=MD5)
    path = fetch(source)
    assert path.read_bytes() == CONTENT
    assert "hub" in path.parts
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cached_path(source) == fetch(source) == path
    with pytest.raises(InputError, match="not the published"):
        fetch(record(source.url, md5="0" * 32))


def test_a_file_that_the_hub_does_not_give(hub, caches, monkeypatch):
    source = record("https://huggingface.co/owner/name/resolve/main/none.pt", md5=MD5)
    with pytest.raises(InputError, match=r"404|not found") as caught:
        fetch(source)
    assert_says_what_to_do(caught, source, caches)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = len(hub.requests)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set") as caught:
        fetch(source)
    assert_says_what_to_do(caught, source, caches)
    assert len(hub.requests) == asked


def test_hub_ids_find_the_one_weights_file(hub, monkeypatch):
    hub.put("README.md", b"x")
    with pytest.raises(InputError, match="holds no weights file"):
        fetch_hub_file("owner/name")
    hub.put("deep/one.pth", CONTENT)
    one = fetch_hub_file("owner/name")
    assert one.read_bytes() == CONTENT
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch_hub_file("owner/name") == one
    assert fetch_hub_file("owner/name", "deep/one.pth") == one
    with pytest.raises(InputError, match=r"two\.pth of owner/name"):
        fetch_hub_file("owner/name", "two.pth")
    with pytest.raises(InputError, match=r"owner/other is not in the cache"):
        fetch_hub_file("owner/other")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    hub.put("two.pth", CONTENT)
    with pytest.raises(InputError, match=r"2 weights files: deep/one\.pth, two\.pth; name one as owner/name/FILE"):
        fetch_hub_file("owner/name")
    hub.put("pytorch_model.bin", b"bin")
    assert fetch_hub_file("owner/name").read_bytes() == b"bin"
    assert fetch_hub_file("owner/name", "two.pth").read_bytes() == CONTENT


def test_hub_ids_of_our_encoders_are_folders(hub, tmp_path):
    torch.manual_seed(0)
    encoder = create_encoder("cnn3d_s")
    folder = save_encoder(encoder, tmp_path / "out", {"source": "here"})
    for name in ("config.json", "model.safetensors"):
        hub.put(name, (folder / name).read_bytes())
    found = fetch_hub_file("owner/name")
    twin = create_encoder("cnn3d_s", checkpoint=found)
    for key, value in encoder.state_dict().items():
        assert torch.equal(twin.state_dict()[key], value), key


def test_another_library_s_config_is_no_folder_of_ours(hub, tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    hub.put("config.json", b'{"model_type": "vit"}')
    hub.put("model.safetensors", (tmp_path / "x.safetensors").read_bytes())
    assert fetch_hub_file("owner/name").name == "model.safetensors"
