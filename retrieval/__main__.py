"""`python -m memory_paths.retrieval`: look after a ledger and the index of its bank, and carry items in and out."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from memory_paths.database import is_server
from memory_paths.ledger import Ledger, LedgerError, salvage
from memory_paths.types import DEFAULT_NAMESPACE, Knowledge, Query

from .bank import Bank
from .calibration import Calibration, best_cosines, calibrate
from .encoder import Encoder, HashEncoder, SentenceEncoder
from .generation import MANIFEST, load_generation
from .index import VectorIndex
from .rows import Rows

BATCH = 5_000  # items that are stored, and acknowledged, together


def verify(ledger: Path | str, folder: Path | None, place: str) -> list[str]:
    """One line for each problem of a ledger and of the index in a folder, which may lag behind; none if all is well."""
    try:
        opened = Ledger(ledger)
    except LedgerError as error:
        return [str(error)]
    with opened:
        problems = opened.verify()
        if folder is None:
            return problems
        try:
            manifest, parts = load_generation(folder)
            rows = Rows(parts["rows"].data, manifest.namespaces)
            vectors = VectorIndex(manifest.encoder["dimension"], parts)
        except (OSError, ValueError, KeyError) as error:
            return [*problems, f"the index is damaged or missing, and will be made anew: {error}"]
        if manifest.place != place:
            problems.append(f"the index in {folder} belongs to {manifest.place!r}, not to {place!r}")
        elif opened.fingerprint(manifest.position) != manifest.fingerprint:
            problems.append(f"the index in {folder} was made from another ledger, and will be made anew")
        elif len(vectors) != len(rows):
            problems.append(f"the index in {folder} does not have one vector for each row, and will be made anew")
    return problems


def repair(ledger: Path, target: Path, folder: Path | None) -> list[str]:
    """Write what can be trusted of a ledger into a new file, and discard the index, to be made anew.

    Returns:
        What was done, and one line for each version that is lost.

    Raises:
        FileExistsError: The target is there already.
    """
    saved, lost = salvage(ledger, target)
    if folder is not None:
        (folder / MANIFEST).unlink(missing_ok=True)
    return [f"{saved} versions saved to {target}, {len(lost)} lost", *lost]


def export(ledger: Path | str, place: str, namespace: str) -> Iterator[str]:
    """What holds now, one item of JSON a line, in the order of writing."""
    with Ledger(ledger) as opened:
        for item in opened.active(place=place, namespace=namespace):
            yield item.to_json()


def read_items(file: Path) -> Iterator[Knowledge]:
    """The items of a JSONL file.

    Raises:
        ValueError: A line that is no item; the line is named.
    """
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield Knowledge.from_json(line)
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(
                    f'line {number} of {file} is no item ({error}); write {{"id": ..., "text": ...}}'
                ) from error


def bring_in(ledger: Path | str, file: Path, place: str, namespace: str) -> tuple[int, int]:
    """Store the items of a JSONL file, in batches; started again it goes on where it was stopped, for what is stored is
    stored once.

    Returns:
        How many items the file has, and how many of them were new.

    Raises:
        ValueError: A line that is no item (nothing is stored then), or an id that is active with other content (the
            batches before it are stored).
    """
    from tqdm import tqdm

    count = sum(1 for _ in read_items(file))
    new = 0
    with (
        Ledger(ledger) as opened,
        tqdm(total=count, unit=" items", disable=None, mininterval=1.0) as bar,
    ):
        items = read_items(file)
        while batch := list(itertools.islice(items, BATCH)):
            new += len(opened.record(batch, place=place, namespace=namespace).versions)
            bar.update(len(batch))
    return count, new


def read_questions(file: Path) -> list[Query]:
    """The questions of a JSONL file.

    Raises:
        ValueError: A line without a question; the line is named.
    """
    queries = []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                queries.append(Query(json.loads(line)["question"]))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f'line {number} of {file} has no question ({error!r}); write {{"question": ...}}'
                ) from error
    return queries


def threshold(
    ledger: Path, known: Path, unknown: Path, *, place: str, namespace: str, encoder: Encoder, false_offers: float
) -> Calibration:
    """The threshold for what a ledger holds, from questions that it answers and questions that it does not; see
    `calibration.calibrate`.

    Raises:
        ValueError: A line that is no question, or too few of them.
    """
    asked = [
        [replace(query, namespace=namespace) for query in queries]
        for queries in (read_questions(known), read_questions(unknown))
    ]
    with Ledger(ledger) as opened:
        bank = Bank(None, opened, encoder, name=place)
        return calibrate(*(best_cosines(bank, queries) for queries in asked), false_offers=false_offers)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m memory_paths.retrieval", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, words in (
        ("verify", "check every checksum of a ledger, and of an index"),
        ("repair", "write what can be trusted of a damaged ledger into a new one"),
        ("compact", "erase what was forgotten from the ledger's files"),
        ("export", "print what holds now, one item of JSON a line"),
        ("import", "store the items of a JSONL file"),
        ("calibrate", "find the threshold under which questions that nothing answers are seldom offered anything"),
    ):
        command = commands.add_parser(name, help=words, description=words)
        command.add_argument("ledger", help="the ledger's file, or postgresql://...")
        command.add_argument("--place", default="rag", help="name of the bank")
        if name in ("verify", "repair"):
            command.add_argument("--folder", type=Path, help="where the bank keeps its index")
        if name == "repair":
            command.add_argument("--to", type=Path, required=True, help="the new ledger's file")
        if name == "import":
            command.add_argument("file", type=Path, help="JSONL, an item a line")
        if name in ("export", "import", "calibrate"):
            command.add_argument("--namespace", default=DEFAULT_NAMESPACE)
        if name == "calibrate":
            command.add_argument("--known", type=Path, required=True, help='JSONL, {"question": ...}: answered')
            command.add_argument("--unknown", type=Path, required=True, help="the same, not answered")
            command.add_argument("--false-offers", type=float, default=0.05, help="so many of these at most, in (0, 1)")
            command.add_argument("--encoder", default="minilm", help="hash, minilm, or a folder or hub name")
    given = parser.parse_args(arguments)
    if given.command == "repair" and is_server(given.ledger):
        parser.error("a ledger on a server is repaired by its administrator, from a backup")
    if given.command != "import" and not is_server(given.ledger) and not Path(given.ledger).is_file():
        parser.error(f"there is no ledger {given.ledger}")
    if given.command == "verify":
        problems = verify(given.ledger, given.folder, given.place)
        print("\n".join(problems) or "all is well")
        return 1 if problems else 0
    if given.command == "repair":
        print("\n".join(repair(Path(given.ledger), given.to, given.folder)))
    elif given.command == "compact":
        with Ledger(given.ledger) as ledger:
            print(f"{ledger.compact()} versions erased")
    elif given.command == "export":
        for line in export(given.ledger, given.place, given.namespace):
            print(line)
    elif given.command == "calibrate":
        try:
            found = threshold(
                given.ledger,
                given.known,
                given.unknown,
                place=given.place,
                namespace=given.namespace,
                encoder=HashEncoder() if given.encoder == "hash" else SentenceEncoder(given.encoder),
                false_offers=given.false_offers,
            )
        except (ValueError, OSError) as error:
            parser.error(str(error))
        print(json.dumps(asdict(found)))
    else:
        count, new = bring_in(given.ledger, given.file, given.place, given.namespace)
        print(json.dumps({"items": count, "new": new}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
