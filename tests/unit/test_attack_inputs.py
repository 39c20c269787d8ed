"What attacks are given: pixels, labels, settings, gradients that are not finite; and what they give back"

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import refusal
from torch import nn

from adt_repro.attacks.black_box import spsa, square
from adt_repro.attacks.feature import fea_attack
from adt_repro.attacks.gradient import (
    cw,
    fgsm,
    gradient_log,
    linf_ball,
    mim,
    pgd,
    sign_ascent,
    targeted,
    worst_of,
)
from adt_repro.attacks.inputs import already_checked
from adt_repro.attacks.suite import TABLE1_ATTACKS
from adt_repro.base.noise import example_noise, rand_normal, rand_unit
from adt_repro.data import load_data
from adt_repro.methods.adversaries import exp_adversary
from adt_repro.models.trained import trained_network

EPS = 0.15
DATA = load_data('digits')
X, Y = DATA.x_test[:16], DATA.y_test[:16]
POOL = DATA.x_test[100:120], DATA.y_test[100:120]


@pytest.fixture(scope='module')
def net():
    return trained_network('standard')


def quick(attack, **settings):
    "An attack with few steps; its images"

    def images(model, x, y, eps=EPS):
        made = attack(model, x, y, eps=eps, **settings)
        return made[0] if isinstance(made, tuple) else made

    return images


ATTACKS = dict(
    fgsm=quick(fgsm),
    pgd=quick(pgd, steps=3),
    mim=quick(mim, steps=3),
    worst=quick(worst_of(fgsm, fgsm)),
    targeted=quick(targeted(2, steps=2)),
    feature=quick(fea_attack, pool=POOL, n_targets=2, steps=2),
    spsa=quick(spsa, samples=4, steps=2),
    square=quick(square, budget=5),
)
every_attack = pytest.mark.parametrize('attack', ATTACKS.values(), ids=ATTACKS)


# What is refused, each with one line that says what to do

NOT_PIXELS = dict(
    bytes_as_floats=(255 * X, 'x: expected pixels in [0, 1], these go from 0 to 255; x / 255 makes them'),
    uint8=(
        (255 * X).byte(),
        'x: expected floating-point pixels in [0, 1], not torch.uint8; use x.float() / 255',
    ),
    a_thousandth=(X + 1e-3, 'x: expected pixels in [0, 1], these go from 0.001 to 1.001'),
    two_millionths=(X - 2e-6, 'x: expected pixels in [0, 1], these go from -2e-06 to 0.999998'),
    nan=(X.masked_fill(X == 0, math.nan), 'x: expected finite pixels in [0, 1]'),
    numpy=(
        X.numpy(),
        'x: expected images as a tensor, this is of type ndarray; torch.from_numpy(x) makes one',
    ),
)


@every_attack
@pytest.mark.parametrize('case', NOT_PIXELS)
def test_what_are_no_pixels(net, attack, case):
    x, line = NOT_PIXELS[case]
    assert refusal(attack, net, x, Y).startswith(line)


NOT_LABELS = dict(
    too_few=(Y[:7], 'y: expected one label for each of 16 images, this has the shape (7,)'),
    one_hot=(F.one_hot(Y, 10), 'y: expected 16 class indices, this has the shape (16, 10); use y.argmax(1)'),
    floats=(Y.float(), 'y: expected whole numbers, the indices of classes, not torch.float32; use y.long()'),
    from_one=(Y + 1, 'y: labels go from 3 to 10, expected 0 to 9 for the 10 classes'),
    negative=(Y - 9, 'y: expected the indices of classes, at least 0, the smallest is -7'),
    numpy=(
        Y.numpy(),
        'y: expected labels as a tensor, this is of type ndarray; torch.from_numpy(y) makes one',
    ),
    elsewhere=(
        Y.to('meta'),
        'y: expected labels on cpu, where the images are, not on meta; use y.to(x.device)',
    ),
)


@every_attack
@pytest.mark.parametrize('case', NOT_LABELS)
def test_what_are_no_labels(net, attack, case):
    y, line = NOT_LABELS[case]
    assert refusal(attack, net, X, y).startswith(line)


