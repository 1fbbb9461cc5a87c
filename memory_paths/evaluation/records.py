"""Records: one immutable Parquet part per stage, from which every figure can be computed again without a model.

A part is written under a temporary name, synced, renamed, and the folder synced: a part that has its name is whole.
Values carry a checksum. A finished run may have its parts made into one file of each kind (`compact`). This file knows
what a row looks like; it knows nothing of agents, streams or figures.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory_paths.evaluation.costs import COMPONENTS
from memory_paths.files import write_durably

if TYPE_CHECKING:
    import pandas
    import pyarrow

RECORDS = "records"
ANSWERS = "answers"
WRITES = "writes"
STATES = "states"
HARNESS = "harness"
SETTINGS = "settings.json"
_KEYS = {
    ANSWERS: ("stage", "arm", "key"),
    WRITES: ("stage",),
    STATES: ("stage",),
    HARNESS: ("stage", "task", "metric", "document"),
}
_TEXT, _WHOLE, _REAL, _TRUTH, _TEXTS = "string", "int64", "float64", "bool", "texts"
_COSTS = {
    f"{part}_{name}": kind
    for part in COMPONENTS
    for name, kind in (("tokens", _WHOLE), ("flops", _REAL), ("seconds", _REAL))
} | {"wall_seconds": _REAL, "joules": _REAL}
_COLUMNS: Mapping[str, Mapping[str, str]] = {
    ANSWERS: {
        "stage": _WHOLE,  # 0: before any learning
        "arm": _TEXT,  # reading: the way the path asks; skill: with given notes and without the path's recall
        "key": _TEXT,
        "kind": _TEXT,
        "experience": _WHOLE,  # from 1; 0: of none
        "uniform": _TRUTH,  # of the stage's proportional sample; the others were added for one figure only
        "cluster": _TEXT,
        "question": _TEXT,
        "ids": _TEXTS,
        "targets": _TEXTS,
        "held": _TRUTH,  # whether the path holds every one of the ids
        "answer": _TEXT,
        "correct": _REAL,  # what the answer is worth, in [0, 1], see memory_paths.evaluation.scoring
        "token_f1": _REAL,
        "word_accuracy": _REAL,  # of a continuation: the share of its words that are in their place
        "stale": _TRUTH,  # answered with a value that was right once; null where there is none
        "confidence": _REAL,
        "recalls": _TEXTS,  # ids of all that was found, best first
        "shown": _TEXTS,  # ids of what stood in the prompt
        "answer_offered": _TRUTH,  # whether an accepted answer stands in the words of what was found
        "answer_shown": _TRUTH,  # whether one stands in the words of what stood in the prompt
        "prompt_hash": _TEXT,
        "loglikelihood_per_token": _REAL,  # of the first target, in nats
        "choice_correct": _TRUTH,
        "condition": _TEXT,  # hash of all that the answer depends on beside the question
        "reused": _TRUTH,  # taken from an earlier stage of the same condition, at no cost
        "reason": _TEXT,  # why there is no answer
        **_COSTS,
    },
    WRITES: {
        "stage": _WHOLE,
        "experience_name": _TEXT,
        "items": _WHOLE,
        "skipped": _TEXTS,  # ids of items that fit at no time
        "weights_hash": _TEXT,
        "state_hash": _TEXT,
        "stored_bytes": _WHOLE,
        "reason": _TEXT,  # why nothing was written
        "measures": _TEXT,  # JSON: what the paths measured themselves, {path: {name: figure}}
        **_COSTS,
    },
    STATES: {
        "stage": _WHOLE,
        "disk_bytes": _WHOLE,  # of the files that the agent was saved as, databases with all their own overhead
    },
    HARNESS: {
        "stage": _WHOLE,
        "task": _TEXT,
        "metric": _TEXT,
        "document": _WHOLE,
        "document_hash": _TEXT,
        "aggregation": _TEXT,  # what the harness calls the way from the documents to the figure
        "more_is_better": _TRUTH,
        "value": _REAL,  # what the document is worth; null where the figure is no mean over documents
        "weight": _REAL,
        "condition": _TEXT,  # hash of the weights that answered
        "reused": _TRUTH,
    },
}
_ADDED_LATER = (
    "shown",
    "answer_offered",
    "answer_shown",
    "joules",
    "word_accuracy",
)  # null where the records are from before they existed
_DIGEST = "blake2b"
_ADVICE = "delete it, and the run will ask its stage again"
_ADVICE_WHOLE = "start the run again in a new folder"
_STAGES = "stages"
_TIMED = ("seconds", "joules")


class RecordError(ValueError):
    """A part of the records is damaged, missing or not what it should be."""


def write_part(folder: Path, kind: str, stage: int, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write the rows of one stage; a part that is already there stays as it is.

    Args:
        folder: The run folder.
        kind: `ANSWERS`, `WRITES`, `STATES` or `HARNESS`.
        stage: Number of the stage, from 0.
        rows: By column; a missing column is null.

    Returns:
        The file.
    """
    import pyarrow
    import pyarrow.parquet

    file = part(folder, kind, stage)
    if file.exists():
        return file
    schema = _schema(kind)
    columns = [pyarrow.array([row.get(column.name) for row in rows], type=column.type) for column in schema]
    table = pyarrow.table(columns, schema=schema)
    table = table.replace_schema_metadata({_DIGEST: _digest(table)})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd")
    write_file(file, buffer.getvalue())
    return file


