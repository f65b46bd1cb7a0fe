"""The test vectors of docs/protocol.md section 14: tests/vectors/spa1.json.

Every datagram in the file is right, or wrong in exactly one way; both are pinned here, and for the
right ones every step between the fields and the bytes.
"""

import hashlib
import json
from collections import Counter
from functools import cache
from ipaddress import ip_address
from itertools import product
from pathlib import Path
from typing import Any, Final

import pytest

from spa_protocol import reply as replies
from spa_protocol import seal
from spa_protocol.access import Access
from spa_protocol.knock import (
    AuthenticKnock,
    Close,
    Join,
    Kind,
    Knock,
    OpenedKnock,
    Request,
    encode_body,
    freshness,
    message_to_sign,
    open_request,
    seal_request,
    verify_request,
)
from spa_protocol.layout import DEFAULT_FRESHNESS_S, TAG_SIZE, TAGS, Address, epoch_of
from spa_protocol.publickey import PublicKey, Sender, client_pair
from spa_protocol.reason import Code, Reason, Status
from spa_protocol.reply import Outcome, Reply
from spa_protocol.sshsig import KeyType, Signature, signed_message

Vector = dict[str, Any]

FILE: Final = Path(__file__).parent / "vectors" / "spa1.json"
VECTORS: Final[dict[str, list[Vector]]] = json.loads(FILE.read_text())
REQUESTS: Final = VECTORS["knocks"] + VECTORS["joins"]
RIGHT: Final = [vector for vector in REQUESTS if "body" in vector]
DERIVED: Final = [vector for vector in REQUESTS if "derived" in vector]
SPARES: Final = VECTORS["spares"]
SPELT_OUT: Final = [vector for vector in REQUESTS if "fields" in vector]


def named(vector: Vector) -> str:
    return str(vector["name"])


def octets(vector: Vector, field: str) -> bytes:
    return bytes.fromhex(vector[field])


def owner(vector: Vector) -> PublicKey:
    """The client's key, also where an invite sends the datagram."""
    signing, agreement = octets(vector, "signing_public"), octets(vector, "agreement_public")
    return PublicKey(KeyType.ED25519, signing, agreement)


def sender(vector: Vector) -> Sender:
    """The key, or for a join the invite, as the vector's server knows it."""
    server_secret = octets(vector, "server_secret")
    if "token" not in vector:
        return Sender.known_to(server_secret, owner(vector))
    signing = octets(vector, "invite_signing_public")
    agreement = octets(vector, "invite_agreement_public")
    invite = PublicKey(KeyType.ED25519, signing, agreement)
    return Sender.known_to(server_secret, invite, is_invite=True)


def secrets_of(vector: Vector) -> tuple[bytes, bytes]:
    """The seed and the agreement secret that the datagram was made with."""
    if "token" in vector:
        return seal.invite_secrets(octets(vector, "token"))
    return octets(vector, "signing_seed"), octets(vector, "agreement_secret")


def opened(vector: Vector) -> OpenedKnock | Reason:
    """Steps 1 to 4 at a server that admits the tags of five epochs."""
    known, epoch = sender(vector), epoch_of(vector["received_at_us"])
    tags = {known.pair.tag_at(near): known for near in range(epoch - 2, epoch + 3)}
    return open_request(octets(vector, "datagram"), tags.get)


def opened_by_spare(vector: Vector) -> OpenedKnock | Reason:
    """The same at a server that admits the spare tags too."""
    known, epoch = sender(vector), epoch_of(vector["received_at_us"])
    pairs = product(range(epoch - 2, epoch + 3), range(TAGS))
    tags = {known.pair.tag_at(near, number): known for near, number in pairs}
    return open_request(octets(vector, "datagram"), tags.get)


def judged(vector: Vector) -> AuthenticKnock | Reason:
    """What comes of the datagram, replay aside: the request, or the class of its failure."""
    known = opened_by_spare(vector) if "number" in vector else opened(vector)
    if isinstance(known, Reason):
        return known
    knock = verify_request(known)
    if isinstance(knock, Reason):
        return knock
    sent_at_us = knock.request.sent_at_us
    return freshness(sent_at_us, vector["received_at_us"], DEFAULT_FRESHNESS_S) or knock


