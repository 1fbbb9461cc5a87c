"""The axes of a write into weights: each choice alone, beside every kind of weights, and against its definition."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import let_say, make_setting, mean_loss, plain_aim
from peft import LoraConfig

from memory_paths.ledger import Ledger
from memory_paths.lm import CausalLM
from memory_paths.parametric.adapter import Adapter
from memory_paths.parametric.batches import collate, encode
from memory_paths.parametric.embedded import EmbeddedConfig, build_model, build_tokenizer
from memory_paths.parametric.full import Full
from memory_paths.parametric.growth import LowRankStack
from memory_paths.parametric.inserted import Inserted
from memory_paths.parametric.memory_rows import MemoryRows, _RowMoments
from memory_paths.parametric.merging import Interpolation, NoMerging, Pruning
from memory_paths.parametric.objective import (
    Distillation,
    NegativeLogLikelihood,
    Objective,
    SelectiveNegativeLogLikelihood,
    beside_targets,
    divergence,
    logits_of,
    token_losses,
)
from memory_paths.parametric.on_policy import (
    Generative,
    OnPolicy,
    PolicyGradient,
    SelfDistillation,
    jensen_shannon,
)
from memory_paths.parametric.path import Budget, WeightsPath
from memory_paths.parametric.penalty import (
    ElasticWeights,
    FeatureDistance,
    NoPenalty,
    OrthogonalSubspaces,
    OutputDivergence,
    Penalty,
    TowardsBefore,
    fisher_information,
)
from memory_paths.parametric.projection import AveragedGradient, NoProjection, OrthogonalGradient, Projection
from memory_paths.parametric.rehearsal import Experience, NoRehearsal
from memory_paths.parametric.schedule import Constant, Rewarming
from memory_paths.parametric.slots import Background, Divergence, TfIdf
from memory_paths.parametric.study import SelfEdits, Templates
from memory_paths.parametric.weights import Aim, Changed, Gradient, LossFunction, Weights
from memory_paths.types import Generation, Knowledge, Phrasing, Prompt

SHAPE = EmbeddedConfig(width=32, layers=2, attention_heads=2, inner=48, memory_layer=1, half_keys=8, half_query=8)
KNOWN = [Phrasing("lives in Alavia.", "Alma Ashway "), Phrasing("enjoys chess.", "Bruno Barrbury ")]
NEW = [Phrasing("lives in Corlund.", "Alma Ashway "), Phrasing("enjoys rowing.", "Bruno Barrbury ")]
ASKED = [
    Phrasing("Corlund", "Where does Alma Ashway live?", asks=True),
    Phrasing("rowing", "What enjoys Bruno?", asks=True),
]
KINDS = ["memory", "lora", "full"]


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    tokenizer = build_tokenizer()
    return CausalLM("tiny", loader=lambda name: (build_model(SHAPE, len(tokenizer), seed=1), tokenizer))


def _weights(kind: str) -> Weights:
    if kind == "lora":
        return Adapter(LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4), rate=1e-2)
    return Full(rate=3e-3) if kind == "full" else MemoryRows(rows=48, rate=50.0)


def _items(phrasings: Sequence[Phrasing]) -> list[Knowledge]:
    return [
        Knowledge(f"{one.prompt}{one.completion}", f"{one.prompt}{one.completion}", phrasings=(one,))
        for one in phrasings
    ]


class FixedTrainer:
    """Stands in for a trainer: its gradients are the ones given, one list for each call."""

    def __init__(self, *found: list[Gradient]) -> None:
        self._found = iter(found)

    def step(self, *arguments: Any, **options: Any) -> float:
        raise AssertionError("only gradients are asked for")

    def gradients(self, loss: LossFunction) -> list[Gradient]:
        return next(self._found)


# What every choice keeps, beside every kind of weights

CHOICES: dict[str, dict[str, Any]] = {
    "objective=selective": {"objective": SelectiveNegativeLogLikelihood()},
    "objective=distil_new": {"objective": Distillation("new")},
    "objective=distil_old": {"objective": Distillation("old")},
    "objective=distil_pseudo_old": {"objective": Distillation("pseudo_old", per_step=4)},
    "objective=self_distillation": {"objective": SelfDistillation()},
    "objective=self_distillation gkd": {"objective": SelfDistillation("live", on_policy=0.5, beta=0.5)},
    "objective=policy_gradient": {"objective": PolicyGradient(samples=4, temperature=2.0)},
    "rehearsal=on_policy": {"rehearsal": OnPolicy(2)},
    "rehearsal=generative": {"rehearsal": Generative(2, texts=4)},
    "penalty=l2": {"penalty": TowardsBefore(0.05)},
    "penalty=ewc": {"penalty": ElasticWeights(samples=2)},
    "penalty=kl known": {"penalty": OutputDivergence()},
    "penalty=kl new": {"penalty": OutputDivergence(where="new", teacher="before")},
    "penalty=feature known": {"penalty": FeatureDistance()},
    "penalty=feature new": {"penalty": FeatureDistance(where="new", teacher="before")},
    "rehearsal=experience": {"rehearsal": Experience(2, taught=1)},
    "projection=a_gem": {"projection": AveragedGradient(2)},
    "projection=ogd": {"projection": OrthogonalGradient(2, 1)},
    "schedule=rewarming": {"schedule": Rewarming()},
    "merging=interpolation": {"merging": Interpolation(0.5)},
    "merging=pruning magnitude": {"merging": Pruning(0.5)},
    "merging=pruning chance": {"merging": Pruning(0.5, by="chance")},
    "study=self_edits": {"study": SelfEdits(edits=2, max_new_tokens=4)},
    "all at once": {
        "objective": Distillation("old"),
        "penalty": ElasticWeights(samples=2),
        "rehearsal": Experience(2, taught=1),
        "projection": OrthogonalGradient(2, 1),
        "schedule": Rewarming(),
        "merging": Pruning(0.5),
        "study": SelfEdits(edits=2, max_new_tokens=4),
    },
}
FREE = ("penalty=l2", "schedule", "merging")


ON_POLICY = ("objective=self_distillation", "objective=policy_gradient")
UNFELT = {
    "projection=a_gem": "here nothing is learnt against what was known; see below for where it is",
    "rehearsal=on_policy": "an untrained model has no right answer to rehearse; see below for one that has",
}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_choice_learns_beside_every_kind_of_weights_and_gives_the_model_back(
    lm: CausalLM, kind: str, choice: str
) -> None:
    untouched = lm.weights_hash()

    def learn(**axes: Any) -> tuple[WeightsPath, list[Any]]:
        with Ledger() as ledger:
            path = WeightsPath(
                lm,
                ledger,
                weights=_weights(kind),
                budget=Budget(steps=6, batch=8),
                background=ASKED if choice == "rehearsal=on_policy" else KNOWN,
                progress=False,
                **axes,
            )
            texts = ASKED if choice.startswith(ON_POLICY) else NEW
            receipts = [
                path.write(_items(texts[:1]), namespace="default"),
                path.write(_items(texts[1:]), namespace="default"),
            ]
            assert lm.weights_hash() == untouched
            return path, receipts

    plain, bare = learn()
    path, receipts = learn(**CHOICES[choice])
    _, again = learn(**CHOICES[choice])
    if not choice.startswith(ON_POLICY):  # their loss is on other answers at each step
        assert receipts[0].details["last_loss"] < receipts[0].details["first_loss"]
    states = [
        {name: tensor.double().sum().item() for name, tensor in one._weights.state().items()} for one in (path, plain)
    ]
    if choice not in UNFELT:
        assert states[0] != states[1], "the choice changes what is learnt"
    assert [receipt.details for receipt in receipts] == [receipt.details for receipt in again], (
        "the same seed, the same"
    )
    if not choice.startswith(FREE):
        assert receipts[1].cost.lm.flops > bare[1].cost.lm.flops, "its work is charged to the write"


@pytest.mark.parametrize(
    "axes",
    [
        {"penalty": ElasticWeights()},
        {"penalty": OutputDivergence()},
        {"projection": AveragedGradient()},
        {"projection": OrthogonalGradient()},
        {"rehearsal": Experience()},
        {"rehearsal": OnPolicy()},
        {"penalty": FeatureDistance()},
        {"objective": Distillation("old")},
    ],
    ids=["ewc", "kl", "a_gem", "ogd", "experience", "on_policy", "feature", "distil_old"],
)
def test_what_needs_something_known_is_refused_at_the_door_without_it(lm: CausalLM, axes: Any) -> None:
    wanted = r"[a-z]+=[a-z_]+ needs phrasings of what the model knew, .* give lm\.background"
    with Ledger() as ledger, pytest.raises(ValueError, match=wanted):
        WeightsPath(lm, ledger, weights=Full(), progress=False, **axes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: SelectiveNegativeLogLikelihood(share=0.0),
            r"share of selective likelihood must be in \(0, 1\], got 0",
        ),
        (lambda: SelectiveNegativeLogLikelihood(reference="later"), "reference must be one of untouched, before"),
        (
            lambda: Distillation(source="dreams"),
            "source of distillation must be one of new, old, pseudo_old, got 'dreams'",
        ),
        (lambda: Distillation(temperature=0.0), "must be above 0"),
        (lambda: SelfDistillation(teacher="else"), "teacher must be one of live, untouched, before, got 'else'"),
        (lambda: SelfDistillation(beta=2.0), r"on_policy and beta must be in \[0, 1\]"),
        (lambda: PolicyGradient(samples=1), "samples must be at least 2"),
        (lambda: OnPolicy(0), "per_step and questions must be at least 1"),
        (lambda: Generative(texts=0), "per_step and texts must be at least 1"),
        (lambda: Generative(temperature=0.0), "temperature must be above 0"),
        (lambda: SelfEdits(kept=0), r"kept of study=self_edits must be between 1 and edits \(8\), got 0"),
        (lambda: SelfEdits(instruction=""), "needs an instruction"),
        (lambda: Rewarming(0.5, 0.6), "at most 1 together"),
        (lambda: Constant(0.0), "factor of a schedule must be above 0, got 0"),
        (lambda: Interpolation(0.0), r"share of merging=interpolation must be in \(0, 1\], got 0"),
        (lambda: Pruning(1.5), r"share of merging=pruning must be in \(0, 1\], got 1.5"),
        (lambda: Pruning(by="luck"), "by of merging=pruning must be one of magnitude, chance, got 'luck'"),  # type: ignore[arg-type]
        (lambda: TowardsBefore(1.0), r"strength of a penalty must be in \[0, 1\), got 1"),
        (lambda: ElasticWeights(samples=0), "samples at least 1"),
        (lambda: OutputDivergence(strength=0.0), "strength of penalty=kl must be above 0"),
        (lambda: FeatureDistance(where="there"), "where of penalty=feature must be one of new, known, got 'there'"),
        (lambda: OrthogonalSubspaces(0.0), "strength of penalty=orthogonal must be above 0, got 0"),
        (lambda: AveragedGradient(per_step=0), "per_step of projection=a_gem must be at least 1"),
        (lambda: OrthogonalGradient(samples=0), "samples of projection=ogd must be at least 1"),
        (lambda: Experience(0), "one of them at least 1, got 0 and 0"),
        (lambda: Templates(("no place for it",)), r"must hold \{text\} once"),
        (lambda: MemoryRows(clip=0.0), "clip must be above 0, or null, got 0"),
        (lambda: MemoryRows(counted="some"), "counted must be one of predicting, all, got 'some'"),  # type: ignore[arg-type]
        (lambda: MemoryRows(optimiser="lion"), "optimiser must be one of sgd, adam, got 'lion'"),
        (lambda: MemoryRows(optimiser="adam", momentum=0.5), "momentum is an option of optimiser=sgd"),
        (lambda: MemoryRows(rows=8, lifetime_rows=4), r"lifetime_rows must be at least rows \(8\), got 4"),
        (lambda: MemoryRows(hub_share=2.0), r"hub_share must be in \[0, 1\], got 2"),
    ],
)
def test_an_option_out_of_range_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# Objectives


def _loss(lm: CausalLM, objective: Objective, phrasings: Sequence[Phrasing]) -> tuple[float, Any]:
    setting = make_setting(lm, (weights := Full()), background=KNOWN)
    batch = setting.batch(phrasings)
    with weights.applied(lm.module), torch.no_grad():
        return float(objective(setting, batch).loss()), batch


def test_selective_likelihood_studies_what_the_untouched_model_found_least_likely(lm: CausalLM) -> None:
    """Not what the model of now finds least likely: its weights have moved on."""
    weights = Full()
    setting = make_setting(lm, weights)
    batch = setting.batch(NEW)
    with torch.no_grad():
        expected = token_losses(logits_of(lm.module, batch), batch)
        with weights.applied(lm.module):
            for parameter in lm.module.parameters():
                parameter.add_(0.05 * torch.ones_like(parameter))
            losses = token_losses(logits_of(lm.module, batch), batch)
            found = SelectiveNegativeLogLikelihood(share=0.5)(setting, batch).loss()
    kept = expected.argsort(descending=True)[: round(0.5 * len(losses))]
    assert float(found) == pytest.approx(float(losses[kept].mean()), rel=1e-6)
    assert float(found) != pytest.approx(float(losses.mean()), rel=1e-3)
    assert setting.charge.spent == batch.token_count


def test_selective_likelihood_leaves_nothing_out_of_what_is_rehearsed(lm: CausalLM) -> None:
    setting = make_setting(lm, weights := Full())
    batch = collate(lm, encode(lm, NEW), rehearsed=encode(lm, KNOWN))
    with weights.applied(lm.module), torch.no_grad():
        losses = token_losses(logits_of(lm.module, batch), batch)
        found = SelectiveNegativeLogLikelihood(share=0.5)(setting, batch).loss()
    new = int(setting.batch(NEW).targets[:, 1:].sum())
    kept = losses[:new].sort(descending=True).values[: round(0.5 * new)]
    assert 0 < new < len(losses)
    assert float(found) == pytest.approx(float(torch.cat([kept, losses[new:]]).mean()), rel=1e-6)


def test_selective_likelihood_studies_that_by_which_the_model_lags_most_behind_an_expert(
    make_tiny_lm: Callable[..., CausalLM], tmp_path: Path
) -> None:
    """By loss less the expert's loss (Lin et al. 2024, arXiv 2404.07965, eq. 3), of the model as it is now."""
    lm, expert = make_tiny_lm(seed=0), make_tiny_lm(seed=1)
    expert.module.save_pretrained(tmp_path / "expert")
    expert.tokenizer.save_pretrained(tmp_path / "expert")
    objective = SelectiveNegativeLogLikelihood(share=0.5, expert=str(tmp_path / "expert"))
    weights = Full()
    setting = make_setting(lm, weights)
    batch = setting.batch(NEW)
    with torch.no_grad(), weights.applied(lm.module):
        for parameter in lm.module.parameters():
            parameter.add_(0.05 * torch.ones_like(parameter))
        losses = token_losses(logits_of(lm.module, batch), batch)
        lag = losses - token_losses(logits_of(expert.module, batch), batch)
        found = [float(objective(setting, batch).loss()) for _ in range(2)]
    kept = lag.argsort(descending=True)[: round(0.5 * len(losses))]
    assert found == pytest.approx([float(losses[kept].mean())] * 2, rel=1e-6)
    assert found[0] != pytest.approx(float(losses.sort(descending=True).values[: len(kept)].mean()), rel=1e-3)
    strange = build_tokenizer()
    strange.add_tokens(["Xyzzy"])
    other = SelectiveNegativeLogLikelihood(expert="other", expert_loader=lambda name: (expert.module, strange))
    with pytest.raises(ValueError, match="expert 'other' has other tokens than"):
        other(make_setting(lm, weights), batch)


