"transfer.ipynb and spsa.ipynb as their users run them"

import pandas as pd
import pytest
from helpers import outputs_of, papermill, small_project

from adt_repro.attacks.black_box import query_curve
from adt_repro.evaluation.records import SCHEMA, load_records

NOTEBOOKS = 'transfer', 'spsa'


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    return small_project(tmp_path_factory.mktemp('project'), *NOTEBOOKS)


@pytest.fixture(scope='module')
def tiny(project, give_tiny_runs):
    "Both at their defaults: of their four runs, the two of `standard` are not there and are trained"
    give_tiny_runs(project, 'at_pgd', seeds=(0, 1))
    for name in NOTEBOOKS:
        done = papermill(project, name, f'{name}.ipynb')
        assert done.returncode == 0, done.stderr
        text = outputs_of(project / f'{name}.ipynb')
        assert 'image/png' in text and 'Traceback' not in text and str(project) not in text
    return project / 'outputs' / 'tiny'


def test_transfer(tiny):
    rows = load_records(*tiny.glob('records/transfer-*.parquet'))
    assert list(rows.columns) == list(SCHEMA)
    assert rows.attacked.all() and (rows.queries == -1).all()
    assert rows.run.nunique() == 2 and rows.source.nunique() == 4
    table = pd.read_csv(tiny / 'tables' / 'transfer.csv').set_index(['run', 'source', 'attack']).accuracy
    for key, group in rows.groupby(['run', 'source', 'attack']):
        assert table[key] == pytest.approx((group.pred == group.y).mean(), abs=1e-4)
    for run in set(rows.run):
        for attack in 'pgd20', 'mim':
            of_others = [a for (r, s, k), a in table.items() if (r, k) == (run, attack) and s != run]
            assert table[run, run, attack] < min(of_others)
    assert len(pd.read_csv(tiny / 'frames' / 'soundness_transfer.csv')) == 2 * 2 * 2


def test_spsa_notebook(tiny):
    rows = load_records(*tiny.glob('records/spsa-*.parquet'))
    assert set(rows.attack) == {'natural', 'pgd20', 'spsa16', 'spsa64', 'square'}
    assert (rows.groupby(['run', 'attack']).size() == 50).all()
    assert (rows[rows.attack == 'pgd20'].queries == -1).all()
    for attack, most in dict(spsa16=1 + 15 * 17, spsa64=1 + 15 * 65, square=501).items():
        q = rows[rows.attack == attack]
        stood = q.pred == q.y
        assert (q.queries[stood] == most).all() and q.queries.between(1, most).all()
        for _, g in q.groupby('run'):
            assert query_curve(g).accuracy.iloc[-1] == (g.pred == g.y).mean()
    checks = pd.read_csv(tiny / 'frames' / 'soundness_spsa.csv').check
    assert {'black box: square', 'black box: spsa16'} <= set(checks)


def test_what_cannot_be_used(project, tiny):
    some = "attacks=['feature']: expected a list, each item fgsm, pgd20, mim, cw, pgd100"
    for name, params, line in (
        ('spsa', dict(samples=[7]), 'samples=[7]: expected a list, each item an even number'),
        ('spsa', dict(runs=['nobody']), "runs='nobody': expected digits-small_cnn-at_pgd-s0"),
        ('transfer', dict(n_test=361), 'n_test=361: expected at most 360'),
        ('transfer', dict(attacks=['feature']), some),
        ('transfer', dict(sauces=['x']), "sauces=['x']: there is no such parameter, did you mean 'sources'?"),
    ):
        before = set(tiny.rglob('*'))
        done = papermill(project, name, 'bad.ipynb', scale='tiny', **params)
        assert done.returncode and line in done.stderr, (line, done.stderr[-400:])
        assert set(tiny.rglob('*')) == before
