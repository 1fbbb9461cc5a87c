"""The survey's twelve scenarios: the small streams that ship, and other people's task data and texts."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import memory_paths
from memory_paths.build import build_agent, build_stream, compose
from memory_paths.evaluation.evaluator import Evaluator
from memory_paths.evaluation.plan import Plan
from memory_paths.evaluation.report import Report
from memory_paths.streams import knowledge, pretraining, tasks
from memory_paths.streams.examples import examples, marked, passages, sequence
from memory_paths.types import Knowledge, Question, Stream

TWINS: dict[str, Callable[..., Stream]] = {
    "cpt_vertical": pretraining.vertical,
    "cpt_language": pretraining.language,
    "cpt_temporal": pretraining.temporal,
    "text_classification": tasks.text_classification,
    "entities": tasks.entities,
    "relations": tasks.relations,
    "translation": tasks.translation,
    "instructions": tasks.instructions,
    "editing": knowledge.editing,
    "alignment": tasks.alignment,
    "retrieval": knowledge.retrieval,
    "tools": knowledge.tools,
}
FORMATS = {
    "cpt_vertical": "likelihood",
    "cpt_language": "likelihood",
    "entities": "entities",
    "translation": "chrf",
    "alignment": "choice",
}
SIZES = {  # experiences and items
    "text_classification": (16, 48),
    "relations": (14, 56),
    "instructions": (9, 108),
    "retrieval": (16, 64),
    "tools": (16, 48),
    "cpt_language": (6, 48),
    "editing": (6, 30),
}
FULL = "MEMORY_PATHS_FULL" in os.environ
ALL = pytest.mark.parametrize("name", TWINS)


def _items(stream: Stream) -> list[Knowledge]:
    return [item for step in stream.experiences for item in step.items]


def _questions(stream: Stream) -> list[Question]:
    return [question for step in stream.experiences for question in step.questions]


def test_the_suite_runs_every_scenario_on_every_path_of_the_comparison() -> None:
    conf = Path(memory_paths.__file__).parent.parent / "conf"
    suite = OmegaConf.load(conf / "suite/survey12.yaml").hydra.sweeper.params
    compared = OmegaConf.load(conf / "experiment/compare.yaml").hydra.sweeper.params
    assert set(suite.stream.split(",")) == set(TWINS)
    assert set(suite.path.split(",")) == {*compared.path.split(","), "sparse_memory_thorough"}
    assert suite.seed == "0,1,2"


@ALL
def test_a_twin_is_small_valid_and_the_same_for_the_same_seeds(name: str) -> None:
    stream = build_stream(compose(f"stream={name}"))
    assert stream == TWINS[name]()
    assert stream.name == name
    assert (len(stream.experiences), len(_items(stream))) == SIZES.get(name, (6, 36))
    Plan(stream, samples=200, seed=0)
    assert len(stream.prior) == 96
    assert len(stream.skill) == 48
    assert all(step.questions for step in stream.experiences)
    asked = [question for question in _questions(stream) if question.kind == "direct"]
    assert {question.scoring for question in asked} == {FORMATS.get(name, "exact")}
    assert TWINS[name](world_seed=1) != stream


@ALL
def test_another_order_teaches_the_same_in_another_order(name: str) -> None:
    first, second = TWINS[name](), TWINS[name](order_seed=1)
    for step, other in zip(first.experiences, second.experiences, strict=True):
        assert step.name == other.name
        assert sorted(item.to_json() for item in step.items) == sorted(item.to_json() for item in other.items)
    assert [item.id for item in _items(first)] != [item.id for item in _items(second)]


@ALL
def test_nothing_is_asked_as_it_was_studied(name: str) -> None:
    for seed in range(3):
        stream = TWINS[name](world_seed=seed, order_seed=seed)
        studied = {phrasing.prompt for item in _items(stream) for phrasing in item.phrasings if phrasing.prompt}
        texts = {item.text for item in _items(stream)}
        texts |= {phrasing.prompt + phrasing.completion for item in _items(stream) for phrasing in item.phrasings}
        for question in _questions(stream):
            assert question.query.text not in studied
            whole = f"{question.query.text} {question.targets[0]}"
            assert not {whole, f"{whole}."} & texts


@ALL
def test_a_twin_speaks_in_whole_words_that_the_embedded_model_has(name: str) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(memory_paths.__file__).parent / "assets/embedded/tokenizer.json"))
    stream = TWINS[name]()
    texts = [item.text for item in _items(stream)]
    for phrasing in (phrasing for item in _items(stream) for phrasing in item.phrasings):
        texts += [phrasing.prompt, phrasing.completion.strip()]
    texts += [text for question in _questions(stream) for text in (question.query.text, *question.targets)]
    for text in texts:
        words = [
            token for token in tokenizer.encode(text, add_special_tokens=False).tokens if not token.startswith("Ġ")
        ]
        assert set(words) <= set(",.?:"), text


def test_a_twin_whose_facts_change_supersedes_them_and_knows_what_is_stale() -> None:
    for name in ("cpt_temporal", "retrieval", "tools"):
        stream = TWINS[name]()
        keys: dict[str, str] = {}
        changed = 0
        for item in _items(stream):
            changed += item.key in keys
            keys[item.key] = item.text
        assert changed >= 6, name
        stale = [question for question in _questions(stream) if question.stale and question.kind == "direct"]
        assert len(stale) == changed
        assert all(question.stale[0] != question.targets[0] for question in stale)
    years = [item.valid_from for item in _items(TWINS["cpt_temporal"]())]
    assert years == sorted(years, key=lambda year: year or 0.0)
    assert len(set(years)) == 6


def test_editing_changes_what_is_known_and_asks_what_follows_and_what_must_stay() -> None:
    stream = TWINS["editing"]()
    known = {(fact.subject, fact.attribute): fact.value for fact in knowledge.known_world().part_b}
    kinds: dict[str, int] = {}
    for question in _questions(stream):
        kinds[question.kind] = kinds.get(question.kind, 0) + 1
        if question.kind == "direct":
            assert question.stale[0] in known.values()
        if question.kind == "neighbour":
            assert not question.ids
    assert kinds["direct"] == kinds["paraphrase"] == kinds["neighbour"] == 30
    assert kinds["one_hop"] == 12
    changed = {(item.key, item.text.rstrip(".").split()[-1]) for item in _items(stream)}
    facts = {fact.key: fact.value for fact in knowledge.known_world().part_b}
    assert all(facts[key] != value for key, value in changed)
    prior = {question.key() for question in stream.prior}
    assert not prior & {question.key() for question in _questions(stream)}


def test_a_class_is_told_by_several_words_and_the_candidates_are_the_labels_of_all_experiences() -> None:
    for name in ("text_classification", "relations"):
        stream = TWINS[name]()
        labels = {question.targets[0] for question in _questions(stream)}
        assert all(set(question.choices) == labels for question in _questions(stream))
        assert stream.chance == 1 / len(labels)
        taught = [{question.targets[0] for question in step.questions} for step in stream.experiences]
        assert sum(map(len, taught)) == len(labels)  # each label in one experience alone


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tasks.text_classification(experiences=30), "there are .* labels"),
        (lambda: tasks.translation(words=1), "words must be at least 2"),
        (lambda: tasks.translation(languages=7), "languages between 1 and experiences"),
        (lambda: pretraining.vertical(experiences=7), "between 1 and the number of fields"),
        (lambda: tasks.entities(experiences=9), "experiences must be between 1 and 6, got 9"),
        (lambda: tasks.alignment(experiences=9), "experiences must be between 1 and 6, got 9"),
        (lambda: knowledge.retrieval(entries=6), "entries must be between 1 and 5, got 6"),
    ],
)
def test_more_than_there_is_is_refused(make: Callable[[], Stream], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Report]:
    """A short run of a twin on the embedded model."""

    def made(name: str, path: str) -> Report:
        cfg = compose(f"path={path}", f"stream={name}", "threads=1", "progress=false")
        with build_agent(cfg) as agent:
            control = cfg.path.get("control", "")
            folder = tmp_path_factory.mktemp(f"{name}-{path}")
            stream = build_stream(cfg)
            return Evaluator(stream, folder=folder, samples=12, control=control, probes=False, progress=False).run(
                agent
            )

    return made


@pytest.mark.parametrize(
    "name", ["relations", "retrieval", *(("cpt_vertical", "translation", "alignment") if FULL else ())]
)
def test_with_the_right_notes_the_embedded_model_does_more_than_without(
    name: str, run: Callable[[str, str], Report]
) -> None:
    without, noted = (run(name, path).metrics["retention"] for path in ("none", "oracle"))
    assert without.value is not None
    assert noted.value is not None
    assert noted.value > without.value + 0.2


# The data of others


@pytest.mark.parametrize(
    ("name", "scoring", "experiences"),
    [
        ("clinc150", "choice", 5),
        ("banking77", "choice", 8),
        ("crossner", "entities", 3),
        ("fewrel", "choice", 10),
        ("multi30k", "chrf", 2),
        ("instruction_induction", "exact", 8),
        ("preferences", "choice", 2),
        ("vertical_texts", "likelihood", 3),
        ("genesis_languages", "likelihood", 3),
        ("us_addresses", "likelihood", 5),
    ],
)
def test_real_data_in_every_format_asks_what_was_not_studied(
    name: str, scoring: str, experiences: int, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMORY_PATHS_DATA", str(data_folder))
    stream = build_stream(compose(f"stream={name}"))
    Plan(stream, samples=50, seed=0)
    assert (stream.name, len(stream.experiences)) == (name, experiences)
    studied = {item.text for item in _items(stream)}
    studied |= {phrasing.prompt for item in _items(stream) for phrasing in item.phrasings}
    for step in stream.experiences:
        taught = {item.id for item in step.items}
        assert step.questions
        for question in step.questions:
            assert question.scoring == scoring
            assert question.query.text not in studied
            assert question.ids
            assert set(question.ids) <= taught


def _write(file: Path, records: list[dict[str, Any]]) -> Path:
    with gzip.open(file, "wt", encoding="utf-8") as opened:
        opened.writelines(json.dumps(record) + "\n" for record in records)
    return file


def test_examples_of_a_label_are_studied_and_others_of_it_asked(tmp_path: Path) -> None:
    records = [
        {"text": f"{label} {number}", "label": label, "domain": domain, "split": "train" if number < 3 else "test"}
        for domain, label in (("d1", "a"), ("d1", "b"), ("d2", "c"))
        for number in range(5)
    ]
    records.append({"text": "a 0", "label": "a", "domain": "d1", "split": "test"})  # studied, and so not asked
    options: dict[str, Any] = {
        "name": "mine",
        "given": "Which: {text}",
        "wanted": "{label}",
        "text": "{given} is {wanted}",
        "label": "{label}",
        "studied": {"split": "train"},
        "held_out": {"split": "test"},
        "scoring": "choice",
        "each": 2,
        "asked": 3,
    }
    file = _write(tmp_path / "tasks.jsonl.gz", records)
    stream = examples(file, step="{domain}", **options)
    assert [step.name for step in stream.experiences] == ["d1", "d2"]
    assert [item.text for item in stream.experiences[0].items] == [
        "Which: a 0 is a",
        "Which: a 1 is a",
        "Which: b 0 is b",
        "Which: b 1 is b",
    ]
    first = stream.experiences[0].questions[0]
    assert (first.query.text, first.targets, first.choices) == ("Which: a 3", ("a",), ("a", "b", "c"))
    assert first.ids == ("mine/d1/a/1", "mine/d1/a/2")
    assert stream.chance == 1 / 3
    assert len(_questions(stream)) == 6
    dealt = examples(file, labels=1, **options)
    assert [len(step.items) for step in dealt.experiences] == [2, 2, 2]
    with pytest.raises(ValueError, match="gives 9 examples to study and 0 to ask"):
        examples(file, **{**options, "held_out": {"split": "dev"}})
    with pytest.raises(ValueError, match="line 1: field 'topic'"):
        examples(file, **{**options, "given": "{topic}"})


def test_tags_become_a_listing_of_names_with_their_types() -> None:
    tokens = ["Ada", "Lund", "of", "Oslo", "met", "Bo", "Ada", "Lund"]
    tags = ["B-person", "I-person", "O", "B-town", "O", "I-person", "B-person", "I-person"]
    assert marked(tokens, tags) == "person: Ada Lund; town: Oslo; person: Bo"
    assert marked(tokens, ["O"] * 8) == "none"


def test_passages_alternate_between_what_is_studied_and_what_is_asked(tmp_path: Path) -> None:
    text = tmp_path / "book.txt"
    text.write_text(" ".join(f"w{number}" for number in range(100)))
    stream = passages({"book": {"file": text}}, name="books", words=10, studied=3, asked=2, prior=text)
    studied, asked = _items(stream), _questions(stream)
    assert [item.text.split()[0] for item in studied] == ["w0", "w30", "w60"]
    assert [question.query.text.split()[0] for question in asked] == ["w10", "w50"]
    assert asked[0].query.text == "w10 w11 w12 w13 w14"
    assert asked[0].targets == ("w15 w16 w17 w18 w19",)
    assert asked[0].query.continues
    assert len(stream.prior) == 4
    with pytest.raises(ValueError, match="fewer than two passages of 60 words"):
        passages({"book": {"file": text}}, name="books", words=60)
    with pytest.raises(ValueError, match=r"teach .*books/book/1"):
        sequence([stream, stream], name="twice")
