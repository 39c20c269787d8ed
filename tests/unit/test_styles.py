"The colour and the marker of each method: one list, the same in every figure"

from itertools import combinations

from helpers import ROOT

from adt_repro.analysis.style import COLORS, METHOD_ROWS, row_styles, run_styles
from adt_repro.paper.claims import PUBLISHED_ROWS
from adt_repro.runs.config import METHOD_NAMES

LABELS = 'at_pgd_tuned', 'at_pgd (tuned)', 'adt_exp_am_wide', 'adt_exp_one_draw', 'adt_imp_am_wide'


def pairs(styles):
    return [(style['color'], style['marker']) for style in styles.values()]


def test_every_row_has_a_style_of_its_own():
    "All methods, all published rows, and labels that no list knows"
    assert METHOD_ROWS[: len(METHOD_NAMES)] == METHOD_NAMES
    assert set(PUBLISHED_ROWS) <= set(METHOD_ROWS)
    styles = row_styles([*METHOD_ROWS, *LABELS])
    assert [*styles] == [*METHOD_ROWS, *LABELS]
    assert len(set(pairs(styles))) == len(styles)
    assert {color for color, _ in pairs(styles)} <= set(COLORS)


def test_a_style_does_not_depend_on_the_figure():
    whole = row_styles([*METHOD_ROWS, *LABELS])
    for rows in combinations([*METHOD_ROWS[:4], *LABELS[:3]], 2):
        assert row_styles(reversed(rows)) == {row: whole[row] for row in rows}


def test_names_that_meet_still_differ():
    "A hundred labels share 57 places by their names: each gets another"
    styles = row_styles(f'row {k}' for k in range(100))
    assert len(set(pairs(styles))) == 100
    assert not set(pairs(styles)) & set(pairs(row_styles(METHOD_ROWS)))


def test_committed_runs_have_the_style_of_their_row():
    for folder in sorted((ROOT / 'outputs').glob('*/runs/*-s[0-9]')):
        (style,) = run_styles([folder.name]).values()
        row = folder.name.rpartition('-s')[0].split('-')[-1]
        assert style == row_styles([row])[row], folder.name
