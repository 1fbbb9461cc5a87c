"""One of several processes that write to one bank, on a PostgreSQL server or, where ADDRESS is a file, in files.

`python _write_together.py ADDRESS NAME together`: waits for a line on its input, then writes the 200 items that all
write and 40 of its own and updates ten keys that all update; then forgets the items that the next line names.
`python _write_together.py ADDRESS NAME until_killed`: writes items of its own until it is killed.
`python _write_together.py ADDRESS NAME same COUNT`: waits for a line, then writes the first so many of what all write.
Each acknowledgement is a line of output.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

from memory_paths.database import is_server
from memory_paths.ledger import Ledger
from memory_paths.retrieval.bank import Bank
from memory_paths.retrieval.encoder import HashEncoder
from memory_paths.retrieval.postgres import PostgresBank
from memory_paths.types import Knowledge

SHARED, OWN, KEYS = 200, 40, 10


def shared(number: int) -> Knowledge:
    return Knowledge(f"shared-{number}", f"Everybody writes sentence {number}.")


def own(name: str, number: int) -> Knowledge:
    return Knowledge(f"{name}-{number}", f"Only {name} writes sentence {number}.")


def update(name: str, number: int) -> Knowledge:
    return Knowledge(f"{name}-says-{number}", f"{name} has the last word on {number}.", key=f"key-{number}")


def say(word: str) -> None:
    os.write(1, f"{word}\n".encode())  # one call a line: whoever reads sees it whole or not at all


def open_bank(address: str | Path, ledger: Ledger) -> Bank | PostgresBank:
    if is_server(address):
        return PostgresBank(None, ledger, HashEncoder(64))
    return Bank(None, ledger, HashEncoder(64), folder=Path(address).with_suffix(".index"))


def main(address: str, name: str, mode: str, count: str = "0") -> None:
    with Ledger(address) as ledger:
        bank = open_bank(address, ledger)
        say("ready")
        if mode == "until_killed":
            for number in range(1_000_000):
                item = own(name, number)
                say(f"try {item.id}")
                bank.write([item], "default")
                say(f"done {item.id}")
        sys.stdin.readline()
        source = random.Random(name)
        if mode == "same":
            items = [shared(number) for number in range(int(count))]
            source.shuffle(items)
            while items:
                size = source.randint(1, 20)
                bank.write(items[:size], "default")
                del items[:size]
            bank.close()
            return
        items = [*(shared(n) for n in range(SHARED)), *(own(name, n) for n in range(OWN))]
        items += [update(name, n) for n in range(KEYS)]
        source.shuffle(items)
        for start in range(0, len(items), 5):
            bank.write(items[start : start + 5], "default")
        say("written")
        say(json.dumps(bank.forget(json.loads(sys.stdin.readline()), "default").ids))
        bank.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
