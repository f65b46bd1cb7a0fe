"""From names to addresses, with the answers that a resolver may give."""

import socket
import threading
from ipaddress import ip_address

import pytest

from spa_client.resolve import Target, Unresolved, plain_address, resolve


def answering(monkeypatch: pytest.MonkeyPatch, *sockaddrs: tuple) -> None:
    found = [(socket.AF_INET6, socket.SOCK_DGRAM, 17, "", sockaddr) for sockaddr in sockaddrs]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


def test_literals() -> None:
    assert resolve("127.0.0.1", 7) == (Target(ip_address("127.0.0.1"), 7),)
    assert resolve("::1", 7) == (Target(ip_address("::1"), 7),)


def test_mapped_and_repeated_addresses_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(
        monkeypatch,
        ("2001:db8::7", 62201, 0, 0),
        ("::ffff:10.0.0.5", 62201, 0, 0),
        ("10.0.0.5", 62201),
        ("2001:db8::7", 62201, 0, 0),
    )
    assert [str(t) for t in resolve("db1", 62201)] == ["2001:db8::7", "10.0.0.5"]
    assert [str(t) for t in resolve("db1", 62201, version=4)] == ["10.0.0.5"]
    assert [str(t) for t in resolve("db1", 62201, version=6)] == ["2001:db8::7"]


def test_a_mapped_literal_is_knocked_on_over_ipv4() -> None:
    (target,) = resolve("::ffff:127.0.0.1", 7)
    assert (target.family, target.sockaddr()) == (socket.AF_INET, ("127.0.0.1", 7))


def test_link_local_keeps_its_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, ("fe80::1%lo", 62201, 0, 1), ("fd00::1", 62201, 0, 1))
    scoped, plain = resolve("db1", 62201)
    assert scoped.sockaddr(22) == ("fe80::1", 22, 0, 1)
    assert str(scoped) == f"fe80::1%{socket.if_indextoname(1)}"
    assert plain == Target(ip_address("fd00::1"), 62201)


def test_a_scope_that_is_gone_is_shown_as_its_number() -> None:
    assert str(Target(ip_address("fe80::1"), 1, 987_654)) == "fe80::1%987654"


def test_link_local_without_scope() -> None:
    with pytest.raises(Unresolved, match="fe80::1 is link-local; name its interface, like"):
        resolve("fe80::1", 62201)


@pytest.mark.parametrize("host", ["::", "224.0.0.1", "ff02::1", "255.255.255.255"])
def test_what_is_no_hosts_address(host: str) -> None:
    with pytest.raises(Unresolved, match="no address that a knock can be sent to"):
        resolve(host, 62201)


def test_a_family_that_is_not_there() -> None:
    with pytest.raises(Unresolved, match=r"127\.0\.0\.1 has no IPv6 address"):
        resolve("127.0.0.1", 62201, version=6)


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example", "nul\0byte"])
def test_what_is_no_name(host: str) -> None:
    with pytest.raises(Unresolved, match=r"cannot resolve .*; check the name"):
        resolve(host, 62201)


def test_the_resolvers_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    with pytest.raises(Unresolved, match="cannot resolve db9: name or service not known;"):
        resolve("db9", 62201)


def test_a_resolver_that_hangs_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: release.wait(10) and [])
    with pytest.raises(Unresolved, match=r"no answer from the resolver in 0\.1 s"):
        resolve("db9", 62201, timeout_s=0.1)
    release.set()


@pytest.mark.parametrize(
    ("text", "address"),
    [("10.0.0.1", "10.0.0.1"), ("::ffff:10.0.0.1", "10.0.0.1"), ("fe80::1%eth0", "fe80::1")],
)
def test_plain_address(text: str, address: str) -> None:
    assert plain_address(text) == ip_address(address)
