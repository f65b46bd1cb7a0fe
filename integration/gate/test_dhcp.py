"""DHCP's answers to the host behind the gate."""

import socket

import pytest

from integration.conftest import Neighbours
from integration.gate import drain
from integration.lab import Host, wait_until
from spa_server.firewall.kernel import Gate


def test_dhcp_answers_arrive_and_nothing_else_on_their_ports(
    gate: Gate, server: Host, stranger: Host
) -> None:
    assert gate.is_loaded()
    index = socket.if_nametoindex("lan")
    hears4 = server.new_socket(socket.AF_INET, socket.SOCK_DGRAM)
    hears4.bind(("", 68))
    hears6 = server.new_socket(socket.AF_INET6, socket.SOCK_DGRAM)
    hears6.bind(("", 546))
    for each in (hears4, hears6):
        each.settimeout(0.2)
    own_link, their_link = link_local(server), link_local(stranger)

    def answer4(target: str, source_port: int) -> bool:
        with stranger.new_socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
            sending.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sending.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lan")
            sending.bind(("", source_port))
            sending.sendto(b"answer", (target, 68))
        return drain(hears4) == 1

    def answer6(source: str, target: str, source_port: int) -> bool:
        with stranger.new_socket(socket.AF_INET6, socket.SOCK_DGRAM) as sending:
            sending.bind((source, source_port, 0, index if source.startswith("fe80") else 0))
            sending.sendto(b"answer", (target, 546, 0, index))
        return drain(hears6) == 1

    for target in ("255.255.255.255", str(server.v4)):
        assert answer4(target, 67)
        assert not answer4(target, 1067)
    assert answer6(their_link, own_link, 547)
    assert not answer6(their_link, own_link, 1547)
    assert not answer6(str(stranger.v6), str(server.v6), 547)
    hears4.close()
    hears6.close()


def link_local(host: Host) -> str:
    listed = host.run(
        ["ip", "-6", "-brief", "address", "show", "dev", "lan", "scope", "link"]
    ).stdout
    return listed.split()[2].partition("/")[0]


@pytest.mark.parametrize("number", [4, 6])
def test_nobody_is_told_that_no_dhcp_client_waits(
    gate: Gate, server: Host, stranger: Host, number: int
) -> None:
    """The port is open to answers; the kernel's word that nobody hears them must not leave."""
    family = socket.AF_INET if number == 4 else socket.AF_INET6
    index = socket.if_nametoindex("lan")
    target: tuple[str, int] | tuple[str, int, int, int] = (str(server.v4), 68)
    source: tuple[str, int] | tuple[str, int, int, int] = ("", 67)
    if number == 6:
        target = (link_local(server), 546, 0, index)
        source = (link_local(stranger), 547, 0, index)

    def refused() -> bool:
        with stranger.new_socket(family, socket.SOCK_DGRAM) as asking:
            asking.settimeout(0.3)
            asking.bind(source)
            asking.connect(target)
            asking.send(b"offer")
            try:
                asking.recv(64)
            except ConnectionRefusedError:
                return True
            except TimeoutError:
                return False
        raise AssertionError("there is an answer")

    assert not refused()
    gate.remove()
    assert refused()


def test_a_real_dhcpv6_client_gets_its_address(
    gate: Gate, neighbours: Neighbours, server: Host, client: Host
) -> None:
    for program in ("dnsmasq", "dhclient"):
        if server.run(["which", program], check=False).returncode:
            pytest.skip(f"{program} is not installed")
    assert gate.is_loaded()
    leases = [neighbours.lab.new_file(name) for name in ("dnsmasq.leases", "dhclient.leases")]
    dnsmasq = (
        "dnsmasq --keep-in-foreground --conf-file=/dev/null --port=0 --pid-file= --interface=lan"
    )
    client.start(
        [
            *dnsmasq.split(),
            "--dhcp-range=fd77:1::1000,fd77:1::1fff,64,1h",
            "--log-facility=-",
            f"--dhcp-leasefile={leases[0]}",
        ]
    ).wait_for("DHCPv6")
    files = ["-sf", "/bin/true", "-pf", str(neighbours.lab.new_file("pid")), "-lf", str(leases[1])]
    server.start(["dhclient", "-6", "-d", *files, "lan"]).wait_for("Reply")
    wait_until(lambda: "iaaddr fd77:1::1" in leases[1].read_text(), what="the lease")
