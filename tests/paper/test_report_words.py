"What the report says and draws: a look and a meaning for each word, one style a row, an axis a claim"

import math
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from adt_repro.analysis.style import COLORS
from adt_repro.paper.claims import COLUMNS, PUBLISHED_ROWS, published_table1
from adt_repro.paper.drawings import draw_claims, draw_table1
from adt_repro.paper.evidence import Evidence
from adt_repro.paper.report import (
    CELL_MEANINGS,
    MEANINGS,
    VERDICTS,
    claims_html,
    claims_table,
    frame_markdown,
    legend_html,
    lost_to_attacks,
    scale_line,
    setting_line,
    table1_html,
    table1_markdown,
)
from adt_repro.paper.verdicts import WORDS, Claim, cell_verdict, judge
from adt_repro.runs.config import METHOD_NAMES

LABELS = 'at_pgd_tuned', 'adt_exp_am_wide', 'at_pgd (tuned)', 'adt_exp_no_entropy'
PROBE = '<script>x("1")</script>|<img src=x>'


@pytest.fixture(autouse=True)
def no_open_figures():
    yield
    plt.close('all')


# Words


@pytest.mark.parametrize('word', WORDS)
def test_every_word_has_a_look_and_a_meaning(word):
    look = VERDICTS[word]
    assert look.sign and look.color in COLORS and MEANINGS[word]
    assert look.tint or word == 'not run'
    legend = legend_html([word])
    assert MEANINGS[word] in legend and legend.count('<li>') == 1


