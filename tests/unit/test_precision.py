"Attacks in low precision: crafted there, judged in float32, and never mixed up with the others"

import copy
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from adt_repro.analysis.coverage import draws_of, predicted_classes, restarts_of
from adt_repro.analysis.landscape import landscape_axes, loss_surface, top_curvature
from adt_repro.attacks.black_box import spsa, square
from adt_repro.attacks.feature import fea_attack
from adt_repro.attacks.gradient import pgd
from adt_repro.attacks.suite import TABLE1_ATTACKS
from adt_repro.base.noise import example_noise
from adt_repro.data import load_data
from adt_repro.evaluation.evaluate import evaluate, evaluate_on
from adt_repro.evaluation.sanity import sanity_checks, zero_gradients
from adt_repro.losses import margin
from adt_repro.methods.adversaries import exp_adversary, worst_of_draws
from adt_repro.models.classifiers import build_model
from adt_repro.speed.precision import ComputeSettings, ComputeWrapper, attack_view, tf32

DATA = load_data('digits').head(64, 64)
X, Y = DATA.x_test, DATA.y_test


@pytest.fixture
def net():
    torch.manual_seed(0)
    return build_model('small_cnn', in_ch=1).eval()


ATTACKS = TABLE1_ATTACKS | dict(
    feature=partial(fea_attack, pool=(X, Y), n_targets=2, steps=5),
    distribution=worst_of_draws(partial(exp_adversary, eps=0.1), 3),
)


class Spied(torch.nn.Module):
    "A network that notes how it is called: autocast, and what TF32 may do"

    def __init__(self, net):
        super().__init__()
        self.net, self.said = net, []

    def note(self):
        self.said.append(
            (
                torch.is_autocast_enabled('cpu'),
                torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32,
            )
        )

    def forward(self, x):
        self.note()
        return self.net(x)

    def features(self, x):
        self.note()
        return self.net.features(x)

    @property
    def fc(self):
        return self.net.fc


@pytest.mark.parametrize('name', ATTACKS)
def test_crafted_low_judged_in_float32(net, name):
    "Against crafting by hand, and a look at the plain network"
    seen = attack_view(net, 'bf16')
    rows = evaluate(net, X, Y, ATTACKS[name], eps=0.1, seen=seen)
    with example_noise(torch.arange(64)):
        x_adv = ATTACKS[name](seen, X, Y, eps=0.1)
    with torch.no_grad():
        z = net(x_adv)
    assert rows.pred.tolist() == z.argmax(1).tolist()
    np.testing.assert_allclose(rows.margin, margin(z, Y), atol=1e-5)
    assert (rows.margin != evaluate(net, X, Y, ATTACKS[name], eps=0.1).margin).any()


@pytest.mark.parametrize(
    'precision, crafted', [('fp32', (False, False)), ('tf32', (False, True)), ('bf16', (True, False))]
)
def test_who_sees_what(net, precision, crafted):
    judge, seen = (
        Spied(net),
        None
        if precision == 'fp32'
        else ComputeWrapper(Spied(copy.deepcopy(net)), ComputeSettings(precision)),
    )
    for attack in ATTACKS.values():
        evaluate(judge, X, Y, attack, eps=0.1, seen=seen)
        assert set(judge.said) == {(False, False)} and (seen is None or set(seen.net.said) == {crafted})
        judge.said.clear()
        if seen is not None:
            seen.net.said.clear()


@pytest.mark.parametrize(
    'attack', [partial(spsa, samples=4, steps=3), partial(square, budget=5)], ids=['spsa', 'square']
)
def test_attacks_by_queries_are_never_rounded(net, attack):
    for precision in 'tf32', 'bf16':
        seen = ComputeWrapper(Spied(copy.deepcopy(net)), ComputeSettings(precision))
        plain = evaluate(
            net, X, Y, attack, eps=0.1, seen=copy.deepcopy(seen.net.net)
        )  # in the same layout: differences of logits see the last digit
        with tf32(True):
            rows = evaluate(net, X, Y, attack, eps=0.1, seen=seen)
        with tf32(True), example_noise(torch.arange(64)):
            x_adv, _ = attack(seen, X, Y, eps=0.1)  # and by itself
        assert set(seen.net.said) == {(False, False)}
        pd.testing.assert_frame_equal(rows, plain)
        with torch.no_grad():
            np.testing.assert_allclose(margin(net(x_adv), Y), plain.margin, atol=1e-5)


def test_whatever_measures_is_exact(net):
    spied = Spied(net)
    ids, x, y = torch.arange(6), X[:6], Y[:6]
    axes = landscape_axes(net, x, y)
    with tf32(True):
        restarts = restarts_of(pgd, spied, x, y, 2, eps=0.1, ids=ids)
        for f in (
            lambda: zero_gradients(spied, x, y),
            lambda: draws_of(partial(exp_adversary, eps=0.1), spied, x, y, 2, ids=ids),
            lambda: predicted_classes(spied, x, restarts),
            lambda: landscape_axes(spied, x, y),
            lambda: loss_surface(spied, x, y, axes, radius=0.1, n=3),
            lambda: top_curvature(spied, x, y, steps=2),
            lambda: evaluate_on(dict(a=spied), spied, x, y, pgd, eps=0.1),
            lambda: sanity_checks(spied, x, y, eps=0.1, n_restarts=2),
        ):
            f()
            assert spied.said and set(spied.said) == {(False, False)}
            spied.said.clear()
        assert torch.backends.cudnn.allow_tf32