@cache
def request_of(name: str) -> Request:
    """The request that a right vector carries."""
    vector = next(vector for vector in RIGHT if vector["name"] == name)
    knock = judged(vector)
    assert isinstance(knock, AuthenticKnock)
    return knock.request


@pytest.mark.parametrize("vector", REQUESTS, ids=named)
def test_request(vector: Vector) -> None:
    result = judged(vector)
    assert ("ok" if isinstance(result, AuthenticKnock) else str(result)) == vector["expect"]


def test_every_class_of_failure_has_vectors() -> None:
    """All but `replayed`, which is about two datagrams: tests/test_replay.py."""
    classes = Counter(vector["expect"] for vector in REQUESTS)
    assert set(classes) == {"ok", *Reason} - {Reason.REPLAYED}


def test_vectors_have_names_of_their_own() -> None:
    assert len({named(vector) for vector in REQUESTS}) == len(REQUESTS) == 59


def test_the_vectors_of_the_first_release_are_what_they_were() -> None:
    """Others have built upon them: vectors are added, and never changed."""
    first = [VECTORS["knocks"][:45], VECTORS["joins"][:4], VECTORS["replies"][:2]]
    written = json.dumps(first, sort_keys=True).encode()
    assert hashlib.sha256(written).hexdigest() == (
        "ee814938cb042da88ab8216979397cb469169d14e4775ab7b46ccf7b4294e6b4"
    )


@pytest.mark.parametrize("vector", SPARES, ids=named)
def test_request_under_a_spare_tag(vector: Vector) -> None:
    assert octets(vector, "datagram")[:TAG_SIZE] == octets(vector, "tag")
    assert opened(vector) is Reason.UNKNOWN_KEY
    result = judged(vector)
    assert ("ok" if isinstance(result, AuthenticKnock) else str(result)) == vector["expect"]
    if vector["number"] < TAGS:
        pair = sender(vector).pair
        assert pair.tag_at(vector["epoch"], vector["number"]) == octets(vector, "tag")


@pytest.mark.parametrize("vector", [v for v in SPARES if "body" in v], ids=named)
def test_the_same_inputs_make_the_same_datagram_under_a_spare_tag(vector: Vector) -> None:
    known, nonce = opened_by_spare(vector), octets(vector, "nonce")
    assert isinstance(known, OpenedKnock)
    assert known.body == octets(vector, "body")
    payload = seal_request(
        known.request,
        known.signature,
        pair=known.sender.pair,
        nonce=nonce,
        tag_number=vector["number"],
    )
    assert payload == octets(vector, "datagram")


def test_the_tags_of_an_epoch_all_differ() -> None:
    pair = sender(VECTORS["knocks"][0]).pair
    assert len({pair.tag_at(7, number) for number in range(TAGS)}) == TAGS
    for number in (-1, TAGS, 256):
        with pytest.raises(ValueError, match="there is no tag"):
            pair.tag_at(7, number)


@pytest.mark.parametrize("vector", DERIVED, ids=named)
def test_both_sides_derive_the_same_keys(vector: Vector) -> None:
    known = sender(vector)
    _, agreement_secret = secrets_of(vector)
    for pair in (known.pair, client_pair(agreement_secret, known.server, known.public)):
        derived = {"tag": pair.tag.hex(), "knock": pair.knock.hex(), "reply": pair.reply.hex()}
        assert derived == vector["derived"]


@pytest.mark.parametrize("vector", REQUESTS, ids=named)
def test_public_keys_are_those_of_the_secrets(vector: Vector) -> None:
    assert owner(vector).signing == seal.signing_public(octets(vector, "signing_seed"))
    assert owner(vector).agreement == seal.agreement_public(octets(vector, "agreement_secret"))
    seed, agreement_secret = secrets_of(vector)
    sends = sender(vector).public
    assert sends.signing == seal.signing_public(seed)
    assert sends.agreement == seal.agreement_public(agreement_secret)


def address(text: str | None) -> Address | None:
    return ip_address(text) if text else None


def spelt_out(fields: Vector) -> Request:
    """The request that a vector describes in words."""
    accesses = tuple(map(Access.parse, fields["accesses"]))
    source, target = address(fields["source"]), address(fields["target"])
    if fields["kind"] == "close":
        assert not fields["lifetime_s"]
        assert not fields["once"]
        return Close(fields["sent_at_us"], accesses, source, target, fields["reply"])
    return Knock(
        fields["sent_at_us"],
        accesses,
        source,
        target,
        fields["lifetime_s"],
        fields["once"],
        fields["reply"],
    )