@pytest.mark.parametrize("source", ["new", "old", "pseudo_old"])
def test_distillation_is_nothing_for_a_model_that_has_not_moved_and_grows_with_the_way(
    lm: CausalLM, source: Any
) -> None:
    plain, _ = _loss(lm, NegativeLogLikelihood(), NEW)
    still, _ = _loss(lm, Distillation(source), NEW)
    assert still == pytest.approx(plain, abs=1e-5)
    weights = Full()
    setting = make_setting(lm, weights, background=KNOWN)
    setting.kept["pseudo_old"] = KNOWN
    batch, known = setting.batch(NEW), setting.batch(KNOWN)
    with torch.no_grad():
        old = logits_of(lm.module, known)
        teacher = {"new": logits_of(lm.module, batch), "old": old, "pseudo_old": old}
        with weights.applied(lm.module):
            for parameter in lm.module.parameters():
                parameter.mul_(1.1)
            moved = float(Distillation(source, weight=0.5, temperature=3.0)(setting, batch).loss())
            shown, at = (batch, beside_targets(batch)) if source == "new" else (known, known.predicting)
            p = (teacher[source][at] / 3.0).double().softmax(-1)
            q = (logits_of(lm.module, shown)[at] / 3.0).double().softmax(-1)
            expected = float(mean_loss(lm.module, batch)) + 0.5 * 9.0 * float((p * (p / q).log()).sum(-1).mean())
    assert moved == pytest.approx(expected, rel=1e-4)


