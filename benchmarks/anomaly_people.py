"""Two hundred people and some jobs: where they live, when they work, what they reach.

Everything here is drawn once for a person; spa_server's record of what they then do is made in
`anomaly_days`. Nothing is taken from the detector: the numbers are guesses at how people are.
"""

import random
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Final
from zoneinfo import ZoneInfo

DAYS: Final = 60
PEOPLE: Final = 200
JOBS: Final = 15
FIRST_DAY: Final = date(2026, 3, 2)  # a Monday; summer time begins within the 60 days
HOLIDAYS: Final = frozenset({date(2026, 4, 3), date(2026, 4, 6)})
CATALOGUE: Final = (
    *("tcp/22", "tcp/443", "tcp/5432", "tcp/3306", "tcp/6379", "tcp/8443", "tcp/9090"),
    *("tcp/3000", "tcp/5601", "tcp/9200", "tcp/8080", "tcp/2222", "tcp/27017", "tcp/1433"),
    *("tcp/5672", "tcp/15672", "tcp/8500", "tcp/4646", "tcp/6443", "tcp/10250", "tcp/9443"),
    *("tcp/3389", "tcp/5900", "udp/51820", "tcp/8200", "tcp/7000", "tcp/9042", "tcp/11211"),
    *("tcp/2049", "tcp/8888"),
)
_ZONES: Final = (
    *(["Europe/Berlin"] * 10 + ["Europe/London"] * 3 + ["America/New_York"] * 3),
    *("Asia/Kolkata", "Asia/Kolkata", "America/Los_Angeles", "Australia/Sydney"),
)
_FAR_ZONES: Final = ("America/New_York", "America/Los_Angeles", "Asia/Tokyo", "Asia/Kolkata")
_PUBLIC_FIRST: Final = tuple(n for n in range(20, 220) if n not in {100, 127, 169, 172, 192, 198})


@dataclass(frozen=True, slots=True)
class Company:
    """How restless people are. Chances are for a day unless they say otherwise.

    `trips` weighs 0, 1, 2 and 6 business trips in the 60 days; `leases` is drawn from, for every
    how many days a home gets another address (None: never); `moves_home` is a chance in 60 days.
    """

    name: str
    trips: tuple[int, int, int, int]
    leases: tuple[float | None, ...]
    moves_home: float
    cafe: float
    explores: float
    mistypes: float
    late: tuple[float, ...]
    weekends: tuple[float, ...]


ORDINARY: Final = Company(
    name="ordinary",
    trips=(80, 13, 5, 2),
    leases=(None, None, None, None, 7.0, 30.0),
    moves_home=0.02,
    cafe=0.008,
    explores=0.006,
    mistypes=0.015,
    late=(0.0, 0.0, 0.01, 0.05),
    weekends=(0.0, 0.0, 0.02, 0.1),
)
RESTLESS: Final = Company(
    name="restless",
    trips=(66, 18, 8, 8),
    leases=(None, None, None, 3.0, 12.0, 30.0),
    moves_home=0.05,
    cafe=0.02,
    explores=0.012,
    mistypes=0.03,
    late=(0.0, 0.01, 0.03, 0.1),
    weekends=(0.0, 0.01, 0.03, 0.15),
)

COMPANIES: Final = (ORDINARY, RESTLESS)


@dataclass(frozen=True, slots=True)
class Pool:
    """A provider's address space: some /16, or some /32 of IPv6."""

    blocks: tuple[str, ...]
    is_v6: bool = False

    def network(self, rng: random.Random, networks: int = 256) -> str:
        """One /24 (or /48) of it, as the beginning of an address."""
        block, number = rng.choice(self.blocks), rng.randrange(networks)
        return f"{block}:{number:x}:" if self.is_v6 else f"{block}.{number}."


def address_in(rng: random.Random, network: str) -> str:
    """Some address in a network."""
    return f"{network}:{rng.randrange(1, 65536):x}" if ":" in network else _v4(rng, network)


def _v4(rng: random.Random, network: str) -> str:
    return f"{network}{rng.randrange(1, 255)}"


def public_network(rng: random.Random) -> str:
    """Some /24 of the Internet."""
    return f"{rng.choice(_PUBLIC_FIRST)}.{rng.randrange(256)}.{rng.randrange(256)}."


