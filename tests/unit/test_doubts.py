"Numbers in doubt are said to be: by one line of `evaluate`, and by the check of the panel for the cause"

import warnings
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import lines_of, refusal
from torch import nn

import adt_repro.evaluation.evaluate as evaluating
from adt_repro.attacks.black_box import square
from adt_repro.attacks.feature import fea_attack
from adt_repro.attacks.gradient import fgsm, pgd, worst_of
from adt_repro.data import load_data
from adt_repro.evaluation.evaluate import evaluate, unsteady_answers
from adt_repro.evaluation.sanity import sanity_checks
from adt_repro.evaluation.suite import run_suite, run_transfer
from adt_repro.models.trained import trained_network

EPS = 0.15
DATA = load_data('digits')
X, Y = DATA.x_test[:100], DATA.y_test[:100]


class Changed(nn.Module):
    "A trained network with something before it and something after it"

    def __init__(self, before=None, after=None):
        super().__init__()
        self.net = trained_network('standard')
        self.before, self.after = before or nn.Identity(), after or nn.Identity()

    def forward(self, x):
        return self.after(self.net(self.before(x)))


def noise(z):
    return z + 0.5 * torch.randn_like(z)


def without_statistics():
    return nn.BatchNorm2d(1, affine=False, track_running_stats=False)


def root_and_square(x):
    return x.sqrt() ** 2


def cube_and_root(x):
    return x.pow(3).pow(1 / 3)


NETWORKS = {
    'noise': lambda: Changed(after=noise),
    'no statistics': lambda: Changed(before=without_statistics()),
    'square root': lambda: Changed(before=root_and_square),
    'cube root': lambda: Changed(before=cube_and_root),
    'plain': Changed,
    'at_pgd': lambda: trained_network('at_pgd'),
}


def alone_or_again(net, x):
    "Shares of the images whose logits differ: asked twice in a row, and alone instead of in a batch of all"
    net.eval()
    with torch.no_grad():
        first, second = net(x), net(x)
        alone = torch.cat([net(image[None]) for image in x])
    far = [(first - other).abs().amax(1) > 1e-3 * first.abs().amax() for other in (second, alone)]
    return [float(share.float().mean()) for share in far]


def not_finite(net, x, y):
    "The share of images with a clean gradient that is not finite, image by image"
    bad = 0
    for image, label in zip(x, y, strict=True):
        image = image[None].clone().requires_grad_()
        nn.functional.cross_entropy(net.eval()(image), label[None]).backward()
        bad += not image.grad.isfinite().all()
    return bad / len(x)


@pytest.fixture(scope='module')
def panels():
    "The panel's values for each network, by check"
    quick = dict(eps=EPS, n_restarts=2, black_box={'Square': partial(square, budget=50)})
    found = {}
    for name, make in NETWORKS.items():
        table = sanity_checks(make(), X, Y, **quick).set_index('check')
        found[name] = {check: (row.value, bool(row.passed), row.reason) for check, row in table.iterrows()}
    return found


@pytest.mark.parametrize('name', NETWORKS)
def test_the_panel_names_the_cause(panels, name):
    "Each share is that of a plain loop; each network fails the one check that is meant for it"
    torch.manual_seed(0)
    twice, alone = alone_or_again(NETWORKS[name](), X)
    if twice > 0:
        alone = 0.0  # what differs at once is not counted again
    shares = {
        'same images twice': twice,
        'same images in another batch': alone,
        'finite gradients': not_finite(NETWORKS[name](), X, Y),
    }
    for check, share in shares.items():
        value, passed, _ = panels[name][check]
        assert value == pytest.approx(share, abs=0.05), check
        assert passed == (share < 0.1), check


