"""The losses that make a memory writable, and the documents that they are taught on."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch

from memory_paths.parametric.addressing import TEMPERATURE, address_loss, balance_loss, consistency_loss
from memory_paths.parametric.curriculum import DocumentSource, Encoder
from memory_paths.parametric.embedded import build_tokenizer
from memory_paths.parametric.memory_layer import MemoryLayerConfig, ProductKeyMemory
from memory_paths.streams.words import WORDINGS
from memory_paths.streams.world import biographies, known_world, reading_task, split_wordings


def test_consistency_equals_the_formula_written_out() -> None:
    generator = torch.Generator().manual_seed(0)
    query_BH2Q = torch.randn(6, 3, 2, 4, generator=generator, dtype=torch.float64).float()
    facts = [7, 7, 7, 9, 9, 4]
    expected = []
    for head in range(3):
        flat = [query_BH2Q[row, head].flatten() for row in range(6)]
        for row in range(5):
            cosines = [torch.cosine_similarity(flat[row], other, 0) for other in flat]
            likeness = [math.exp(cosine / TEMPERATURE) for cosine in cosines]
            whole = sum(value for other, value in enumerate(likeness) if other != row)
            pairs = [other for other in range(6) if other != row and facts[other] == facts[row]]
            expected.append(sum(-math.log(likeness[other] / whole) for other in pairs) / len(pairs))
    found = consistency_loss(query_BH2Q, torch.tensor(facts))
    assert found.item() == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_consistency_is_zero_without_two_wordings_and_small_where_wordings_agree() -> None:
    apart = torch.eye(8).view(4, 1, 2, 8)
    assert consistency_loss(apart, torch.arange(4)).item() == 0
    agreeing = apart.repeat_interleave(2, 0)
    assert consistency_loss(agreeing, torch.arange(4).repeat_interleave(2)).item() < 1e-3
    assert consistency_loss(agreeing, torch.tensor([0, 1, 0, 1, 2, 3, 2, 3])).item() > 5


def test_balance_is_zero_for_even_use_and_largest_where_all_read_the_same() -> None:
    even = 50 * torch.eye(16).view(16, 1, 1, 16).expand(16, 2, 2, 16)
    assert balance_loss(even, 1).item() == pytest.approx(0, abs=1e-4)
    same = even[:1].expand(16, 2, 2, 16)
    assert balance_loss(same, 1).item() == pytest.approx(15, rel=1e-2)


def test_training_on_the_losses_alone_gives_each_fact_slots_of_its_own() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    layer = ProductKeyMemory(MemoryLayerConfig(16, half_keys=32, heads=2, top_k=2, half_query=8))
    # What facts have in common is most of what the layer is given, and the wording is louder than the fact.
    common, facts = torch.randn(16, generator=generator), torch.randn(24, 16, generator=generator)
    wordings = torch.randn(2, 16, generator=generator)
    hidden = (4 * common + facts[:, None] + 2 * wordings).flatten(0, 1)
    numbers = torch.arange(24).repeat_interleave(2)

    def kept_apart() -> float:
        """Of the slots that a fact reads in its first wording, the share that its second reads and no other fact."""
        slots = layer.look_up(hidden)[0].view(24, 2, -1)
        shares = []
        for fact in range(24):
            others = set(slots[torch.arange(24) != fact].flatten().tolist())
            first, second = (set(reads.tolist()) for reads in slots[fact])
            shares.append(len((first & second) - others) / len(first))
        return sum(shares) / 24

    before = kept_apart()
    optimiser = torch.optim.Adam(layer.parameters(), 1e-2)
    for _ in range(150):
        optimiser.zero_grad()
        address_loss(layer, hidden, numbers, 1.0, 0.5).backward()
        assert layer.values.grad is None
        optimiser.step()
    assert before < 0.1
    assert kept_apart() > 0.5


def test_address_documents_ask_two_wordings_of_four_facts_and_answer_none() -> None:
    tokenizer = build_tokenizer()
    source, encoder = DocumentSource(), Encoder(tokenizer.backend_tokenizer)
    with_known = 0
    for seed in range(40):
        document = source.addresses(random.Random(seed))
        (encoded,) = encoder.encode([document])
        marked = encoded.facts[encoded.facts > 0]
        assert len(marked) == 8
        assert sorted(map(marked.tolist().count, set(marked.tolist()))) == [2, 2, 2, 2]
        assert not encoded.weights.any()
        ends = [index for index in range(len(encoded.segments)) if encoded.facts[index]]
        assert all(
            index + 1 == len(encoded.segments) or encoded.segments[index + 1] != encoded.segments[index]
            for index in ends
        )
        names = {asked.fact.split("/")[0] for asked in document.questions}
        known = {name.lower().replace(" ", "-") for name in known_world().people}
        assert len(names) == 2
        assert len(names & known) <= 1
        with_known += bool(names & known)
        (first, second) = (set(name.split("-")) for name in names)
        assert first & second
    assert 5 < with_known < 35


def test_no_training_document_names_whom_a_stream_brings_or_asks_as_an_evaluation_does() -> None:
    source, known, stream = DocumentSource(), known_world(), biographies(480)
    met = {question.cluster for step in stream.experiences for question in step.questions}
    met |= {question.cluster for question in stream.unknown}
    met |= {reading_task(random.Random(seed), 12).question.cluster for seed in range(20)}
    people = {name for name in met if " " in name}
    assert len(people) > 100
    held_out = {
        wording.format(name=fact.subject)
        for fact in known.part_a + known.part_b
        for wording in (*split_wordings(fact).held_out, *WORDINGS[fact.attribute].new_questions)
    }
    named = 0
    for seed in range(300):
        generator = random.Random(seed)
        for document in (
            source.closed_book(generator),
            source.open_book(generator, 24),
            source.addresses(generator),
            source.recital(generator, 24),
            source.irrelevant(generator, 12, near=True),
        ):
            asked = {question.question for question in document.questions}
            assert not asked & held_out
            text = "\n".join([*document.notes, *asked, *(f"{a}{b}" for a, b in document.sentences)])
            words = text.replace("'s", "").replace("?", " ").replace(".", " ").replace(",", " ").split()
            pairs = {f"{first} {last}" for first, last in itertools.pairwise(words)}
            assert not pairs & people
            named += bool(pairs & known.people)
    assert named > 300