def _pool(rng: random.Random, blocks: int, *, is_v6: bool = False) -> Pool:
    if is_v6:
        return Pool(
            tuple(f"2a{rng.randrange(256):02x}:{rng.randrange(1, 65536):x}" for _ in range(blocks)),
            is_v6=True,
        )
    return Pool(tuple(f"{rng.choice(_PUBLIC_FIRST)}.{rng.randrange(256)}" for _ in range(blocks)))


@dataclass(frozen=True, slots=True)
class Land:
    """The networks that there are."""

    providers: tuple[Pool, ...]
    carriers: tuple[Pool, ...]
    offices: tuple[str, ...] = ("10.1.1.", "10.1.2.", "10.2.1.", "10.3.1.")
    vpn: tuple[str, ...] = ("10.200.0.", "10.200.1.")
    servers: tuple[str, ...] = ("10.9.0.", "10.9.1.", "10.10.0.")


def land(rng: random.Random) -> Land:
    """A land of eight providers and three carriers."""
    providers = [_pool(rng, 8) for _ in range(6)] + [_pool(rng, 2, is_v6=True) for _ in range(2)]
    return Land(tuple(providers), tuple(_pool(rng, 3) for _ in range(3)))


@dataclass(frozen=True, slots=True)
class Trip:
    """Days away on business: from `first` up to, not including, `until`."""

    first: int
    until: int
    network: str
    zone: ZoneInfo


@dataclass(slots=True)
class Person:
    """Whoever holds keys. Days are counted from the first one; hours are the person's own."""

    name: str
    zone: ZoneInfo
    team: int
    shape: str  # office, shift, on-call, seldom, job, night-job
    office: str
    provider: Pool
    carrier: Pool
    homes: list[tuple[int, str]]  # from which day on
    at_home: float
    sessions: float  # on a working day
    starts: float
    works: float
    services: dict[str, float]
    allowed: tuple[str, ...]
    company: Company
    vpn: float = 0.0
    weekends: float = 0.0
    late: float = 0.0
    commutes: float = 0.0
    keys: list[tuple[int, int, str]] = field(default_factory=list)  # from day, until day, key id
    phone: str | None = None
    trips: list[Trip] = field(default_factory=list)
    away: list[tuple[int, int]] = field(default_factory=list)
    joined: int = 0
    left: int = DAYS
    rng: random.Random = field(default_factory=random.Random)

    def home(self, day: int) -> str:
        """The network at home on a day."""
        return [network for since, network in self.homes if since <= day][-1]

    def key(self, day: int) -> str:
        """The key that is in use on a day."""
        return next(key for since, until, key in self.keys if since <= day < until)

    def is_here(self, day: int) -> bool:
        """Whether the person works for us and is not on leave."""
        is_away = any(first <= day < until for first, until in self.away)
        return self.joined <= day < self.left and not is_away

    @property
    def is_job(self) -> bool:
        """Whether it is a service account."""
        return self.shape.endswith("job")


def population(seed: int, where: Land, company: Company) -> list[Person]:
    """The people and the jobs of one run."""
    rng = random.Random(f"{seed}/people")
    teams = [tuple(rng.sample(CATALOGUE, rng.randrange(6, 13))) for _ in range(10)]
    people = [_person(seed, number, where, teams, company) for number in range(PEOPLE)]
    _leaves(rng, people)
    return people + [_job(seed, number, where, company) for number in range(JOBS)]


