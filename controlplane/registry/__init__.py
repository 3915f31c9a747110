"""Models, versions and everything else that lasts, in an object store: an S3 bucket or a directory."""

from controlplane.registry.open import open_registry
from controlplane.registry.registry import Registry

__all__ = ["Registry", "open_registry"]
