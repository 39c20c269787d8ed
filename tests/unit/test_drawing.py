"Pictures from the committed frames of the digits: the columns that each needs, and how it is drawn"

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from helpers import ROOT

from adt_repro.analysis.plots import (
    draw_alignment,
    draw_curvature,
    draw_frontier,
    draw_hinge,
    draw_landscape,
    draw_options,
    draw_spread,
)
from adt_repro.analysis.style import save_figure
from adt_repro.base.parameters import ParameterError

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
    assert [t.get_text() for t in bare.axes[0].get_legend().texts] == ['natural accuracy', 'robust accuracy']
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


def texts_of(figure):
    "All that can be read in a figure"
    figure.canvas.draw()
    return [text for text in figure.findobj(plt.Text) if text.get_text().strip() and text.get_visible()]


@pytest.mark.parametrize('name', ['landscape', 'alignment', 'curvature', 'diversity_measures'])
def test_every_text_can_be_read(name):
    "None is smaller than 7 points"
    figure = DRAWN[name][1](recorded(name), 'said')
    assert min(text.get_fontsize() for text in texts_of(figure)) >= 7
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
