"Pictures from the committed frames of the digits: the columns that each needs, and how it is drawn"

import itertools
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from helpers import ROOT, cells_of

from adt_repro.analysis.plots import (
    draw_alignment,
    draw_curvature,
    draw_frontier,
    draw_hinge,
    draw_landscape,
    draw_options,
    draw_spread,
)
from adt_repro.analysis.readable import figure_faults
from adt_repro.analysis.result_plots import (
    draw_accuracies,
    draw_overheads,
    draw_power,
    draw_queries,
    draw_seeds,
    draw_speeds,
    draw_spsa_samples,
    draw_training,
    draw_transfer,
    draw_unique_kills,
    recorded_sums,
    transfer_grids,
)
from adt_repro.analysis.sample_plots import draw_map, draw_plane, draw_samples
from adt_repro.analysis.style import save_figure, subplot_grid
from adt_repro.base.parameters import ParameterError
from adt_repro.paper.claims import judge_paper, paper_claims, published_table1
from adt_repro.paper.drawings import draw_claims, draw_table1
from adt_repro.paper.evidence import read_evidence
from adt_repro.paper.report import paper_settings, table1_cells

ABLATION = 'option value method seed natural robust expected_loss entropy'
DRAWN = dict(
    landscape=('run image a b loss', draw_landscape),
    alignment=('run i cloud attack cosine', draw_alignment),
    curvature=('run i eigenvalue converged', draw_curvature),
    diversity_measures=('run i kind cosine distance variance wrong', draw_spread),
    ablation_frontier=(ABLATION, draw_frontier),
    ablation_options=(ABLATION, draw_options),
    ablation_hinge=('u_max seed epoch U', lambda frame, said: draw_hinge(frame, recorded('ablation'), said)),
)


RUNS = 'digits-small_cnn-at_pgd-s0', 'digits-small_cnn-adt_exp-s0'

OTHER_STYLE = {
    'axes.labelsize': 20,
    'ytick.labelsize': 20,
    'lines.linewidth': 5,
    'axes.spines.top': True,
    'figure.dpi': 50,
    'svg.hashsalt': None,
}


def aligned():
    "Cosines with three clouds, of two runs, from a known process"
    random = np.random.default_rng(0)
    rows = itertools.product(RUNS, range(6), ('own', 'other_image', 'restarts'), ('fgsm', 'cw'))
    frame = pd.DataFrame(rows, columns=['run', 'i', 'cloud', 'attack'])
    return frame.assign(cosine=random.uniform(-1, 1, len(frame)))


def recorded(name):
    if name == 'alignment':
        return aligned()
    frame = pd.read_csv(ROOT / 'outputs' / 'digits' / 'frames' / f'{name}.csv')
    if name == 'landscape':
        return frame[frame.run.isin(frame.run.unique()[-2:])]  # two of six runs, for the sake of time
    return frame


@pytest.mark.parametrize('name', DRAWN)
def test_a_frame_and_its_file_give_the_same_picture(name, tmp_path):
    frame, draw = recorded(name), DRAWN[name][1]
    numbers = frame.select_dtypes('float')
    finer = frame.assign(**(numbers * (1 + 1e-9)))  # as it was before it was written with six digits
    assert not finer.equals(frame)
    made = save_figure(draw(finer, 'said'), tmp_path / 'measured', name, finer)
    with plt.rc_context(OTHER_STYLE):
        read = pd.read_csv(made[2])
        again = save_figure(draw(read, 'said'), tmp_path / 'read', name, read)
    plt.close('all')
    assert [f.read_bytes() for f in made] == [f.read_bytes() for f in again]


def test_other_numbers_give_another_picture(tmp_path):
    frame = recorded('ablation_hinge')
    one, other = (
        save_figure(draw_hinge(f, recorded('ablation'), 'said'), tmp_path / str(k), 'ablation_hinge', f)
        for k, f in enumerate((frame, frame.assign(U=frame.U * 1.01)))
    )
    plt.close('all')
    assert all(a.read_bytes() != b.read_bytes() for a, b in zip(one, other, strict=True))


def test_the_whole_ablation_gives_the_pictures_of_its_parts(tmp_path):
    for name in 'ablation_frontier', 'ablation_options':
        whole, part = (
            save_figure(DRAWN[name][1](recorded(f), 'said'), tmp_path / f, name, recorded(name))
            for f in ('ablation', name)
        )
        assert [f.read_bytes() for f in whole] == [f.read_bytes() for f in part]
    plt.close('all')


@pytest.mark.parametrize('name', DRAWN)
def test_a_frame_without_its_columns_is_refused(name):
    (columns, draw), frame = DRAWN[name], recorded(name)
    for column in columns.split():
        with pytest.raises(ParameterError) as said:
            draw(frame.drop(columns=column), '')
        assert str(said.value).endswith(f'not there: {column}') and '\n' not in str(said.value)
    with pytest.raises(ParameterError, match='at least one row'):
        draw(frame[:0], '')
    assert not plt.get_fignums()  # refused before anything is drawn


