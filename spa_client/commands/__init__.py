"""The commands of `spa-client`, a module for one or two that belong together.

Each is thin: it parses, calls, prints. `cli` imports the module of the command that is run, and no
other, so that a knock starts fast.
"""
