"""`python -m memory_paths.retrieval.tools_figures FOLDER`: tools as memory, measured on MetaTool and ToolAlpaca.

Three tables: tools that arrive in a stream are found by what they are for, and better by what they solved (MetaTool,
Huang et al. 2023, arXiv 2310.03128); documented interfaces are called with checked arguments (ToolAlpaca, Tang et al.
2023, arXiv 2306.05301); and a signature that changes is relearnt by registering the tool again. The models of the last
two are scripted: they read their prompt and nothing else.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from memory_paths.chat_lm import ChatLM
from memory_paths.conversation import Conversation
from memory_paths.evaluation.statistics import DIFFERENCE, SHARE, generator_for, mean_interval
from memory_paths.ledger import Ledger
from memory_paths.testing import scripted_tool_caller
from memory_paths.types import ToolCall

from .bank import Bank, Method
from .encoder import Encoder, SentenceEncoder
from .tools import WITNESSES, Run, Tool, Toolbox

METHODS: tuple[Method, ...] = ("dense", "bm25", "fusion")
SEEDS = (0, 1, 2)
STEPS = 10
TESTED = 5  # requests of each tool
SOLVED = (0, 1, 2, 5, 10, 20)  # requests of each tool that are learnt
IN_STREAM = 10  # of them in the table of the stream
WRONG = 0.2  # share of what is learnt that is told of another tool
UNUSED = 0.2  # share of the tools of which nothing is learnt, where that is looked at
DEEPEST = 5  # places that are looked at
ALIKE = 0.8  # cosine from which on a tested request nearly repeats a learnt one
NAMESPACE = "figures"
ASK_USER = "getDetails"  # in ToolAlpaca's golden answers: no tool, but a question to the user
GAP = "<gap>"


@dataclass(frozen=True)
class Asked:
    """A tested request: of which tool, when that tool arrived, and whether it nearly repeats a learnt one."""

    text: str
    tool: str
    step: int
    repeated: bool


@dataclass(frozen=True)
class World:
    """Tools in the order of arrival, what is tested, and what of each tool may be learnt."""

    tools: tuple[Tool, ...]
    asked: tuple[Asked, ...]
    solved: Mapping[str, Sequence[str]]


class Kept:
    """An encoder that encodes no text twice."""

    def __init__(self, encoder: Encoder) -> None:
        self.manifest, self.flops_per_token = encoder.manifest, encoder.flops_per_token
        self._encoder = encoder
        self._known: dict[tuple[str, str], Any] = {}

    def encode_queries(self, texts: Sequence[str]) -> Any:
        """See `Encoder`."""
        return self._of("query", self._encoder.encode_queries, texts)

    def encode_documents(self, texts: Sequence[str]) -> Any:
        """See `Encoder`."""
        return self._of("document", self._encoder.encode_documents, texts)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """The number of words of each text."""
        return [len(text.split()) for text in texts]

    def _of(self, side: str, encode: Callable[[Sequence[str]], Any], texts: Sequence[str]) -> Any:
        import numpy as np

        new = list(dict.fromkeys(text for text in texts if (side, text) not in self._known))
        self._known.update(((side, text), vector) for text, vector in zip(new, encode(new), strict=True))
        vectors = [self._known[side, text] for text in texts]
        return np.array(vectors, dtype=np.float32).reshape(len(texts), self.manifest.dimension)


def world(folder: Path, encoder: Encoder, seed: int, *, tools: int | None = None) -> World:
    """MetaTool, its tools in an order of their own, the requests of each split into what is tested and what is learnt.

    Requests that the data give to two tools, or twice to one, are left out.

    Args:
        folder: Holds the folder metatool.
        encoder: Says which tested requests nearly repeat a learnt one.
        seed: Of order and split.
        tools: Only the first so many.
    """
    draw = random.Random(f"tools/{seed}")
    described = {_name(r["tool"]): r["description"] for r in _records(folder / "metatool" / "tools.jsonl")}
    requests: dict[str, list[str]] = {name: [] for name in described}
    records = _records(folder / "metatool" / "queries.jsonl.gz")
    times = Counter(record["query"].strip().lower() for record in records)
    for record in records:
        if times[record["query"].strip().lower()] == 1:
            requests[_name(record["tool"])].append(record["query"])
    names = sorted(described)
    draw.shuffle(names)
    names = names[:tools]
    asked, solved = [], {}
    for place, name in enumerate(names):
        texts = draw.sample(requests[name], len(requests[name]))
        tested, solved[name] = texts[:TESTED], texts[TESTED : TESTED + max(SOLVED)]
        likeness = (encoder.encode_queries(tested) @ encoder.encode_documents(solved[name]).T).max(axis=1)
        step = place * STEPS // len(names) + 1
        asked += [Asked(text, name, step, bool(near >= ALIKE)) for text, near in zip(tested, likeness, strict=True)]
    return World(tuple(Tool(name, described[name], function=_nothing) for name in names), tuple(asked), solved)


def ranks(
    given: World,
    encoder: Encoder,
    method: Method,
    *,
    solved: int,
    steps: Iterable[int] = (STEPS,),
    wrong: float = 0.0,
    unused: float = 0.0,
    seed: int = 0,
    witnesses: int = WITNESSES,
) -> list[dict[Asked, int]]:
    """The place of the right tool, from 1, or 0 beyond the fifth, for all requests whose tools have arrived.

    Args:
        given: Tools and requests.
        encoder: What turns them into vectors.
        method: How the bank searches.
        solved: How many requests of each tool are learnt when it arrives.
        steps: After which steps to look, ascending, in one registry that grows.
        wrong: Share of what is learnt that is told of a tool drawn at random.
        unused: Share of the tools, the last to arrive, of which nothing is learnt.
        seed: Of that drawing.
        witnesses: See `Toolbox`.
    """
    draw = random.Random(f"wrong/{seed}")
    names = [tool.name for tool in given.tools]
    known, looked = 0, []
    used = set(names[: round(len(names) * (1 - unused))])
    with _toolbox(encoder, method, witnesses) as toolbox:
        for step in steps:
            arrived = len(names) * step // STEPS
            toolbox.register(*given.tools[known:arrived])
            for name in names[known:arrived]:
                for task in given.solved[name][: solved if name in used else 0]:
                    toolbox.learn(draw.choice(names[:arrived]) if draw.random() < wrong else name, task)
            known = arrived
            places = {}
            for one in (one for one in given.asked if one.step <= step):
                found = [tool.name for tool in toolbox.find(one.text, DEEPEST)]
                places[one] = found.index(one.tool) + 1 if one.tool in found else 0
            looked.append(places)
    return looked


@contextmanager
def _toolbox(encoder: Encoder, method: Method = "dense", witnesses: int = WITNESSES) -> Iterator[Toolbox]:
    with Ledger() as ledger:
        bank = Bank(None, ledger, encoder, name="tools", method=method)
        yield Toolbox(bank, NAMESPACE, witnesses=witnesses)
        bank.close()


def _nothing(**arguments: Any) -> str:
    return "done"


def _name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", text)


def _records(file: Path) -> list[dict[str, Any]]:
    read = file.read_bytes()
    text = (gzip.decompress(read) if file.suffix == ".gz" else read).decode()
    return [json.loads(line) for line in text.split("\n") if line]


def _first(place: int) -> float:
    return float(place == 1)


def _top(place: int) -> float:
    return float(1 <= place <= 5)


def _reciprocal(place: int) -> float:
    return 1 / place if place else 0.0


def selection(folder: Path, encoder: Encoder) -> str:
    """Tables of the first part, in Markdown."""
    from tqdm import tqdm

    worlds = {seed: world(folder, encoder, seed) for seed in SEEDS}
    streams: dict[tuple[Method, int], list[list[dict[Asked, int]]]] = {}
    for method, count in tqdm(list(product(METHODS, SOLVED)), desc="tools in a stream", disable=None):
        steps = range(1, STEPS + 1) if count in (0, IN_STREAM) else (STEPS,)
        of_seeds = [ranks(worlds[seed], encoder, method, solved=count, steps=steps) for seed in SEEDS]
        streams[method, count] = of_seeds
    found = {pair: [looked[-1] for looked in of_seeds] for pair, of_seeds in streams.items()}
    lines = [
        "| requests learnt of each tool | method | recall@1 | recall@5 | MRR@5 | recall@1, gain |",
        "|---|---|---|---|---|---|",
    ]
    for count in SOLVED:
        for method in METHODS:
            told = [_share(found[method, count], measure) for measure in (_first, _top, _reciprocal)]
            gain = _gain(found[method, 0], found[method, count]) if count else "-"
            lines.append(f"| {count} | {method} | {' | '.join(told)} | {gain} |")
    most = max(SOLVED)
    wrong = [ranks(worlds[seed], encoder, "dense", solved=most, wrong=WRONG, seed=seed)[-1] for seed in SEEDS]
    gain = _gain(found["dense", 0], wrong)
    told = [_share(wrong, measure) for measure in (_first, _top, _reciprocal)]
    lines.append(
        f"| {most}, {WRONG:.0%} of them told of a tool drawn at random | dense | {' | '.join(told)} | {gain} |"
    )
    for repeated, name in ((True, "nearly repeat a learnt one"), (False, "do not")):
        before, after = (
            [{one: place for one, place in places.items() if one.repeated is repeated} for places in found["dense", n]]
            for n in (0, most)
        )
        told = [_share(after, measure) for measure in (_first, _top, _reciprocal)]
        lines.append(f"| {most}, requests that {name} | dense | {' | '.join(told)} | {_gain(before, after)} |")
    shown = [(method, count) for method in METHODS for count in (0, IN_STREAM)]
    heads = [f"{method}, {count} learnt" for method, count in shown]
    stream = [f"| tools so far | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    first = [f"| tools so far | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for step in range(1, STEPS + 1):
        here = {pair: [places[step - 1] for places in streams[pair]] for pair in shown}
        tools = len(worlds[SEEDS[0]].tools) * step // STEPS
        stream.append(f"| {tools} | {' | '.join(_share(here[pair], _first) for pair in shown)} |")
        old = {
            pair: [{one: p for one, p in places.items() if one.step == 1} for places in here[pair]] for pair in shown
        }
        first.append(f"| {tools} | {' | '.join(_share(old[pair], _first) for pair in shown)} |")
    ranked = [
        "| what is learnt | recall@1 by the best text | by the two best | by the three best |",
        "|---|---|---|---|",
    ]
    cases: list[tuple[str, dict[str, Any]]] = [
        *((f"{count} requests of each tool", {"solved": count}) for count in SOLVED[1:]),
        (f"{most}, {WRONG:.0%} of them told of a tool drawn at random", {"solved": most, "wrong": WRONG}),
        (f"{most} of each tool but the last {UNUSED:.0%}", {"solved": most, "unused": UNUSED}),
    ]
    for name, options in tqdm(cases, desc="how a tool ranks", disable=None):
        by = [
            [ranks(worlds[seed], encoder, "dense", seed=seed, witnesses=count, **options)[-1] for seed in SEEDS]
            for count in (1, 2, 3)
        ]
        ranked.append(f"| {name} | {' | '.join(_share(found, _first) for found in by)} |")
        if "unused" in options:
            late = round(STEPS * (1 - UNUSED))
            new = [[{one: p for one, p in places.items() if one.step > late} for places in found] for found in by]
            ranked.append(
                f"| requests for the last {UNUSED:.0%} alone | {' | '.join(_share(x, _first) for x in new)} |"
            )
    asked = sum(len(given.asked) for given in worlds.values())
    return "\n".join(
        [
            f"{len(worlds[SEEDS[0]].tools)} tools, {asked} tested requests in {len(SEEDS)} splits.",
            "",
            *lines,
            "",
            "Recall@1 over all tools so far, as they arrive:",
            "",
            *stream,
            "",
            "Recall@1 of the requests for the tools of the first step, as others arrive beside them:",
            "",
            *first,
            "",
            "Dense search, a tool's rank being the mean of the cosines of its best texts:",
            "",
            *ranked,
        ]
    )


def _share(found: Sequence[Mapping[Asked, int]], measure: Callable[[int], float]) -> str:
    values = [(measure(place), one.tool) for places in found for one, place in places.items()]
    return interval([value for value, _ in values], [tool for _, tool in values])


def _gain(before: Sequence[Mapping[Asked, int]], after: Sequence[Mapping[Asked, int]]) -> str:
    gains = [
        (_first(new[one]) - _first(place), one.tool)
        for old, new in zip(before, after, strict=True)
        for one, place in old.items()
    ]
    return interval([value for value, _ in gains], [tool for _, tool in gains], gain=True)


def interval(values: Sequence[float], clusters: Sequence[str], *, gain: bool = False) -> str:
    """A mean with its 95 % interval over clusters."""
    if not values:
        return "-"
    bounds, mean = (DIFFERENCE if gain else SHARE), sum(values) / len(values)
    found = mean_interval(values, clusters, generator=generator_for("tools"), bounds=bounds)
    sign = "+" if gain else ""
    return f"{mean:{sign}.3f} [{found.low:{sign}.3f} {found.high:{sign}.3f}]"


@dataclass(frozen=True)
class Gold:
    """A call that the data hold to be right. `filled`: values that only an earlier result would give were made up."""

    api: str
    instruction: str
    name: str
    arguments: Mapping[str, Any]
    filled: bool


def interfaces(folder: Path) -> tuple[dict[str, Tool], list[Gold], Counter[str]]:
    """ToolAlpaca's documented functions as tools by name, its golden calls, and how many of them are what."""
    tools: dict[str, Tool] = {}
    calls: list[Gold] = []
    counted: Counter[str] = Counter()
    for record in _records(folder / "toolalpaca" / "toolalpaca.jsonl"):
        mine = {tool.name: tool for tool in _documented(record)}
        if twice := set(mine) & set(tools):
            raise ValueError(f"two interfaces have functions of one name: {sorted(twice)}")
        tools |= mine
        for instruction, golden in zip(record["Instructions"], record["Golden_Answers"], strict=True):
            for action in golden:
                counted["golden calls"] += 1
                if action["Action"] == ASK_USER:
                    counted["questions to the user"] += 1
                    continue
                if action["Action"] not in mine:
                    counted["functions that are not documented"] += 1
                    continue
                gold = _gold(record["Name"], instruction, action, mine[action["Action"]])
                if gold is None:
                    counted["arguments that are no JSON"] += 1
                else:
                    calls.append(gold)
    return tools, calls, counted


