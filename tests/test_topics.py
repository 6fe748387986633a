"""Topics and filters behave as a broker has them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_device_pruner.topics import (
    THING_NAME,
    filter_covers,
    filters_overlap,
    intersection,
    is_filter,
    is_topic,
    level_of,
    topic_matches,
)

LEVELS = st.sampled_from(["a", "b", "", "$s"])
TOPICS = st.lists(LEVELS, min_size=1, max_size=4).map("/".join).filter(bool)
FILTERS = (
    st.tuples(st.lists(LEVELS | st.just("+"), max_size=3), LEVELS | st.sampled_from("+#"))
    .map(lambda parts: "/".join([*parts[0], parts[1]]))
    .filter(bool)
)


@pytest.mark.parametrize(
    ("topic_filter", "topic", "matches"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("a/+", "a/", True),
        ("+/b", "/b", True),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("a/#", "ab", False),
        ("a/+/#", "a", False),
        ("#", "a/b", True),
        ("#", "$SYS/uptime", False),
        ("+/uptime", "$SYS/uptime", False),
        ("$SYS/#", "$SYS/uptime", True),
        ("$SYS/+", "$SYS/uptime", True),
        ("a/+", "a/$b", True),
    ],
)
def test_topic_matches(topic_filter: str, topic: str, matches: bool) -> None:
    """Wildcards match as in the MQTT specification."""
    assert topic_matches(topic_filter, topic) is matches


@given(FILTERS, TOPICS)
def test_matching_agrees_with_a_pattern(topic_filter: str, topic: str) -> None:
    """Matching is what a regular expression made of the filter says."""
    pattern = "/".join("[^/]*" if level == "+" else re.escape(level) for level in topic_filter.split("/"))
    pattern = ".*" if topic_filter == "#" else re.sub(r"/\\#$", "(/.*)?", pattern)
    hidden = topic.startswith("$") and topic_filter[0] in "+#"
    assert topic_matches(topic_filter, topic) is (bool(re.fullmatch(pattern, topic)) and not hidden)


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


def test_level_of() -> None:
    """The level of the nth `+`, None if there are fewer."""
    topic_filter = "$SYS/brokers/+/clients/+/connected"
    assert [level_of(topic_filter, nth) for nth in range(4)] == [None, 2, 4, None]


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("a", True),
        ("A:b_c-1", True),
        ("a" * 128, True),
        ("a" * 129, False),
        ("", False),
        ("a\n", False),
        ("ä", False),
    ],
)
def test_thing_names(name: str, valid: bool) -> None:
    """The pattern takes the whole name, whichever way it is asked."""
    assert bool(THING_NAME.match(name)) is bool(THING_NAME.fullmatch(name)) is valid
