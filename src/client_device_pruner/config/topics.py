"""MQTT topic filters, as the broker and the bridge understand them."""

from __future__ import annotations

from itertools import zip_longest

IN = "client-device-pruner/in/"  # prefix of all that reaches the component on local pub/sub
PROBE = "pruner-probe/"  # prefix of a probe's topic on its way to the broker; it comes back below `IN`


def filters_overlap(a: str, b: str) -> bool:
    """Tell whether there is a topic that both filters match."""
    if _shuns_dollar(a, b) or _shuns_dollar(b, a):
        return False
    for left, right in zip_longest(a.split("/"), b.split("/")):
        if "#" in {left, right}:
            return True
        if left is None or right is None or (left != right and "+" not in {left, right}):
            return False
    return True


def filter_covers(wide: str, narrow: str) -> bool:
    """Tell whether `wide` matches every topic that `narrow` matches."""
    if _shuns_dollar(wide, narrow):
        return False
    for outer, inner in zip_longest(wide.split("/"), narrow.split("/")):
        if outer == "#":
            return True
        if outer is None or inner in {None, "#"} or outer not in {"+", inner}:
            return False
    return True


def _shuns_dollar(topic_filter: str, other: str) -> bool:
    """A wildcard at the first level matches no topic of the broker's own."""
    return topic_filter.startswith(("+", "#")) and other.startswith("$")