def test_pseudo_old_texts_are_written_once_for_a_write_by_the_model_as_it_was(lm: CausalLM) -> None:
    setting = make_setting(lm, Full())
    batch, objective = setting.batch(NEW), Distillation("pseudo_old", per_step=3)
    with setting.weights.applied(lm.module):
        objective(setting, batch)
        written = list(setting.kept["pseudo_old"])
        objective(setting, batch)
    assert setting.kept["pseudo_old"] == written
    expected = lm.generate([Prompt(" ", continues=True)] * 128, max_new_tokens=32, temperature=1.0, seed=_first_seed())
    assert [one.completion for one in written] == [one.text for one in expected if one.text]


def _first_seed() -> int:
    """The first number that a setting draws for a seed."""
    return random.Random(0).randrange(2**31)


def test_what_is_beside_the_targets_is_text_that_is_not_to_be_learnt(lm: CausalLM) -> None:
    batch = make_setting(lm, Full()).batch(NEW)
    beside, predicting = beside_targets(batch), batch.predicting
    assert not (beside & predicting).any()
    assert int((beside | predicting).sum()) == batch.token_count - len(batch.tokens)


def test_divergence_is_that_of_the_definition() -> None:
    teacher, student = torch.randn(3, 5), torch.randn(3, 5)
    p, q = teacher.double().softmax(-1), student.double().softmax(-1)
    torch.testing.assert_close(divergence(teacher, student).double(), (p * (p / q).log()).sum(-1), rtol=1e-4, atol=1e-6)
    assert divergence(teacher, teacher).abs().max() < 1e-6


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_divergence_of_distillation_is_that_of_its_definition(beta: float) -> None:
    teacher, student = torch.randn(3, 5), torch.randn(3, 5)
    p, q = teacher.double().softmax(-1), student.double().softmax(-1)
    mixture = beta * p + (1 - beta) * q

    def kl(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (one * (one / other).log()).sum(-1)

    expected = {0.0: kl(p, q), 1.0: kl(q, p)}.get(beta, beta * kl(p, mixture) + (1 - beta) * kl(q, mixture))
    torch.testing.assert_close(jensen_shannon(teacher, student, beta).double(), expected, rtol=1e-4, atol=1e-6)


def test_self_distillation_learns_what_a_reader_would_say(lm: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the model's own answer, from the same model with the item's text before the question."""
    let_say(lm, monkeypatch, "chess")
    weights = Full()
    setting = make_setting(lm, weights)
    one = ASKED[1]
    batch = collate(lm, encode(lm, [one], "Bruno enjoys rowing."))
    with weights.applied(lm.module), torch.no_grad():
        aim = SelfDistillation()(setting, batch)
        found = float(aim.loss())
    ids, learnt = lm.encode_answer(Prompt(one.prompt), "chess")
    noted, answer = lm.encode_answer(Prompt(one.prompt, ("Bruno enjoys rowing.",)), "chess")
    assert aim.batch.tokens[0].tolist() == ids
    with torch.no_grad():
        student, teacher = (
            lm.module(input_ids=torch.tensor([tokens])).logits[0, :-1][torch.tensor(flags)[1:]]
            for tokens, flags in ((ids, learnt), (noted, answer))
        )
    assert found == pytest.approx(float(divergence(teacher, student).mean()), rel=1e-4)
    assert found > 0


@pytest.mark.parametrize(
    "objective", [SelfDistillation(), PolicyGradient(samples=2, questions=1)], ids=["sdft", "grpo"]
)
def test_what_asks_nothing_and_what_is_rehearsed_is_studied_beside_the_models_own_answers(
    lm: CausalLM, monkeypatch: pytest.MonkeyPatch, objective: Objective
) -> None:
    setting = make_setting(lm, Full())
    said = ("chess", "chess")  # equally good, so that of policy gradient nothing but the others' likelihood is left

    def loss(fresh: Sequence[Phrasing], rehearsed: Sequence[Phrasing]) -> tuple[float, Any]:
        batch = collate(lm, encode(lm, fresh, "Bruno enjoys rowing."), rehearsed=encode(lm, rehearsed))
        with monkeypatch.context() as patched, torch.no_grad():
            let_say(lm, patched, *said)
            aim = objective(setting, batch)
            return float(aim.loss()), aim.batch

    with setting.weights.applied(lm.module):
        alone, _ = loss(ASKED[1:], ())
        together, shown = loss([ASKED[1], NEW[0]], KNOWN[:1])
    with torch.no_grad():
        beside = float(mean_loss(lm.module, setting.batch([NEW[0], KNOWN[0]])))
    assert together == pytest.approx(alone + beside, rel=1e-4)
    assert shown.predicting[:-1].any(dim=1).all(), "new texts take part in the choice of slots"
    assert not shown.predicting[-1].any(), "rehearsed ones do not"


def test_a_question_whose_note_has_no_room_is_studied_as_it_stands(
    make_tiny_lm: Callable[..., CausalLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = make_tiny_lm("llama", size=96)
    setting = make_setting(lm, weights := Full())
    short = encode(lm, ASKED[1:], "Bruno rows.")
    long = encode(lm, ASKED[:1], "Alma lives in Corlund. " * 9)
    let_say(lm, monkeypatch, "chess", "Oslo")
    with weights.applied(lm.module), torch.no_grad():
        aim = SelfDistillation()(setting, collate(lm, [*short, *long]))
    assert [one.phrasing for one in aim.batch.sequences] == [ASKED[1], ASKED[0]]
    assert list(aim.batch.sequences[1].ids) == list(long[0].ids), "with the answer that was given"


@pytest.mark.parametrize("objective", [PolicyGradient(samples=6, max_new_tokens=2), SelfDistillation(max_new_tokens=2)])
def test_what_is_studied_are_the_very_tokens_that_were_sampled(
    lm: CausalLM, objective: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stop only behind those that stopped, however the tokenizer would have cut up their text."""
    sampled: list[Generation] = []
    plain = type(lm).generate

    def watched(self: CausalLM, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
        sampled.extend(found := plain(self, prompts, **options))
        return found

    monkeypatch.setattr(type(lm), "generate", watched)
    setting = make_setting(lm, weights := Full())
    batch = collate(lm, encode(lm, ASKED, "Bruno enjoys rowing."))
    with weights.applied(lm.module):
        shown = objective(setting, batch).batch
    assert not all(one.stopped for one in sampled)
    studied = [tuple(row[kept].tolist()) for row, kept in zip(shown.tokens, shown.targets, strict=True)]
    assert studied[: len(sampled)] == [one.token_ids for one in sampled]


def test_no_stop_is_learnt_behind_what_the_limit_cut_off(lm: CausalLM) -> None:
    setting = make_setting(lm, weights := Full())
    with weights.applied(lm.module):
        cut = setting.written(6, max_new_tokens=3, temperature=1.0)
        (edited,) = SelfEdits(edits=2, max_new_tokens=3)(_items(NEW[:1]), lm)
    stop = lm.tokenizer.eos_token_id
    assert not all(one.ends for one in (*cut, *edited.phrasings))
    assert [one.ends for one in edited.phrasings][:1] == [True], "the item's own is whole"
    for one in (*cut, *edited.phrasings):
        (row,) = encode(lm, [one])
        assert (row.ids[-1] == stop) is one.ends
        assert row.learnt[-1]


def test_a_choice_without_anything_to_work_on_says_so(lm: CausalLM, caplog: pytest.LogCaptureFixture) -> None:
    setting = make_setting(lm, weights := Full(), background=KNOWN)
    batch = setting.batch(NEW[:1])
    with weights.applied(lm.module):
        for objective in (PolicyGradient(), SelfDistillation()):
            for _ in range(2):
                objective(setting, batch)
    told = [record.message for record in caplog.records]
    assert [one.split()[0] for one in told] == ["PolicyGradient", "SelfDistillation"], "once for each write"
    with Ledger() as ledger, pytest.raises(ValueError, match=r"no text of lm\.background asks anything"):
        WeightsPath(lm, ledger, weights=Full(), background=KNOWN, rehearsal=OnPolicy())


def test_policy_gradient_raises_the_better_of_the_models_answers(lm: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = Full(rate=1e-3)
    setting = make_setting(lm, weights)
    batch = setting.batch([ASKED[1]])
    pairs = [(Prompt(ASKED[1].prompt), answer) for answer in ("rowing", "chess")]
    with weights.applied(lm.module), weights.training(lm.module) as trainer:
        before = lm.loglikelihood(pairs)
        for _ in range(3):
            with monkeypatch.context() as patched:
                let_say(lm, patched, "chess", "rowing")
                aim = PolicyGradient(samples=2, questions=1)(setting, batch)
            trainer.step([aim])
        after = lm.loglikelihood(pairs)
        assert after[0] - before[0] > 0.01
        assert after[1] - before[1] < after[0] - before[0]
        with monkeypatch.context() as patched:
            let_say(lm, patched, "chess", "golf")
            nothing = PolicyGradient(samples=2, questions=1)(setting, batch).loss()
        assert float(nothing.detach()) == 0.0, "answers that are as good as one another teach nothing"
        with monkeypatch.context() as patched:
            let_say(lm, patched, "chess", "rowing boats")
            strict = PolicyGradient("exact_match", samples=2, questions=1)(setting, batch).loss()
        assert float(strict.detach()) == 0.0, "neither is the answer itself"
    with pytest.raises(ValueError, match="reward must be one of token_f1, exact_match, got 'rouge'"):
        PolicyGradient("rouge")  # type: ignore[arg-type]


# Penalties


@pytest.mark.parametrize("kind", KINDS)
def test_importance_is_the_mean_square_of_each_samples_own_gradient(lm: CausalLM, kind: str) -> None:
    weights = _weights(kind)
    weights.prepare(lm, KNOWN)
    setting = make_setting(lm, weights)
    samples = [setting.batch([one]) for one in (*KNOWN, *NEW)]
    with weights.applied(lm.module), weights.training(lm.module) as trainer:
        if kind == "lora":  # one of its two matrices begins as zero, and so does the other's gradient
            trainer.step([plain_aim(lm.module, samples[0])])
        found = fisher_information(setting, trainer, samples)
        module = lm.module
        names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        expected = {name: torch.zeros_like(module.get_parameter(name)) for name in names}
        for layer in [part for part in module.modules() if hasattr(part, "recorder")]:
            layer.recorder = None
        for sample in samples:
            loss = token_losses(logits_of(module, sample), sample).sum()
            parameters = [module.get_parameter(name) for name in names]
            for name, one in zip(names, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
                if one is not None:
                    expected[name] += one.square()
    total = sum(float(square.sum()) for square in expected.values())
    mean = total / sum(int(square.count_nonzero()) for square in expected.values())
    assert set(found) <= set(expected)
    for name, square in expected.items():
        every = torch.arange(len(square)) if kind == "memory" else None
        ours = found[name].at(every) if name in found else torch.zeros_like(square)
        torch.testing.assert_close(ours, square / mean, rtol=1e-3, atol=1e-4)
        assert kind != "memory" or len(found[name].values) < len(square), "only of rows that were read"


def test_elastic_weights_settle_where_their_penalty_is_least(lm: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proximal point: the least of |x - step|^2 + s f |x - before|^2, per number."""
    importance = {"w": Gradient("w", torch.tensor([0.0, 1.0, 9.0]))}
    monkeypatch.setattr("memory_paths.parametric.penalty.fisher_information", lambda *given: importance)
    restraint = ElasticWeights(strength=1.0)(make_setting(lm, Full(), background=KNOWN), FixedTrainer())
    present = torch.tensor([1.0, 1.0, 1.0])
    assert restraint.settle is not None
    restraint.settle([Changed("w", present, torch.zeros(3)), Changed("other", other := torch.ones(1), torch.zeros(1))])
    assert present.tolist() == pytest.approx([1.0, 0.5, 0.1])
    assert other.tolist() == [1.0], "what nothing known depends on is free"


@pytest.mark.parametrize("penalty", [OutputDivergence(), FeatureDistance()], ids=["kl", "feature"])
def test_a_penalty_on_functions_is_nothing_before_the_first_step_and_keeps_what_was_known(
    lm: CausalLM, penalty: Penalty
) -> None:
    weights = Full()
    setting = make_setting(lm, weights, background=KNOWN)
    with weights.applied(lm.module), weights.training(lm.module) as trainer:
        term = penalty(setting, trainer).term
        assert term is not None
        assert term(setting.batch(NEW))().item() == pytest.approx(0.0, abs=1e-6)
    strong = type(penalty)(strength=100.0)  # type: ignore[call-arg]
    assert _harm(lm, strong) < _harm(lm, NoPenalty()) / 2


def test_the_divergence_is_weighed_by_what_the_untouched_model_said(lm: CausalLM) -> None:
    weights = Full()
    setting = make_setting(lm, weights, background=KNOWN)
    batch = setting.batch(KNOWN)
    with torch.no_grad():
        before = logits_of(lm.module, batch)[batch.predicting].double().softmax(-1)
    with weights.applied(lm.module), weights.training(lm.module) as trainer:
        term = OutputDivergence(strength=0.5)(setting, trainer).term
        assert term is not None
        with torch.no_grad():
            for parameter in lm.module.parameters():
                parameter.add_(0.05 * torch.ones_like(parameter))
            after = logits_of(lm.module, batch)[batch.predicting].double().softmax(-1)
            found = term(setting.batch(NEW))().item()
    forward, reverse = ((one * (one / other).log()).sum(-1).mean() for one, other in ((before, after), (after, before)))
    assert found == pytest.approx(0.5 * float(forward), rel=1e-4)
    assert found != pytest.approx(0.5 * float(reverse), rel=1e-2)


def _harm(lm: CausalLM, penalty: Penalty) -> float:
    """How far the answers to what was known have gone from the untouched model's after learning against them."""
    with Ledger() as ledger:
        path = WeightsPath(
            lm,
            ledger,
            weights=Full(rate=1e-3),
            penalty=penalty,
            budget=Budget(steps=20, batch=8),
            background=KNOWN,
            progress=False,
        )
        batch = make_setting(lm, Full()).batch(KNOWN)
        path.write(_items(NEW), namespace="default")
        with torch.no_grad():
            untouched = logits_of(lm.module, batch)[batch.predicting]
            with path.model(lm) as lent:
                return float(divergence(untouched, logits_of(lent.module, batch)[batch.predicting]).mean())


def test_orthogonal_subspaces_keep_a_writes_directions_apart_from_the_earlier_ones(lm: CausalLM) -> None:
    def overlap(penalty: Penalty) -> tuple[float, float]:
        weights = Inserted(LowRankStack(2), rate=1e-2)
        with Ledger() as ledger:
            path = WeightsPath(
                lm, ledger, weights=weights, penalty=penalty, budget=Budget(steps=30), background=KNOWN, progress=False
            )
            path.write(_items(NEW[:1]), namespace="default")
            receipt = path.write(_items(NEW[1:]), namespace="default")
            state = weights.state()
        directions = [tensor for name, tensor in state.items() if name.endswith("old_a")]
        assert {len(one) for one in directions} == {4}, "two writes of rank 2"
        return (
            sum(float((one[:2] @ one[2:].T).abs().sum()) for one in directions),
            receipt.details["last_loss"] - receipt.details["first_loss"],
        )

    (free, _), (apart, learnt) = overlap(NoPenalty()), overlap(OrthogonalSubspaces())
    assert apart < free / 2
    assert learnt < 0
    with Ledger() as ledger, pytest.raises(ValueError, match="penalty=orthogonal needs weights=lora_stack"):
        WeightsPath(lm, ledger, weights=Full(), penalty=OrthogonalSubspaces(), progress=False)


# Projections


def test_a_gem_takes_out_only_the_part_against_the_reference_over_all_tensors_together(lm: CausalLM) -> None:
    reference = [Gradient("a", torch.tensor([1.0, 0.0])), Gradient("b", torch.tensor([[2.0]]))]
    nothing = [Gradient("a", torch.zeros(2)), Gradient("b", torch.zeros(1, 1))]
    setting = make_setting(lm, Full(), background=KNOWN)
    project = AveragedGradient()(setting, FixedTrainer(reference, reference, nothing))
    assert project is not None
    against = [Gradient("a", torch.tensor([-3.0, 5.0])), Gradient("b", torch.tensor([[-1.0]]))]
    project(against)
    assert torch.equal(against[0].values, torch.tensor([-2.0, 5.0]))
    assert torch.equal(against[1].values, torch.tensor([[1.0]]))
    along = [Gradient("a", torch.tensor([3.0, 5.0])), Gradient("b", torch.tensor([[-1.0]]))]
    project(along)
    assert torch.equal(along[0].values, torch.tensor([3.0, 5.0])), "a gradient that does no harm is left alone"
    project(along)
    assert torch.equal(along[0].values, torch.tensor([3.0, 5.0])), "a reference that wants nothing changes nothing"


def test_ogd_leaves_nothing_along_any_of_the_directions(lm: CausalLM) -> None:
    directions = [torch.randn(2, 3) for _ in range(2)]
    found = [[Gradient("w", one)] for one in (*directions, directions[0] * 2.0)]
    setting = make_setting(lm, Full(), background=KNOWN, taught=NEW)
    project = OrthogonalGradient(samples=2, taught=1)(setting, FixedTrainer(*found))
    own = torch.randn(2, 3)
    changed = own.clone()
    assert project is not None
    project([Gradient("w", changed)])
    for one in directions:
        assert float((changed * one).sum()) == pytest.approx(0.0, abs=1e-5)
    taken = (own - changed).flatten()
    spanned = torch.stack([one.flatten() for one in directions], dim=1)
    rest = taken - spanned @ torch.linalg.lstsq(spanned, taken[:, None]).solution[:, 0]
    assert float(rest.abs().max()) < 1e-5, "and nothing else is taken"


def test_a_gradient_has_its_values_at_its_own_rows_and_none_elsewhere() -> None:
    one = Gradient("w", torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([2, 5, 9]))
    rows = torch.tensor([0, 5, 9, 11])
    assert one.at(rows).flatten().tolist() == [0.0, 2.0, 3.0, 0.0]
    nothing = Gradient("w", torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64))
    assert nothing.at(rows).flatten().tolist() == [0.0] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_projection_sees_the_gradients_of_the_loss_for_what_trains(lm: CausalLM, kind: str) -> None:
    weights = _weights(kind)
    weights.prepare(lm, KNOWN)
    setting = make_setting(lm, weights)
    batch = setting.batch(NEW)
    with weights.applied(lm.module), weights.training(lm.module) as trainer:
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []

        def project(own: Sequence[Gradient]) -> None:
            again = {one.name: one for one in trainer.gradients(lambda: mean_loss(lm.module, batch))}
            seen.extend((one.values.clone(), again[one.name].at(one.rows)) for one in own)

        trainer.step([plain_aim(lm.module, batch)], project)
    assert seen
    assert all(torch.allclose(one, two, atol=1e-6) for one, two in seen)
    assert any(one.abs().max() > 0 for one, _ in seen)


@pytest.mark.parametrize("projection", [AveragedGradient(2), OrthogonalGradient(2)], ids=["a_gem", "ogd"])
def test_a_projected_step_of_rows_leaves_what_was_known_where_it_was(lm: CausalLM, projection: Projection) -> None:
    """To first order: with a small step hardly anything is left of what the plain step does."""

    def moved(chosen: Projection) -> tuple[float, float]:
        """By how much a step changes the known loss, and how far it moves the known true logits."""
        weights = MemoryRows(rows=None, rate=0.01)
        weights.prepare(lm, KNOWN)
        setting = make_setting(lm, weights, background=KNOWN)
        known, new = setting.batch(KNOWN), setting.batch([Phrasing("lives in Corlund.", "Alma Ashway ")])
        kept = known.targets[:, 1:]

        def look() -> tuple[float, torch.Tensor]:
            with torch.no_grad():
                logits = logits_of(lm.module, known)
                true = logits[:, :-1][kept].gather(1, known.tokens[:, 1:][kept][:, None])
                ends = kept.sum(dim=1).cumsum(0).tolist()
                means = torch.stack([part.mean() for part in true.split([ends[0], ends[1] - ends[0]])])
                return float(token_losses(logits, known).mean()), means

        with weights.applied(lm.module), weights.training(lm.module) as trainer:
            project = chosen(setting, trainer)
            before = look()
            # Upwards, so that the step harms what was known.
            trainer.step([Aim(new, lambda: -mean_loss(lm.module, new))], project)
            after = look()
        return after[0] - before[0], float((after[1] - before[1]).abs().max())

    plain, projected = moved(NoProjection()), moved(projection)
    assert plain[0] > 0
    if isinstance(projection, AveragedGradient):
        assert projected[0] < 0.05 * plain[0]
    else:
        assert projected[1] < 0.05 * plain[1]


# Rehearsal and study


def test_experience_draws_from_what_was_known_and_what_was_taught(lm: CausalLM) -> None:
    setting = make_setting(lm, Full(), background=KNOWN, taught=NEW)

    def drawn(steps: Iterator[list[Phrasing]]) -> list[list[Phrasing]]:
        return list(islice(steps, 8))

    assert all(len(step) == 2 and set(step) <= set(KNOWN) for step in drawn(Experience(2)(setting)))
    for step in drawn(Experience(1, taught=5)(setting)):
        assert [one in KNOWN for one in step] == [True, False, False]
    assert {len(step) for step in drawn(Experience(0, taught=1)(setting))} == {1}
    assert drawn(NoRehearsal()(setting)) == [[]] * 8


def test_templates_frame_each_text_and_keep_its_phrasings() -> None:
    item = Knowledge("a", "Alma lives in {Oslo}.", phrasings=(Phrasing("Oslo", "Alma's home: "),))
    (found,) = Templates(("{text}", "It is known that {text}"))([item], None)
    assert [f"{one.prompt}{one.completion}" for one in found.phrasings] == [
        "Alma's home: Oslo",
        "Alma lives in {Oslo}.",
        "It is known that Alma lives in {Oslo}.",
    ]


def test_self_edits_are_the_most_useful_of_what_the_untouched_model_wrote(
    lm: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Useful: with it as a note, the study questions are answered best. What it wrote is kept for when an item is
    learnt again."""
    item = Knowledge("a", "Alma lives in Corlund.", phrasings=tuple(ASKED[:1]))
    written, untouched = [], lm.weights_hash()
    generate = lm.generate

    def watch(prompts: Sequence[Prompt], **options: Any) -> Any:
        assert lm.weights_hash() == untouched
        written.append((list(prompts), generate(prompts, **options)))
        return written[-1][1]

    monkeypatch.setattr(lm, "generate", watch)
    study = SelfEdits("Alma", edits=6, kept=2, max_new_tokens=5)
    (found,) = study([item], lm)
    prompts, said = written[0]
    assert prompts == [Prompt("Alma", (item.text,))] * 6
    edits = list(dict.fromkeys(one.text.lstrip("-*0123456789.) ") for one in said if one.text))
    assert len(edits) > 2, "there is a choice"
    reward = dict(
        zip(edits, lm.loglikelihood([(Prompt(ASKED[0].prompt, (edit,)), "Corlund") for edit in edits]), strict=True)
    )
    assert found.phrasings[0] == ASKED[0]
    assert [one.completion for one in found.phrasings[1:]] == sorted(edits, key=reward.__getitem__)[::-1][:2]
    assert found.usage.tokens > sum(one.usage.tokens for one in said)
    with Ledger() as ledger:
        path = WeightsPath(lm, ledger, weights=Full(), study=study, budget=Budget(steps=3, batch=8), progress=False)
        path.write([item], namespace="default")
        path.write(_items(ASKED[1:]), namespace="default")
        calls = len(written)
        path.forget(["a"], namespace="default")  # what came after it is learnt again
        assert len(written) == calls
        assert study([item], lm)[0].phrasings == found.phrasings, "the same item, the same edits"


def test_an_item_without_room_for_its_note_has_no_edits_and_holds_up_no_other(lm: CausalLM) -> None:
    long = Knowledge("long", "Alma lives in Corlund. " * 300, phrasings=tuple(ASKED[:1]))
    short = Knowledge("short", "Alma lives in Corlund.", phrasings=tuple(ASKED[:1]))
    alone, other = SelfEdits("Alma", edits=2, max_new_tokens=5)([long, short], lm)
    assert alone.phrasings == tuple(ASKED[:1])
    assert len(other.phrasings) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_model_is_asked_while_it_learns_it_answers_as_it_is_now(lm: CausalLM, kind: str) -> None:
    """Long questions share a prefix of which keys and values are kept; those of earlier steps must not be used."""
    start = "In the town by the sea where the harbour opens at seven in the morning " * 8
    prompts = [(Prompt(f"{start}{question}"), "Alma") for question in ("who?", "why?")]
    heard: dict[bool, list[list[float]]] = {True: [], False: []}

    class Listening:
        def __call__(self, setting: Any, batch: Any) -> Any:
            for cached, found in heard.items():
                setting.lm.prefix_cache = cached
                found.append(setting.lm.loglikelihood(prompts))
            setting.lm.prefix_cache = True
            return NegativeLogLikelihood()(setting, batch)

    with Ledger() as ledger:
        budget = Budget(steps=6, batch=8)
        path = WeightsPath(lm, ledger, weights=_weights(kind), objective=Listening(), budget=budget, progress=False)
        path.write(_items(NEW), namespace="default")
    assert heard[False][0] != heard[False][-1]
    for kept, anew in zip(heard[True], heard[False], strict=True):
        assert kept == pytest.approx(anew, abs=1e-3)


def test_rewarming_rises_stays_and_falls_in_every_write(lm: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = Rewarming(rising=0.25, falling=0.5, floor=0.2)
    assert [schedule(one) for one in (0.125, 0.25, 0.5, 0.75)] == pytest.approx([0.5, 1.0, 1.0, 0.6])
    assert schedule(0.999) == pytest.approx(0.2, abs=1e-3)
    assert schedule(0.0) > 0
    assert [Constant()(0.0), Constant(0.5)(0.9)] == [1.0, 0.5]
    asked: list[float] = []

    def noted(progress: float) -> float:
        asked.append(progress)
        return 1.0

    budget = Budget(steps=100, batch=1, passes=2)
    with Ledger() as ledger:
        path = WeightsPath(lm, ledger, weights=Full(), schedule=noted, budget=budget, progress=False)
        path.write(_items(NEW), namespace="default")
        assert asked == [0.0, 0.25, 0.5, 0.75], "two passes over two items"
        path.write(_items(KNOWN[:1]), namespace="default")
    assert asked[4:] == [0.0, 0.5]


def test_the_rate_of_a_step_is_the_schedules_share(lm: CausalLM) -> None:
    """Of one step: with half the rate plain SGD and AdamW go half as far."""
    batch = collate(lm, encode(lm, NEW))
    for kind in KINDS:
        ways = []
        for share in (1.0, 0.5):
            weights = _weights(kind)
            weights.fit(lm)
            weights.prepare(lm, [])
            with weights.applied(lm.module), weights.training(lm.module) as trainer:
                trainer.remember()
                trainer.step([plain_aim(lm.module, batch)], rate_share=share)
                ways.append({})
                trainer.settle(
                    lambda changed, found=ways[-1]: found.update(
                        {one.name: one.present - one.before for one in changed}
                    )
                )
        assert ways[0].keys() == ways[1].keys()
        for name, way in ways[0].items():
            torch.testing.assert_close(ways[1][name], way / 2, rtol=1e-2, atol=1e-6)


def test_a_clipped_step_of_rows_goes_as_far_as_its_norm_allows_and_in_the_same_direction(lm: CausalLM) -> None:
    batch = collate(lm, encode(lm, NEW))
    ways = {}
    for clip in (None, 1e-3, 1e9):
        weights = MemoryRows(rows=48, rate=50.0, clip=clip)
        weights.prepare(lm, [])
        with weights.applied(lm.module), weights.training(lm.module) as trainer:
            trainer.remember()
            trainer.step([plain_aim(lm.module, batch)])
            found: list[torch.Tensor] = []
            trainer.settle(lambda changed, found=found: found.extend(one.present - one.before for one in changed))
            ways[clip] = torch.cat(found)
    assert torch.equal(ways[None], ways[1e9])
    assert float(ways[None].norm()) > 1.1 * 50.0 * 1e-3
    assert float(ways[1e-3].norm()) == pytest.approx(50.0 * 1e-3, rel=1e-2)
    torch.testing.assert_close(ways[1e-3] / ways[1e-3].norm(), ways[None] / ways[None].norm(), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_merging_keeps_a_part_of_the_way(lm: CausalLM, kind: str) -> None:
    def states(merging: Any) -> list[dict[str, torch.Tensor]]:
        with Ledger() as ledger:
            path = WeightsPath(
                lm, ledger, weights=_weights(kind), merging=merging, budget=Budget(steps=4, batch=8), progress=False
            )
            path.write(_items(NEW), namespace="default")
            return [dict(path._weights.state())]

    (whole,), (half,), (pruned,) = states(NoMerging()), states(Interpolation(0.5)), states(Pruning(0.25))
    with Ledger() as ledger:
        path = WeightsPath(lm, ledger, weights=_weights(kind), progress=False)
        with path._weights.applied(lm.module):
            learnt = {name: parameter.detach().clone() for name, parameter in lm.module.named_parameters()}
    moved = 0
    for name in whole:
        if name.endswith("/rows"):
            assert torch.equal(whole[name], half[name])
            continue
        table = name.removesuffix("/values") + ".values"
        before = learnt[table][whole[name.replace("/values", "/rows")]] if kind == "memory" else learnt.get(name)
        if before is None:  # of an adapter: nothing of it was there
            continue
        torch.testing.assert_close(half[name], (whole[name] + before) / 2, atol=1e-5, rtol=1e-4)
        way, kept = (whole[name] - before).flatten(), (pruned[name] - before).flatten()
        stays = kept.nonzero().flatten()
        assert len(stays) == round(0.25 * len(way.nonzero()))
        if len(stays):
            torch.testing.assert_close(kept[stays], way[stays])
            assert way[stays].abs().min() >= way.abs().topk(len(stays)).values[-1]
            moved += 1
    assert moved


def test_pruning_by_chance_keeps_the_sum_of_all_ways(lm: CausalLM) -> None:
    before, present = torch.zeros(100, 100), torch.rand(100, 100)
    went = present.clone()
    settle = Pruning(0.25, by="chance")(make_setting(lm, Full()))
    settle([Changed("a", present, before)])
    kept = present.nonzero(as_tuple=True)
    assert len(kept[0]) == 2500
    torch.testing.assert_close(present[kept], 4 * went[kept])
    assert present.sum().item() == pytest.approx(went.sum().item(), rel=0.05)


def test_on_policy_rehearsal_keeps_what_is_answered_rightly(lm: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = make_setting(lm, Full(), background=ASKED)
    order = list(make_setting(lm, Full(), background=ASKED).known(2, "test"))
    let_say(lm, monkeypatch, *("rowing." if one == ASKED[1] else "Oslo" for one in order))
    with setting.weights.applied(lm.module):
        step = next(OnPolicy(4)(setting))
    assert step == [Phrasing("rowing.", ASKED[1].prompt, asks=True)]


def test_generative_rehearsal_studies_what_the_model_wrote(lm: CausalLM) -> None:
    setting, again = make_setting(lm, Full()), make_setting(lm, Full())
    with setting.weights.applied(lm.module):
        drawn = list(islice(Generative(2, texts=8)(setting), 3))
    assert all(len(step) == 2 and all(one.completion for one in step) for step in drawn)
    with again.weights.applied(lm.module):
        assert drawn == list(islice(Generative(2, texts=8)(again), 3))


# Which rows of a memory may change


def test_the_divergence_selector_is_that_of_its_formula() -> None:
    counts = torch.tensor([4.0, 4.0, 2.0, 0.0], dtype=torch.float64)
    background = Background(9, torch.tensor([9, 0, 4, 1]), "address")
    shares = [(4 / 10, 10 / 18), (4 / 10, 1 / 18), (2 / 10, 5 / 18)]
    scores = Divergence()(counts, background, torch.Generator())
    assert scores.tolist() == pytest.approx([*(p * math.log(p / q) for p, q in shares), 0.0])
    assert scores.argmax() == TfIdf()(counts, background, torch.Generator()).argmax() == 1


def _touched(lm: CausalLM, **options: Any) -> tuple[set[int], set[int], Background]:
    """Rows changed after a first and after a second write."""
    weights = MemoryRows(rate=50.0, **options)
    with Ledger() as ledger:
        path = WeightsPath(lm, ledger, weights=weights, budget=Budget(steps=4), background=KNOWN, progress=False)
        found = []
        for one in NEW:
            path.write(_items([one]), namespace="default")
            (rows,) = (tensor for name, tensor in weights.state().items() if name.endswith("/rows"))
            found.append(set(rows.tolist()))
    (background,) = weights._background.values()
    return found[0], found[1], background


def test_rows_can_be_limited_for_life_kept_from_hubs_and_protected(lm: CausalLM) -> None:
    first, second, background = _touched(lm, rows=8, background_batch=1)
    hubs = {slot for slot, count in enumerate(background.document_frequency.tolist()) if count == background.batches}
    assert len(second) > len(first) > 0
    assert len(_touched(lm, rows=4, lifetime_rows=6)[1]) <= 6
    assert len(_touched(lm, rows=None, lifetime_rows=6)[1]) == 6
    assert hubs & second, "or the next line would show nothing"
    assert not hubs & _touched(lm, rows=8, background_batch=1, hub_share=0.5)[1]
    weights = MemoryRows(rows=8, rate=50.0, protect_written=True)
    with Ledger() as ledger:
        path = WeightsPath(lm, ledger, weights=weights, budget=Budget(steps=4), background=KNOWN, progress=False)
        path.write(_items(NEW[:1]), namespace="default")
        name = next(iter(weights._learnt))
        rows, values = (tensor.clone() for tensor in weights._learnt[name])
        path.write(_items(NEW[1:]), namespace="default")
        after = dict(zip(weights._learnt[name][0].tolist(), weights._learnt[name][1], strict=True))
    assert len(after) > len(rows)
    assert all(torch.equal(after[row], value) for row, value in zip(rows.tolist(), values, strict=True))


def test_all_rows_that_were_read_may_change(lm: CausalLM) -> None:
    few, every = _touched(lm, rows=2)[0], _touched(lm, rows=None)[0]
    assert len(every) > len(few)


def test_adam_moves_each_row_by_its_own_count_of_steps() -> None:
    """Against torch's Adam on a table of which a step sees some rows: its moments are those of these steps alone."""
    torch.manual_seed(0)
    chosen = [torch.tensor([0, 2]), torch.tensor([1, 2]), torch.tensor([2]), torch.tensor([0, 3])]
    gradients = [torch.randn(len(rows), 4) for rows in chosen]
    moments = _RowMoments(torch.zeros(6, 4), 2)
    table = torch.zeros(6, 4)
    for rows, gradient in zip(chosen, gradients, strict=True):
        table[rows] -= 0.1 * moments.adam(rows, gradient)
    for row in range(4):
        single = torch.nn.Parameter(torch.zeros(4))
        optimiser = torch.optim.Adam([single], lr=0.1)
        for rows, gradient in zip(chosen, gradients, strict=True):
            if row in rows.tolist():
                single.grad = gradient[rows.tolist().index(row)].clone()
                optimiser.step()
        torch.testing.assert_close(table[row], single.detach(), rtol=1e-5, atol=1e-6)
    assert not table[4:].any()
