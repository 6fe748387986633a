"""What deployments do to configurations."""

from typing import Any

import pytest

from local_core.recipe import as_texts, merge


@pytest.mark.parametrize(
    ("base", "update", "merged"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}, {"a": {"b": 3, "c": 2}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"offlineThreshold": "30d"}, {"OFFLINETHRESHOLD": "9d"}, {"offlineThreshold": "9d"}),
        ({"a": 1}, {"_a": 2, "b": {"_c": 1}}, {"a": 1, "b": {}}),
        ({"a": {"b": 1}}, {"a": None}, {"a": None}),
    ],
)
def test_merging(base: dict[str, Any], update: dict[str, Any], merged: dict[str, Any]) -> None:
    """Maps merge by key with case folded, lists are replaced, underscored keys vanish."""
    before = repr(base)
    assert merge(base, update) == merged
    assert repr(base) == before


def test_greengrass_lite_reads_every_scalar_as_a_text() -> None:
    """At any depth."""
    assert as_texts({"a": {"b": 1.5}, "c": [True, "x"]}) == {"a": {"b": "1.5"}, "c": ["true", "x"]}
