"""lm-evaluation-harness, both ways round: models and agents of this package as its model, its tasks as our probes.

`as_harness_model` gives what `lm_eval.simple_evaluate(model=...)` runs on. `Harness` asks tasks of the harness of the
model that a path leaves behind, and `figures` says what became of its general ability. The package lm-eval is imported
only when one of the first two is used; figures are computed from records alone.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from memory_paths.agent import Agent
from memory_paths.evaluation.metrics import Metric, undefined
from memory_paths.evaluation.records import fingerprint
from memory_paths.evaluation.statistics import DIFFERENCE, SHARE, UNBOUNDED, Bounds, cluster_interval, generator_for
from memory_paths.lm import CausalLM, layout
from memory_paths.types import Prompt, TooLarge

NAME = "memory_paths"
MOST_NEW_TOKENS = 256  # where a task does not say how long an answer may be, as in the harness
# The names under which tasks say so; the first one that is there holds.
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")

Row = dict[str, Any]
# From the mean log-likelihood, or any other mean over documents, to the figure that the harness calls by this name.
_AGGREGATIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda mean: mean,
    "perplexity": lambda mean: np.exp(-mean),
    "weighted_perplexity": lambda mean: np.exp(-mean),
    "bits_per_byte": lambda mean: -mean / math.log(2),
}


def as_harness_model(model: CausalLM | Agent, *, recall: bool = True) -> Any:
    """A model or an agent as an `lm_eval.api.model.LM`: pass it to `lm_eval.simple_evaluate(model=...)`.

    Texts are tokenised as the harness does it for its own transformers models, and cut on the left where they are
    longer than the window. An agent answers by the model that its default path leaves behind; beside that, what the
    path recalls for the last paragraph of a context stands before the context, as notes.

    Args:
        model: Which.
        recall: Whether an agent's notes stand in the prompt; without them the figures are those of its model alone.

    Raises:
        ImportError: lm-eval is not installed.
        TypeError: Neither an agent nor a model whose tokens can be seen.
    """
    return _model_class()(model, recall=recall)


def register() -> None:
    """Make the model known to the harness by name: `simple_evaluate(model="memory_paths", model_args="agent=FOLDER")`
    runs on the agent that was saved there.

    Raises:
        ImportError: lm-eval is not installed.
    """
    _model_class()


@functools.cache
def _model_class() -> Any:
    """The adapter's class; made on first use, for its base class is the harness's."""
    try:
        from lm_eval.api.model import TemplateLM
        from lm_eval.api.registry import register_model
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    except ImportError as error:
        raise ImportError(f"lm-evaluation-harness is missing ({error}): pip install 'memory_paths[harness]'") from error

    @register_model(NAME)
    class HarnessModel(TemplateLM):
        """See `as_harness_model`; `agent` is the folder of a saved agent, for command lines."""

        def __init__(
            self, model: Any = None, *, agent: str | None = None, recall: bool = True, **unused: object
        ) -> None:
            super().__init__()
            if agent is not None:
                model = Agent.load(agent)
            self._agent = model if isinstance(model, Agent) else None
            lm = model.lm if isinstance(model, Agent) else model
            if not isinstance(lm, CausalLM):
                raise TypeError(
                    "the harness needs a model whose tokens can be seen, a memory_paths.lm.CausalLM, or an agent with"
                    f" one; got {type(lm).__name__}"
                )
            self._lm = lm
            self._recalls = recall and self._agent is not None
            self.tokenizer = lm.tokenizer

        @property
        def eot_token_id(self) -> int:
            return int(self.tokenizer.eos_token_id)

        @property
        def prefix_token_id(self) -> int:
            begin = self.tokenizer.bos_token_id
            return self.eot_token_id if begin is None else int(begin)

        @property
        def max_length(self) -> int:
            return self._lm.window

        @property
        def tokenizer_name(self) -> str:
            return str(self.tokenizer.name_or_path).replace("/", "__")

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **unused: object) -> list[int]:
            (ids,) = self._encode([string], add_special_tokens)
            return ids

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return str(
                self.tokenizer.apply_chat_template(
                    chat_history,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
            )

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            contexts, continuations = (
                [request.args[0] for request in requests],
                [request.args[1] for request in requests],
            )
            reserves = [len(ids) + 2 for ids in self._encode(continuations)] if self._recalls else [0] * len(requests)
            pairs = list(zip(self._with_notes(contexts, reserves), continuations, strict=True))
            return self._scores(self._pairs(pairs))

        def _loglikelihood_tokens(self, requests: list[Any], **unused: object) -> list[tuple[float, bool]]:
            return self._scores([(given, scored) for _, given, scored in requests])

        def _scores(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
            with self._lent() as lm:
                scores = lm.score_tokens([self._cut(given, scored) for given, scored in pairs])
            return [(score.loglikelihood, score.greedy) for score in scores]

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            windows: list[tuple[list[int], list[int]]] = []
            owners: list[int] = []
            for owner, ids in enumerate(self._encode([request.args[0] for request in requests])):
                for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1):
                    windows.append(make_disjoint_window(window))
                    owners.append(owner)
            totals = [0.0] * len(requests)
            for owner, (loglikelihood, _) in zip(owners, self._scores(windows), strict=True):
                totals[owner] += loglikelihood
            return totals

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            groups: dict[str, list[int]] = {}
            for index, request in enumerate(requests):
                groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
            found: dict[int, str] = {}
            with self._lent() as lm:
                for described, members in groups.items():
                    options = json.loads(described)
                    until = options.get("until") or []
                    most = next((int(options[name]) for name in _LENGTHS if options.get(name)), MOST_NEW_TOKENS)
                    if not 0 < most < self.max_length:
                        raise ValueError(
                            f"an answer may have from 1 to {self.max_length - 1} tokens beside its prompt, the task"
                            f" allows {most}; set max_gen_toks in its generation_kwargs"
                        )
                    sampled = options.get("do_sample", True)
                    contexts = self._with_notes([requests[index].args[0] for index in members], [most] * len(members))
                    answers = lm.continue_tokens(
                        [ids[-(self.max_length - most) :] for ids in self._encode(contexts)],
                        max_new_tokens=most,
                        until=[until] if isinstance(until, str) else until,
                        temperature=float(options.get("temperature") or 0.0) if sampled else 0.0,
                    )
                    found.update(zip(members, answers, strict=True))
            return [found[index] for index in range(len(requests))]

        @contextmanager
        def _lent(self) -> Iterator[CausalLM]:
            if self._agent is None:
                yield self._lm
            else:
                with self._agent.model() as lm:
                    yield lm

        def _encode(self, texts: Sequence[str], add_special_tokens: bool | None = None) -> list[list[int]]:
            """Tokens of texts, the tokenizer's own put before them unless they stand there already or are refused."""
            begin = self.tokenizer.decode(self.prefix_token_id)
            bare = [
                not (add_special_tokens or (add_special_tokens is None and not one.startswith(begin))) for one in texts
            ]
            found: dict[int, list[int]] = {}
            for without in (False, True):
                members = [index for index, one in enumerate(bare) if one == without]
                if members:
                    chosen = [texts[index] for index in members]
                    ids = self.tokenizer(chosen, add_special_tokens=not without, verbose=False)["input_ids"]
                    found.update(zip(members, map(list, ids), strict=True))
            return [found[index] for index in range(len(texts))]

        def _pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
            """Tokens of contexts and continuations: of both in one, without those of the context.

            Spaces at a context's end are the continuation's, for they are part of a word's first token.
            """
            moved = []
            for context, continuation in pairs:
                kept = context.rstrip()
                moved.append((kept, context[len(kept) :] + continuation) if context else (context, continuation))
            contexts = list(dict.fromkeys(context for context, _ in moved))
            given = dict(zip(contexts, self._encode(contexts), strict=True))
            whole = self._encode([context + continuation for context, continuation in moved])
            alone = [index for index, (context, _) in enumerate(pairs) if not context]
            bare = self._encode([pairs[index][1] for index in alone], add_special_tokens=False)
            found = [
                (given[context], ids[len(given[context]) :]) for (context, _), ids in zip(moved, whole, strict=True)
            ]
            for index, ids in zip(alone, bare, strict=True):
                found[index] = (
                    (ids[:1], ids[1:]) if ids[:1] == [self.prefix_token_id] else ([self.prefix_token_id], ids)
                )
            for pair, (before, scored) in zip(pairs, found, strict=True):
                if not before or not scored:
                    raise ValueError(f"a continuation needs tokens of its own and something before it, got {pair!r}")
            return found

        def _with_notes(self, contexts: Sequence[str], reserves: Sequence[int]) -> list[str]:
            """The contexts behind what an agent's path recalls for them, as far as that leaves `reserves` tokens."""
            if not self._recalls:
                return list(contexts)
            most: dict[str, int] = {}
            for context, reserve in zip(contexts, reserves, strict=True):
                most[context] = max(reserve, most.get(context, 0))
            noted = {context: self._noted(context, reserve) for context, reserve in most.items()}
            return [noted[context] for context in contexts]

        def _noted(self, context: str, reserve: int) -> str:
            asked = context.rstrip().rpartition("\n\n")[2].strip()
            if not asked or self._agent is None:
                return context
            try:
                kept = list(self._agent.recall(asked))
            except TooLarge:
                return context
            begin = self.tokenizer.decode(self.prefix_token_id)
            begin = begin if context.startswith(begin) else ""
            while kept:
                notes = tuple(self._harmless(recall.item.text) for recall in kept)
                text = begin + layout(Prompt("", notes, continues=True)) + context.removeprefix(begin)
                if len(self.tok_encode(text)) + reserve <= self.max_length:
                    return text
                kept.remove(min(kept, key=lambda recall: recall.score))
            return context

        def _harmless(self, note: str) -> str:
            """Data in which no control token is spelt: contexts may have some, which the tokenizer is to see."""
            for token in self.tokenizer.added_tokens_decoder.values():
                note = note.replace(token.content, f"{token.content[:1]} {token.content[1:]}")
            return note

        def _cut(self, given: list[int], scored: list[int]) -> tuple[list[int], list[int]]:
            """Of what is given the last tokens that the window holds beside all scored ones but the last."""
            if len(scored) > self.max_length:
                raise TooLarge(f"a continuation has {len(scored)} tokens, the window holds {self.max_length}")
            return given[-(self.max_length + 1 - len(scored)) :], scored

    return HarnessModel


