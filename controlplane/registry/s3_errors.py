"""What boto3 raises, in the registry's own errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from boto3.exceptions import Boto3Error
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,  # noqa: A004 - botocore's own: what could not be connected to
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)

from controlplane.core.errors import Conflict, ControlPlaneError, InvalidInput, NotFound, Unauthenticated, Unavailable

_CREDENTIALS = "check the credentials (AWS_PROFILE or AWS_ACCESS_KEY_ID, …) and the rights that they have on the bucket"


_REFUSED = (
    "AccessDenied",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "SignatureDoesNotMatch",
    "XAdminUserNotFound",
)


class Passing(Unavailable):
    """A fault of the store or of the way there that may be over at the next attempt."""


class UploadEnded(Unavailable):
    """An upload in parts is not what it was: somebody else completed it, removed it or sent a part of it."""


@contextmanager
def own_errors(bucket: str, key: str, *, conditional: bool = False) -> Iterator[None]:
    """Raise what goes wrong inside as ControlPlaneError. `conditional`: a failed precondition is to be expected."""
    try:
        yield
    except ControlPlaneError:
        raise
    except ClientError as error:
        raise _translated(error, bucket, key, conditional=conditional) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise Unauthenticated(f"s3://{bucket}: {error}", remedy=_CREDENTIALS) from error
    except ParamValidationError as error:
        raise InvalidInput(f"s3://{bucket}/{key}: {error}", field="registry") from error
    except (ConnectionError, HTTPClientError, IncompleteReadError) as error:
        raise Passing(f"s3://{bucket} does not answer: {error}", remedy="check AWS_ENDPOINT_URL_S3") from error
    except (BotoCoreError, Boto3Error) as error:
        raise Unavailable(f"s3://{bucket}/{key}: {error}") from error


def _translated(error: ClientError, bucket: str, key: str, *, conditional: bool) -> ControlPlaneError:
    code = error.response.get("Error", {}).get("Code", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    where = f"s3://{bucket}/{key}"
    if code == "NoSuchBucket":
        return InvalidInput(
            f"there is no bucket {bucket!r}", field="registry", remedy="make it, or name one that is there"
        )
    if code in ("NoSuchUpload", "InvalidPart"):
        return UploadEnded(f"{where} is being uploaded by somebody else too", remedy="try again")
    if status in (401, 403) or code in _REFUSED:  # some servers say a wrong key with 404
        return Unauthenticated(f"{where} is refused: {code or status}", remedy=_CREDENTIALS)
    if status == 412 or (conditional and status == 404):
        return Conflict(f"{key} was changed by somebody else")
    if status == 404:
        return NotFound(f"{key} is not in the registry")
    if status in (409, 429) or status >= 500 or code in ("RequestTimeout", "SlowDown"):
        return Passing(f"{where}: {code or status}", remedy="try again")
    message = error.response.get("Error", {}).get("Message", "")
    return InvalidInput(f"{where}: {code}: {message}", field="registry")