def write_file(file: Path, content: bytes) -> None:
    """Bring a file into being as a whole or not at all."""
    write_durably(file, content, part="records")


def part(folder: Path, kind: str, stage: int) -> Path:
    """Where the part of a stage lies."""
    return Path(folder) / RECORDS / f"{kind}-{stage:04d}.parquet"


def compact(folder: str | Path) -> None:
    """Make one file of each kind out of the parts of a finished run. Whenever it is stopped nothing is lost: the parts
    go only when both files are there, and a file stands for the parts that it was made of.

    Raises:
        RecordError: See `read_records`.
    """
    import pyarrow
    import pyarrow.parquet

    root = Path(folder)
    kinds = [kind for kind in _COLUMNS if _parts(root, kind)]
    for kind in kinds:
        if not _whole(root, kind).exists():
            stages = len(_parts(root, kind))
            table = _read(root, kind).combine_chunks()
            table = table.replace_schema_metadata({_DIGEST: _digest(table), _STAGES: str(stages)})
            buffer = pyarrow.BufferOutputStream()
            pyarrow.parquet.write_table(table, buffer, compression="zstd")
            write_file(_whole(root, kind), buffer.getvalue().to_pybytes())
    for kind in kinds:
        for file in _parts(root, kind):
            file.unlink()


def export(folder: str | Path, file: str | Path) -> int:
    """Write every answer of a run, or of all runs of a sweep, as JSON lines, with `run`, `path` and `seed` as
    `load_records` has them; returns how many they are.

    Raises:
        RecordError: See `read_records`.
    """
    count = 0
    with Path(file).open("w", encoding="utf-8") as lines:
        for table, named in _runs(Path(folder)):
            for batch in table.to_batches(max_chunksize=10_000):
                for row in batch.to_pylist():
                    lines.write(json.dumps({**named, **row}, ensure_ascii=False) + "\n")
            count += len(table)
    return count


