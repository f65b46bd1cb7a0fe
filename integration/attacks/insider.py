"""An insider with little wants more: another's identity, ports, time, or hosts.

The attacker has an enrolled key that may reach one port, sees every packet, and runs a host of
their own, where the others knock too: what they sign for that host is read there, with its key. Two
hosts know the same people. Tried are: what is asked for beyond the policy; another's hole closed;
another's request sent to another host, as it is and sealed anew; another's signature, made for
something else than a knock; an enrolled key of which one half is another's; an invite of one host
at another.
"""

import hashlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from integration.attacks import Figure
from integration.lab import Host, Lab
from integration.site import Person, Site
from integration.wire import Caller, Pen, now_us
from keys import identity, serverkey
from keys.identity import Identity
from keys.trouble import ExitCode
from spa_client.compose import Datagram
from spa_protocol import seal, sshsig
from spa_protocol.access import Access
from spa_protocol.keytext import ServerLine, format_key
from spa_protocol.knock import Knock, OpenedKnock, message_to_sign, open_request, seal_request
from spa_protocol.layout import NONCE_SIZE
from spa_protocol.publickey import Sender
from spa_protocol.reason import Status
from spa_protocol.sshsig import Signature

AN_HOUR_S: Final = 3600
Signs = Callable[[bytes], Signature]


@dataclass(frozen=True, slots=True)
class _Scene:
    """A host that is attacked, the attacker's own, and one person each."""

    site: Site
    own: Site
    alice: Pen
    mallory: Pen
    desk: Host
    den: Host

    def asks(self, knock: Datagram) -> Status | None:
        """What the attacked host answers mallory, whoever signed it."""
        reply = Caller(self.mallory, self.den, self.site.host.v4).send(knock, within_s=0.7)
        return None if reply is None else reply.status

    def holes(self, **fields: object) -> list[dict[str, object]]:
        return [h for h in self.site.holes() if fields.items() <= h.items()]


def run(lab: Lab) -> Iterator[Figure]:
    """Of each try, what it gained: none is to."""
    scene = _scene(lab)
    Caller(scene.alice, scene.desk, scene.site.host.v4).ask("tcp/5432", lifetime_s=600)
    yield from _more_than_the_policy_gives(scene)
    yield from _another_s_hole(scene)
    yield from _what_was_signed_for_another_host(scene)
    yield from _what_was_signed_for_something_else(scene)
    yield from _a_key_that_is_half_another_s(scene)
    yield from _an_invite_of_another_host(lab, scene)
    named = [line["identity"] for line in scene.site.events("knock.accepted")]
    n = named.count("alice")
    yield Figure("lines in alice's name, who asked twice", n, n == 2)


def _scene(lab: Lab) -> _Scene:
    site, own = Site(lab, lab.host("server")), Site(lab, lab.host("own"))
    alice, mallory = identity.generate("alice"), identity.generate("mallory")
    for each in (site, own):
        each.enrol_key("alice", format_key(alice.public), "ops", "dba")
        each.enrol_key("mallory", format_key(mallory.public), "ops")
        each.apply_gate()
        each.start()
    server = ServerLine.parse(site.line).public
    pens = Pen(alice, server), Pen(mallory, server)
    return _Scene(site, own, *pens, lab.host("desk"), lab.host("den"))


def _more_than_the_policy_gives(scene: _Scene) -> Iterator[Figure]:
    here, elsewhere = scene.site.host.v4, scene.own.host.v4
    for access, target in (
        ("tcp/5432", here),
        ("tcp/21-22", here),
        ("udp/22", here),
        ("sctp/22", here),
        ("tcp/22", elsewhere),
    ):
        granted = scene.asks(scene.mallory.write(access, target=target)) is Status.GRANTED
        yield _none(f"grants of {access} at {target}, which is not theirs", int(granted))
    knock = scene.mallory.write("tcp/22", target=here, lifetime_s=7 * 24 * AN_HOUR_S)
    scene.asks(knock)
    longest_s = max(float(str(h["remaining_s"])) for h in scene.holes(identity="mallory"))
    is_short = longest_s <= AN_HOUR_S
    yield Figure("seconds of a hole that a week was asked for, of 3,600", longest_s, is_short)


def _another_s_hole(scene: _Scene) -> Iterator[Figure]:
    here = scene.site.host.v4
    for source in (scene.desk.v4, scene.den.v4):
        scene.asks(scene.mallory.write("tcp/5432", closing=True, target=here, source=source))
    left = len(scene.holes(identity="alice"))
    yield Figure("of 1 hole of alice's, closed by nobody but her", left, left == 1)


