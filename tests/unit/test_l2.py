"The ℓ2 ball: the nearest point, closed forms, evaluations and records that keep the norms apart, sanity checks"

import sys
from functools import partial
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from helpers import ROOT, refusal
from torch import nn

from adt_repro.attacks import autoattack
from adt_repro.attacks.autoattack import auto_attack
from adt_repro.attacks.black_box import patches_l2, spsa, square
from adt_repro.attacks.feature import fea_attack
from adt_repro.attacks.gradient import cw, fgsm, mim, pgd, targeted, worst_of
from adt_repro.attacks.inputs import norm_of
from adt_repro.attacks.l2 import NORMS, fgm_l2, l2_ball, pgd_l2, rand_in_ball, unit_l2
from adt_repro.base.noise import example_noise
from adt_repro.data import load_data
from adt_repro.evaluation.evaluate import evaluate
from adt_repro.evaluation.metrics import paired_attacks, robust
from adt_repro.evaluation.records import SCHEMA, load_records, read_record, save_records, schema_of
from adt_repro.evaluation.sanity import CHECKS, sanity_checks
from adt_repro.evaluation.suite import run_suite, run_transfer
from adt_repro.losses import ce, cw_loss
from adt_repro.methods.adversaries import at_mean, exp_adversary, worst_of_draws
from adt_repro.models.trained import trained_network

EPS = 0.5
DATA = load_data('digits')
X, Y = DATA.x_test[:100], DATA.y_test[:100]


def by_bisection(x, z, eps):
    "The nearest point of one image in float64: clip(x + t(z − x)), the largest t in [0, 1], by plain bisection"
    x, z = np.asarray(x, np.float64), np.asarray(z, np.float64)

    def point(t):
        return np.clip(x + t * (z - x), 0, 1)

    low, high = 0.0, 1.0
    if np.linalg.norm(point(1.0) - x) <= eps:
        return point(1.0)
    for _ in range(200):
        middle = (low + high) / 2
        if np.linalg.norm(point(middle) - x) <= eps:
            low = middle
        else:
            high = middle
    return point(low)


def clean_images(dtype=torch.float32):
    "Images with many pixels at the ends of the range"
    torch.manual_seed(0)
    x = torch.rand(20, 3, 6, 5, dtype=torch.float64)
    return torch.where(torch.rand_like(x) < 0.3, x.round(), x).to(dtype)


def lengths(difference):
    return difference.double().flatten(1).norm(dim=1)


@pytest.mark.parametrize('spread', [1e-3, 0.1, 3, 1e6])
@pytest.mark.parametrize('eps', [0.0, 0.01, 0.5, 2.0, 20.0])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_nearest_point(dtype, eps, spread):
    "Of bisection; in the ball without a tolerance, in [0, 1], and fixed if it is projected again"
    x = clean_images(dtype)
    z = (x.double() + spread * torch.randn(x.shape, dtype=torch.float64)).to(dtype)
    z = z.clamp(-6e4, 6e4)
    found = l2_ball(x, eps)(z)
    assert found.dtype == dtype and found.shape == x.shape
    assert found.min() >= 0 and found.max() <= 1
    assert lengths(found.double() - x.double()).max() <= eps
    assert torch.equal(l2_ball(x, eps)(found), found)
    expected = np.stack([by_bisection(*pair, eps) for pair in zip(x.double(), z.double(), strict=True)])
    rounding = max(1e-9, torch.finfo(dtype).eps)
    assert np.abs(found.double().numpy() - expected).max() <= rounding


def test_it_is_nearer_than_scaling_and_clipping():
    "The control: scaled into the ball and clipped, a point is in both sets, and farther away for most images"
    x = clean_images(torch.float64)
    z = x + torch.randn_like(x)
    scaled = (x + (z - x) / lengths(z - x).view(-1, 1, 1, 1)).clamp(0, 1)
    nearest = l2_ball(x, 1.0)(z)
    gain = lengths(scaled - z) - lengths(nearest - z)
    assert lengths(scaled - x).max() <= 1 + 1e-12
    assert (gain >= -1e-12).all() and (gain > 1e-3).float().mean() > 0.9


