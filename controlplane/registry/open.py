"""From an address to a registry."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from controlplane.core.errors import InvalidInput
from controlplane.registry.registry import Registry
from controlplane.registry.store import ObjectStore


def open_registry(url: str) -> Registry:
    """The registry at ``s3://bucket/prefix``, ``file:///directory`` or a path. Nothing is read or written yet."""
    return Registry(open_store(url))


def open_store(url: str) -> ObjectStore:
    """The object store at that address. Raises InvalidInput for an address of another kind."""
    scheme, separator, _ = url.partition("://")
    if not separator:
        return _directory(url)
    parts = urlsplit(url)
    if parts.query or parts.fragment or scheme not in ("s3", "file"):
        raise InvalidInput(
            f"{url!r} is no registry's address",
            field="registry",
            remedy="write s3://bucket/prefix, file:///directory or a path",
        )
    if scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise InvalidInput(f"{url!r} names another machine", field="registry", remedy="write file:///directory")
        return _directory(unquote(parts.path))
    # boto3 takes a third of a second to import: only where a bucket is meant.
    from controlplane.registry.s3 import S3Store  # noqa: PLC0415

    return S3Store(parts.netloc, parts.path.strip("/"))


def _directory(path: str) -> ObjectStore:
    from controlplane.registry.directory import DirectoryStore  # noqa: PLC0415

    if not path or "\0" in path:
        raise InvalidInput("the registry's address is empty", field="registry", remedy="name a directory or a bucket")
    return DirectoryStore(Path(path))
