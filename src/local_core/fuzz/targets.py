"""All targets, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from local_core.fuzz import broker, cloud_child, configuration, documents, roll_calls, state
from local_core.fuzz.target import Target

TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        target.name: target
        for module in (broker, roll_calls, cloud_child, configuration, documents, state)
        for target in module.TARGETS
    }
)
