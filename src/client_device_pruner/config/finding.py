"""What the doctor says: something that is wrong, and what to do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong with a configuration or a permission.

    Attributes:
        finding: what is wrong, and what it costs.
        remedy: JSON to merge into the configuration of the component that `finding` names, or a sentence.
    """

    finding: str
    remedy: str