class Harness:
    """Tasks of the harness as probes of what a model could do before a path taught it anything, and can do still.

    The model is asked as the path leaves it, without what the path would put into the prompt. Asked again in an
    unchanged condition, a task costs nothing: the model of a window or a bank is asked once.

    Args:
        tasks: Names of tasks, groups or tags; none: all tasks of the folder.
        folder: With task files in the harness's YAML form; None: only the tasks that the harness brings.
        limit: Most documents of a task, or below 1 a share of them; None: all.
        seed: Of the choice of examples that a task shows in its prompts.

    Raises:
        ValueError: Neither tasks nor a folder, or a limit that is not above 0.
        FileNotFoundError: There is no such folder.
    """

    def __init__(
        self, tasks: Sequence[str] = (), *, folder: str | Path | None = None, limit: float | None = None, seed: int = 0
    ) -> None:
        if not tasks and folder is None:
            raise ValueError("the harness needs names of tasks, or a folder with task files")
        if folder is not None and not Path(folder).is_dir():
            raise FileNotFoundError(f"there is no folder of task files {str(folder)!r}")
        if limit is not None and limit <= 0:
            raise ValueError(f"limit must be above 0, got {limit}")
        self.settings = {"tasks": list(tasks), "folder": folder and str(folder), "limit": limit, "seed": seed}
        self._names, self._folder, self._limit, self._seed = list(tasks), folder, limit, seed
        self._known: dict[str, list[Row]] = {}

    def condition(self, agent: Agent) -> str:
        """Changes when the model that the agent's default path answers with does."""
        path = agent.paths[agent.path_name]
        return fingerprint(agent.weights_hash(), path.state_hash() if path.capabilities.changes_weights else "")

    def remember(self, rows: Sequence[Row]) -> None:
        """Take rows as known, as far as they say in which condition their model was."""
        known: dict[str, list[Row]] = {}
        for row in rows:
            known.setdefault(row["condition"], []).append(row)
        self._known.update(known)

    def ask(self, agent: Agent) -> list[Row]:
        """One row for each task, metric and document: what it was worth, and by what weight it counts.

        Raises:
            ImportError: lm-eval is not installed.
            ValueError: No task of such a name.
            TypeError: A model whose tokens cannot be seen.
        """
        condition = self.condition(agent)
        if condition in self._known:
            return [{**row, "reused": True} for row in self._known[condition]]
        model = as_harness_model(agent, recall=False)
        from lm_eval.evaluator import evaluate

        loaded = self._tasks
        for task in loaded["tasks"].values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=self._seed)  # each time, for each asking draws
        with _templates_compiled_once():
            done = evaluate(lm=model, task_dict=loaded, limit=self._limit, bootstrap_iters=0, log_samples=True)
        rows = [
            {**row, "condition": condition, "reused": False}
            for name, samples in done["samples"].items()
            for row in _rows(name, loaded["tasks"][name], samples)
        ]
        self._known[condition] = rows
        return rows

    @functools.cached_property
    def _tasks(self) -> Any:
        from lm_eval.tasks import TaskManager

        # The harness's own tasks are thousands of files, which take long to go through.
        own = TaskManager(include_path=self._folder, include_defaults=False) if self._folder is not None else None
        names = self._names or (own.all_subtasks if own else [])
        if not names:
            raise ValueError(f"there are no task files in {str(self._folder)!r}")
        manager = own if own and set(names) <= set(own.all_tasks) else TaskManager(include_path=self._folder)
        if unknown := [name for name in names if name not in manager.all_tasks]:
            there = f"; the folder has {own.all_tasks}" if own else ""
            raise ValueError(f"lm-evaluation-harness knows no tasks {unknown}{there}; `lm_eval ls tasks` lists its own")
        return manager.load(names)


