"""The embedded language model: its tokenizer, its architecture, and how a folder of it is written and read.

A Llama-shaped model in which one layer's MLP is a product-key memory. This file knows nothing of how it is trained.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import memory_paths
from memory_paths.lm import layout
from memory_paths.streams import words
from memory_paths.types import Prompt

from .memory_layer import MemoryLayerConfig, ProductKeyMemory
from .query_tokens import number_query_tokens

ASSETS = Path(memory_paths.__file__).parent / "assets"
CHECKED = ("model.safetensors", "tokenizer.json")
PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"


@dataclass(frozen=True)
class EmbeddedConfig:
    """Shape of the embedded model. `memory_layer` is the index of the layer whose MLP the memory replaces."""

    width: int = 128
    layers: int = 4
    attention_heads: int = 4
    inner: int = 384
    window: int = 512
    memory_layer: int = 2
    half_keys: int = 256
    memory_heads: int = 4
    top_k: int = 8
    half_query: int = 32
    query_tokens: int = 1


def _world_texts() -> Iterable[str]:
    for wordings in words.WORDINGS.values():
        for statement in (*wordings.statements, *wordings.new_statements):
            yield layout(Prompt("", (statement.replace("{name}", "").replace("{value}", ""),)))
        for question in (*wordings.questions, *wordings.new_questions, *wordings.reversals):
            yield layout(Prompt(question.replace("{name}", "").replace("{value}", "")))
    for question in words.COMPOSITIONS:
        yield layout(Prompt(question.replace("{name}", "")))
    for names in (words.FIRST_NAMES, words.LAST_NAMES, *words.VALUES.values()):
        yield " " + " ".join(names)
    yield from (".", "?", "!", ",", "'", "'s", '"', "(", ")", ";")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with every word of the world as one token, and bytes for all else: any text round-trips exactly."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([PAD, BOS, EOS, *alphabet])}
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in _world_texts():
        for token, _ in splitter.pre_tokenize_str(" " + text):
            vocabulary.setdefault(token, len(vocabulary))
    # Without merges and with ignore_merges a word is one token if it is in the vocabulary and its bytes if not.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    # The first word of a text gets the space that it has everywhere else, so that a name is always the same token.
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([PAD, BOS, EOS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS, clean_up_tokenization_spaces=False
    )


def build_model(config: EmbeddedConfig, vocabulary_size: int, seed: int) -> LlamaForCausalLM:
    """A freshly initialised model in float32."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary_size,
                hidden_size=config.width,
                intermediate_size=config.inner,
                num_hidden_layers=config.layers,
                num_attention_heads=config.attention_heads,
                num_key_value_heads=config.attention_heads,
                max_position_embeddings=config.window,
                tie_word_embeddings=True,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                initializer_range=0.04,
                attention_bias=True,
            )
        )
        model.model.embed_tokens.weight.data.normal_(0.0, 0.1)
        memory = ProductKeyMemory(
            MemoryLayerConfig(
                config.width,
                config.half_keys,
                config.memory_heads,
                config.top_k,
                config.half_query,
                query_tokens=config.query_tokens,
            )
        )
        place = f"model.layers.{config.memory_layer}.mlp"
        model.set_submodule(place, memory)
        if memory.query_tokens is not None:
            memory.query_tokens.watch(model, place)
            number_query_tokens(model)
        _look_back(model.model.layers[0].self_attn, model.model.rotary_emb.inv_freq)
    return model


def _look_back(attention: Any, frequencies: Tensor) -> None:
    """Head h of this layer starts by looking h + 1 tokens back.

    To read, a value must know the name some words before it, and the question's name must be matched with that:
    either alone gains
    nothing, so both together take long to appear by chance. With the first half given at the start, reading appears
    surely. The bias of queries and keys does it: under rotary positions, equal biases of which one is turned by d steps
    attend d tokens back. The quick frequencies alone make the look sharp. Training is free to change it all.
    """
    width, quick = attention.head_dim, 4
    half, strength = width // 2, 3.5
    with torch.no_grad():
        for head in range(attention.config.num_attention_heads):
            turn = frequencies[:quick].float() * (head + 1)
            start = head * width
            attention.q_proj.bias[start : start + quick] = strength
            attention.k_proj.bias[start : start + quick] = strength * turn.cos()
            attention.k_proj.bias[start + half : start + half + quick] = strength * turn.sin()


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def save_embedded(folder: Path, config: EmbeddedConfig, model: nn.Module, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write config, weights and tokenizer into `folder`; the memory's values, most of the bytes, in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    values = f"model.layers.{config.memory_layer}.mlp.values"
    state[values] = state[values].to(torch.float16)
    save_file(state, folder / "model.safetensors")
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    checksums = {name: _sha256(folder / name) for name in CHECKED}
    described = {"shape": asdict(config), "sha256": checksums}
    (folder / "embedded.json").write_text(json.dumps(described, indent=1) + "\n")


def load(name: str) -> tuple[Any, PreTrainedTokenizerFast]:
    """What `lm=embedded` loads: the model that ships with the package, or one that was trained into a folder.

    Raises:
        FileNotFoundError: No embedded model there.
    """
    return load_embedded(ASSETS / "embedded" if name == "embedded" else Path(name))


def load_embedded(folder: Path) -> tuple[Any, PreTrainedTokenizerFast]:
    """The model, in evaluation mode, and its tokenizer.

    Raises:
        FileNotFoundError: The folder does not hold an embedded model.
        ValueError: Weights or tokenizer are not the bytes that were written there.
    """
    config_file = folder / "embedded.json"
    if not config_file.is_file():
        raise FileNotFoundError(f"no embedded model in {folder}: embedded.json is missing")
    described = json.loads(config_file.read_text())
    for name in CHECKED:
        if _sha256(folder / name) != described["sha256"][name]:
            raise ValueError(
                f"{folder / name} is damaged: its checksum is not the one in embedded.json; restore the file"
            )
    config = EmbeddedConfig(**described["shape"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )
    model = build_model(config, len(tokenizer), seed=0)
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    model.tie_weights()
    return model.eval(), tokenizer
