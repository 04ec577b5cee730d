"""Python for the processes of pytest-xdist, by the arguments `-u -c CODE`: forked from a process that has
imported what tests need, which takes a new one four seconds."""

from __future__ import annotations

import signal
import sys

from forked import Forked

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # pytest hears it and ends what it has started
    sys.exit(Forked(*sys.argv[2:], stdin=None, stdout=None, stderr=None).wait())
