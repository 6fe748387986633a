"""Topics and filters behave as a broker has them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_device_pruner.config.topics import filter_covers, filters_overlap, intersection, is_filter, is_topic

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
def test_an_intersection_matches_what_both_match(a: str, b: str, topic: str) -> None:
    """A topic that both filters match is matched by their intersection, which is the same either way."""
    common = intersection(a, b)
    assert common == intersection(b, a)
    both = topic_matches(a, topic) and topic_matches(b, topic)
    assert both is (common is not None and topic_matches(common, topic))
    assert not both or filters_overlap(a, b)


def test_the_empty_text_is_no_topic_in_common() -> None:
    """`+` and `/#` both match the empty text, to which nothing can be published (found by fuzzing)."""
    assert intersection("+", "/#") is None
    assert not filters_overlap("/#", "+")
    assert intersection("+/a", "/#") == "/a"


@given(FILTERS, FILTERS)
def test_filters_that_overlap_have_a_common_topic(a: str, b: str) -> None:
    """The intersection of filters gives a topic that both match."""
    common = intersection(a, b)
    if common is not None:
        topic = common.replace("+", "a").replace("#", "a")
        assert topic_matches(a, topic)
        assert topic_matches(b, topic)


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


@given(FILTERS, FILTERS, TOPICS)
def test_a_covering_filter_matches_all_that_the_other_matches(wide: str, narrow: str, topic: str) -> None:
    """What a filter matches is matched by every filter that covers it."""
    if filter_covers(wide, narrow) and topic_matches(narrow, topic):
        assert topic_matches(wide, topic)


@given(FILTERS)
def test_a_filter_covers_itself(topic_filter: str) -> None:
    """Covering includes being equal, and `#` covers all that does not begin with `$`."""
    assert filter_covers(topic_filter, topic_filter)
    assert filter_covers("#", topic_filter) is not topic_filter.startswith("$")


@pytest.mark.parametrize("text", ["a", "/", "a//b", "$SYS/x", "ä/ö", "a" * 65535])
def test_topics(text: str) -> None:
    """What can be published to is a topic and a filter."""
    assert is_topic(text)
    assert is_filter(text)


@pytest.mark.parametrize("text", ["", "a\0b", "a" * 65536, "ä" * 40000, "\ud800"])
def test_no_topics(text: str) -> None:
    """Empty texts, NUL, more than 65535 bytes and what is no Unicode are neither topic nor filter."""
    assert not is_topic(text)
    assert not is_filter(text)


@pytest.mark.parametrize("text", ["+", "#", "a/+", "a/#", "+/+/#", "/+"])
def test_filters(text: str) -> None:
    """A filter with wildcards is no topic."""
    assert is_filter(text)
    assert not is_topic(text)


@pytest.mark.parametrize("text", ["a+", "a/#/b", "a#", "#/", "++", "a/+b/c"])
def test_no_filters(text: str) -> None:
    """A wildcard fills its level, and `#` stands only at the end."""
    assert not is_filter(text)