def _documented(record: Mapping[str, Any]) -> Iterator[Tool]:
    """The operations of an OpenAPI document: its parameters and the fields of its body are one tool's arguments."""
    document = json.loads(record["Documentation"])
    shared = document.get("components", {}).get("schemas", {})
    for methods in document["paths"].values():
        for operation in methods.values():
            properties: dict[str, Any] = {}
            required: list[str] = []
            for parameter in operation.get("parameters", ()):
                told = {"description": parameter["description"]} if parameter.get("description") else {}
                properties[parameter["name"]] = {**parameter.get("schema", {}), **told}
                required += [parameter["name"]] if parameter.get("required") else []
            for content in operation.get("requestBody", {}).get("content", {}).values():
                body = content.get("schema", {})
                if "$ref" in body:
                    body = shared[body["$ref"].rpartition("/")[2]]
                properties |= body.get("properties", {})
                required += body.get("required", ())
            schema = {"type": "object", "properties": properties, "required": list(dict.fromkeys(required))}
            if '"#/components/schemas/' in json.dumps(schema):
                schema["$defs"] = shared
            text = json.dumps(schema).replace("#/components/schemas/", "#/$defs/")
            described = operation.get("description") or operation.get("summary") or operation["operationId"]
            yield Tool(operation["operationId"], f"{record['Name']}: {described}", json.loads(text), _nothing)