@every_attack
def test_channels_last_dimension(net, attack):
    line = refusal(attack, net, X.expand(-1, 3, -1, -1).permute(0, 2, 3, 1), Y)
    assert line.startswith('model=SmallCNN: cannot take images of shape (8, 8, 3)')
    assert 'look like (N, H, W, C)' in line and 'use x.permute(0, 3, 1, 2)' in line


@every_attack
def test_rounding_is_no_error(net, attack):
    "Pixels of -2.98e-08, as after un-normalising, are 0"
    with example_noise(torch.arange(16), 1):
        expected = attack(net, X, Y)
    with example_noise(torch.arange(16), 1):
        found = attack(net, torch.where(X == 0, -(2.0**-25), X), Y)
    assert torch.equal(found, expected)


@every_attack
def test_callers_without_gradients(net, attack):
    with example_noise(torch.arange(16), 1):
        expected = attack(net, X, Y)

    def distance(context):
        with context, example_noise(torch.arange(16), 1):
            return (attack(net, X * 1, Y * 1) - expected).abs().max().item()

    assert refusal(distance, torch.no_grad()) == 'gave 0.0'
    assert refusal(distance, torch.inference_mode()) == 'gave 0.0'


@every_attack
def test_results_have_no_graph(net, attack):
    "However many attacks follow each other"
    x = X.clone().requires_grad_()
    for _ in range(3):
        x = attack(net, x, Y)
        assert x.grad_fn is None and not x.requires_grad


@every_attack
def test_numbers_in_any_form(net, attack):
    results = []
    for eps in 8 / 255, np.float64(8 / 255), '8/255', torch.tensor(8 / 255, dtype=torch.float64):
        with example_noise(torch.arange(16), 1):
            results.append(refusal(lambda eps: attack(net, X, Y, eps).double().sum().item(), eps))
    assert results == [results[0]] * 4 and results[0].startswith('gave')


@pytest.mark.parametrize('dtype', [torch.int32, torch.uint8])
def test_labels_of_any_whole_type(net, dtype):
    with example_noise(torch.arange(16), 1):
        expected = pgd(net, X, Y, eps=EPS, steps=3)
    with example_noise(torch.arange(16), 1):
        assert (
            refusal(lambda: torch.equal(pgd(net, X, Y.to(dtype), eps=EPS, steps=3), expected)) == 'gave True'
        )


def test_settings_of_attacks(net):
    "Steps, radii and pools out of range"
    wrong = {
        'steps=0: expected a whole number of at least 1': lambda: pgd(net, X, Y, eps=EPS, steps=0),
        'steps=2.5: expected a whole number of at least 1': lambda: mim(net, X, Y, eps=EPS, steps=2.5),
        'step_size=-0.1: expected a number of at least 0': lambda: pgd(net, X, Y, eps=EPS, step_size=-0.1),
        'group=-1: expected a whole number of at least 1': lambda: pgd(net, X, Y, eps=EPS, group=-1),
        'momentum=2: expected a number in [0, 1]': lambda: pgd(net, X, Y, eps=EPS, momentum=2),
        'n=0: expected a whole number of at least 1': lambda: targeted(0)(net, X, Y, eps=EPS),
        'eps=1.5: expected a number in [0, 1]': lambda: fea_attack(net, X, Y, eps=1.5, pool=POOL),
        'n_targets=0: expected': lambda: fea_attack(net, X, Y, eps=EPS, pool=POOL, n_targets=0),
        'pool[0]: expected pixels in [0, 1]': lambda: fea_attack(
            net, X, Y, eps=EPS, pool=(2 * POOL[0], POOL[1])
        ),
        'lr=0: expected a number above 0': lambda: spsa(net, X, Y, eps=EPS, samples=2, steps=1, lr=0),
    }
    for line, call in wrong.items():
        assert refusal(call).startswith(line)


def test_a_network_without_gradient(net):
    def rounded(x):
        return net(x).detach()

    line = 'model=rounded: its logits have no gradient, expected a forward without torch.no_grad()'
    assert refusal(pgd, rounded, X, Y, eps=EPS).startswith(line)
    assert refusal(lambda: square(rounded, X, Y, eps=EPS, budget=3)[0].shape) == f'gave {X.shape!r}'