def _person(
    seed: int, number: int, where: Land, teams: list[tuple[str, ...]], company: Company
) -> Person:
    rng = random.Random(f"{seed}/person/{number}")
    name = f"person-{number:03}"
    team = rng.randrange(len(teams))
    allowed = teams[team]
    used = rng.sample(allowed, min(len(allowed), rng.randrange(2, 6)))
    provider = rng.choice(where.providers)
    shape = rng.choices(("office", "shift", "on-call", "seldom"), (70, 10, 13, 7))[0]
    person = Person(
        name=name,
        zone=ZoneInfo(rng.choice(_ZONES)),
        team=team,
        shape=shape,
        office=rng.choice(where.offices),
        provider=provider,
        carrier=rng.choice(where.carriers),
        homes=_homes(rng, provider, company),
        company=company,
        at_home=rng.choice((0.0, 0.1, 0.2, 0.4, 0.4, 0.6, 0.8, 1.0)),
        sessions=min(25.0, rng.lognormvariate(1.5, 0.6)),
        starts=rng.gauss(8.7, 0.9),
        works=rng.gauss(8.5, 0.7),
        services={port: 1 / (place + 1) ** 1.3 for place, port in enumerate(used)},
        allowed=allowed,
        vpn=rng.choice((0.0, 0.0, 0.3, 0.6)),
        weekends=rng.choice(company.weekends),
        late=rng.choice(company.late),
        commutes=rng.choice((0.0, 0.0, 0.02, 0.15)),
        keys=[(0, DAYS, f"key-{name}")],
        rng=rng,
    )
    person.trips = _trips(rng, person.zone, company)
    if rng.random() < 0.2:
        person.phone = f"key-{name}-phone"
    if rng.random() < 0.1:
        change = rng.randrange(10, 55)
        person.keys = [(0, change, f"key-{name}"), (change, DAYS, f"key-{name}-new")]
    return person


def _homes(rng: random.Random, provider: Pool, company: Company) -> list[tuple[int, str]]:
    """Some homes get another address from time to time; some people move."""
    homes = [(0, provider.network(rng))]
    pause = rng.choice(company.leases)
    day = 0.0
    while pause is not None and (day := day + rng.expovariate(1 / pause)) < DAYS:
        same_block = rng.random() < 0.6
        pool = Pool(
            (homes[-1][1].rstrip(".:").rpartition(":" if provider.is_v6 else ".")[0],),
            provider.is_v6,
        )
        homes.append((int(day), (pool if same_block else provider).network(rng)))
    if rng.random() < company.moves_home:
        homes.append((rng.randrange(5, DAYS), public_network(rng)))
    return sorted(homes, key=lambda one: one[0])


def _trips(rng: random.Random, zone: ZoneInfo, company: Company) -> list[Trip]:
    count = rng.choices((0, 1, 2, 6), company.trips)[0]
    trips = []
    for _ in range(count):
        first = rng.randrange(1, DAYS - 2)
        there = zone if rng.random() < 0.6 else ZoneInfo(rng.choice(_FAR_ZONES))
        trips.append(Trip(first, first + rng.randrange(1, 6), public_network(rng), there))
    return trips


def _leaves(rng: random.Random, people: list[Person]) -> None:
    """Holidays for a third; long leaves, people who join and people who leave for a few."""
    for person in people:
        if rng.random() < 0.35:
            first = rng.randrange(2, DAYS - 5)
            person.away.append((first, first + rng.choice((3, 5, 7, 9, 14, 16))))
    some = iter(rng.sample(people, 26))
    for _ in range(8):
        first = rng.randrange(8, 25)
        next(some).away.append((first, first + rng.randrange(18, 32)))
    for _ in range(8):
        next(some).joined = rng.randrange(5, 50)
    for _ in range(10):
        next(some).left = rng.randrange(12, 35)


def _job(seed: int, number: int, where: Land, company: Company) -> Person:
    rng = random.Random(f"{seed}/job/{number}")
    name = f"job-{number:02}"
    ports = tuple(rng.sample(CATALOGUE, rng.choice((1, 1, 2))))
    network = rng.choice(where.servers)
    homes = [(0, network)]
    if rng.random() < 0.2:
        homes.append((rng.randrange(20, DAYS), rng.choice(where.servers)))
    return Person(
        name=name,
        zone=ZoneInfo("UTC"),
        team=-1,
        shape=rng.choices(("job", "night-job"), (2, 1))[0],
        office=network,
        provider=where.providers[0],
        carrier=where.carriers[0],
        homes=homes,
        at_home=1.0,
        sessions=24,
        starts=rng.uniform(0, 6),
        works=24,
        services=dict.fromkeys(ports, 1.0),
        allowed=ports,
        company=company,
        keys=[(0, DAYS, f"key-{name}")],
        rng=rng,
    )


def date_of(day: int) -> date:
    """The date of a day's number."""
    return FIRST_DAY + timedelta(days=day)
