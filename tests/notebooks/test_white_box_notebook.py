"white_box.ipynb as its users run it: in a fresh project, on given runs, and with what cannot be used"

import shutil
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
from helpers import outputs_of, papermill, small_project

from adt_repro.evaluation.metrics import accuracies, robust
from adt_repro.evaluation.records import SCHEMA, load_records

NAME = 'digits-small_cnn-at_pgd-s0'
SIX = ['fgsm', 'pgd20', 'mim', 'cw', 'pgd100', 'feature']


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    return small_project(tmp_path_factory.mktemp('project'), 'white_box')


@pytest.fixture(scope='module')
def tiny(project):
    "At its defaults, where there is nothing: two runs are trained and judged"
    done = papermill(project, 'white_box', 'out.ipynb')
    assert done.returncode == 0, done.stderr
    return project / 'outputs' / 'tiny'


def test_defaults(tiny):
    rows = load_records(*sorted((tiny / 'records').glob('*.parquet')))
    assert list(rows.columns) == list(SCHEMA)
    assert (rows.groupby(['run', 'attack']).size() == 100).all() and rows.attacked.all()
    assert set(rows.attack) == {'natural', *SIX, 'distribution'}
    sums, rob = accuracies(rows), robust(rows)
    for run, a in sums.groupby('run'):
        assert rob[rob.run == run].correct.item() <= a.correct.min()
    table = pd.read_csv(tiny / 'tables' / 'white_box.csv')
    for r in table[table.attack == 'rob+'].itertuples():
        assert r.correct == rob[rob.run == r.run].correct.item()
    for name in 'distribution', 'soundness':
        assert set(pd.read_csv(tiny / 'frames' / f'{name}.csv').run) == set(rows.run)
    for run in rows.run.unique():
        losses = pd.read_csv(tiny / 'frames' / f'gain-{run}.csv').set_index('i')
        assert len(losses) == 100
        attacked = rows[(rows.run == run) & (rows.attack == 'natural')].set_index('i')
        assert np.allclose(losses.clean, attacked.loss, rtol=1e-4, atol=1e-5)


def test_the_notebook_shows_it(project, tiny):
    text = outputs_of(project / 'out.ipynb')
    assert text.count('image/png') >= 2 and 'rob+' in text
    assert 'Traceback' not in text and str(project) not in text


def test_a_cascade_says_upper_bound(project, tiny):
    shutil.copytree(tiny / 'runs', project / 'outputs' / 'demo' / 'runs')
    how = dict(attacks=SIX, cascade=True, sound=False, batch=33, generator=20)
    done = papermill(project, 'white_box', 'cascade.ipynb', scale='demo', runs=[NAME], **how)
    assert done.returncode == 0, done.stderr
    chain, whole = (
        load_records(project / 'outputs' / scale / 'records' / f'white_box-{NAME}.parquet')
        for scale in ('demo', 'tiny')
    )
    assert not chain.attacked.all() and {'distribution', 'generator'} <= set(chain.attack)
    correct = robust(chain, SIX).correct.item()
    assert correct == robust(whole, SIX).correct.item() >= robust(chain).correct.item()
    assert '\\u2264' in outputs_of(project / 'cascade.ipynb')


def test_dear_attacks_on_fewer_images_in_low_precision(project, tiny):
    "Limits, a cascade of one attack, and bfloat16: against whole records in float32, and what the notebook says of it"
    done = papermill(
        project,
        'white_box',
        'few.ipynb',
        scale='tiny',
        runs=[NAME],
        limits=dict(pgd100=30, feature=20, distribution=500),
        cascade=['distribution'],
        precision='bf16',
        n_beside=40,
        n_sound=60,
        label='few',
        batch=25,
    )
    assert done.returncode == 0, done.stderr
    few = load_records(tiny / 'records' / f'white_box_bf16.few-{NAME}.parquet')
    whole = load_records(tiny / 'records' / f'white_box-{NAME}.parquet')
    n = dict(pgd100=30, feature=20)
    for attack, g in few.groupby('attack'):
        assert g.i.tolist() == list(range(n.get(attack, 100)))
        assert g.attacked.all() == (attack != 'distribution')
    same = few[few.attack == 'natural'].merge(whole, on=['attack', 'i', 'test_set'])
    assert len(same) == 100 and (same.pred_x == same.pred_y).all()
    table = pd.read_csv(tiny / 'tables' / 'white_box_bf16.few.csv').set_index('attack')
    assert table.n['rob'] == table.n['feature'] == 20 and table.n['pgd20'] == 100
    assert table.bound['distribution'] and set(table.cascade) == {'distribution'}
    beside = pd.read_csv(tiny / 'tables' / 'white_box_bf16_vs_fp32.few.csv')
    assert set(beside.attack) == {'fgsm', 'pgd20', 'mim', 'cw', 'all'} and (beside.n == 40).all()
    fp32 = whole[(whole.i < 40) & (whole.attack == 'pgd20')]
    assert beside.set_index('attack').fp32['pgd20'] == pytest.approx((fp32.pred == fp32.y).mean())
    assert pd.read_csv(tiny / 'frames' / 'soundness_bf16.few.csv').n.max() == 60
    assert pd.read_csv(tiny / 'frames' / 'distribution_bf16.few.csv').n_images.item() == 100


NOT_THERE = (
    "runs='digits-small_cnn-alp-s0': expected digits-small_cnn-at_pgd-s0, digits-small_cnn-standard-s0"
)


@pytest.mark.parametrize(
    'bad, says',
    [
        (dict(limits=dict(spsa=3)), "limits={'spsa': 3}: expected a table of whole numbers of at least 1"),
        (dict(cascade=['pgd']), "cascade=['pgd']: expected true, false, or a list"),
        (dict(n_sound=0), 'n_sound=0: expected a whole number of at least 1'),
        (dict(runs=['digits-small_cnn-alp-s0']), NOT_THERE),
    ],
    ids=str,
)
def test_what_cannot_be_used(project, tiny, bad, says):
    done = papermill(project, 'white_box', 'bad.ipynb', scale='tiny', **bad)
    assert done.returncode and says in done.stderr


def test_autoattack_is_an_extra(project, tiny):
    "Without the package a line says what to install; with it, it joins rob+ and its version is in the table"
    how = dict(scale='tiny', autoattack=True, sound=False, draws=0, attacks=['fgsm', 'pgd20'], n_test=20)
    done = papermill(project, 'white_box', 'aa.ipynb', **how)
    if find_spec('pyautoattack') is None:
        line = "attack=auto_attack: expected pyautoattack to be installed: uv pip install 'pyautoattack>=0.2"
        assert done.returncode and line in done.stderr
        return
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tiny / 'tables' / 'white_box.csv')
    assert {'worst', 'worst+', 'autoattack'} <= set(table.attack) and table.pyautoattack.notna().all()
