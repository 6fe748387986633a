"""What the doctor says: something that is wrong, and what to do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong and what it costs, and a remedy: a sentence, or JSON for the component that `finding` names."""

    finding: str
    remedy: str
