"""Accesses and addresses, in words and in bytes: docs/protocol.md sections 4.2 and 4.3."""

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spa_protocol.access import (
    Access,
    Protocol,
    check_together,
    decode_access,
    decode_accesses,
    encode_accesses,
)
from spa_protocol.knock import Close, Knock, encode_signed
from spa_protocol.layout import (
    Address,
    Malformed,
    decode_address,
    encode_address,
    is_unicast,
    unmapped,
)

NOW_US: Final = 1_795_500_000_000_000
SSH: Final = Access.parse("tcp/22")

quick = settings(deadline=None)

any_access = st.builds(
    lambda protocol, ports: Access(protocol, min(ports), max(ports)),
    st.sampled_from(Protocol),
    st.tuples(st.integers(1, 65535), st.integers(1, 65535)),
)


def several(*texts: str) -> tuple[Access, ...]:
    return tuple(map(Access.parse, texts))


# In words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tcp/22", Access(Protocol.TCP, 22, 22)),
        ("udp/60000-60010", Access(Protocol.UDP, 60000, 60010)),
        ("sctp/65535", Access(Protocol.SCTP, 65535, 65535)),
        ("tcp/1-65535", Access(Protocol.TCP, 1, 65535)),
        (" TCP/22\n", Access(Protocol.TCP, 22, 22)),
        ("tcp/5-5", Access(Protocol.TCP, 5, 5)),
    ],
)
def test_parse(text: str, expected: Access) -> None:
    assert Access.parse(text) == expected


NO_ACCESSES: Final = """
    tcp  tcp/  /22  22  ssh  icmp/1  tcp/22/  tcp:22  tcp/22,23  tcp/-22  tcp/22-  tcp/2-3-4
    tcp/0x16  tcp/+22  tcp/1_0  tcp/٢٢  \u017fctp/22  tcp/0  tcp/0-9  tcp/65536  tcp/23-22
    tcp/000022
"""


@pytest.mark.parametrize("text", ["", "tcp/2 2", "tcp/" + "9" * 5000, *NO_ACCESSES.split()])
def test_what_is_no_access_is_refused(text: str) -> None:
    with pytest.raises(Malformed):
        Access.parse(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tcp/0", "0 is no port from 1 to 65535"),
        ("tcp/99999", "99999 is no port from 1 to 65535"),
        ("tcp/22-65536", "65536 is no port from 1 to 65535"),
        ("tcp/23-22", "23-22 is no range of ports; write it 22-23"),
    ],
)
def test_the_port_that_is_none_is_named(text: str, said: str) -> None:
    with pytest.raises(Malformed) as refused:
        Access.parse(text)
    assert str(refused.value) == said


@quick
@given(any_access)
def test_words_come_back(access: Access) -> None:
    assert Access.parse(str(access)) == access


# In sets of ports


@quick
@given(any_access, any_access)
def test_containing_and_overlapping_are_about_ports(one: Access, other: Access) -> None:
    same = one.protocol is other.protocol
    shared = set(one.ports) & set(other.ports) if same else set()
    assert one.overlaps(other) == other.overlaps(one) == bool(shared)
    assert (other in one) == (same and shared == set(other.ports))
    assert one.size == len(one.ports)


@pytest.mark.parametrize(
    "accesses",
    [
        (),
        several(*(f"tcp/{port}" for port in range(1, 10))),
        several("tcp/1-257"),
        several("tcp/1-128", "tcp/129-257"),
        several("tcp/22", "tcp/22"),
        several("tcp/20-30", "udp/1", "tcp/30-40"),
        several("tcp/20-30", "tcp/25"),
    ],
    ids=lambda accesses: ",".join(map(str, accesses)),
)
def test_what_may_not_stand_in_one_knock(accesses: tuple[Access, ...]) -> None:
    with pytest.raises(Malformed):
        check_together(accesses)


@pytest.mark.parametrize(
    "accesses",
    [
        several("tcp/1-256"),
        several("tcp/1-128", "tcp/129-256"),
        several("tcp/53", "udp/53", "sctp/53"),
        several("tcp/23", "tcp/22"),
        several(*(f"tcp/{port}" for port in range(1, 9))),
    ],
    ids=lambda accesses: ",".join(map(str, accesses)),
)
def test_what_may(accesses: tuple[Access, ...]) -> None:
    field = encode_accesses(accesses)
    assert len(field) == 40
    assert decode_accesses(field, len(accesses)) == accesses


