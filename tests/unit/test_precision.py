"Attacks in low precision: crafted there, judged in float32, and never mixed up with the others"

import copy
import json
import shutil
import subprocess
import sys
from functools import partial

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT

from adt_repro.analysis.coverage import draws_of, predicted_classes, restarts_of
from adt_repro.analysis.landscape import landscape_axes, loss_surface, top_curvature
from adt_repro.attacks.black_box import spsa, square
from adt_repro.attacks.feature import fea_attack
from adt_repro.attacks.gradient import pgd
from adt_repro.attacks.suite import TABLE1_ATTACKS
from adt_repro.base.noise import example_noise
from adt_repro.data import load_data
from adt_repro.evaluation.evaluate import evaluate, evaluate_on
from adt_repro.evaluation.records import load_records
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


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    "Two tiny runs, judged in float32 and then in bfloat16; the first records have stayed what they were"
    root = tmp_path_factory.mktemp('project')
    (root / 'nbs').mkdir()
    (root / 'outputs').mkdir()
    for f in 'settings.ini', 'nbs/white_box.ipynb':
        shutil.copy(ROOT / f, root / f)

    def call(out, **params):
        done = subprocess.run(
            [
                sys.executable,
                '-m',
                'papermill',
                'nbs/white_box.ipynb',
                out,
                *(w for k, v in params.items() for w in (('-y', f'{k}: {json.dumps(v)}'))),
            ],
            cwd=root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        return (
            done.returncode,
            done.stderr,
            {
                f: f.read_bytes()
                for f in (root / 'outputs').rglob('*')
                if f.suffix in ('.parquet', '.csv') and 'parts' not in f.parts
            },
        )

    few = dict(n_test=20, n_targets=2, draws=2, sound=False)
    return (
        root,
        call('a.ipynb', **few),
        call('b.ipynb', **few, precision='bf16', label='low'),
        call('c.ipynb', precision='fp8'),
    )


def test_white_box_keeps_them_apart(project):
    root, (code, err, before), (code_low, err_low, after), _ = project
    assert code == code_low == 0, err + err_low
    assert {f: after[f] for f in before} == before and len(before)
    new = sorted(str(f.relative_to(root / 'outputs' / 'tiny')) for f in set(after) - set(before))
    names = ['digits-small_cnn-at_pgd-s0', 'digits-small_cnn-standard-s0']
    assert new == sorted(
        [
            *(f'records/white_box_bf16-{n}.parquet' for n in names),
            'tables/white_box_bf16-low.csv',
            'tables/white_box_bf16_vs_fp32-low.csv',
            'frames/distribution_bf16-low.csv',
        ]
    )
    assert not any(
        f.match(p) for f in set(after) - set(before) for p in ('white_box-*', 'soundness-*', 'distribution-*')
    )  # what nbs/paper.ipynb looks for


def test_white_box_sets_them_side_by_side(project):
    "The table against counting by hand in both files of records"
    out = project[0] / 'outputs' / 'tiny'
    low, full = (
        load_records(*sorted((out / 'records').glob(f'{k}-*.parquet')))
        .set_index(['run', 'attack', 'i'])
        .sort_index()
        for k in ('white_box_bf16', 'white_box')
    )
    table = pd.read_csv(out / 'tables' / 'white_box_bf16_vs_fp32-low.csv')
    assert (
        set(table.attack) == {*ATTACKS, 'all'}
        and (low.margin != full.margin).any()
        and low.loc[(slice(None), 'natural'), :].equals(full.loc[(slice(None), 'natural'), :])
    )
    for r in table[table.attack != 'all'].itertuples():
        a, b = ((k.pred == k.y).loc[r.run, r.attack] for k in (low, full))
        assert (
            r.n == 20
            and r.bf16 == pytest.approx(a.mean())
            and r.fp32 == pytest.approx(b.mean())
            and r.gap == pytest.approx(100 * (a.mean() - b.mean()))
        )
        assert (r._9, r._10) == ((~a & b).sum(), (a & ~b).sum()) and r.lo <= r.gap <= r.hi
    said = json.dumps([c.get('outputs') for c in nbformat.read(project[0] / 'b.ipynb', 4).cells])
    assert (
        'felled by fp32 only' in said
        and (pd.read_csv(out / 'tables' / 'white_box_bf16-low.csv').precision == 'bf16').all()
    )


def test_white_box_refuses_other_precisions(project):
    code, err, _ = project[3]
    assert code and "precision='fp8': expected fp32, tf32, bf16" in err
