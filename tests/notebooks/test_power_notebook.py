"power as its users run it: on records of two rows and nothing else, and with a plan that a scale's file declares"

import math
import re

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import copy_files, figures_of, files_of_git, papermill, small_project

from adt_repro.base.power import detectable, seeds_needed, variance_components
from adt_repro.base.stats import two_sample
from adt_repro.evaluation.records import save_records
from adt_repro.planning.costs import step_costs

N, ATTACKS = 60, ('natural', 'pgd20', 'cw')
SEEDS = dict(ours=(0, 1, 2), baseline=(0, 1))


def outcome(row, seed, n):
    "(n, attacks) bools: which images are classified right"
    rng = np.random.default_rng([len(row), seed])
    easy = np.random.default_rng(0).beta(0.7, 0.4, (n, 1))
    return rng.random((n, len(ATTACKS))) < easy + (0.1 if row == 'ours' else 0)


def rows_of(run, right):
    "Records as another program may write them"
    frames = []
    for k, attack in enumerate(ATTACKS):
        n = len(right)
        columns = dict(run=run, attack=attack, i=range(n), y=0, pred=np.where(right[:, k], 0, 1), margin=0.1)
        columns |= dict(loss=1.0, linf=0.0, queries=-1, seed=0, attacked=True, source=run, eps=0.03)
        frames.append(pd.DataFrame(columns | dict(test_set='abc')))
    return pd.concat(frames, ignore_index=True)


def save_all(folder, kind='white_box', n=N, rows=('ours', 'baseline')):
    for row in rows:
        for seed in SEEDS[row]:
            run = f'mine-net-{row}-s{seed}'
            save_records(rows_of(run, outcome(row, seed, n)), folder / f'{kind}-{run}.parquet')


def grid(row, columns, n=N):
    return np.array([100.0 * outcome(row, seed, n)[:, columns].all(1) for seed in SEEDS[row]])


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    "A clone with the notebook, and records of two rows; no runs, no weights, no scale's file"
    root = small_project(tmp_path_factory.mktemp('project'), 'power')
    (root / 'outputs' / 'mine' / 'records').mkdir(parents=True)
    save_all(root / 'outputs' / 'mine' / 'records')
    return root


CALL = dict(scale='mine', rows=['ours', 'baseline'], repeats=20, seeds=[2, 4], images=[100])


def test_records_of_two_rows_are_enough(project):
    done = papermill(project, 'power', effect=4, **CALL)
    assert done.returncode == 0, done.stderr
    mine = project / 'outputs' / 'mine'
    assert figures_of(mine) == {'power'}
    row = pd.read_csv(mine / 'tables' / 'power.csv', dtype=dict(seeds=str)).iloc[0]
    a, b = (grid(name, [0, 1, 2]) for name in ('ours', 'baseline'))
    parts = variance_components(a, b)
    assert (row.seeds, row.n, row.effect) == ('3, 2', N, 4)
    assert [row.sd_seeds, row.sd_seeds_lo, row.sd_seeds_hi] == pytest.approx(
        parts.intervals['seeds'], rel=1e-4
    )
    assert row.detectable == pytest.approx(detectable(parts, (3, 2), N), rel=1e-4)
    assert row.seeds_needed == seeds_needed(parts, 4.0, N)
    assert math.isnan(row.hours_of_a_seed)
    curves = pd.read_csv(mine / 'frames' / 'power.csv')
    assert set(curves.seeds) == {2, 4} and set(curves.images) == {100}
    assert (curves.sort_values('effect').groupby('seeds').power.diff().dropna() >= -1e-9).all()
    before = {file: file.read_bytes() for file in (*mine.glob('tables/*'), *mine.glob('f*/*'))}
    assert papermill(project, 'power', effect=4, **CALL).returncode == 0
    assert all(file.read_bytes() == content for file, content in before.items())


def test_attacks_are_chosen_and_records_of_all_images_count(project):
    folder = project / 'outputs' / 'mine' / 'records'
    save_all(folder, 'all_images', n=90)
    done = papermill(project, 'power', attacks=['cw'], **CALL)
    assert done.returncode == 0, done.stderr
    row = pd.read_csv(project / 'outputs' / 'mine' / 'tables' / 'power.csv').iloc[0]
    stats = two_sample(*(grid(name, [0, 2], 90) for name in ('ours', 'baseline')))
    assert row.n == 90 and row.sd_examples / 90**0.5 == pytest.approx(stats['se_examples'], rel=1e-4)
    for file in folder.glob('all_images-*'):
        file.unlink()


