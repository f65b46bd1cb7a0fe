"""Where each table of a file begins: what a person is pointed to."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spa_server.policy.lines import lines_of
from spa_server.policy.load import load_policy

quick = settings(deadline=None)

POLICY = '''# who may do what
[services]
ssh = "tcp/22"
web = [
  "tcp/80",
  # [[roles.ops.allow]]
  "tcp/443",
]

[roles.ops]
description = """\\
  [[roles.ops.allow]]\\
"""
[[roles.ops.allow]]  # the first
services = ["ssh"]
  [[ roles . "ops" . allow ]]
services = [
  "web"
]
[[roles.dba.allow]]
services = ["ssh"]
[[always_open]]
services = ["web"]
from = ["10.9.0.0/24"]
[[tests]]
role = "ops"
access = "tcp/22"
from = "10.0.0.1"
expect = "allow"
'''


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_every_rule_knows_its_line(tmp_path: Path, newline: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_bytes(POLICY.replace("\n", newline).encode())
    read = load_policy(path)
    assert [(rule.path, rule.line) for rule in read.allows] == [
        ("roles.ops.allow[0]", 14),
        ("roles.ops.allow[1]", 16),
        ("roles.dba.allow[0]", 20),
    ]
    assert read.roles["ops"].line == 10
    assert read.roles["dba"].line == 0  # it has no header of its own
    assert [rule.line for rule in read.always_open] == [22]
    assert [test.line for test in read.tests] == [25]


def test_a_rule_within_its_role_has_the_line_of_the_role(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    rule = "[services]\nssh = 'tcp/22'\n\n[roles.ops]\nallow = [{services = ['ssh']}]\n"
    path.write_text(rule)
    assert load_policy(path).allows[0].line == 4


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", {}),
        ("a = 1\n", {}),
        ("[a]\n[a.b]\n[[c]]\n[[c]]\n[c.d]\n", {"a": 1, "a.b": 2, "c[0]": 3, "c[1]": 4, "c.d": 5}),
        ("\t[a]\t# [b]\n", {"a": 1}),
        ('["a.b"]\n', {"a.b": 1}),
        ("[a] # ]\n[b]#\n", {"a": 1, "b": 2}),
        ("x = '''\n[a]\n'''\n[a]\n", {"a": 4}),
        ('x = """\n[a]\n\\"""\n[b]\n"""\n[c]\n', {"c": 6}),
        ("x = [\n[1],\n[2]\n]\n[a]\n", {"a": 5}),
        ("x = '[a]'\ny = \"[b]\"\n", {}),
        ("# \u2028[a]\n[b]\n", {"b": 2}),  # a line separator, which TOML does not know as one
        ("# \x85\n[b]\n", {"b": 2}),
        ("[a]", {"a": 1}),
    ],
)
def test_what_looks_like_a_header_is_one_only_where_it_stands_alone(
    text: str, lines: dict[str, int]
) -> None:
    assert lines_of(text) == lines


PLAIN = ["", "# [[r.allow]]", "x{n} = 1", "x{n} = '[r]'", "x{n} = ['[r]'] # ]"]
FOLDED = [
    "x{n} = '''\n[[r.allow]]\n[r]'''",
    'x{n} = """\\\n  [[r.allow]]\n\\"""\n[a]\n"""',
    "x{n} = [\n  [1],\n[2], # [[r.allow]]\n]",
]
HEADERS = ["[[r.allow]]", "  [[ r . allow ]] # x", '[["r".allow]]\t', "[[tests]]"]
BLOCKS = st.lists(st.tuples(st.sampled_from(PLAIN + FOLDED + HEADERS)).map(lambda b: b[0]))


@quick
@given(BLOCKS, st.sampled_from(["\n", "\r\n"]))
def test_every_header_is_found_and_nothing_else(blocks: list[str], newline: str) -> None:
    lines: list[str] = []
    expected: dict[str, int] = {}
    for n, block in enumerate(blocks):
        if block in HEADERS:
            name = "tests" if "tests" in block else "r.allow"
            count = sum(path.startswith(name) for path in expected)
            expected[f"{name}[{count}]"] = len(lines) + 1
        lines += block.replace("{n}", str(n)).split("\n")
    assert lines_of(newline.join(lines)) == expected
