"The results pages: one for each committed scale, and what they show is what records, frames and tables say"

import json
import re
from functools import cache
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT
from scipy import stats

from adt_repro.paper.evidence import TABLE1
from adt_repro.paper.report import COLUMNS, claims_table, frame_markdown
from adt_repro.paper.summaries import headline
from adt_repro.planning.costs import step_costs
from adt_repro.runs.scales import load_scale

OUTPUTS = ROOT / 'outputs'
SCALES = ['cpu', 'digits', 'gpu']


@cache
def shown(name):
    "Cell id to its outputs: a list of MIME bundles"
    page = json.loads((ROOT / 'nbs' / 'results' / f'{name}.ipynb').read_text('utf-8'))
    found = {}
    for cell in page['cells']:
        found[cell['id']] = [output['data'] for output in cell.get('outputs', []) if 'data' in output]
    return found


def markdown_rows(data):
    "The rows of the Markdown tables in outputs, as lists of texts without backticks"
    lines = '\n'.join(''.join(bundle.get('text/markdown', '')) for bundle in data).splitlines()
    rows = [
        [cell.strip().strip('`') for cell in line.strip('|').split('|')] for line in lines if line[:1] == '|'
    ]
    return [row for row in rows if set(row[0]) != {'-'}]


class Table(HTMLParser):
    "The cells of a table that pandas wrote, row by row"

    def __init__(self):
        super().__init__()
        self.rows, self.in_cell = [], False

    def handle_starttag(self, tag, attrs):
        if tag == 'tr':
            self.rows.append([])
        self.in_cell = tag in ('th', 'td')
        if self.in_cell:
            self.rows[-1].append('')

    def handle_endtag(self, tag):
        self.in_cell = False

    def handle_data(self, data):
        if self.in_cell:
            self.rows[-1][-1] += data.strip()


def frame_of(name, cell):
    "A data frame that a page shows, as texts; its index is the first column"
    reader = Table()
    reader.feed(''.join(shown(name)[cell][-1]['text/html']))
    heads, *rows = [row for row in reader.rows if any(row)]
    rows = [row for row in rows if len(row) == len(heads) and any(row[1:])]
    return pd.DataFrame([row[1:] for row in rows], columns=heads[1:], index=[row[0] for row in rows])


def estimate(text):
    "The first number of a text"
    return float(re.match(r'[+-]?\d+(\.\d+)?', text)[0])


@pytest.mark.parametrize('scale', SCALES)
def test_a_committed_scale_has_a_page(scale):
    assert (OUTPUTS / scale / 'report.html').exists()
    assert len(shown(scale)) > 15
    committed = {folder.parent.name for folder in OUTPUTS.glob('*/report.html')}
    assert committed <= set(SCALES) | {'mid', 'paper'}


@pytest.mark.parametrize('scale', SCALES)
def test_table1_of_a_page_is_the_committed_one(scale):
    table = pd.read_csv(OUTPUTS / scale / 'tables' / 'table1.csv')
    table = table[table.verdict != 'not run'].set_index(['row', 'column'])
    heads, *rows = markdown_rows(shown(scale)['table'])
    assert heads[2:] == COLUMNS and {row[0] for row in rows} == set(table.index.get_level_values('row'))
    for row, networks, *cells in rows:
        assert int(networks.split(' to ')[-1]) == table.seeds[row].max()
        for column, cell in zip(COLUMNS, cells, strict=True):
            assert abs(estimate(cell) - table.accuracy[row, column]) <= 0.0501, (row, column)


@pytest.mark.parametrize('scale', SCALES)
def test_claims_of_a_page_are_the_committed_ones(scale):
    committed = pd.read_csv(OUTPUTS / scale / 'tables' / 'claims.csv').set_index('key')
    rows = [row for row in markdown_rows(shown(scale)['claims']) if row[0]]
    assert {row[0] for row in rows} == set(committed.index[committed.verdict != 'not run'])
    for key, _, size, published, _, word, gate, why in rows:
        assert word.startswith(committed.verdict[key])
        assert gate == (committed.conditions[key] if isinstance(committed.conditions[key], str) else '–')
        remark = committed.remark[key] if isinstance(committed.remark[key], str) else ''
        reason = '' if word.startswith('not testable') else committed.why[key]
        assert why == ' '.join(f'{text.rstrip(".")}.' for text in (reason, remark) if text) or why == '–'
        assert size == '–' or abs(estimate(size) - committed.estimate[key]) <= 0.00501
        assert published == '–' or abs(estimate(published) - committed.published[key]) <= 0.00501