def test_a_row_of_one_seed_is_said_to_be_assumed(project):
    done = papermill(project, 'power', runs=['mine-net-ours-s0', *names_of('baseline')], **CALL)
    assert done.returncode == 0, done.stderr
    row = pd.read_csv(project / 'outputs' / 'mine' / 'tables' / 'power.csv').iloc[0]
    assert row.seeds == '1, 2' and row.assumed and math.isinf(row.detectable)


def names_of(row):
    return [f'mine-net-{row}-s{seed}' for seed in SEEDS[row]]


@pytest.mark.parametrize(
    'params, line',
    [
        (dict(scale='absent'), "scale='absent': expected one with records of white-box attacks"),
        (
            dict(rows=['ours', 'theirs']),
            "rows='theirs': expected a row whose records are in outputs/mine/records",
        ),
        (dict(rows=['ours']), "rows=['ours']: expected a list of at least 2"),
        (
            dict(attacks=['mim']),
            "attacks='mim': expected those that every network has met, natural, pgd20, cw",
        ),
        (
            dict(runs=[*names_of('ours')[:1], *names_of('baseline')[:1]]),
            'expected one with two seeds of a row',
        ),
        (dict(effect=0), 'effect=0: expected a number above 0'),
    ],
    ids=str,
)
def test_one_line_for_what_cannot_be_used(project, params, line):
    done = papermill(project, 'power', **CALL | params)
    assert done.returncode == 1 and line in done.stderr, done.stderr[-600:]
    assert 'Traceback' not in done.stderr.split('ParameterError')[-1]


DECLARED = dict(rows=['adt_exp', 'at_pgd'], attacks=['pgd20', 'cw'], effect=3, seeds=5, n_test=360)


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    "The clone with what digits has recorded of two rows, and a scale's file that declares C1"
    root = small_project(tmp_path_factory.mktemp('digits'), 'power')
    of_rows = re.compile(r'outputs/digits/.*digits-small_cnn-(adt_exp|at_pgd)-s[0-9][./].*')
    kinds = 'runs/', 'records/white_box', 'tables/white_box'
    names = [
        f
        for f in files_of_git()
        if of_rows.match(f) and f.startswith(tuple(f'outputs/digits/{k}' for k in kinds))
    ]
    copy_files([*names, 'nbs/published/table1.csv', 'nbs/scales/digits.yaml'], root)
    file = root / 'nbs' / 'scales' / 'digits.yaml'
    content = yaml.safe_load(file.read_text())
    content['experiments']['declared'] = dict(claims=dict(C1=DECLARED))
    file.write_text(yaml.safe_dump(content))
    return root


def test_claims_of_the_paper_with_a_declared_one(digits):
    done = papermill(digits, 'power', scale='digits', repeats=20, label='few')
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(digits / 'outputs' / 'digits' / 'tables' / 'power.few.csv').set_index('key')
    assert table.loc['C1', ['effect', 'effect_source']].tolist() == [3, 'declared']
    assert (table.alpha == 0.025).all()  # no other is tested without a gate: each would be the only one
    assert (
        'A_rob without FGSM, MIM' in table.statistic['C1']
        and table.effect_source['C13'] == 'half of the published'
    )
    seed, hours = table.hours_of_a_seed['C1'], table.hours_by_seeds['C1']
    assert hours == pytest.approx(table.seeds_needed['C1'] * seed, rel=1e-4)
    steps = step_costs(yaml.safe_load((digits / 'nbs' / 'scales' / 'digits.yaml').read_text()))
    of_rows = steps[
        steps.what.str.split(',').str[0].isin(DECLARED['rows'])
        & steps.experiment.isin(['train', 'watch', 'white_box'])
    ]
    images = of_rows.images.where(
        of_rows.experiment == 'white_box', 360
    )  # trained once, judged on 360 images
    assert seed == pytest.approx((of_rows.hours / of_rows.jobs * 360 / images).sum(), rel=1e-4)
    said = (digits / 'out.ipynb').read_text()
    assert 'declared by scale digits: C1' in said and 'images, there' in said and '360, 360' in said
