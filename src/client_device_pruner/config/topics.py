"""MQTT topics and topic filters, as the broker and the bridge understand them."""

from __future__ import annotations

from itertools import zip_longest

IN = "client-device-pruner/in/"
"""Prefix of all that reaches the component on local pub/sub."""
PROBE = "pruner-probe/"
"""Prefix of a probe's topic on its way to the broker; it comes back below `IN`."""

_LONGEST_BYTES = 65535  # MQTT 3.1.1, 1.5.3: a string's length is a two-byte number.


def is_topic(text: str) -> bool:
    """Tell whether a message can be published to this text."""
    return _is_string(text) and "+" not in text and "#" not in text


def is_filter(text: str) -> bool:
    """Tell whether this text can be subscribed to; a wildcard fills its level, `#` stands only at the end."""
    if not _is_string(text):
        return False
    *inner, last = text.split("/")
    return all(level == "+" or not set(level) & {"+", "#"} for level in inner) and (
        last in {"+", "#"} or not set(last) & {"+", "#"}
    )


def filters_overlap(a: str, b: str) -> bool:
    """Tell whether there is a topic that both filters match."""
    return intersection(a, b) is not None


def intersection(a: str, b: str) -> str | None:
    """Give the filter of the topics that both filters match, None if there are none."""
    if _shuns_dollar(a, b) or _shuns_dollar(b, a):
        return None
    lefts, rights, common = a.split("/"), b.split("/"), list[str]()
    for index, (left, right) in enumerate(zip_longest(lefts, rights)):
        if left == "#" or right == "#":
            # What `+` and `/#` have in common is the empty text, to which nothing can be published.
            return "/".join(common + (rights if left == "#" else lefts)[index:]) or None
        if left is None or right is None or (left != right and "+" not in {left, right}):
            return None
        common.append(right if left == "+" else left)
    return "/".join(common)


def filter_covers(wide: str, narrow: str) -> bool:
    """Tell whether `wide` matches every topic that `narrow` matches."""
    if _shuns_dollar(wide, narrow):
        return False
    wide, narrow = ("#" if text == "+/#" else text for text in (wide, narrow))  # the same at the first level
    for outer, inner in zip_longest(wide.split("/"), narrow.split("/")):
        if outer == "#":
            return True
        if outer is None or inner in {None, "#"} or outer not in {"+", inner}:
            return False
    return True


def _is_string(text: str) -> bool:
    # A lone surrogate cannot be encoded; it would fail only in the SDK, far from its cause.
    return bool(text) and "\0" not in text and 0 <= _length_bytes(text) <= _LONGEST_BYTES


def _length_bytes(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return -1


def _shuns_dollar(topic_filter: str, other: str) -> bool:
    return topic_filter.split("/", 1)[0] in {"+", "#"} and other.startswith("$")