def _gold(api: str, instruction: str, action: Mapping[str, str], tool: Tool) -> Gold | None:
    text, gaps = re.subn(r'"?\$?\{[A-Za-z][^{}":]*\}"?', json.dumps(GAP), action["Action_Input"])
    try:
        arguments = json.loads(text)
    except json.JSONDecodeError:
        return None
    known = tool.parameters["properties"]
    filled = {name: _filled(value, known.get(name, {})) for name, value in arguments.items()}
    return Gold(api, instruction, tool.name, filled, bool(gaps))


def _filled(value: Any, schema: Mapping[str, Any]) -> Any:
    if value == GAP:
        return _sample(schema)
    if isinstance(value, list):
        return [_filled(one, schema.get("items", {})) for one in value]
    return value


def _sample(schema: Mapping[str, Any]) -> Any:
    """Some value that fits a schema."""
    if "enum" in schema:
        return schema["enum"][0]
    made: dict[str, Any] = {"integer": 1, "number": 1.5, "boolean": True, "array": [], "object": {}}
    days = {"date": "2024-05-17", "date-time": "2024-05-17T08:00:00Z"}
    return made.get(schema.get("type", "string"), days.get(schema.get("format", ""), "some"))


def corrupted(gold: Gold, tool: Tool) -> Iterator[tuple[str, Gold]]:
    """What a call may have wrong, each by itself, with its kind."""
    given, known = dict(gold.arguments), tool.parameters["properties"]
    for name in tool.parameters.get("required", ()):
        if name in given:
            yield "missing argument", replace(gold, arguments={n: v for n, v in given.items() if n != name})
    other = {"string": 7, "integer": "several", "number": "several", "boolean": "perhaps", "array": 7, "object": 7}
    for name in given:
        if (kind := known[name].get("type")) in other:
            yield "ill-typed argument", replace(gold, arguments={**given, name: other[kind]})
        renamed = {(f"{n}_" if n == name else n): v for n, v in given.items()}
        yield "unknown argument (misspelt)", replace(gold, arguments=renamed)
    yield "unknown argument (added)", replace(gold, arguments={**given, "verbosity": "high"})
    yield "wrong name of the tool", replace(gold, name=f"{gold.name}V2")


