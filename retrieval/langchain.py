"""The bank as LangChain knows such things: embeddings, vector store, retriever, document index, key-value store.

Every asynchronous method runs its synchronous twin in a thread: nothing of ours is done on the event loop's. This file
imports langchain-core and is itself imported only by those who want it; see `memory_paths.retrieval.langgraph` for the
store of LangGraph, `memory_tools` and `middleware` for agents.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.indexing import UpsertResponse
from langchain_core.indexing.base import DeleteResponse, DocumentIndex
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables.config import run_in_executor
from langchain_core.stores import BaseStore
from langchain_core.vectorstores import VectorStore

from memory_paths.ledger import Ledger
from memory_paths.types import DEFAULT_NAMESPACE, Knowledge, Query

from .bank import Bank, Method
from .encoder import Encoder, EncoderManifest
from .named import Names
from .postgres import PostgresBank

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

Namespace = str | Callable[[], str]  # a function is asked at each call, in the context of the run


def named(namespace: Namespace) -> str:
    """The namespace itself, or what the function says now."""
    return namespace() if callable(namespace) else namespace


class EncoderEmbeddings(Embeddings):
    """An encoder of ours as LangChain's Embeddings: vectors of length 1, queries and documents each in their own way.

    Args:
        encoder: What turns texts into vectors.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector for each text."""
        vectors: list[list[float]] = self._encoder.encode_documents(texts).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """The vector of a question."""
        vector: list[float] = self._encoder.encode_queries([text])[0].tolist()
        return vector


class EmbeddingsEncoder:
    """LangChain's Embeddings as an encoder of ours; vectors are brought to length 1. What it reads is counted in words.

    Args:
        embeddings: Any LangChain Embeddings.
        name: Which model it is. A stored index is compared by it, so two models must not share one; the default is
            the class, which suffices where the index is not stored.

    Raises:
        ValueError: The embeddings give no vector of finite numbers.
    """

    def __init__(self, embeddings: Embeddings, *, name: str = "") -> None:
        self._embeddings = embeddings
        probe = np.asarray(embeddings.embed_query("probe"), dtype=np.float32)
        if probe.ndim != 1 or not len(probe) or not np.isfinite(probe).all():
            raise ValueError(f"{type(embeddings).__name__} gives no vector of finite numbers for a text, but {probe!r}")
        self.manifest = EncoderManifest(
            name=name or type(embeddings).__qualname__, dimension=len(probe), weights_sha256="", max_tokens=0
        )
        self.flops_per_token = 0.0

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """float32 [len(texts), dimension], each row of length 1."""
        return self._rows([self._embeddings.embed_query(text) for text in texts])

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        """float32 [len(texts), dimension], each row of length 1."""
        return self._rows(self._embeddings.embed_documents(list(texts)) if texts else [])

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """The number of words of each text."""
        return [len(text.split()) for text in texts]

    def _rows(self, vectors: Sequence[Sequence[float]]) -> Vectors:
        return unit_rows(np.asarray(vectors, dtype=np.float32).reshape(len(vectors), self.manifest.dimension))


def unit_rows(vectors: Vectors) -> Vectors:
    """Rows of length 1; one of zeros becomes the first axis, so that every text has a direction."""
    vectors = vectors.copy()
    vectors[~vectors.any(axis=1), 0] = 1.0
    scaled: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


class BankVectorStore(VectorStore):
    """One namespace of a bank as a LangChain VectorStore.

    A document becomes an item of kind "passage" with the document's metadata. One that is added under an id that is
    there supersedes it in one transaction, and what was overwritten stays for questions with `as_of`. Other items of
    the namespace are found too, under their own ids. Scores are cosines in [-1, 1], higher is better.

    Searches take `filter`, as `Query.where` has it, and `kinds` and `as_of` of `Query`; the filter comes before the
    search, so that k documents come back whenever k exist. What an application stores here passes unread, as trusted.

    Args:
        bank: Where the documents are. Who made it closes it.
        namespace: Whose documents these are.
    """

    def __init__(self, bank: Bank | PostgresBank, namespace: str) -> None:
        self.bank = bank
        self.namespace = namespace
        self._names = Names(bank, "document")

    @property
    def embeddings(self) -> Embeddings:
        """The bank's encoder."""
        return EncoderEmbeddings(self.bank.encoder)

    def add_documents(self, documents: list[Document], *, ids: list[str] | None = None, **options: Any) -> list[str]:
        """Store documents, all or none; they are on disk, if the bank's ledger is in a file, when this returns.

        Args:
            documents: What to store. Those without an id get a new one.
            ids: Ids to be used in place of the documents' own.

        Returns:
            The ids, in order.

        Raises:
            ValueError: As many ids as documents are needed; a document without text; an id that belongs to an item
                which was not stored as a document.
            TypeError: Metadata that JSON cannot hold.
        """
        if ids is not None and len(ids) != len(documents):
            raise ValueError(f"give one id for each document, got {len(ids)} ids and {len(documents)} documents")
        given = ids if ids is not None else [document.id for document in documents]
        names = [name or str(uuid.uuid4()) for name in given]
        if taken := self.bank.get(names, self.namespace):
            raise ValueError(
                f"ids {sorted(taken)} belong to items that are no documents; delete them first, or take other ids"
            )
        items = [
            self._names.item(name, document.page_content, kind="passage", metadata=document.metadata)
            for name, document in zip(names, documents, strict=True)
        ]
        self.bank.write(items, self.namespace)
        return names

    def delete(self, ids: list[str] | None = None, **options: Any) -> bool:
        """Forget documents, with all that ever stood under their ids; those that are not there are ignored.

        Args:
            ids: Ids of documents, or of other items; None: all documents, and no other item.
        """
        names = list(self._names.held(self.namespace)) if ids is None else ids
        self.forget(names)
        return True

    def forget(self, ids: Sequence[str]) -> list[str]:
        """As `delete`; returns the ids that were there."""
        others = self.bank.forget(ids, self.namespace).ids
        gone = {*self._names.forget(ids, self.namespace), *others}
        return [id for id in dict.fromkeys(ids) if id in gone]

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents with these ids, in their order; those that are not there are left out."""
        found = {**self.bank.get(ids, self.namespace), **self._names.get(ids, self.namespace)}
        return [self._document(found[id]) for id in ids if id in found]

    def similarity_search(self, query: str, k: int = 4, **options: Any) -> list[Document]:
        """The k nearest documents, best first. See the class for `options`."""
        return [document for document, _ in self._search(query, k, **options)]

    def similarity_search_with_score(self, query: str, k: int = 4, **options: Any) -> list[tuple[Document, float]]:
        """The k nearest documents with their cosines, best first."""
        return self._search(query, k, **options)

    def similarity_search_by_vector(self, embedding: list[float], k: int = 4, **options: Any) -> list[Document]:
        """The k documents nearest to a vector, best first."""
        return [document for document, _ in self._search("", k, vector=embedding, **options)]

    def similarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, **options: Any
    ) -> list[tuple[Document, float]]:
        """The k documents nearest to a vector with their cosines, best first."""
        return self._search("", k, vector=embedding, **options)

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **options: Any
    ) -> list[Document]:
        """k documents that are near and unlike one another: 1 for `lambda_mult` is nearness alone, 0 difference alone.

        The bank chooses how many candidates it weighs; `fetch_k` is accepted for other stores' sake.
        """
        return [document for document, _ in self._search(query, k, diversity=1 - lambda_mult, **options)]

    def max_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **options: Any
    ) -> list[Document]:
        """As `max_marginal_relevance_search`, for a vector."""
        found = self._search("", k, vector=embedding, diversity=1 - lambda_mult, **options)
        return [document for document, _ in found]

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        ledger: Ledger | None = None,
        namespace: str = "",
        **options: Any,
    ) -> BankVectorStore:
        """A store on a bank of its own that holds these texts.

        Args:
            texts: What to store.
            embedding: What turns texts into vectors.
            metadatas: One for each text.
            ids: One for each text.
            ledger: Where the documents are kept; None: in memory, until the store is gone.
            namespace: Whose documents these are. It may be left out in memory alone, where nobody else's can be.
            options: Of `Bank`, such as `name` and `folder`.

        Raises:
            ValueError: A ledger without a namespace: whoever left it out, too, would find the same documents.
        """
        if ledger is not None and not namespace:
            raise ValueError("documents in a ledger are somebody's: give from_texts a namespace beside the ledger")
        bank = Bank(None, Ledger() if ledger is None else ledger, EmbeddingsEncoder(embedding), **options)
        store = cls(bank, namespace or DEFAULT_NAMESPACE)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return lambda cosine: min(1.0, max(0.0, cosine))

    def _search(
        self, query: str, k: int, *, vector: Sequence[float] | None = None, diversity: float = 0.0, **options: Any
    ) -> list[tuple[Document, float]]:
        vectors = None if vector is None else unit_rows(np.asarray([vector], dtype=np.float32))
        (reading,) = self.bank.search(
            [_query(query, self.namespace, **options)],
            top_k=k,
            method="dense",
            diversity=diversity,
            vectors=vectors,
        )
        return [(self._document(recall.item), recall.score) for recall in reading.recalls]

    def _document(self, item: Knowledge) -> Document:
        return _document(self._names, item)


class BankRetriever(BaseRetriever):
    """One namespace of a bank as a LangChain retriever: whatever it holds, as documents, best first.

    `k`, `filter`, `kinds` and `as_of` may also be given with `invoke`.
    """

    bank: Bank | PostgresBank
    """Where the items are."""
    namespace: Namespace
    """Whose items these are: a name, or a function that says it within a run."""
    k: int = 4
    """Most documents to return."""
    filter: dict[str, Any] | None = None
    """Only items whose metadata fit, as `Query.where` has it."""
    method: Method = "auto"
    """How items are found, see `Bank.search`."""
    diversity: float = 0.0
    """How much likeness to those before counts against an item, in [0, 1]."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None, **options: Any
    ) -> list[Document]:
        asked = _query(query, named(self.namespace), **{"filter": self.filter, **options})
        (reading,) = self.bank.search(
            [asked], top_k=self.k if k is None else k, method=self.method, diversity=self.diversity
        )
        names = Names(self.bank, "document")
        return [_document(names, recall.item) for recall in reading.recalls]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **options: Any
    ) -> list[Document]:
        return await run_in_executor(
            None, self._get_relevant_documents, query, run_manager=run_manager.get_sync(), **options
        )