def _what_was_signed_for_another_host(scene: _Scene) -> Iterator[Figure]:
    """What alice sends to mallory's host, which reads it."""
    theirs = ServerLine.parse(scene.own.line).public
    there = Pen(scene.alice.key, theirs).write("tcp/5432", target=scene.site.host.v4)
    opened = _read_by_its_owner(scene, there)
    pair = scene.mallory.key.pair_with(scene.mallory.server)
    anew = seal_request(opened.request, opened.signature, pair=pair, nonce=opened.nonce)
    for how, payload in (("as it is", there.payload), ("sealed anew", anew)):
        before = len(scene.holes())
        scene.asks(Datagram(payload, opened.nonce, there.sent_at_us, None))
        gained = len(scene.holes()) - before
        yield _none(f"holes by alice's knock for mallory's host, {how}", gained)


def _read_by_its_owner(scene: _Scene, datagram: Datagram) -> OpenedKnock:
    key = serverkey.load(scene.own.directory / "server.key")
    sender = Sender.known_to(key.secret, scene.alice.key.public)
    opened = open_request(datagram.payload, lambda _tag: sender)
    assert isinstance(opened, OpenedKnock)
    return opened


def _what_was_signed_for_something_else(scene: _Scene) -> Iterator[Figure]:
    """Alice's signing key is an SSH key too: it signs commits, files, and what a host asks for."""
    scene.asks(_signed(scene.alice, scene.site, scene.alice.key.sign))
    came = len(scene.holes(identity="alice"))
    yield Figure("of 2 holes by alice's signature of what she sends", came, came == 2)
    for what, sign in _other_signatures(scene.alice.key).items():
        before = len(scene.holes())
        scene.asks(_signed(scene.alice, scene.site, sign))
        yield _none(f"holes by alice's signature {what}", len(scene.holes()) - before)


def _other_signatures(key: Identity) -> dict[str, Signs]:
    seed = key._seed
    assert seed is not None

    def in_namespace(name: bytes) -> Signs:
        ours = sshsig.signed_message(b"")[: -hashlib.sha512().digest_size]
        other = ours.replace(_string(sshsig.NAMESPACE), _string(name))
        return lambda message: Signature(seal.sign(other + hashlib.sha512(message).digest(), seed))

    return {
        "of a file": in_namespace(b"file"),
        "of a commit": in_namespace(b"git"),
        "in no namespace": in_namespace(b""),
        "in a longer namespace": in_namespace(sshsig.NAMESPACE + b"\0"),
        "without any structure": lambda message: Signature(seal.sign(message, seed)),
        "that a touch is claimed of": lambda message: Signature(key.sign(message).value, 1, 7),
    }


def _string(value: bytes) -> bytes:
    return len(value).to_bytes(4) + value


def _signed(pen: Pen, site: Site, sign: Signs) -> Datagram:
    """A knock of this key, sealed as it should be, whose signature is this."""
    at_us, nonce = now_us(), secrets.token_bytes(NONCE_SIZE)
    request = Knock(at_us, (Access.parse("tcp/5432"),), target=site.host.v4, lifetime_s=600)
    message = message_to_sign(
        request, server=pen.server, agreement=pen.key.public.agreement, nonce=nonce
    )
    pair = pen.key.pair_with(pen.server)
    payload = seal_request(request, sign(message), pair=pair, nonce=nonce)
    return Datagram(payload, nonce, at_us, None)


def _a_key_that_is_half_another_s(scene: _Scene) -> Iterator[Figure]:
    """Alice's signing key, and an agreement key of mallory's, enrolled as mallory's second key."""
    mine = scene.mallory.key
    public = replace(mine.public, signing=scene.alice.key.public.signing)
    mixed = Identity(public, "mixed", mine._seed, mine._agreement)
    scene.site.enrol_key("mallory", format_key(mixed.public), "ops")
    pen = Pen(mixed, scene.alice.server)
    before = len(scene.holes())
    scene.asks(_signed(pen, scene.site, mixed.sign))
    theirs = ServerLine.parse(scene.own.line).public
    read = _read_by_its_owner(scene, Pen(scene.alice.key, theirs).write("tcp/5432"))
    scene.asks(_signed(pen, scene.site, lambda _message: read.signature))
    yield _none("holes by a key whose signing half is alice's", len(scene.holes()) - before)


def _an_invite_of_another_host(lab: Lab, scene: _Scene) -> Iterator[Figure]:
    """Of mallory's own, for a name there that is alice's here."""
    own, here = scene.own, scene.site
    where = ("--server-config", str(own.config), "--host", str(here.host.v4))
    made = own.keys("invite", "root", "--role", "dba", *where).stdout
    joins = Person("joins", here, lab.new_file("home-joins"))
    joins.generate()
    line = made.strip().splitlines()[0]
    done = joins.client(scene.den, "join", line, "--no-passphrase", "--timeout", "1", check=False)
    assert done.returncode == ExitCode.NO_ANSWER, done
    enrolled = here.keys("list", "--identity", "root", check=False).stdout
    yield _none("keys enrolled here by an invite of there", int("root" in enrolled))


def _none(what: str, count: int) -> Figure:
    return Figure(what, count, count == 0)
