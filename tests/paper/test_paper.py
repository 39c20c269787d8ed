"The paper's notebook: the committed tables from the committed records, numbers counted otherwise too"

import json
import re
import shutil
from functools import cache
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT, papermill

from adt_repro.base.parameters import ParameterError
from adt_repro.base.tables import SUMS
from adt_repro.paper.claims import judge_paper, published_table1
from adt_repro.paper.evidence import TABLE1, marked, read_evidence
from adt_repro.paper.report import (
    CIFAR10_TEST,
    REAL,
    latest_scale,
    paper_settings,
    setting_line,
    table1_cells,
)
from adt_repro.runs.scales import read_scale, scale_runs

evidence = cache(read_evidence)  # of a committed scale: nothing changes it
SCALE = latest_scale(ROOT / 'outputs')
OUT = ROOT / 'outputs' / SCALE
OTHERS = [s for s in REAL if s != SCALE and (ROOT / 'outputs' / s / 'report.html').exists()]


def without_results(root):
    "A project whose scale has records, frames and the small files of runs, but no weights, tables or report"
    shutil.copy(ROOT / 'settings.ini', root / 'settings.ini')
    for f in ('nbs/scales', 'nbs/published'):
        shutil.copytree(ROOT / f, root / f)
    shutil.copy(ROOT / 'nbs' / 'paper.ipynb', root / 'nbs' / 'paper.ipynb')
    for scale in [SCALE, *OTHERS]:
        src, dst = ROOT / 'outputs' / scale, root / 'outputs' / scale
        for f in ('records', 'frames', 'figures', 'runs'):
            if (src / f).exists():
                shutil.copytree(
                    src / f,
                    dst / f,
                    ignore=shutil.ignore_patterns('*.safetensors', '*.pt', 'parts', 'table1.*', 'claims.*'),
                )
        shutil.copy(src / SUMS, dst / SUMS)
        (dst / 'tables').mkdir()
        for f in src.glob('tables/*-*.csv'):
            shutil.copy(f, dst / 'tables' / f.name)  # those of white_box know how many targets FeaAttack had
        for f in src.glob('tables/transfer.csv'):
            shutil.copy(f, dst / 'tables' / f.name)
    return root


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return without_results(tmp_path_factory.mktemp('paper'))


def without_pictures(page):
    return re.sub('base64,[^"]*', '', page)


@pytest.mark.parametrize('scale', [SCALE, *OTHERS])
def test_the_notebook_makes_what_is_committed(made, scale):
    "From records alone, the tables and the page; of pictures only that they are drawn"
    done = papermill(made, 'paper', **({} if scale == SCALE else dict(scale=scale)))
    assert done.returncode == 0, done.stderr[-3000:]
    there, here = made / 'outputs' / scale, ROOT / 'outputs' / scale
    both = [f'{at}/{name}.csv' for at in ('tables', 'frames') for name in ('table1', 'claims')]
    for table in *both, 'tables/code_claims.csv':
        found, committed = (pd.read_csv(out / table) for out in (there, here))
        pd.testing.assert_frame_equal(found, committed, rtol=1e-4, obj=table)
    for name in 'table1', 'claims':
        assert (there / 'figures' / f'{name}.png').exists()
    found, committed = ((out / 'report.html').read_text('utf-8') for out in (there, here))
    assert without_pictures(found) == without_pictures(committed)


def test_a_run_that_was_added_under_a_label_is_not_on_the_page(made):
    runs = made / 'outputs' / SCALE / 'runs'
    added = shutil.copytree(runs / 'cifar10-small_cnn-at_pgd-s0', runs / 'cifar10-small_cnn-mine-s0')
    facts = json.loads((added / 'run.json').read_text('utf-8'))
    (added / 'run.json').write_text(json.dumps(facts | dict(run=added.name, label='mine')))
    config = (added / 'config.yaml').read_text('utf-8')
    (added / 'config.yaml').write_text(re.sub('^label:.*$', 'label: mine', config, flags=re.M))
    done = papermill(made, 'paper', scale=SCALE)
    shutil.rmtree(added)
    assert done.returncode == 0, done.stderr[-3000:]
    found, committed = ((out / 'outputs' / SCALE / 'report.html').read_text('utf-8') for out in (made, ROOT))
    assert without_pictures(found) == without_pictures(committed)