def test_an_ablation_without_the_sweep_is_refused():
    results, hinge = recorded('ablation'), recorded('ablation_hinge')
    for option, draw in dict(
        lbd=draw_frontier, u_max=lambda rows, said: draw_hinge(hinge, rows, said)
    ).items():
        with pytest.raises(ParameterError, match=f'one of the options {option}$'):
            draw(results[results.option != option], '')
    with pytest.raises(ParameterError, match='one of the options n_mc, inner_steps'):
        draw_options(results[results.option == 'lbd'], '')
    bare = draw_frontier(
        results[results.option == 'lbd'], ''
    )  # without its two ends there is still a frontier
    assert not any('trained by' in text.get_text() for text in bare.legends[0].texts)
    plt.close(bare)


def test_a_landscape_with_its_median_below():
    "The panel has the frame's lines, one name for each row, and its columns are asked for"
    surface = recorded('landscape')
    seeds = [*surface.run.unique(), surface.run.iloc[0].replace('-s0', '-s1')]
    line = surface[(surface.b == 0) & (surface.run == seeds[0])]
    along = pd.concat([line.assign(run=run, median=line.loss * k, n=100) for k, run in enumerate(seeds, 1)])
    figure = draw_landscape(surface, 'said', along=along)
    below = next(ax for ax in figure.axes if 'median' in ax.get_ylabel())
    for drawn, (_, rows) in zip(below.lines, along.groupby('run', sort=False), strict=True):
        assert np.allclose(drawn.get_ydata(), rows['median'], rtol=1e-5)
    assert len(below.get_legend().texts) == 3  # two rows, and the ball
    for column in 'run', 'a', 'median', 'n':
        with pytest.raises(ParameterError, match=f'along=.*not there: {column}$'):
            draw_landscape(surface, 'said', along=along.drop(columns=column))
    plt.close('all')


@pytest.mark.parametrize('scale', ['cpu', 'digits'])
@pytest.mark.parametrize('name', DRAWN)
def test_a_figure_of_committed_numbers_can_be_read(name, scale):
    "At the width of a page: texts, legends, axes, colour bars; no panel is empty"
    file = ROOT / 'outputs' / scale / 'frames' / f'{name}.csv'
    if name == 'ablation_hinge' or not file.exists():
        frame = recorded(name)
    else:
        frame = pd.read_csv(file)
    figure = DRAWN[name][1](frame, 'said')
    assert figure_faults(figure) == []
    plt.close('all')


@pytest.mark.parametrize('scale', ['cpu', 'digits', 'gpu'])
def test_table1_and_claims_can_be_read(scale):
    evidence, paper = read_evidence(ROOT / 'outputs' / scale), published_table1()
    cells, claims = table1_cells(evidence, paper, paper_settings()), paper_claims(paper, e=evidence)
    assert figure_faults(draw_table1(cells, paper, 'said')) == []
    assert figure_faults(draw_claims(judge_paper(evidence, paper), claims)) == []
    plt.close('all')


def sums_of_white_box():
    return recorded_sums(sorted((ROOT / 'outputs/cpu/tables').glob('white_box-*-s?.csv')))


def accuracies_by_seed():
    sums = sums_of_white_box()
    sums['row'] = sums.run.str.extract('_cnn-(.*)-s[0-9]+$')[0]
    return sums[sums.groupby('row').run.transform('nunique') > 1]


def kills():
    runs = ['digits-small_cnn-at_pgd-s0', 'digits-small_cnn-adt_exp-s0', 'digits-small_cnn-alp-s0']
    return pd.DataFrame(np.arange(15).reshape(3, 5), runs, ['fgsm', 'pgd20', 'mim', 'cw', 'pgd100'])


def curves_of(n):
    "Accuracy against queries of so many runs"
    curve = pd.DataFrame(
        dict(queries=[1, 10, 500], accuracy=[0.9, 0.5, 0.2], lo=[0.8, 0.4, 0.1], hi=[1, 0.6, 0.3])
    )
    return {
        (f'digits-small_cnn-row{k}-s0', attack): curve for k in range(n) for attack in ('spsa64', 'square')
    }


def spsa_sums():
    sums = recorded_sums(sorted((ROOT / 'outputs/cpu/tables').glob('spsa-*.csv')))
    more = sums[sums.attack == 'spsa256'].assign(attack='spsa512')
    return pd.concat([sums, more])


def overheads():
    rows = pd.read_csv(ROOT / 'outputs/benchmark/two_cores.csv')
    return rows[rows.measure == 'step / bare passes']


