"""Which addresses a request may be about: the list of docs/protocol.md section 4.3."""

from ipaddress import ip_address

import pytest

from spa_protocol.layout import may_be_elsewhere
from spa_server import addressing
from spa_server.addressing import Addressing
from tests.world import CLIENT, HOST, datagram, knock_at

FORWARDER = ip_address("198.51.100.4")
OWN = {HOST, ip_address("10.20.0.2"), ip_address("fe80::1"), ip_address("2001:db8::2")}
BROADCAST = "the source is a broadcast address of this host's network"
HERE = Addressing(
    OWN.__contains__,
    {ip_address("10.20.0.255"): BROADCAST}.get,  # type: ignore[arg-type]  # None is none
    frozenset({FORWARDER}),
)


@pytest.mark.parametrize(
    "source",
    [
        *("0.0.0.1", "0.255.255.255", "127.0.0.1", "127.255.255.254", "240.0.0.1"),
        *("255.255.255.254", "::1", "::2", "::10.20.0.9"),
    ],
)
def test_no_other_host_has_such_a_source(source: str) -> None:
    """Whether it was declared or the packet says so: a forged one is none either."""
    address = ip_address(source)
    assert not may_be_elsewhere(address)
    target = HOST if address.version == 4 else ip_address("2001:db8::2")
    declared = knock_at(source=address, target=target)
    here = datagram(b"", target=target)
    assert HERE.why_not(declared, here) == addressing.NO_HOSTS_SOURCE
    forged = datagram(b"", source=address, target=target)
    assert HERE.why_not(knock_at(target=target), forged) == addressing.NO_HOSTS_SOURCE


@pytest.mark.parametrize(
    "source", ["1.0.0.0", "126.255.255.255", "128.0.0.1", "223.255.255.255", "::1:0:0", "fd77::1"]
)
def test_all_others_may_be_elsewhere(source: str) -> None:
    assert may_be_elsewhere(ip_address(source))


def test_what_the_routes_say_of_a_source_counts() -> None:
    assert HERE.why_not(knock_at(source=ip_address("10.20.0.255")), datagram(b"")) == BROADCAST


def test_a_link_local_address_is_only_that_of_the_datagram() -> None:
    one, other = ip_address("fe80::9"), ip_address("fe80::8")
    own = ip_address("fe80::1")
    here = datagram(b"", source=one, target=own, interface=3)
    assert not HERE.why_not(knock_at(source=one, target=own), here)
    assert not HERE.why_not(knock_at(target=own), here)
    declared = knock_at(source=other, target=own)
    assert HERE.why_not(declared, here) == addressing.LINK_LOCAL_SOURCE
    nowhere = datagram(b"", source=one, target=own)
    assert HERE.why_not(knock_at(target=own), nowhere) == addressing.NO_LINK
    elsewhere = datagram(b"", source=one, target=ip_address("2001:db8::2"), interface=3)
    assert HERE.why_not(knock_at(target=own), elsewhere) == addressing.LINK_LOCAL_TARGET
    auto = knock_at(source=ip_address("169.254.0.9"))
    assert HERE.why_not(auto, datagram(b"")) == addressing.LINK_LOCAL_SOURCE


def test_families_that_differ_are_named() -> None:
    six = datagram(b"", source=ip_address("2001:db8::9"))
    assert HERE.why_not(knock_at(), six) == "the source is IPv6, and the target IPv4"


def test_what_names_no_target_is_for_whoever_has_the_key() -> None:
    undeclared = knock_at(target=None)
    assert HERE.why_not(undeclared, datagram(b"")) == addressing.NO_TARGET
    lenient = Addressing(OWN.__contains__, accepts_undeclared=True)
    assert not lenient.why_not(undeclared, datagram(b""))
    assert lenient.ends(undeclared, datagram(b"")) == (CLIENT, HOST)


def test_behind_a_forwarder_the_hole_is_where_the_datagram_arrives() -> None:
    forwarded = knock_at(target=FORWARDER)
    assert not HERE.why_not(forwarded, datagram(b""))
    assert HERE.ends(forwarded, datagram(b"")) == (CLIENT, HOST)
    assert Addressing(OWN.__contains__).why_not(forwarded, datagram(b"")) == (
        addressing.NOT_THIS_HOST
    )


def test_every_sentence_fits_into_a_reply() -> None:
    sentences = [
        addressing.NO_TARGET,
        addressing.NOT_THIS_HOST,
        addressing.LINK_LOCAL_SOURCE,
        addressing.LINK_LOCAL_TARGET,
        addressing.NO_HOSTS_SOURCE,
        BROADCAST,
    ]
    assert max(map(len, sentences)) <= 67
