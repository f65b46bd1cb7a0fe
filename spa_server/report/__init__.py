"""`spa-server report`: one page about a host that an auditor can keep.

facts, gathering      what the page says, and where it is gathered
buckets               the time of the report in steps, for the plots
lines                 the record and the denials, summed up by SQLite
access                who reaches what by the policy, held against what was used
keys, state           the registry's keys by age; whether the record is as it was written
values                the same facts for other programs
plots, page           SVG by pygal, HTML by Jinja2; both are in the extra `[report]`
templates/            the page and its style

Nothing but `plots` and `page` needs the extra.
"""
