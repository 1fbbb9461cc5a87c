"""`python -m memory_paths.retrieval`: look after a ledger and the index of its bank, and carry items in and out."""

from __future__ import annotations

import argparse
import itertools
import json
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from memory_paths.database import check_kind, check_log, damage, explained, is_server
from memory_paths.ledger import SCHEMA_VERSION, Ledger, LedgerError, salvage
from memory_paths.quarantine import PLACE, TRUSTED, Held, Quarantine
from memory_paths.types import DEFAULT_NAMESPACE, Knowledge, Query

from .bank import Bank
from .calibration import Calibration, best_cosines, calibrate
from .encoder import Encoder, HashEncoder, SentenceEncoder
from .generation import MANIFEST, load_generation
from .index import VectorIndex
from .merging import Merging, merge, undo
from .quarantine import Injections
from .rows import Rows

BATCH = 5_000  # items that are stored, and acknowledged, together
LONGEST = 1 << 24  # bytes of a line that is read
DEEPEST = 100  # lists and objects within one another in a line that is read; what reads them later ends near 1,000


@dataclass(frozen=True)
class Imported:
    """What became of the items of a file: how many it has, how many of them were new, and how many are kept apart."""

    items: int
    new: int
    quarantined: int


def check_ledger(ledger: Path | str) -> None:
    """Look into a ledger's file before it is opened, for of an empty one opening makes a ledger.

    Raises:
        FileNotFoundError: There is no file.
        LedgerError: There is no ledger in it.
    """
    file = Path(ledger)
    if is_server(ledger):
        return
    check_log(str(file))
    if not file.is_file():
        raise FileNotFoundError(f"there is no ledger {file}")
    with explained(str(file)), closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as raw:
        if not check_kind(raw, str(file), SCHEMA_VERSION):
            raise LedgerError(damage(str(file), "there is nothing in it"))


def verify(ledger: Path | str, folder: Path | None, place: str) -> list[str]:
    """One line for each problem of a ledger and of the index in a folder, which may lag behind; none if all is well."""
    try:
        check_ledger(ledger)
        opened = Ledger(ledger)
    except LedgerError as error:
        return [str(error)]
    with opened:
        faults = [] if folder is None else _faults(opened, folder, place)
        return opened.verify() + [f"{fault}; its bank makes it anew when it is opened" for fault in faults]


def _faults(opened: Ledger, folder: Path, place: str) -> list[str]:
    """What is wrong with the index in a folder."""
    try:
        manifest, parts = load_generation(folder)
        rows = Rows(parts["rows"].data, manifest.namespaces)
        vectors = VectorIndex(manifest.encoder["dimension"], parts)
    except (OSError, ValueError, KeyError) as error:
        return [f"the index in {folder} is damaged or missing: {error}"]
    if manifest.place != place:
        return [f"the index in {folder} belongs to {manifest.place!r}, not to {place!r}"]
    if opened.fingerprint(manifest.position) != manifest.fingerprint:
        return [f"the index in {folder} was made from another ledger"]
    if len(vectors) != len(rows):
        return [f"the index in {folder} does not have one vector for each row"]
    return []


def repair(ledger: Path, target: Path, folder: Path | None) -> list[str]:
    """Write what can be trusted of a ledger into a new file, and discard the index, to be made anew.

    Returns:
        What was done, one line for each version that is lost, and why there may be more of them.

    Raises:
        FileExistsError: The target is there already.
        LedgerError: Nothing can be saved; there is no target then.
    """
    done = salvage(ledger, target)
    if folder is not None:
        (folder / MANIFEST).unlink(missing_ok=True)
    summary = f"{done.saved} versions saved to {target}, {len(done.lost)} lost"
    return [summary, *done.lost, *(f"more may be lost: {doubt}" for doubt in done.doubts)]


def compact(ledger: Path | str, folder: Path | None, place: str, encoder: str | None) -> int:
    """Erase what was forgotten from a ledger's files and, if a folder is given, from the index that is kept there.

    Args:
        ledger: The ledger.
        folder: Where the bank keeps its index.
        place: The bank's.
        encoder: The index's; None: the one that it names itself.

    Returns:
        How many versions were erased.

    Raises:
        ValueError: The index is not one of this ledger and place, or is of another encoder; nothing is erased then.
    """
    with Ledger(ledger) as opened:
        if folder is None:
            return opened.compact()
        if problems := _faults(opened, folder, place):
            raise ValueError(f"nothing was erased: {problems[0]}")
        described = load_generation(folder)[0].encoder
        named = _encoder(encoder or described["name"], described["dimension"])
        if named.manifest.to_dict() != described:
            raise ValueError(f"the index in {folder} was made by encoder {described}, got {named.manifest.to_dict()}")
        with closing(Bank(None, opened, named, name=place, folder=folder)) as bank:
            bank.flush()  # before, for an index of words lets go of a text by the text
            return opened.compact()