def clouds_of(*runs):
    random = np.random.default_rng(0)
    keys = list(itertools.product(runs, ('distribution', 'restarts')))
    pictures = {key: random.uniform(-1, 1, (8, 5, 5)) for key in keys}
    widths = {key: picture.std(0) for key, picture in pictures.items()}
    return pictures, dict.fromkeys(keys, ['airplane', 'automobile'] * 4), widths, 'airplane', 'said'


def histories_of(n):
    "Three seeds of each of n / 3 rows, all of the same two epochs"
    names = [f'cifar10-half_wrn-10-4-method_{k // 3}-s{k % 3}' for k in range(n)]
    watched = pd.DataFrame(dict(epoch=[1, 2], natural=[0.4, 0.6], pgd20=[0.2, 0.3]))
    return dict.fromkeys(names, watched)


def of_scale(scale, name):
    return pd.read_csv(ROOT / 'outputs' / scale / 'frames' / f'{name}.csv')


def planes(scale):
    points = of_scale(scale, 'landscape_plane')
    line = np.linspace(-1.4, 1.4, 31)
    ground = line, np.add.outer(line, 0.1 * line)
    return points, dict.fromkeys(points.run.unique(), ground), 'said'


def shares_of(points):
    return dict.fromkeys(points.run.unique(), dict(distribution=0.2, restarts=100.0))


FIGURES = dict(  # of the notebooks, drawn without running one
    white_box=lambda: draw_accuracies(sums_of_white_box(), 'said'),
    kills=lambda: draw_unique_kills(kills(), kills() + 5, 100),
    kills_none=lambda: draw_unique_kills(0 * kills(), kills(), 100),
    transfer=lambda: draw_transfer(
        transfer_grids(recorded_sums([ROOT / 'outputs/cpu/tables/transfer.csv']), ['pgd20', 'mim']), 'said'
    ),
    samples=lambda: draw_spsa_samples(spsa_sums(), [256, 512], 100, 'said'),
    seeds=lambda: draw_seeds(accuracies_by_seed(), 'said', ['natural', 'pgd20', 'cw', 'rob']),
    training=lambda: draw_training(histories_of(27), 'said'),
    power=lambda: draw_power(of_scale('cpu', 'power'), 0.8, 1.1, 'points', 'said'),
    power_unknown=lambda: draw_power(of_scale('cpu', 'power'), 0.8, np.nan, 'points', 'said'),
    overheads=lambda: draw_overheads(overheads(), 'said'),
    speeds=lambda: draw_speeds(pd.DataFrame(dict(adt_repro=[9.0, 10, 8], foolbox=[5.0, 6, 7])), 'said'),
    pictures=lambda: draw_samples(
        *clouds_of('digits-small_cnn-adt_exp-s0', 'digits-small_cnn-adt_imp_am-s0')
    ),
    landscape_along=lambda: draw_landscape(
        of_scale('cpu', 'landscape'), 'said', 8 / 255, of_scale('cpu', 'landscape_along')
    ),
)
FIGURES |= {
    f'queries of {n}': partial(lambda n: draw_queries(curves_of(n), RATES, 'said'), n) for n in range(1, 7)
}
FIGURES |= {f'plane, {s}': partial(lambda s: draw_plane(*planes(s)), s) for s in ('cpu', 'digits')}
FIGURES |= {
    f'map, {s}': partial(lambda p: draw_map(p, shares_of(p), 'said'), of_scale(s, 'diversity_map'))
    for s in ('cpu', 'digits')
}
RATES = {f'digits-small_cnn-row{k}-s0': 0.3 for k in range(6)}


@pytest.mark.parametrize('name', FIGURES)
def test_a_figure_of_a_notebook_can_be_read(name):
    assert figure_faults(FIGURES[name]()) == []
    plt.close('all')


def test_figures_of_notebooks_are_drawn_by_the_library():
    "No experiment draws on its own, so that the tests above see every figure"
    pages = [p for p in (ROOT / 'nbs').glob('*.ipynb') if p.stem not in ('index', 'train', 'paper')]
    assert len(pages) >= 10
    for page in pages:
        for place, code in cells_of(page):
            assert 'pyplot' not in code and 'subplot_grid' not in code, place


# What `figure_faults` finds


def good_figure():
    "Two kinds of mark with a legend, and an image with a colour bar"
    figure, (left, right) = subplot_grid(1, 2, (7, 3))
    left.plot([1, 2], [1, 2], 'o', color='black', label='ours')
    left.errorbar([1, 2], [2, 1], [0.1, 0.1], fmt='s', color='red', capsize=2, label='theirs')
    left.axhline(0, color='0.5')
    left.set(xlabel='epoch', ylabel='loss, nats')
    left.legend()
    right.set(xticks=[], yticks=[])
    image = right.imshow([[0, 1], [2, 3]])
    figure.colorbar(image, label='loss, nats')
    return figure, left, right, image


