"""The evaluator: teaches an agent a stream, asks it, records every answer, and goes on where it was interrupted.

It asks every path in the same way and scores what the path says by itself; targets and ids never leave it. It knows
nothing of how a path works: it sees an agent that learns, answers and says what it holds.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory_paths.evaluation import costs, records
from memory_paths.evaluation.churn import RIGHT
from memory_paths.evaluation.energy import EnergyMeter
from memory_paths.evaluation.harness import Harness
from memory_paths.evaluation.harness import figures as harness_figures
from memory_paths.evaluation.metrics import Metric, measure, measured_by_path, undefined
from memory_paths.evaluation.misses import RELEARNT
from memory_paths.evaluation.plan import Ask, Control, Plan, stream_hash
from memory_paths.evaluation.records import ANSWERS, HARNESS, WRITES, RecordError, fingerprint
from memory_paths.evaluation.report import UNTOLD, Report, flattened, versions
from memory_paths.evaluation.rows import Rows
from memory_paths.evaluation.scoring import (
    LIKELIHOOD_SCORINGS,
    exact_match,
    stands_in,
    token_f1,
    word_accuracy,
    worth,
    worth_by_likelihood,
)
from memory_paths.evaluation.sinks import Sink, Sinks
from memory_paths.evaluation.statistics import minimum_detectable
from memory_paths.types import Answer, Cost, Knowledge, Prompt, Receipt, Scores, Stream, TooLarge

if TYPE_CHECKING:
    from memory_paths.agent import Agent

LOGGER = logging.getLogger(__name__)
_RESULT = (
    "answer",
    "correct",
    "token_f1",
    "word_accuracy",
    "stale",
    "confidence",
    "recalls",
    "shown",
    "answer_offered",
    "answer_shown",
    "prompt_hash",
    "loglikelihood_per_token",
    "choice_correct",
)
_CHECKPOINTS = "checkpoint"

Row = dict[str, Any]


class Evaluator:
    """Runs one agent through one stream.

    Args:
        stream: What is learnt and asked.
        folder: The run folder: `records/` and `report.json` are written there. A run that was interrupted there goes
            on.
        samples: Most questions of a kind and stage, at least 1.
        seed: Of the sample, of the intervals, and for the report.
        control: "oracle": show the right items in the prompt, as far as they were taught, which is the ceiling of
            every path that puts knowledge there. "shuffled": show as many other ones, which is what any text in the
            prompt does.
        likelihoods: Record the log-likelihood of the right answer and the choice among answers too, if the model
            scores.
        probes: Ask what was missed in the end once more with the item itself in the prompt, to tell what was lost from
            what could not be learnt.
        relearn: Teach what was missed in the end once more, and ask it again: what comes back was hidden rather than
            lost. The agent is another one afterwards.
        unknown_threshold: An answer of less confidence counts as an abstention where nothing was ever taught, in [0,
            1].
        harness: Tasks of lm-evaluation-harness, which are asked of the model before any learning and after the last
            stage.
        progress: Show a bar, if there is a terminal.
        config: The settings of the run, for the report.
        restore: Puts what `Agent.save` wrote into a folder into a fresh agent, see `memory_paths.build.restore`. With
            it the agent is saved after each stage; without it an interrupted run teaches its agent again.
        sinks: What else is told the figures of each stage and of the report, by name; closed in the end.

    Raises:
        ValueError: An argument outside its range, or a stream that cannot be evaluated.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        folder: str | Path,
        samples: int = 200,
        seed: int = 0,
        control: Control = "",
        likelihoods: bool = False,
        probes: bool = True,
        relearn: bool = False,
        unknown_threshold: float = 0.5,
        harness: Harness | None = None,
        progress: bool = True,
        config: Mapping[str, Any] | None = None,
        restore: Callable[[Agent, Path], None] | None = None,
        sinks: Mapping[str, Sink] | None = None,
    ) -> None:
        if not 0.0 <= unknown_threshold <= 1.0:
            raise ValueError(f"unknown_threshold must be in [0, 1], got {unknown_threshold}")
        self.stream = stream
        self.folder = Path(folder)
        self._plan = Plan(stream, samples=samples, seed=seed, before=likelihoods, control=control)
        self._settings = {"stream": stream_hash(stream), "samples": samples, "seed": seed, "control": control}
        self._settings |= {"likelihoods": likelihoods, "probes": probes, "relearn": relearn}
        self._items = {item.id: item for experience in stream.experiences for item in experience.items}
        self._seed, self._control, self._likelihoods = seed, control, likelihoods
        self._settings |= {"harness": harness.settings} if harness else {}
        self._probes, self._relearn, self._harness = probes, relearn, harness
        self._meter = EnergyMeter()
        self._threshold, self._progress = unknown_threshold, progress
        self._config, self._restore = dict(config or {}), restore
        self._sinks = Sinks(sinks or {})

    def run(self, agent: Agent) -> Report:
        """Teach, ask, record and report; stages that are on record already are not asked again.

        Raises:
            ValueError: The folder holds another run, or the agent is neither fresh nor in a state in which a stage left
                it.
            RecordError: A part of the records is damaged.
        """
        try:
            report = self._run(agent)
            self._sinks.end(report)
        finally:
            self._sinks.close()
        return report

    def _run(self, agent: Agent) -> Report:
        name = self._control or agent.path_name
        settings = self._settings | {"path": name, "lm": agent.lm.name}
        texts = [Prompt(item.text, continues=True) for item in self._items.values()]
        settings |= {
            "parameters": getattr(agent.lm, "parameters", None),
            "item_tokens": sum(map(agent.lm.count_tokens, texts)),
        }
        self._claim(settings)
        done = records.finished_stages(self.folder)
        asked = [ask for ask in self._plan.asks(self._plan.stages - 1) if ask.kind == "direct" and ask.uniform]
        if asked:
            clusters = len({ask.question.cluster or ask.key for ask in asked})
            LOGGER.info(
                "%d questions about %d things: a difference between two paths of %.2f is found four times in five",
                *(len(asked), clusters, minimum_detectable(len(asked), clusters)),
            )
        if done < self._plan.stages:
            refused = self._resume(agent, done)
            past = _Past(records.read_records(self.folder).to_pylist() if done else [], done)
            with _bar(
                self._progress, sum(len(self._plan.asks(stage)) for stage in range(done, self._plan.stages))
            ) as bar:
                for stage in range(done, self._plan.stages):
                    bar.set_description(f"{name}, stage {stage} of {self._plan.stages - 1}")
                    refused = self._stage(agent, stage, refused, past, bar)
        report = self.report()
        report.write(self.folder)
        shutil.rmtree(self.folder / _CHECKPOINTS, ignore_errors=True)
        return report

    def report(self) -> Report:
        """The report of the records in the folder, computed without an agent.

        Raises:
            RecordError: There are none, or a part of them is damaged.
        """
        known = self._known()
        answers = records.read_records(self.folder)
        writes = records.read_writes(self.folder).to_pydict()
        experiences = self._plan.stages - 1
        measured = measure(
            Rows.of(answers), experiences=experiences, unknown_threshold=self._threshold, seed=self._seed
        )
        general = harness_figures(records.read_harness(self.folder).to_pylist(), last=experiences, seed=self._seed)
        return Report(
            path=known["path"],
            lm=known["lm"],
            stream=self.stream.name,
            seed=self._seed,
            load=sum(len(experience.items) for experience in self.stream.experiences),
            metrics={**measured.metrics, **measured_by_path(writes), **general, "chance": self._chance()},
            matrix=measured.matrix,
            cost=costs.summarise(answers.select(costs.COLUMNS).to_pydict(), writes)
            | {"disk_bytes": records.disk_bytes(self.folder)},
            parameters=known.get("parameters"),
            item_tokens=known.get("item_tokens"),
            ages=measured.ages,
            churn=measured.churn,
            misses={} if self._control else measured.misses,  # a control keeps nothing that it could miss
            outcomes=measured.outcomes,
            spread=measured.spread,
            config=self._config or {"evaluation": {**self._settings, "unknown_threshold": self._threshold}},
            versions=versions(),
        )

    def _chance(self) -> Metric:
        if self.stream.chance is None:
            return undefined("the stream does not say what guessing gives")
        return Metric(self.stream.chance)

    def _claim(self, settings: Mapping[str, Any]) -> None:
        """Make sure that what lies in the folder is of this run."""
        file = self._settings_file()
        wanted = json.loads(json.dumps({**settings, "config": {**self._config, **dict.fromkeys(UNTOLD)}}))
        if not file.exists():
            if records.finished_stages(self.folder):
                raise RecordError(f"{self.folder} holds records but no {file.name}; evaluate into a new folder")
            records.write_file(file, json.dumps(wanted, indent=1).encode())
            return
        was, now = flattened(self._known()), flattened(wanted)
        different = sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))
        if different:
            told = [f"{name} was {was.get(name)!r}, now {now.get(name)!r}" for name in different[:3]]
            changed = ", ".join([*told, *([f"and {len(different) - 3} more"] if len(different) > 3 else [])])
            raise ValueError(f"{self.folder} holds the records of another run ({changed}); evaluate into a new folder")

    def _known(self) -> dict[str, Any]:
        file = self._settings_file()
        try:
            known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RecordError(f"{file} is missing or damaged ({error}); evaluate into a new folder") from error
        return known

    def _settings_file(self) -> Path:
        return self.folder / records.RECORDS / records.SETTINGS

    def _resume(self, agent: Agent, done: int) -> str:
        """Bring the agent to where it was after the last finished stage; why it stopped learning, if it did."""
        fresh = not agent.items()
        if not done:
            if not fresh:
                raise ValueError(
                    f"the agent holds {len(agent.items())} items before any learning; give a fresh one, with an empty"
                    " ledger"
                )
            return ""
        writes = records.read_writes(self.folder).to_pylist()
        refused = next((row["reason"] for row in writes[:done] if row["reason"]), "")
        last = done - 1
        checkpoint = self._checkpoint(last)
        if self._restore is not None and checkpoint.exists() and fresh:
            LOGGER.info("stage %d is restored from %s", last, checkpoint)
            self._restore(agent, checkpoint)
            return refused
        state = agent.state_hash()
        reached = [row["stage"] for row in writes if row["state_hash"] == state]
        if not reached:
            raise ValueError(
                f"the records in {self.folder} end after stage {last}, and no stage left the agent in its state; "
                "give a fresh agent, or evaluate into a new folder"
            )
        LOGGER.info("stages %d to %d are taught again, without asking", reached[-1] + 1, last)
        for stage in range(reached[-1] + 1, done):
            if not writes[stage]["reason"] and not refused:
                skipped = set(writes[stage]["skipped"] or ())
                agent.learn([item for item in self.stream.experiences[stage - 1].items if item.id not in skipped])
                agent.flush()
        if agent.state_hash() != writes[last]["state_hash"] and not refused:
            LOGGER.warning("teaching again led to another state than stage %d has on record", last)
        return refused

    def _stage(self, agent: Agent, stage: int, refused: str, past: _Past, bar: Any) -> str:
        """Teach, ask and record one stage; returns why the agent stopped learning, if it did."""
        written = self._learn(agent, stage, refused)
        records.write_part(self.folder, WRITES, stage, [written])
        refused = written["reason"] or ""
        rows = self._ask(agent, stage, refused, written, past, bar)
        if self._harness and stage in (0, self._plan.stages - 1):
            self._harness.remember(records.read_harness(self.folder).to_pylist())
            asked = [{**row, "stage": stage} for row in self._harness.ask(agent)]
            records.write_part(self.folder, HARNESS, stage, asked)
        if self._restore is not None:
            self._save(agent, stage)
            files = [file for file in self._checkpoint(stage).rglob("*") if file.is_file()]
            saved = {"stage": stage, "disk_bytes": sum(file.stat().st_size for file in files)}
            records.write_part(self.folder, records.STATES, stage, [saved])
        if stage == self._plan.stages - 1 and not refused:
            rows += self._probe(agent, stage, rows)
        records.write_part(self.folder, ANSWERS, stage, rows)
        past.add(rows)
        self._sinks.stage(stage, written, rows)
        shutil.rmtree(self._checkpoint(stage - 1), ignore_errors=True)
        return refused

    def _learn(self, agent: Agent, stage: int, refused: str) -> Row:
        """Teach a stage's items: without those that fit at no time, and not at all once there is no more room."""
        experience = self.stream.experiences[stage - 1] if stage else None
        items = list(experience.items) if experience and not refused else []
        cost, measures = Cost(), {}
        self._meter.joules()
        begin = time.perf_counter()
        receipt, skipped, full = _teach(agent, items)
        reason = refused or full or None
        items = [item for item in items if item.id not in skipped]
        if receipt is not None:
            cost, told = receipt.cost, receipt.details.items()
            measures = {name: details["measures"] for name, details in told if "measures" in details}
        wall, joules = time.perf_counter() - begin, self._meter.joules()
        return {
            "stage": stage,
            "experience_name": experience.name if experience else "",
            "items": 0 if reason else len(items),
            "skipped": skipped,
            "weights_hash": agent.weights_hash(),
            "state_hash": agent.state_hash(),
            "stored_bytes": agent.stored_bytes(),
            "reason": reason,
            "measures": json.dumps(measures, sort_keys=True) if measures else None,
            "wall_seconds": wall,
            "joules": joules,
            **costs.as_columns(cost),
        }

    def _ask(self, agent: Agent, stage: int, refused: str, written: Row, past: _Past, bar: Any) -> list[Row]:
        asks = self._plan.asks(stage)
        held = {item.id for item in agent.items()}
        rows = [_row(ask, stage, held) for ask in asks]
        for row, ask in zip(rows, asks, strict=True):
            shown = "" if ask.notes is None else json.dumps(ask.notes)
            row["condition"] = fingerprint(written["weights_hash"], written["state_hash"], shown)
        for noted in (False, True):
            pairs = [(row, ask) for row, ask in zip(rows, asks, strict=True) if (ask.notes is not None) == noted]
            fresh = [(row, ask) for row, ask in pairs if not past.answers(row)]
            reading = not noted or bool(self._control)
            if refused and reading:
                for row, _ in pairs:
                    row.update(dict.fromkeys(_RESULT), reused=False, reason=refused)
            elif fresh:
                self._answer(agent, fresh, noted)
            bar.update(len(pairs))
        return rows

    def _probe(self, agent: Agent, stage: int, rows: Sequence[Row]) -> list[Row]:
        """Ask what was missed again: with the items themselves in the prompt, and after learning them once more."""
        wrong = {row["key"] for row in rows if _is_missed(row)}
        missed = [ask for ask in self._plan.asks(stage) if ask.kind == "direct" and ask.key in wrong]
        held = {item.id for item in agent.items()}
        condition = {"condition": rows[0]["condition"]} if rows else {}
        found: list[Row] = []
        if self._probes and not self._control and missed:
            asks = self._plan.with_item(missed)
            found = [_row(ask, stage, held) | condition for ask in asks]
            self._answer(agent, list(zip(found, asks, strict=True)), noted=True)
        if self._relearn and not self._control and missed:
            ids = dict.fromkeys(id for ask in missed for id in ask.question.ids)
            _teach(agent, [replace(self._items[id], id=f"{id}/again", key="") for id in ids])
            asks = [replace(ask, kind=RELEARNT) for ask in missed]
            again = [_row(ask, stage, held) | condition | {"key": f"{ask.key}/again"} for ask in asks]
            self._answer(agent, list(zip(again, asks, strict=True)), noted=False)
            found += again
        return found

    def _answer(self, agent: Agent, pairs: Sequence[tuple[Row, Ask]], noted: bool) -> None:
        """Fill in the rows: one call for all the answers, one for all the log-likelihoods, and smaller ones where
        something does not fit, so that it does not silence its neighbours."""
        queries = [ask.question.query for _, ask in pairs]
        notes = [ask.notes or () for _, ask in pairs] if noted else None
        self._meter.joules()
        begin = time.perf_counter()
        try:
            answers = agent.answer(queries) if notes is None else agent.answer(queries, notes=notes)
            wall, joules = (time.perf_counter() - begin) / len(pairs), self._meter.joules()
            timed = {"wall_seconds": wall, "joules": None if joules is None else joules / len(pairs)}
            for (row, ask), answer in zip(pairs, answers, strict=True):
                row |= _scored(ask, answer, self._items) | timed
            needing = [(row, ask) for row, ask in pairs if ask.question.scoring in LIKELIHOOD_SCORINGS]
            if isinstance(agent.lm, Scores):
                self._score(agent, pairs if self._likelihoods else needing, noted)
            else:
                for row, ask in needing:
                    row["reason"] = (
                        f"{agent.lm.name} gives no log-likelihoods, by which {ask.question.scoring} is scored"
                    )
        except TooLarge as error:
            if len(pairs) > 1:
                middle = len(pairs) // 2
                self._answer(agent, pairs[:middle], noted)
                self._answer(agent, pairs[middle:], noted)
                return
            ((row, _),) = pairs
            row |= dict.fromkeys(_RESULT) | {"reason": _words(error)}

    def _score(self, agent: Agent, pairs: Sequence[tuple[Row, Ask]], noted: bool) -> None:
        wanted = [
            (row, ask, text)
            for row, ask in pairs
            for text in dict.fromkeys((*ask.question.targets[:1], *ask.question.choices))
            if ask.question.targets
        ]
        if not wanted:
            return
        asked = [(ask.question.query, text) for _, ask, text in wanted]
        notes = [ask.notes or () for _, ask, _ in wanted] if noted else None
        scores = agent.score(asked) if notes is None else agent.score(asked, notes=notes)
        likely: dict[str, dict[str, float]] = {}
        for (row, _, text), score in zip(wanted, scores, strict=True):
            likely.setdefault(row["arm"] + row["key"], {})[text] = score.loglikelihood / max(1, score.tokens)
        for row, ask in pairs:
            found = likely.get(row["arm"] + row["key"])
            if found is None:
                continue
            row["loglikelihood_per_token"] = found[ask.question.targets[0]]
            if ask.question.scoring in LIKELIHOOD_SCORINGS:
                row["correct"] = worth_by_likelihood(ask.question, found)
            if len(ask.question.choices) > 1:
                best = max(ask.question.choices, key=lambda choice: found[choice])
                row["choice_correct"] = exact_match(best, ask.question.targets)

    def _checkpoint(self, stage: int) -> Path:
        return self.folder / _CHECKPOINTS / f"{stage:04d}"

    def _save(self, agent: Agent, stage: int) -> None:
        target = self._checkpoint(stage)
        shutil.rmtree(target, ignore_errors=True)
        agent.save(target)