def test_cw_is_an_attack(net):
    "Under `attacks` as in Table 1: thirty steps of ε/4 along the margin, written out"
    with example_noise(torch.arange(16), 3):
        expected = X + EPS * rand_unit(X)
    for _ in range(30):
        at = expected.detach().requires_grad_()
        z = net(at)
        others = z.masked_fill(F.one_hot(Y, 10).bool(), -math.inf).amax(1)
        (g,) = torch.autograd.grad((others - z[range(16), Y]).sum(), at)
        expected = (at + EPS / 4 * g.sign()).detach().clamp(X - EPS, X + EPS).clamp(0, 1)

    def distance(attack):
        with example_noise(torch.arange(16), 3):
            return (attack(net, X, Y, eps=EPS) - expected).abs().max().item() < 1e-6

    assert TABLE1_ATTACKS['cw'] is cw
    assert distance(cw)


def test_fewer_classes_than_targets():
    "Nine targets are the default; of three classes two are wrong, and the worst of them is found"
    torch.manual_seed(0)
    three = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()
    x, y = X.double(), Y % 3
    w, b = three[1].weight.detach(), three[1].bias.detach()
    least = []
    for k in 1, 2:  # towards each other class the best perturbation of a linear network is known
        direction = w[(y + k) % 3] - w[y]
        worst = (x.flatten(1) + EPS * direction.sign()).clamp(0, 1)
        logits = worst @ w.T + b
        label = logits.gather(1, y[:, None])[:, 0]
        others = logits.scatter(1, y[:, None], -math.inf).amax(1)
        least.append(label - others)
    expected = torch.stack(least).amin(0)

    def margins():
        with example_noise(torch.arange(16)):
            z = three(targeted()(three, x, y, eps=EPS)).detach()
        label = z.gather(1, y[:, None])[:, 0]
        return (label - z.scatter(1, y[:, None], -math.inf).amax(1) - expected).abs().max().item() < 1e-9

    assert refusal(margins) == 'gave True'


def test_a_network_of_one_batch_size(net):
    "The number of classes is asked with the whole batch, so that such a network can be attacked"

    def of_sixteen(x):
        if len(x) != 16:
            raise RuntimeError('expected a batch of 16')
        return net(x)

    def first_of_both():
        results = []
        for model in of_sixteen, net:
            with example_noise(torch.arange(16)):
                results.append(targeted(2, steps=2)(model, X, Y, eps=EPS))
        return torch.equal(*results)

    assert refusal(first_of_both) == 'gave True'


def test_no_gradient_has_one_line(net):
    "Whether the network or what is climbed has none"
    line = refusal(sign_ascent, lambda z: z.detach().sum(1), [X.flatten(1)], step_size=0.1, steps=1)

    def rounded(x):
        return net(x).detach()

    of_network = refusal(pgd, rounded, X, Y, eps=EPS)
    assert of_network.removeprefix('model=rounded') == line.removeprefix('model')


def test_nobody_looks_at_starts_in_a_training(monkeypatch):
    "The look makes a GPU wait; in a training a start outside is at its projection after the first step"
    looks, isfinite = [], torch.Tensor.isfinite

    def noted(self):
        looks.append(1)
        return isfinite(self)

    x = torch.full((4, 3), 0.01)
    start, ball = x - 0.05, linf_ball(x, 0.1)

    def climb():
        return sign_ascent(lambda z: (z.sqrt() ** 2).sum(1), [start], step_size=0.02, steps=2, project=ball)[
            0
        ]

    monkeypatch.setattr(torch.Tensor, 'isfinite', noted)
    with already_checked():
        in_training = climb()
    assert not looks
    outside = climb()
    assert looks
    assert torch.equal(in_training, torch.zeros_like(x))  # at 0 the square root has no slope
    assert torch.equal(outside, torch.zeros_like(x))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_starts_in_any_precision(dtype):
    "The start of an image is the same in any precision, rounded: in float16 it is no infinity"
    with example_noise(torch.arange(16), 2):
        exact = rand_unit(X)
    with example_noise(torch.arange(16), 2):
        found = rand_unit(X.to(dtype))
    assert exact.abs().max() < 1
    assert torch.equal(found, exact.to(dtype))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_normal_noise_in_any_precision(dtype):
    "Also where the uniform number is so near to 1 that half precision would make it 1: no infinity"
    x = torch.zeros(4, 50_000)
    with example_noise(torch.arange(4), 2):
        exact = rand_normal(x)
    with example_noise(torch.arange(4), 2):
        found = rand_normal(x.to(dtype))
    assert found.dtype == dtype
    assert found.isfinite().all()
    assert exact.abs().max() > 4
    torch.testing.assert_close(found.double(), exact.to(dtype).double(), rtol=1e-5, atol=1e-6)


