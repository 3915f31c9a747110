"""A registry in an S3 bucket, through boto3: conditional writes are the compare-and-set.

Credentials, region and endpoint come from where boto3 always takes them (``AWS_PROFILE``, ``AWS_ENDPOINT_URL_S3``, an
instance's role, …).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import boto3
import stamina
from botocore.config import Config

from controlplane.core.errors import Conflict, InvalidInput
from controlplane.registry.reading import VerifiedReader, opened, rewinding
from controlplane.registry.s3_errors import Passing, UploadEnded, own_errors
from controlplane.registry.s3_parts import PartsUpload
from controlplane.registry.store import Sent, Stored, check_key, check_prefix, is_key

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

Result = TypeVar("Result")

ATTEMPTS, TOTAL_S = 4, 60.0
CONNECT_S, READ_S = 5.0, 30.0
PART_BYTES = 16 << 20
CHUNK_BYTES = 1 << 20
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class S3Store:
    """The ObjectStore over ``s3://bucket/prefix``."""

    def __init__(self, bucket: str, prefix: str) -> None:
        if not _BUCKET.fullmatch(bucket):
            raise InvalidInput(
                f"{bucket!r} can't name a bucket",
                field="registry",
                remedy="3 to 63 small letters, digits, '.' and '-', as in s3://models/production",
            )
        self._bucket = bucket
        self._prefix = f"{check_key(prefix)}/" if prefix else ""
        self._client = _client()
        self._retrying = stamina.RetryingCaller(attempts=ATTEMPTS, timeout=TOTAL_S, wait_max=5.0).on(Passing)
        # What is begun again takes as long as its file is large: bounded by the number of attempts alone.
        self._again = stamina.RetryingCaller(attempts=ATTEMPTS, timeout=None, wait_max=5.0).on(UploadEnded)

    @property
    def url(self) -> str:
        """The address, as in ``s3://bucket/prefix``."""
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def get(self, key: str) -> tuple[bytes, str]:
        """See ObjectStore."""

        def get() -> tuple[bytes, str]:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._key(key))
            return answer["Body"].read(), answer["ETag"]

        return self._do(key, get)

    def head(self, key: str) -> Stored:
        """See ObjectStore."""
        answer = self._do(key, lambda: self._client.head_object(Bucket=self._bucket, Key=self._key(key)))
        return Stored(
            key=key,
            etag=answer["ETag"],
            size_bytes=answer["ContentLength"],
            modified=answer["LastModified"].astimezone(UTC),
        )

    def put(self, key: str, content: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        """See ObjectStore. A write whose answer was lost is recognised by its content when it is tried again."""
        arguments: dict[str, Any] = {"ChecksumSHA256": base64.b64encode(hashlib.sha256(content).digest()).decode()}
        if if_match is not None:
            arguments["IfMatch"] = if_match
        if if_absent:
            arguments["IfNoneMatch"] = "*"
        conditional = if_absent or if_match is not None
        attempts = 0

        def put() -> str:
            nonlocal attempts
            attempts += 1
            try:
                with own_errors(self._bucket, key, conditional=conditional):
                    put = self._client.put_object
                    return put(Bucket=self._bucket, Key=self._key(key), Body=content, **arguments)["ETag"]
            except Conflict:
                if attempts > 1 and (etag := self._etag_of(key, content)) is not None:
                    return etag
                raise

        return self._do(key, put)

    def put_file(self, key: str, path: Path, *, sha256: str, size_bytes: int, sent: Sent = lambda _: None) -> None:
        """See ObjectStore. Large files go up in parts, and go on where an upload of the same key was cut off.

        The server checks each part's digest, the reader the whole.
        """
        if size_bytes >= PART_BYTES:
            upload = PartsUpload(
                client=self._client,
                bucket=self._bucket,
                key=self._key(key),
                do=lambda call: self._do(key, call),
            )
            self._again(upload.send, path, sha256=sha256, size_bytes=size_bytes, part_bytes=PART_BYTES, sent=sent)
            return
        with rewinding(sent) as counted, opened(path) as file:
            reader = VerifiedReader(file, path, sha256=sha256, size_bytes=size_bytes, sent=counted)
            self.put(key, reader.read(size_bytes + 1))  # a byte more shows a file that has grown

    def chunks(self, key: str) -> Iterator[bytes]:
        """See ObjectStore. A download that is cut raises Unavailable: the reader begins again."""
        with own_errors(self._bucket, key):
            body = self._client.get_object(Bucket=self._bucket, Key=self._key(key))["Body"]
            yield from body.iter_chunks(CHUNK_BYTES)

    def list(self, prefix: str) -> Iterator[Stored]:
        """See ObjectStore."""
        below = self._prefix + check_prefix(prefix)
        more: dict[str, Any] = {}
        while True:
            page = self._do(
                prefix,
                lambda: self._client.list_objects_v2(Bucket=self._bucket, Prefix=below, **more),  # noqa: B023
            )
            for each in page.get("Contents", ()):
                key = each["Key"].removeprefix(self._prefix)
                if is_key(key):
                    modified = each["LastModified"].astimezone(UTC)
                    yield Stored(key=key, etag=each["ETag"], size_bytes=each["Size"], modified=modified)
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, key: str) -> None:
        """See ObjectStore."""
        self._do(key, lambda: self._client.delete_object(Bucket=self._bucket, Key=self._key(key)))

    def source(self, key: str, expires_s: int) -> str:
        """A presigned GET; made here, without asking the server."""
        with own_errors(self._bucket, key):
            return self._client.generate_presigned_url(
                "get_object", Params={"Bucket": self._bucket, "Key": self._key(key)}, ExpiresIn=expires_s
            )

    def sweep(self, before: datetime) -> int:
        """See ObjectStore: multipart uploads that were begun and never completed."""
        swept = 0
        with own_errors(self._bucket, ""):
            pages = self._client.get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix):
                for each in page.get("Uploads", ()):
                    if each["Initiated"] < before:
                        self._end_upload(each["Key"], each["UploadId"])
                        swept += 1
        return swept

    def _end_upload(self, whole_key: str, upload_id: str) -> None:
        # While a part is being sent, a server may refuse for a moment; and an attempt that failed may have ended it.
        with contextlib.suppress(UploadEnded):
            self._do(
                "",
                lambda: self._client.abort_multipart_upload(Bucket=self._bucket, Key=whole_key, UploadId=upload_id),
            )

    def _key(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _do(self, key: str, call: Callable[[], Result]) -> Result:
        """Make a call, a few times while it meets passing faults, with its errors translated."""

        def attempt() -> Result:
            with own_errors(self._bucket, key):
                return call()

        return self._retrying(attempt)

    def _etag_of(self, key: str, content: bytes) -> str | None:
        present, etag = self.get(key)
        return etag if present == content else None


def _client() -> S3Client:
    with own_errors("", ""):
        session = boto3.Session()
        config = Config(
            signature_version="s3v4",
            connect_timeout=CONNECT_S,
            read_timeout=READ_S,
            max_pool_connections=32,
            retries={"total_max_attempts": 1},
        )
        return session.client("s3", config=config, region_name=session.region_name or "us-east-1")
