"""Writes to a ledger and a bank until it is killed, telling each intent before and each acknowledgement after.

`python _kill_writer.py FOLDER ROUND SEED [OPERATIONS]`. A line is a JSON list: ["try" or "done", operation, id, key],
where a move has the place that it goes to for a key. Ids name the round that made them, so that no round meets the ids
of another by accident.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

from memory_paths.ledger import Ledger
from memory_paths.retrieval.bank import Bank
from memory_paths.retrieval.encoder import HashEncoder
from memory_paths.types import Knowledge

KEYS = 12
BANK, SHELF = "rag", "shelf"  # the bank's place in the ledger, and another one


def say(*words: str) -> None:
    # One write call for each line: whoever reads the pipe sees it whole or not at all, whenever we are killed.
    os.write(1, (json.dumps(words) + "\n").encode())


def main(folder: Path, round_name: str, seed: int, operations: int) -> None:
    chance = random.Random(seed)
    ledger = Ledger(folder / "ledger.sqlite")
    bank = Bank(None, ledger, HashEncoder(64), folder=folder / "bank", method="fusion")
    say("ready")
    for number in range(operations):
        operation = chance.choices(["write", "update", "forget", "move", "flush", "compact"], [5, 4, 3, 3, 2, 1])[0]
        source, target = chance.choice([(BANK, SHELF), (SHELF, BANK)]) if operation == "move" else (BANK, "")
        held = [item.id for item in ledger.active(place=source)]
        if operation in ("forget", "move") and not held:
            operation, target = "write", ""
        id = chance.choice(held) if operation in ("forget", "move") else f"{round_name}-{number}"
        key = f"key-{chance.randrange(KEYS)}" if operation == "update" else target
        say("try", operation, id, key)
        if operation == "forget":
            bank.forget([id], namespace="default")
        elif operation == "move":
            ledger.move([id], source=source, target=target, namespace="default")
        elif operation == "flush":
            bank.flush()
        elif operation == "compact":
            ledger.compact()
        else:
            bank.write(
                [Knowledge(id, f"Item {id} says something about {key or 'itself'}.", key=key)], namespace="default"
            )
        say("done", operation, id, key)
    bank.close()
    ledger.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else 1_000_000)
