"""Accesses as a person writes them."""

import pytest

from spa_client.services import BadAccess, parse_access, parse_port, together

SERVICES = {
    ("ssh", "tcp"): 22,
    ("domain", "tcp"): 53,
    ("domain", "udp"): 53,
    ("ntp", "udp"): 123,
    ("http-alt", "tcp"): 8080,
    ("diameter", "sctp"): 3868,
}


def lookup(name: str, protocol: str) -> int:
    try:
        return SERVICES[name, protocol]
    except KeyError:
        raise OSError("service/proto not found") from None


@pytest.mark.parametrize(
    ("text", "access"),
    [
        ("tcp/22", "tcp/22"),
        ("TCP/22", "tcp/22"),
        (" udp/60000-60010 ", "udp/60000-60010"),
        ("sctp/9", "sctp/9"),
        ("ssh", "tcp/22"),
        ("tcp/ssh", "tcp/22"),
        ("domain", "tcp/53"),
        ("udp/domain", "udp/53"),
        ("ntp", "udp/123"),
        ("diameter", "sctp/3868"),
        ("http-alt", "tcp/8080"),
    ],
)
def test_access(text: str, access: str) -> None:
    assert str(parse_access(text, lookup)) == access


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("22", "write it like tcp/22"),
        ("", "no access"),
        ("/", "no access"),
        ("nonsense", "not in the services database"),
        ("tcp/ntp", "not in the services database"),
        ("icmp/ssh", "no access"),
        ("tcp/0", "0 is no port from 1 to 65535"),
        ("tcp/65536", "65536 is no port from"),
        ("tcp/30-20", "no range of ports"),
        ("tcp/22-", "no port number"),
        ("tcp/-22", "no port number"),
        ("tcp/+22", "no port number"),
        ("tcp/٢٢", "no port number"),
        ("ss\0h", "not in the services database"),
    ],
)
def test_no_access(text: str, problem: str) -> None:
    with pytest.raises(BadAccess, match=problem):
        parse_access(text, lookup)


def test_the_systems_services_are_asked() -> None:
    assert str(parse_access("ssh")) == "tcp/22"


def test_the_same_access_twice_is_one() -> None:
    accesses = together(parse_access(text, lookup) for text in ("ssh", "tcp/22", "udp/53"))
    assert [str(access) for access in accesses] == ["tcp/22", "udp/53"]


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        ([f"tcp/{port}" for port in range(1, 10)], "9 accesses"),
        (["tcp/1-300"], "more than 256 ports"),
        (["tcp/1-200", "udp/1-200"], "more than 256 ports"),
        ([], "0 accesses"),
        (["tcp/20-30", "tcp/22"], "overlaps"),
    ],
)
def test_what_one_knock_cannot_ask_for(texts: list[str], problem: str) -> None:
    with pytest.raises(BadAccess, match=problem):
        together(parse_access(text, lookup) for text in texts)


@pytest.mark.parametrize(("text", "access"), [("22", "tcp/22"), ("ssh", "tcp/22")])
def test_port(text: str, access: str) -> None:
    assert str(parse_port(text, lookup)) == access


@pytest.mark.parametrize("text", ["20-30", "tcp/22", "", "x"])
def test_no_single_port(text: str) -> None:
    with pytest.raises(BadAccess):
        parse_port(text, lookup)
