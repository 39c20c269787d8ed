"white_box.ipynb as its users run it: in a fresh project, on given runs, and with what cannot be used"

import json
import shutil
from importlib.util import find_spec

import nbformat
import pandas as pd
import pytest
import torch
from helpers import papermill, small_project
from safetensors.torch import load_file, save_file

from adt_repro.base.parameters import ParameterError
from adt_repro.data import load_data
from adt_repro.evaluation.evaluate import evaluate
from adt_repro.evaluation.metrics import accuracies, robust
from adt_repro.evaluation.records import SCHEMA, load_records
from adt_repro.models.classifiers import build_model
from adt_repro.runs.store import load_run


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
    assert (
        list(rows.columns) == list(SCHEMA)
        and (rows.groupby(['run', 'attack']).size() == 100).all()
        and rows.attacked.all()
    )
    assert set(rows.attack) == {'natural', 'fgsm', 'pgd20', 'mim', 'cw', 'pgd100', 'feature', 'distribution'}
    sums, rob = accuracies(rows), robust(rows)
    for run, a in sums.groupby('run'):
        assert rob[rob.run == run].correct.item() <= a.correct.min()
    table = pd.read_csv(tiny / 'tables' / 'white_box.csv')
    for r in table[table.attack == 'rob+'].itertuples():
        assert r.correct == rob[rob.run == r.run].correct.item()
    assert (
        set(pd.read_csv(tiny / 'frames' / 'distribution.csv').run)
        == set(pd.read_csv(tiny / 'frames' / 'soundness.csv').run)
        == set(rows.run)
    )


def test_the_notebook_shows_it(project, tiny):
    text = json.dumps([c.get('outputs') for c in nbformat.read(project / 'out.ipynb', 4).cells])
    assert (
        text.count('image/png') >= 2
        and 'rob+' in text
        and 'Traceback' not in text
        and str(project) not in text
    )


def test_a_cascade_says_upper_bound(project, tiny):
    shutil.copytree(tiny / 'runs', project / 'outputs' / 'demo' / 'runs')
    name = 'digits-small_cnn-at_pgd-s0'
    done = papermill(
        project,
        'white_box',
        'cascade.ipynb',
        scale='demo',
        runs=[name],
        attacks=['fgsm', 'pgd20', 'mim', 'cw', 'pgd100', 'feature'],
        cascade=True,
        sound=False,
        batch=33,
        generator=20,
    )
    assert done.returncode == 0, done.stderr
    chain, whole = (
        load_records(project / 'outputs' / s / 'records' / f'white_box-{name}.parquet')
        for s in ('demo', 'tiny')
    )
    assert not chain.attacked.all() and {'distribution', 'generator'} <= set(chain.attack)
    six = ['fgsm', 'pgd20', 'mim', 'cw', 'pgd100', 'feature']
    assert (
        robust(chain, six).correct.item() == robust(whole, six).correct.item() >= robust(chain).correct.item()
    )
    assert '\\u2264' in json.dumps(
        [c.get('outputs') for c in nbformat.read(project / 'cascade.ipynb', 4).cells]
    )


def test_dear_attacks_on_fewer_images_in_low_precision(project, tiny):
    "Limits, a cascade of one attack, and bfloat16: against whole records in float32, and what the notebook says of it"
    name = 'digits-small_cnn-at_pgd-s0'
    done = papermill(
        project,
        'white_box',
        'few.ipynb',
        scale='tiny',
        runs=[name],
        limits=dict(pgd100=30, feature=20, distribution=500),
        cascade=['distribution'],
        precision='bf16',
        n_beside=40,
        n_sound=60,
        label='few',
        batch=25,
    )
    assert done.returncode == 0, done.stderr
    few, whole = (
        load_records(tiny / 'records' / f'{f}-{name}.parquet') for f in ('white_box_bf16', 'white_box')
    )
    n = dict(pgd100=30, feature=20)
    for attack, g in few.groupby('attack'):
        assert g.i.tolist() == list(range(n.get(attack, 100))) and g.attacked.all() == (
            attack != 'distribution'
        )
    same = few[few.attack == 'natural'].merge(whole, on=['attack', 'i', 'test_set'])
    assert len(same) == 100 and (same.pred_x == same.pred_y).all()
    table = pd.read_csv(tiny / 'tables' / 'white_box_bf16-few.csv').set_index('attack')
    assert (
        table.n['rob'] == table.n['feature'] == 20
        and table.n['pgd20'] == 100
        and table.bound['distribution']
        and set(table.cascade) == {'distribution'}
    )
    beside = pd.read_csv(tiny / 'tables' / 'white_box_bf16_vs_fp32-few.csv')
    assert set(beside.attack) == {'fgsm', 'pgd20', 'mim', 'cw', 'all'} and (beside.n == 40).all()
    fp32 = whole[(whole.i < 40) & (whole.attack == 'pgd20')]
    assert beside.set_index('attack').fp32['pgd20'] == pytest.approx((fp32.pred == fp32.y).mean())
    assert (pd.read_csv(tiny / 'frames' / 'soundness_bf16-few.csv').n.max() == 60) and pd.read_csv(
        tiny / 'frames' / 'distribution_bf16-few.csv'
    ).n_images.item() == 100


