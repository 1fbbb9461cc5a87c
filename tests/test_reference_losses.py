"""Objectives, penalties and projections against the numbers of the libraries that others compute them with.

The numbers were computed by TRL 1.16.0 and Avalanche 0.6.0 (torch 2.13.0, transformers 5.23.0) in an environment of
their own, on the inputs below: logits by `wave`, and the tiny Llama of `conftest.py` with every weight set by `filled`.
Each test says which of their functions gave its numbers, and where a definition of theirs differs by a factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import let_say, make_setting, mean_loss

from memory_paths.lm import CausalLM
from memory_paths.parametric.full import Full
from memory_paths.parametric.objective import Distillation, beside_targets
from memory_paths.parametric.on_policy import PolicyGradient, jensen_shannon
from memory_paths.parametric.penalty import ElasticWeights, FeatureDistance, fisher_information
from memory_paths.parametric.projection import AveragedGradient
from memory_paths.parametric.weights import Changed, Gradient
from memory_paths.types import Phrasing

KNOWN = [Phrasing("lives in Oslo.", "Ada "), Phrasing("enjoys chess.", "Bruno ")]
NEW = [Phrasing("lives in Bergen.", "Ada "), Phrasing("enjoys rowing.", "Bruno ")]
ASKED = Phrasing("rowing", "What does Bruno enjoy?", asks=True)
EMBEDDING, UP, DOWN, HEAD = (
    "model.embed_tokens.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.1.mlp.down_proj.weight",
    "lm_head.weight",
)


def wave(*shape: int, step: float) -> torch.Tensor:
    return 3.0 * torch.sin(torch.arange(math.prod(shape)) * step).view(shape)


@pytest.fixture(scope="module")
def filled(make_tiny_lm: Callable[..., CausalLM]) -> CausalLM:
    """Number n of the i-th tensor is 0.3 * sin(0.7 n + i)."""
    lm = make_tiny_lm()
    with torch.no_grad():
        for index, parameter in enumerate(lm.module.parameters()):
            parameter.copy_(0.3 * torch.sin(torch.arange(parameter.numel()) * 0.7 + index).view_as(parameter))
    return lm


JENSEN_SHANNON = {
    0.0: ([2.287974, 1.428864, 0.890143, 1.415193, 2.079175, 2.918549], 1.453344),
    0.1: ([0.157482, 0.115648, 0.076514, 0.107758, 0.138725, 0.191867], 0.109661),
    0.5: ([0.340644, 0.310930, 0.222420, 0.268942, 0.338013, 0.428100], 0.285076),
    0.9: ([0.140319, 0.155049, 0.116000, 0.128508, 0.159884, 0.168225], 0.139860),
    1.0: ([2.144246, 2.977275, 2.036247, 2.126280, 2.699282, 2.124336], 2.459771),
}


@pytest.mark.parametrize("beta", JENSEN_SHANNON)
def test_the_divergence_of_distillation_is_that_of_trl(beta: float) -> None:
    """`GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, reduction="none").sum(-1)`, and
    `compute_full_logit_self_distillation_loss(..., distillation_alpha=beta)` of their SDFT, which gives the same; the
    last number is the first function's with labels, reduction "batchmean": a mean over tokens, as ours."""
    tokens, mean = JENSEN_SHANNON[beta]
    found = jensen_shannon(wave(2, 3, 7, step=0.9), wave(2, 3, 7, step=1.7), beta)
    assert found.flatten().tolist() == pytest.approx(tokens, rel=1e-5, abs=1e-6)
    learnt = torch.tensor([[False, True, True], [True, True, False]])
    assert float(found[learnt].mean()) == pytest.approx(mean, rel=1e-5)


