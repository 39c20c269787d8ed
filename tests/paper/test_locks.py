"The committed scales are what this code makes: their locks are true, and their rows come out again"

import pytest
from helpers import ROOT

from adt_repro.base.tables import read_sums
from adt_repro.paper.recompute import record_tables, table_differences
from adt_repro.runs.audit import audit_rows, audited_data, check_listed, find_population, is_wrong
from adt_repro.runs.lock import read_lock, stale_lines, stale_units
from adt_repro.runs.scales import read_scale

LOCKED = ['cpu', 'digits']  # scales whose weights are committed
NOT_PLANNED = {'tables/digits_seeds.csv', 'records/weights.json'}  # made by no call of the scale's plan


def places(scale):
    return ROOT / 'outputs' / scale, read_scale(ROOT / 'nbs' / 'scales' / f'{scale}.yaml')


@pytest.mark.parametrize('scale', LOCKED)
def test_nothing_is_stale(scale):
    """If this fails, your change reaches committed numbers

    Either make them again (snakemake --cores 2 --config scale=...), or show by `adt audit` that no number
    has changed, and note that: python -m adt_repro.runs.lock outputs/... --adopt "audit of ... rows: all agree"
    """
    folder, plan = places(scale)
    assert stale_lines(stale_units(plan, folder)) == []


@pytest.mark.parametrize('scale', LOCKED)
def test_each_committed_file_is_in_the_lock(scale):
    folder, _ = places(scale)
    locked = {file for unit in read_lock(folder)['units'].values() for file in unit['files']}
    listed = set(read_sums(folder / 'SHA256SUMS')) - NOT_PLANNED - {'lock.json'}
    assert listed == locked


def test_a_sample_of_rows_comes_out_again():
    folder, plan = places('digits')
    check_listed(folder)
    rows = find_population(folder, plan).rows
    data = audited_data(folder, plan, rows, None)
    compared = audit_rows(folder, plan, rows, 45, 7, data)
    assert len(compared) == 45
    assert not is_wrong(compared).any(), compared[is_wrong(compared)].to_string()


def test_tables_are_counted_again_from_the_records():
    folder, plan = places('digits')
    assert not len(table_differences(folder, record_tables(folder, plan)))
