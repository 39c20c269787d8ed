"Numbers in doubt are said to be: by one line of `evaluate`, and by the check of the panel that names the cause"

import warnings
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import refusal
from torch import nn

from adt_repro.attacks.black_box import square
from adt_repro.attacks.gradient import fgsm, pgd
from adt_repro.data import load_data
from adt_repro.evaluation.evaluate import evaluate
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
    shares = {
        'same images twice': twice,
        'same images in another batch': 0.0 if twice else alone,
        'finite gradients': not_finite(NETWORKS[name](), X, Y),
    }
    values = {check: panels[name].get(check, ('no such check', None, ''))[:2] for check in shares}
    assert values == {check: (pytest.approx(share, abs=0.05), share < 0.1) for check, share in shares.items()}


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


def lines_of(call, *args, **options):
    "The warnings of a call"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        call(*args, **options)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    'name, words', [('noise', 'asked again'), ('no statistics', 'another batch'), ('plain', '')]
)
@pytest.mark.parametrize('attack', [None, pgd])
def test_evaluate_warns_once_of_answers(name, words, attack):
    lines = lines_of(evaluate, NETWORKS[name](), X, Y, attack, eps=EPS, batch=20)
    assert [words in line for line in lines] == ([True] if words else [])
    assert all(line.startswith('model=Changed: ') and '\n' not in line for line in lines)


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
    (line,) = lines_of(evaluate, large, X, Y, fgsm, eps=EPS) or ['nothing was said']
    assert line.startswith(f'attack=fgsm: of the gradients of 100 images, {share:.0%} are zero')
    assert 'sanity_checks' in line and '\n' not in line
    assert lines_of(evaluate, plain, X, Y, fgsm, eps=EPS) == []


@pytest.mark.parametrize('name', ['square root', 'cube root'])
def test_evaluate_warns_of_gradients_that_are_not_finite(name):
    (line,) = lines_of(evaluate, NETWORKS[name](), X, Y, pgd, eps=EPS) or ['nothing was said']
    assert '100% have entries that are NaN or infinite' in line


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

    def largest_error():
        rows = evaluate(net, X, Y)
        return max(np.abs(rows.margin - expected[0]).max(), np.abs(rows.loss - expected[1]).max()) < 1e-5

    assert refusal(largest_error) in ('gave True', 'gave np.True_')
    assert refusal(lambda: len(evaluate(net, X, Y, pgd, eps=EPS))) == 'gave 100'


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
    assert refusal(lambda: evaluate(net, x, Y).pred.tolist()) == f'gave {before.argmax(1).tolist()}'
    assert refusal(lambda: len(evaluate(net, x, Y, pgd, eps=EPS))) == 'gave 100'
    assert refusal(lambda: bool(torch.equal(net(x).detach(), before))) == 'gave True'


def test_outputs_of_other_libraries():
    "An output with `logits` works; a tuple is one line"
    plain = evaluate(Changed(), X, Y).pred.tolist()
    as_object = Changed(after=lambda z: SimpleNamespace(logits=z))
    assert refusal(lambda: evaluate(as_object, X, Y).pred.tolist()) == f'gave {plain}'
    line = refusal(evaluate, Changed(after=lambda z: (z, z)), X, Y)
    assert line.startswith('model=Changed: gives a tuple') and '\n' not in line


@torch.no_grad()
def test_without_gradients_an_attack_has_them():
    with torch.enable_grad():
        expected = evaluate(Changed(), X, Y, own_fgsm, eps=EPS).pred.tolist()
    assert refusal(lambda: evaluate(Changed(), X, Y, own_fgsm, eps=EPS).pred.tolist()) == f'gave {expected}'


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
    'indices out of range': (dict(ids=[100]), 'ids=[100]: expected indices', '99'),
    'no attack': (dict(attack='pgd', eps=EPS), "attack='pgd': expected a function", ''),
}


@pytest.mark.parametrize('what', WRONG)
def test_evaluate_refuses_in_one_line(what):
    given, start, advice = WRONG[what]
    line = refusal(evaluate, **dict(model=trained_network(), x=X, y=Y) | given)
    assert (line[: len(start)], advice in line, '\n' in line) == (start, True, False)


def test_a_radius_of_numpy_is_a_number():
    def evaluated(eps):
        return evaluate(trained_network(), X, Y, pgd, eps=eps)

    as_number, as_numpy = (refusal(evaluated, eps) for eps in (0.15, np.float64(0.15)))
    assert as_number == as_numpy and as_number.startswith('gave')


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
