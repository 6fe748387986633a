"""Topics and filters behave as a broker has them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_device_pruner.config.topics import filter_covers, filters_overlap

LEVELS = st.sampled_from(["a", "b", "", "$s"])
TOPICS = st.lists(LEVELS, min_size=1, max_size=4).map("/".join).filter(bool)
FILTERS = (
    st.tuples(st.lists(LEVELS | st.just("+"), max_size=3), LEVELS | st.sampled_from("+#"))
    .map(lambda parts: "/".join([*parts[0], parts[1]]))
    .filter(bool)
)


def topic_matches(topic_filter: str, topic: str) -> bool:
    """Whether a message goes to a subscriber, by a pattern made of the filter; a leading wildcard shuns `$`."""
    pattern = "/".join("[^/]*" if level == "+" else re.escape(level) for level in topic_filter.split("/"))
    pattern = ".*" if topic_filter == "#" else re.sub(r"/\\#$", "(/.*)?", pattern)
    return bool(re.fullmatch(pattern, topic)) and not (topic.startswith("$") and topic_filter[0] in "+#")


@given(FILTERS, FILTERS, TOPICS)
def test_filters_agree_with_what_they_match(a: str, b: str, topic: str) -> None:
    """Filters that both match some topic overlap; what one matches is matched by every filter that covers it.

    Covering includes being equal, and `#` covers all that does not begin with `$`.
    """
    if topic_matches(a, topic) and topic_matches(b, topic):
        assert filters_overlap(a, b)
    if filter_covers(a, b) and topic_matches(b, topic):
        assert topic_matches(a, topic)
    assert filter_covers(a, a)
    assert filter_covers("#", a) is not a.startswith("$")


@pytest.mark.parametrize(
    ("a", "b", "overlap"),
    [
        ("clients/+/x", "clients/#", True),
        ("clients/+/x", "clients/+/y", False),
        ("clients", "clients/#", True),
        ("#", "$SYS/#", False),
        ("+/b", "a/+", True),
        ("a/b", "a/b/c", False),
    ],
)
def test_filters_overlap(a: str, b: str, overlap: bool) -> None:
    """Filters overlap when some topic matches both."""
    assert filters_overlap(a, b) is filters_overlap(b, a) is overlap