# In bytes


def test_an_entry_byte_for_byte() -> None:
    field = encode_accesses(several("tcp/22", "sctp/65534-65535"))
    assert field == bytes.fromhex("0600160016 84fffeffff").ljust(40, b"\0")


@pytest.mark.parametrize(
    ("entries", "count"),
    [
        ("", 0),
        ("0600160016", 0),
        ("0600160016", 2),
        ("0600160016 1100350035", 1),
        ("0100160016", 1),
        ("0000160016", 1),
        ("0600000016", 1),
        ("0600000000", 1),
        ("0600170016", 1),
        ("".join(f"06 {port:04x} {port:04x}" for port in range(1, 9)), 9),
        ("".join(f"06 {port:04x} {port:04x}" for port in range(1, 9)), 255),
    ],
)
def test_entries_that_are_refused(entries: str, count: int) -> None:
    with pytest.raises(Malformed):
        decode_accesses(bytes.fromhex(entries).ljust(40, b"\0"), count)


@pytest.mark.parametrize(("entries", "count"), [("0600160016" * 2, 2), ("0600010101", 1)])
def test_entries_that_may_not_stand_together(entries: str, count: int) -> None:
    """They are read one by one; the request that they are part of is what cannot be."""
    accesses = decode_accesses(bytes.fromhex(entries).ljust(40, b"\0"), count)
    with pytest.raises(Malformed):
        Knock(0, accesses)


@quick
@given(st.binary(min_size=5, max_size=5))
def test_an_entry_has_one_encoding(field: bytes) -> None:
    try:
        access = decode_access(field)
    except Malformed:
        return
    assert encode_accesses((access,))[:5] == field


# Addresses


@quick
@given((st.ip_addresses(v=4) | st.ip_addresses(v=6)).map(unmapped).filter(is_unicast))
def test_an_address_is_the_same_after_its_way_through_a_datagram(address: Address) -> None:
    field = encode_address(address)
    assert len(field) == 16
    assert decode_address(field) == address
    assert type(decode_address(field)) is type(address)


@quick
@given(st.binary(min_size=16, max_size=16))
def test_an_address_field_has_one_encoding(field: bytes) -> None:
    try:
        address = decode_address(field)
    except Malformed:
        return
    assert encode_address(address) == field


def test_no_address_is_all_zero() -> None:
    assert (encode_address(None), decode_address(bytes(16))) == (bytes(16), None)


def test_ipv4_is_mapped() -> None:
    field = bytes.fromhex("00000000000000000000ffffc0000201")
    assert encode_address(IPv4Address("192.0.2.1")) == field
    assert decode_address(field) == IPv4Address("192.0.2.1")
    assert unmapped(IPv6Address(field)) == IPv4Address("192.0.2.1")
    assert unmapped(IPv6Address("2001:db8::1")) == IPv6Address("2001:db8::1")


@pytest.mark.parametrize(
    "text",
    ["0.0.0.0", "224.0.0.1", "239.255.255.255", "255.255.255.255", "ff00::", "ff02::1"],  # noqa: S104
)
def test_what_is_no_hosts_address_is_refused(text: str) -> None:
    assert not is_unicast(ip_address(text))
    with pytest.raises(Malformed):
        decode_address(encode_address(ip_address(text)))


OF_HOSTS: Final = """
    127.0.0.1  169.254.1.1  223.255.255.255  240.0.0.1  255.255.255.254  0.0.0.1
    ::1  ::2  fe80::1  feff::1  2001:db8::1  ::192.0.2.1  64:ff9b::c000:201
"""


@pytest.mark.parametrize("text", OF_HOSTS.split())
def test_any_other_address_is_accepted(text: str) -> None:
    assert decode_address(encode_address(ip_address(text))) == ip_address(text)


def test_source_and_target_are_of_one_family() -> None:
    v4, v6 = ip_address("192.0.2.1"), ip_address("2001:db8::1")
    for one, other in ((v4, v6), (v6, v4)):
        for kind in (Knock, Close):
            with pytest.raises(Malformed):
                kind(NOW_US, (SSH,), one, other)
    ends: list[tuple[Address | None, Address | None]] = [(v4, v4), (v6, v6), (v4, None), (None, v6)]
    for source, target in ends:
        assert encode_signed(Knock(NOW_US, (SSH,), source, target))[12:44] == (
            encode_address(source) + encode_address(target)
        )
