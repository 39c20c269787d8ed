"Facts of the committed records, frames and tables that the results pages rely on"

from functools import cache

import pandas as pd
import pytest
from helpers import ROOT

from adt_repro.paper.evidence import TABLE1
from adt_repro.runs.scales import read_scale, scale_runs

OUTPUTS = ROOT / 'outputs'


@cache
def networks(scale):
    "The runs that a scale declares"
    return list(scale_runs(read_scale(ROOT / 'nbs' / 'scales' / f'{scale}.yaml')))


def read_tables(scale, name):
    "A table of every network of a scale, one below the other; {} in the name stands for the run"
    return pd.concat(pd.read_csv(OUTPUTS / scale / name.format(run)) for run in networks(scale))


@pytest.mark.parametrize('scale, panel, count, n', [
    ('cpu', 'soundness', 20, 100),
    ('digits', 'soundness', 45, 360),
    ('gpu', 'soundness_bf16', 4, 50),
])  # fmt: skip
def test_every_network_passes_the_soundness_panel(scale, panel, count, n):
    checks = read_tables(scale, f'frames/{panel}-{{}}.csv')
    assert checks.passed.all() and (checks.n == n).all()
    by_run = checks.groupby('run').check
    assert sorted(by_run.groups) == sorted(networks(scale)) and len(by_run) == count
    assert set(by_run.size()) <= {8, 11}  # three checks came later
    assert (by_run.nunique() == by_run.size()).all()


def test_the_distribution_adds_nothing_to_the_six_attacks_at_digits():
    "A_rob counts the same images with the distribution as a seventh attack and without"
    tables = read_tables('digits', 'tables/white_box-{}.csv')
    counts = tables.pivot(index='run', columns='attack', values='correct')
    assert len(counts) == 45 and (counts.rob == counts['rob+']).all()


@pytest.mark.parametrize('run', networks('cpu'))
def test_the_distribution_adds_nothing_to_the_six_attacks_at_cpu(run):
    "Image by image from the records, on the first 100 images, which are those that the distribution met"
    rows = pd.read_parquet(OUTPUTS / 'cpu' / 'records' / f'white_box-{run}.parquet').query('i < 100')
    wrong = rows[rows.pred != rows.y].groupby('attack').i.agg(set)
    assert set(rows.i[rows.attack == 'distribution']) == set(range(100))
    assert wrong['distribution'] <= set().union(*wrong[TABLE1])


@pytest.mark.parametrize('scale', ['cpu', 'digits'])
def test_transferred_attacks_are_weaker_than_the_networks_own(scale):
    table = pd.read_csv(OUTPUTS / scale / 'tables' / 'transfer.csv')
    table = table[table.attack != 'natural']
    at = ['run', 'attack']
    own, transferred = table[table.source == table.run], table[table.source != table.run]
    both = transferred.merge(own, on=at, suffixes=('', '_own'), validate='many_to_one')
    assert len(both) == len(transferred) == 32
    assert (both.correct >= both.correct_own).all() and (both.n == both.n_own).all()


def test_the_comparison_of_seeds_on_digits_is_complete():
    table = pd.read_csv(OUTPUTS / 'digits' / 'tables' / 'digits_seeds.csv')
    seeds = table.groupby(['method', 'recipe', 'attack']).seed.agg(sorted)
    assert len(seeds) == 48 and all(found == [0, 1, 2, 3, 4] for found in seeds)
    assert (table.n == 360).all() and ((table.correct / table.n - table.accuracy).abs() < 1e-4).all()