def test_the_shares_are_those_of_the_faults():
    "The controls: each fault is there in the network that is meant to have it, and in no other"
    torch.manual_seed(0)
    shares = {k: [*alone_or_again(make(), X), not_finite(make(), X, Y)] for k, make in NETWORKS.items()}
    with_faults = {name: [share > 0.5 for share in found] for name, found in shares.items()}
    assert with_faults == {
        'noise': [True, True, False],
        'no statistics': [False, True, False],
        'square root': [False, False, True],
        'cube root': [False, False, True],
        'plain': [False, False, False],
        'at_pgd': [False, False, False],
    }


def test_the_first_checks_come_first(panels):
    checks = list(panels['plain'])
    assert checks[:2] == ['same images twice', 'same images in another batch']
    assert all(passed for _, passed, _ in panels['plain'].values())
    assert all(passed for _, passed, _ in panels['at_pgd'].values())
    for name, check in ('noise', checks[0]), ('no statistics', checks[1]), ('cube root', 'finite gradients'):
        reason = panels[name][check][2]
        assert '% of the images' in reason and '\n' not in reason


@pytest.mark.parametrize(
    'name, words', [('noise', 'on a second pass'), ('no statistics', 'another batch'), ('plain', '')]
)
@pytest.mark.parametrize('attack', [None, pgd])
def test_evaluate_warns_once_of_answers(name, words, attack):
    lines = lines_of(evaluate, NETWORKS[name](), X, Y, attack, eps=EPS, batch=20)
    if not words:
        assert lines == []
        return
    (line,) = lines
    assert line.startswith('model=Changed: ') and words in line and '\n' not in line


def test_evaluate_warns_of_one_image():
    "A batch of one has no neighbours: it is asked among others"
    lines = lines_of(evaluate, NETWORKS['no statistics'](), X[:1], Y[:1])
    assert [line.split(',')[1] for line in lines] == [' for 1 of 1 images']


def test_a_network_for_one_batch_size_is_evaluated():
    "It cannot be asked in another batch, and that is no reason to refuse it"

    def of_twenty(z):
        return z.reshape(20, 10)

    assert lines_of(evaluate, Changed(after=of_twenty), X, Y, batch=20) == []


def scaled(factor):
    return Changed(after=lambda z: factor * z)


def blind_share(net):
    "Of FGSM's images: right, and with a gradient of zero at the clean image; by plain autograd"
    x = X.clone().requires_grad_()
    nn.functional.cross_entropy(net.eval()(x), Y, reduction='sum').backward()
    with torch.no_grad():
        moved = (X + EPS * x.grad.sign()).clamp(0, 1)
        right = net(moved).argmax(1) == Y
    return float((right & (x.grad == 0).flatten(1).all(1)).float().mean())


def right_under(net):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        rows = evaluate(net, X, Y, pgd, eps=EPS)
    return int((rows.pred == rows.y).sum())


def test_evaluate_warns_of_scaled_logits():
    "Fifty times the logits: the same network, and the share of zero gradients of plain autograd"
    plain, large = scaled(1), scaled(50)
    share = blind_share(large)
    assert share > 0.5 and blind_share(plain) == 0
    assert right_under(large) > right_under(plain) + 30
    (line,) = lines_of(evaluate, large, X, Y, fgsm, eps=EPS)
    start = f'attack=fgsm: on 100 images, {share:.0%} of the images are still classified correctly'
    assert line.startswith(f'{start} and had a gradient of zero at every step;')
    assert 'sanity_checks' in line and '\n' not in line
    assert lines_of(evaluate, plain, X, Y, fgsm, eps=EPS) == []


@pytest.mark.parametrize('name', ['square root', 'cube root'])
def test_evaluate_warns_of_gradients_that_are_not_finite(name):
    (line,) = lines_of(evaluate, NETWORKS[name](), X, Y, pgd, eps=EPS)
    assert '100% of the images had a gradient with entries that are NaN or infinite' in line


