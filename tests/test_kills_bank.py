"""`kill -9` in the middle of writing: what was acknowledged is there, and nothing that was taken away comes back.

`MEMORY_PATHS_KILLS` says how many kills (20 by default); half are at named failpoints, half at random moments.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from _kill_writer import BANK, SHELF

from memory_paths.failpoints import VARIABLE
from memory_paths.ledger import Ledger
from memory_paths.retrieval.bank import Bank
from memory_paths.retrieval.encoder import HashEncoder
from memory_paths.types import Query

KILLS = int(os.environ.get("MEMORY_PATHS_KILLS", "20"))
WRITER = Path(__file__).with_name("_kill_writer.py")
FAILPOINTS = [
    "ledger.before_commit",
    "ledger.after_commit",
    "ledger.before_vacuum",
    "index.before_fsync",
    "index.before_rename",
    "index.after_rename",
]
State = dict[str, tuple[str, str]]  # id -> key and place, of what is held


def after(state: State, operation: str, id: str, key: str) -> State:
    """What is held once an operation is done. Of a move, `key` is the place that it goes to."""
    if operation in ("flush", "compact"):
        return state
    if operation == "move":
        return state | {id: (state[id][0], key)}
    if operation == "forget":
        return {other: held for other, held in state.items() if other != id}
    return {other: held for other, held in state.items() if not key or held[0] != key} | {id: (key, BANK)}


def run_until_killed(folder: Path, number: int, chance: random.Random) -> list[list[str]]:
    """One round of the writer, killed at a failpoint (even rounds) or at a random moment; the lines it got out."""
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    if number % 2 == 0:
        # Each generation is four files, so that the first to ninth time covers all of them.
        failpoint = FAILPOINTS[number // 2 % len(FAILPOINTS)]
        environment[VARIABLE] = f"{failpoint}:{chance.randint(1, 3 if 'vacuum' in failpoint else 9)}"
    command = [sys.executable, str(WRITER), str(folder), f"round{number}", str(chance.randrange(10**6))]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert writer.stdout is not None
    lines = []
    if number % 2:
        lines = [writer.stdout.readline() for _ in range(chance.randint(1, 40))]
        time.sleep(chance.random() * 0.02)
        writer.kill()
    output = writer.stdout.read()  # not communicate(): it would pass over what readline has buffered
    writer.stdout.close()
    writer.wait(timeout=60)
    assert writer.returncode == -signal.SIGKILL, "the writer was to be killed, and ended by itself"
    return [json.loads(line) for line in [*lines, *output.splitlines()]]


def test_no_kill_loses_an_acknowledged_item_or_brings_one_back_or_leaves_one_at_two_places(tmp_path: Path) -> None:
    chance = random.Random(7)
    state: State = {}
    acknowledged = 0
    for number in range(KILLS):
        lines = [line[1:] for line in run_until_killed(tmp_path, number, chance) if line[0] != "ready"]
        pairs, rest = lines[: len(lines) // 2 * 2], lines[len(lines) // 2 * 2 :]
        for intent, done in zip(pairs[::2], pairs[1::2], strict=True):
            assert intent == done
            state = after(state, *done)
        acknowledged += len(pairs) // 2
        possible = [state, *(after(state, *intent) for intent in rest)]  # the last one may or may not have happened

        with Ledger(tmp_path / "ledger.sqlite") as ledger:
            assert ledger.verify() == []
            encoder = HashEncoder(64)
            bank = Bank(None, ledger, encoder, folder=tmp_path / "bank", top_k=1000, method="fusion")
            placed = [(item.id, (item.key, place)) for place in (BANK, SHELF) for item in ledger.active(place=place)]
            held = dict(placed)
            assert len(placed) == len(held), f"kill {number}: an item is at two places"
            assert held in possible, f"kill {number}"
            assert bank.verify() == []
            (reading,) = bank.read([Query("Item says something", "default")])
            found = {recall.item.id for recall in reading.recalls}
            assert found == {id for id, (_, place) in held.items() if place == BANK}, f"kill {number}"
            kept = ~bank._rows.gone
            versions = bank._ledger.get(bank._rows.versions[kept].tolist())
            expected = encoder.encode_documents([version.text for version in versions.values()])
            assert (bank._vectors.vectors(kept) == expected).all(), f"kill {number}"
            if chance.random() < 0.5:  # else the next round finds the snapshot as the kill left it
                bank.close()
        state = held
    assert acknowledged >= KILLS


def test_every_acknowledgement_comes_after_an_fsync_of_the_log(tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed: `apt-get install strace`")
    trace = tmp_path / "trace"
    command = [strace, "-f", "-y", "-s", "100", "-e", "trace=write,fsync,fdatasync", "-o", str(trace)]
    writer = [sys.executable, str(WRITER), str(tmp_path), "traced", "3", "40"]
    done = subprocess.run([*command, *writer], capture_output=True, text=True, check=False)
    if "ptrace" in done.stderr and done.returncode != 0:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()[:200]}")
    assert done.returncode == 0, done.stderr

    synced, operation, seen = False, "", 0
    for line in trace.read_text().splitlines():
        if match := re.search(r'write\(1<.*?>, "\[\\"(try|done)\\", \\"(\w+)\\"', line):
            if match[1] == "try":
                synced, operation = False, match[2]
            elif operation not in ("flush", "compact"):
                assert synced, f"acknowledged before it was on disk: {line}"
                seen += 1
        elif re.search(r"(fsync|fdatasync)\(\d+<[^>]*ledger\.sqlite-wal>\)\s+= 0", line):
            synced = True
    assert seen >= 20
