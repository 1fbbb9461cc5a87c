"""What several tests need: models (tiny ones with random weights, and a small real one where it is at hand), a clock
that stands still, a full disk, two facts about one thing, and programs that are run to their end."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from memory_paths.lm import CausalLM
from memory_paths.types import Generation, Knowledge, Prompt

OSLO = Knowledge("ada-1", "Ada lives in Oslo.", key="ada/city")
BERGEN = Knowledge("ada-2", "Ada lives in Bergen.", key="ada/city")
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gpt2", "gpt_neox")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Within the block no file of this process grows beyond `limit` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def run(*command: str | Path, expect: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    """A program, run to its end; its exit status is to be `expect`, and what it says is text. Options: of
    `subprocess.run`."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=240, **options)
    assert done.returncode == expect, done.stdout[-1500:] + done.stderr[-1500:]
    return done


def build_tokenizer(*, chat: bool = False) -> Any:
    """Bytes, a few merges, and control tokens: any text round-trips."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("i", "n"), ("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("e", "r"), ("o", "n")]
    vocabulary = {token: index for index, token in enumerate([*alphabet, *(left + right for left, right in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<bos>", "<eos>"])
    if not chat:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
        )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )
    if chat:
        wrapped.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|end|>"]})
        wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def build_module(architecture: str, tokenizer: Any, *, seed: int = 0, window: int = 1024) -> Any:
    """Two layers of width 32 with random weights, wide enough that greedy answers do not repeat one token."""
    import torch
    import transformers

    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    shape = {"vocab_size": len(tokenizer), "initializer_range": 0.3}
    modern = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": window,
    }
    grouped = {**modern, "num_key_value_heads": 2}
    config = {
        "llama": lambda: transformers.LlamaConfig(**shape, **grouped, **ends),
        "qwen2": lambda: transformers.Qwen2Config(**shape, **grouped, **ends),
        "qwen3": lambda: transformers.Qwen3Config(**shape, **grouped, head_dim=8, **ends),
        "gpt2": lambda: transformers.GPT2Config(**shape, n_embd=32, n_layer=2, n_head=4, n_positions=window, **ends),
        "gpt_neox": lambda: transformers.GPTNeoXConfig(**shape, **modern, **ends),
    }[architecture]()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transformers.AutoModelForCausalLM.from_config(config)


@pytest.fixture(scope="session")
def make_tiny_lm() -> Callable[..., CausalLM]:
    """A new tiny model: `make_tiny_lm("gpt2", seed=1, chat=True, size=256, **options of CausalLM)`."""

    def make(
        architecture: str = "llama", *, seed: int = 0, chat: bool = False, size: int = 1024, **options: Any
    ) -> CausalLM:
        def load(name: str) -> tuple[Any, Any]:
            tokenizer = build_tokenizer(chat=chat)
            return build_module(architecture, tokenizer, seed=seed, window=size), tokenizer

        return CausalLM(f"tiny-{architecture}", loader=load, **options)

    return make


@pytest.fixture(scope="session")
def tiny_lm(make_tiny_lm: Callable[..., CausalLM]) -> CausalLM:
    """One tiny Llama for tests that leave its weights alone."""
    return make_tiny_lm()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Data that belongs to no repository: where MEMORY_PATHS_DATA says, or beside the checkout."""
    folder = Path(os.environ.get("MEMORY_PATHS_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data folder {folder}; set MEMORY_PATHS_DATA")
    return folder


@pytest.fixture(scope="session")
def stories_folder(data_folder: Path) -> Path:
    """A real pretrained checkpoint of 260,032 parameters."""
    folder = data_folder / "model_stories260k"
    if not folder.is_dir():
        pytest.skip(f"no pretrained checkpoint {folder}")
    return folder


@pytest.fixture(scope="session")
def stories_lm(stories_folder: Path) -> CausalLM:
    """The real checkpoint, for tests that leave its weights alone."""
    return CausalLM(str(stories_folder))


def mean_loss(module: Any, batch: Any) -> Any:
    """What the plain objective minimises."""
    from memory_paths.parametric.objective import logits_of, token_losses

    return token_losses(logits_of(module, batch), batch).mean()


def plain_aim(module: Any, batch: Any) -> Any:
    """The plain objective on a batch."""
    from memory_paths.parametric.weights import Aim

    return Aim(batch, lambda: mean_loss(module, batch))


def make_setting(lm: CausalLM, weights: Any, *, background: Any = (), taught: Any = (), seed: int = 0) -> Any:
    """A write as its axes see it, with nothing learnt before; what they charge is at `setting.charge.spent`."""
    import random

    from memory_paths.parametric.setting import Setting

    class Charge:
        spent: float = 0.0

        def __call__(self, batch: Any, passes: float) -> None:
            self.spent += passes * batch.token_count

    return Setting(lm, weights, tuple(background), lambda: taught, random.Random(seed), dict(weights.state()), Charge())


def let_say(lm: CausalLM, monkeypatch: pytest.MonkeyPatch, *answers: str) -> None:
    """Lets the model say this in place of what it would sample; its probabilities stay its own."""
    said = iter(answers)
    plain = lm.generate([Prompt("?")], max_new_tokens=1)[0]

    def says(prompt: Prompt, text: str) -> Generation:
        ids, learnt = lm.encode_answer(prompt, text)
        return replace(plain, text=text, token_ids=tuple(ids[learnt.index(True) :]), stopped=True)

    monkeypatch.setattr(
        type(lm), "generate", lambda self, prompts, **options: [says(prompt, next(said)) for prompt in prompts]
    )


def peak_bytes(profile: Any) -> int:
    """The most that was allocated and not yet freed at any time of a `torch.profiler.profile(profile_memory=True)`."""
    assert profile.profiler is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    level = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    assert peak > 0, "the profiler saw no allocation"
    return peak
