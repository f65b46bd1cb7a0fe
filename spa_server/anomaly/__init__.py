"""What is out of the ordinary for a key, an identity or a source, and why it is thought to be.

docs/anomalies.md tells what is watched, what it can see, and what it cannot.
"""