@contextmanager
def _templates_compiled_once() -> Iterator[None]:
    """Spare the harness to compile its templates for each document anew, which takes longer than a small model does."""
    from lm_eval import utils

    utils.env.from_string = functools.cache(utils.env.from_string)
    try:
        yield
    finally:
        del utils.env.from_string


def _rows(name: str, task: Any, samples: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    for sample in samples:
        for metric in sample["metrics"]:
            aggregation = getattr(task.aggregation().get(metric), "__name__", "mean")
            entry = sample[metric]
            weighed = aggregation in ("weighted_perplexity", "bits_per_byte")
            value, weight = entry if weighed else (entry, 1.0)
            single = aggregation in _AGGREGATIONS and isinstance(value, Real) and math.isfinite(value)
            yield {
                "task": name,
                "metric": metric if sample["filter"] == "none" else f"{metric}_{sample['filter']}".replace("-", "_"),
                "document": int(sample["doc_id"]),
                "document_hash": sample["doc_hash"],
                "aggregation": aggregation,
                "more_is_better": bool(task.higher_is_better().get(metric, True)),
                "value": float(value) if single else None,
                "weight": float(weight) if single else None,
            }


# Figures of records


def figures(rows: Sequence[Row], *, last: int, seed: int = 0) -> dict[str, Metric]:
    """What the model could do before any learning, after the last stage, and the change, by task and metric.

    `harness_TASK_METRIC_before`, `_after` and `_change`; and over the tasks with a share of right answers the mean of
    their first one, each task counting once: `general_ability_before`, `_after` and `_change`.

    Args:
        rows: As `Harness.ask` gives them, with their `stage`.
        last: Number of the last stage.
        seed: Of the intervals.
    """
    cells: dict[tuple[str, str], dict[int, dict[int, Row]]] = {}
    for row in rows:
        cell = cells.setdefault((row["task"], row["metric"]), {})
        cell.setdefault(row["stage"], {})[row["document"]] = row
    found: dict[str, Metric] = {}
    headlines: dict[str, _Column] = {}
    for (task, metric), stages in cells.items():
        column = _Column.of(stages.get(0, {}), stages.get(last, {}))
        found |= _three(f"harness_{task}_{metric}", [column], seed)
        if column.share and task not in headlines:
            headlines[task] = column
    return found | (_three("general_ability", list(headlines.values()), seed) if rows else {})


@dataclass(frozen=True)
class _Column:
    """A metric of a task: sums and weights of its documents, of shape (documents, 2), before and after."""

    values: np.ndarray
    weights: np.ndarray
    aggregation: str
    share: bool
    missing: str

    @staticmethod
    def of(before: Mapping[int, Row], after: Mapping[int, Row]) -> _Column:
        rows = [*before.values(), *after.values()]
        aggregation = rows[0]["aggregation"]
        documents = sorted(before.keys() & after.keys())
        missing = ""
        if not documents:
            missing = "the task was not asked both before any learning and after the last stage"
        elif any(row["value"] is None for row in rows):
            missing = f"{aggregation!r} is no mean over documents, of which an interval could be drawn"
        paired = [] if missing else [(before[document], after[document]) for document in documents]
        values = np.array([[row["value"] for row in pair] for pair in paired], dtype=float).reshape(-1, 2)
        weights = np.array([[row["weight"] for row in pair] for pair in paired], dtype=float).reshape(-1, 2)
        share = not missing and aggregation == "mean" and bool(((values >= 0) & (values <= 1)).all())
        return _Column(values, weights, aggregation, share and rows[0]["more_is_better"], missing)


def _three(name: str, columns: Sequence[_Column], seed: int) -> dict[str, Metric]:
    """Before, after and change of the mean over columns, whose documents are redrawn."""
    if not columns:
        missing = "no task has a share of right answers"
    else:
        missing = next((column.missing for column in columns if column.missing), "")
    if missing:
        return {f"{name}_{part}": undefined(missing) for part in ("before", "after", "change")}
    size = sum(len(column.values) for column in columns)
    sums, counts = np.zeros((2, size, len(columns), 2))
    begin = 0
    for number, column in enumerate(columns):
        end = begin + len(column.values)
        sums[begin:end, number], counts[begin:end, number] = column.values, column.weights
        begin = end
    as_figure = _AGGREGATIONS[columns[0].aggregation]
    shares = all(column.share for column in columns)

    def of(part: str, bounds: Bounds, pick: Callable[[np.ndarray], np.ndarray]) -> Metric:
        def statistic(means: np.ndarray) -> np.ndarray:
            by_column = as_figure(means.reshape(*means.shape[:-1], len(columns), 2))
            mean: np.ndarray = pick(by_column).mean(axis=-1)
            return mean

        flat_sums, flat_counts = sums.reshape(size, -1), counts.reshape(size, -1)
        value = float(statistic(flat_sums.sum(0) / flat_counts.sum(0)))
        interval = cluster_interval(
            flat_sums, flat_counts, statistic, generator=generator_for(seed, name, part), bounds=bounds
        )
        low, high = (edge if math.isfinite(edge) else None for edge in (interval.low, interval.high))
        return Metric(value, low, high, size)

    bounds = SHARE if shares else UNBOUNDED
    return {
        f"{name}_before": of("before", bounds, lambda figure: figure[..., 0]),
        f"{name}_after": of("after", bounds, lambda figure: figure[..., 1]),
        f"{name}_change": of(
            "change", DIFFERENCE if shares else UNBOUNDED, lambda figure: figure[..., 1] - figure[..., 0]
        ),
    }
