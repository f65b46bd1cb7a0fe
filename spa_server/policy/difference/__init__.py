"""What two policies allow differently, in meaning: `diff.compare`.

Ports, sources, time and the ways of asking are cut into cells in which each policy gives the same
(`spans`, `timeline`, `portcells`, `cells`, `offer`); the cells that differ are put together again
(`regions`, `patches`) and told (`telling`, `words`, `values`).
"""