def test_the_first_thing_on_a_page_is_the_main_claim():
    for scale in SCALES:
        main = headline(scale)
        key, _, size, _, of, word, gate, why = markdown_rows(shown(scale)['answer'])[1]
        assert gate.startswith('gate ') and (gate.startswith('gate not measured') or 'at least 0.85' in gate)
        assert 'without the premise that the loss bends' in why
        assert key == 'C1' and abs(estimate(size) - main['estimate']) <= 0.00501
        assert word.startswith(main['verdict']) and of.endswith(f'{main["n"]:,}')
        assert of.startswith(', '.join(map(str, main['seeds'])))


@pytest.mark.parametrize('name', [*SCALES, 'mid', 'benchmark'])
def test_no_tag_is_shown_as_text(name):
    for cell, data in shown(name).items():
        html = ''.join(''.join(bundle.get('text/html', '')) for bundle in data)
        assert not re.search('&lt;/?(p|b|table|ul|li|small|span)\\b', html), cell


def test_text_with_a_bar_stays_in_its_cell():
    assert frame_markdown(pd.DataFrame(dict(a=['x|y\nz']))).splitlines()[-1] == '| 0 | x\\|y z |'
    judged = pd.read_csv(OUTPUTS / 'gpu' / 'tables' / 'claims.csv', keep_default_na=False)
    assert not (claims_table(judged[judged.verdict == 'not run'])).size


# Numbers counted otherwise


def test_first_images_of_cpu():
    "How many of 100 images are right under Table 1, AutoAttack, SPSA and Square: a loop over images"

    def standing(rows, attacks):
        wrong = set()
        for row in rows.itertuples():
            if row.i < 100 and row.attack in attacks and row.attacked and row.pred != row.y:
                wrong.add(row.i)
        return 100 - len(wrong)

    page, found = frame_of('cpu', 'first-images'), 0
    for file in sorted(OUTPUTS.glob('cpu/records/white_box-*-s0.parquet')):
        run = file.stem.removeprefix('white_box-')
        rows, asked = pd.read_parquet(file), pd.read_parquet(file.with_name(f'spsa-{run}.parquet'))
        line = page.loc[f'{run.split("-")[2]} s0']
        assert int(line['PGD-20']) == standing(rows, ['pgd20'])
        assert int(line['A_rob']) == standing(rows, TABLE1)
        assert int(line['A_rob and AutoAttack']) == standing(rows, [*TABLE1, 'autoattack'])
        for attack in 'spsa256', 'square':
            assert int(line[attack]) == standing(asked, [attack])
        found += 1
    assert found == len(page) == 10


@pytest.mark.parametrize('scale', ['cpu', 'digits'])
def test_gates(scale):
    "Shares counted from the frames: of the distribution and of one FGSM step"
    page = frame_of(scale, 'gates')
    for row, line in page.iterrows():
        frames = [pd.read_csv(file) for file in OUTPUTS.glob(f'{scale}/frames/gain-*-{row}-s?.csv')]
        assert int(line.networks) == len(frames)
        for cell, column in (line['share'], 'expected'), (line['one FGSM step'], 'fgsm'):
            means = [(f[column] - f.clean).mean() / (f.pgd20 - f.clean).mean() for f in frames]
            assert abs(float(cell) - np.mean(means)) <= 0.00501
    assert page.gate['adt_exp'] == ('met, and so by one step' if scale == 'cpu' else 'not met')


def test_power_of_the_main_claim():
    steps = pd.read_csv(OUTPUTS / 'cpu' / 'tables' / 'power_steps.csv').set_index('plan')
    page = frame_of('cpu', 'power')
    assert list(page.index) == list(steps.index) and len(page) == 5
    for plan, line in page.iterrows():
        assert abs(estimate(line['power, %']) - 100 * steps.power[plan]) <= 0.0501
        assert int(line.seeds) == steps.seeds[plan] and int(line.images) == steps.images[plan]
    assert estimate(page['power, %'].iloc[0]) < 50 < estimate(page['power, %'].iloc[-1])


