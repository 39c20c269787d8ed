"SPSA against a plain version of it, Square against AutoAttack's, and AutoAttack where there are few classes"

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from helpers import refusal
from torch import nn

from adt_repro.attacks import autoattack
from adt_repro.attacks.autoattack import auto_attack
from adt_repro.attacks.black_box import spsa, square
from adt_repro.base.noise import example_noise, rand_unit
from adt_repro.base.stats import mcnemar
from adt_repro.data import load_data
from adt_repro.evaluation.evaluate import accuracy, evaluate
from adt_repro.models.trained import trained_network


@pytest.fixture(scope='module')
def net():
    return trained_network('at_pgd')


def plain_spsa(net, x, y, name, eps, samples, steps, sigma, lr):
    "One image, one query at a time, Adam written out"

    def loss(z):
        with torch.no_grad():
            out = net(z[None])[0]
        return max(out[c].item() for c in range(10) if c != y) - out[y].item()

    delta, m, v, queries = torch.zeros_like(x), 0.0, 0.0, 1
    if loss(x) > 0:
        return x, queries
    for t in range(steps):
        g = torch.zeros_like(x)
        with example_noise(torch.tensor([name]), t):
            signs = [rand_unit(x[None])[0].sign() for _ in range(samples // 2)]
        for s in signs:
            g += (loss(x + delta + sigma * s) - loss(x + delta - sigma * s)) / (2 * sigma) * s / len(signs)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        delta = delta + lr * (m / (1 - 0.9 ** (t + 1))) / ((v / (1 - 0.999 ** (t + 1))).sqrt() + 1e-8)
        delta = delta.clamp(-eps, eps)
        delta = (x + delta).clamp(0, 1) - x
        queries += samples + 1
        if loss(x + delta) > 0:
            break
    return x + delta, queries


def test_spsa_is_what_it_says(net):
    data, net = load_data('digits'), net.double()
    x, y = data.x_test[:8].double(), data.y_test[:8]
    with example_noise(torch.arange(8), 5):
        high, low = ((rand_unit(x.new_empty(8, 2)) + 1) * 2**23).long().T
    with example_noise(torch.arange(8), 5):
        x_adv, queries = spsa(net, x, y, eps=0.25, samples=12, steps=10, lr=0.05, sigma=0.002)
    plain = [
        plain_spsa(net, x[i], int(y[i]), int(high[i] * 2**24 + low[i]), 0.25, 12, 10, 0.002, 0.05)
        for i in range(8)
    ]
    net.float()
    assert queries.tolist() == [q for _, q in plain] and 1 < len(set(queries.tolist()))
    assert max((a - b).abs().max().item() for a, (b, _) in zip(x_adv, plain, strict=True)) < 1e-8


def test_square_is_as_strong_as_the_package(net):
    "AutoAttack's own Square with the same budget: what only one of the two makes wrong could be chance"
    pytest.importorskip('pyautoattack')
    data = load_data('digits')
    x, y = data.x_test[:100], data.y_test[:100]
    ours = evaluate(net, x, y, lambda *a, eps: square(*a, eps=eps, budget=5000), eps=0.15)
    theirs = evaluate(net, x, y, lambda *a, eps: auto_attack(*a, eps=eps, attacks=['square']), eps=0.15)
    a, b = ours.pred == ours.y, theirs.pred == theirs.y
    assert mcnemar(a.values, b.values)['p'] > 1e-3, (accuracy(ours), accuracy(theirs))


def linear_of(classes):
    "A linear network of few classes, and images with its own predictions as labels"
    torch.manual_seed(classes)
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(48, classes)), torch.rand(6, 3, 4, 4)
    return net, x, net(x).argmax(1)


class StandIn:
    "What AutoAttack asks of a network: as many target classes as it was told, 9 if nothing"

    def __init__(self, model, **options):
        self.model = model
        self.apgd_targeted = SimpleNamespace(n_target_classes=9)
        self.fab = SimpleNamespace(n_target_classes=9)

    def run_standard_evaluation(self, x, y, batch_size):
        logits = self.model(x).sort(1).values
        for attack in self.apgd_targeted, self.fab:
            seen.append(attack.n_target_classes)
            logits[:, -attack.n_target_classes - 1]  # of the last class that is aimed at
        return x, y


seen = []


@pytest.fixture
def stand_in(monkeypatch):
    package = ModuleType('pyautoattack')
    package.AutoAttack = StandIn
    monkeypatch.setitem(sys.modules, 'pyautoattack', package)
    monkeypatch.setattr(autoattack, 'version', lambda name: '0.2.0')
    seen.clear()


@pytest.mark.parametrize('classes, targets', [(4, 3), (7, 6), (9, 8), (10, 9), (100, 9)])
def test_autoattack_aims_at_all_wrong_classes(stand_in, classes, targets):
    net, x, y = linear_of(classes)
    assert refusal(lambda: tuple(auto_attack(net, x, y, eps=0.1).shape)) == 'gave (6, 3, 4, 4)'
    assert seen == [targets, targets]


def test_autoattack_where_classes_are_too_few(stand_in):
    "The line says which of its attacks do work"
    net, x, y = linear_of(3)
    line = (
        "attacks=None: expected attacks for 3 classes, such as ['apgd-ce', 'fab-t', 'square']; apgd-t needs"
    )
    assert refusal(auto_attack, net, x, y, eps=0.1).startswith(line)
    dlr = refusal(auto_attack, *linear_of(2), eps=0.1, attacks=['apgd-dlr'])
    assert dlr == "attacks=['apgd-dlr']: expected attacks for 2 classes; apgd-dlr needs at least 3"
    assert refusal(auto_attack, net, x, y, eps=0.1, attacks=['pgd']).startswith(
        "attacks=['pgd']: expected a list"
    )
    line = 'x: expected float32, in which AutoAttack computes, not torch.float64'
    assert refusal(auto_attack, net.double(), x.double(), y, eps=0.1) == line


@pytest.mark.parametrize('classes', [4, 7, 9])
def test_autoattack_itself_with_few_classes(classes):
    "The package, where it is installed: no image that the closed form can make wrong is left right"
    pytest.importorskip('pyautoattack')
    net, x, y = linear_of(classes)
    w = net[1].weight.detach()
    breakable = torch.zeros(6, dtype=torch.bool)
    for target in range(classes):
        worst = (x.flatten(1) + 0.1 * (w[target] - w[y]).sign()).clamp(0, 1).view_as(x)
        breakable |= net(worst).argmax(1) != y
    assert breakable.any()
    found = refusal(lambda: (net(auto_attack(net, x, y, eps=0.1)).argmax(1) != y).tolist())
    assert found == f'gave {breakable.tolist()}'


def test_how_to_install_autoattack(monkeypatch):
    "A command that works, and names no distribution that is on no index"

    def not_found(name):
        raise autoattack.PackageNotFoundError(name)

    monkeypatch.setattr(autoattack, 'version', not_found)
    line = refusal(autoattack.autoattack_version)
    assert line.endswith("expected pyautoattack to be installed: uv pip install 'pyautoattack>=0.2,<0.3'")
