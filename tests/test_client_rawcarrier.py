"""Choosing a carrier, and what is said where one cannot be had. Real packets: integration/."""

import os
import socket
import sys
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

import pytest
from click.testing import CliRunner
from scapy.layers.inet import ICMP, TCP
from scapy.layers.inet6 import ICMPv6EchoRequest

from keys import identity
from keys.tomlfile import FileProblem
from keys.trouble import ExitCode, Trouble
from spa_client import config, knocking
from spa_client.cli import main
from spa_client.compose import Wish
from spa_client.config import Host
from spa_client.knocking import Knocking, Options
from spa_client.rawcarrier import RawLine
from spa_client.resolve import Target
from spa_protocol.access import Access
from spa_protocol.carrier import UDP, Carrier, Kind
from spa_protocol.keytext import Endpoint, ServerLine
from spa_protocol.layout import DATAGRAM_SIZE

WISH = Wish((Access.parse("tcp/22"),))
KNOCK = bytes(range(DATAGRAM_SIZE))
ICMP_CARRIER, SYN = Carrier(Kind.ICMP), Carrier(Kind.TCP_SYN)

linux = pytest.mark.skipif(sys.platform != "linux", reason="raw carriers are Linux's")
root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")


def line() -> str:
    return str(ServerLine(identity.generate("server").public.agreement, Endpoint("127.0.0.1", 9)))


def aimed(options: Options, carrier: Carrier = UDP) -> Knocking:
    host = Host("db1", ServerLine.parse(line()), "127.0.0.1", Path("k"), carrier=carrier)
    return knocking.aim(host, identity.generate("ann"), WISH, options)


@pytest.mark.parametrize(
    ("configured", "option", "port", "used", "goes_to"),
    [
        ("udp", None, None, "udp", 9),
        ("udp", None, 7, "udp", 7),
        ("udp", "udp:53", None, "udp:53", 53),
        ("udp:53", None, None, "udp:53", 53),
        ("udp:53", None, 7, "udp:53", 7),
        ("udp:53", "udp", None, "udp", 9),
        ("icmp", "tcp-syn", None, "tcp-syn", 9),
        ("icmp", "tcp-syn", 443, "tcp-syn", 443),
        ("icmp", "tcp-syn:443", None, "tcp-syn:443", 443),
        ("tcp-syn:443", None, None, "tcp-syn:443", 443),
    ],
)
def test_which_carrier_and_port_are_used(
    configured: str, option: str | None, port: int | None, used: str, goes_to: int
) -> None:
    chosen = None if option is None else Carrier.parse(option)
    found = aimed(Options(carrier=chosen, knock_port=port), Carrier.parse(configured))
    assert (str(found.carrier), found.targets[0].port) == (used, goes_to)


def test_two_ports_are_one_too_many() -> None:
    with pytest.raises(Trouble, match="both name a port; give one of them") as wrong:
        aimed(Options(carrier=Carrier.parse("udp:53"), knock_port=54))
    assert wrong.value.exit_code is ExitCode.USAGE


def test_the_configuration_keeps_a_carrier(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    argv = ["add", "db1", line(), "--config", str(file), "--carrier"]
    assert CliRunner().invoke(main, [*argv, "tcp-syn:443"]).exit_code == 0
    assert config.load(file).hosts["db1"].carrier == Carrier(Kind.TCP_SYN, 443)
    refused = CliRunner().invoke(main, [*argv, "icmp:8"])
    assert refused.exit_code == 2
    assert "'icmp:8' is no carrier; expected udp, udp:PORT, icmp, tcp-syn" in refused.output


def test_a_wrong_carrier_in_the_configuration_is_named() -> None:
    with pytest.raises(FileProblem, match=r"hosts.db1.carrier: 'ping' is no carrier; expected udp"):
        config.parse(f'[hosts.db1]\nserver = "{line()}"\ncarrier = "ping"\n', Path("c.toml"))


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_elsewhere_it_is_said_what_works(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(Trouble, match="icmp works on Linux only; knock by udp:53 or udp:443"):
        RawLine(Target(ip_address("127.0.0.1"), 9), ICMP_CARRIER)


@linux
def test_without_scapy_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "scapy"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Trouble, match=r"tcp-syn needs scapy; .* -m pip install scapy; or"):
        RawLine(Target(ip_address("127.0.0.1"), 9), SYN)


@linux
@root
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_what_is_put_around_a_request(address: str) -> None:
    own = ip_address(address)
    for carrier in (ICMP_CARRIER, SYN):
        raw_line = RawLine(Target(own, 443), carrier)
        try:
            raw_line.connect()
            first, second = raw_line.wrap(KNOCK, own), raw_line.wrap(KNOCK, own)
            assert raw_line.unwrap(bytes(20) + first) == KNOCK
            assert raw_line.unwrap(bytes(500)) == b""
        finally:
            raw_line.close()
        if carrier.kind is Kind.TCP_SYN:
            one, other = TCP(first), TCP(second)
            assert (one.dport, one.flags, one.dataofs, len(first)) == (443, "S", 5, 260)
            assert one.sport != other.sport
        else:
            kind = ICMP if own.version == 4 else ICMPv6EchoRequest
            one, other = kind(first), kind(second)
            assert (one.type, one.code) == (8 if own.version == 4 else 128, 0)
            assert one.id == other.id
            assert one.seq != other.seq
        assert first.endswith(KNOCK)


@linux
@root
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_download_from_the_target_does_not_crowd_out_the_answer(address: str) -> None:
    """A raw socket gets every segment of the target, and holds a few hundred."""
    target = Target(ip_address(address), 9)
    with (
        socket.create_server((address, 0), family=target.family) as listening,
        closing(RawLine(target, SYN)) as line,
    ):
        line.connect()
        reading = socket.create_connection(listening.getsockname()[:2])
        with reading, listening.accept()[0] as sending:
            for _ in range(500):
                sending.sendall(bytes(1 << 14))
                reading.recv(1 << 14, socket.MSG_WAITALL)
        with socket.socket(target.family, socket.SOCK_RAW, socket.IPPROTO_TCP) as answering:
            answering.sendto(bytes(12) + b"\x50\x14" + bytes(6) + KNOCK, (address, 0))
        line.socket.settimeout(2)
        assert line.unwrap(line.socket.recv(4096)) == KNOCK
