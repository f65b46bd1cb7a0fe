"""A test run under nohup ignores SIGHUP, and so would every program that it starts."""

import signal

signal.signal(signal.SIGHUP, signal.SIG_DFL)