def test_worst_of_nothing(net):
    assert refusal(lambda: worst_of()(net, X, Y, eps=EPS)).startswith(
        'attacks=(): expected at least one attack'
    )


# Gradients that are not finite


class Rooted(nn.Module):
    "A network behind a root that is undone: the identity on [0, 1], without a slope at 0, NaN below 0"

    def __init__(self, net, power):
        super().__init__()
        self.net, self.power = net, power

    def forward(self, x):
        if self.power == 2:
            return self.net(x.sqrt() ** 2)
        return self.net((x.sign() * x.abs().pow(1 / 3)) ** 3)


def linear_case():
    "A linear network of two classes, images with black pixels, and the best perturbation's direction"
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).double()
    x = torch.rand(20, 3, 4, 4, dtype=torch.float64)
    x[:12][torch.rand(12, 3, 4, 4) < 0.1] = 0.0
    y = torch.randint(2, (20,))
    w = linear[1].weight.detach()
    return linear, x, y, (w[1 - y] - w[y]).sign().view_as(x)


def closed_form(x, start, away, eps, moved):
    "Where signed steps of altogether `moved` end, if a pixel that is black at its start stays"
    inside = start.clamp(0, 1)
    black_images = (start < 0).flatten(1).any(1).view(-1, 1, 1, 1)
    at = torch.where(black_images, inside, start)  # images whose start left [0, 1] begin at its projection
    end = (at + moved * away).clamp(x - eps, x + eps).clamp(0, 1)
    return torch.where(at == 0, torch.zeros_like(end), end)


def start_of(x, seed):
    with example_noise(torch.arange(len(x)), seed):
        return x + EPS * rand_unit(x)


def attacked(attack, net, x, y, seed, ids=None, **settings):
    ids = torch.arange(len(x)) if ids is None else ids
    with example_noise(ids, seed):
        return attack(net, x[ids], y[ids], eps=EPS, **settings)


def test_a_start_outside_the_pixel_range():
    "One step of PGD behind a square root: from the projection of a start below 0, else from the start"
    linear, x, y, away = linear_case()
    x[:6] = x[:6].clamp(min=2 * EPS)  # some images whose start stays inside
    start = start_of(x, 4)
    below = (start < 0).flatten(1).any(1)
    assert 0 < below.sum() < len(x)
    found = attacked(pgd, Rooted(linear, 2), x, y, 4, steps=1, step_size=EPS)
    torch.testing.assert_close(found, closed_form(x, start, away, EPS, EPS), rtol=0, atol=1e-12)