class _Past:
    """Answers on record, to be taken again where nothing that they depend on has changed."""

    def __init__(self, rows: Sequence[Row], stages: int) -> None:
        self._known: dict[tuple[str, str, str], Row] = {}
        self.add([row for row in rows if row["stage"] < stages])

    def add(self, rows: Sequence[Row]) -> None:
        """Remember rows."""
        self._known.update({(row["condition"], row["arm"], row["key"]): row for row in rows if not row["reason"]})

    def answers(self, row: Row) -> bool:
        """Fill in a row from the past, if it was asked before in the same condition."""
        there = self._known.get((row["condition"], row["arm"], row["key"]))
        if there is not None:
            row.update({name: there.get(name) for name in _RESULT}, reused=True)
        return there is not None


def _row(ask: Ask, stage: int, held: set[str]) -> Row:
    question = ask.question
    return {
        "stage": stage,
        "arm": ask.arm,
        "key": ask.key,
        "kind": ask.kind,
        "experience": ask.experience,
        "uniform": ask.uniform,
        "cluster": question.cluster,
        "question": question.query.text,
        "ids": list(question.ids),
        "targets": list(question.targets),
        "held": held.issuperset(question.ids) if question.ids else None,
        "reused": False,
        "reason": None,
    }


def _scored(ask: Ask, answer: Answer, items: Mapping[str, Knowledge]) -> Row:
    question = ask.question
    offered = [items[id].text for id in answer.offered if id in items]
    shown = [recall.item.text for recall in answer.recalls]
    return {
        "answer": answer.text,
        "correct": worth(question, answer.text),
        "token_f1": token_f1(answer.text, question.targets) if question.targets else None,
        "word_accuracy": word_accuracy(answer.text, question.targets[0]) if question.query.continues else None,
        "stale": exact_match(answer.text, question.stale) if question.stale else None,
        "confidence": answer.confidence,
        "recalls": list(answer.offered),
        "shown": [recall.item.id for recall in answer.recalls],
        "answer_offered": stands_in(question.targets, offered) if question.targets else None,
        "answer_shown": stands_in(question.targets, shown) if question.targets else None,
        "prompt_hash": answer.prompt_hash,
        **costs.as_columns(answer.cost),
    }


def _teach(agent: Agent, items: Sequence[Knowledge]) -> tuple[Receipt | None, list[str], str]:
    """Teach items without those that fit at no time; the receipt if any were learnt, the ids of those left out, and why
    nothing was learnt where there is no more room."""
    skipped: list[str] = []
    left = list(items)
    while left:
        try:
            receipt = agent.learn(left)
            agent.flush()
            return receipt, skipped, ""
        except TooLarge as error:
            LOGGER.warning("%s", error)
            fitting = [item for item in left if item.id not in error.items]
            if len(fitting) == len(left):
                return None, skipped, _words(error)
            skipped += [item.id for item in left if item.id in error.items]
            left = fitting
    return None, skipped, ""


def _is_missed(row: Row) -> bool:
    worth = row["correct"]
    return bool(row["kind"] == "direct" and row["uniform"] and worth is not None and worth < RIGHT)


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _bar(shown: bool, total: int) -> Any:
    from tqdm.auto import tqdm

    # A rate over the whole run, for questions come in bursts with learning in between.
    return tqdm(
        total=total,
        unit=" questions",
        smoothing=0,
        bar_format="{desc}{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}{unit}, {rate_noinv_fmt}, {remaining} left",
        disable=None if shown else True,
        leave=False,
    )
