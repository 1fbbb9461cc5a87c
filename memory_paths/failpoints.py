"""Places in the code at which a crash can be asked for, so that durability is tested and not merely claimed.

Set `MEMORY_PATHS_FAILPOINT=ledger.before_commit` and the process kills itself (SIGKILL: nothing is flushed, no handler
runs) when it comes by; `ledger.before_commit:3` waits for the third time. Unset, a failpoint does nothing. This file
knows nothing of what is being stored.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

VARIABLE = "MEMORY_PATHS_FAILPOINT"
_passed: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """Kill this process here if the environment asks for it under this name."""
    wanted, _, time = os.environ.get(VARIABLE, "").partition(":")
    if wanted != name:
        return
    _passed[name] += 1
    if _passed[name] == int(time or 1):
        os.kill(os.getpid(), signal.SIGKILL)
