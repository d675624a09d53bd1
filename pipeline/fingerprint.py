"""What the code is known by: TFX hashes the names of functions, not what they do."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

PACKAGES = ("components", "pipeline", "serving", "trainer", "transform")


def code_fingerprint() -> str:
    """A digest of the sources of the packages that make, judge, try and push models; part of every cache key."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        folder = Path(spec.origin).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