@pytest.mark.parametrize('scale', ['cpu', 'digits'])
def test_claims_are_planned_at_the_level_at_which_they_are_tested(scale):
    tables = OUTPUTS / scale / 'tables'
    claims, plan = (pd.read_csv(tables / f'{name}.csv').set_index('key') for name in ('claims', 'power'))
    tested = claims.index[claims.p_adjusted.notna()].drop('C1', errors='ignore')
    assert plan.alpha['C1'] == 0.025 and set(plan.index) <= set(claims.index)
    for key, alpha in plan.alpha.drop('C1').items():
        assert np.isclose(alpha, 0.025 / (len(tested) + (key not in tested)), rtol=1e-5), key
        if key in tested:
            assert np.isclose(claims.p_adjusted[key], min(1, claims.p[key] * 0.025 / alpha), rtol=1e-4)


def test_each_claim_is_priced_by_what_it_is_measured_by():
    "One more seed of each row at cpu: trained, and measured on the claim's images; from the table of costs"
    steps = step_costs(load_scale(ROOT / 'nbs' / 'scales' / 'cpu.yaml'))
    each = (steps.hours / steps.jobs).groupby([steps.experiment, steps.what]).sum()
    images = steps.groupby(['experiment', 'what']).images.first()
    parts = dict(C6a='landscape {}, curvature', C7='landscape {}, alignment', C11a='transfer {}')
    parts |= dict(C11b='spsa {}', C12='diversity {}')
    plan = pd.read_csv(OUTPUTS / 'cpu' / 'tables' / 'power.csv').set_index('key')
    for key, part in parts.items():
        hours = 0
        for row in ['adt_exp'] if key in ('C7', 'C12') else ['adt_exp', 'at_pgd']:
            measured = tuple(part.format(row).split(' ', 1))
            hours += each['train', row] + each['watch', row]
            hours += plan.n[key] * each[measured] / images[measured]
        assert np.isclose(plan.hours_of_a_seed[key], hours, rtol=1e-4), key


def test_momentum_of_cpu():
    "By scipy's interval"
    frame = pd.read_csv(OUTPUTS / 'cpu' / 'frames' / 'ablation.csv').query("option == 'inner_momentum'")
    wide = frame.pivot(index='seed', columns='value', values='robust')
    gap = 100 * (wide[1] - wide[0])
    lo, hi = stats.t.interval(0.95, len(gap) - 1, gap.mean(), gap.std() / len(gap) ** 0.5)
    line = frame_of('cpu', 'momentum-gap').iloc[0]
    assert int(line.seeds) == len(gap) == 5
    assert np.allclose(line[['mean', 'lo', 'hi']].astype(float), [gap.mean(), lo, hi], atol=0.0501)


def test_training_time_of_cpu():
    page = frame_of('cpu', 'costs')
    for row in 'adt_exp', 'at_pgd', 'adt_exp_am':
        run = json.loads((OUTPUTS / 'cpu' / 'runs' / f'cifar10-small_cnn-{row}-s0' / 'run.json').read_text())
        assert abs(int(page.seconds[row]) - run['seconds']) <= 0.5
    assert int(page['network passes']['adt_exp']) == 1 + 1 + 7 * 2 * 5 + 1
    assert int(page['network passes']['at_pgd']) == 1 + 1 + 7 * 2 + 1


@pytest.mark.parametrize('scale', ['cpu', 'digits'])
def test_transfer(scale):
    page = frame_of(scale, 'transfer')
    table = pd.read_csv(OUTPUTS / scale / 'tables' / 'transfer.csv')
    table = table[table.attack == 'pgd20']
    for run in table.run.unique():
        of_run = table[table.run == run]
        own, other = of_run[of_run.source == run], of_run[of_run.source != run]
        cells = page.loc[f'{run.split("-")[2]} s0'].tolist()
        assert cells[0] == 'pgd20' and abs(float(cells[1]) - 100 * own.accuracy.item()) <= 0.0551
        assert abs(float(cells[2]) - 100 * other.accuracy.min()) <= 0.0551


def test_queries_of_digits():
    page = frame_of('digits', 'queries')
    for file in OUTPUTS.glob('digits/tables/spsa-*.csv'):
        table = pd.read_csv(file)
        line = page.loc[f'{file.stem.split("-")[3]} s0']
        for row in table.itertuples():
            assert np.isclose(float(line[row.attack]), 100 * row.accuracy) and int(line.images) == row.n


