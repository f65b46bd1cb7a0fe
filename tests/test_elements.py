"""Set elements to netlink and back, against pyroute2's reading and the kernel's own bytes."""

import struct
import sys
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.nfnetlink.nftsocket import nft_set_elem_list_msg

from spa_protocol.access import Access, Protocol
from spa_server import netlink
from spa_server.firewall import elements, nftables
from spa_server.firewall.elements import (
    MAX_ELEMENTS,
    Denial,
    Element,
    HoleLease,
    TagLease,
    decode_denial,
    decode_elements,
    decode_hole,
    hole_key,
    hole_set,
)
from spa_server.firewall.nftables import Count, Request
from spa_server.hole import Hole
from spa_server.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST

IN4 = Hole(IPv4Address("192.0.2.1"), IPv4Address("198.51.100.2"), Protocol.TCP, 22)
IN6 = Hole(IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2"), Protocol.SCTP, 2905, once=True)

# What Linux 6.18 answered to a dump of holes4 with IN4 in it, and of once6 with IN6.
DUMP4 = bytes.fromhex(
    "8c0000000c0a020001000000571900000100000408000100737061000b000200686f6c657334000064000300"
    "600001001800010014000100c0000201c633640206000000001600002c0007000c000100636f756e74657200"
    "1c0002000c00010000000000000001a40c00020000000000000000070c00040000000000000075300c000500"
    "0000000000004e1c"
)
DUMP6 = bytes.fromhex(
    "bc0000000c0a020004000000571900000100000408000100737061000a0002006f6e63653600000094000300"
    "90000100300001002c00010020010db800000000000000000000000120010db8000000000000000000000002"
    "840000000b590000440007000a0001006c696d6974000000340002000c00010000000000000000010c000200"
    "0000000000093a800800030000000001080004000000000008000500000000000c000400000000000036ee80"
    "0c000500000000000036ee80"
)
# To deleting an element that is not there, with the offset of the element in the request.
REFUSAL = bytes.fromhex(
    "2c000000020000030600000057190000feffffff480000000e0a05000600000000000000080002002c000000"
)

little_endian = pytest.mark.skipif(
    sys.byteorder == "big", reason="the bytes are of a little-endian kernel"
)


def families(version: Literal[4, 6]) -> st.SearchStrategy[Hole]:
    addresses = st.ip_addresses(v=version)
    return st.builds(
        Hole, addresses, addresses, st.sampled_from(Protocol), st.integers(1, 65535), st.booleans()
    )


holes = st.one_of(families(4), families(6))


def test_a_hole_is_four_fields_each_padded_to_four_bytes() -> None:
    assert hole_set(IN4) == "holes4"
    assert hole_key(IN4).hex(" ", 4) == "c0000201 c6336402 06000000 00160000"
    assert hole_set(IN6) == "once6"
    assert hole_key(IN6).hex(" ", 4) == (
        "20010db8 00000000 00000000 00000001 20010db8 00000000 00000000 00000002 84000000 0b590000"
    )


def test_a_hole_on_a_link_has_its_index_as_the_machine_has_it() -> None:
    source, target = IPv6Address("fe80::9%7"), IPv6Address("fe80::1%7")
    own = Hole(source, target, Protocol.TCP, 22)
    assert hole_set(own) == "link_holes6"
    assert hole_key(own)[-8:] == b"\0\x16\0\0" + (7).to_bytes(4, sys.byteorder)
    assert own.interface == 7
    for once in (False, True):
        for mixed in (source, IPv6Address("2001:db8::1")):
            hole = Hole(mixed, target, Protocol.TCP, 22, once)
            assert decode_hole(hole_set(hole), hole_key(hole)) == hole


@given(holes)
def test_a_hole_comes_back_as_it_went(hole: Hole) -> None:
    assert decode_hole(hole_set(hole), hole_key(hole)) == hole


def as_pyroute2_reads_it(request: Request) -> nft_set_elem_list_msg:
    """An independent reading of a request."""
    content = nftables.header() + request.content
    read = nft_set_elem_list_msg(netlink.message(request.kind, 0, 1, content))
    read.decode()
    return read


@given(st.lists(st.tuples(holes, st.integers(1, 2**40)), min_size=1, max_size=5))
def test_pyroute2_reads_what_is_added(drawn: list[tuple[Hole, int]]) -> None:
    leases = [(hole_key(hole), timeout_ms) for hole, timeout_ms in drawn]
    (request,) = elements.add("holes4", leases)
    read = as_pyroute2_reads_it(request)
    assert read.get_attr("NFTA_SET_ELEM_LIST_TABLE") == "spa"
    assert read.get_attr("NFTA_SET_ELEM_LIST_SET") == "holes4"
    found = [
        (
            each.get_attr("NFTA_SET_ELEM_KEY").get_attr("NFTA_DATA_VALUE"),
            each.get_attr("NFTA_SET_ELEM_TIMEOUT"),
        )
        for each in read.get_attr("NFTA_SET_ELEM_LIST_ELEMENTS")
    ]
    assert found == leases


def test_what_is_deleted_has_no_timeout() -> None:
    (request,) = elements.delete("admitted", [b"12345678"])
    (element,) = as_pyroute2_reads_it(request).get_attr("NFTA_SET_ELEM_LIST_ELEMENTS")
    assert element.get_attr("NFTA_SET_ELEM_KEY").get_attr("NFTA_DATA_VALUE") == b"12345678"
    assert element.get_attr("NFTA_SET_ELEM_TIMEOUT") is None
    assert request.kind == nftables.DELSETELEM


def test_many_elements_go_into_as_many_requests_as_their_lengths_allow() -> None:
    leases = [(number.to_bytes(40), 1) for number in range(2 * MAX_ELEMENTS + 1)]
    requests = elements.add("holes6", leases)
    assert len(requests) == 3
    for request in requests:
        lengths = [len(value) for _, value in netlink.attributes(request.content)]
        assert sum(-(-length // 4) * 4 + 4 for length in lengths) == len(request.content)
        assert max(lengths) + 4 < 65536
    assert elements.add("holes6", []) == []


def test_a_renewal_adds_deletes_and_adds() -> None:
    lease = (hole_key(IN4), 5000)
    (add,) = elements.add("holes4", [lease])
    (delete,) = elements.delete("holes4", [lease[0]])
    assert elements.renew("holes4", [lease]) == [add, delete, add]
    assert add.flags == NLM_F_CREATE
    (only_new,) = elements.add("holes4", [lease], only_new=True)
    assert only_new.flags == NLM_F_CREATE | NLM_F_EXCL


def test_a_transaction_is_acknowledged_as_a_whole() -> None:
    requests = elements.renew("holes4", [(hole_key(IN4), 5000)])
    begin, *inner, end = netlink.messages(nftables.batch(requests, 41))
    assert (begin.kind, end.kind) == (0x10, 0x11)
    assert [m.sequence for m in (begin, *inner, end)] == [41, 42, 43, 44, 45]
    assert [m.kind for m in inner] == [request.kind for request in requests]
    assert [bool(m.flags & NLM_F_ACK) for m in inner] == [False, False, True]
    assert all(m.flags & NLM_F_REQUEST for m in (begin, *inner, end))
    # To nftables (10), for the inet family (1).
    assert (begin.payload, end.payload) == (b"\0\0\0\x0a", b"\0\0\0\x0a")
    assert all(m.payload[:4] == b"\1\0\0\0" for m in inner)


@little_endian
def test_what_the_kernel_dumped_is_read() -> None:
    (dumped,) = decode_elements(netlink.messages(DUMP4))
    assert dumped == Element(hole_key(IN4), 30_000, 19_996, Count(packets=7, bytes=420))


@little_endian
def test_an_element_with_another_expression_has_counted_nothing() -> None:
    (dumped,) = decode_elements(netlink.messages(DUMP6))
    assert decode_hole("once6", dumped.key) == IN6
    assert dumped.count == Count(0, 0)
    assert (dumped.timeout_ms, dumped.remaining_ms) == (3_600_000, 3_600_000)


@little_endian
def test_a_refusal_says_which_request_and_why() -> None:
    (answer,) = netlink.messages(REFUSAL)
    failure = netlink.failure_in(answer)
    assert failure is not None
    assert (failure.sequence, failure.number) == (6, 2)
    assert failure.text == "No such file or directory"


def answer(number: int, flags: int = 0, rest: bytes = b"") -> netlink.Message:
    request = struct.pack("=IHHII", 20, 0, 0, 9, 0)
    return netlink.Message(2, flags, 9, 0, struct.pack("=i", -number) + request + rest)


def test_an_acknowledgement_is_no_refusal() -> None:
    assert netlink.failure_in(answer(0)) is None


def test_the_kernels_own_words_are_kept() -> None:
    words = netlink.attribute(1, b"set is on fire\0")
    capped, echoed = answer(22, 0x300, words), answer(22, 0x200, bytes(4) + words)
    for each in (capped, echoed):
        failure = netlink.failure_in(each)
        assert failure is not None
        assert failure.text == "set is on fire"


@given(st.binary(max_size=60))
def test_torn_bytes_end_the_reading(data: bytes) -> None:
    """The kernel sends none; but nothing may hang or raise on them."""
    list(netlink.attributes(data))
    for message in netlink.messages(data):
        netlink.failure_in(message)


@pytest.mark.parametrize("timeout_ms", [0, -1])
def test_nothing_is_opened_for_ever(timeout_ms: int) -> None:
    """To the kernel a timeout of 0 is none."""
    with pytest.raises(ValueError, match="at least 1"):
        HoleLease(IN4, timeout_ms)
    with pytest.raises(ValueError, match="at least 1"):
        TagLease(b"12345678", timeout_ms)


def test_a_lease_is_of_one_family_and_a_tag_has_eight_bytes() -> None:
    with pytest.raises(ValueError, match="two families"):
        HoleLease(Hole(IN4.source, IN6.target, Protocol.TCP, 22), 1)
    with pytest.raises(ValueError, match="8 bytes"):
        TagLease(b"1234567", 1)


def test_a_denial_is_what_a_knock_would_have_asked_for() -> None:
    key = IPv6Address("2001:db8::1").packed + bytes([17, 0, 0, 0, 0, 53, 0, 0])
    denial = decode_denial("denied6", Element(key, None, None, Count(3, 300)))
    assert denial == Denial(ip_address("2001:db8::1"), 17, 53, 3)
    assert denial.access == Access(Protocol.UDP, 53, 53)
    for protocol, port in ((17, 0), (33, 53), (136, 53)):
        assert Denial(IN4.source, protocol, port, 1).access is None
