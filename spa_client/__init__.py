"""The client: composes a knock, carries it, and tells what came of it.

`compose` says what is sent, `carriers` sends it and hears the reply, `outcome` puts it into words;
`connect` and `pipe` are what ssh's ProxyCommand needs. It starts fast, and imports nothing that
only one system has.
"""
