import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import pytest

from adapters import Kind, Manifest, StorageError
from adapters.digests import digest_folder
from adapters.storage import Blobs, LocalBlobs
from adapters.storage.cache import Cache
from adapters.storage.obstore import Patience, S3Objects
from adapters.storage.remote import RemoteBlobs
from tests.s3 import BUCKET, FaultProxy, running_moto

FILES = ("adapter_config.json", "adapter_model.safetensors")
QUICK = Patience(connect_seconds=2, silence_seconds=1, request_seconds=5, retries=2, budget_seconds=5)


@dataclass
class Staged:
    """A folder ready to be put, and what it holds."""

    folder: Path
    manifest: Manifest
    digest: str = field(init=False)
    contents: dict[str, bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.digest = self.manifest.digest
        self.contents = {path.name: path.read_bytes() for path in self.folder.iterdir()}


def stage(root: Path, seed: int = 0, size_bytes: int = 2000) -> Staged:
    """Make a blob's folder: equal seeds and sizes are equal bytes."""
    folder = root / uuid4().hex
    folder.mkdir(parents=True)
    (folder / FILES[0]).write_text(f'{{"r": {seed}}}')
    (folder / FILES[1]).write_bytes(bytes([seed % 256]) * size_bytes)
    manifest = Manifest(
        digest=digest_folder(folder),
        kind=Kind.LORA,
        dtype="F32",
        tensor_count=1,
        size_bytes=size_bytes,
        base_fingerprint="sha256:" + "0" * 64,
        rank=seed,
    )
    return Staged(folder, manifest)


def put(blobs: Blobs, staged: Staged) -> Staged:
    """Put a copy: a put may take what it is given."""
    copy = shutil.copytree(staged.folder, staged.folder.with_name(f"{staged.folder.name}-copy"), dirs_exist_ok=True)
    blobs.put(copy, staged.manifest)
    return staged


def weights(blobs: Blobs, digest: str) -> bytes:
    with blobs.hold(digest) as folder:
        return (folder / FILES[1]).read_bytes()


def spoil(file: Path) -> None:
    file.chmod(0o644)
    file.write_bytes(b"spoilt")


@contextmanager
def no_file_larger_than(size_bytes: int) -> Iterator[None]:
    """What a full disk is to a program: a write that fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_is_told(error: StorageError, code: str, proxy: FaultProxy) -> None:
    assert error.code == code
    for secret in (proxy.endpoint, "127.0.0.1", BUCKET, "made-up", "sha256/"):
        assert secret not in error.message


class Place(Protocol):
    """A store, and the way in behind its back."""

    @property
    def blobs(self) -> Blobs: ...
    def opened_again(self) -> Blobs: ...
    def read(self, digest: str) -> dict[str, bytes]: ...
    def write(self, digest: str, name: str, content: bytes | None) -> None: ...
    def remove(self, digest: str, name: str) -> None: ...
    def quarantined(self) -> int: ...


@dataclass
class LocalPlace:
    root: Path

    @cached_property
    def blobs(self) -> Blobs:
        return LocalBlobs(self.root)

    def opened_again(self) -> Blobs:
        return LocalBlobs(self.root)

    def read(self, digest: str) -> dict[str, bytes]:
        folder = self._folder(digest)
        return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}

    def write(self, digest: str, name: str, content: bytes | None) -> None:
        path = self._folder(digest) / name
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)

    def remove(self, digest: str, name: str) -> None:
        self.write(digest, name, None)

    def quarantined(self) -> int:
        return len(list((self.root / "quarantine").iterdir()))

    def _folder(self, digest: str) -> Path:
        return self.root / "sha256" / digest.removeprefix("sha256:")


@dataclass
class RemotePlace:
    root: Path
    endpoint: str
    prefix: str = field(default_factory=lambda: f"tests/{uuid4().hex}")
    patience: Patience = QUICK
    budget_bytes: int = 1 << 30

    @cached_property
    def objects(self) -> S3Objects:
        return S3Objects(BUCKET, self.prefix, endpoint=self.endpoint, patience=self.patience)

    @cached_property
    def cache(self) -> Cache:
        return Cache(self.root, budget_bytes=self.budget_bytes)

    @cached_property
    def blobs(self) -> Blobs:
        return RemoteBlobs(self.objects, self.cache)

    def opened_again(self) -> Blobs:
        """As another machine would: with a cache of its own."""
        return RemoteBlobs(self.objects, Cache(self.root / uuid4().hex, budget_bytes=self.budget_bytes))

    def read(self, digest: str) -> dict[str, bytes]:
        folder = self._folder(digest)
        return {name: self.objects.read(f"{folder}/{name}") for name in self.objects.list(folder)}

    def write(self, digest: str, name: str, content: bytes | None) -> None:
        if content is None:
            self.remove(digest, name)
        else:
            self.overwrite(digest, name, content)
        self.cache.drop(digest)

    def overwrite(self, digest: str, name: str, content: bytes) -> None:
        """And leave what is cached."""
        self.objects.put(f"{self._folder(digest)}/{name}", content)

    def remove(self, digest: str, name: str) -> None:
        """And leave what is cached."""
        self.objects.delete([f"{self._folder(digest)}/{name}"])

    def quarantined(self) -> int:
        import obstore

        found = obstore.list(self.objects._store, "quarantine").collect()
        return len({one["path"].split("/")[1] for one in found})

    def staged(self) -> list[str]:
        return [path.name for path in (self.root / "staging").iterdir()]

    def _folder(self, digest: str) -> str:
        return f"sha256/{digest.removeprefix('sha256:')}"


@pytest.fixture(scope="session")
def moto_port() -> Iterator[int]:
    with running_moto() as port:
        yield port


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENDPOINT_URL", "ENDPOINT_URL_S3", "ENDPOINT", "REGION", "DEFAULT_REGION", "SESSION_TOKEN"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "made-up-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "made-up-secret")


@pytest.fixture
def proxy(moto_port: int) -> Iterator[FaultProxy]:
    with FaultProxy(moto_port) as proxy:
        yield proxy


@pytest.fixture
def remote(tmp_path: Path, proxy: FaultProxy) -> RemotePlace:
    return RemotePlace(tmp_path / "cache", proxy.endpoint)


@pytest.fixture
def local(tmp_path: Path) -> LocalPlace:
    return LocalPlace(tmp_path / "store")


@pytest.fixture(params=["local", "remote"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "local":
        return LocalPlace(tmp_path / "store")
    return RemotePlace(tmp_path / "cache", f"http://127.0.0.1:{request.getfixturevalue('moto_port')}")
