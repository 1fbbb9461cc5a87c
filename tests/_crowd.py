"""One process of a crowd on one bank: four readers, a writer, and an event loop that reads through LangChain's store.

`python _crowd.py FOLDER NUMBER SECONDS`. Ends with one JSON object: what was counted, the problems that were seen, and
the delays of the event loop's own ticks in milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from memory_paths.ledger import Ledger
from memory_paths.retrieval.bank import Bank
from memory_paths.retrieval.encoder import HashEncoder
from memory_paths.retrieval.langchain import BankVectorStore
from memory_paths.types import Knowledge, Query

READERS, TOGETHER, KEYS = 4, 3, 8
TICK = 0.01


class Watched(HashEncoder):
    """Notes in which threads it works."""

    def __init__(self) -> None:
        super().__init__(64)
        self.threads: set[int] = set()

    def encode_documents(self, texts):
        self.threads.add(threading.get_ident())
        return super().encode_documents(texts)


def main(folder: Path, number: str, seconds: float) -> None:
    encoder = Watched()
    bank = Bank(None, Ledger(folder / "ledger.sqlite"), encoder, folder=folder / "bank", method="fusion", top_k=8)
    end = time.monotonic() + seconds
    counted: Counter[str] = Counter()
    problems: list[str] = []

    def write() -> None:
        chance, batch = random.Random(number), 0
        while time.monotonic() < end:
            batch += 1
            name = f"{number}-{batch}"
            texts = [f"Batch {name} has part {part} of colour {chance.randrange(9)}." for part in range(TOGETHER)]
            items = [Knowledge(f"{name}-{p}", text, metadata={"batch": name}) for p, text in enumerate(texts)]
            bank.write(items, "together")
            bank.write([Knowledge(name, f"Now {name} holds.", key=f"key {chance.randrange(KEYS)}")], "one at a time")
            if batch % 5 == 0:
                bank.forget([item.id for item in items], "together")
            counted["writes"] += 1

    def read(reader: int) -> None:
        chance = random.Random(f"{number}/{reader}")
        while time.monotonic() < end:
            batch = f"{chance.randrange(4)}-{chance.randint(1, 40)}"
            query = Query(f"Batch {batch} part colour", "together", where={"batch": batch})
            (reading,) = bank.read([query])
            if len(reading.recalls) not in (0, TOGETHER):  # what was written or forgotten together is seen together
                problems.append(f"{len(reading.recalls)} of {TOGETHER} items of batch {batch}")
            keys = [item.key for item in bank.items("one at a time")]
            if len(keys) != len(set(keys)):
                problems.append(f"two items hold under one key: {sorted(keys)}")
            counted["reads"] += 1

    async def ask(store: BankVectorStore, delays: list[float]) -> None:
        async def work() -> None:
            while time.monotonic() < end:
                await store.asimilarity_search("colour of part 1", k=3)
                await store.aadd_texts(["Something said on the event loop."], ids=[f"loop {number}"])
                counted["asked on the loop"] += 1

        working = asyncio.create_task(work())
        while not working.done():
            started = time.monotonic()
            await asyncio.sleep(TICK)
            delays.append(1000 * (time.monotonic() - started - TICK))
        await working

    def watched(work, *arguments: object) -> None:
        try:
            work(*arguments)
        except BaseException as error:
            problems.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=watched, args=(write,))]
    threads += [threading.Thread(target=watched, args=(read, reader)) for reader in range(READERS)]
    for thread in threads:
        thread.start()
    delays: list[float] = []
    encoder.threads.discard(threading.get_ident())
    watched(lambda: asyncio.run(ask(BankVectorStore(bank, "loop"), delays)))
    if threading.get_ident() in encoder.threads:
        problems.append("the event loop's thread encoded a text")
    for thread in threads:
        thread.join()
    problems += bank.verify()
    bank.close()
    sys.stdout.write(json.dumps({"counted": counted, "problems": problems, "delays": delays}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