def test_a_good_figure_has_no_faults():
    figure, *_ = good_figure()
    assert figure_faults(figure) == []
    assert figure_faults(figure, width=3) != []  # shown smaller, its texts are
    plt.close('all')


def small_text(figure, left, right, image):
    left.set_title('small', fontsize=7)


def wide(figure, left, right, image):
    figure.set_size_inches(14, 3)


def text_outside(figure, left, right, image):
    figure.text(0.95, 0.5, 'a text that goes on and on').set_in_layout(False)


def two_texts(figure, left, right, image):
    for words in 'one', 'other':
        left.text(1.5, 1.5, words)


def no_legend(figure, left, right, image):
    left.get_legend().remove()


def unnamed_mark(figure, left, right, image):
    left.plot([1, 2], [1, 1], '^', color='blue')


def unnamed_line(figure, left, right, image):
    left.axvline(1.5, color='green', marker='')


def unnamed_span(figure, left, right, image):
    left.axvspan(1.2, 1.4, color='green')


def hollow_mark(figure, left, right, image):
    left.plot([1, 2], [1, 1], 'o', color='black', mfc='none')


def same_look(figure, left, right, image):
    left.plot([1, 2], [1, 1], 'o', color='black', label='a third')
    left.legend()


def no_x_name(figure, left, right, image):
    left.set_xlabel('')


def no_y_name(figure, left, right, image):
    left.set_ylabel('')


def no_unit(figure, left, right, image):
    left.set_ylabel('loss')


def empty_panel(figure, left, right, image):
    figure.add_subplot().set(xticks=[], yticks=[])


def hidden_panel(figure, left, right, image):
    figure.add_subplot().set_axis_off()


def no_colour_bar(figure, left, right, image):
    right.imshow([[0, 1], [2, 3]], cmap='Greys')


FAULTS = {
    small_text: 'text of 7.0 points',
    wide: 'text of',
    text_outside: 'outside of the figure',
    two_texts: 'over each other',
    no_legend: 'no legend',
    unnamed_mark: 'no legend',
    unnamed_line: 'no legend',
    unnamed_span: 'no legend',
    hollow_mark: 'no legend',
    same_look: 'names for',
    no_x_name: 'x axis has no name',
    no_y_name: 'y axis has no name',
    no_unit: 'no unit',
    empty_panel: 'is empty',
    hidden_panel: 'is empty',
    no_colour_bar: 'without a colour bar',
}


@pytest.mark.parametrize('spoil', FAULTS, ids=lambda spoil: spoil.__name__)
def test_a_spoilt_figure_fails_its_rule(spoil):
    figure, *parts = good_figure()
    spoil(figure, *parts)
    assert any(FAULTS[spoil] in line for line in figure_faults(figure)), figure_faults(figure)
    plt.close('all')


def test_seeds_of_a_row_look_alike_and_rows_do_not():
    "In the figure of the curvature, with a second seed of each row"
    rows = recorded('curvature')
    second = rows.assign(run=rows.run.str.replace('-s0', '-s1'), eigenvalue=rows.eigenvalue * 1.1)
    figure = draw_curvature(pd.concat([rows, second]), 'said')
    marks = [line for line in figure.axes[0].lines if line.get_marker() not in ('', 'None')]
    looks = [(mark.get_color(), mark.get_marker()) for mark in marks]
    assert len(looks) == 12 and looks[:6] == looks[6:] and len(set(looks)) == 6
    plt.close('all')


def test_no_interval_leaves_what_it_is_about():
    "Cosines near 1: the interval of Student would pass 1"
    frame = aligned()
    near = frame.assign(cosine=np.where(frame.i == 0, 0.5, 0.999))
    figure = draw_alignment(near, 'said')
    for ax in figure.axes:
        for container in ax.containers:
            ends = np.array(container.lines[2][0].get_segments())
            assert ends[..., 0].max() == 1
    plt.close('all')


def test_a_file_does_not_follow_the_last_bit_of_a_layout(tmp_path):
    "Layouts are solved in another order in another process, so their last bits vary; ids must not"
    frame, files = pd.DataFrame(dict(x=[0.0, 1.0])), []
    for shift in 0.0, 1e-13:
        figure, axes = plt.subplots(1, 2)
        for ax in axes:
            left, *rest = ax.get_position().bounds
            ax.set_position([left + shift, *rest])
            ax.plot(frame.x, frame.x)
        files.append(save_figure(figure, tmp_path / str(shift), 'lines', frame)[0].read_bytes())
        plt.close(figure)
    assert files[0] == files[1] and files[0].count(b'<clipPath id=') == 2
    assert files[0].count(b'url(#clip0)') and files[0].count(b'url(#clip1)')