class HalfDead(nn.Module):
    "Bright images get no gradient"

    def __init__(self, n_pixels):
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(n_pixels, 10)

    def features(self, x):
        pixels = x.flatten(1)
        is_bright = pixels.mean(1, keepdim=True) > 0.5
        return torch.where(is_bright, pixels.detach(), pixels)

    def forward(self, x):
        return self.fc(self.features(x))


def half_dead(size=8):
    "A network, images of which every other one has no gradient, and labels that are all predicted"
    x = F.interpolate(0.3 * X, size)
    x[::2] += 0.6
    net = HalfDead(size * size)
    with torch.no_grad():
        return net, x, net(x).argmax(1)


def climbs_fifty_twice(model, x, y, *, eps):
    moved = x.clone()
    for _ in range(2):
        moved[25:75] = fgsm(model, x[25:75], y[25:75], eps=eps)
    return moved


@pytest.mark.parametrize('size', [8, 32])
def test_flags_go_to_the_images_that_were_climbed(size):
    "In one climb, in several of a few images each, and in several of all images"
    net, x, y = half_dead(size)
    for attack in pgd, partial(fea_attack, pool=(x, y), n_targets=1), worst_of(pgd, pgd):
        rows = evaluating.attack_and_judge({'': net}, net, x, y, attack, eps=0.1)
        without = (rows.i % 2 == 0) & (rows.pred == rows.y)
        assert without.sum() >= 45 and (rows.zero == without).all()
        (line,) = lines_of(evaluate, net, x, y, attack, eps=0.1)
        assert f'{without.mean():.0%} of the images are still classified correctly and had' in line


@pytest.mark.parametrize('size', [8, 32])
def test_half_of_the_images_without_features(size):
    "FeaAttack climbs copies of each image, one for each target"
    net, x, y = half_dead(size)
    attack = partial(fea_attack, pool=(x, y), n_targets=20, steps=3)
    rows = evaluating.attack_and_judge({'': net}, net, x, y, attack, eps=0.1)
    assert rows.zero.mean() == pytest.approx(0.5, abs=0.05)
    (line,) = lines_of(evaluate, net, x, y, attack, eps=0.1)
    assert f'{rows.zero.mean():.0%} of ' in line and ' had a gradient of zero at every step' in line


@pytest.mark.parametrize('size', [8, 32])
def test_flags_of_some_images_are_shares_of_climbs(size):
    "An attack of its own that climbs half of the images twice: nobody knows whose climbs these are"
    net, x, y = half_dead(size)
    rows = evaluating.attack_and_judge({'': net}, net, x, y, climbs_fifty_twice, eps=0.1)
    assert (rows.zero == 0.5).all()
    (line,) = lines_of(evaluate, net, x, y, climbs_fifty_twice, eps=0.1)
    assert 'about 50% of its climbs had a gradient of zero at every step' in line


def masked(z, value):
    return torch.cat([z[:, :3], torch.full_like(z[:, :1], value), z[:, 4:]], 1)


@pytest.mark.parametrize('value', [-1e5, -1e9])
def test_a_masked_class_hides_no_noise(value):
    noisy = Changed(after=lambda z: masked(z + 2 * torch.randn_like(z), value))
    assert unsteady_answers(noisy, X)['again'].all()
    assert len(lines_of(evaluate, noisy, X, Y)) == 1


@pytest.mark.parametrize('value', [-1e5, -1e9])
@pytest.mark.parametrize('batch', [1, 7, 100])
def test_a_masked_class_is_no_noise(value, batch):
    "The class is replaced, or a large number is taken from it, which is rounded"
    mask = F.one_hot(torch.tensor([3]), 10) * value
    for net in Changed(after=lambda z: masked(z, value)), Changed(after=lambda z: z + mask):
        found = unsteady_answers(net, X, batch)
        assert not found['again'].any() and not found['elsewhere'].any()