def export(ledger: Path | str, place: str, namespace: str | None) -> Iterator[str]:
    """What holds now, one item of JSON a line, in the order of writing.

    Args:
        ledger: The ledger.
        place: The bank's.
        namespace: Whose items; None: everybody's, one namespace after the other, each line with its `namespace`.
    """
    with Ledger(ledger) as opened:
        if namespace is not None:
            yield from (item.to_json() for item in opened.active(place=place, namespace=namespace))
            return
        for whose in opened.namespaces(place=place, holding=""):
            beginning = f'{{"namespace":{json.dumps(whose, ensure_ascii=False)},'
            for item in opened.active(place=place, namespace=whose):
                yield beginning + item.to_json().removeprefix("{")


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, each with its number.

    Raises:
        FileNotFoundError: No such file, or one that cannot be read twice.
        ValueError: A line that is too long or not UTF-8; the line is named.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is no file; what comes through a pipe has to be written to one first")
    with file.open("rb") as opened:
        for number in itertools.count(1):
            line = opened.readline(LONGEST + 1)
            if not line:
                return
            if len(line) > LONGEST:
                raise ValueError(f"line {number} of {file} has more than {LONGEST} bytes; give an item a line")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"line {number} of {file} is not UTF-8 ({error.reason}); save it as UTF-8") from error
            if text.strip():
                yield number, text


def read_items(file: Path, namespace: str | None) -> Iterator[tuple[str, Knowledge]]:
    """The items of a JSONL file, each with its namespace.

    Args:
        file: As `export` writes it.
        namespace: Whose items these are; None: each line has its `namespace`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A line that is no item; the line is named.
    """
    form = '{"id": ..., "text": ...}' if namespace is not None else '{"namespace": ..., "id": ..., "text": ...}'
    for number, line in _lines(file):
        try:
            if line.count("[") + line.count("{") > DEEPEST:  # as few lines have
                _check_depth(json.loads(line))
            whose = namespace
            if whose is None:
                fields = json.loads(line)
                whose, line = fields.pop("namespace", None), json.dumps(fields)
            if not isinstance(whose, str) or not whose.strip():
                raise ValueError(f"its namespace must be a non-empty string, got {whose!r}")
            item = Knowledge.from_json(line)
            item.to_json().encode()  # half a character cannot be stored
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"line {number} of {file} is no item ({_told(error)}); write {form}") from error
        yield whose, item


def _check_depth(value: Any, left: int = DEEPEST) -> None:
    if not isinstance(value, dict | list):
        return
    if not left:
        raise RecursionError
    for child in value.values() if isinstance(value, dict) else value:
        _check_depth(child, left - 1)


def _told(error: Exception) -> str:
    return f"nested deeper than {DEEPEST} levels" if isinstance(error, RecursionError) else str(error)


def bring_in(ledger: Path | str, file: Path, place: str, namespace: str | None, *, trusted: bool = False) -> Imported:
    """Store the items of a JSONL file, in batches, but for those that an agent would keep apart (see
    `memory_paths.quarantine`). Started again it goes on where it was stopped, for what is stored is stored once.

    Args:
        ledger: Where to; made where it is missing.
        file: As `export` writes it.
        place: The bank's.
        namespace: Whose items these are; None: each line has its `namespace`.
        trusted: Whether all are let in, whatever their trust.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A line that is no item (nothing is stored then), or an id that is active, or kept apart, with other
            content. The message says what is stored of the file then.
        LedgerError: The disk is full. The message says the same.
    """
    from tqdm import tqdm

    if place == PLACE:
        raise ValueError(f"the quarantine has the place {PLACE!r}; give another one")
    count = sum(1 for _ in read_items(file, namespace))
    done = new = apart = 0
    with Ledger(ledger) as opened, tqdm(total=count, unit=" items", disable=None, mininterval=1.0) as bar:
        quarantine = Quarantine(opened, Injections(), trusted_from=0.0 if trusted else TRUSTED)
        for whose, group in itertools.groupby(read_items(file, namespace), key=lambda given: given[0]):
            items = (item for _, item in group)
            while batch := list(itertools.islice(items, BATCH)):
                held: Sequence[Held] = ()
                try:
                    passed, held = quarantine.sift(batch, whose)
                    new += len(opened.record(passed, place=place, namespace=whose).versions)
                except (ValueError, LedgerError) as error:
                    stored = f"the first {done} items are in the ledger" if done else "nothing is stored"
                    stored += f" and {len(held)} of the next {len(batch)} kept apart" if held else ""
                    raise type(error)(f"{error}. Of {file}, {stored}") from error
                done, apart = done + len(batch), apart + len(held)
                bar.update(len(batch))
    return Imported(count, new, apart)


