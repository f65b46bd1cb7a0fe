"""Whole hosts against each other, in network namespaces: real packets, real programs."""