@pytest.mark.parametrize('lead, expected', [(0.05, True), (1e-7, False)])
def test_a_changed_prediction_counts(lead, expected):
    "Two classes that differ by little are exchanged in another batch; no matter where they are equal"

    def exchanged(z):
        first = torch.full_like(z[:, :1], 5.0)
        second = first + lead if len(z) % 2 else first - lead
        return torch.cat([first, second, torch.zeros_like(z[:, 2:])], 1)

    found = unsteady_answers(Changed(after=exchanged), X[:99])
    assert not found['again'].any()
    assert found['elsewhere'].tolist() == [expected] * 99


def test_a_suite_warns_once_for_each_attack(tmp_path):
    "In parts, as a cascade, from parts that were kept, and as a transfer"
    net, attacks = scaled(50), dict(one_step=fgsm, steps=partial(pgd, steps=3))
    suite = partial(run_suite, net, X, Y, attacks, eps=EPS, run='a', batch=30)
    for options in dict(), dict(parts=tmp_path), dict(parts=tmp_path), dict(cascade=True):
        lines = lines_of(suite, **options)
        assert [line.split(':')[0] for line in lines] == ['attack=one_step', 'attack=steps']
    lines = lines_of(
        run_transfer, 'a', net, dict(a=net, b=trained_network()), X, Y, attacks, eps=EPS, batch=30
    )
    assert [line.split(':')[0] for line in lines] == ['attack=one_step', 'attack=steps']
    assert lines_of(run_suite, scaled(1), X, Y, attacks, eps=EPS, run='a', parts=tmp_path) == []
    noisy = lines_of(run_suite, NETWORKS['noise'](), X, Y, attacks, eps=EPS, run='a', batch=30)
    assert [line.split(':')[0] for line in noisy] == ['model=Changed']


def test_pixels_are_checked_once(monkeypatch):
    "All of them once; before that, those of the eight images that show whether answers are steady"
    checked = []

    def noted(x, *name):
        checked.append(len(x))
        return check_images(x, *name)

    check_images = evaluating.check_images
    monkeypatch.setattr(evaluating, 'check_images', noted)
    evaluate(trained_network(), X, Y)
    assert checked == [100, 8]


def test_the_look_at_answers_costs_four_passes_of_eight_images():
    "For each call, not for each batch; and random numbers are afterwards those that they would have been"
    net, seen = trained_network(), []
    net.register_forward_hook(lambda net, args, out: seen.append(len(args[0])))
    state = torch.get_rng_state()
    evaluate(net, X, Y, batch=10)
    assert sum(seen) == 100 + 4 * 8
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize('half', [torch.bfloat16, torch.float16])
def test_half_precision_is_judged_in_float32(half):
    "Margins and losses are those of NumPy, from the logits that were rounded"
    net = Changed(after=lambda z: z.to(half))
    with torch.no_grad():
        z = trained_network('standard')(X).to(half).double().numpy()
    right = z[np.arange(100), Y]
    others = np.where(np.eye(10, dtype=bool)[Y], -np.inf, z)
    expected = [right - others.max(1), np.log(np.exp(z).sum(1)) - right]
    rows = evaluate(net, X, Y)
    assert np.abs(rows.margin - expected[0]).max() < 1e-5
    assert np.abs(rows.loss - expected[1]).max() < 1e-5
    assert len(evaluate(net, X, Y, pgd, eps=EPS)) == 100


def after_convolution():
    "`view` after a convolution, which a changed memory layout breaks"

    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(144, 10)

        def forward(self, x):
            return self.fc(self.conv(x).relu().view(len(x), -1))

    torch.manual_seed(0)
    return Viewed().eval()


def test_a_network_with_views_is_evaluated_and_left_as_it_was():
    net, x = after_convolution(), X.repeat(1, 3, 1, 1)
    with torch.no_grad():
        before = net(x)
    assert evaluate(net, x, Y).pred.tolist() == before.argmax(1).tolist()
    assert len(evaluate(net, x, Y, pgd, eps=EPS)) == 100
    assert torch.equal(net(x), before)