@pytest.mark.parametrize('scale', [SCALE, *OTHERS])
def test_committed_tables_follow_from_committed_records(scale):
    "Table 1 and the claims, computed again from the records, number by number and word by word"
    e, paper = evidence(ROOT / 'outputs' / scale), published_table1()
    again = dict(table1=table1_cells(e, paper, paper_settings()), claims=judge_paper(e, paper))
    keys = dict(table1=['row', 'column'], claims=['key'])
    numbers = dict(
        table1='published accuracy lo hi seeds n diff diff_lo diff_hi p'.split(),
        claims='estimate lo hi published n p p_adjusted'.split(),
    )
    for name, found in again.items():
        committed = pd.read_csv(ROOT / 'outputs' / scale / 'tables' / f'{name}.csv').set_index(keys[name])
        found = found.set_index(keys[name])
        assert list(found.index) == list(committed.index)
        assert list(found.verdict) == list(committed.verdict)
        for column in numbers[name]:
            pairs = found[column].astype(float), committed[column].astype(float)
            assert np.allclose(*pairs, rtol=1e-4, atol=1e-6, equal_nan=True), (name, column)


def test_numbers_are_counts_of_rows():
    "Every cell of the table against plain sums over the records, A_rob against a loop over images"
    table = pd.read_csv(OUT / 'tables' / 'table1.csv').set_index(['row', 'column'])
    for row in ('at_pgd', 'feature_scatter', 'adt_exp'):
        files = sorted(OUT.glob(f'records/white_box-*-{row}-s*.parquet'))
        shares = {k: [] for k in [*TABLE1, 'rob']}
        for f in files:
            rows = pd.read_parquet(f)
            standing = set(rows.i)
            for k in TABLE1:
                at = rows[rows.attack == k]
                shares[k].append((at.pred == at.y).mean())
                standing -= set(at.i[at.pred != at.y])
            shares['rob'].append(len(standing) / rows.i.nunique())
        for k, v in shares.items():
            assert np.isclose(100 * np.mean(v), table.accuracy[row, k], atol=1e-3) and table.seeds[
                row, k
            ] == len(files)
        assert table.accuracy[row].rob <= table.accuracy[row].drop('rob').min()


@pytest.mark.parametrize('scale', [SCALE, *OTHERS])
def test_a_rob_image_by_image(scale):
    "No image that counts as robust falls to any column, and A_rob is what a loop over images finds"
    out = ROOT / 'outputs' / scale
    e = evidence(out)
    table = pd.read_csv(out / 'tables' / 'table1.csv').set_index(['row', 'column'])
    shares = {}
    for r in e.runs.itertuples():
        rows = pd.read_parquet(out / 'records' / f'white_box{marked(e.precision)}-{r.run}.parquet')
        of = {k: g.set_index('i') for k, g in rows[rows.attack.isin(TABLE1)].groupby('attack')}
        assert set(of) == set(TABLE1) and all(g.attacked.all() for g in of.values())
        common = set.intersection(*(set(g.index) for g in of.values()))
        standing = [i for i in common if all(g.pred[i] == g.y[i] for g in of.values())]
        shares.setdefault((r.row, 'rob'), []).append(len(standing) / len(common))
        for k, g in of.items():
            shares.setdefault((r.row, k), []).append((g.pred == g.y).mean())
            assert len(standing) <= (g.pred == g.y)[list(common)].sum()
        checks = pd.read_csv(out / 'frames' / f'soundness{marked(e.precision)}-{r.run}.csv')
        assert len(checks) in (8, 11) and checks.n.max() >= 50  # three checks came later
    for cell, found in shares.items():
        assert np.isclose(table.accuracy[cell], 100 * np.mean(found), atol=1e-3) and table.seeds[cell] == len(
            found
        )


def test_a_scale_that_is_not_the_papers_is_compared_with_nothing():
    table = pd.read_csv(OUT / 'tables' / 'table1.csv')
    ran = table[table.verdict != 'not run']
    assert (
        not ran.same.any()
        and set(ran.verdict) <= {'other scale', 'no published value'}
        or evidence(OUT).test_set == CIFAR10_TEST
    )
    words = set(table[~table.same].verdict)
    assert words <= {'other scale', 'no published value', 'not run'}