def test_numbers_that_are_not_finite_end():
    z = clean_images()
    z[0, 0, 0, 0], z[1, 0, 0, 0] = float('nan'), float('inf')
    x = clean_images()
    found = l2_ball(x, 1.0)(z)
    assert torch.equal(found[2:], l2_ball(x[2:], 1.0)(z[2:]))


@pytest.mark.parametrize('eps', [-1, float('nan'), 'wide', None])
def test_radii_that_are_refused(eps):
    for call in (lambda: l2_ball(X, eps), lambda: pgd_l2(trained_network(), X, Y, eps=eps)):
        line = refusal(call)
        assert line.startswith('eps=') and 'expected a number' in line and '\n' not in line


def linear(classes=2):
    torch.manual_seed(classes)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, classes)).double()


def in_the_middle(net):
    "Images far from 0 and 1, with the network's own predictions as labels"
    x = 0.4 + 0.2 * torch.rand(16, 3, 4, 4, dtype=torch.float64)
    return x, net(x).argmax(1)


FROM_CLEAN = dict(start=torch.zeros_like)
LINEAR = {
    'fgm': fgm_l2,
    'one step': partial(pgd_l2, steps=1, step_size=0.3, **FROM_CLEAN),
    'from clean': partial(pgd_l2, **FROM_CLEAN),
    'random start': partial(pgd_l2, steps=150),
    'cw': partial(pgd_l2, loss=cw_loss, steps=150),
    'targeted': targeted(climb=pgd_l2, steps=150),
    'worst of': worst_of(partial(pgd_l2, steps=150), fgm_l2),
}


@pytest.mark.parametrize('name', LINEAR)
def test_the_worst_image_of_a_linear_network(name):
    "x − ε w/|w| in NumPy; an attack that climbs the other way ends at the opposite point"
    net = linear()
    x, y = in_the_middle(net)
    weight = net[1].weight.detach().numpy()
    w = weight[y] - weight[1 - y]
    worst = x.flatten(1).numpy() - 0.3 * w / np.linalg.norm(w, axis=1, keepdims=True)
    found = LINEAR[name](net, x, y, eps=0.3).flatten(1).numpy()
    assert np.abs(found - worst).max() < 1e-8
    opposite = LINEAR[name](net, x, 1 - y, eps=0.3).flatten(1).numpy()
    assert np.abs(opposite - worst).max() > 0.01
    assert np.abs(opposite - (2 * x.flatten(1).numpy() - worst)).max() < 1e-8


def test_a_gradient_of_any_size_is_followed():
    "In float32 the squares of 1e-30 are 0"
    net = linear().float()
    x = (0.4 + 0.2 * torch.rand(8, 3, 4, 4)).float()
    y = net(x).argmax(1)

    def scaled(factor):
        return lambda model, x, y: lambda z: factor * ce(model, x, y)(z)

    expected = fgm_l2(net, x, y, eps=0.3)
    for factor in 1e-30, 1e20:
        assert (fgm_l2(net, x, y, eps=0.3, loss=scaled(factor)) - expected).abs().max() < 1e-5
    assert torch.equal(unit_l2(torch.zeros(2, 3)), torch.zeros(2, 3))
    assert torch.equal(fgm_l2(net, x, y, eps=0.3, loss=scaled(0)), x)


def test_the_start_belongs_to_the_image():
    shape = torch.empty(40, 1, 8, 8)
    with example_noise(torch.arange(40)):
        together = rand_in_ball(shape)
    with example_noise(torch.tensor([7, 31])):
        assert torch.equal(rand_in_ball(shape[:2]), together[[7, 31]])
    assert lengths(together).max() <= 1 + 1e-6 and lengths(together).min() > 0.8  # 64 dimensions


@pytest.mark.parametrize(
    'attack', [pgd_l2, fgm_l2, targeted(3, climb=pgd_l2), partial(patches_l2, budget=30)]
)
def test_batches_change_nothing(attack):
    net = trained_network('at_pgd').double()
    x = X[:30].double()
    one, other = (evaluate(net, x, Y[:30], attack, eps=1.5, norm='l2', batch=b) for b in (30, 7))
    assert (one.pred == other.pred).all()
    assert (one.margin - other.margin).abs().max() < 1e-8
    assert one.l2.max() <= 1.5 and one.l2.max() > 1.4


