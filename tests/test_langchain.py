"""The bank in LangChain's and LangGraph's clothes: their own test suites, and the promises that those do not check."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Clock, run
from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatResult
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from langchain_tests.integration_tests import (
    BaseStoreAsyncTests,
    BaseStoreSyncTests,
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
    ToolsIntegrationTests,
    VectorStoreIntegrationTests,
)
from langchain_tests.integration_tests.indexer import AsyncDocumentIndexTestSuite, DocumentIndexerTestSuite
from langchain_tests.unit_tests import EmbeddingsUnitTests, ToolsUnitTests
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.runtime import get_runtime
from langgraph.store.base import GetOp, InvalidNamespaceError, PutOp, SearchOp
from langgraph.store.memory import InMemoryStore

from memory_paths.build import load
from memory_paths.ledger import Ledger
from memory_paths.retrieval.bank import Bank
from memory_paths.retrieval.encoder import HashEncoder, SentenceEncoder
from memory_paths.retrieval.langchain import (
    BankDocumentIndex,
    BankKeyValueStore,
    BankRetriever,
    BankVectorStore,
    EmbeddingsEncoder,
    EncoderEmbeddings,
)
from memory_paths.retrieval.langgraph import BankStore
from memory_paths.retrieval.memory_tools import marks, memory_tools, quoted
from memory_paths.retrieval.middleware import MemoryMiddleware
from memory_paths.retrieval.vector_store import AT_A_TIME, VectorStorePath
from memory_paths.testing import check_path
from memory_paths.types import Knowledge, Query

pytestmark = pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite", clock=Clock()) as ledger:
        yield ledger


@pytest.fixture
def bank(ledger: Ledger) -> Iterator[Bank]:
    bank = Bank(None, ledger, HashEncoder())
    yield bank
    bank.close()


@pytest.fixture
def store(bank: Bank) -> BankVectorStore:
    return BankVectorStore(bank, "ada")


def in_memory(*texts: str, namespace: str = "default") -> Bank:
    bank = Bank(None, Ledger(), HashEncoder())
    bank.write([Knowledge(f"item-{row}", text) for row, text in enumerate(texts)], namespace)
    return bank


def texts(documents: Sequence[Document]) -> list[str]:
    return [document.page_content for document in documents]


# LangChain's own suites


class TestVectorStore(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, ledger: Ledger) -> Iterator[VectorStore]:  # type: ignore[override]
        bank = Bank(None, ledger, EmbeddingsEncoder(self.get_embeddings()))
        yield BankVectorStore(bank)
        bank.close()


class TestRetriever(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[BankRetriever]:
        return BankRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"bank": in_memory("Ada flies.", "Ada sings.", "Ben flies.", "Ben reads.")}

    @property
    def retriever_query_example(self) -> str:
        return "Who flies?"


class TestDocumentIndex(DocumentIndexerTestSuite):
    @pytest.fixture
    def index(self, store: BankVectorStore) -> BankDocumentIndex:  # type: ignore[override]
        return BankDocumentIndex(store=store)


class TestDocumentIndexAsync(AsyncDocumentIndexTestSuite):
    @pytest.fixture
    def index(self, store: BankVectorStore) -> BankDocumentIndex:  # type: ignore[override]
        return BankDocumentIndex(store=store)


class TestDocumentIndexAsRetriever(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[BankDocumentIndex]:
        return BankDocumentIndex

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"store": BankVectorStore(in_memory("Ada flies.", "Ada sings.", "Ben flies.", "Ben reads."))}

    @property
    def retriever_query_example(self) -> str:
        return "Who flies?"


class TestKeyValueStore(BaseStoreSyncTests[Any]):
    @pytest.fixture
    def kv_store(self, bank: Bank) -> BankKeyValueStore:
        return BankKeyValueStore(bank)

    @pytest.fixture
    def three_values(self) -> tuple[Any, Any, Any]:
        return "foo", {"bar": [1, 2.5, None]}, ""


class TestKeyValueStoreAsync(BaseStoreAsyncTests[Any]):
    @pytest.fixture
    def kv_store(self, bank: Bank) -> BankKeyValueStore:  # type: ignore[override]
        return BankKeyValueStore(bank)

    @pytest.fixture
    def three_values(self) -> tuple[Any, Any, Any]:
        return "foo", {"bar": [1, 2.5, None]}, ""


class _OverAnEncoder:
    @property
    def embeddings_class(self) -> type[EncoderEmbeddings]:
        return EncoderEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"encoder": HashEncoder()}


class TestEmbeddingsUnit(_OverAnEncoder, EmbeddingsUnitTests):
    pass


class TestEmbeddingsIntegration(_OverAnEncoder, EmbeddingsIntegrationTests):
    pass


class _Remember:
    @property
    def tool_constructor(self) -> Any:
        return memory_tools(in_memory("Ada flies."))[0]

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"text": "Ada lives in Oslo.", "about": "Ada: home"}


class _Recall:
    @property
    def tool_constructor(self) -> Any:
        return memory_tools(in_memory("Ada flies."))[1]

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"question": "Who flies?"}


class _Forget:
    @property
    def tool_constructor(self) -> Any:
        return memory_tools(in_memory("Ada flies."))[2]

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"ids": ["item-0", "never-written"]}


class TestRememberUnit(_Remember, ToolsUnitTests):
    pass


class TestRememberIntegration(_Remember, ToolsIntegrationTests):
    pass


class TestRecallUnit(_Recall, ToolsUnitTests):
    pass


class TestRecallIntegration(_Recall, ToolsIntegrationTests):
    pass


class TestForgetUnit(_Forget, ToolsUnitTests):
    pass


class TestForgetIntegration(_Forget, ToolsIntegrationTests):
    pass


# The vector store


def test_documents_are_there_after_reopening_and_overwriting_is_one_transaction(tmp_path: Path) -> None:
    clock = Clock(100.0)
    with Ledger(tmp_path / "ledger.sqlite", clock=clock) as ledger:
        store = BankVectorStore(Bank(None, ledger, HashEncoder()))
        store.add_documents([Document("Ada lives in Oslo.", id="home", metadata={"page": 1})])
        before, clock.now = ledger.position(), 200.0
        store.add_documents([Document("Ada lives in Bergen.", id="home", metadata={"page": 2})])
        assert ledger.position() == before + 2, "the old version's end and the new one's beginning, and nothing between"
    with Ledger(tmp_path / "ledger.sqlite", clock=clock) as ledger:
        store = BankVectorStore(Bank(None, ledger, HashEncoder()))
        assert store.get_by_ids(["home"]) == [Document("Ada lives in Bergen.", id="home", metadata={"page": 2})]
        assert texts(store.similarity_search("Where does Ada live?")) == ["Ada lives in Bergen."]
        assert texts(store.similarity_search("Where does Ada live?", as_of=150.0)) == ["Ada lives in Oslo."]


@pytest.mark.parametrize("failpoint", ["ledger.before_commit:2", "ledger.after_commit:2"])
def test_a_kill_while_a_document_is_overwritten_leaves_the_old_one_or_the_new_one(
    tmp_path: Path, failpoint: str
) -> None:
    program = (
        "import sys; from langchain_core.documents import Document; from memory_paths.ledger import Ledger\n"
        "from memory_paths.retrieval.bank import Bank; from memory_paths.retrieval.encoder import HashEncoder\n"
        "from memory_paths.retrieval.langchain import BankVectorStore\n"
        "store = BankVectorStore(Bank(None, Ledger(sys.argv[1]), HashEncoder()))\n"
        "for text in ('old', 'new'): store.add_documents([Document(text, id='1')])\n"
    )
    import os
    import sys

    file = tmp_path / "ledger.sqlite"
    run(sys.executable, "-c", program, file, expect=-9, env={**os.environ, "MEMORY_PATHS_FAILPOINT": failpoint})
    with Ledger(file) as ledger:
        store = BankVectorStore(Bank(None, ledger, HashEncoder()))
        expected = "old" if "before" in failpoint else "new"
        assert texts(store.get_by_ids(["1"])) == texts(store.similarity_search("text")) == [expected]


def test_a_deleted_document_is_gone_with_everything_that_stood_under_its_id(ledger: Ledger, bank: Bank) -> None:
    store = BankVectorStore(bank)
    names = ["a", "a#b", "a:b", 'ä "quoted"\n', "document:a"]
    for text in ("first", "second"):
        store.add_documents([Document(f"{text} {name}", id=name) for name in names])
    bank.write([Knowledge("other", "An item of another sort.")], "default")
    store.delete(["a"])
    assert [document.id for document in store.get_by_ids([*names, "other"])] == [*names[1:], "other"]
    past = store.similarity_search("first a", k=20, as_of=ledger.now() + 1)
    assert "first a" not in texts(past)
    assert "second a" not in texts(past)
    store.delete()
    assert texts(store.similarity_search("first", k=20)) == ["An item of another sort."]


def test_filters_come_before_the_search_and_are_those_of_a_query(store: BankVectorStore) -> None:
    documents = [
        Document(f"Ada flies {n} planes.", id=str(n), metadata={"n": n, "even": n % 2 == 0}) for n in range(60)
    ]
    store.add_documents(documents)
    assert [one.id for one in store.similarity_search("planes", k=3, filter={"n": 57})] == ["57"]
    found = store.similarity_search("planes", k=30, filter={"even": True, "n": {"$gte": 50}})
    assert sorted(one.id or "" for one in found) == ["50", "52", "54", "56", "58"]
    assert len(store.similarity_search("planes", k=4, filter={"n": [1, 2, 3]})) == 3
    retriever = store.as_retriever(search_kwargs={"k": 2, "filter": {"n": {"$lt": 1}}})
    assert [one.id for one in retriever.invoke("planes")] == ["0"]
    with pytest.raises(TypeError, match="filter must be a dict of metadata"):
        store.similarity_search("planes", filter=lambda document: True)
    with pytest.raises(ValueError, match="filter by names alone"):
        store.similarity_search("planes", filter={"$or": [{"n": 1}, {"n": 2}]})
    with pytest.raises(TypeError, match="fetch"):
        store.similarity_search("planes", fetch=3)


def test_scores_are_cosines_and_relevance_is_within_0_and_1(store: BankVectorStore) -> None:
    store.add_texts(["Ada flies.", "Ben reads books."], ids=["a", "b"])
    (best, score), (_, other) = store.similarity_search_with_score("Ada flies.", k=2)
    assert best.id == "a"
    assert score == pytest.approx(1.0, abs=1e-5)
    assert other < score
    relevances = [score for _, score in store.similarity_search_with_relevance_scores("Ada flies.", k=2)]
    assert relevances == [pytest.approx(1.0, abs=1e-5), max(0.0, other)]
    vector = store.embeddings.embed_query("Ada flies.")
    by_vector = store.similarity_search_with_score_by_vector([7 * value for value in vector], k=1)
    assert by_vector == [(best, pytest.approx(1.0, abs=1e-5))]
    assert store.similarity_search_by_vector(vector, k=1) == [best]


def test_marginal_relevance_leaves_out_what_says_the_same(store: BankVectorStore) -> None:
    store.add_texts(["Ada flies planes.", "Ada flies planes!", "Ada flies kites at the sea."], ids=["a", "b", "c"])
    assert {one.id for one in store.similarity_search("Ada flies planes", k=2)} == {"a", "b"}
    apart = store.max_marginal_relevance_search("Ada flies planes", k=2, lambda_mult=0.25)
    assert {one.id for one in apart} in ({"a", "c"}, {"b", "c"})
    near = store.max_marginal_relevance_search("Ada flies planes", k=2, lambda_mult=1.0)
    assert {one.id for one in near} == {"a", "b"}


def test_bad_documents_are_refused_and_nothing_of_the_batch_is_stored(store: BankVectorStore, bank: Bank) -> None:
    bank.write([Knowledge("ada", "Ada is no document.")], "ada")
    good = Document("fine", id="1")
    for bad, kind, message in [
        (Document(" ", id="2"), ValueError, "needs an id and a text"),
        (Document("x", id="2", metadata={"when": object()}), TypeError, "JSON"),
        (Document("x", id="ada"), ValueError, "belong to items that are no documents"),
    ]:
        with pytest.raises(kind, match=message):
            store.add_documents([good, bad])
    with pytest.raises(ValueError, match="one id for each document"):
        store.add_documents([good], ids=["1", "2"])
    assert store.get_by_ids(["1", "2", "ada"]) == [Document("Ada is no document.", id="ada")]


def test_namespaces_do_not_see_one_another(bank: Bank) -> None:
    ada, ben = BankVectorStore(bank, "ada"), BankVectorStore(bank, "ben")
    ada.add_documents([Document("Ada's secret", id="1")])
    ben.add_documents([Document("Ben's secret", id="1")])
    ben.delete(["1"])
    assert texts(ada.similarity_search("secret")) == ["Ada's secret"]
    assert ben.similarity_search("secret") == ben.get_by_ids(["1"]) == []
    with pytest.raises(ValueError, match="namespace"):
        BankVectorStore(bank, "").similarity_search("secret")


def test_from_texts_makes_a_store_of_its_own(tmp_path: Path) -> None:
    embeddings = DeterministicFakeEmbedding(size=16)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        BankVectorStore.from_texts(["foo", "bar"], embeddings, [{"n": 1}, {"n": 2}], ids=["a", "b"], ledger=ledger)
        store = BankVectorStore.from_documents([Document("baz", id="c")], embeddings, ledger=ledger)
        assert store.similarity_search("bar", k=1) == [Document("bar", id="b", metadata={"n": 2})]
        assert len(store.similarity_search("bar", k=9)) == 3


@pytest.mark.parametrize("as_index", [False, True])
def test_langchains_indexing_keeps_a_bank_equal_to_its_source(store: BankVectorStore, as_index: bool) -> None:
    target = BankDocumentIndex(store=store) if as_index else store
    manager = InMemoryRecordManager("ada")
    manager.create_schema()

    def load(*contents: str) -> dict[str, Any]:
        documents = [Document(text, metadata={"source": "file"}) for text in contents]
        return dict(index(documents, manager, target, cleanup="full", source_id_key="source", key_encoder="sha256"))

    assert load("one", "two")["num_added"] == 2
    assert load("two", "three") == {"num_added": 1, "num_updated": 0, "num_skipped": 1, "num_deleted": 1}
    assert sorted(texts(store.similarity_search("one", k=9))) == ["three", "two"]


def test_an_encoder_made_of_embeddings_gives_rows_of_length_1() -> None:
    class Axes(DeterministicFakeEmbedding):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [[0.0] * self.size if text == "zero" else [3.0] * self.size for text in texts]

    encoder = EmbeddingsEncoder(Axes(size=4), name="axes-1")
    assert (encoder.manifest.name, encoder.manifest.dimension) == ("axes-1", 4)
    assert encoder.encode_documents(["zero", "one"]).tolist() == [[1, 0, 0, 0], [0.5] * 4]
    assert encoder.encode_documents([]).shape == encoder.encode_queries([]).shape == (0, 4)

    class Nothing(DeterministicFakeEmbedding):
        def embed_query(self, text: str) -> list[float]:
            return []

    with pytest.raises(ValueError, match="Nothing gives no vector"):
        EmbeddingsEncoder(Nothing(size=4))


def test_real_embeddings_find_by_meaning() -> None:
    encoder = SentenceEncoder()
    store = BankVectorStore.from_texts(
        ["The cat sleeps on the sofa all day.", "Ada lives in Oslo.", "Sourdough rises without any baker's yeast."],
        EncoderEmbeddings(encoder),
    )
    assert texts(store.similarity_search("Which Norwegian capital is someone's home?", k=1)) == ["Ada lives in Oslo."]
    assert texts(store.as_retriever(search_kwargs={"k": 1}).invoke("A feline on the couch")) == [
        "The cat sleeps on the sofa all day."
    ]
    np.testing.assert_allclose(
        EmbeddingsEncoder(EncoderEmbeddings(encoder)).encode_documents(["a", "b"]),
        encoder.encode_documents(["a", "b"]),
        atol=1e-6,
    )