def calling(folder: Path, encoder: Encoder) -> str:
    """Tables of the second part, in Markdown."""
    tools, golden, counted = interfaces(folder)
    with _toolbox(encoder) as toolbox:
        toolbox.register(*tools.values())
        lines = ["| golden calls | calls | accepted | why not |", "|---|---|---|---|"]
        accepted = []
        for filled, name in ((False, "whole"), (True, "values of an earlier result made up")):
            those = [gold for gold in golden if gold.filled is filled]
            results = [toolbox.answer(ToolCall("1", gold.name, gold.arguments)) for gold in those]
            taken = [result.outcome == "done" for result in results]
            accepted += [gold for gold, yes in zip(those, taken, strict=True) if yes]
            why = Counter(
                _reason(problem)
                for gold, yes in zip(those, taken, strict=True)
                if not yes
                for problem in tools[gold.name].problems(gold.arguments)
            )
            reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(why.items()))
            share = interval([float(yes) for yes in taken], [gold.api for gold in those])
            lines.append(f"| {name} | {len(those)} | {share} | {reasons} |")
        wrong = [(kind, gold, bad) for gold in accepted for kind, bad in corrupted(gold, tools[gold.name])]
        refused: dict[str, list[tuple[float, float, str]]] = {}
        for kind, gold, bad in wrong:
            run = _mended(toolbox, gold, bad)
            first, *rest = run.results
            mended = bool(rest) and rest[-1].outcome == "done" and run.finished
            row = (float(first.outcome == "refused"), float(mended), gold.api)
            refused.setdefault(kind, []).append(row)
        lines += ["", "| accepted calls, corrupted | calls | refused | mended by a model that reads the refusal |"]
        lines += ["|---|---|---|---|"]
        for kind, rows in refused.items():
            apis = [api for _, _, api in rows]
            told = [interval(column, apis) for column in ([one for one, _, _ in rows], [two for _, two, _ in rows])]
            lines.append(f"| {kind} | {len(rows)} | {' | '.join(told)} |")
        wanted = list(dict.fromkeys((gold.api, gold.instruction, gold.name) for gold in golden))
        offers = [[tool.name for tool in toolbox.offered(instruction, 10)] for _, instruction, _ in wanted]
        apis = [api for api, _, _ in wanted]
        lines += ["", "| of the functions that an instruction needs, offered | share |", "|---|---|"]
        for k in (1, 3, 5, 10):
            hits = [float(name in found[:k]) for (_, _, name), found in zip(wanted, offers, strict=True)]
            lines.append(f"| among {k} | {interval(hits, apis)} |")
    left = ", ".join(f"{count} {what}" for what, count in counted.items() if what != "golden calls")
    head = f"{len(tools)} functions of {len(set(apis))} interfaces; {counted['golden calls']} golden calls"
    return "\n".join([f"{head}, among them {left}.", "", *lines])