def test_rows_have_the_distance():
    "In float64 by NumPy; ℓ∞ rows are what they were"
    net = trained_network()
    rows = evaluate(net, X, Y, pgd_l2, eps=EPS, norm='l2')
    with example_noise(torch.arange(100)):
        moved = (pgd_l2(net, X, Y, eps=EPS) - X).double().flatten(1).numpy()
    assert np.abs(rows.l2 - np.linalg.norm(moved, axis=1)).max() < 1e-4
    assert np.abs(rows.linf - np.abs(moved).max(1)).max() < 1e-4
    in_linf = ['i', 'y', 'pred', 'margin', 'loss', 'linf', 'queries', 'seed']
    plain = evaluate(net, X, Y, pgd, eps=0.15)
    assert list(plain.columns) == in_linf
    assert plain.equals(evaluate(net, X, Y, pgd, eps=0.15, norm='linf'))
    assert (evaluate(net, X, Y, norm='l2').l2 == 0).all()


def moves(length):
    "A user's attack: every pixel towards the other end of the range, by this length in ℓ2"

    def attack(model, x, y, *, eps):
        step = torch.ones_like(x)
        return x + (1 - 2 * x) * length * step / lengths((1 - 2 * x) * step).view(-1, 1, 1, 1).to(x)

    return attack


@pytest.mark.parametrize('length, is_inside', [(0.499, True), (0.5, True), (0.501, False), (0.6, False)])
def test_the_distance_is_checked_in_l2(length, is_inside):
    "All these are well inside the ℓ∞ ball of this radius"
    line = refusal(evaluate, trained_network(), X, Y, moves(length), eps=EPS, norm='l2')
    assert line.startswith('ValueError: attack left the ball: in ℓ2 an image moved by 0.') != is_inside
    assert refusal(evaluate, trained_network(), X, Y, moves(length), eps=EPS).startswith('gave')


def feature_with_pool():
    return partial(fea_attack, pool=(X, Y), n_targets=1, steps=2)


ADVERSARY = partial(exp_adversary, eps=EPS)
OF_LINF = {
    'fgsm': fgsm,
    'pgd': partial(pgd, steps=3),
    'mim': mim,
    'cw': cw,
    'targeted': targeted(),
    'worst of': worst_of(pgd, fgsm),
    'feature': feature_with_pool(),
    'spsa': spsa,
    'square': square,
    'draws': worst_of_draws(ADVERSARY),
    'mean': at_mean(ADVERSARY),
    'autoattack': auto_attack,
}
OF_L2 = {
    'pgd': partial(pgd_l2, steps=3),
    'fgm': fgm_l2,
    'targeted': targeted(climb=pgd_l2),
    'worst of': worst_of(pgd_l2, fgm_l2),
    'patches': patches_l2,
    'autoattack': partial(auto_attack, norm='l2', attacks=['apgd-ce']),
}


def forbidden(*given):
    raise AssertionError('no work before the refusal')


@pytest.mark.parametrize('norm, name', [('l2', n) for n in OF_LINF] + [('linf', n) for n in OF_L2])
def test_an_attack_for_the_other_norm_is_refused(norm, name):
    "By one line, before the network is used; FeaAttack and the distributions of ADT exist in ℓ∞ only"
    attack = (OF_LINF if norm == 'l2' else OF_L2)[name]
    advice = 'pgd_l2' if norm == 'l2' else 'pgd'
    expected = f': expected an attack for norm={norm!r}, such as {advice}; this one is for norm='
    suite = partial(run_suite, forbidden, X, Y, dict(first=moves(0.1), second=attack), run='a')
    transfer = partial(run_transfer, 'a', forbidden, dict(a=forbidden), X, Y, dict(second=attack))
    for call in partial(evaluate, forbidden, X, Y, attack), suite, transfer:
        line = refusal(call, eps=EPS, norm=norm)
        assert line.startswith('attack=') and expected in line and '\n' not in line