def luminance(color):
    "Relative luminance of WCAG"
    rgb = np.array(to_rgb(color))
    return np.where(rgb <= 0.03928, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


def test_words_can_be_read_on_their_ground():
    "Dark letters on a light ground, 7 to 1 and more, whatever the page's theme; and no two grounds are the same"
    tints = [look.tint for look in VERDICTS.values() if look.tint]
    assert len(set(tints)) == len(tints)
    for tint in tints:
        assert (luminance(tint) + 0.05) / (luminance('#111111') + 0.05) > 7, tint


def test_every_word_of_a_cell_has_a_meaning():
    "The words that `cell_verdict` gives, over one seed and many, near and far, compared and not"
    rng = np.random.default_rng(0)
    words = set()
    for seeds in 1, 6:
        for percent in 50, 53, 60:
            right = rng.random((seeds, 4000)) < percent / 100
            words |= {cell_verdict(right, 50.0, same=same)['verdict'] for same in (True, False)}
            words.add(cell_verdict(right, None, same=False)['verdict'])
    words.add(cell_verdict(None, 50.0, same=True)['verdict'])
    assert words == set(CELL_MEANINGS)


# Claims as text


def constructed(**changes):
    "A row of `judge`'s frame"
    row = dict(
        key='C1',
        claim='ADT_EXP is more robust than AT_PGD',
        source='Table 1',
        statistic='A_rob, adt_exp − at_pgd',
        unit='points',
        estimate=-0.16,
        lo=-1.24,
        hi=0.92,
        published=2.3,
        published_source='Table 1',
        seeds='5',
        n=10000,
        p=0.6,
        p_adjusted=0.6,
        conditions='gate met: inner problem of adt_exp',
        verdict='smaller than published',
        why='interval [-1.24, 0.92] covers 0 and excludes the published 2.3',
        remark='',
    )
    return row | changes


def test_the_columns_are_those_of_judge():
    claim = Claim('C1', 'a', (0, math.inf), primary=True)
    assert list(judge([claim], {}).columns) == list(constructed())


def test_the_main_claim_stands_first_and_apart():
    rows = [constructed(key=key) for key in ('C0', 'C1', 'C2a')]
    page = claims_html(pd.DataFrame(rows), 'said', ['C1'])
    bodies = re.findall('<tbody>.*?</tbody>', page)
    assert [re.findall('<td>(C[0-9]a?)</td>', body) for body in bodies] == [['C1'], ['C0', 'C2a']]
    assert all('rowgroup' in body for body in bodies)
    assert 'rowgroup' not in claims_html(pd.DataFrame(rows), 'said')


@pytest.mark.parametrize('word', WORDS)
def test_a_word_stands_beside_what_it_follows_from(word):
    page = claims_html(pd.DataFrame([constructed(verdict=word, why='the reason')]), 'said')
    for text in '-0.16 ± 1.08 points', '+2.30 (Table 1)', '5 × 10,000', 'gate met', word, 'the reason':
        assert text in page, text


@pytest.mark.parametrize('made', [claims_html, lambda judged, _: frame_markdown(claims_table(judged))])
def test_a_remark_stands_beside_the_reason(made):
    row = constructed(why='the reason', remark='What a reader must know.')
    text = made(pd.DataFrame([row]), 'said')
    assert text.index('the reason') < text.index('What a reader must know.')
    assert 'What a reader must know.' in made(pd.DataFrame([row | dict(verdict='not testable here')]), 'said')


def test_text_of_a_claim_stays_text():
    texts = dict.fromkeys(
        'key claim source statistic unit published_source conditions why remark'.split(), PROBE
    )
    rows = pd.DataFrame([constructed(**texts)])
    page = claims_html(rows, PROBE, [PROBE])
    assert '<script' not in page and '<img' not in page and page.count('&lt;script&gt;') >= 8


def claims_lines(rows):
    "The claims as a results page shows them: a line each, after the head and a rule"
    return frame_markdown(claims_table(pd.DataFrame(rows))).splitlines()


def test_a_number_that_is_counted_has_no_interval():
    counted = constructed(estimate=-0.54, lo=-0.54, hi=-0.54, unit='log₁₀', seeds='0', n=0)
    line = claims_lines([counted])[-1]
    assert '| -0.540 log₁₀, counted |' in line and '±' not in line and '| – |' in line


def test_the_table_says_why_there_is_no_verdict():
    gates = 'gate met: inner problem of a, 0.9, at least 0.85; premise not met: the loss bends, 0.8 points'
    rows = [
        constructed(verdict='one network', why='against: interval [1, 2], images only, lies outside'),
        constructed(verdict='not testable here', conditions=gates, why='...'),
        constructed(key='C9', verdict='not run'),
    ]
    lines = claims_lines(rows)
    assert '| one network, against | gate met: inner problem of adt_exp | against: interval [1' in lines[2]
    assert lines[3].endswith(f'| not testable here (not met: the loss bends) | {gates} | – |')
    assert len(lines) == 4  # no line for a claim that was not run


@pytest.mark.parametrize('made', [claims_html, lambda judged, _: frame_markdown(claims_table(judged))])
@pytest.mark.parametrize('attacks', ['without FeaAttack', 'under fgsm, pgd20, mim, cw, pgd100'])
def test_attacks_that_are_not_those_of_table1_stand_beside_both_numbers(attacks, made):
    "Five attacks on all images beside the published six; and nothing of it where the attacks are the same"
    ours, published = f'-0.16 ± 1.08 points, A_rob {attacks}', '+2.30 (Table 1, of all its attacks)'
    for statistic in f'A_rob {attacks}, adt_exp − at_pgd', f'PGD-20 − A_rob {attacks}, adt_exp − at_pgd':
        text = made(pd.DataFrame([constructed(statistic=statistic)]), 'said')
        assert ours in text and published in text
    for statistic in (
        'A_rob, adt_exp − at_pgd',
        'PGD-20 − A_rob, adt_exp − at_pgd',
        'PGD-20 − half of FGSM, a',
    ):
        text = made(pd.DataFrame([constructed(statistic=statistic)]), 'said')
        assert 'points, A_rob' not in text and '+2.30 (Table 1)' in text


def test_the_table_says_that_a_gate_was_not_measured():
    unknown = 'gate not measured: inner problem of adt_exp, no frames/gain'
    both = f'{unknown}; premise not met: the loss bends, 0.8 points'
    rows = [
        constructed(verdict='not testable here', conditions=unknown, why='...'),
        constructed(verdict='not testable here', conditions=both, why='...'),
        constructed(verdict='one network', conditions=unknown, why='against: interval'),
        constructed(verdict='supported', conditions=unknown),
        constructed(verdict='supported', conditions=unknown.replace('gate', 'premise')),
        constructed(verdict='supported'),
    ]
    words = [line.split(' | ')[5] for line in claims_lines(rows)[2:]]
    assert words == [
        'not testable here (gate not measured)',
        'not testable here (not met: the loss bends)',
        'one network, against (gate not measured)',
        'supported (gate not measured)',
        'supported (premise not measured)',
        'supported',
    ]


def test_nothing_is_shown_of_a_claim_that_is_not_complete():
    nan = math.nan
    early = constructed(verdict='not complete', why='3 of 5 seeds', estimate=nan, lo=nan, hi=nan)
    line = claims_lines([early])[-1]
    assert '| – |' in line and '| not complete (3 of 5 seeds) |' in line


# Table 1


def cells_of(rows, seeds):
    "Cells as of `table1_cells`: rows that were run, each with its number of seeds"
    paper, cells = published_table1(), []
    for row in dict.fromkeys([*paper.index, *rows]):
        for column in COLUMNS:
            ran = row in rows
            cell = dict(
                row=row, column=column, same=False, why='', n=1000 * ran, seeds=seeds.get(row, 1) * ran
            )
            cell |= dict(accuracy=50.0 if ran else math.nan, lo=45.0, hi=55.0)
            cell |= dict(published=float(paper[column][row]) if row in paper.index else math.nan)
            cells.append(cell | dict(verdict='other scale' if ran else 'not run'))
    return pd.DataFrame(cells)


def test_captions_are_true_of_one_network_and_of_several():
    one = cells_of(['at_pgd', 'adt_exp'], {})
    mixed = cells_of(['at_pgd', 'adt_exp'], dict(adt_exp=3))
    many = cells_of(['at_pgd', 'adt_exp'], dict(adt_exp=3, at_pgd=3))
    lines = dict(
        one='± 95 %, one network each: interval over images only;',
        mixed='± 95 %, intervals over seeds and images, or over images only in rows with one network;',
        many='± 95 %, intervals over seeds and images;',
    )
    for name, cells in dict(one=one, mixed=mixed, many=many).items():
        for text in table1_html(cells, 'said'), table1_markdown(cells, 'said'):
            assert [k for k, line in lines.items() if line in text] == [name]
    page = table1_html(mixed, 'said')
    assert page.count('1 network: images only') == page.count('3 networks') == 1
    assert page.count('; the interval covers image sampling only') == len(COLUMNS)
    assert '| `adt_exp` | 3 |' in table1_markdown(mixed, 'said')


def test_seeds_and_images_are_those_that_were_judged():
    "Five networks trained of each row, two and three of them attacked; a black box met more images"
    fields = dict(dataset='digits', arch='small_cnn', eps=0.1, epochs=3, n_train=500.0)
    runs = pd.DataFrame([dict(row=row, seed=s) | fields for row in ('at_pgd', 'adt_exp') for s in range(5)])
    shapes = {('at_pgd', 'rob'): (2, 30), ('adt_exp', 'rob'): (3, 40), ('adt_exp', 'spsa'): (4, 90)}
    found = {key: pd.DataFrame(np.ones(shape)) for key, shape in shapes.items()}
    setting = 'digits, small_cnn, ε = 0.1, 3 epochs, 500 training images'
    assert scale_line(Evidence(runs, found)) == f'{setting}; n = 30 to 40 test images, 2 to 3 seeds'
    one = {('at_pgd', 'rob'): found['at_pgd', 'rob'].head(1)}
    assert scale_line(Evidence(runs, one)) == f'{setting}; n = 30 test images, 1 seed'
    assert setting_line(Evidence(runs, found)) == setting
    assert setting_line(Evidence(runs, one, precision='bf16')) == f'{setting}, attacks in bf16'


def test_no_two_rows_of_the_picture_look_alike():
    rows = [*METHOD_NAMES, *LABELS]
    figure = draw_table1(cells_of(rows, dict(adt_exp=3)), published_table1(), 'said')
    looks = {}
    for container in figure.axes[0].containers:
        line = container[0]
        looks[container.get_label()] = (line.get_color(), line.get_marker())
    assert set(looks) == set(rows) and len(set(looks.values())) == len(rows)
    published = {c.get_label(): c[0] for c in figure.axes[1].containers}
    assert set(published) == set(PUBLISHED_ROWS) - {'at_pgd_madry'}
    for row, line in published.items():
        assert looks[row] == (line.get_color(), line.get_marker())


def test_what_table1_itself_says_of_generalisation():
    "PGD-20 − A_rob as printed: 1.77 of AT_PGD, and 1.62, 1.91 and 2.47 of the three of ADT"
    lost = lost_to_attacks(published_table1())
    assert np.allclose(lost['lost'], [1.77, 1.62, 1.91, 2.47])
    assert np.allclose(lost['less than at_pgd'], [0, 0.15, -0.14, -0.70])
    assert list(lost.columns) == ['lost', 'less than at_pgd']  # ours, of other images by column, stand in C10


# Claims as a picture

ABOVE, BELOW = (0.0, math.inf), (-math.inf, 0.0)


def drawn(*rows, bounds=ABOVE):
    "The axes of a picture of claims; the first is the main one"
    judged = pd.DataFrame([constructed(key=f'C{k}') | row for k, row in enumerate(rows)])
    claims = [Claim(row.key, row.claim, bounds, primary=row.key == 'C0') for row in judged.itertuples()]
    return draw_claims(judged, claims).axes


def ends(ax):
    return np.array(ax.get_xlim())


def test_the_axis_of_the_main_claim_shows_interval_bound_and_published_size():
    "In units of the published effect, and no wider than a few of them, whatever else is drawn"
    narrow, other = drawn(dict(), dict(estimate=-96.0, lo=-100.0, hi=-92.0, published=math.nan))
    lo, hi = ends(narrow)
    for value in -1.24, -0.16, 0.92, 0.0, 2.3:
        assert lo < value / 2.3 < hi
    assert hi - lo < 2.5
    assert narrow.get_position().height > other.get_position().height


@pytest.mark.parametrize('wide', [5.0, 30.0, 1000.0])
def test_a_wide_interval_is_cut_with_arrows(wide):
    (ax,) = drawn(dict(estimate=0.5, lo=0.5 - wide, hi=0.5 + wide, verdict='inconclusive'))
    lo, hi = ends(ax)
    assert hi - lo < 9 and lo < 0 < 1 < hi
    markers = {line.get_marker() for line in ax.lines}
    assert ('<' in markers and '>' in markers) == (wide > 7)


def test_a_claim_with_nothing_published_has_its_own_unit():
    (ax,) = drawn(dict(published=math.nan, estimate=0.02, lo=-0.063, hi=0.104, unit='log₁₀'), bounds=BELOW)
    lo, hi = ends(ax)
    assert -0.09 < lo < -0.063 and 0.104 < hi < 0.13


def test_a_bound_beyond_the_published_effect_is_not_counted_in_it():
    "No less robust, by 2 points, where the paper lost 0.02: in points"
    (ax,) = drawn(dict(published=-0.02, estimate=0.6, lo=-0.1, hi=1.3), bounds=(-2.0, math.inf))
    lo, hi = ends(ax)
    assert -2.4 < lo < -2 and 1.3 < hi < 1.7
    assert 'points' in [text.get_text() for text in ax.texts]


def test_a_derived_effect_is_not_called_published():
    for source, called in (
        ('Table 1', '× the published 2.3'),
        ('derived from Table 1', 'derived from Table 1'),
    ):
        (ax,) = drawn(dict(published_source=source))
        texts = ' '.join(text.get_text() for text in ax.texts).partition('smaller than published')[2]
        assert called in texts and ('published' in texts) == (source == 'Table 1')


def test_every_axis_has_its_word_and_what_was_not_run_has_none():
    rows = [dict(verdict=word) for word in WORDS]
    nothing = dict.fromkeys(('estimate', 'lo', 'hi'), math.nan)
    rows = [row | (nothing if row['verdict'] == 'not complete' else {}) for row in rows]
    axes = drawn(*rows)
    assert len(axes) == len(WORDS) - 1
    for ax, word in zip(axes, WORDS, strict=False):
        assert f'{VERDICTS[word].sign} {word}' in [text.get_text() for text in ax.texts]
    assert drawn(dict(verdict='not run'))[0].lines[:] == []
