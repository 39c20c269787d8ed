"SPSA against a plain version of it, Square against AutoAttack's"

import pytest
import torch

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