def _reason(problem: str) -> str:
    for part, reason in (
        ("is not of type", "ill-typed"),
        ("is not one of", "not among the allowed values"),
        ("required property", "missing"),
        ("unknown argument", "unknown"),
        ("is not a '", "ill-formed date or the like"),
    ):
        if part in problem:
            return reason
    return "other"


def _mended(toolbox: Toolbox, gold: Gold, bad: Gold) -> Run:
    """A model that makes the bad call first and, where it reads that it was refused, the right one."""

    def reply(messages: Sequence[tuple[str, str]], tools: Sequence[Mapping[str, Any]]) -> str | list[ToolCall]:
        role, said = messages[-1]
        if role == "human":
            return [ToolCall("1", bad.name, bad.arguments)]
        return [ToolCall("2", gold.name, gold.arguments)] if said.startswith("Refused") else said

    lm = ChatLM(scripted_tool_caller(reply), window=65_536)
    return toolbox.run(Conversation(lm), gold.instruction, k=3)


@dataclass(frozen=True)
class Changed:
    """A tool before and after its signature changed, what is known when it is called, and the right call after it."""

    api: str
    kind: str
    before: Tool
    after: Tool
    values: Mapping[str, Any]
    right_before: Mapping[str, Any]
    right_after: Mapping[str, Any]


