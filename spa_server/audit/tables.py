"""The ledger's tables, and how they came to be. They are in one file with the registry's.

    event         the record, a line each, chained (spa_server/audit/chain.py)
    checkpoint    signatures over the chain so far
    base          where the chain begins, when retention has removed what was before; one row
    signer        the public keys of the two, by their names
    hole_grant    who was granted which access, and how it ended
    burned, burned_floor    what the replay window must not forget
    operator_act    what operators did beside the daemon, until it has entered it (acts.py)
    drift_told      what did not fit at the last look, which the record has said (driftwatch.py)
    policy_text     the policies that were in force, by digest (policytexts.py)
    reserve       room that is kept for the ledger; empty but for a moment (reserve.py)

A change to these tables is a new migration, never an edit of an old one. docs/record.md describes
them to their readers; `user_version` is the version of that schema.
"""

import sqlite3
from itertools import islice
from typing import Any, Final

import sqlite_utils
from sqlite_utils.migrations import Migrations

from keys import schema
from spa_server.audit import chain
from spa_server.audit.chain import Head

VERSION: Final = 2
_AT_ONCE: Final = 2000
INSERT_EVENT: Final = "insert into event values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"

migrations = Migrations("ledger")


@migrations()
def create_tables(db: sqlite_utils.Database) -> None:
    """The ledger's tables as of version 0.1.

    Every table and index grows at its end, in the order of time: a commit is then a few pages, and
    not a page for each key. What is asked by identity reads the record backwards.
    """
    db.executescript("""
        create table event (
            id integer primary key autoincrement, at_us integer not null, event text not null,
            identity text, key_id text, source text, target text, access text, reason text,
            rule text, grant_id integer, detail text not null default '{}'
        ) strict;
        create index event_at on event (at_us);
        create table hole_grant (
            grant_id integer primary key, key_id text not null, identity text not null,
            rule text not null, source text not null, target text not null, access text not null,
            once integer not null, sessions text not null, opened_at_us integer not null,
            expires_at_us integer not null, ends_at_s real not null, boot_id text not null,
            ended_at_us integer, ended_why text
        ) strict;
        create index hole_grant_live on hole_grant (boot_id) where ended_at_us is null;
        create table burned (
            sent_at_us integer not null, key_id text not null, nonce blob not null,
            primary key (sent_at_us, key_id, nonce)
        ) strict, without rowid;
        create table burned_floor (
            key_id text primary key, sent_at_us integer not null
        ) strict, without rowid;
    """)


@migrations()
def chain_the_record(db: sqlite_utils.Database) -> None:
    """Version 0.2: a digest in every line, the first at the first line that is there.

    The ids are given by the ledger and have no gaps.
    """
    db.executescript("""
        create table chained (
            id integer primary key, at_us integer not null, event text not null,
            identity text, key_id text, source text, target text, access text, reason text,
            rule text, grant_id integer, detail text not null, digest blob not null
        ) strict;
        create table checkpoint (
            event_id integer primary key, at_us integer not null, digest blob not null,
            signer text not null, signature blob not null
        ) strict;
        create table base (
            first_id integer primary key, at_us integer not null, until_us integer not null,
            digest blob not null, signer text not null, signature blob not null
        ) strict;
        create table signer (
            signer text primary key, public blob not null, since_us integer not null
        ) strict, without rowid;
        create table reserve (id integer primary key, filler blob not null) strict;
        alter table hole_grant add column declared integer not null default 0;
        alter table hole_grant add column touched integer not null default 0;
    """)
    _chain_old_lines(db.conn)
    db.executescript(f"""
        drop table event;
        alter table chained rename to event;
        create index event_at on event (at_us);
        pragma user_version = {VERSION};
    """)


@migrations()
def name_who_acts(db: sqlite_utils.Database) -> None:
    """Version 0.3: who did what to the host, which policies were in force, and what the record
    has said of drift."""
    db.executescript("""
        create table operator_act (
            id integer primary key autoincrement, at_us integer not null, event text not null,
            reason text, detail text not null
        ) strict;
        create table policy_text (
            digest text primary key, at_us integer not null, text text not null
        ) strict;
        create table drift_told (
            name text not null, subject text not null, what text not null, advice text not null,
            primary key (name, subject)
        ) strict;
    """)


def _chain_old_lines(connection: sqlite3.Connection) -> None:
    head = Head()
    old = connection.execute(
        "select at_us, event, identity, key_id, source, target, access, reason, rule, grant_id,"
        " detail from event order by id"
    )
    while lines := list(islice(old, _AT_ONCE)):
        rows: list[tuple[Any, ...]] = []
        for line in lines:
            columns = (head.event_id + 1, *line)
            head = Head(head.event_id + 1, chain.digest_of(head.digest, columns))
            rows.append((*columns, head.digest))
        connection.executemany(INSERT_EVENT.replace(" event ", " chained "), rows)


def prepare(connection: sqlite3.Connection) -> None:
    """Brings the tables up to date. Raises sqlite3.Error, also where a newer version made them.

    Of several processes that find tables missing, one makes them and the others wait.
    """
    db = sqlite_utils.Database(connection, recursive_triggers=False, execute_plugins=False)
    if version_of(connection) > VERSION:
        raise sqlite3.DatabaseError("made by a newer version of spa-server; use that one")
    if migrations.pending(db):
        with schema.writing(db):
            migrations.apply(db)


def version_of(connection: sqlite3.Connection) -> int:
    """The version of the record's schema. Raises sqlite3.Error."""
    version: int = connection.execute("pragma user_version").fetchone()[0]
    return version


def head_of(connection: sqlite3.Connection) -> Head:
    """Where the chain ends. Raises sqlite3.Error."""
    last = "select id, digest from event order by id desc limit 1"
    base = "select first_id - 1, digest from base order by first_id desc limit 1"
    for statement in (last, base):
        row = connection.execute(statement).fetchone()
        if row is not None:
            return Head(*row)
    return Head()
