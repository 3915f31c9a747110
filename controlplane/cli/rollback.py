"""`ctl rollback` lives beside `ctl promote`: both end in the same wait."""

from controlplane.cli.promote import rollback

__all__ = ["rollback"]