def finished_stages(folder: Path) -> int:
    """How many stages, counted from stage 0, have their part of answers."""
    whole = _whole(Path(folder), ANSWERS)
    if whole.exists():
        import pyarrow
        import pyarrow.parquet

        try:
            return int(pyarrow.parquet.read_schema(whole).metadata[_STAGES.encode()])
        except (pyarrow.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise RecordError(f"{whole} is damaged ({error}); {_ADVICE_WHOLE}") from error
    stage = 0
    while part(folder, ANSWERS, stage).exists():
        stage += 1
    return stage


def read_records(folder: str | Path) -> pyarrow.Table:
    """Every answer of a run, in order of stages.

    Raises:
        RecordError: No records there, or a damaged part; the file is named.
    """
    return _read(Path(folder), ANSWERS)


def read_writes(folder: str | Path) -> pyarrow.Table:
    """What each stage wrote and what that cost; raises as `read_records` does."""
    return _read(Path(folder), WRITES)


def disk_bytes(folder: str | Path) -> int | None:
    """Of the files that the agent was saved as after the last stage; None where it was not saved.

    Raises:
        RecordError: A damaged part.
    """
    root = Path(folder)
    if not _whole(root, STATES).exists() and not _parts(root, STATES):
        return None
    return int(_read(root, STATES)["disk_bytes"][-1].as_py())


def read_harness(folder: str | Path) -> pyarrow.Table:
    """What tasks of lm-evaluation-harness came to, if any were asked; raises as `read_records` does."""
    return _read(Path(folder), HARNESS)


def load_records(folder: str | Path) -> pandas.DataFrame:
    """Every answer of a run, or of all runs of a sweep, as a DataFrame.

    Beside the columns of `read_records`: `run` (the folder, as seen from `folder`), and `path` and `seed` of the run.

    Raises:
        ImportError: pandas is not installed.
        RecordError: See `read_records`.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError("load_records needs pandas: pip install pandas") from error
    frames = [table.to_pandas().assign(**named) for table, named in _runs(Path(folder))]
    return pandas.concat(frames, ignore_index=True)


def record_differences(first: str | Path, second: str | Path) -> list[str]:
    """What two runs recorded differently, in words, the columns that measure time or energy left out. Empty: nothing.

    Raises:
        RecordError: See `read_records`.
    """
    found = []
    for kind in (ANSWERS, WRITES, HARNESS):
        one, other = (_comparable(_read(Path(folder), kind), kind) for folder in (first, second))
        if one.num_rows != other.num_rows:
            found.append(f"{kind}: {one.num_rows} rows against {other.num_rows}")
            continue
        for name in one.column_names:
            pairs = zip(one[name].to_pylist(), other[name].to_pylist(), strict=True)
            unequal = sum(left != right for left, right in pairs)
            if unequal:
                found.append(f"{kind}: {name} differs in {unequal} of {one.num_rows} rows")
    return found


def same_records(first: str | Path, second: str | Path) -> bool:
    """Whether two runs recorded the same, the columns that measure time or energy left out."""
    return not record_differences(first, second)


def fingerprint(*parts: str) -> str:
    """A short hash of texts, unambiguous as to where one ends and the next begins."""
    digest = hashlib.sha256()
    for text in parts:
        digest.update(f"{len(text)}:{text}".encode())
    return digest.hexdigest()[:16]


def _comparable(table: pyarrow.Table, kind: str) -> pyarrow.Table:
    kept = [name for name in table.column_names if not name.endswith(_TIMED)]
    return table.select(kept).sort_by([(name, "ascending") for name in _KEYS[kind]])


def _runs(root: Path) -> Iterator[tuple[pyarrow.Table, dict[str, Any]]]:
    """The answers of each run below a folder, with what tells it from the others."""
    begun = [settings.parent.parent for settings in sorted(root.rglob(f"{RECORDS}/{SETTINGS}"))]
    for run in [run for run in begun if finished_stages(run)] or [root]:
        table = read_records(run)
        settings = json.loads((run / RECORDS / SETTINGS).read_text(encoding="utf-8"))
        yield table, {"run": str(run.relative_to(root)), "path": settings["path"], "seed": settings["seed"]}


def _whole(folder: Path, kind: str) -> Path:
    return folder / RECORDS / f"{kind}.parquet"


def _parts(folder: Path, kind: str) -> list[Path]:
    return sorted((folder / RECORDS).glob(f"{kind}-*.parquet"))


def _read(folder: Path, kind: str) -> pyarrow.Table:
    import pyarrow
    import pyarrow.parquet

    whole = _whole(folder, kind)
    files = [whole] if whole.exists() else _parts(folder, kind)
    advice = _ADVICE_WHOLE if whole.exists() else _ADVICE
    if not files and kind == HARNESS:
        return _schema(kind).empty_table()
    if not files:
        raise RecordError(f"no records of {kind} in {folder}; a run leaves them in its subfolder {RECORDS}/")
    tables = []
    for file in files:
        try:
            table = pyarrow.parquet.read_table(file)
            table.validate(full=True)  # a text that is no Unicode any more is only noticed when it is looked at
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise RecordError(f"the records part {file} is damaged ({error}); {advice}") from error
        complete = _with_added(table, kind)
        if not complete.schema.equals(_schema(kind)):
            raise RecordError(f"the records part {file} has other columns than this version writes; start a new folder")
        if (table.schema.metadata or {}).get(_DIGEST.encode()) != _digest(table).encode():
            raise RecordError(f"the records part {file} is damaged (its checksum is another one); {advice}")
        tables.append(complete.replace_schema_metadata())
    return pyarrow.concat_tables(tables)


def _with_added(table: pyarrow.Table, kind: str) -> pyarrow.Table:
    import pyarrow

    schema = _schema(kind)
    for place, column in enumerate(schema):
        if column.name in _ADDED_LATER and column.name not in table.column_names:
            table = table.add_column(min(place, table.num_columns), column, pyarrow.nulls(len(table), column.type))
        elif column.name == "correct" and column.name in table.column_names:  # once it was true or false
            at = table.schema.get_field_index(column.name)
            table = table.set_column(at, column, table[column.name].cast(column.type))
    return table


def _digest(table: pyarrow.Table) -> str:
    """Of the values themselves: Parquet's own checksums cover pages but not their headers."""
    digest = hashlib.blake2b(digest_size=32)
    for name in table.column_names:
        digest.update(name.encode())
        for part in _values(table[name].combine_chunks()):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
    return digest.hexdigest()


def _values(array: pyarrow.Array) -> Iterator[memoryview]:
    """What an array holds as bytes, the same however it came about: which values are there, how long each text or list
    is, and all values one after another."""
    import pyarrow
    import pyarrow.compute as compute

    yield memoryview(compute.is_valid(array).to_numpy(zero_copy_only=False))
    if pyarrow.types.is_list(array.type):
        yield memoryview(compute.fill_null(compute.list_value_length(array), 0).to_numpy())
        yield from _values(compute.list_flatten(array))
    elif pyarrow.types.is_string(array.type):
        present = compute.drop_null(array)
        lengths = compute.binary_length(present).to_numpy()
        yield memoryview(lengths)
        if len(present):  # one text after another, from where the first one begins
            _, offsets, texts = present.buffers()
            first = memoryview(offsets).cast("i")[present.offset]
            yield memoryview(texts)[first : first + int(lengths.sum())]
    else:
        filled = compute.fill_null(array, False if pyarrow.types.is_boolean(array.type) else 0)
        yield memoryview(filled.to_numpy(zero_copy_only=False))


def _schema(kind: str) -> pyarrow.Schema:
    import pyarrow

    types = {
        _TEXT: pyarrow.string(),
        _WHOLE: pyarrow.int64(),
        _REAL: pyarrow.float64(),
        _TRUTH: pyarrow.bool_(),
        _TEXTS: pyarrow.list_(pyarrow.string()),
    }
    return pyarrow.schema([(name, types[column]) for name, column in _COLUMNS[kind].items()])
