"""The record opens in the real Datasette as it is: docs/datasette.md."""

import importlib.util
import json
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from spa_server.audit.denials import beside
from tests.reported import Host, busy

DOCS = Path(__file__).parent.parent / "docs"
METADATA = DOCS / "datasette-metadata.json"
KNOWN = json.loads(METADATA.read_text())["databases"]
QUERIES = [(database, query) for database in KNOWN for query in KNOWN[database]["queries"]]

needs_datasette = pytest.mark.skipif(
    importlib.util.find_spec("datasette") is None, reason="datasette is not installed"
)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    made = Host(tmp_path_factory.mktemp("host"))
    busy(made)
    made.denials.flush(made.now_us)
    yield made
    made.close()


def get(host: Host, path: str) -> str:
    """What Datasette answers, while the ledger has the files open as a daemon would."""
    files = [str(host.database), str(beside(host.database))]
    command = [sys.executable, "-m", "datasette", *files, "--metadata", str(METADATA)]
    done = subprocess.run(
        [*command, "--get", path], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows(host: Host, database: str, query: str, **values: object) -> list[dict[str, Any]]:
    asked = urlencode({"_shape": "array", **values})
    found: list[dict[str, Any]] = json.loads(get(host, f"/{database}/{query}.json?{asked}"))
    return found


def columns_of(path: Path) -> dict[str, set[str]]:
    with closing(sqlite3.connect(path)) as connection:
        names = connection.execute("select name from sqlite_schema where type = 'table'")
        tables = [name for (name,) in names]
        return {
            name: {row[1] for row in connection.execute(f'pragma table_info("{name}")')}
            for name in tables
        }


@pytest.mark.parametrize("database", KNOWN)
def test_every_column_is_described_and_none_that_is_not_there(host: Host, database: str) -> None:
    there = columns_of(host.database.with_name(f"{database}.db"))
    described = KNOWN[database]["tables"]
    assert set(described) == set(there)
    for name, table in described.items():
        if not table.get("hidden"):
            assert set(table["columns"]) == there[name], name
            assert set(table.get("facets", ())) <= there[name]


def test_columns_say_their_units() -> None:
    for database in KNOWN.values():
        for table in database["tables"].values():
            for column, description in table.get("columns", {}).items():
                if column.endswith("_us"):
                    assert "microseconds since the Unix epoch" in description, column
                if column.endswith("_s"):
                    assert "seconds" in description, column


def test_the_page_names_every_query() -> None:
    named = re.findall(r"^\| `(\w+)` \| `([\w-]+)` \|", (DOCS / "datasette.md").read_text(), re.M)
    assert named == QUERIES


@needs_datasette
@pytest.mark.parametrize(("database", "query"), QUERIES)
def test_every_query_has_an_answer(host: Host, database: str, query: str) -> None:
    assert rows(host, database, query, identity="alice", days="")


@needs_datasette
def test_the_answers_are_those_of_the_record(host: Host) -> None:
    reached = {(row["identity"], row["access"]): row for row in rows(host, "spa", QUERIES[0][1])}
    assert reached["alice", "tcp/22"]["connections"] == 27
    assert reached["bob", "tcp/5432"]["connections"] == 27
    assert rows(host, "spa", "who-reached-what", days=3)[0]["connections"] == 1
    assert rows(host, "spa", "knocks-refused-by-reason")[0]["knocks"] == 2
    source, *_ = rows(host, "denials", "denials-by-source")
    assert (source["source"], source["packets"]) == (
        "203.0.113.7",
        sum(40 + days for days in range(1, 80, 3)),
    )
    assert [row["packets"] for row in rows(host, "denials", "would-deny")] == [3]
    oldest = rows(host, "spa", "last-use-of-keys")[0]
    assert (oldest["identity"], oldest["last_heard"]) == ("alice", None)


@needs_datasette
def test_a_copy_that_cannot_be_written_is_as_good(host: Host, tmp_path: Path) -> None:
    files = []
    for name in ("spa", "denials"):
        copy = tmp_path / f"{name}.db"
        with closing(sqlite3.connect(host.path / f"{name}.db")) as connection:
            connection.execute(f"vacuum into '{copy}'")
        files += ["--immutable", str(copy)]
    path = "/spa/who-reached-what.json?_shape=array&days=3"
    command = [sys.executable, "-m", "datasette", *files, "--metadata", str(METADATA)]
    done = subprocess.run([*command, "--get", path], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == rows(host, "spa", "who-reached-what", days=3)


@needs_datasette
def test_the_pages_show_what_columns_mean_and_hide_what_is_nobodys_business(host: Host) -> None:
    page = get(host, "/spa/event")
    assert "in microseconds since the Unix epoch" in page
    assert "connection.permitted" in page
    tables = json.loads(get(host, "/spa.json"))["tables"]
    hidden = {table["name"] for table in tables if table["hidden"]}
    assert hidden >= {"burned", "burned_floor", "reserve"}


def test_the_copy_is_made_as_the_page_says_without_a_program_more(
    host: Host, tmp_path: Path
) -> None:
    text = (DOCS / "datasette.md").read_text(encoding="utf-8")
    script = text[text.index("    umask 077") :].partition("\n\n")[0]
    typed = "\n".join(line.removeprefix("    ") for line in script.splitlines())
    for program in ("sh", "python3"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        found = "/bin/sh" if program == "sh" else sys.executable
        (tmp_path / "bin" / program).symlink_to(found)
    subprocess.run(
        ["/bin/sh", "-euc", typed.replace("/var/lib/spa/", f"{host.database.parent}/")],
        cwd=tmp_path,
        env={"PATH": str(tmp_path / "bin")},
        check=True,
    )
    for name in ("spa", "denials"):
        copy = tmp_path / f"{name}.db"
        assert copy.stat().st_mode & 0o077 == 0
        assert columns_of(copy) == columns_of(host.database.parent / f"{name}.db")
