"""lm-evaluation-harness: our log-likelihoods beside its own, agents as its models, its tasks as probes of a run.

MEMORY_PATHS_FULL asks the full number of requests, as `make proofs` does.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import OSLO, run
from lm_eval.api.instance import Instance
from lm_eval.evaluator import evaluate, simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from memory_paths.agent import Agent
from memory_paths.build import build_agent, compose
from memory_paths.context import InContext, NoMemory
from memory_paths.evaluation.evaluator import Evaluator
from memory_paths.evaluation.harness import Harness, as_harness_model, figures, register
from memory_paths.evaluation.records import read_harness, same_records
from memory_paths.ledger import Ledger
from memory_paths.lm import CausalLM
from memory_paths.testing import EchoLM
from memory_paths.types import Experience, Knowledge, Query, Question, Stream, TooLarge

FULL = "MEMORY_PATHS_FULL" in os.environ
REQUESTS = 2000 if FULL else 36
DOCUMENTS = 400 if FULL else 5
TASKS = Path(__file__).parent / "harness_tasks"
KNOWN = ("known_choice", "known_notes", "known_answer", "known_sentence", "known_last_word", "known_page")
STORIES = ("story_choice", "story_text")


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="lm_eval")


@pytest.fixture(scope="module")
def documents() -> Any:
    spec = importlib.util.spec_from_file_location("documents", TASKS / "documents.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def embedded() -> Iterator[CausalLM]:
    with build_agent(compose("path=none")) as agent:
        yield agent.lm


@pytest.fixture
def plain(embedded: CausalLM) -> Iterator[CausalLM]:
    """The embedded model, one row at a time and nothing reused; it is put back as it was."""
    embedded.batch_size, embedded.prefix_cache = 1, False
    yield embedded
    embedded.batch_size, embedded.prefix_cache = 32, True


def reference(lm: CausalLM, batch_size: int = 1) -> Any:
    return HFLM(lm.module, tokenizer=lm.tokenizer, max_length=lm.window, batch_size=batch_size)


def instances(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=given, idx=0) for given in arguments]  # type: ignore[arg-type]


def pairs(lm: CausalLM, documents: Any) -> list[tuple[str, str]]:
    """Contexts and continuations: as tasks have them, with spaces at the end, empty, longer than the window, with the
    BOS token written out, and with what the tokeniser cannot know."""
    if lm.name == "embedded":
        drawn = [
            (f"Notes:\n{one['notes']}\nQuestion: {one['question']}\nAnswer:", f" {choice}")
            for one in documents.known_notes()["test"]
            for choice in one["sentences"]
        ]
        drawn += [(f"Question: {one['question']}\nAnswer:", f" {one['answer']}") for one in documents.known()["test"]]
    else:
        drawn = [(one["begin"], f" {choice}") for one in documents.stories()["test"] for choice in one["choices"]]
    source = random.Random(f"pairs/{lm.name}")
    found = []
    for number in range(REQUESTS):
        context, continuation = source.choice(drawn)
        match number % 6:
            case 1:
                context, continuation = context + " " * source.randint(1, 3), continuation.strip()
            case 2:
                context = ""
            case 3:
                context = " ".join([source.choice(drawn)[0] for _ in range(12)] + [context])
            case 4:
                context = f"{lm.tokenizer.bos_token}{context}"
            case 5:
                context, continuation = f"{context} naïve 東京\n", f"{continuation}\n\nZoë"
        found.append((context, continuation))
    return found


def check_parity(lm: CausalLM, documents: Any) -> None:
    asked = instances("loglikelihood", pairs(lm, documents))
    lm.batch_size, lm.prefix_cache = 1, False
    theirs = reference(lm).loglikelihood(asked, disable_tqdm=True)
    ours = as_harness_model(lm).loglikelihood(asked)
    assert max(abs(one - other) for (one, _), (other, _) in zip(ours, theirs, strict=True)) <= 1e-5
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    lm.batch_size, lm.prefix_cache = 32, True
    batched = as_harness_model(lm).loglikelihood(asked)
    assert max(abs(one - other) for (one, _), (other, _) in zip(ours, batched, strict=True)) <= 1e-4
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in batched], "no argmax may flip"
    assert max(len(lm.tokenizer(request.args[0])["input_ids"]) for request in asked) > lm.window
    assert {greedy for _, greedy in theirs} == {False, True} or lm.name != "embedded"


def results(tasks: Sequence[str], model: Any, limit: int = DOCUMENTS) -> tuple[dict[str, Any], dict[str, Any]]:
    loaded = TaskManager(include_path=TASKS, include_defaults=False).load(list(tasks))
    done = evaluate(lm=model, task_dict=loaded, limit=limit, bootstrap_iters=100)
    return done["results"], done["samples"]


def check_tasks(lm: CausalLM, tasks: Sequence[str]) -> None:
    """Every figure of every task, and each answer, on one row at a time and on batches."""
    theirs, samples = results(tasks, reference(lm))
    for batch_size, reuses in ((1, False), (32, True)):
        lm.batch_size, lm.prefix_cache = batch_size, reuses
        ours, own = results(tasks, as_harness_model(lm))
        for task in tasks:
            for name, value in theirs[task].items():
                if not isinstance(value, float):
                    assert ours[task][name] == value
                elif "perplexity" in name or "bits" in name:
                    assert ours[task][name] == pytest.approx(value, rel=1e-5, abs=1e-12)
                else:
                    assert ours[task][name] == pytest.approx(value, abs=1e-12), (task, name)
            if task == "known_answer":
                assert [one["resps"] for one in own[task]] == [one["resps"] for one in samples[task]]
    lm.batch_size, lm.prefix_cache = 32, True


def test_log_likelihoods_of_the_embedded_model_equal_the_harnesss_own(embedded: CausalLM, documents: Any) -> None:
    check_parity(embedded, documents)


def test_log_likelihoods_of_a_pretrained_model_equal_the_harnesss_own(stories_folder: Path, documents: Any) -> None:
    check_parity(CausalLM(str(stories_folder)), documents)


def test_tasks_on_the_embedded_model_come_to_the_same_figures(embedded: CausalLM) -> None:
    check_tasks(embedded, KNOWN)


def test_tasks_on_a_pretrained_model_come_to_the_same_figures(stories_folder: Path) -> None:
    check_tasks(CausalLM(str(stories_folder)), STORIES)


def test_texts_longer_than_the_window_are_read_in_windows_as_the_harness_does(plain: CausalLM, documents: Any) -> None:
    page = " ".join(one["page"] for one in documents.known_pages()["test"].select(range(3)))
    texts = instances("loglikelihood_rolling", [(page,), ("",), ("Alma",)])
    ours = as_harness_model(plain).loglikelihood_rolling(texts)
    assert ours == reference(plain).loglikelihood_rolling(texts, disable_tqdm=True)
    assert ours[0] < -500


def test_free_answers_stop_where_the_harnesss_own_do(embedded: CausalLM, documents: Any) -> None:
    questions = [f"Question: {one['question']}\nAnswer:" for one in documents.known()["test"].select(range(6))]
    options = [
        {"until": ["\n"], "max_gen_toks": 12},
        {"until": "Question:", "max_gen_toks": 40, "do_sample": False},
        {"until": [], "max_gen_toks": 20},
    ]
    asked = instances("generate_until", [(question, given) for question in questions for given in options])
    ours = as_harness_model(embedded).generate_until(asked)
    assert ours == reference(embedded, 4).generate_until(asked, disable_tqdm=True)
    assert all(any(character.isalpha() for character in answer) for answer in ours)
    assert len(set(ours)) >= 6
    with pytest.raises(ValueError, match="max_gen_toks"):
        as_harness_model(embedded).generate_until(
            instances("generate_until", [("Who?", {"until": [], "max_gen_toks": 512})])
        )


def test_what_cannot_be_scored_is_named(embedded: CausalLM) -> None:
    model = as_harness_model(embedded)
    with pytest.raises(ValueError, match="continuation needs tokens"):
        model.loglikelihood(instances("loglikelihood", [("Who?", "")]))
    with pytest.raises(TooLarge, match="window holds 512"):
        model.loglikelihood(instances("loglikelihood", [("Who?", " Oslo" * 600)]))
    with pytest.raises(TypeError, match="EchoLM"):
        as_harness_model(EchoLM())  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_continuations_of_one_context_share_its_keys_and_values(make_tiny_lm: Any, architecture: str) -> None:
    """Far fewer tokens are read, and the scores are those of rows read one by one."""
    lm: CausalLM = make_tiny_lm(architecture)
    source = random.Random(architecture)
    drawn = [[source.randrange(3, 200) for _ in range(source.randint(1, 40))] for _ in range(20)]
    asked = [
        (given, [source.randrange(3, 200) for _ in range(length)]) for given in drawn for length in (1, 2, 2, 5, 9)
    ]
    asked += [(given, [*tokens[:-1], 7]) for given, tokens in asked]
    read: list[int] = []
    lm.module.register_forward_pre_hook(
        lambda module, args, options: read.append(options["input_ids"].numel()), with_kwargs=True
    )
    shared = lm.score_tokens(asked)
    tokens_shared = sum(read)
    read.clear()
    lm.batch_size, lm.prefix_cache = 1, False
    alone = lm.score_tokens(asked)
    assert max(abs(one.loglikelihood - other.loglikelihood) for one, other in zip(shared, alone, strict=True)) < 1e-4
    assert [one.greedy for one in shared] == [other.greedy for other in alone]
    assert tokens_shared < 0.6 * sum(read)
    assert sum(read) < sum(len(given) + len(tokens) - 1 for given, tokens in asked), (
        "rows that differ in the last token"
    )


@pytest.mark.parametrize("weights", ["prompt", "prefix", "lora", "new_blocks", "prompt_pool"])
def test_shared_contexts_work_with_what_is_put_into_the_model(weights: str, documents: Any) -> None:
    with build_agent(
        compose("path=full", f"weights@path.memory.weights={weights}", "path.memory.budget.steps=2")
    ) as agent:
        agent.learn([OSLO])
        agent.flush()
        scores = []
        asked = [
            (f"Question: {one['question']}\nAnswer:", f" {choice}")
            for one in documents.known()["test"].select(range(5))
            for choice in one["sentences"]
        ]
        for batch_size, reuses in ((1, False), (32, True)):
            agent.lm.batch_size, agent.lm.prefix_cache = batch_size, reuses
            scores.append(as_harness_model(agent).loglikelihood(instances("loglikelihood", asked)))
        assert max(abs(one - other) for (one, _), (other, _) in zip(*scores, strict=True)) < 1e-4
        agent.lm.batch_size = 32
        bare = as_harness_model(agent.lm).loglikelihood(instances("loglikelihood", asked))
        assert max(abs(one - other) for (one, _), (other, _) in zip(scores[1], bare, strict=True)) > 1e-3


# Agents


def test_an_agent_is_asked_with_what_its_path_recalls(embedded: CausalLM) -> None:
    with Ledger() as ledger:
        agent = Agent(embedded, {"icl": InContext(embedded, ledger)}, ledger)
        asked = instances("loglikelihood", [("Question: Where does Ada live?\nAnswer:", " Oslo")])
        asked += instances("loglikelihood", [("", " Oslo")])
        alone = as_harness_model(embedded).loglikelihood(asked)
        assert as_harness_model(agent).loglikelihood(asked) == alone
        agent.learn([OSLO])
        noted = as_harness_model(agent).loglikelihood(asked)
        assert noted[0] != alone[0]
        assert noted[1] == alone[1], "nothing is asked where nothing is given"
        assert as_harness_model(agent, recall=False).loglikelihood(asked) == alone
        written = f"Notes:\n- {OSLO.text}\n\nQuestion: Where does Ada live?\nAnswer:"
        by_hand = as_harness_model(embedded).loglikelihood(instances("loglikelihood", [(written, " Oslo")]))
        assert noted[0][0] == pytest.approx(by_hand[0][0], abs=1e-4)
        long = instances("loglikelihood", [("who " * 600, " Oslo")])
        assert as_harness_model(agent).loglikelihood(long) == as_harness_model(embedded).loglikelihood(long)


def test_the_harness_runs_an_agent_by_the_name_of_its_folder(tmp_path: Path) -> None:
    with build_agent(compose("path=icl")) as agent:
        agent.learn([OSLO])
        agent.save(tmp_path / "agent")
    register()
    done = simple_evaluate(
        model="memory_paths",
        model_args=f"agent={tmp_path / 'agent'}",
        tasks=["known_choice"],
        task_manager=TaskManager(include_path=TASKS, include_defaults=False),
        limit=4,
        bootstrap_iters=0,
    )
    assert done["results"]["known_choice"]["acc,none"] >= 0.75


# Probes


def small_stream() -> Stream:
    return Stream(
        "small",
        (
            Experience("one", (OSLO,), (Question(Query("Where does Ada live?"), ("Oslo",), "direct", ids=("ada-1",)),)),
            Experience("two", (Knowledge("bob-1", "Bob lives in Rome."),)),
        ),
    )


def evaluated(folder: Path, agent: Agent, harness: Harness) -> dict[str, Any]:
    with agent:
        Evaluator(small_stream(), folder=folder, harness=harness, probes=False, progress=False).run(agent)
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report["metrics"]


def test_a_window_leaves_general_ability_as_it_is_and_is_asked_once(tmp_path: Path) -> None:
    reads = []
    with build_agent(compose("path=icl")) as agent:
        agent.lm.module.register_forward_pre_hook(lambda module, args: reads.append(1))
        harness = Harness(["known_choice", "known_sentence", "known_answer"], folder=TASKS, limit=10)
        rows = harness.ask(agent)
        asked = len(reads)
        agent.learn([OSLO])
        again = harness.ask(agent)
        assert len(reads) == asked
        assert [row["value"] for row in again] == [row["value"] for row in rows]
        assert {row["reused"] for row in again} == {True}
    metrics = evaluated(tmp_path, build_agent(compose("path=icl")), harness)
    assert metrics["general_ability_before"]["value"] >= 0.9
    assert metrics["general_ability_change"]["value"] == 0.0
    assert metrics["general_ability_before"]["n"] == 20
    assert metrics["harness_known_choice_acc_after"]["low"] < metrics["harness_known_choice_acc_after"]["value"]
    assert metrics["harness_known_sentence_bits_per_byte_change"]["value"] == 0.0
    recorded = read_harness(tmp_path).to_pylist()
    assert {(row["stage"], row["reused"]) for row in recorded} == {(0, True), (2, True)}


def test_weights_that_were_overwritten_lose_general_ability_and_the_figures_say_so(tmp_path: Path) -> None:
    ruinous = ("path=full", "path.memory.budget.steps=12", "path.memory.weights.rate=0.01")
    harness = Harness(["known_choice", "known_sentence"], folder=TASKS, limit=30)
    metrics = evaluated(tmp_path, build_agent(compose(*ruinous)), harness)
    change = metrics["general_ability_change"]
    assert change["high"] < 0
    assert metrics["harness_known_sentence_bits_per_byte_change"]["low"] > 0
    recorded = read_harness(tmp_path).to_pylist()
    assert {(row["stage"], row["reused"]) for row in recorded} == {(0, False), (2, False)}
    for name in ("before", "after"):
        mean = sum(
            row["value"] for row in recorded if (row["stage"] == 0) == (name == "before") and row["metric"] == "acc"
        )
        assert metrics[f"general_ability_{name}"]["value"] == pytest.approx(mean / 30)


def test_an_interrupted_run_goes_on_and_another_choice_of_tasks_is_another_run(tmp_path: Path) -> None:
    def harness(limit: int = 6) -> Harness:
        return Harness(["known_choice"], folder=TASKS, limit=limit)

    evaluated(tmp_path / "whole", build_agent(compose("path=icl")), harness())
    evaluated(tmp_path / "cut", build_agent(compose("path=icl")), harness())
    (tmp_path / "cut" / "report.json").unlink()
    for part in (tmp_path / "cut" / "records").glob("*-0002.parquet"):
        part.unlink()
    evaluated(tmp_path / "cut", build_agent(compose("path=icl")), harness())
    assert same_records(tmp_path / "whole", tmp_path / "cut")
    assert {row["reused"] for row in read_harness(tmp_path / "cut").to_pylist() if row["stage"] == 2} == {True}
    with pytest.raises(ValueError, match=r"harness\.limit was 6, now 5"):
        evaluated(tmp_path / "cut", build_agent(compose("path=icl")), harness(5))


def test_figures_equal_the_harnesss_own_and_what_is_no_mean_has_a_reason(embedded: CausalLM) -> None:
    with Ledger() as ledger:
        harness = Harness(folder=TASKS, limit=5)
        rows = harness.ask(Agent(embedded, {"none": NoMemory(embedded, ledger)}, ledger))
    theirs, _ = results([*KNOWN, *STORIES], as_harness_model(embedded), limit=5)
    assert theirs
    found = figures([{**row, "stage": stage} for row in rows for stage in (0, 1)], last=1)
    for task, values in theirs.items():
        for name, value in values.items():
            metric, _, filtered = name.partition(",")
            if isinstance(value, float) and "stderr" not in name:
                label = metric if filtered == "none" else f"{metric}_{filtered}"
                ours = found[f"harness_{task}_{label}_before"]
                assert ours.value == pytest.approx(value, rel=1e-9)
                assert ours.low is not None
                assert ours.high is not None
                assert ours.low <= ours.value <= ours.high
    odd = [{**row, "aggregation": "f1", "value": None, "weight": None} for row in rows if row["metric"] == "acc"]
    reasons = {metric.reason for metric in figures([{**row, "stage": 0} for row in odd], last=1).values()}
    assert any("both before any learning and after" in reason for reason in reasons)
    reasons = {
        metric.reason
        for metric in figures([{**row, "stage": stage} for row in odd for stage in (0, 1)], last=1).values()
    }
    assert any("'f1' is no mean" in reason for reason in reasons)


def test_choices_that_do_not_exist_are_refused(embedded: CausalLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs names of tasks, or a folder"):
        Harness()
    with pytest.raises(FileNotFoundError, match="no folder"):
        Harness(folder=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="limit must be above 0"):
        Harness(["known_choice"], folder=TASKS, limit=0)
    with Ledger() as ledger:
        agent = Agent(embedded, {"none": NoMemory(embedded, ledger)}, ledger)
        with pytest.raises(ValueError, match="no task files"):
            Harness(folder=tmp_path).ask(agent)


def test_the_command_line_asks_a_folder_of_tasks(tmp_path: Path) -> None:
    import sys

    run(
        *(sys.executable, "-W", "ignore", "-m", "memory_paths", "path=icl", "stream.facts=12", "progress=false"),
        *("evaluation.samples=2", f"evaluation.harness.folder={TASKS}", "evaluation.harness.tasks=[known_choice]"),
        *("evaluation.harness.limit=8", f"hydra.run.dir={tmp_path}"),
        cwd=tmp_path,
    )
    metrics = json.loads((tmp_path / "report.json").read_text())["metrics"]
    assert metrics["harness_known_choice_acc_after"]["n"] == 8
    assert metrics["general_ability_change"]["value"] == 0.0
