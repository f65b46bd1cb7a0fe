"""Whole hosts: Debian booted with systemd, in the lab's namespaces, used as README.md says.

root.py      the Debian that hosts are copies of, made once and kept under build/
machine.py   a host: booted, typed at by root or by a person, rebooted, switched off
readme.py    the lines of README.md that are for a shell
company.py   a guarded host and a laptop, with the project installed on them by those lines
"""
