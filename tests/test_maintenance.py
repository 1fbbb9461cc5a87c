"""Looking after a ledger: damage is told, what is whole is saved, what was forgotten leaves every file."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from conftest import BERGEN, OSLO

from memory_paths.ledger import ERASED, Ledger, LedgerError, salvage
from memory_paths.retrieval.__main__ import main
from memory_paths.retrieval.bank import Bank
from memory_paths.retrieval.encoder import HashEncoder
from memory_paths.retrieval.generation import MANIFEST
from memory_paths.types import Knowledge, Query

SECRET = Knowledge("secret", "Zanzibar quokka xylophone.", key="quokka/key", source="quokka.txt")
ITEMS = [Knowledge(f"{number}", f"Fact number {number} is a fact.") for number in range(200)]


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Path, Path]:
    """A ledger with a bank's index beside it."""
    file, folder = tmp_path / "facts.sqlite", tmp_path / "index"
    with Ledger(file) as ledger:
        bank = Bank(None, ledger, HashEncoder(), folder=folder, method="fusion")
        bank.write([OSLO, SECRET, *ITEMS], "default")
        bank.write([BERGEN], "default")
        bank.close()
    return file, folder


def everything_in(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_what_was_forgotten_leaves_every_file_when_it_is_compacted(kept: tuple[Path, Path], tmp_path: Path) -> None:
    file, folder = kept
    assert b"quokka" in everything_in(tmp_path)
    with Ledger(file) as ledger:
        bank = Bank(None, ledger, HashEncoder(), folder=folder, method="fusion")
        bank.forget(["secret"], "default")
        assert ledger.compact() == 1
        assert ledger.compact() == 0
        bank.flush()
        assert b"quokka" not in everything_in(tmp_path)
        assert bank.verify() == []
        (gone,) = ledger.history("secret", namespace="default")
        assert (gone.text, gone.item.key, gone.item.source, gone.reason) == (ERASED, "", "", "forgotten")
        assert ledger.active()[-1] == BERGEN
        bank.write([SECRET], "default")
        assert bank.get(["secret"], "default") == {"secret": SECRET}
        bank.close()


def test_an_index_that_still_has_the_words_of_an_erased_text_lets_go_of_them(kept: tuple[Path, Path]) -> None:
    file, folder = kept
    with Ledger(file) as ledger:  # as a crash between the ledger's compaction and the next snapshot leaves them
        ledger.remove(["secret"], place="rag", namespace="default", reason="forgotten")
        ledger.compact()
        bank = Bank(None, ledger, HashEncoder(), folder=folder, method="bm25")
        (reading,) = bank.read([Query("Zanzibar quokka, or fact number 5?", "default")])
        assert reading.recalls[0].item.id == "5"
        assert bank.verify() == []
        bank.close()
    assert b"quokka" not in everything_in(folder)


def test_compaction_says_so_where_a_reader_still_holds_old_pages(kept: tuple[Path, Path]) -> None:
    file, _ = kept
    with Ledger(file) as ledger:
        ledger.remove(["secret"], place="rag", namespace="default", reason="forgotten")
        reader = sqlite3.connect(file, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM version").fetchone()
        with pytest.raises(LedgerError, match=r"still reading|locked"):
            ledger.compact()
        reader.execute("COMMIT")
        reader.close()
        ledger.compact()
    assert all(b"quokka" not in part.read_bytes() for part in file.parent.glob("facts.sqlite*"))


def test_each_intact_version_of_a_damaged_ledger_is_saved_as_it_stood(kept: tuple[Path, Path], tmp_path: Path) -> None:
    file, _ = kept
    raw = sqlite3.connect(file)
    raw.execute("UPDATE version SET content = replace(content, 'number 7 ', 'number 8 ') WHERE id = '7'")
    raw.execute("DELETE FROM version WHERE id = '9'")
    raw.commit()
    raw.close()
    saved, lost = salvage(file, tmp_path / "new.sqlite")
    assert saved == 201
    assert len(lost) == 2
    assert "does not match its checksum" in lost[0]
    assert "is missing" in lost[1]
    with Ledger(tmp_path / "new.sqlite") as ledger:
        assert ledger.verify() == []
        assert ledger.active() == [SECRET, *(item for item in ITEMS if item.id not in ("7", "9")), BERGEN]
        (old,) = ledger.history("ada-1", namespace="default")
        assert (old.reason, old.superseded_by) == ("superseded", "ada-2")
    with pytest.raises(FileExistsError):
        salvage(file, tmp_path / "new.sqlite")
    with pytest.raises(FileNotFoundError):
        salvage(tmp_path / "nothing", tmp_path / "newer.sqlite")


def test_a_ledger_with_a_page_of_rubbish_gives_up_what_lies_elsewhere(kept: tuple[Path, Path], tmp_path: Path) -> None:
    file, _ = kept
    with Ledger(file) as ledger:
        ledger.compact()  # everything into the one file
    raw = sqlite3.connect(file)
    raw.execute("PRAGMA journal_mode = DELETE")
    raw.close()
    data = bytearray(file.read_bytes())
    start = data.index(b"Fact number 100 is") // 4096 * 4096
    data[start : start + 4096] = b"\xff" * 4096
    file.write_bytes(data)
    with pytest.raises(LedgerError, match="damaged"):
        Ledger(file)
    assert main(["verify", str(file)]) == 1
    assert main(["repair", str(file), "--to", str(tmp_path / "new.sqlite")]) == 0
    with Ledger(tmp_path / "new.sqlite") as ledger:
        assert ledger.verify() == []
        held = {item.id for item in ledger.active()}
        assert 150 < len(held) < 202
        assert "100" not in held


def test_the_commands_verify_export_and_import(
    kept: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = kept
    assert main(["verify", str(file), "--folder", str(folder)]) == 0
    assert "all is well" in capsys.readouterr().out
    assert main(["export", str(file)]) == 0
    lines = capsys.readouterr().out
    (tmp_path / "items.jsonl").write_text(lines)
    for new in (202, 0):
        command = ["import", str(tmp_path / "copy.sqlite"), str(tmp_path / "items.jsonl"), "--namespace", "mine"]
        assert main(command) == 0
        assert capsys.readouterr().out.strip() == f'{{"items": 202, "new": {new}}}'
    assert main(["export", str(tmp_path / "copy.sqlite"), "--namespace", "mine"]) == 0
    assert capsys.readouterr().out == lines
    (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes().replace(b"default", b"defaulT"))
    assert main(["verify", str(file), "--folder", str(folder)]) == 1
    assert "does not match its own checksum" in capsys.readouterr().out


def test_a_file_with_a_bad_line_is_refused_whole(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text(f'{OSLO.to_json()}\n{{"id": "x"}}\n')
    with pytest.raises(ValueError, match=r"line 2 of .* is no item"):
        main(["import", str(tmp_path / "facts.sqlite"), str(tmp_path / "items.jsonl")])
    with Ledger(tmp_path / "facts.sqlite") as ledger:
        assert ledger.active() == []
    with pytest.raises(SystemExit):
        main(["verify", str(tmp_path / "nothing.sqlite")])