def read_questions(file: Path) -> list[Query]:
    """The questions of a JSONL file.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A line without a question; the line is named.
    """
    queries = []
    for number, line in _lines(file):
        try:
            question = json.loads(line)["question"]
            if not isinstance(question, str):
                raise TypeError(f"it must be a str, got {question!r:.80}")
            queries.append(Query(question))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
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


def merge_items(
    ledger: Ledger,
    place: str,
    namespace: str,
    *,
    least: float = 0.5,
    folder: Path | None = None,
    apply: bool = False,
    only: Sequence[str] = (),
) -> Iterator[str]:
    """Pairs of items that may say the same, surest first, each as a line of JSON; read by MiniLM, for which `merging`
    is fitted.

    Args:
        ledger: Where the items are.
        place: The bank's.
        namespace: Whose items.
        least: Of the score, in [0, 1].
        folder: Where the bank keeps its index, which saves encoding the items anew; None: in memory.
        apply: Whether to merge, and to name what was dropped in a last line: those that are automatic, or `only` the
            pairs that drop these ids, which somebody has looked at.
        only: Ids; empty: what is automatic.

    Raises:
        ValueError: A share out of range, no index or one of another encoder, or an id that no pair would drop; nothing
            is merged then.
    """
    if not 0.0 <= least <= 1.0:
        raise ValueError(f"--least must be in [0, 1], got {least}")
    encoder = SentenceEncoder()
    if folder is not None and (problems := _faults(ledger, folder, place)):
        raise ValueError(f"nothing was merged: {problems[0]}; leave out --folder")
    if folder is not None and (described := load_generation(folder)[0].encoder) != encoder.manifest.to_dict():
        raise ValueError(f"the index in {folder} is by encoder {described['name']!r}; leave out --folder")
    with closing(Bank(None, ledger, encoder, name=place, folder=folder)) as bank:
        if not bank.items(namespace):
            _tell_where(ledger, place, namespace)
        proposals = Merging(encoder).propose(bank, namespace, least=least)
        if missing := set(only).difference(one.dropped.id for one in proposals):
            raise ValueError(f"no pair of a score of at least {least} would drop {sorted(missing)}; nothing was merged")
        for one in proposals:
            kept, dropped = ({"id": item.id, "text": item.text} for item in (one.kept, one.dropped))
            told = {"kept": kept, "dropped": dropped, "score": round(one.score, 3), "automatic": one.automatic}
            yield json.dumps(told, ensure_ascii=False)
        if apply:
            pairs = [one for one in proposals if (one.dropped.id in only if only else one.automatic)]
            gone = merge(ledger, pairs, place=place, namespace=namespace, reviewed=bool(only))
            yield json.dumps({"merged": gone})


def _tell_where(ledger: Ledger, place: str, namespace: str | None) -> None:
    """Say on the terminal that there is nothing, and where there is something."""
    held = ledger.namespaces(place=place, holding="")
    whose = "" if namespace is None else f" in namespace {namespace!r}"
    there = f"namespaces that hold something there: {list(held[:20])}"
    print(f"nothing is held{whose} at {place!r}; {there}", file=sys.stderr)