def test_norms_of_attacks():
    assert {norm_of(attack) for attack in OF_LINF.values()} == {'linf'}
    assert {norm_of(attack) for attack in OF_L2.values()} == {'l2'}
    assert norm_of(moves(1)) is None and norm_of(worst_of(pgd, pgd_l2)) is None
    assert refusal(evaluate, trained_network(), X, Y, norm='L2') == "norm='L2': expected linf, l2"


@pytest.mark.parametrize('eps, norm, fits', [(1.5, 'l2', True), (1.5, 'linf', False), (-0.1, 'l2', False)])
def test_radii_of_evaluations(eps, norm, fits):
    attack = pgd_l2 if norm == 'l2' else pgd
    line = refusal(evaluate, trained_network(), X[:8], Y[:8], partial(attack, steps=1), eps=eps, norm=norm)
    assert line.startswith('gave' if fits else f'eps={eps}: expected a number')


@pytest.fixture(scope='module')
def rows_l2():
    attacks = dict(fgm=fgm_l2, pgd20=pgd_l2)
    return run_suite(trained_network(), X, Y, attacks, eps=EPS, norm='l2', run='a')


def test_a_suite_in_l2(rows_l2, tmp_path):
    "A cascade and parts give the same images; the parts of the two norms are kept apart"
    assert list(rows_l2.columns) == list(schema_of('l2')) == [*SCHEMA, 'norm', 'l2']
    attacks = dict(fgm=fgm_l2, pgd20=pgd_l2)
    suite = partial(run_suite, trained_network(), X, Y, eps=EPS, run='a')
    in_parts = [suite(attacks, norm='l2', parts=tmp_path, batch=100) for _ in range(2)]
    assert in_parts[0].equals(in_parts[1]) and len(list(tmp_path.iterdir())) == 3
    pd.testing.assert_frame_equal(in_parts[0], rows_l2)
    chain = suite(attacks, norm='l2', cascade=True)
    pd.testing.assert_frame_equal(robust(chain), robust(rows_l2))
    assert chain.l2.isna().tolist() == (~chain.attacked).tolist() and not chain.attacked.all()
    suite(dict(own=moves(0.1)), parts=tmp_path, batch=100)
    suite(dict(own=moves(0.1)), norm='l2', parts=tmp_path, batch=100)
    assert len(list(tmp_path.iterdir())) == 3 + 3  # the clean images of ℓ2 were there


def test_a_transfer_in_l2():
    a, b = trained_network('at_pgd'), trained_network('standard')
    both = run_transfer('a', a, dict(a=a, b=b), X, Y, dict(pgd20=pgd_l2), eps=EPS, norm='l2')
    assert list(both.columns) == [*SCHEMA, 'norm', 'l2'] and (both.norm == 'l2').all()
    assert both[both.run == 'a'].l2.tolist() == both[both.run == 'b'].l2.tolist()
    kept = run_transfer(
        'a', forbidden, dict(a=a, b=b), X, Y, dict(pgd20=pgd_l2), eps=EPS, norm='l2', kept=both
    )
    pd.testing.assert_frame_equal(kept, both)


def test_records_in_l2(rows_l2, tmp_path):
    "Written and read; never in a table with the other norm, and never compared with it image by image"
    save_records(rows_l2, tmp_path / 'l2.parquet')
    pd.testing.assert_frame_equal(load_records(tmp_path / 'l2.parquet'), rows_l2)
    in_linf = rows_l2.drop(columns=['norm', 'l2']).assign(run='b', source='b')
    save_records(in_linf, tmp_path / 'linf.parquet')
    line = refusal(load_records, tmp_path / 'l2.parquet', tmp_path / 'linf.parquet')
    assert line == 'records of different norms in one table: l2 in a; linf in b'
    wide = rows_l2.assign(eps=1.5)
    save_records(wide, tmp_path / 'wide.parquet')
    line = refusal(save_records, wide.drop(columns=['norm', 'l2']), tmp_path / 'wide.parquet')
    assert line.endswith('ε is out of range, expected a number in (0, 1]')
    assert len(paired_attacks(rows_l2, rows_l2)) == 4
    assert refusal(paired_attacks, rows_l2, rows_l2.drop(columns=['norm', 'l2'])).startswith(
        "other='no rows'"
    )