def changes(folder: Path, seed: int) -> list[Changed]:
    """Each function of ToolAlpaca with a golden call whose arguments are all described, changed in one of three ways.

    A renamed argument keeps its description; an added one is required; a removed one is one that the call had.
    """
    tools, golden, _ = interfaces(folder)
    draw = random.Random(f"changes/{seed}")
    found: dict[str, Changed] = {}
    for gold in golden:
        tool, given = tools[gold.name], dict(gold.arguments)
        known = {name: dict(takes) for name, takes in tool.parameters["properties"].items()}
        if gold.name in found or not given or tool.problems(given):
            continue
        told = {name: f"{known[name].get('description', '')} ({name})".strip() for name in given}
        for name, words in told.items():  # a solver that knows an argument by its words finds it under any name
            known[name]["description"] = words
        base = dict(tool.parameters) | {"properties": known}
        before = Tool(tool.name, tool.description, base, _nothing)
        kind, name = ("renamed", "added", "removed")[len(found) % 3], draw.choice(sorted(given))
        properties, required = dict(known), list(tool.parameters.get("required", ()))
        values, right = {told[n]: value for n, value in given.items()}, dict(given)
        if kind == "renamed":
            properties = {(f"new_{n}" if n == name else n): takes for n, takes in known.items()}
            required = [f"new_{n}" if n == name else n for n in required]
            right = {(f"new_{n}" if n == name else n): value for n, value in given.items()}
        elif kind == "added":
            words, value = "Under which ticket the call is made", f"T-{draw.randrange(1000, 10000)}"
            properties["ticket"] = {"type": "string", "description": words}
            required.append("ticket")
            values, right = {**values, words: value}, {**given, "ticket": value}
        else:
            del properties[name], right[name]
            required = [n for n in required if n != name]
        after = Tool(tool.name, tool.description, {**base, "properties": properties, "required": required}, _nothing)
        found[gold.name] = Changed(gold.api, kind, before, after, values, given, right)
    return list(found.values())


