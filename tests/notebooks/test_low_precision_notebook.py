"white_box.ipynb in bfloat16 beside float32: records and tables of their own"

import pandas as pd
import pytest
from helpers import outputs_of, papermill, small_project

from adt_repro.attacks.suite import TABLE1_ATTACKS
from adt_repro.evaluation.records import load_records

NAMES = ['digits-small_cnn-at_pgd-s0', 'digits-small_cnn-standard-s0']
FEW = dict(n_test=20, n_targets=2, draws=2, sound=False)


@pytest.fixture(scope='module')
def project(tmp_path_factory, give_tiny_runs):
    "Two tiny runs, judged in float32 and then in bfloat16; what the first call has left has to stay"
    root = small_project(tmp_path_factory.mktemp('project'), 'white_box')
    give_tiny_runs(root, 'standard', 'at_pgd')

    def call(out, **params):
        done = papermill(root, 'white_box', out, **params)
        assert done.returncode == 0, done.stderr
        files = [f for f in (root / 'outputs').rglob('*') if f.suffix in ('.parquet', '.csv')]
        return {f: f.read_bytes() for f in files if 'parts' not in f.parts}

    return root, call('a.ipynb', **FEW), call('b.ipynb', **FEW, precision='bf16', label='low')


def test_white_box_keeps_them_apart(project):
    root, before, after = project
    assert before and {f: after[f] for f in before} == before
    new = set(after) - set(before)
    assert {str(f.relative_to(root / 'outputs' / 'tiny')) for f in new} == {
        *(f'records/white_box_bf16.low-{name}.parquet' for name in NAMES),
        'tables/white_box_bf16.low.csv',
        'tables/white_box_bf16_vs_fp32.low.csv',
        'frames/distribution_bf16.low.csv',
        *(f'frames/gain.low-{name}.csv' for name in NAMES),
    }
    for pattern in 'white_box-*', 'soundness-*', 'distribution-*':  # what nbs/paper.ipynb looks for
        assert not any(f.match(pattern) for f in new)


def test_white_box_sets_them_side_by_side(project):
    "The table against counting by hand in both files of records"
    out = project[0] / 'outputs' / 'tiny'
    low, full = (
        load_records(*sorted((out / 'records').glob(f'{k}-*.parquet')))
        .set_index(['run', 'attack', 'i'])
        .sort_index()
        for k in ('white_box_bf16.low', 'white_box')
    )
    assert (low.margin != full.margin).any()
    natural = (slice(None), 'natural'), slice(None)
    assert low.loc[natural].equals(full.loc[natural])
    table = pd.read_csv(out / 'tables' / 'white_box_bf16_vs_fp32.low.csv')
    assert set(table.attack) == {*TABLE1_ATTACKS, 'distribution', 'all'}
    for r in table[table.attack != 'all'].itertuples():
        a, b = ((k.pred == k.y).loc[r.run, r.attack] for k in (low, full))
        assert r.n == 20 and r.bf16 == pytest.approx(a.mean()) and r.fp32 == pytest.approx(b.mean())
        assert r.gap == pytest.approx(100 * (a.mean() - b.mean())) and r.lo <= r.gap <= r.hi
        assert (r._9, r._10) == ((~a & b).sum(), (a & ~b).sum())
    assert 'misclassified under fp32 only' in outputs_of(project[0] / 'b.ipynb')
    assert (pd.read_csv(out / 'tables' / 'white_box_bf16.low.csv').precision == 'bf16').all()


def test_white_box_refuses_other_precisions(project):
    done = papermill(project[0], 'white_box', 'c.ipynb', precision='fp8')
    assert done.returncode and "precision='fp8': expected fp32, tf32, bf16" in done.stderr