@pytest.mark.parametrize('scale, mark', [('cpu', ''), ('digits', ''), ('gpu', '_bf16')])
def test_sanity_checks(scale, mark):
    page = frame_of(scale, 'checks')
    frames = [pd.read_csv(file) for file in OUTPUTS.glob(f'{scale}/frames/soundness{mark}-*.csv')]
    checks = pd.concat(frames)
    assert page.checks.astype(int).sum() == len(checks)
    assert page.passed.astype(int).sum() == checks.passed.sum()
    assert page.networks.astype(int).sum() == len(frames)
    square = checks[checks.check.str.contains('Square')]
    for row, line in page.iterrows():
        of_row = square[square.run.str.contains(f'-{row}-s')]
        margin = float(line['Square finds more']) - float(line.limit)
        assert abs(margin - 100 * (of_row.value - of_row.limit).max()) <= 0.101


def test_every_method_on_digits():
    page = frame_of('digits', 'every')
    table = pd.read_csv(OUTPUTS / 'digits' / 'tables' / 'digits_seeds.csv')
    assert len(page) == len(table[['method', 'recipe']].drop_duplicates())
    for (method, recipe, attack), rows in table.groupby(['method', 'recipe', 'attack']):
        name = method if recipe == 'paper2020' else f'{method} ({recipe})'
        percent = 100 * rows.correct / rows.n
        half = stats.t.ppf(0.975, len(percent) - 1) * percent.std() / len(percent) ** 0.5
        assert page[attack][name] == f'{percent.mean():.1f} ± {half:.1f}'


def test_weights_of_the_entropy_on_digits():
    frame = pd.read_csv(OUTPUTS / 'digits' / 'frames' / 'ablation.csv').query("option == 'lbd'")
    heads, *rows = markdown_rows(shown('digits')['entropy'])
    assert len(rows) == frame.value.nunique() and heads[0] == 'lbd'
    for value, seeds, entropy, natural, robust in rows:
        of_value = frame[np.isclose(frame.value, float(value))]
        assert int(seeds) == len(of_value)
        assert abs(float(entropy) - of_value.entropy.mean()) <= 0.00501
        for cell, column in (natural, of_value.natural), (robust, of_value.robust):
            assert abs(estimate(cell) - 100 * column.mean()) <= 0.0501


@pytest.mark.parametrize('scale', ['cpu', 'digits'])
def test_curvature_and_spread(scale):
    page, frames = frame_of(scale, 'curvature'), OUTPUTS / scale / 'frames'
    curvature = pd.read_csv(frames / 'curvature.csv')
    for label, line in page.iterrows():
        of_run = curvature[curvature.run.str.endswith('-' + label.replace(' ', '-'))]
        assert int(line.images) == len(of_run)
        assert abs(float(line.iloc[1]) - of_run.eigenvalue.median()) <= 0.000501
    page, spread = frame_of(scale, 'spread'), pd.read_csv(frames / 'diversity_measures.csv')
    for label, line in page.iterrows():
        of_run = spread[spread.run.str.endswith('-' + label.replace(' ', '-'))]
        for kind, cell in zip(('distribution', 'restarts'), line.iloc[1:], strict=True):
            assert abs(float(cell) - of_run.variance[of_run.kind == kind].mean()) <= 0.000501


def test_low_precision_of_gpu():
    "The page shows just those comparisons in which the two precisions differ"
    beside = pd.concat(map(pd.read_csv, OUTPUTS.glob('gpu/tables/white_box_bf16_vs_fp32-*.csv')))
    differs = beside[beside['felled by bf16 only'] + beside['felled by fp32 only'] > 0]
    page = frame_of('gpu', 'precision')
    cells = [line.tolist() for _, line in page.iterrows() if line.iloc[0] in set(beside.attack)]
    assert [cell[0] for cell in cells] == list(differs.attack)
    assert len(cells) == 1 and int(cells[0][1]) == differs.n.item()


def test_ratios_of_the_benchmark():
    "Each ratio with its range stands in a file of outputs/benchmark"
    rows = pd.concat(map(pd.read_csv, OUTPUTS.glob('benchmark/*.csv')))
    known = {f'{r["median"]:.2f} [{r["least"]:.2f}, {r["most"]:.2f}]' for _, r in rows.iterrows()}
    texts = ''.join(
        ''.join(data.get('text/html', '')) for cell in shown('benchmark').values() for data in cell
    )
    told = set(re.findall(r'\d+\.\d\d \[\d+\.\d\d, \d+\.\d\d\]', texts))
    assert len(told) >= 10 and not told - known


