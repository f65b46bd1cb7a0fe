"""The tests mean the same however they were started.

What runs in the background of a shell, or under nohup, was told to ignore SIGINT, SIGQUIT, SIGHUP,
and so would every program be that a test starts and then stops by one of them.
"""

import signal

signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
