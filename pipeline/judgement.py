"""When the judgement of a candidate may come from the cache.

A model is judged against the one being served, which no cache key of TFX knows. The judgement is repeated only while
nothing changed: the last run had the same inputs, it came to the end of that model, and what it left being served is
what is served now. So a run that died goes on with the model it died at, and pushes none twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def inputs_key(*parts: str) -> str:
    """Identity of all that a run is made from."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def judgement_key(last: Mapping[str, Any], model: str, inputs: str, served: str, now: float) -> str:
    """What the judgement of a model is cached under.

    Args:
        last: Record of the folder's last run; empty if there is none. `served_after` names what was served at the end
            of each model that it came to the end of.
        model: Which model.
        inputs: `inputs_key` of the run about to start.
        served: The version being served; "" if there is none.
        now: Unix seconds, which make a new key.

    Returns:
        The last run's key if its judgement stands, else one that was never used.
    """
    if last.get("inputs_of", {}).get(model) == inputs and last.get("served_after", {}).get(model) == served:
        return str(last["judgements"][model])
    return f"{served or 'nothing'} served at {now:.6f}"
