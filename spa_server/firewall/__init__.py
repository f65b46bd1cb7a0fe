"""The gate: the nftables table that keeps every port closed, and the holes in it.

`plan` says in values what the gate is to be, `gate` writes it as one nft script from the template
`gate.nft`, and `elements` encodes holes and tags as the kernel's set elements. Those are pure.
`kernel`, `watch` and `routes` speak to the kernel, over `spa_server.netlink`.
"""