def test_outputs_of_other_libraries():
    "An output with `logits` works; a tuple is one line"
    plain = evaluate(Changed(), X, Y).pred.tolist()
    as_object = Changed(after=lambda z: SimpleNamespace(logits=z))
    assert evaluate(as_object, X, Y).pred.tolist() == plain
    line = refusal(evaluate, Changed(after=lambda z: (z, z)), X, Y)
    assert line.startswith('model=Changed: gives a tuple') and '\n' not in line


@torch.no_grad()
def test_without_gradients_an_attack_has_them():
    with torch.enable_grad():
        expected = evaluate(Changed(), X, Y, own_fgsm, eps=EPS).pred.tolist()
    assert evaluate(Changed(), X, Y, own_fgsm, eps=EPS).pred.tolist() == expected


def own_fgsm(model, x, y, *, eps):
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), x)
    return (x + eps * gradient.sign()).clamp(0, 1).detach()


WRONG = {
    'uint8 images': (dict(x=(255 * X).byte()), 'x: expected floating-point pixels', '255'),
    'NumPy images': (dict(x=X.numpy()), 'x: expected images as a tensor', 'from_numpy'),
    'too few labels': (dict(y=Y[:50]), 'y: expected one label for each of 100 images', '(50,)'),
    'labels from 1': (dict(y=Y + 1), 'y: labels go from 1 to 10', 'y - 1'),
    'one-hot labels': (dict(y=nn.functional.one_hot(Y)), 'y: expected 100 class indices', 'argmax'),
    'channels last': (dict(x=X.repeat(1, 3, 1, 1).movedim(1, 3)), 'model=', 'permute'),
    'no images': (dict(x=X[:0], y=Y[:0]), 'x: there are no images', 'at least one'),
    'a radius in text': (dict(attack=pgd, eps='wide'), "eps='wide': expected a number", ''),
    'a batch of none': (dict(batch=0), 'batch=0: expected a whole number', ''),
    'a seed that is not whole': (dict(seed=1.5), 'seed=1.5: expected a whole number', ''),
    'no indices': (dict(ids=[]), 'ids: there are no images', 'at least one index'),
    'indices out of range': (dict(ids=[100]), 'ids=[100]: expected indices', '99'),
    'no attack': (dict(attack='pgd', eps=EPS), "attack='pgd': expected a function", ''),
}


@pytest.mark.parametrize('what', WRONG)
def test_evaluate_refuses_in_one_line(what):
    given, start, advice = WRONG[what]
    line = refusal(evaluate, **dict(model=trained_network(), x=X, y=Y) | given)
    assert line.startswith(start) and advice in line and '\n' not in line


def test_numbers_in_another_form_are_numbers():
    as_numbers = evaluate(trained_network(), X, Y, pgd, eps=0.15, seed=3)
    assert as_numbers.equals(evaluate(trained_network(), X, Y, pgd, eps=np.float64(0.15), seed='3'))


@pytest.mark.parametrize(
    'made, text',
    [
        (lambda x: x.numpy(), 'returned an object of type ndarray'),
        (lambda x: None, 'returned an object of type NoneType'),
        (lambda x: x[:1], 'returned a tensor of shape (1, 1, 8, 8)'),
    ],
)
def test_an_attack_that_returns_something_else(made, text):
    line = refusal(evaluate, trained_network(), X, Y, lambda model, x, y, eps: made(x), eps=EPS)
    assert text in line and '\n' not in line


def test_a_function_that_stays_in_training_mode():
    "Its network is out of reach, so the line says what its owner must do"
    normalised = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
    net = torch.nn.Sequential(normalised, torch.nn.Linear(144, 10))
    (line,) = lines_of(evaluate, lambda z: net(z), X, Y)
    assert 'a function cannot be put in evaluation mode' in line
    net.eval()
    assert lines_of(evaluate, lambda z: net(z), X, Y) == []