COMMITTED = sorted((ROOT / 'outputs').glob('*/records/*.parquet'))


def test_committed_records_are_what_they_were(tmp_path):
    "Every file is read, and is of ℓ∞; one that the present writer wrote is written again byte for byte"
    assert len(COMMITTED) > 50
    identical = 0
    for file in COMMITTED:
        rows, weights = read_record(file)
        assert list(rows.columns) == list(SCHEMA)
        save_records(rows, tmp_path / 'again.parquet', weights)
        old, new = pq.ParquetFile(file), pq.ParquetFile(tmp_path / 'again.parquet')
        by_this_writer = old.metadata.created_by == new.metadata.created_by
        if by_this_writer and old.schema_arrow.metadata == new.schema_arrow.metadata:
            assert file.read_bytes() == (tmp_path / 'again.parquet').read_bytes(), file.name
            identical += 1
        else:
            assert old.read().replace_schema_metadata().equals(new.read().replace_schema_metadata()), (
                file.name
            )
    assert identical == 0 or identical > 50  # 0: with another version of the writer


class Changed(nn.Module):
    "A trained network with something before it and something after it"

    def __init__(self, name, before=None, after=None):
        super().__init__()
        self.net = trained_network(name)
        self.before, self.after = before or nn.Identity(), after or nn.Identity()

    def forward(self, x):
        return self.after(self.net(self.before(x)))


def five_levels(x):
    return (4 * x).round() / 4


def fifty_times(z):
    return 50 * z


def waves(x):
    return x + 0.005 * torch.sin(2e4 * x)


CHANCE, BLACK_BOX = 'chance at ε = √D / 2', 'black box: Patches'
PANELS = {
    'at_pgd': ({}, []),
    'standard': ({}, []),
    'quantised': (dict(before=five_levels), ['zero gradients', 'loss increase', CHANCE, BLACK_BOX]),
    'scaled': (dict(after=fifty_times), ['zero gradients', 'loss increase', CHANCE, BLACK_BOX]),
    'shattered': (dict(before=waves), [BLACK_BOX]),
}


@pytest.mark.parametrize('name', PANELS)
def test_sanity_checks_in_l2(name):
    "Honest networks pass everything; those that hide their gradients fail, by name"
    changes, failures = PANELS[name]
    net = Changed(name if name in ('at_pgd', 'standard') else 'standard', **changes)
    quick = dict(n_restarts=2, black_box={'Patches': partial(patches_l2, budget=200)})
    table = sanity_checks(net, X, Y, eps=EPS, norm='l2', **quick)
    assert len(table) == len(CHECKS) + 1
    assert set(table.check[~table.passed]) == set(failures)
    reasons = table.set_index('check').reason
    assert 'ε = 4' in reasons[CHANCE] if CHANCE in failures else reasons[CHANCE] == ''
    if BLACK_BOX in failures:
        assert 'under Patches' in reasons[BLACK_BOX] and '\n' not in reasons[BLACK_BOX]


def test_all_images_can_be_made_the_same():
    "Within √D / 2: plain grey, also from black and from white"
    x = torch.cat([torch.zeros(1, 3, 5, 7), torch.ones(1, 3, 5, 7), torch.rand(4, 3, 5, 7).round()])
    grey = torch.full_like(x, 0.5)
    assert torch.equal(l2_ball(x, 105**0.5 / 2)(grey), grey)
    assert not torch.equal(l2_ball(x, 0.99 * 105**0.5 / 2)(grey), grey)


seen = []


class StandIn:
    "Notes the norm that AutoAttack is asked for, and leaves the ball"

    def __init__(self, model, *, norm, **options):
        seen.append(norm)
        self.apgd_targeted = SimpleNamespace()
        self.fab = SimpleNamespace()

    def run_standard_evaluation(self, x, y, batch_size):
        return x + 1, y


