"""The commands of `spa-server`: each parses, calls once and prints. `cli.py` lists them."""
