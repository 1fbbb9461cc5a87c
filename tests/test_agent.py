"""The agent, its router, the chat and the LangChain runnable, on a small honest model."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Clock, full_disk, run

import memory_paths
from memory_paths.agent import Agent
from memory_paths.build import restore
from memory_paths.chat import chat, respond
from memory_paths.context import InContext
from memory_paths.failpoints import VARIABLE
from memory_paths.ledger import Ledger, LedgerError
from memory_paths.lm import CausalLM
from memory_paths.parametric.full import Full
from memory_paths.parametric.path import Budget, WeightsPath
from memory_paths.retrieval.bank import Bank
from memory_paths.retrieval.encoder import HashEncoder
from memory_paths.router import Fixed
from memory_paths.testing import UNKNOWN, EchoLM
from memory_paths.types import Answer, Generation, Knowledge, Prompt, Query, TooLarge

FACTS = [
    Knowledge("ada", "Ada works as a pilot.", key="ada/work"),
    Knowledge("ben", "Ben plays the cello."),
    Knowledge("cora", "Cora prefers tea.", kind="preference"),
]


class SelfAware(EchoLM):
    """Sure of what it has read (0.9 a word), and not of what it has not (0.1)."""

    def generate(self, prompts: Sequence[Prompt], *, max_new_tokens: int = 32) -> list[Generation]:
        said = super().generate(prompts, max_new_tokens=max_new_tokens)
        sure = [math.log(0.1 if one.text == UNKNOWN else 0.9) for one in said]
        return [replace(one, loglikelihood=len(one.token_ids) * each) for one, each in zip(said, sure, strict=True)]


def _agent(lm: EchoLM | None = None, **options: Any) -> Agent:
    lm, ledger = lm or EchoLM(), Ledger()
    paths = {"icl": InContext(lm, ledger, name="icl"), "rag": Bank(lm, ledger, HashEncoder(), name="rag")}
    return Agent(lm, paths, ledger, **options)


def _agent_that_cannot(*capabilities: str, **options: Any) -> Agent:
    """An agent whose first path says that it lacks these capabilities."""
    lm, ledger = EchoLM(), Ledger()
    poor = InContext(lm, ledger, name="poor")
    poor.capabilities = replace(poor.capabilities, **dict.fromkeys(capabilities, False))
    return Agent(lm, {"poor": poor, "rag": Bank(lm, ledger, HashEncoder(), name="rag")}, ledger, **options)


def test_an_agent_learns_answers_and_explains() -> None:
    with _agent() as agent:
        receipt = agent.learn(FACTS)
        assert receipt.ids == ("ada", "ben", "cora")
        first, second = agent.answer(["What does Ben play?", Query("What does Ada work as?")])
        assert (first.text, second.text) == ("Ben plays the cello.", "Ada works as a pilot.")
        assert "id 'ada'" in str(agent.explain(second))


def test_plain_text_is_knowledge_too_and_learning_it_twice_changes_nothing() -> None:
    with _agent() as agent:
        one, two = agent.learn("Dan keeps bees."), agent.learn(["Dan keeps bees."])
        assert one.ids == two.ids
        assert [item.text for item in agent.items()] == ["Dan keeps bees."]
        assert agent.learn(FACTS[0]).ids == ("ada",)
        with pytest.raises(TypeError, match="learns texts and Knowledge, got int: 3"):
            agent.learn([3])  # type: ignore[list-item]


def test_what_was_recalled_is_never_learnt_again_as_a_text_also_after_a_restart(tmp_path: Path) -> None:
    home = Knowledge("home", "Ada lives in Oslo.", key="ada/home", source="letter", valid_from=1.0, metadata={"n": 1})
    for restarted in (False, True):
        agent, _ = _timed_agent(tmp_path / "facts.sqlite")
        with agent:
            if not restarted:
                agent.learn(home)
                assert agent.answer("Where does Ada live?")[0].recalls[0].item == home
            for given in ("Ada lives in Oslo.", "- Ada lives in Oslo.\n"):
                assert agent.learn([given]).ids == ("home",)
            assert agent.items() == [home]


@pytest.mark.parametrize(
    "given",
    [
        "Ada lives in oslo.",  # of a password the case matters, of a program the spacing
        "Ada lives in  Oslo.",
        Knowledge("other", "Ada lives in Oslo."),  # whoever names it must be able to forget it
    ],
)
def test_what_says_nearly_the_same_or_has_a_name_of_its_own_is_learnt(given: str | Knowledge) -> None:
    with _agent() as agent:
        agent.learn(Knowledge("home", "Ada lives in Oslo."))
        (id,) = agent.learn([given]).ids
        assert id != "home"
        assert agent.items()[1].id == id
        assert agent.forget([id]).ids == (id,)
        assert [item.id for item in agent.items()] == ["home"]


def test_of_many_items_that_say_the_same_one_that_is_held_stands_for_a_text() -> None:
    with _agent() as agent:
        agent.learn([Knowledge(f"{number}", "The door was opened.", valid_from=float(number)) for number in range(40)])
        assert agent.learn("The door was opened.").ids[0] in {item.id for item in agent.items()} & set(
            map(str, range(40))
        )


def test_only_what_holds_on_a_path_of_the_agent_makes_a_text_known() -> None:
    agent, clock = _timed_agent()
    with agent:
        agent.learn(Knowledge("soon", "Ada lives in Oslo.", valid_from=1100.0, valid_until=1200.0))
        agent.ledger.record([Knowledge("else", "Ben is here.")], place="elsewhere", namespace=agent.namespace)
        agent.ledger.record([Knowledge("his", "Cora is here.")], place="rag", namespace="another")
        for text in ("Ben is here.", "Cora is here."):
            assert agent.learn(text).ids[0] not in ("else", "his")
        clock.now = 1150.0
        (alone,) = agent.learn("Ada lives in Oslo.").ids
        assert alone != "soon", "what ends soon does not stand for what is meant for good"
        agent.forget([alone])
        agent.learn(Knowledge("good", "Ada lives in Oslo."))
        assert agent.learn("Ada lives in Oslo.").ids == ("good",)
        agent.forget(["good"])
        assert agent.learn("Ada lives in Oslo.").ids == (alone,)


def test_what_was_forgotten_is_not_recalled() -> None:
    with _agent() as agent:
        agent.learn(FACTS)
        agent.forget(["ben", "never heard of"])
        assert agent.answer("What does Ben play?")[0].text == "unknown"


@pytest.mark.parametrize("call", ["forget", "discard", "release", "use"])
def test_one_string_does_not_pass_for_ids(call: str) -> None:
    with _agent() as agent:
        agent.learn([Knowledge("j", "Jasper lives in Oslo."), Knowledge("job", "Jasper works for Novaflow.")])
        with pytest.raises(TypeError, match=r"one string 'job'; write \['job'\]"):
            getattr(agent, call)("job")
        assert [item.id for item in agent.ledger.active(namespace=agent.namespace)] == ["j", "job"]


def test_given_notes_stand_in_place_of_what_the_path_recalls() -> None:
    with _agent() as agent:
        agent.learn(FACTS)
        (answer,) = agent.answer(["What does Ben play?"], notes=[["Ben plays chess."]])
        assert answer.text == "Ben plays chess."
        assert answer.recalls == ()


def test_items_go_to_the_path_that_the_router_names_for_their_kind() -> None:
    with _agent(router=Fixed({"preference": "rag"})) as agent:
        agent.learn(FACTS)
        assert [item.id for item in agent.paths["rag"].items(namespace="default")] == ["cora"]
        assert [item.id for item in agent.paths["icl"].items(namespace="default")] == ["ada", "ben"]


@pytest.mark.parametrize(
    ("below", "question", "path", "text", "asked"),
    [
        (0.5, "What does Ada work as?", "icl", "Ada works as a pilot.", 1),
        (0.5, "What does Cora prefer?", "rag", "Cora prefers tea.", 2),
        (0.95, "What does Cora prefer?", "rag", "Cora prefers tea.", 2),
        (0.95, "What does Ada work as?", "icl", "Ada works as a pilot.", 2),
    ],
)
def test_where_the_first_path_is_unsure_the_next_is_asked_too_and_the_surer_one_answers(
    below: float, question: str, path: str, text: str, asked: int
) -> None:
    with _agent(SelfAware(), router=Fixed({"preference": "rag"}, fallback_below=below)) as agent:
        agent.learn(FACTS)
        (answer,) = agent.answer([question])
        assert (answer.path, answer.text, answer.confidence) == (path, text, pytest.approx(0.9))
        alone = [Agent(agent.lm, {name: one}, agent.ledger).answer([question])[0] for name, one in agent.paths.items()]
        assert answer.cost.lm.tokens == sum(one.cost.lm.tokens for one in alone[:asked]), "every attempt is paid for"


def test_an_item_moves_from_path_to_path_with_its_id() -> None:
    with _agent() as agent:
        agent.learn(FACTS)
        assert agent.move(["ada"], source="icl", target="rag").ids == ("ada",)
        assert agent.move(["ada"], source="icl", target="rag").ids == (), "it is there already"
        assert "ada" not in [item.id for item in agent.paths["icl"].items(namespace="default")]
        assert [item.id for item in agent.paths["rag"].items(namespace="default")] == ["ada"]
        assert len(agent.ledger.history("ada", namespace="default")) == 2


def test_an_item_that_the_target_cannot_hold_stays_where_it_was() -> None:
    with _agent() as agent:
        agent.paths["rag"].write([Knowledge("long", "word " * 600)], namespace="default")
        position = agent.ledger.position()
        with pytest.raises(TooLarge, match="no room"):
            agent.move(["long"], source="rag", target="icl")
        assert agent.ledger.position() == position
        assert [item.id for item in agent.paths["rag"].items(namespace="default")] == ["long"]
        with pytest.raises(ValueError, match="got 'nowhere'"):
            agent.move(["long"], source="rag", target="nowhere")


def test_an_item_that_is_not_valid_yet_moves_too() -> None:
    with _agent() as agent:
        agent.paths["rag"].write([Knowledge("later", "Ada will live in Rome.", valid_from=9e12)], namespace="default")
        agent.move(["later"], source="rag", target="icl")
        assert [
            entry.place for entry in agent.ledger.history("later", namespace="default") if entry.reason is None
        ] == ["icl"]


def test_forgetting_covers_what_was_superseded() -> None:
    moment = [1000.0]
    lm, ledger = EchoLM(), Ledger(clock=lambda: moment[0])
    with Agent(lm, {"rag": Bank(lm, ledger, HashEncoder(), name="rag")}, ledger) as agent:
        agent.learn([Knowledge("oslo", "Eva lives in Oslo.", key="eva")])
        moment[0] = 2000.0
        agent.learn([Knowledge("bergen", "Eva lives in Bergen.", key="eva")])
        past = Query("Where does Eva live?", as_of=1500.0)
        assert agent.answer([past])[0].text == "Eva lives in Oslo."
        agent.forget(["oslo"])
        assert "Oslo" not in agent.answer([past])[0].text


def test_what_a_path_cannot_forget_is_refused_before_anything_is_forgotten() -> None:
    with _agent_that_cannot("forgets", router=Fixed({"preference": "rag"})) as agent:
        agent.learn([*FACTS, Knowledge("ada-2", "Ada works as a baker.", key="ada/work")])
        for ids in (["cora", "ben"], ["cora", "ada"]):
            with pytest.raises(ValueError, match=rf"path 'poor' cannot forget, and \['{ids[1]}'\] came to it"):
                agent.forget(ids)
        with pytest.raises(ValueError, match="path 'poor' cannot forget"):
            agent.move(["ben"], source="poor", target="rag")
        assert [item.id for item in agent.items()] == ["ben", "ada-2", "cora"]
        agent.forget(["cora", "never heard of"])
        assert [item.id for item in agent.items()] == ["ben", "ada-2"]


def test_a_path_of_one_namespace_is_refused_to_an_agent_of_another() -> None:
    with _agent_that_cannot("namespaces", namespace="home") as agent:
        agent.learn(FACTS)
        Agent(agent.lm, agent.paths, agent.ledger, namespace="home")
        with pytest.raises(ValueError, match=r"path 'poor' holds one namespace and has \['home'\] already"):
            Agent(agent.lm, agent.paths, agent.ledger, namespace="work")
        Agent(agent.lm, {"rag": agent.paths["rag"]}, agent.ledger, namespace="work")


def test_an_agent_answers_for_its_own_namespace_only() -> None:
    with _agent(namespace="home") as agent:
        agent.learn(FACTS)
        assert agent.answer("What does Ben play?")[0].text == "Ben plays the cello."
        with pytest.raises(ValueError, match="bound to namespace 'home'"):
            agent.answer([Query("What does Ben play?", namespace="work")])
        with pytest.raises(TypeError, match="asked texts and Query, got int: 3"):
            agent.answer([3])  # type: ignore[list-item]


def test_scores_prefer_what_was_learnt() -> None:
    with _agent() as agent:
        agent.learn(FACTS)
        right, wrong = agent.score([("What does Ben play?", "cello"), ("What does Ben play?", "drums")])
        assert right.tokens == wrong.tokens == 1
        assert right.loglikelihood > wrong.loglikelihood


def test_what_does_not_fit_into_the_window_is_refused() -> None:
    with _agent() as agent:
        with pytest.raises(TooLarge, match="the question alone has"):
            agent.answer("word " * 600)
        with pytest.raises(TooLarge, match="the window of 'echo' holds 512"):
            agent.answer(["Who?"], notes=[["word " * 600]])
        with pytest.raises(TooLarge, match="an answer to be scored has 600 tokens, the window holds 512"):
            agent.score([("Who?", "word " * 600)])


def test_several_threads_may_share_an_agent() -> None:
    with _agent() as agent:
        errors: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for step in range(5):
                    agent.learn([Knowledge(f"{number}-{step}", f"Person{number} owns boat{number}x{step}.")])
                    assert agent.answer(f"What does Person{number} own?")[0].text.startswith(f"Person{number}")
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert len(agent.items()) == 20


def test_an_agent_without_paths_with_a_mute_model_or_without_room_for_an_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one path"):
        Agent(EchoLM(), {}, Ledger())
    with _agent() as agent:
        with pytest.raises(TypeError, match="lacks it"):
            Agent(object(), agent.paths, agent.ledger)
        with pytest.raises(ValueError, match="max_new_tokens must be from 1 to 511, got 512"):
            Agent(agent.lm, agent.paths, agent.ledger, max_new_tokens=512)
    with _agent(router=Fixed({"fact": "nowhere"})) as agent, pytest.raises(ValueError, match="'nowhere'"):
        agent.learn(FACTS)


def test_a_runnable_takes_text_dicts_and_messages_and_gives_answers() -> None:
    from langchain_core.messages import AIMessage, HumanMessage
    from langchain_core.runnables import RunnableLambda

    with _agent() as agent:
        agent.learn(FACTS)
        runnable = agent.as_runnable()
        expected = "Ben plays the cello."
        question = "What does Ben play?"
        for given in (
            question,
            {"question": question},
            {"messages": [HumanMessage(question)]},
            {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}]},
            [{"role": "user", "content": question}],
            [HumanMessage("Hello"), AIMessage("Hi"), HumanMessage(question)],
            [("human", question)],
        ):
            answer = runnable.invoke(given)
            assert isinstance(answer, Answer)
            assert answer.text == expected
        assert [one.text for one in runnable.batch([question, "What does Ada work as?"])] == [
            expected,
            "Ada works as a pilot.",
        ]
        assert [one.text for one in runnable.stream(question)] == [expected]
        chained = runnable | RunnableLambda(lambda answer: answer.text.upper())
        assert chained.invoke(question) == expected.upper()
        good, bad = runnable.batch([question, 3], return_exceptions=True)
        assert good.text == expected
        assert isinstance(bad, TypeError)
        with pytest.raises(TypeError, match="a dict needs 'question'"):
            runnable.invoke({"q": question})


def test_a_runnable_works_without_blocking() -> None:
    async def ask(agent: Agent) -> list[str]:
        runnable = agent.as_runnable()
        one = await runnable.ainvoke("What does Ben play?")
        many = await runnable.abatch(["What does Ben play?", "What does Ada work as?"])
        streamed = [part async for part in runnable.astream("What does Ben play?")]
        return [one.text, *(answer.text for answer in many), *(answer.text for answer in streamed)]

    with _agent() as agent:
        agent.learn(FACTS)
        texts = asyncio.run(ask(agent))
    assert texts == ["Ben plays the cello."] * 2 + ["Ada works as a pilot."] + ["Ben plays the cello."]


def test_the_chat_teaches_asks_lists_and_forgets(tmp_path: Path) -> None:
    with _agent() as agent:
        lines = [
            "Ada works as a pilot.",
            "What does Ada work as?",
            "/items",
            "/forget nothing",
            "/what",
            "",
            "/quit",
            "never",
        ]
        said = list(chat(agent, lines))
        assert len(said) == 7
        assert said[1].startswith("learnt as ")
        assert said[2].startswith("'Ada works as a pilot.' by path 'icl'")
        assert "Ada works as a pilot." in said[3]
        assert "/items lists them" in said[4]
        assert "no command /what" in said[5]
        (item,) = agent.items()
        assert respond(agent, f"/forget {item.id}") == f"forgot {item.id}"
        assert respond(agent, "/items") == "nothing learnt yet"


def test_a_saved_agent_that_was_assembled_by_hand_says_how_to_load_it(tmp_path: Path) -> None:
    with _agent() as agent:
        agent.learn(FACTS)
        agent.save(tmp_path / "saved")
        with pytest.raises(ValueError, match="assembled by hand"):
            memory_paths.Agent.load(tmp_path / "saved")
        with _agent() as again:
            restore(again, tmp_path / "saved")
            assert [item.text for item in again.items()] == [item.text for item in agent.items()]
            assert again.state_hash() == agent.state_hash()
    with pytest.raises(FileNotFoundError, match=r"agent.json is missing"):
        memory_paths.Agent.load(tmp_path)


def test_a_folder_that_holds_something_is_not_saved_into(tmp_path: Path) -> None:
    with _agent() as agent:
        (tmp_path / "notes.txt").write_text("mine")
        for occupied in (tmp_path, tmp_path / "notes.txt"):
            with pytest.raises(FileExistsError, match="is not an empty folder; name a new one"):
                agent.save(occupied)
        (tmp_path / "empty").mkdir()
        agent.save(tmp_path / "empty")
        with pytest.raises(FileExistsError, match="name a new one"):
            agent.save(tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "notes.txt"]


def test_a_save_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with _agent() as agent:
        agent.learn(FACTS)
        agent.paths["rag"].close()
        with pytest.raises(RuntimeError, match="closed"):
            agent.save(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_half_of_a_save(tmp_path: Path) -> None:
    with _agent() as agent:
        agent.learn(FACTS)
        with full_disk(10_000), pytest.raises((OSError, LedgerError)):
            agent.save(tmp_path / "saved")
        assert list(tmp_path.iterdir()) == []
        agent.save(tmp_path / "saved")
        with _agent() as again:
            restore(again, tmp_path / "saved")
            assert again.items() == agent.items()


def test_a_saved_agent_whose_index_is_damaged_makes_it_anew(tmp_path: Path) -> None:
    query = Query("What does Ben play?", "default")
    with _agent() as agent, _agent() as again:
        agent.paths["rag"].write(FACTS, namespace="default")
        agent.save(tmp_path / "saved")
        (vectors,) = (tmp_path / "saved").rglob("vectors-*")
        vectors.write_bytes(vectors.read_bytes()[:-9])
        restore(again, tmp_path / "saved")
        ((expected,), (reading,)) = (one.paths["rag"].read([query]) for one in (agent, again))
        assert reading.recalls == expected.recalls


@pytest.mark.parametrize("moment", ["index.before_rename", "agent.before_rename", "agent.after_rename"])
def test_a_save_that_is_killed_has_left_all_or_nothing_and_does_not_disturb_the_next(
    tmp_path: Path, moment: str
) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_agent import FACTS, Fixed, _agent\n"
        "with _agent(router=Fixed({'preference': 'rag'})) as agent:\n"
        "    agent.learn(FACTS)\n"
        "    agent.save(sys.argv[2])\n"
    )
    target = tmp_path / "saved"
    target.mkdir()
    command = (sys.executable, "-P", "-c", program, Path(__file__).parent, target)
    run(*command, env={**os.environ, VARIABLE: moment}, expect=-signal.SIGKILL)
    if moment != "agent.after_rename":
        assert list(target.iterdir()) == []
        with _agent(router=Fixed({"preference": "rag"})) as agent:
            agent.learn(FACTS)
            agent.save(target)
    with _agent() as again:
        restore(again, target)
        assert [item.id for item in again.items()] == ["ada", "ben", "cora"]
    assert list(tmp_path.iterdir()) == [target], "what the kill left is gone"


# For how long, and for good


def _timed_agent(file: Path | str = ":memory:", **options: Any) -> tuple[Agent, Clock]:
    clock = Clock(1000.0)
    lm, ledger = EchoLM(), Ledger(file, clock=clock)
    return Agent(lm, {"rag": Bank(lm, ledger, HashEncoder(), name="rag")}, ledger, **options), clock


def test_what_has_a_time_to_live_is_recalled_until_then_and_saying_it_again_changes_nothing() -> None:
    agent, clock = _timed_agent(ttl={"episode": 50.0})
    with agent:
        agent.learn("Dan keeps bees.", ttl=10)
        agent.learn([Knowledge("talk", "Eva came by.", "episode"), Knowledge("own", "It rains.", valid_until=1005.0)])
        clock.now = 1004.0
        assert agent.learn("Dan keeps bees.", ttl=10).ids == agent.learn("Dan keeps bees.", ttl=99).ids
        ends = {item.text: item.valid_until for item in agent.items()}
        assert ends == {"Dan keeps bees.": 1010.0, "Eva came by.": 1050.0, "It rains.": 1005.0}
        clock.now = 1011.0
        assert [item.text for item in agent.items()] == ["Eva came by."]
        assert agent.answer("What does Dan keep?")[0].text == UNKNOWN
        agent.learn("Dan keeps bees.", ttl=10)
        assert agent.items()[-1].valid_until == 1021.0, "once it is over it can be learnt anew"
        for ttl in (0, -1.0, math.nan):
            with pytest.raises(ValueError, match="seconds above 0"):
                agent.learn("Dan keeps ducks.", ttl=ttl)
        with pytest.raises(ValueError, match="ttl is by kind"):
            Agent(agent.lm, agent.paths, agent.ledger, ttl={"mood": 3.0})  # type: ignore[dict-item]
    with memory_paths.load("path=icl", "+ttl.episode=3600") as made:
        made.learn([Knowledge("talk", "Eva came by.", "episode"), FACTS[1]])
        assert [item.valid_until is None for item in made.items()] == [False, True]


def test_a_sweep_ends_what_has_expired_and_may_forget_it_to_the_last_byte(tmp_path: Path) -> None:
    agent, clock = _timed_agent(tmp_path / "facts.sqlite")
    past = Query("What does the quokka keep?", as_of=1005.0)
    with agent:
        agent.learn(["The quokka keeps bees.", FACTS[1]], ttl=10)
        agent.learn(FACTS[0])
        assert agent.sweep() == ()
        clock.now = 1020.0
        (quokka, ben) = agent.sweep()
        assert ben == "ben"
        assert [version.reason for version in agent.ledger.history(quokka, namespace="default")] == ["expired"]
        assert agent.answer([past])[0].text == "The quokka keeps bees.", "what was true then stays"
        assert agent.sweep() == ()
        agent.learn(FACTS[1])
        assert agent.sweep(forget=True) == (quokka, "ben")
        assert agent.answer([past])[0].text == UNKNOWN
        assert [item.id for item in agent.items()] == ["ada", "ben"], "the version that holds is not that which expired"
        assert agent.compact() == 2
    assert b"quokka" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())
    with _agent_that_cannot("forgets") as agent, pytest.raises(ValueError, match=r"paths \['poor'\] cannot forget"):
        agent.sweep(forget=True)


def test_weights_unlearn_what_a_sweep_ends(make_tiny_lm: Callable[..., CausalLM]) -> None:
    clock, lm = Clock(1000.0), make_tiny_lm()
    ledger = Ledger(clock=clock)
    path = WeightsPath(lm, ledger, weights=Full(), budget=Budget(steps=2), progress=False)
    with Agent(lm, {path.name: path}, ledger) as agent:
        untouched = agent.state_hash()
        agent.learn("Dan keeps bees.", ttl=10)
        clock.now = 1020.0
        assert agent.state_hash() != untouched
        agent.sweep()
        assert agent.state_hash() == untouched


def test_forgetting_an_id_brings_nothing_back_and_forgetting_a_key_forgets_all_that_was_said_under_it() -> None:
    agent, clock = _timed_agent()
    with agent:
        for number, city in enumerate(("Oslo", "Bergen", "Rome")):
            clock.now = 1000.0 + 100 * number
            agent.learn(Knowledge(city, f"Eva lives in {city}.", key="eva/home"))
        agent.learn(FACTS[1])
        then, earlier = Query("Where does Eva live?", as_of=1150.0), Query("Where does Eva live?", as_of=1050.0)
        agent.forget(["Rome"])
        assert [item.id for item in agent.items()] == ["ben"], "its predecessor does not come back"
        assert agent.answer("Where does Eva live?")[0].text == UNKNOWN
        assert agent.answer([then])[0].text == "Eva lives in Bergen.", "what was true then has an id of its own"
        assert agent.forget(keys=["eva/home", "nobody/home"]).ids == (), "none of them was held any more"
        assert [answer.text for answer in agent.answer([then, earlier])] == [UNKNOWN] * 2
        agent.learn([Knowledge("Paris", "Eva lives in Paris.", key="eva/home")])
        assert agent.forget(["ben"], keys=["eva/home"]).ids == ("ben", "Paris")
        assert agent.items() == []
