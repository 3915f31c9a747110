"""A large file into S3 in parts. What an upload of it that was cut off has brought there already is not sent again."""

from __future__ import annotations

import base64
import hashlib
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlplane.core.errors import InvalidInput, NotFound, Unauthenticated
from controlplane.registry.reading import VerifiedReader, opened, rewinding
from controlplane.registry.s3_errors import Passing, UploadEnded
from controlplane.registry.store import Sent

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client
    from types_boto3_s3.type_defs import CompletedPartTypeDef, PartTypeDef

PARALLEL_PARTS = 4
MAX_PARTS = 10_000
RESUMABLE_S = 3 * 86_400
"""S3 dates an object by when its upload was begun: an older one would be made anew, since `gc` might soon take it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartsUpload:
    """Sends files to one key. `do` makes a call, a few times while it meets passing faults, with own errors."""

    client: S3Client
    bucket: str
    key: str
    do: Callable[[Callable[[], Any]], Any]

    def send(self, path: Path, *, sha256: str, size_bytes: int, part_bytes: int, sent: Sent) -> None:
        """See ObjectStore.put_file. Holds at most PARALLEL_PARTS parts in memory.

        Raises UploadEnded when somebody else completed, removed or overwrote the upload meanwhile: begin again.
        """
        part_bytes = max(part_bytes, -(-size_bytes // MAX_PARTS))
        with opened(path) as file, rewinding(sent) as counted:
            reader = VerifiedReader(file, path, sha256=sha256, size_bytes=size_bytes, sent=counted)
            upload_id = self._unfinished() or self._begun()
            try:
                parts = self._send_parts(upload_id, reader, size_bytes, part_bytes)
                self._complete(upload_id, parts)
            except InvalidInput:  # nothing can come of it; whatever else went wrong, the next try goes on here
                self._call("abort_multipart_upload", UploadId=upload_id)
                raise
            except Passing as error:
                if self._has_ended(upload_id):  # some servers say no more than that they failed
                    raise UploadEnded(f"{self.key} is being uploaded by somebody else too") from error
                raise

    def _unfinished(self) -> str | None:
        """The upload of this key that was begun last, and lately."""
        try:
            pages = self._pages("list_multipart_uploads", Prefix=self.key)
        except Unauthenticated:
            return None  # who may put may not always list uploads; then each begins at the start
        begun = {
            each["UploadId"]: each["Initiated"]
            for page in pages
            for each in page.get("Uploads", ())
            if each["Key"] == self.key and (datetime.now(UTC) - each["Initiated"]).total_seconds() < RESUMABLE_S
        }
        return max(begun, key=lambda upload_id: (begun[upload_id], upload_id), default=None)

    def _has_ended(self, upload_id: str) -> bool:
        try:
            self._pages("list_parts", Key=self.key, UploadId=upload_id)
        except UploadEnded:
            return True
        except Passing:
            return False
        return False

    def _begun(self) -> str:
        upload_id: str = self._call("create_multipart_upload", ChecksumAlgorithm="SHA256")["UploadId"]
        return upload_id

    def _send_parts(
        self, upload_id: str, reader: VerifiedReader, size_bytes: int, part_bytes: int
    ) -> list[CompletedPartTypeDef]:
        pages = self._pages("list_parts", Key=self.key, UploadId=upload_id)
        there: dict[int, PartTypeDef] = {part["PartNumber"]: part for page in pages for part in page.get("Parts", ())}
        parts: list[CompletedPartTypeDef] = []
        sending: deque[Future[CompletedPartTypeDef]] = deque()
        with ThreadPoolExecutor(PARALLEL_PARTS, thread_name_prefix="part") as pool:
            for number, start in enumerate(range(0, size_bytes, part_bytes), 1):
                if len(sending) == PARALLEL_PARTS:
                    parts.append(sending.popleft().result())
                rest_bytes = size_bytes - start
                # One more byte than the last part should have shows a file that has grown.
                content = reader.read(part_bytes if rest_bytes > part_bytes else rest_bytes + 1)
                sending.append(pool.submit(self._send_part, upload_id, number, content, there.get(number)))
            parts += [each.result() for each in sending]
        return parts

    def _send_part(
        self, upload_id: str, number: int, content: bytes, there: PartTypeDef | None
    ) -> CompletedPartTypeDef:
        """Bring a part there, unless it is there. The server holds it against its digest when it is completed."""
        checksum = base64.b64encode(hashlib.sha256(content).digest()).decode()
        if there is not None and _is_same(there, content, checksum):
            etag = there["ETag"]
        else:
            etag = self._call(
                "upload_part", UploadId=upload_id, PartNumber=number, Body=content, ChecksumSHA256=checksum
            )["ETag"]
        return {"PartNumber": number, "ETag": etag, "ChecksumSHA256": checksum}

    def _complete(self, upload_id: str, parts: list[CompletedPartTypeDef]) -> None:
        try:
            self._call("complete_multipart_upload", UploadId=upload_id, MultipartUpload={"Parts": parts})
        except UploadEnded:
            # It may have been us, and the answer was lost; or somebody who sent the same file.
            if not self._is_there(parts):
                raise

    def _is_there(self, parts: list[CompletedPartTypeDef]) -> bool:
        """Whether the object is what these parts make, by its ETag: the MD5 of the parts' MD5s, and their number."""
        try:
            etag = self._call("head_object")["ETag"].strip('"')
            whole = hashlib.md5(
                b"".join(bytes.fromhex(part["ETag"].strip('"')) for part in parts), usedforsecurity=False
            )
        except (NotFound, ValueError):
            return False
        return bool(etag == f"{whole.hexdigest()}-{len(parts)}")

    def _call(self, name: str, **arguments: Any) -> Any:
        return self.do(lambda: getattr(self.client, name)(Bucket=self.bucket, Key=self.key, **arguments))

    def _pages(self, name: Any, **arguments: Any) -> list[Mapping[str, Any]]:
        pages: list[Mapping[str, Any]] = self.do(
            lambda: list(self.client.get_paginator(name).paginate(Bucket=self.bucket, **arguments))
        )
        return pages


def _is_same(there: PartTypeDef, content: bytes, checksum: str) -> bool:
    """Whether a part holds this content: by its SHA-256 where the server tells it, else by its ETag, the MD5.

    With some encryptions the ETag is something else; then the part is sent again.
    """
    if there["Size"] != len(content):
        return False
    if "ChecksumSHA256" in there:
        return there["ChecksumSHA256"] == checksum
    return there["ETag"].strip('"') == hashlib.md5(content, usedforsecurity=False).hexdigest()
