"""Many readers and writers in several processes on one bank: nobody sees half of what was written together.

`MEMORY_PATHS_SECONDS` says how long (2 by default, 60 in `make proofs`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

SECONDS = os.environ.get("MEMORY_PATHS_SECONDS", "2")
LONGEST = (
    50.0  # milliseconds that an event loop may be late, but for one tick in a hundred; asked of the long run alone
)
PROCESSES = 4
MEMBER = Path(__file__).with_name("_crowd.py")


def test_a_crowd_of_readers_and_writers_sees_whole_writes_and_blocks_no_event_loop(tmp_path: Path) -> None:
    commands = [[sys.executable, str(MEMBER), str(tmp_path), str(number), SECONDS] for number in range(PROCESSES)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for command in commands]
    told = []
    for member in running:
        out, err = member.communicate(timeout=240 + float(SECONDS))
        assert member.returncode == 0, err.decode()[-1500:]
        told.append(json.loads(out.splitlines()[-1]))
    assert [problem for one in told for problem in one["problems"]] == []
    counted = {
        name: sum(one["counted"].get(name, 0) for one in told) for name in ("writes", "reads", "asked on the loop")
    }
    assert all(counted.values()), counted
    delays = np.concatenate([one["delays"] for one in told])
    sys.stdout.write(
        f"{counted}; delay of the event loops in milliseconds: p50 {np.percentile(delays, 50):.1f},"
        f" p99 {np.percentile(delays, 99):.1f}, most {delays.max():.1f}\n"
    )
    if "MEMORY_PATHS_SECONDS" in os.environ:
        assert np.percentile(delays, 99) <= LONGEST
