"""This system measured beside fwknopd, and against what the machine itself can do."""