def test_the_authors_start_stays_where_it_is_finite():
    "The same for the plain network: nobody's start is clipped"
    linear, x, y, away = linear_case()
    start = start_of(x, 4)
    assert (start < 0).any()
    found = attacked(pgd, linear, x, y, 4, steps=1, step_size=EPS / 2)
    expected = (start + EPS / 2 * away).clamp(x - EPS, x + EPS).clamp(0, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('power', [2, 3])
@pytest.mark.parametrize('attack', [mim, fgsm], ids=['mim', 'fgsm'])
def test_one_black_pixel_does_not_stop_an_image(attack, power):
    "Every pixel that is not black ends where the closed form says"
    linear, x, y, away = linear_case()
    settings = {} if attack is fgsm else dict(start=torch.zeros_like)
    found = attacked(attack, Rooted(linear, power), x, y, 4, **settings)
    expected = torch.where(x == 0, 0.0, (x + EPS * away).clamp(0, 1))
    assert ((x == 0).flatten(1).any(1)).sum() > 5
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_not_finite_gradients_in_any_batch():
    "An image's result does not depend on the images beside it, whether those start again or not"
    linear, x, y, _ = linear_case()
    x[:5] = x[:5].clamp(min=2 * EPS)
    never_black = ~((x == 0) | (start_of(x, 4) < 0)).flatten(1).any(1)
    assert 5 <= never_black.sum() < 20
    rooted, two_steps = Rooted(linear, 2), dict(steps=2, step_size=EPS)
    for attack in pgd, mim:
        together = attacked(attack, rooted, x, y, 4, **two_steps)
        for ids in torch.arange(20).flip(0).split(7):
            assert torch.equal(attacked(attack, rooted, x, y, 4, ids, **two_steps), together[ids])
        plain = attacked(attack, linear, x, y, 4, **two_steps)
        assert torch.equal(together[never_black], plain[never_black])


def test_spsa_behind_a_root():
    "Queries leave [0, 1] by σ: behind a square root they are NaN, and the attack still finds most"
    linear, x, y, away = linear_case()
    linear[1].bias.data = 100.0 * F.one_hot(y[:1], 2)[0].double()  # a class that is never left
    same = y == y[0]
    x, y, away = x[same], y[same], away[same]
    worst = (x + EPS * away).clamp(0, 1)

    def margins(z):
        logits = linear(z).detach()
        return logits[:, y[0]] - logits[:, 1 - y[0]]

    def share_of_the_fall():
        with example_noise(torch.arange(len(x))):
            x_adv, _ = spsa(Rooted(linear, 2), x, y, eps=EPS, samples=64, steps=60)
        shares = (margins(x) - margins(x_adv)) / (margins(x) - margins(worst))
        return bool(shares.min() > 0.9)

    assert refusal(share_of_the_fall) == 'gave True'


# The log of gradients


def climb_with_log(f, start, **settings):
    "Flags of `gradient_log` after one climb"
    with gradient_log() as log:
        sign_ascent(f, [torch.tensor(start)], step_size=0.5, **dict(steps=2) | settings)
    return log.zero.int().tolist(), log.nonfinite.int().tolist()


def test_gradient_log():
    "Three examples: flat for ever, flat at first, NaN in one entry"

    def f(z):
        hill = (z[:, 0] - 1).clamp(min=0) + 0 * z[:, 1]
        return hill + torch.where(z[:, 1] < 0, z[:, 1], torch.zeros_like(z[:, 1])) + (z[:, 2].sqrt() ** 2)

    start = [[0.0, 1.0, 4.0], [0.0, 1.0, 0.0], [2.0, 1.0, 0.0]]
    assert climb_with_log(f, start) == ([0, 1, 0], [0, 1, 1])


def test_a_log_of_attacks(net):
    "Nothing is zero or not finite for the trained network; all is zero where its logits are out of sight"

    def flags(model):
        with gradient_log() as log:
            pgd(model, X, Y, eps=EPS, steps=3, group=5)
            fgsm(model, X, Y, eps=EPS)
        return len(log.zero), int(log.zero.sum()), int(log.nonfinite.sum())

    def scaled(x):
        return 1e5 * net(x)

    def zeros_under_fgsm():
        with gradient_log() as log:
            fgsm(scaled, X, Y, eps=EPS)
        return log.zero.tolist()

    at = X.clone().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(scaled(at), Y, reduction='sum'), at)
    by_hand = (g == 0).flatten(1).all(1).tolist()
    assert sum(by_hand) > 10
    assert flags(net) == (32, 0, 0)
    assert zeros_under_fgsm() == by_hand


def test_a_log_says_how_many_at_a_time(net):
    def sizes():
        with gradient_log() as log:
            pgd(net, X, Y, eps=EPS, steps=3, group=5)
            fgsm(net, X, Y, eps=EPS)
        return log.sizes

    assert refusal(sizes) == 'gave [5, 5, 5, 1, 16]'


