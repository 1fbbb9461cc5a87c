"""Items that are overwritten under a name, as documents and entries of key-value stores are.

The bank lets an id stand for one content. A name gets an item of its own for each content, all of them under one key:
the later one supersedes the earlier in one transaction, and what was overwritten stays for questions about the past.
This file knows nothing of whose names they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from memory_paths.ledger import Version, check_ids
from memory_paths.types import Knowledge, KnowledgeKind

from .bank import Bank
from .postgres import PostgresBank

HASH_LENGTH = 16  # hex digits of an item's content in its id


@dataclass(frozen=True)
class Names:
    """The names of one sort in one namespace of a bank.

    Args:
        bank: Where the items are.
        sort: What the names are of, such as "document"; sorts do not see one another.
    """

    bank: Bank | PostgresBank
    sort: str

    def item(
        self, name: str, text: str, *, kind: KnowledgeKind, cue: str = "", metadata: Mapping[str, Any] | None = None
    ) -> Knowledge:
        """The item that holds this content under a name."""
        key = f"{self.sort}:{name}"
        draft = Knowledge(key, text, kind, key, cue=cue, metadata=metadata or {})
        return replace(draft, id=f"{key}#{draft.content_hash()[:HASH_LENGTH]}")

    def of(self, item: Knowledge) -> str | None:
        """The name of an item, or None if it has none of this sort."""
        named = item.key.startswith(f"{self.sort}:") and item.id[:-HASH_LENGTH] == f"{item.key}#"
        return item.key.removeprefix(f"{self.sort}:") if named else None

    def versions(self, name: str, namespace: str) -> list[Version]:
        """What is held under a name and what that replaced, in the order of writing."""
        found = self.bank.beginning(f"{self.sort}:{name}#", namespace)
        return [version for version in found if self.of(version.item) == name]

    def held(self, namespace: str, *, prefix: str = "") -> dict[str, list[Version]]:
        """All names that begin so and hold something, with their versions, in the order of writing."""
        found: dict[str, list[Version]] = {}
        for version in self.bank.beginning(f"{self.sort}:{prefix}", namespace):
            if (name := self.of(version.item)) is not None and name.startswith(prefix):
                found.setdefault(name, []).append(version)
        return {name: versions for name, versions in found.items() if current(versions)}

    def get(self, names: Sequence[str], namespace: str) -> dict[str, Knowledge]:
        """What is held under these names; those that hold nothing are left out."""
        found = {name: current(self.versions(name, namespace)) for name in check_ids(names)}
        return {name: version.item for name, version in found.items() if version is not None}

    def forget(self, names: Sequence[str], namespace: str) -> tuple[str, ...]:
        """Stop holding these names and all that ever stood under them. Returns those that held something."""
        versions = {name: self.versions(name, namespace) for name in check_ids(names)}
        self.bank.forget([version.item.id for found in versions.values() for version in found], namespace)
        return tuple(name for name, found in versions.items() if current(found))


def current(versions: Sequence[Version]) -> Version | None:
    """The version that is held, if one is."""
    return next((version for version in reversed(versions) if version.reason is None), None)