def _encoder(name: str, *dimension: int) -> Encoder:
    return HashEncoder(*dimension) if name == "hash" else SentenceEncoder(name)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m memory_paths.retrieval", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, words in (
        ("verify", "check every checksum of a ledger, and of an index"),
        ("repair", "write what can be trusted of a damaged ledger into a new one"),
        ("compact", "erase what was forgotten from the ledger's files, and from an index if --folder names it"),
        ("export", "print what holds now, one item of JSON a line"),
        ("import", "store the items of a JSONL file; what an agent would keep apart is kept apart"),
        ("merge", "print which items may say the same; --apply merges some of them, --undo takes merges back"),
        ("calibrate", "find the threshold under which questions that nothing answers are seldom offered anything"),
    ):
        command = commands.add_parser(name, help=words, description=words)
        command.add_argument("ledger", help="the ledger's file, or postgresql://...")
        command.add_argument("--place", default="rag", help="name of the bank")
        if name in ("verify", "repair", "compact", "merge"):
            command.add_argument("--folder", type=Path, help="where the bank keeps its index")
        if name == "repair":
            command.add_argument("--to", type=Path, required=True, help="the new ledger's file")
        if name == "import":
            command.add_argument("file", type=Path, help="JSONL, an item a line")
            command.add_argument("--trusted", action="store_true", help="let all in, whatever their trust")
        if name in ("export", "import", "merge", "calibrate"):
            whose = command.add_mutually_exclusive_group()
            whose.add_argument("--namespace", default=DEFAULT_NAMESPACE)
        if name in ("export", "import"):
            about = "everybody's items: each line has its namespace"
            whose.add_argument("--all-namespaces", dest="namespace", action="store_const", const=None, help=about)
        if name == "merge":
            command.add_argument(
                "--least", type=float, default=0.5, help="score from which on pairs are told, in [0, 1]"
            )
            what = command.add_mutually_exclusive_group()
            what.add_argument("--apply", action="store_true", help="merge what is automatic")
            what.add_argument("--undo", nargs="+", metavar="ID", help="hold these dropped items again")
            about = "merge the pairs that drop these, which you have looked at"
            what.add_argument("--only", nargs="+", default=(), metavar="ID", help=about)
        if name == "calibrate":
            command.add_argument("--known", type=Path, required=True, help='JSONL, {"question": ...}: answered')
            command.add_argument("--unknown", type=Path, required=True, help="the same, not answered")
            command.add_argument("--false-offers", type=float, default=0.05, help="so many of these at most, in (0, 1)")
        if name in ("compact", "calibrate"):
            default = {"compact": None, "calibrate": "minilm"}[name]
            command.add_argument("--encoder", default=default, help="hash, minilm, or a folder or hub name")
    given = parser.parse_args(arguments)
    if given.command == "repair" and is_server(given.ledger):
        parser.error("a ledger on a server is repaired by its administrator, from a backup")
    try:
        return _done(given)
    except (ValueError, LedgerError, OSError, ImportError) as error:
        parser.error(" ".join(str(error).split()))


def _done(given: argparse.Namespace) -> int:
    """Do what the command line says; the exit status."""
    if given.command == "verify":
        problems = verify(given.ledger, given.folder, given.place)
        print("\n".join(problems) or "all is well")
        return 1 if problems else 0
    if given.command == "repair":
        print("\n".join(repair(Path(given.ledger), given.to, given.folder)))
        return 0
    if given.command == "import":
        brought = bring_in(given.ledger, given.file, given.place, given.namespace, trusted=given.trusted)
        print(json.dumps(asdict(brought)))
        return 0
    check_ledger(given.ledger)
    if given.command == "compact":
        erased = compact(given.ledger, given.folder, given.place, given.encoder)
        beside = (
            ""
            if given.folder
            else "; an index has their words until its bank has been opened and closed, or --folder names it"
        )
        print(f"{erased} versions erased{beside}")
    elif given.command == "export":
        line = None
        for line in export(given.ledger, given.place, given.namespace):
            print(line)
        if line is None:
            with Ledger(given.ledger) as ledger:
                _tell_where(ledger, given.place, given.namespace)
    elif given.command == "merge":
        with Ledger(given.ledger) as ledger:
            if given.undo and given.folder:
                raise ValueError("--undo reads no index; leave out --folder")
            if given.undo:
                back = undo(ledger, given.undo, place=given.place, namespace=given.namespace)
                print(json.dumps({"held_again": back}))
                return 0
            options = {"least": given.least, "folder": given.folder, "apply": given.apply or bool(given.only)}
            for line in merge_items(ledger, given.place, given.namespace, only=given.only, **options):
                print(line)
    else:
        found = threshold(
            given.ledger,
            given.known,
            given.unknown,
            place=given.place,
            namespace=given.namespace,
            encoder=_encoder(given.encoder),
            false_offers=given.false_offers,
        )
        print(json.dumps(asdict(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