class Reader(HTMLParser):
    "Collects what a page fetches, and the texts of its pictures"

    def __init__(self):
        super().__init__()
        self.fetched, self.alts = [], []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        url = attributes.get('href') if tag == 'link' else attributes.get('src')
        if url and not url.startswith('data:') or tag == 'iframe':
            self.fetched.append((tag, url))
        if tag == 'img':
            self.alts.append(attributes.get('alt'))


@pytest.mark.parametrize('scale', [SCALE, *OTHERS])
def test_the_report_loads_nothing(scale):
    out = ROOT / 'outputs' / scale
    text, reader = (out / 'report.html').read_text('utf-8'), Reader()
    reader.feed(text)
    assert reader.fetched == [] and '@import' not in text and 'url(' not in text
    assert len(reader.alts) >= 2 and all(reader.alts)
    said = setting_line(evidence(out)).replace('&', '&amp;')
    for section in re.findall(r'<section>.*?</section>', text, re.S):  # each table says what it is of
        assert said in section or '<table' not in section or 'Not run' in section, section[:200]


def test_one_seed_and_fewer_experiments(tmp_path):
    "What the paper's own scale has; and a scale that was made smaller is judged by what is left of it"
    made = without_results(tmp_path)
    out = made / 'outputs' / SCALE
    runs = [folder.name for folder in (out / 'runs').iterdir() if folder.name.endswith('-s0')]
    for folder in list((out / 'runs').iterdir()):
        if folder.name not in runs:
            shutil.rmtree(folder)
    for name in 'alignment', 'curvature', 'landscape', 'diversity':
        for file in out.glob(f'frames/{name}*.csv'):  # each has rows of several seeds
            file.unlink()
    done = papermill(made, 'paper', 'one.ipynb', scale=SCALE)
    assert done.returncode == 0, done.stderr[-2000:]
    claims = pd.read_csv(made / 'outputs' / SCALE / 'tables' / 'claims.csv').set_index('key')
    assert (claims.verdict[['C6a', 'C7']] == 'not run').all() and claims.seeds['C1b'] == '1, 1'
    assert claims.verdict['C1'] == 'not complete' and np.isnan(
        claims.estimate['C1']
    )  # it declares five seeds
    of_one = claims[claims.seeds.str.contains('1')]
    assert set(of_one.verdict) <= {'one network', 'not testable here', 'not complete'} and len(of_one) > 5
    counted = claims.verdict[['C2c', 'C2d']]
    assert set(counted) <= {'supported', 'contradicted', 'not testable here'}


def test_what_cannot_be_read_is_said(tmp_path):
    for f in ('settings.ini',):
        shutil.copy(ROOT / f, tmp_path / f)
    (tmp_path / 'nbs').mkdir()
    shutil.copy(ROOT / 'nbs' / 'paper.ipynb', tmp_path / 'nbs' / 'paper.ipynb')
    done = papermill(tmp_path, 'paper', scale='nowhere')
    assert done.returncode and "scale='nowhere': expected one with finished runs" in done.stderr
    with pytest.raises(ParameterError, match='scale=None: expected one with records'):
        latest_scale(tmp_path)


def test_a_scale_whose_claims_are_not_complete_is_not_the_latest(tmp_path):
    "All ten runs of mid's main claim but one have records, then that one too"
    (tmp_path / 'nbs').mkdir()
    shutil.copytree(ROOT / 'nbs' / 'scales', tmp_path / 'nbs' / 'scales')
    outputs = tmp_path / 'outputs'
    declared = read_scale(ROOT / 'nbs' / 'scales' / 'mid.yaml').asked['declared']['claims']
    rows = {row for claim in declared.values() for row in claim['rows']}
    runs = [run for run in scale_runs(read_scale(ROOT / 'nbs' / 'scales' / 'mid.yaml'))]
    for run in ['mid', 'digits']:
        (outputs / run / 'records').mkdir(parents=True)
    (outputs / 'digits' / 'records' / 'white_box-x.parquet').touch()
    of_claims = [run for run in runs if any(f'-{row}-s' in run for row in rows)]
    for run in of_claims[1:]:
        (outputs / 'mid' / 'records' / f'white_box-{run}.parquet').touch()
    assert latest_scale(outputs) == 'digits'
    (outputs / 'mid' / 'records' / f'white_box-{of_claims[0]}.parquet').touch()
    assert latest_scale(outputs) == 'mid'
