"""The published description of the controller's API."""

from __future__ import annotations

import json
import re
from pathlib import Path

from controlplane.server.openapi import document_text

PUBLISHED = Path("docs/openapi.json")


def test_the_published_document_is_current() -> None:
    """`python -m controlplane.server.openapi > docs/openapi.json` renews it."""
    assert PUBLISHED.read_text() == document_text()


def test_every_reference_leads_somewhere() -> None:
    text = PUBLISHED.read_text()
    schemas = json.loads(text)["components"]["schemas"]
    referred = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    assert referred
    assert referred <= schemas.keys()