def solver(remembered: Mapping[str, Mapping[str, Any]] | None, *, mends: bool) -> Any:
    """A scripted model that calls the tool a question speaks of, with those values whose words its schema has.

    Args:
        remembered: Schemas by name, which it then takes for those of its prompt, as a model would that was trained on
            them. None: it reads the prompt.
        mends: Whether it reads the schema in a refusal and tries once more.
    """

    def reply(messages: Sequence[tuple[str, str]], tools: Sequence[Mapping[str, Any]]) -> str | list[ToolCall]:
        asked = next(text for role, text in messages if role == "human")
        question = json.loads(asked[asked.index("{") : asked.rindex("}") + 1])
        name, values = question["call"], question["with"]
        offered = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
        role, said = messages[-1]
        if role == "human":
            schema = (offered if remembered is None else remembered).get(name)
        elif mends and said.startswith("Refused") and len(messages) < 6:
            schema = json.loads(said.partition("Its arguments: ")[2])
        else:
            return said
        if schema is None:
            return "no such tool"
        arguments = {
            argument: values[takes["description"]]
            for argument, takes in schema["properties"].items()
            if takes.get("description") in values
        }
        return [ToolCall(f"call-{len(messages)}", name, arguments)]

    return scripted_tool_caller(reply)


def relearning(folder: Path, encoder: Encoder) -> str:
    """Table of the third part, in Markdown."""
    rows: dict[tuple[str, str], list[tuple[float, float, str]]] = {}
    notes = Counter[str]()
    for seed in SEEDS:
        cases = changes(folder, seed)
        with Ledger() as ledger:
            bank = Bank(None, ledger, encoder, name="tools")
            toolbox = Toolbox(bank, NAMESPACE)
            toolbox.register(*(case.before for case in cases))
            old = {case.before.name: case.before.parameters for case in cases}
            arms = {
                "registry, schemas from the prompt": solver(None, mends=False),
                "schemas as remembered": solver(old, mends=False),
                "schemas as remembered, refusals read": solver(old, mends=True),
            }
            before = {
                (arm, n): solved(toolbox, model, case, old=True)
                for arm, model in arms.items()
                for n, case in enumerate(cases)
            }
            moment = ledger.now()
            toolbox.register(*(case.after for case in cases))
            position = ledger.position()
            toolbox.register(*(case.after for case in cases))
            notes["written by registering once more"] += ledger.position() - position
            for arm, model in arms.items():
                for number, case in enumerate(cases):
                    after = solved(toolbox, model, case, old=False)
                    rows.setdefault((case.kind, arm), []).append((before[arm, number], after, case.api))
            for case in cases:
                notes["tools"] += 1
                notes["old schema by as_of"] += toolbox.get(case.before.name, as_of=moment) == case.before
                notes["new schema now"] += toolbox.get(case.before.name) == case.after
            bank.close()
    lines = ["| change | solver | tools | right call before | right call after |", "|---|---|---|---|---|"]
    for (kind, arm), found in sorted(rows.items()):
        apis = [api for _, _, api in found]
        told = [interval(column, apis) for column in ([one for one, _, _ in found], [two for _, two, _ in found])]
        lines.append(f"| {kind} | {arm} | {len(found)} | {' | '.join(told)} |")
    lines += [
        "",
        f"Of {notes['tools']} changed tools `as_of` gives the old schema for {notes['old schema by as_of']}, and the"
        f" present is the new one for {notes['new schema now']}. Registering them once more wrote"
        f" {notes['written by registering once more']} changes to the ledger.",
    ]
    return "\n".join(lines)


def solved(toolbox: Toolbox, model: Any, case: Changed, *, old: bool) -> bool:
    """Whether a model makes the right call, and no other that is accepted."""
    right = case.right_before if old else case.right_after
    question = json.dumps(
        {"do": case.before.description, "call": case.before.name, "with": case.values}, ensure_ascii=False
    )
    run = toolbox.run(Conversation(ChatLM(model, window=65_536)), question, k=5)
    made = [result for result in run.results if result.outcome == "done"]
    return len(made) == 1 and dict(made[0].call.arguments) == dict(right)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the three parts."""
    parser = argparse.ArgumentParser(description="Tools as memory: found, called with checks, relearnt.")
    parser.add_argument("folder", type=Path, help="holds the folders metatool and toolalpaca")
    folder = parser.parse_args(arguments).folder
    encoder = Kept(SentenceEncoder())
    print(f"## Found by what they are for\n\n{selection(folder, encoder)}\n", flush=True)
    print(f"## Called with checked arguments\n\n{calling(folder, encoder)}\n", flush=True)
    print(f"## Relearnt without training\n\n{relearning(folder, encoder)}")


if __name__ == "__main__":
    main()