def flat_for(net, ids):
    "The features of some images, which are known by their first pixel, have no slope"
    marks = torch.linspace(0.4, 0.6, 16)

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.fc = net, net.fc

        def features(self, x):
            image = (x[:, 0, 0, 0, None] - marks).abs().argmin(1)
            is_flat = torch.isin(image, torch.tensor(ids))
            return torch.where(is_flat[:, None], 0 * x.flatten(1).sum(1, keepdim=True) + 1.0, net.features(x))

        def forward(self, x):
            return self.fc(self.features(x))

    marked = X.clone()
    marked[:, 0, 0, 0] = marks
    return Flat().eval(), marked


def test_a_log_names_images_of_the_attack_on_features(net):
    "Copies towards several targets are climbed in the order of the images, time after time"
    flat, x = flat_for(net, [2, 7, 11])
    y = torch.full((16,), 3)
    with torch.no_grad():
        flat.fc.bias.data[3] += 100  # no image is misclassified, so none is left out after the first targets
    try:
        with gradient_log() as log, example_noise(torch.arange(16)):
            fea_attack(flat, x, y, eps=0.001, pool=POOL, n_targets=4, steps=2, group=2)
    finally:
        flat.fc.bias.data[3] -= 100
    by_image = torch.zeros(16, dtype=torch.bool)
    by_image[[2, 7, 11]] = True
    assert torch.equal(log.zero.view(-1, 16), by_image.expand(4, -1))
    assert log.sizes == [32, 32]


def test_the_attack_on_features_image_by_image(net):
    "Each image's result is that of the image alone, for whatever number of targets goes at a time"
    settings = dict(eps=EPS, pool=POOL, n_targets=6, steps=3)
    with example_noise(torch.arange(16), 1):
        together = fea_attack(net, X, Y, **settings, group=3)
    for i in range(4):
        with example_noise(torch.tensor([i]), 1):
            alone = fea_attack(net, X[i : i + 1], Y[i : i + 1], **settings, group=2)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-6)


# Square's patches


@pytest.mark.parametrize('share', [0.8, 0.3])
@pytest.mark.parametrize('size', [(8, 100), (100, 8), (32, 32), (20, 25)])
def test_the_share_of_a_patch(size, share):
    "Square's first patch covers the share of the pixels that is asked for, whatever the image's form"
    seen = []

    def wrong_at_the_third(x):
        "Right for the clean image and for the stripes, wrong for the first patch"
        seen.append(x.clone())
        margin = 1.0 if len(seen) < 3 else -1.0
        return torch.tensor([[margin, 0.0]])

    x = torch.full((1, 1, *size), 0.5)
    with example_noise(torch.arange(1)):
        square(wrong_at_the_third, x, torch.tensor([0]), eps=0.1, budget=2000, first=share)
    asked, height = share * size[0] * size[1], min(size)
    assert len(seen) == 3
    assert abs(int((seen[2] != x).sum()) - asked) <= max(height / 2, asked**0.5)


def test_no_images(net):
    "Of none, none are attacked"
    for attack in (spsa, partial(fea_attack, pool=(X, Y)), pgd, square):
        made = attack(net, X[:0], Y[:0], eps=EPS)
        x_adv = made[0] if isinstance(made, tuple) else made
        assert x_adv.shape == X[:0].shape


def test_a_network_that_insists_on_its_range(net):
    "PGD starts outside [0, 1] as its authors do; the line says how to start inside"

    def strict(x):
        assert x.min() >= 0 and x.max() <= 1, 'outside'
        return net(x)

    assert 'clip_start=True' in refusal(pgd, strict, X, Y, eps=EPS)
    assert pgd(strict, X, Y, eps=EPS, clip_start=True).shape == X.shape


def test_a_distribution_is_fitted_to_images_alone(net):
    assert 'expected pixels in [0, 1]' in refusal(exp_adversary, net, 255 * X, Y, eps=EPS)
    assert 'class indices' in refusal(exp_adversary, net, X, F.one_hot(Y, 10), eps=EPS)
