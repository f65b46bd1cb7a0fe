"""The record: what was asked, what was granted, what was refused, each with a name on it.

`record` is one line of it, `ledger` keeps it in SQLite together with what the replay window and the
grants must not forget, and `asking` reads it.
"""