@pytest.mark.parametrize("vector", SPELT_OUT, ids=named)
def test_the_request_is_the_one_described(vector: Vector) -> None:
    assert request_of(vector["name"]) == spelt_out(vector["fields"])


def test_the_join_brings_the_key_described() -> None:
    vector = VECTORS["joins"][0]
    assert request_of("join") == Join(1_795_500_000_000_000, owner(vector))


@pytest.mark.parametrize("vector", RIGHT, ids=named)
def test_body_byte_for_byte(vector: Vector) -> None:
    known = opened(vector)
    assert isinstance(known, OpenedKnock)
    assert known.body == octets(vector, "body")
    assert known.nonce == octets(vector, "nonce")
    assert encode_body(known.request, known.signature) == octets(vector, "body")


@pytest.mark.parametrize("vector", RIGHT, ids=named)
def test_the_same_inputs_make_the_same_datagram(vector: Vector) -> None:
    request, known, nonce = request_of(vector["name"]), sender(vector), octets(vector, "nonce")
    seed, agreement_secret = secrets_of(vector)
    message = message_to_sign(
        request, server=known.server, agreement=known.public.agreement, nonce=nonce
    )
    signature = Signature(seal.sign(signed_message(message), seed))
    pair = client_pair(agreement_secret, known.server, known.public)
    assert seal_request(request, signature, pair=pair, nonce=nonce) == octets(vector, "datagram")


SEEN: Final = (1_795_500_000_000_005, ip_address("203.0.113.9"), ip_address("198.51.100.4"))
REPLIES: Final = {
    "granted": Reply(
        Status.GRANTED,
        1_795_500_000_000_005,
        ip_address("203.0.113.9"),
        ip_address("198.51.100.4"),
        (Outcome(Access.parse("tcp/22"), Code.GRANTED, 30),),
    ),
    "refused": Reply(
        Status.REFUSED,
        1_795_500_000_000_005,
        ip_address("2001:db8::7"),
        ip_address("2001:db8:1::1"),
        (
            Outcome(Access.parse("tcp/22"), Code.NOT_NOW),
            Outcome(Access.parse("udp/53"), Code.NO_ROLE),
        ),
        "opens Mo 08:00 Europe/Berlin",
    ),
    "granted-to-target-declared": Reply(
        Status.GRANTED, *SEEN, (Outcome(Access.parse("tcp/22"), Code.GRANTED, 30),)
    ),
    "refused-to-target-declared": Reply(
        Status.REFUSED,
        *SEEN,
        (Outcome(Access.parse("tcp/22"), Code.NOT_NOW),),
        "opens Mo 08:00 Europe/Berlin",
    ),
    "clock-to-target-declared": Reply(
        Status.CLOCK,
        1_795_500_094_000_000,
        *SEEN[1:],
        (),
        "your clock is 94 s behind the server's",
    ),
    "closed-to-a-close": Reply(
        Status.CLOSED, *SEEN, (Outcome(Access.parse("tcp/22"), Code.GRANTED),)
    ),
    "nothing-was-open-to-a-close": Reply(Status.CLOSED, *SEEN, (), "nothing was open"),
}


@pytest.mark.parametrize("vector", VECTORS["replies"], ids=named)
def test_reply(vector: Vector) -> None:
    pair, request_nonce = sender(vector).pair, octets(vector, "request_nonce")
    datagram = octets(vector, "datagram")
    reply = REPLIES[vector["name"]]
    assert replies.open_reply(datagram, pair=pair, request_nonce=request_nonce) == reply
    assert replies.encode(reply) == octets(vector, "body")
    sealed = replies.seal_reply(
        reply, pair=pair, request_nonce=request_nonce, nonce=octets(vector, "nonce")
    )
    assert sealed == datagram


@pytest.mark.parametrize("vector", [v for v in VECTORS["replies"] if "to" in v], ids=named)
def test_a_reply_is_to_the_request_that_it_names(vector: Vector) -> None:
    request = request_of(vector["to"])
    assert isinstance(request, Knock | Close)
    kind = Kind.CLOSE if isinstance(request, Close) else Kind.KNOCK
    assert [str(access) for access in request.accesses] == vector["asked"]
    assert replies.answers(REPLIES[vector["name"]], kind, request.accesses)