def test_the_policy_gradient_is_that_of_trl(filled: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """`GRPOTrainer` with `loss_type="dapo"`, `beta=0`, four generations, these answers from its `rollout_func` and
    their rewards from its `reward_funcs`: `_compute_loss` on what `_generate_and_score_completions` gives (advantages
    1.14249, 0.35457, -1.22128 and -0.27577), in nats per token, and norms of its gradient."""
    said = ("rowing", "rowing boats", "chess", "old rowing boats here")  # of reward 1, 2/3, 0 and 2/5
    let_say(filled, monkeypatch, *said)
    weights = Full()
    setting = make_setting(filled, weights)
    with weights.applied(filled.module), weights.training(filled.module) as trainer:
        aim = PolicyGradient(samples=4, questions=1)(setting, setting.batch([ASKED]))
        assert float(aim.loss().detach()) == pytest.approx(0.01089689, rel=1e-4)
        norms = {one.name: float(one.values.norm()) for one in trainer.gradients(aim.loss)}
    theirs = {EMBEDDING: 0.11061633, UP: 0.00378297, HEAD: 0.08580834}
    assert {name: norms[name] for name in theirs} == pytest.approx(theirs, rel=1e-4)


# Sums over a tensor of what `EWCPlugin.compute_importances` gives for KNOWN and NEW, with a criterion that sums the
# cross entropy over the targets; over all tensors; and one number of the output head.
FISHER_BY_SAMPLE = {EMBEDDING: 22.428968, UP: 0.10516838, DOWN: 0.14906305, HEAD: 15.459448, "all": 63.202860}
FISHER_BY_BATCH_OF_TWO = {EMBEDDING: 62.768600, UP: 0.36684212, DOWN: 0.55671334, HEAD: 36.176491, "all": 145.382574}
NUMBERS, ONE_OF_THE_HEAD = 27872, 6.4590575e-05


def test_importance_is_avalanches_with_batches_of_one_but_for_its_scale(filled: CausalLM) -> None:
    """With `train_mb_size=1` theirs is the mean over samples of each sample's squared gradient; ours is that divided by
    its mean over the numbers that are not 0, so that a strength means the same for every model. With larger batches
    theirs squares the gradient of a batch, which is another quantity: its shares are not ours."""
    weights = Full()
    setting = make_setting(filled, weights)
    samples = [setting.batch([one]) for one in (*KNOWN, *NEW)]
    with weights.applied(filled.module), weights.training(filled.module) as trainer:
        found = fisher_information(setting, trainer, samples)
    assert sum(int(one.values.count_nonzero()) for one in found.values()) == NUMBERS
    mean = FISHER_BY_SAMPLE["all"] / NUMBERS
    for name in (EMBEDDING, UP, DOWN, HEAD):
        assert float(found[name].values.sum()) * mean == pytest.approx(FISHER_BY_SAMPLE[name], rel=1e-3)
    assert float(found[HEAD].values[100, 3]) * mean == pytest.approx(ONE_OF_THE_HEAD, rel=1e-3)
    shares = [table[UP] / table["all"] for table in (FISHER_BY_SAMPLE, FISHER_BY_BATCH_OF_TWO)]
    assert shares[1] > 1.4 * shares[0]


def test_elastic_weights_settle_where_avalanches_penalty_lets_them(
    filled: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights at which gradient descent on |w - step|^2 / 2 plus what `EWCPlugin.before_backward` adds to the loss
    comes to rest. Theirs adds `ewc_lambda` times the sum of importance times squared distance, without the paper's one
    half: strength s is their `ewc_lambda` s / 2."""
    before, step = torch.tensor([0.0, 1.0, -2.0, 0.5]), torch.tensor([1.0, 2.0, -1.0, -0.5])
    importance = {"w": Gradient("w", torch.tensor([0.0, 0.5, 1.0, 4.0]))}
    monkeypatch.setattr("memory_paths.parametric.penalty.fisher_information", lambda *given: importance)
    weights = Full()
    with weights.applied(filled.module), weights.training(filled.module) as trainer:
        restraint = ElasticWeights(strength=0.5)(make_setting(filled, weights, background=KNOWN), trainer)
    assert restraint.settle is not None
    restraint.settle([Changed("w", step, before)])
    assert step.tolist() == pytest.approx([1.0, 1.8, -4 / 3, 1 / 6], abs=1e-6)


@pytest.mark.parametrize(("temperature", "theirs"), [(1.0, 0.04891204), (2.0, 0.01285697)])
def test_distillation_is_avalanches_times_the_square_of_its_temperature(
    filled: CausalLM, temperature: float, theirs: float
) -> None:
    """`LearningWithoutForgetting(alpha=1, temperature)._distillation_loss` of the model with all weights doubled from
    the model as it is, at the ten positions of NEW that predict no target. Ours multiplies by the temperature's square
    (Hinton et al. 2015), theirs does not."""
    weights = Full()
    setting = make_setting(filled, weights)
    batch = setting.batch(NEW)
    assert int(beside_targets(batch).sum()) == 10
    with weights.applied(filled.module), torch.no_grad():
        for parameter in filled.module.parameters():
            parameter.mul_(2.0)
        plain = float(mean_loss(filled.module, batch))
        whole = float(Distillation("new", weight=3.0, temperature=temperature)(setting, batch).loss())
    assert plain == pytest.approx(5.5896206, rel=1e-5)
    assert whole - plain == pytest.approx(3.0 * temperature**2 * theirs, rel=1e-4)


def test_the_distance_of_features_is_avalanches_relative_to_their_size(filled: CausalLM) -> None:
    """`LFLPlugin(lambda_e=1).penalty` of the model with all weights doubled from the model as it is, of the last hidden
    states at the 29 positions of NEW that predict a target. Ours divides by the mean square of the earlier features,
    0.04236764, so that a strength means the same for every model: strength s is their `lambda_e` s / 0.0424."""
    weights = Full()
    setting = make_setting(filled, weights, background=NEW)
    with weights.applied(filled.module), weights.training(filled.module) as trainer:
        with torch.no_grad():
            for parameter in filled.module.parameters():
                parameter.mul_(2.0)
        restraint = FeatureDistance(strength=3.0, per_step=2)(setting, trainer)
        assert restraint.term is not None
        found = float(restraint.term(setting.batch(KNOWN))().detach())
    assert found == pytest.approx(3.0 * 0.06052910 / 0.04236764, rel=1e-4)


def test_averaged_gradients_are_projected_as_avalanche_does(filled: CausalLM) -> None:
    """`AGEMPlugin.after_backward` on the gradient of unlearning NEW, after `before_training_iteration` with KNOWN as
    what its memory gives: norms of the gradient before and after, and of some of its tensors after."""
    weights = Full()
    setting = make_setting(filled, weights, background=KNOWN)
    batch = setting.batch(NEW)
    with weights.applied(filled.module), weights.training(filled.module) as trainer:
        project: Any = AveragedGradient(per_step=2)(setting, trainer)
        gradients = trainer.gradients(lambda: -mean_loss(filled.module, batch))
        assert _norm(gradients) == pytest.approx(0.42197782, rel=1e-4)
        project(gradients)
    assert _norm(gradients) == pytest.approx(0.33348539, rel=1e-4)
    norms = {one.name: float(one.values.norm()) for one in gradients}
    theirs = {EMBEDDING: 0.19502190, UP: 0.00866289, DOWN: 0.00933337, HEAD: 0.19044770}
    assert {name: norms[name] for name in theirs} == pytest.approx(theirs, rel=1e-3)


def _norm(gradients: list[Gradient]) -> float:
    return float(torch.cat([one.values.flatten() for one in gradients]).norm())