@pytest.mark.parametrize(
    'bad, says',
    [
        (dict(limits=dict(spsa=3)), "limits={'spsa': 3}: expected a table of whole numbers of at least 1"),
        (dict(cascade=['pgd']), "cascade=['pgd']: expected true, false, or a list"),
        (dict(n_sound=0), 'n_sound=0: expected a whole number of at least 1'),
    ],
    ids=str,
)
def test_limits_that_are_none(project, tiny, bad, says):
    done = papermill(project, 'white_box', 'bad.ipynb', scale='tiny', **bad)
    assert done.returncode and says in done.stderr


def test_what_cannot_be_used(project, tiny, tmp_path):
    "One line each, a non-zero exit where it is papermill's business, and nothing half-written"
    done = papermill(project, 'white_box', 'bad.ipynb', scale='tiny', runs=['digits-small_cnn-alp-s0'])
    assert (
        done.returncode
        and "runs='digits-small_cnn-alp-s0': expected digits-small_cnn-at_pgd-s0, digits-small_cnn-standard-s0"
        in done.stderr
    )
    run = shutil.copytree(tiny / 'runs' / 'digits-small_cnn-at_pgd-s0', tmp_path / 'run')
    w = load_file(run / 'weights.safetensors')
    save_file({k: v for k, v in w.items() if k != 'fc.bias'}, run / 'weights.safetensors')
    with pytest.raises(
        ParameterError, match="weights='weights.safetensors': of another architecture, fc.bias is missing$"
    ):
        load_run(run)
    save_file(w | {'fc.weight': w['fc.weight'][:5].contiguous()}, run / 'weights.safetensors')
    with pytest.raises(ParameterError, match=r'fc.weight is \(5, 64\), not \(10, 64\)'):
        load_run(run)
    (run / 'weights.safetensors').unlink()
    with pytest.raises(ParameterError, match='cannot be read as weights'):
        load_run(run)
    (run / 'run.json').unlink()
    with pytest.raises(ParameterError, match='not a finished run'):
        load_run(run)


def test_what_cannot_be_judged():
    data, net = load_data('digits').head(10, 10), build_model('small_cnn', in_ch=1)
    with pytest.raises(ParameterError, match=r'x: expected pixels in \[0, 1\], these go from 0 to 255'):
        evaluate(net, 255 * data.x_test, data.y_test)
    with pytest.raises(ParameterError, match='these go from nan to nan'):
        evaluate(net, data.x_test * float('nan'), data.y_test)
    torch.nn.init.constant_(net.fc.weight, float('nan'))
    with pytest.raises(
        ValueError, match='the network gave logits that are not finite, on images of the clean set'
    ):
        evaluate(net, data.x_test, data.y_test)


def test_autoattack_is_an_extra(project, tiny):
    "Without the package a line says what to install; with it, it joins rob+ and its version is in the table"
    if find_spec('pyautoattack') is None:
        done = papermill(
            project,
            'white_box',
            'aa.ipynb',
            scale='tiny',
            autoattack=True,
            sound=False,
            draws=0,
            attacks=['fgsm'],
        )
        assert (
            done.returncode
            and "autoattack=True: expected pyautoattack to be installed: pip install 'adt_repro[autoattack]'"
            in done.stderr
        )
        return
    done = papermill(
        project,
        'white_box',
        'aa.ipynb',
        scale='tiny',
        autoattack=True,
        sound=False,
        draws=0,
        attacks=['fgsm', 'pgd20'],
        n_test=20,
    )
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(project / 'outputs' / 'tiny' / 'tables' / 'white_box.csv')
    assert {'worst', 'worst+', 'autoattack'} <= set(table.attack) and table.pyautoattack.notna().all()