class BankDocumentIndex(DocumentIndex):
    """One namespace of a bank as LangChain's DocumentIndex (which is in beta): a `BankVectorStore` that is a retriever.
    What an application stores here passes unread, as trusted.

    Raises:
        ValueError: `delete` without ids.
    """

    store: BankVectorStore
    """Where the documents are."""
    k: int = 4
    """Most documents to return."""

    def upsert(self, items: Sequence[Document], /, **options: Any) -> UpsertResponse:
        """Store documents, all or none, in place of those with the same ids."""
        return UpsertResponse(succeeded=self.store.add_documents(list(items)), failed=[])

    def delete(self, ids: list[str] | None = None, **options: Any) -> DeleteResponse:
        """Forget documents; those that are not there are ignored."""
        if ids is None:
            raise ValueError("name the ids to delete; to delete all documents, call `delete` of the vector store")
        gone = self.store.forget(ids)
        return DeleteResponse(succeeded=gone, num_deleted=len(gone), failed=[], num_failed=0)

    def get(self, ids: Sequence[str], /, **options: Any) -> list[Document]:
        """The documents with these ids, in their order; those that are not there are left out."""
        return self.store.get_by_ids(ids)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None, **options: Any
    ) -> list[Document]:
        return self.store.similarity_search(query, self.k if k is None else k, **options)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **options: Any
    ) -> list[Document]:
        return await run_in_executor(
            None, self._get_relevant_documents, query, run_manager=run_manager.get_sync(), **options
        )