# Scale mid, which is not complete


def mid_cells(*ids, scale='mid'):
    "The cells of the page with these ids, for another scale if so asked"
    nb = json.loads((ROOT / 'nbs' / 'results' / 'mid.ipynb').read_text('utf-8'))
    sources = {cell['id']: ''.join(cell['source']) for cell in nb['cells']}
    found = [sources[name] for name in ids]
    cells = [text.replace("'mid'", f"'{scale}'").replace("'mid.yaml'", f"'{scale}.yaml'") for text in found]
    assert "/ 'nbs' / 'scales' / '" + scale + ".yaml'" in cells[0] and f"read_results('{scale}'" in cells[0]
    return cells


def streamed(cell):
    nb = json.loads((ROOT / 'nbs' / 'results' / 'mid.ipynb').read_text('utf-8'))
    of_cell = next(found for found in nb['cells'] if found['id'] == cell)
    return ''.join(''.join(output.get('text', '')) for output in of_cell['outputs'])


def test_the_bend_of_mid_is_counted_from_its_records():
    "FGSM minus PGD-20 by a loop over the records of at_pgd; the interval lies around it"
    gaps = []
    for file in sorted((OUTPUTS / 'mid' / 'records').glob('white_box-*-at_pgd-s*.parquet')):
        rows = pd.read_parquet(file)
        right = {
            attack: set(rows.i[(rows.attack == attack) & (rows.pred == rows.y)])
            for attack in ('fgsm', 'pgd20')
        }
        gaps.append(100 * (len(right['fgsm']) - len(right['pgd20'])) / rows.i.nunique())
    asked = load_scale(ROOT / 'nbs' / 'scales' / 'mid.yaml')['experiments']
    declared = asked['declared']['claims']['C1']['seeds']
    line = next(line for line in streamed('bend').splitlines() if 'the loss bends' in line)
    gap, lo, hi = map(float, re.search(r'([\d.]+) \[([\d.]+), ([\d.]+)\] points', line).groups())
    assert abs(gap - np.mean(gaps)) <= 0.0501 and lo < gap < hi
    if len(gaps) < declared:
        assert line.startswith('premise not measured: the loss bends, ')
        assert f', {len(gaps)} of {declared} declared networks of at_pgd, so far ' in line
    else:
        assert line.startswith('premise met' if np.mean(gaps) >= 3 else 'premise not met')


def test_the_networks_of_mid_are_those_of_its_tables():
    "Each accuracy is the mean over the committed tables of a row's networks; nothing else has a number"
    found = frame_of('mid', 'networks')
    tables = pd.concat(map(pd.read_csv, sorted((OUTPUTS / 'mid' / 'tables').glob('white_box-*.csv'))))
    tables = tables.assign(row=tables.run.str.extract(r'-([a-z_]+)-s\d+$', expand=False))
    assert set(found.index) == set(tables.row)
    for row, of_row in tables.groupby('row'):
        assert int(found.networks[row]) == of_row.run.nunique()
        for attack in 'natural', 'fgsm', 'pgd20', 'feature':
            mean = 100 * of_row.accuracy[of_row.attack == attack].mean()
            assert abs(estimate(found[attack][row]) - mean) <= 0.0501
        assert (found.loc[row, ['mim', 'cw', 'pgd100']] == '–').all()


@pytest.mark.parametrize('scale', ['mid', 'cpu'])
def test_the_page_of_mid_shows_a_claim_when_it_is_complete(scale):
    "Complete ones only; the same cells for cpu, whose declared claims are complete, show its committed words"
    displayed, names = [], {}
    for source in mid_cells('imports', 'declared', 'results', scale=scale):
        exec(source, names)
        names['display'] = lambda shown: displayed.append(shown.data)
    rows = markdown_rows([{'text/markdown': '\n'.join(displayed)}])
    committed = pd.read_csv(OUTPUTS / 'cpu' / 'tables' / 'claims.csv').set_index('key')
    assert {row[0] for row in rows if row[0]} == set(names['complete'].key)
    if scale == 'mid':
        return
    assert {'C1', 'C13'} <= set(names['complete'].key)
    for key, _, size, _, _, word, *_ in (row for row in rows if row[0]):
        assert word.startswith(committed.verdict[key])
        assert abs(estimate(size) - committed.estimate[key]) <= 0.00501