@pytest.mark.parametrize('norm, name', [('linf', 'Linf'), ('l2', 'L2')])
def test_the_norm_of_autoattack(monkeypatch, norm, name):
    package = ModuleType('pyautoattack')
    package.AutoAttack = StandIn
    monkeypatch.setitem(sys.modules, 'pyautoattack', package)
    monkeypatch.setattr(autoattack, 'version', lambda name: '0.2.0')
    seen.clear()
    x_adv = auto_attack(trained_network(), X[:9], Y[:9], eps=0.7, norm=norm)
    assert seen == [name]
    assert NORMS[norm].distance(x_adv, X[:9]).tolist() == pytest.approx([0.7] * 9, abs=1e-6)
    small, labels = torch.rand(3, 1, 4, 4), torch.zeros(3, dtype=torch.int64)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 10))
    line = refusal(auto_attack, net, small, labels, eps=0.1, norm=norm)
    advice = "such as ['apgd-ce', 'apgd-t', 'fab-t']; square fails there"
    assert line.endswith(advice) == (norm == 'l2')
    assert refusal(auto_attack, trained_network(), X, Y, eps=2, norm='linf').startswith('eps=2: expected')
    assert refusal(auto_attack, trained_network(), X, Y, eps=2, norm='L2') == "norm='L2': expected linf, l2"


def test_autoattack_itself_in_l2():
    "Where the package is installed: it breaks what the closed form says, and is not weaker than PGD on digits"
    pytest.importorskip('pyautoattack')
    net = linear(4).float()
    x, y = in_the_middle(net.double())
    net, x = net.float(), x.float()
    weight, logits = net[1].weight.detach(), net(x).detach()
    gaps = logits.gather(1, y[:, None]) - logits
    radii = gaps / (weight[y][:, None] - weight).norm(dim=2).clamp(min=1e-9)
    needed = radii.scatter(1, y[:, None], float('inf')).amin(1)
    eps = needed.median().item() * 1.001
    attack = partial(auto_attack, norm='l2', attacks=['apgd-ce', 'apgd-t', 'fab-t'])
    rows = evaluate(net, x, y, attack, eps=eps, norm='l2')
    assert (rows.pred != rows.y).tolist() == (needed < eps).tolist()
    digits = partial(evaluate, trained_network(), X[:50], Y[:50], eps=EPS, norm='l2')
    right = {
        name: (rows.pred == rows.y).sum()
        for name, rows in dict(aa=digits(attack), pgd=digits(pgd_l2)).items()
    }
    assert right['aa'] <= right['pgd'] <= right['aa'] + 4


SIZES = [
    (4, 4),
    (5, 5),
    (8, 8),
    (9, 4),
    (10, 10),
    (12, 12),
    (14, 9),
    (18, 18),
    (24, 24),
    (24, 7),
    (25, 12),
    (28, 28),
]


@pytest.mark.parametrize('height, width', SIZES)
def test_sizes_on_which_the_package_fails_are_refused(height, width):
    "Those, and no others"
    package = pytest.importorskip('pyautoattack.square')
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(height * width, 4))
    x = torch.rand(4, 1, height, width)
    y = net(x).argmax(1)
    options = dict(p_init=0.8, n_queries=3, eps=0.1, norm='L2', n_restarts=1, seed=0, device='cpu')
    is_refused = not autoattack.l2_square_fits(height, width)
    fails = 'Error: ' in refusal(package.SquareAttack(net, **options).perturb, x, y)
    assert is_refused == fails


def test_patches_are_as_strong_as_the_package():
    "With a tenth of the queries of AutoAttack's Square in ℓ2: at most two images of fifty worse"
    pytest.importorskip('pyautoattack')
    judge = partial(evaluate, trained_network('standard'), X[:50], Y[:50], eps=EPS, norm='l2')
    ours = judge(partial(patches_l2, budget=500))
    theirs = judge(partial(auto_attack, norm='l2', attacks=['square']))
    assert (ours.pred == ours.y).sum() <= (theirs.pred == theirs.y).sum() + 2
    assert 0 < (ours.pred == ours.y).sum() < 40