class BankKeyValueStore(BaseStore[str, Any]):
    """One namespace of a bank as langchain-core's BaseStore: values by key, each anything that JSON can hold but null.

    Values are items, and questions find them: give such a store a namespace of its own. What an application stores
    here passes unread, as trusted.

    Args:
        bank: Where the values are. Who made it closes it.
        namespace: Whose values these are.
    """

    def __init__(self, bank: Bank | PostgresBank, namespace: str) -> None:
        self.bank = bank
        self.namespace = namespace
        self._names = Names(bank, "value")

    def mget(self, keys: Sequence[str]) -> list[Any]:
        """The value of each key, None where there is none."""
        found = self._names.get(keys, self.namespace)
        return [found[key].metadata["value"] if key in found else None for key in keys]

    def mset(self, key_value_pairs: Sequence[tuple[str, Any]]) -> None:
        """Store values in one transaction, in place of what stood under the same keys.

        Raises:
            TypeError: A value that JSON cannot hold.
        """
        items = [
            self._names.item(
                key, json.dumps(value, ensure_ascii=False, default=repr), kind="passage", metadata={"value": value}
            )
            for key, value in key_value_pairs
        ]
        self.bank.write(items, self.namespace)

    def mdelete(self, keys: Sequence[str]) -> None:
        """Forget keys, with all that ever stood under them; those that are not there are ignored."""
        self._names.forget(keys, self.namespace)

    def yield_keys(self, *, prefix: str | None = None) -> Iterator[str]:
        """The keys that begin so, in the order in which they were first written."""
        yield from self._names.held(self.namespace, prefix=prefix or "")


def _document(names: Names, item: Knowledge) -> Document:
    return Document(id=names.of(item) or item.id, page_content=item.text, metadata=dict(item.metadata))


def _query(text: str, namespace: str, *, filter: Mapping[str, Any] | None = None, **options: Any) -> Query:
    if filter is not None and not isinstance(filter, Mapping):
        raise TypeError(f"filter must be a dict of metadata, as Query.where has it, got {type(filter).__name__}")
    if strange := [name for name in filter or {} if name.startswith("$")]:
        raise ValueError(f"filter names metadata, and all of it must fit, got {strange}; filter by names alone")
    return Query(text, namespace, where=dict(filter or {}), **options)
