"""Topics and filters behave as a broker has them."""

from __future__ import annotations

import re
from itertools import product

from hypothesis import example, given
from hypothesis import strategies as st

from client_device_pruner.config.topics import filter_covers, filters_overlap

LEVELS = ("a", "b", "", "$s")
TOPICS = ["/".join(parts) for depth in range(1, 5) for parts in product(LEVELS, repeat=depth)]
"""Two filters of up to four levels that have a topic in common have one of these; the empty one no broker has."""
FILTERS = (
    st.tuples(st.lists(st.sampled_from([*LEVELS, "+"]), max_size=3), st.sampled_from([*LEVELS, "+", "#"]))
    .map(lambda parts: "/".join([*parts[0], parts[1]]))
    .filter(bool)
)


def matched(topic_filter: str) -> set[str]:
    """What a subscriber gets, by a pattern made of the filter; a leading wildcard shuns `$`."""
    pattern = "/".join("[^/]*" if level == "+" else re.escape(level) for level in topic_filter.split("/"))
    pattern = ".*" if topic_filter == "#" else re.sub(r"/\\#$", "(/.*)?", pattern)
    shuns = topic_filter[0] in "+#"
    return {topic for topic in TOPICS if re.fullmatch(pattern, topic) and not (shuns and topic.startswith("$"))}


@given(FILTERS, FILTERS)
@example("a/+", "a/#")
@example("#", "$s/#")
@example("+", "/#")
def test_filters_agree_with_what_they_match(a: str, b: str) -> None:
    """Filters overlap if some topic matches both; what one matches, every filter that covers it matches."""
    assert filters_overlap(a, b) is filters_overlap(b, a) is bool(matched(a) & matched(b))
    assert not filter_covers(a, b) or matched(b) <= matched(a)
    assert filter_covers(a, a)
    assert filter_covers("#", a) is not a.startswith("$")
