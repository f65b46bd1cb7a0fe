"""Alignment: do policy, registry, gate and host still fit together?

    survey.py      gathers the facts: the one part that reads files, the kernel, other processes
    drift.py       judges them: facts in, findings out
    finding.py     what a finding is; every name that there is, with its severity

    people.py      findings about roles, rules and who has them
    standing.py    findings about the gate itself, the daemon and its files
    bypass.py      findings about what else filters packets, or lets them by the gate
    ports.py       findings about who listens, and which rule leads to whom
    published.py   findings about ports that lead into containers

A fact that cannot be read is left out, and one finding (`not-checked`) says so.
"""
