"""The language model: any transformers causal LM, asked in batches, scored, counted and hashed.

How a `Prompt` becomes tokens is decided here and nowhere else. This file knows nothing of memory paths, of storage, or
of how weights are changed; it only notices that they did, so that no cached state outlives the weights it came from.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import logging
import math
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memory_paths.prefixes import Prefix, Prefixes, common, read_prefix, stored_prefixes, write_prefix
from memory_paths.types import Generation, Phrasing, Prompt, TooLarge, ToolCall, Turn, Usage

logger = logging.getLogger(__name__)

DTYPES = ("auto", "bfloat16", "float16", "float32")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")

# A frozen prefix is computed in blocks of this many tokens, each in a forward pass of its own. A block's keys and
# values then come from the same operations on the same shapes whether earlier calls left it behind or not, so that
# results do not depend on what was asked before: an interrupted run that is resumed gives the same bytes.
PREFIX_BLOCK = 64
# A prefix pays when many prompts of a call share it; small groups would only break up the batches.
PREFIX_SHARE = 0.25
# A context of fewer tokens is read again for each of its continuations: a second pass would cost more than that.
FORK_TOKENS = 8
# On a CPU more tokens in one pass fall out of its caches.
PASS_TOKENS = 4096
# Of the control tokens that chat templates make by themselves, by what is laid out.
CONTROLS_KEPT = 1024


def one_line(text: str) -> str:
    """The text with every run of white space as one space, and none at its ends."""
    return " ".join(text.split())


def layout(prompt: Prompt) -> str:
    """The prompt as the text that a model without a chat template continues with `" " + answer`.

    What is data cannot pose as a turn: none of its lines stands at the beginning of a line of the prompt.
    """
    asked = one_line(prompt.question)
    given = f"{_tools(prompt)}{''.join(map(_said, prompt.turns))}{_notes(prompt)}"
    if prompt.continues:
        return f"{given}{asked}"
    return f"{given}Question: {asked}\nAnswer:" if asked or not prompt.turns else f"{given}Answer:"


def _notes(prompt: Prompt) -> str:
    return "Notes:\n" + "".join(f"- {one_line(note)}\n" for note in prompt.notes) + "\n" if prompt.notes else ""


def _tools(prompt: Prompt) -> str:
    return "Tools:\n" + "".join(f"- {_json(tool)}\n" for tool in prompt.tools) + "\n" if prompt.tools else ""


def _said(turn: Turn) -> str:
    """A turn in lines of its own, as a model without roles reads it."""
    heads = {"system": "Instructions", "user": "Question", "assistant": "Answer", "tool": f"Result {turn.answers}"}
    lines = [f"{one_line(heads[turn.role])}: {_indented(turn.text)}\n"] if turn.text or not turn.calls else []
    lines += [f"Call {one_line(call.id)}: {one_line(call.name)} {_json(call.arguments)}\n" for call in turn.calls]
    return "".join(lines)


def _indented(text: str) -> str:
    return "\n  ".join(text.strip().splitlines())


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class _Row:
    """A sequence to be read: what stands before `start` is given, what follows is scored."""

    ids: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class TokenScore:
    """Log-likelihood of tokens in nats, and whether each of them was the likeliest at its place."""

    loglikelihood: float
    greedy: bool


class CausalLM:
    """A transformers causal language model with its tokenizer. Threads may share it; calls take turns.

    Args:
        name: A folder that `save_pretrained` wrote, or a name on the hub.
        device: Where it runs, such as "cpu" or "cuda:1".
        dtype: One of "float32", "bfloat16", "float16", or "auto" for what the checkpoint has.
        device_map: Passed on to transformers, to spread a large model; `device` is not used then.
        batch_size: Most sequences in one forward pass.
        prefix_cache: Whether the keys and values of a token prefix that the prompts of a call share are computed once
            and kept for the next call. Models with sliding-window or recurrent layers go without.
        chat_template: Whether to use the tokenizer's chat template where it has one.
        prefix_folder: Where `save_prefix` and `load_prefix` find files that are named without a folder; None: here.
        window: Most tokens of prompt and answer together; None: `trained_window` of the model's config, or else its
            `max_position_embeddings`.
        trust_remote_code: Whether code that comes with the checkpoint may run.
        loader: Gives module and tokenizer for `name` in place of transformers' automatic classes.
        memory: Folder of what was attached to this model later; None: the model as it is.
        memory_loader: Puts what is in the folder into the module.

    Raises:
        FileNotFoundError: No such folder or hub name, a folder without config or tokenizer, or one without a memory.
        ValueError: An option out of range; a model that does not tell its window, keeps no keys and values, or has no
            end-of-sequence token; a memory that does not fit it.
    """

    def __init__(
        self,
        name: str,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        device_map: str | dict[str, Any] | None = None,
        batch_size: int = 32,
        prefix_cache: bool = True,
        chat_template: bool = True,
        prefix_folder: str | Path | None = None,
        window: int | None = None,
        trust_remote_code: bool = False,
        loader: Callable[[str], tuple[Any, Any]] | None = None,
        memory: str | Path | None = None,
        memory_loader: Callable[[Any, Path], Any] | None = None,
    ) -> None:
        import torch

        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {DTYPES}, got {dtype!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.name = str(name)
        self.batch_size = batch_size
        self.prefix_cache = prefix_cache
        if loader is None:
            self.module, self.tokenizer = _load(self.name, dtype, device_map, trust_remote_code)
        else:
            self.module, self.tokenizer = loader(self.name)
            if dtype != "auto":
                self.module.to(getattr(torch, dtype))
        if device_map is None:
            self.module.to(device)
        if memory is not None:
            if memory_loader is None:
                raise ValueError(f"memory {str(memory)!r} needs a memory_loader that puts it into the model")
            memory_loader(self.module, Path(memory))
        self.module.eval()
        self.window = _window(self.name, self.module.config, window)
        # Asked of the bare model once: a wrapper around it (an adapter's) hides the signature and passes arguments on.
        self._accepted = frozenset(inspect.signature(self.module.forward).parameters)
        self._cache_argument = cache_argument(self.module)
        if self.tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer of {self.name!r} has no eos token; set eos_token in tokenizer_config.json")
        self._stop_ids = self._read_stop_ids()
        self._ends: dict[int, bool] = {}
        self._lead = self._read_lead()
        self._control_ids = self._read_control_ids()
        self._chats = bool(chat_template and getattr(self.tokenizer, "chat_template", None))
        self._chat_controls: dict[str, tuple[int, ...]] = {}
        self._prefixes = Prefixes()
        self._prefix_folder = None if prefix_folder is None else Path(prefix_folder)
        self._prefix_files: set[Path] = set()
        self._revision: tuple[int, str] = (0, "")
        self._lock = threading.RLock()

    def token_ids(self, prompt: Prompt) -> list[int]:
        """The exact tokens of the laid-out prompt. All texts in it are data: no control token can come from them.

        Raises:
            ValueError: The tokenizer or its chat template makes a control token of plain text all the same, or the
                template refuses the order of the turns.
        """
        with self._lock:
            if self._chats and not prompt.continues:
                return self._chat_ids(prompt)
            return [*self._lead, *self._text_ids(layout(prompt))]

    def count_tokens(self, prompt: Prompt) -> int:
        """Exact number of tokens of the laid-out prompt."""
        return len(self.token_ids(prompt))

    def count_answer_tokens(self, pairs: Sequence[tuple[Prompt, str]]) -> list[int]:
        """Number of tokens over which `loglikelihood` sums, for each pair."""
        rows = [self._pair(prompt, answer) for prompt, answer in pairs]
        return [len(row.ids) - row.start for row in rows]

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int = 32, temperature: float = 0.0, seed: int = 0
    ) -> list[Generation]:
        """Answers with a natural stop (an end-of-sequence token or a new line), one for each prompt, in order.

        Prompt and answer share the window: an answer is cut where it is full. `Generation.token_ids` ends with
        the stop. `Usage.tokens` are those of prompt and answer; `flops` see `forward_flops`, a shared prefix being
        charged once to the call, in equal parts, whether or not an earlier call left it behind; `seconds` are an equal
        part of the call's.

        Args:
            prompts: What is asked; may be empty.
            max_new_tokens: Most tokens of an answer, the stop included.
            temperature: 0 for the most likely token each time; above 0: sampled from softmax(logits / temperature).
            seed: Of the sampling; the n-th prompt of a call draws the same numbers in whatever batch it is.

        Raises:
            TooLarge: A prompt longer than the window.
            ValueError: An option out of range.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        if not (temperature >= 0 and math.isfinite(temperature)):
            raise ValueError(f"temperature must be a number of at least 0, got {temperature}")
        started = time.perf_counter()
        found: dict[int, Generation] = {}
        with self._lock, evaluating(self.module):
            rows = [_Row(tuple(ids), len(ids)) for ids in map(self.token_ids, prompts)]
            self._check_window(rows)
            draws = [random.Random(f"{seed}:{index}") for index in range(len(rows))]
            flops_of = functools.cache(self.forward_flops)  # walks through all modules; answers are of few lengths
            for group, prefix in self._groups(rows):
                shared = len(prefix.ids) if prefix else 0
                for batch in _batches(group, rows, self.batch_size):
                    chosen, drawn = [rows[index] for index in batch], [draws[index] for index in batch]
                    answers = self._answer(chosen, prefix, max_new_tokens, temperature, drawn, self._ends_answer)
                    for index, (new, loglikelihood, stopped) in zip(batch, answers, strict=True):
                        ids = rows[index].ids
                        read = len(ids) - shared + len(new) - 1  # the last token is said and never read
                        flops = flops_of(read, after=shared, logits=len(new))
                        flops += flops_of(shared, logits=0) / len(group)
                        found[index] = Generation(
                            self._text(new),
                            tuple(new),
                            loglikelihood,
                            _hash_ids(ids),
                            Usage(tokens=len(ids) + len(new), flops=flops),
                            stopped,
                        )
        seconds = (time.perf_counter() - started) / max(1, len(rows))
        return [replace(found[i], usage=replace(found[i].usage, seconds=seconds)) for i in range(len(rows))]

    def loglikelihood(self, pairs: Sequence[tuple[Prompt, str]]) -> list[float]:
        """Log-likelihood of each answer after its prompt, in nats, the stop excluded.

        Raises:
            TooLarge: A prompt and answer that are longer than the window.
            ValueError: An answer without text.
        """
        with self._lock, evaluating(self.module):
            rows = [self._pair(prompt, answer) for prompt, answer in pairs]
            self._check_window(rows)
            return [score.loglikelihood for score in self._scored(rows)]

    def score_tokens(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[TokenScore]:
        """How likely tokens are after those that are given, for callers that lay out and tokenise texts themselves.

        Pairs that share what is given, or all tokens but the last, share the work on it.

        Raises:
            TooLarge: More tokens than the window, the last one of the pair, which is not read, left aside.
            ValueError: Nothing is given, or nothing is to be scored.
        """
        rows = [_Row((*given, *tokens), len(given)) for given, tokens in pairs]
        for row in rows:
            if not 0 < row.start < len(row.ids):
                raise ValueError(
                    f"a pair needs a token that is given and one to be scored, got {row.start} and"
                    f" {len(row.ids) - row.start}"
                )
        with self._lock, evaluating(self.module):
            self._check_window([_Row(row.ids[:-1], row.start) for row in rows])
            return self._scored(rows)

    def continue_tokens(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        until: Sequence[str] = (),
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """What the model writes after tokens, up to an end-of-sequence token or the first of the texts in `until`.

        For callers that lay out and tokenise texts themselves; unlike in `generate`, a new line is no stop by itself,
        and white space stays. Options as in `generate`.

        Raises:
            TooLarge: A prompt longer than the window.
        """
        stops = [stop for stop in until if stop]
        # No stop has more tokens than bytes; two more, for it may begin and end within one.
        reach = max((len(stop.encode()) for stop in stops), default=0) + 2

        def ends(new: Sequence[int]) -> bool:
            if new[-1] in self._stop_ids:
                return True
            tail = self.tokenizer.decode(new[-reach:], skip_special_tokens=True) if stops else ""
            return any(stop in tail for stop in stops)

        found: dict[int, str] = {}
        with self._lock, evaluating(self.module):
            rows = [_Row(tuple(ids), len(ids)) for ids in prompts]
            self._check_window(rows)
            draws = [random.Random(f"{seed}:{index}") for index in range(len(rows))]
            for group, prefix in self._groups(rows):
                for batch in _batches(group, rows, self.batch_size):
                    chosen, drawn = [rows[index] for index in batch], [draws[index] for index in batch]
                    answers = self._answer(chosen, prefix, max_new_tokens, temperature, drawn, ends)
                    for index, (new, _, _) in zip(batch, answers, strict=True):
                        text = str(self.tokenizer.decode(new, skip_special_tokens=True))
                        for stop in stops:
                            text = text.split(stop, 1)[0]
                        found[index] = text
        return [found[index] for index in range(len(rows))]

    def encode_phrasing(self, phrasing: Phrasing) -> tuple[list[int], list[bool]]:
        """Tokens of prompt + completion + stop as the model would be shown them, and which of them are targets.

        Targets are the completion and the stop, which one that does not end has not; a token that holds characters of
        both prompt and completion is one. The first token of all is never a target, since nothing stands before it.
        Nothing is put between prompt and completion, except for a phrasing that asks: it is laid out as `generate`
        would.

        Raises:
            ValueError: There is nothing to learn in the phrasing.
        """
        if not phrasing.completion.strip():
            raise ValueError(f"a phrasing needs a completion to be learnt, got {phrasing!r}")
        with self._lock:
            row = (
                self._pair(Prompt(phrasing.prompt), phrasing.completion)
                if phrasing.asks
                else self._continued(phrasing.prompt, phrasing.completion)
            )
            ids, learnt = self._with_stop(row)
        return (ids, learnt) if phrasing.ends else (ids[:-1], learnt[:-1])

    def encode_answer(self, prompt: Prompt, answer: str) -> tuple[list[int], list[bool]]:
        """Tokens of prompt + answer + stop as `generate` would lay them out, and which of them are the answer and stop.

        Raises:
            ValueError: An answer without text.
        """
        with self._lock:
            return self._with_stop(self._pair(prompt, answer))

    def _with_stop(self, row: _Row) -> tuple[list[int], list[bool]]:
        ids = [*row.ids, self.tokenizer.eos_token_id]
        return ids, [index >= max(1, row.start) for index in range(len(ids))]

    def forward_flops(self, tokens: int, *, after: int = 0, logits: int | None = None) -> float:
        """Work of reading `tokens` tokens that follow `after` others, in floating point operations, 2 per multiply-add.

        2 * N * tokens + 2 * H * logits + 4 * A * context, where N are the parameters outside embedding tables and the
        output head, H those of the head, which is computed for `logits` of the tokens (None: all), A is layers * heads
        * width of a head, and context is the sum over the tokens of how many tokens each one attends to (Kaplan et al.
        2020, arXiv 2001.08361, table 1, who leave out the head). A module with a method `flops_per_token()` speaks for
        itself and all within it: a sparse memory counts the rows it reads, not those it has. Blocks that were put into
        the model are told of by a child's `attention_layers`.
        """
        config = self.module.config.get_text_config()
        heads = config.num_attention_heads
        head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
        context = tokens * after + tokens * (tokens + 1) / 2
        added = sum(getattr(child, "attention_layers", 0) for child in self.module.children())
        attention = 4.0 * (config.num_hidden_layers + added) * heads * head_width
        head = self.module.get_output_embeddings()
        per_token = _flops_per_token(self.module, {id(head)})
        per_logits = _flops_per_logits(head)
        return float(per_token * tokens + per_logits * (tokens if logits is None else logits) + attention * context)

    def share_after(self, place: str) -> float:
        """Share of a forward pass's work, attention apart, that is done after the block in which the submodule `place`
        lies: what a gradient flows through on its way there. 1 where it lies in none of several blocks."""
        path = place.split(".")
        blocks = [i for i, part in enumerate(path) if part.isdigit()]
        if not blocks:
            return 1.0
        stack = self.module.get_submodule(".".join(path[: blocks[0]]))
        head = self.module.get_output_embeddings()
        of_head = _flops_per_logits(head)
        after = sum(_flops_per_token(block, {id(head)}) for block in list(stack)[int(path[blocks[0]]) + 1 :])
        return (after + of_head) / (_flops_per_token(self.module, {id(head)}) + of_head)

    @property
    def parameters(self) -> int:
        """How many numbers the module holds that training could change."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    def weights_hash(self) -> str:
        """SHA-256 over name, type, shape and bytes of every parameter and buffer, in hex."""
        import torch

        digest = hashlib.sha256()
        with self._lock:
            for name, tensor in sorted([*self.module.named_parameters(), *self.module.named_buffers()]):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def save_prefix(self, prompt: Prompt, file: str | Path) -> int:
        """Store the work on a prompt's beginning, in whole blocks, so that another process need not do it again.

        The file holds the prompt's words, as tokens: `drop_prefixes`, and with it an agent's `forget`, deletes it.

        Returns:
            How many tokens it covers; at least `PREFIX_BLOCK`.

        Raises:
            TypeError: A prompt that is no `types.Prompt`, as `Conversation.prompt` gives one.
            ValueError: The model keeps no prefixes, or the prompt is shorter than a block.
            TooLarge: A prompt longer than the window.
            OSError: The disk is full or cannot be written; an older file is untouched.
        """
        if not isinstance(prompt, Prompt):
            raise TypeError(f"prompt must be a memory_paths.types.Prompt, as Prompt(question), got {prompt!r:.80}")
        with self._lock, evaluating(self.module):
            if not self._keeps_prefixes():
                raise ValueError(
                    f"{self.name!r} keeps no prefixes; set prefix_cache=true, or take plain attention layers"
                )
            ids = tuple(self.token_ids(prompt))
            self._check_window([_Row(ids, len(ids))])
            if not (tokens := len(ids) // PREFIX_BLOCK * PREFIX_BLOCK):
                raise ValueError(f"a prefix has at least {PREFIX_BLOCK} tokens, the prompt has {len(ids)}")
            path = self._prefix_file(file)
            write_prefix(path, self._prefix(ids[:tokens]), made_by=self._made_by())
            self._prefix_files.add(path)
        return tokens

    def load_prefix(self, file: str | Path) -> int:
        """Take what `save_prefix` stored; prompts that begin with the same tokens are read from there on.

        The first call after a change of the weights hashes all of them.

        Returns:
            How many tokens it covers.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is damaged, or this model would not have made it: other weights, settings, or dtype. Or the
                model is spread over several devices.
        """
        with self._lock:
            if len({parameter.device for parameter in self.module.parameters()}) > 1:
                raise ValueError(
                    f"{self.name!r} is spread over devices, to which a stored prefix cannot be; compute it"
                )
            path = self._prefix_file(file)
            prefix = read_prefix(path, made_by=self._made_by(), weights=self._weights_version())
            device = self.module.get_input_embeddings().weight.device
            layers = tuple((keys.to(device), values.to(device)) for keys, values in prefix.layers)
            self._prefixes.keep(replace(prefix, layers=layers))
            self._prefix_files.add(path)
        return len(prefix.ids)

    def drop_prefixes(self) -> None:
        """Keep nothing that was computed for prompts, in memory or in files: those that this object has stored or
        loaded, and all in `prefix_folder`.

        Raises:
            OSError: A file cannot be deleted.
        """
        with self._lock:
            self._prefixes.clear()
            folder = self._prefix_folder
            for file in self._prefix_files.union(stored_prefixes(folder) if folder is not None else ()):
                file.unlink(missing_ok=True)
            self._prefix_files.clear()

    def _prefix_file(self, file: str | Path) -> Path:
        return (self._prefix_folder or Path()) / file

    def _made_by(self) -> str:
        """What keys and values depend on beside the tokens, the same in every process."""
        version = self._weights_version()
        if self._revision[0] != version:
            settings = self.module.config.to_dict()
            for name in ("_name_or_path", "transformers_version", "architectures"):
                settings.pop(name, None)
            said = json.dumps([self.weights_hash(), str(self.module.dtype), settings], sort_keys=True, default=str)
            self._revision = (version, hashlib.sha256(said.encode()).hexdigest())
        return self._revision[1]

    def weights_changed(self) -> None:
        """Drop all that was computed with the weights as they were. Call it after every change to `module`.

        Changes through parameters, buffers, submodules, forward hooks and plain settings of modules are noticed anyway;
        writes through `.data`, which torch does not count, are not.
        """
        with self._lock:
            self._prefixes.clear()
            self._revision = (0, "")

    @contextmanager
    def altered(self) -> Iterator[None]:
        """While the weights are not what they were: other threads wait, and nothing that was computed is kept."""
        with self._lock:
            self.weights_changed()
            try:
                yield
            finally:
                self.weights_changed()

    def _read_stop_ids(self) -> frozenset[int]:
        stops: set[int] = {self.tokenizer.eos_token_id}
        for config in (self.module.config, getattr(self.module, "generation_config", None)):
            ids = getattr(config, "eos_token_id", None)
            stops.update([ids] if isinstance(ids, int) else ids or [])
        return frozenset(stops)

    def _read_lead(self) -> tuple[int, ...]:
        """What the tokenizer puts before a text by itself (a BOS token, or nothing)."""
        lead = list(self.tokenizer("")["input_ids"])
        ends_like_begins = self.tokenizer.eos_token_id == self.tokenizer.bos_token_id
        if lead and lead[-1] == self.tokenizer.eos_token_id and not (ends_like_begins and len(lead) == 1):
            lead.pop()
        return tuple(lead)

    def _read_control_ids(self) -> frozenset[int]:
        special = {id for id, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return frozenset(special | set(self.tokenizer.all_special_ids)) - self._unknown_ids()

    def _unknown_ids(self) -> set[int | None]:
        """The token for what the tokenizer cannot spell, which text may hold, unless it doubles as a control token."""
        return {self.tokenizer.unk_token_id} - {self.tokenizer.eos_token_id, self.tokenizer.bos_token_id}

    def _text_ids(self, text: str) -> list[int]:
        """Tokens of plain text, in which the names of control tokens are ordinary characters."""
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        self._refuse_controls(ids, (), text)
        return list(ids)

    def _chat_ids(self, prompt: Prompt) -> list[int]:
        messages, tools = self._messages(prompt)
        ids = self._apply_template(messages, tools)
        # What the template makes of the same turns with nothing in them.
        bare = json.dumps([_bare(messages), self._nameless(tools)])
        if bare not in self._chat_controls:
            if len(self._chat_controls) >= CONTROLS_KEPT:
                self._chat_controls.clear()
            added = set(self.tokenizer.added_tokens_decoder) - self._unknown_ids()
            self._chat_controls[bare] = tuple(id for id in self._apply_template(*json.loads(bare)) if id in added)
        self._refuse_controls(ids, self._chat_controls[bare], " ".join(str(message) for message in messages))
        return ids

    def _messages(self, prompt: Prompt) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """What the chat template is given: messages, those of one role in a row as one, and tools.

        Where the template knows no tools, they stand in the system's message, and calls and results are written out.
        """
        template = self.tokenizer.get_chat_template(tools=list(prompt.tools) or None)
        knows_calls, knows_tools = "tool_calls" in template, bool(re.search(r"\btools\b", template))
        messages: list[dict[str, Any]] = []

        def say(role: str, content: str, **more: Any) -> None:
            last = messages[-1] if messages else {}
            if last.get("role") == role != "tool" and not more and "tool_calls" not in last:
                last["content"] = f"{last['content']}\n\n{content}".strip()
            else:
                messages.append({"role": role, "content": content, **more})

        if prompt.tools and not knows_tools:
            say("system", _tools(prompt).strip())
        for turn in prompt.turns:
            if turn.calls and knows_calls:
                say("assistant", turn.text, tool_calls=[_function(call) for call in turn.calls])
            elif turn.role == "tool" and knows_calls:
                say("tool", turn.text, tool_call_id=turn.answers)
            elif turn.calls or turn.role == "tool":
                say("assistant" if turn.calls else "user", _said(turn).strip())
            else:
                say(turn.role, turn.text)
        asked = one_line(prompt.question)
        if prompt.notes:
            say("user", f"{_notes(prompt)}Question: {asked}" if asked or not prompt.turns else _notes(prompt).strip())
        elif asked or not prompt.turns:
            say("user", asked)
        return messages, [dict(tool) for tool in prompt.tools] if knows_tools else []

    def _apply_template(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[int]:
        from jinja2 import TemplateError

        try:
            return list(
                self.tokenizer.apply_chat_template(
                    messages,
                    tools=tools or None,
                    add_generation_prompt=True,
                    sanitize_control_tokens=True,
                    enable_thinking=False,
                    return_dict=False,
                )
            )
        except TemplateError as error:
            roles = [message["role"] for message in messages]
            raise ValueError(f"the chat template of {self.name!r} refuses turns of {roles}: {error}") from error

    def _nameless(self, value: Any) -> Any:
        """The value without the names of control tokens; of tools all else matters to a template."""
        if isinstance(value, dict):
            return {self._nameless(key): self._nameless(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self._nameless(one) for one in value]
        if isinstance(value, str):
            for token in self.tokenizer.added_tokens_decoder.values():
                value = value.replace(token.content, "x")
        return value

    def _refuse_controls(self, ids: Sequence[int], expected: tuple[int, ...], text: str) -> None:
        watched = self._control_ids.union(expected)
        found = tuple(id for id in ids if id in watched)
        if found != expected:
            strange = [self.tokenizer.convert_ids_to_tokens(id) for id in found if id not in expected] or list(found)
            raise ValueError(
                f"the tokenizer of {self.name!r} makes control tokens ({strange}) of plain text, which would let notes"
                f" pose as instructions; take them out of the text: {text[:120]!r}"
            )

    def _pair(self, prompt: Prompt, answer: str) -> _Row:
        answer = one_line(answer)
        if not answer:
            raise ValueError(f"an answer needs text, got none for the question {prompt.question[:80]!r}")
        if not self._chats or prompt.continues:
            return self._continued(layout(prompt), f" {answer}")
        given = self.token_ids(prompt)
        with self._lock:
            return _Row((*given, *self._text_ids(answer)), len(given))

    def _continued(self, given: str, text: str) -> _Row:
        """Tokenised as one string, so that tokens are those that the model knows, and split by characters."""
        with self._lock:
            ids = self._text_ids(given + text)
            if not given:
                start = 0
            elif self.tokenizer.is_fast:
                offsets = self.tokenizer(
                    given + text,
                    add_special_tokens=False,
                    split_special_tokens=True,
                    return_offsets_mapping=True,
                    verbose=False,
                )["offset_mapping"]
                start = next((index for index, (_, end) in enumerate(offsets) if end > len(given)), len(ids))
            else:
                start = common(ids, self._text_ids(given))
        return _Row((*self._lead, *ids), len(self._lead) + start)

    def _text(self, ids: Sequence[int]) -> str:
        text = str(self.tokenizer.decode([id for id in ids if id not in self._stop_ids], skip_special_tokens=True))
        return text.split("\n", 1)[0].strip()

    def _ends_answer(self, new: Sequence[int]) -> bool:
        id = new[-1]
        if id not in self._ends:
            self._ends[id] = id in self._stop_ids or "\n" in self.tokenizer.decode([id])
        return self._ends[id]

    def _check_window(self, rows: Sequence[_Row]) -> None:
        longest = max((len(row.ids) for row in rows), default=0)
        if longest > self.window:
            raise TooLarge(
                f"a prompt has {longest} tokens, the window of {self.name!r} holds {self.window};"
                " give it fewer or shorter notes, or set a token budget"
            )

    def _groups(self, rows: Sequence[_Row]) -> Iterator[tuple[list[int], Prefix | None]]:
        """Rows that share a frozen prefix together, one group at a time, then all others without one."""
        groups = shared_prefixes([row.ids[: row.start - 1] for row in rows]) if self._keeps_prefixes() else {}
        for prefix, members in groups.items():
            yield members, self._prefix(prefix)
        taken = {index for members in groups.values() for index in members}
        rest = [index for index in range(len(rows)) if index not in taken]
        if rest:
            yield rest, None

    def _scored(self, rows: Sequence[_Row]) -> list[TokenScore]:
        """Each context, and each row without its last token, is read once, however many rows share it."""
        tally = _Tally(rows)
        for group, prefix in self._groups(rows):
            contexts: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}
            for index in group:
                row = rows[index]
                stems = contexts.setdefault(row.ids[: row.start], {})
                stems.setdefault(row.ids[row.start : -1], []).append(index)
            forked = {
                given: stems
                for given, stems in contexts.items()
                if len(stems) > 1 and len(given) >= FORK_TOKENS and self._keeps_prefixes()
            }
            plain = [
                (given, stem, members)
                for given, stems in contexts.items()
                if given not in forked
                for stem, members in stems.items()
            ]
            plain.sort(key=lambda one: (len(one[0]) + len(one[1]), len(one[0])))
            for start, end in self._passes([len(given) + len(stem) for given, stem, _ in plain]):
                self._score_whole(plain[start:end], prefix, tally)
            ordered = sorted(forked.items(), key=lambda one: len(one[0]))
            for start, end in self._passes([len(given) for given, _ in ordered]):
                self._score_forked(ordered[start:end], prefix, tally)
        return tally.scores()

    def _passes(self, lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
        """From where to where the rows of one pass go, their lengths being given in ascending order."""
        most = PASS_TOKENS if self.module.get_input_embeddings().weight.device.type == "cpu" else math.inf
        start = 0
        while start < len(lengths):
            end = start + 1
            while end < min(len(lengths), start + self.batch_size) and (end + 1 - start) * lengths[end] <= most:
                end += 1
            yield start, end
            start = end

    def _score_whole(
        self, batch: Sequence[tuple[tuple[int, ...], tuple[int, ...], list[int]]], prefix: Prefix | None, tally: _Tally
    ) -> None:
        """Score rows that are read to their end: context, all tokens after it but the last, and numbers of rows."""
        shared = len(prefix.ids) if prefix else 0
        first = min(len(given) for given, _, _ in batch) - 1 - shared
        tokens, attention, positions = self._pad(
            [(given + stem)[shared:] for given, stem, _ in batch], shared, left=False
        )
        tell_given(self.module, [len(given) for given, _, _ in batch])
        cache = self._cache(prefix, len(batch)) if prefix else None
        # Without a cache nothing is saved anywhere, and a row by itself is what a plain forward pass gives, to the
        # last bit: the output head's products are rounded otherwise for fewer positions.
        first = first if self.prefix_cache else 0
        logits = self._forward(tokens, attention, positions, cache, keep=tokens.shape[1] - first)
        tally.add(
            logits,
            [
                (index, place, len(given) - 1 - shared - first, 0, len(stem) + 1)
                for place, (given, stem, members) in enumerate(batch)
                for index in members
            ],
        )

    def _score_forked(
        self,
        batch: Sequence[tuple[tuple[int, ...], dict[tuple[int, ...], list[int]]]],
        prefix: Prefix | None,
        tally: _Tally,
    ) -> None:
        """Score rows of which several go on from one context: it is read once, the rest with its keys and values."""
        import torch

        shared = len(prefix.ids) if prefix else 0
        tokens, given, positions = self._pad([context[shared:] for context, _ in batch], shared, left=True)
        tell_given(self.module, None)
        cache = self._cache(prefix, len(batch))
        logits = self._forward(tokens, given, positions, cache, keep=1)
        forks = [(place, stem, members) for place, (_, stems) in enumerate(batch) for stem, members in stems.items()]
        tally.add(logits, [(index, place, 0, 0, 1) for place, _, members in forks for index in members])
        forks = sorted((fork for fork in forks if fork[1]), key=lambda fork: len(fork[1]))
        for start in range(0, len(forks), self.batch_size):
            part = forks[start : start + self.batch_size]
            places = torch.tensor([place for place, _, _ in part])
            layers = [(layer.keys, layer.values) for layer in cache.layers]
            chosen = [(k[places.to(k.device)], v[places.to(v.device)]) for k, v in layers]
            tokens, attention, _ = self._pad([stem for _, stem, _ in part], 0, left=False)
            attention = torch.cat([given[places], attention], dim=1)
            positions = positions_of(attention)[:, given.shape[1] :]
            own = self._cache(Prefix((), tuple(chosen), 0), len(part))
            logits = self._forward(tokens, attention, positions, own, keep=tokens.shape[1])
            tally.add(
                logits,
                [(index, place, 0, 1, len(stem)) for place, (_, stem, members) in enumerate(part) for index in members],
            )

    def _keeps_prefixes(self) -> bool:
        from transformers.cache_utils import DynamicCache, DynamicLayer

        if not self.prefix_cache or "position_ids" not in self._accepted or _wants_given(self.module):
            return False
        return all(type(layer) is DynamicLayer for layer in DynamicCache(config=self.module.config).layers)

    def _prefix(self, ids: tuple[int, ...]) -> Prefix:
        import torch

        found = self._prefixes.longest(ids, self._weights_version(), block=PREFIX_BLOCK)
        if found.ids == ids:
            return found
        cache = self._cache(found if found.ids else None, 1)
        for start in range(len(found.ids), len(ids), PREFIX_BLOCK):
            end = min(start + PREFIX_BLOCK, len(ids))
            block = torch.tensor([ids[start:end]])
            self._forward(block, torch.ones(1, end, dtype=torch.int64), torch.arange(start, end)[None], cache, keep=1)
        computed = Prefix(ids, tuple((layer.keys, layer.values) for layer in cache.layers), found.weights)
        self._prefixes.keep(computed)
        return computed

    def _cache(self, prefix: Prefix | None, rows: int) -> Any:
        """A cache of its own for a batch: what the batch adds never reaches the kept prefix."""
        from transformers.cache_utils import DynamicCache, DynamicLayer

        cache = DynamicCache(config=self.module.config)
        layers = prefix.layers if prefix else ()
        # Blocks that were put into the model keep theirs after those that its config tells of.
        cache.layers.extend(DynamicLayer() for _ in layers[len(cache.layers) :])
        for index, (keys, values) in enumerate(layers):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), index)
        return cache

    def _weights_version(self) -> int:
        """Changes whenever torch, or a look at the modules, can tell that the model is not what it was."""
        seen: list[Any] = []
        for name, module in self.module.named_modules():
            settings = tuple((key, repr(value)) for key, value in vars(module).items() if _is_plain(value))
            seen.append((name, id(module), settings, tuple(module._forward_hooks), tuple(module._forward_pre_hooks)))
        for tensor in (*self.module.parameters(), *self.module.buffers()):
            seen.append((id(tensor), tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version))
        return hash(tuple(seen))

    def _pad(self, tails: Sequence[Sequence[int]], shared: int, *, left: bool) -> tuple[Any, Any, Any]:
        """Tokens [rows, width], attention [rows, shared + width], positions [rows, width].

        The mask covers the shared prefix as well: one that is shorter than the cache gives wrong output, silently.
        """
        import torch

        width = max(map(len, tails))
        pad = self.tokenizer.pad_token_id
        tokens = torch.full((len(tails), width), self.tokenizer.eos_token_id if pad is None else pad)
        attention = torch.zeros(len(tails), shared + width, dtype=torch.int64)
        attention[:, :shared] = 1
        for row, tail in enumerate(tails):
            begin = width - len(tail) if left else 0
            tokens[row, begin : begin + len(tail)] = torch.tensor(tail)
            attention[row, shared + begin : shared + begin + len(tail)] = 1
        return tokens, attention, positions_of(attention)[:, shared:]

    def _forward(self, tokens: Any, attention: Any, positions: Any, cache: Any, *, keep: int) -> Any:
        """Logits of the last `keep` positions, [rows, keep, vocabulary]."""
        device = self.module.get_input_embeddings().weight.device
        extra: dict[str, Any] = {}
        if "position_ids" in self._accepted:
            extra["position_ids"] = positions.to(device)
        if "logits_to_keep" in self._accepted:
            extra["logits_to_keep"] = keep
        output = self.module(
            input_ids=tokens.to(device),
            attention_mask=attention.to(device),
            use_cache=cache is not None,
            **{self._cache_argument: cache},
            **extra,
        )
        return output.logits[:, -keep:]

    def _answer(
        self,
        rows: Sequence[_Row],
        prefix: Prefix | None,
        max_new_tokens: int,
        temperature: float,
        draws: Sequence[random.Random],
        ends: Callable[[Sequence[int]], bool],
    ) -> list[tuple[list[int], float, bool]]:
        """New tokens, their log-likelihood, and whether the model ended by itself, for each row of one batch.

        `ends` says of the new tokens of a row whether the last one ends it.
        """
        import torch

        shared = len(prefix.ids) if prefix else 0
        tokens, attention, positions = self._pad([row.ids[shared:] for row in rows], shared, left=True)
        cache = self._cache(prefix, len(rows))
        tell_given(self.module, None)
        limits = [min(max_new_tokens, self.window - len(row.ids)) for row in rows]
        new: list[list[int]] = [[] for _ in rows]
        total, stopped = [0.0] * len(rows), [False] * len(rows)
        running = {index for index, limit in enumerate(limits) if limit > 0}
        while running:
            logits = self._forward(tokens, attention, positions, cache, keep=1)[:, -1].float()
            scores = torch.log_softmax(logits, dim=-1)
            chosen = scores.argmax(dim=-1) if temperature == 0 else _sample(logits / temperature, draws)
            gains = scores.gather(1, chosen[:, None])[:, 0].tolist()
            for index, id in enumerate(chosen.tolist()):
                if index not in running:
                    continue
                new[index].append(id)
                total[index] += gains[index]
                stopped[index] = ends(new[index])
                if stopped[index] or len(new[index]) == limits[index]:
                    running.discard(index)
            tokens = chosen[:, None].cpu()
            attention = torch.cat([attention, torch.ones(len(rows), 1, dtype=torch.int64)], dim=1)
            # Rows that have ended go on being fed beside the others; a learnt position table has no row past its end.
            positions = (positions[:, -1:] + 1).clamp(max=self.window - 1)
        return list(zip(new, total, stopped, strict=True))


class _Tally:
    """Sums up the log-likelihoods of rows, one scored token after the other, as logits for them come in."""

    # Logits of so many numbers at once become probabilities.
    _MOST = 2**22

    def __init__(self, rows: Sequence[_Row]) -> None:
        self._rows = rows
        self._totals = [0.0] * len(rows)
        self._greedy = [True] * len(rows)

    def add(self, logits: Any, spans: Sequence[tuple[int, int, int, int, int]]) -> None:
        """Count scored tokens that follow one another.

        Args:
            logits: Of shape [places, positions, vocabulary].
            spans: Number of the row, its place in the batch, position of the first logits, number of the first token
                among the row's scored ones, how many there are.
        """
        import torch

        step = max(1, self._MOST // (logits.shape[-1] * max(count for *_, count in spans)))
        for start in range(0, len(spans), step):
            part = spans[start : start + step]
            begins: dict[tuple[int, int, int], int] = {}
            places: list[int] = []
            positions: list[int] = []
            at: list[int] = []
            targets: list[int] = []
            for index, place, position, token, count in part:
                if (place, position, count) not in begins:
                    begins[place, position, count] = len(places)
                    places += [place] * count
                    positions += range(position, position + count)
                begin, first = begins[place, position, count], self._rows[index].start + token
                at += range(begin, begin + count)
                targets += self._rows[index].ids[first : first + count]
            scores = torch.log_softmax(logits[places, positions].float(), dim=-1).cpu()
            wanted = torch.tensor(targets)
            gains, hits = scores[at, wanted], (scores.argmax(dim=-1)[at] == wanted)
            counts = [count for *_, count in part]
            for (index, *_), gain, hit in zip(part, gains.split(counts), hits.split(counts), strict=True):
                self._totals[index] += float(gain.sum())
                self._greedy[index] &= bool(hit.all())

    def scores(self) -> list[TokenScore]:
        """Of all rows, in order."""
        return [TokenScore(total, greedy) for total, greedy in zip(self._totals, self._greedy, strict=True)]


def cache_argument(module: Any) -> str:
    """By which name a causal language model takes its keys and values: `cache` since transformers 5.24.

    Raises:
        ValueError: It takes none.
    """
    parameters = inspect.signature(module.forward).parameters
    for name in ("cache", "past_key_values"):
        if name in parameters:
            return name
    raise ValueError(f"{type(module).__name__} keeps no keys and values; use another model")


@contextmanager
def evaluating(module: Any) -> Iterator[None]:
    """Within the block the module is read without dropout and without gradients; afterwards it is in its old modes."""
    import torch

    training = [one for one in module.modules() if one.training]
    module.eval()
    try:
        # Not inference_mode: what a module keeps from such a pass (rotary tables) could not take part in training.
        with torch.no_grad():
            yield
    finally:
        for one in training:
            one.training = True


def shared_prefixes(rows: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], list[int]]:
    """Prefixes, in whole blocks, that are worth freezing, and the indices of the rows that begin with them.

    Rows that begin with the same block form a group if there are at least two of them and they make up `PREFIX_SHARE`
    of all rows; a row that is alone in its call forms one as well, for the sake of the next call.
    """
    by_block: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(rows):
        if len(row) >= PREFIX_BLOCK:
            by_block.setdefault(row[:PREFIX_BLOCK], []).append(index)
    groups = {}
    for members in by_block.values():
        if len(members) < PREFIX_SHARE * len(rows) or len(members) == 1 < len(rows):
            continue
        # The longest prefix common to all is the one common to the first and the last in sorted order.
        first, last = min(rows[i] for i in members), max(rows[i] for i in members)
        length = common(first, last) // PREFIX_BLOCK * PREFIX_BLOCK
        groups[first[:length]] = members
    return groups


def tell_given(module: Any, lengths: Sequence[int] | None) -> None:
    """Say how many tokens of each row of the next pass are given, without what is scored or learnt after them; None:
    all of them. A child of the module with an attribute `given` is told; others would not care."""
    for child in _wants_given(module):
        child.given = lengths


def _wants_given(module: Any) -> list[Any]:
    return [child for child in module.children() if hasattr(child, "given")]


def _function(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}


def _bare(value: Any, key: str = "") -> Any:
    """Messages with "x" for every text that is data, and what is empty left so."""
    if isinstance(value, dict):
        if key == "arguments":
            return {f"x{place}": _bare(one) for place, one in enumerate(value.values())}
        return {name: _bare(one, name) for name, one in value.items()}
    if isinstance(value, list):
        return [_bare(one) for one in value]
    return "x" if isinstance(value, str) and value.strip() and key not in ("role", "type") else value


def positions_of(attention: Any) -> Any:
    """Where each token stands in its text, from 0 on, after a mask [rows, length]; padding stands at 0."""
    return (attention.cumsum(dim=1) - 1) * attention


def _batches(group: Sequence[int], rows: Sequence[_Row], size: int) -> Iterator[list[int]]:
    """Indices by length, so that little is padded."""
    ordered = sorted(group, key=lambda index: len(rows[index].ids))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def _sample(logits: Any, draws: Sequence[random.Random]) -> Any:
    """One token for each row by inverting the distribution function at the row's own random number."""
    import torch

    reached = torch.softmax(logits.cpu().double(), dim=-1).cumsum(dim=-1)
    points = torch.tensor([[draw.random()] for draw in draws], dtype=torch.float64)
    chosen = torch.searchsorted(reached, points * reached[:, -1:], right=True)[:, 0]
    return chosen.clamp(max=logits.shape[-1] - 1).to(logits.device)


def _flops_per_token(module: Any, outside: set[int]) -> float:
    """Work of the modules for one token without attention; `outside`: ids of modules that do not count."""
    from torch import nn

    own = getattr(module, "flops_per_token", None)
    if callable(own):
        return float(own())
    if id(module) in outside or isinstance(module, nn.Embedding):
        return 0.0
    parameters = float(sum(parameter.numel() for parameter in module.parameters(recurse=False)))
    return 2 * parameters + sum(_flops_per_token(child, outside) for child in module.children())


def _flops_per_logits(head: Any) -> float:
    """Work of the output head for one token; None: there is none."""
    return 0.0 if head is None else 2.0 * sum(parameter.numel() for parameter in head.parameters())


def _is_plain(value: Any) -> bool:
    """Whether it is a setting: a number, a switch, a name, or several of them."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return all(isinstance(part, bool | int | float | str) for part in value)
    return isinstance(value, bool | int | float | str)


def _hash_ids(ids: Sequence[int]) -> str:
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()


def _window(name: str, config: Any, wanted: int | None) -> int:
    config = config.get_text_config()
    entries = (getattr(config, entry, None) for entry in ("trained_window", "max_position_embeddings", "max_seq_len"))
    trained = next((found for found in entries if isinstance(found, int)), None)
    if trained is None and wanted is None:
        raise ValueError(
            f"the config of {name!r} does not tell how many tokens the model reads; give the window yourself"
        )
    if wanted is not None and not 1 <= wanted <= (trained or wanted):
        raise ValueError(f"window of {name!r} must be from 1 to {trained or 'its trained'} tokens, got {wanted}")
    return wanted or trained or 1


def _load(name: str, dtype: str, device_map: Any, trust_remote_code: bool) -> tuple[Any, Any]:
    """Module and tokenizer from a folder or from the hub."""
    folder = Path(name).expanduser()
    is_path = folder.exists() or folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if is_path:
        if not folder.is_dir():
            raise FileNotFoundError(
                f"there is no model folder {name!r}; give an existing folder or a model's name on the hub"
            )
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{name!r} is not a model folder: config.json is missing")
        if not any((folder / file).is_file() for file in TOKENIZER_FILES):
            raise FileNotFoundError(
                f"model folder {name!r} has no tokenizer; put one of {', '.join(TOKENIZER_FILES)} beside config.json"
            )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = str(folder) if is_path else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        module = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, device_map=device_map, trust_remote_code=trust_remote_code
        )
    except OSError as error:
        if is_path:
            raise
        raise FileNotFoundError(
            f"there is no folder {name!r} here, and the hub did not give a model of that name (no network?);"
            f" give an existing folder, or download it first: {error}"
        ) from error
    return module, tokenizer
