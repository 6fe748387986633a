"""How sites, devices and strangers are mixed, and how often what goes wrong: each figure with its reason."""

from __future__ import annotations

MINUTE, HOUR, DAY = 60.0, 3_600.0, 86_400.0
YEAR = 365.25 * DAY


class Pace:
    """How much shorter than real ones a site's hours, days and years are, which makes years cheap.

    All that takes hours or more is shorter: thresholds, visits, lives, and the time between faults. What brokers,
    bridges, counts and the component do within seconds and minutes takes as long as ever, so holes weigh more.
    """

    def __init__(self, times: float = 6.0) -> None:
        self.times = times
        self.hour, self.day, self.year = HOUR / times, DAY / times, YEAR / times  # in seconds


KINDS = ("clientList", "events+messages", "events", "messages")
"""EMQX with its HTTP API; EMQX and what devices publish; EMQX alone; Moquette and what devices publish."""

THRESHOLD_DAYS = 30
"""`offlineThreshold`, as it is by default."""
MARGIN_DAYS = 45
"""Who died later than so long before the end is not counted: patience, grace period and cycles need that long."""

DEVICES = (8, 128)
"""Sites have so many devices, spread evenly over the powers of two between: few large ones, many small ones."""
LIFETIME_YEARS = 2
"""How long devices live, on average: short, so that a year holds enough deaths."""

STYLES = (
    # style, of a hundred devices, why so many
    ("everySecond", 10, "controllers; told once a probe interval, since what comes between two probes is one sighting"),
    ("hourly", 20, "meters and sensors on mains"),
    ("sixHourly", 12, "meters that save traffic"),
    ("silent", 12, "actuators that are commanded, and say a word in one to four weeks"),
    ("flapping", 6, "bad radio: gone and back some times a day"),
    ("daily", 14, "on batteries: comes, says a word and goes"),
    ("weekly", 8, "on small batteries"),
    ("seasonal", 6, "irrigation, heating: there for months, away for months"),
    ("mute", 6, "an update took its telemetry away: it stays connected without a word"),
    ("never", 6, "associated in advance, or dead before the component came: the backlog"),
)

FATES = (
    # fate, of a hundred deaths, why so many
    ("power", 55, "the broker notices by keepalive, if it is there then"),
    ("closed", 15, "switched off in good order"),
    ("replaced", 15, "a new one is associated, the old one's association stays"),
    ("moved", 15, "it lives on another core; a third of these associations are taken off by somebody"),
)

KEEPALIVES = ((60, 50), (300, 30), (1200, 17), (0, 3))
"""Keepalive in seconds, of a hundred devices: most libraries have 60; 0 is what some embedded ones do (case 12)."""

BLIPS = {"flapping": 0.0, "silent": 9.0, "mute": 9.0, "daily": 0.0, "weekly": 0.0}
USUAL_BLIPS, TAKEOVERS = 24.0, 0.3
"""A connection breaks so often in a year by itself, and so many come back before the broker has noticed: what says
nothing notices less often that its connection is dead; a flapping one is gone all the time, a visitor soon anyway."""

STRANGERS = (
    # kind, chance that a site has one, and once more that it has a second; why
    ("dashboard", 0.7, "announced, always there, restarts monthly"),
    ("tool", 0.6, "a new id at each start, some times a week, for minutes or hours; a tenth ends without a word"),
    ("hidden", 0.1, "never announced (a name longer than any thing's, another listener), always there"),
    ("hiddenTool", 0.03, "the same, on working days"),
)

RETAINS, REPLAYED = 0.2, 3
"""Share of the sites where some devices publish retained, and how many do: the broker sends what it kept of them, also
when they are dead, whenever the bridge reconnects (case 10)."""
LOSSES = (0.0, 0.0, 1e-4, 1e-3)
"""Chance of a site's single messages to be lost: local networks lose next to none, a busy broker some (QoS 0)."""
DOUBLED, LATE, LATE_SECONDS = 0.01, 0.02, 4.0
"""EMQX' events come twice and out of order, a known limitation."""
STRESS = (0.1, 0.3, 1.0, 2.0)
"""A site's faults come so many times as often as below: few sites are bad, most are calm."""
DIES_WITH_POWER = 0.01
"""Chance that a device does not survive a power cut."""
OPERATOR_DAYS = 7
"""A person looks at the plan that waits so often, asks the plant, and approves it if all of it is really gone."""
