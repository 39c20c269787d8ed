"landscape, diversity and ablation as their users run them: what they leave, resume and refuse"

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT, papermill, papermill_command, small_project

from adt_repro.analysis.plots import (
    draw_coverage,
    draw_curvature,
    draw_frontier,
    draw_hinge,
    draw_landscape,
    draw_options,
    draw_spread,
)
from adt_repro.analysis.style import save_figure
from adt_repro.base.parameters import ParameterError
from adt_repro.data import load_data
from adt_repro.runs.store import load_run

NOTEBOOKS = 'landscape', 'diversity', 'ablation'
QUICK = dict(
    train=True,
    scale='quick',
    lbd=[0, 10],
    n_mc=[],
    inner_steps=[],
    inner_momentum=[0, 1],
    rho=[],
    u_max=[0.9],
    seeds=2,
    epochs=1,
    n_train=100,
    n_test=40,
    draws=3,
)


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    return small_project(tmp_path_factory.mktemp('project'), *NOTEBOOKS)


def figures(folder):
    return (
        {f.stem for f in folder.glob('figures/*.svg')}
        & {f.stem for f in folder.glob('figures/*.png')}
        & {f.stem for f in folder.glob('frames/*.csv')}
    )


def test_landscape_leaves_figures_and_their_numbers(project):
    done = papermill(project, 'landscape', grid=5, n_images=3, n_samples=20, n_curvature=8, image=2)
    assert done.returncode == 0, done.stderr
    tiny = project / 'outputs' / 'tiny'
    assert figures(tiny) == {'landscape', 'landscape_plane', 'coverage', 'curvature'}
    surface, data = pd.read_csv(tiny / 'frames' / 'landscape.csv'), load_data('digits')
    for name, rows in surface.groupby(
        'run'
    ):  # the origin is the clean loss of a plain forward pass, and the grid goes to ten times ε
        model, _ = load_run(tiny / 'runs' / name)
        with torch.no_grad():
            clean = torch.nn.functional.cross_entropy(model(data.x_test[2:3]), data.y_test[2:3]).item()
        assert (
            np.isclose(rows[(rows.a == 0) & (rows.b == 0)].loss.item(), clean, rtol=1e-4, atol=1e-6)
            and len(rows) == 25
            and rows.a.max() == 10
        )
    coverage = pd.read_csv(tiny / 'frames' / 'coverage.csv')
    assert (
        coverage.groupby(['run', 'cloud', 'attack']).size() == 3
    ).all() and coverage.cloud.nunique() == coverage.attack.nunique() == 5
    assert len(pd.read_csv(tiny / 'frames' / 'curvature.csv')) == 3 * 8
    before = {f: f.stat().st_mtime_ns for f in tiny.glob('records/parts/*')}
    numbers = {f.name: f.read_bytes() for f in tiny.glob('frames/*.csv')}
    pictures = {f.name: f.read_bytes() for f in tiny.glob('figures/*')}
    again = papermill(project, 'landscape', grid=5, n_images=3, n_samples=20, n_curvature=8, image=2)
    assert (
        again.returncode == 0
        and before
        and {f: f.stat().st_mtime_ns for f in tiny.glob('records/parts/*')} == before
    )
    assert {
        f.name: f.read_bytes() for f in tiny.glob('frames/*.csv')
    } == numbers  # and the same bytes come out
    assert {f.name: f.read_bytes() for f in tiny.glob('figures/*')} == pictures


def test_diversity_leaves_figures_and_their_numbers(project):
    done = papermill(
        project,
        'diversity',
        n_images=3,
        n_samples=10,
        runs=['*adt_exp-s0'] if (project / 'outputs' / 'tiny' / 'runs').exists() else None,
    )
    assert done.returncode == 0, done.stderr
    tiny = project / 'outputs' / 'tiny'
    assert {f for f in figures(tiny) if f.startswith('diversity')} == {
        f'diversity_{k}' for k in ('samples', 'measures', 'classes', 'map')
    }
    rows, seen = (
        pd.read_csv(tiny / 'frames' / 'diversity_measures.csv'),
        pd.read_csv(tiny / 'frames' / 'diversity_classes.csv'),
    )
    assert (
        set(rows.kind) == {'distribution', 'restarts'}
        and (rows.groupby(['run', 'kind']).size() == 3).all()
        and rows.cosine.between(-1, 1).all()
        and rows.distance.between(0, 2.01).all()
    )
    assert np.allclose(seen.groupby(['run', 'kind']).share.sum(), 1)


def test_ablation_goes_on_where_it_was_killed(project):
    quick, runs = project / 'outputs' / 'quick', project / 'outputs' / 'quick' / 'ablation' / 'runs'
    with open(project / 'killed.log', 'w') as log:
        process = subprocess.Popen(
            papermill_command('ablation', 'killed.ipynb', **QUICK),
            cwd=project,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    begin = time.monotonic()
    while (
        len(list(runs.glob('*/run.json'))) < 2 and time.monotonic() - begin < 120 and process.poll() is None
    ):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    made = {f: f.stat().st_mtime_ns for f in runs.glob('*/run.json')}
    assert len(made) >= 2, (project / 'killed.log').read_text()
    done = papermill(project, 'ablation', **QUICK)
    assert done.returncode == 0, done.stderr
    assert {f: f.stat().st_mtime_ns for f in made} == made  # what was finished is left alone
    assert len(list(runs.glob('*/run.json'))) == 2 * 7 and {
        'ablation_frontier',
        'ablation_options',
        'ablation_hinge',
    } == figures(quick)
    results = pd.read_csv(quick / 'frames' / 'ablation.csv')
    assert (
        len(results) == 2 * (2 + 2 + 1 + 2)
        and results.seed.nunique() == 2
        and (results.robust <= results.natural + 1e-9).all()
    )
    assert results[results.option == 'inner_momentum'].groupby('value').run.first()[1].endswith('base-s0')
    entropy = results[results.option == 'lbd'].groupby('value').entropy.mean()
    assert (
        entropy[0] < entropy[10] < np.log(2)
        and results[results.method == 'noise'].entropy.sub(np.log(2)).abs().max() < 1e-5
    )


@pytest.mark.parametrize(
    'notebook, params, line',
    [
        ('landscape', dict(grid=4), 'grid=4: expected an odd whole number'),
        ('diversity', dict(runs=['nothing-*']), "runs='nothing-*': expected"),
        ('ablation', dict(train=True, rho=[-30]), 'rho=-30: expected'),
        (
            'ablation',
            dict(scale='absent'),
            'train=False: expected true, since outputs/absent/frames/ablation.csv is not there yet',
        ),
    ],
)
def test_one_line_for_what_cannot_be_used(project, notebook, params, line):
    before = sorted(project.glob('outputs/*/*'))
    done = papermill(project, notebook, **params)
    assert (
        done.returncode == 1
        and line in done.stderr
        and 'Traceback' not in done.stderr.split('ParameterError')[-1]
        and sorted(project.glob('outputs/*/*')) == before
    )


# Drawn from the committed frames of the digits: the columns that each picture needs, and how it is drawn

ABLATION = 'option value method seed natural robust expected_loss entropy'
DRAWN = dict(
    landscape=('run a b loss', draw_landscape),
    coverage=('run i cloud attack pixels features marginal', draw_coverage),
    curvature=('run i eigenvalue converged', draw_curvature),
    diversity_measures=('run i kind cosine distance variance wrong', draw_spread),
    ablation_frontier=(ABLATION, draw_frontier),
    ablation_options=(ABLATION, draw_options),
    ablation_hinge=('u_max seed epoch U', lambda frame, said: draw_hinge(frame, recorded('ablation'), said)),
)


def recorded(name):
    frame = pd.read_csv(ROOT / 'outputs' / 'digits' / 'frames' / f'{name}.csv')
    return (
        frame[frame.run.isin(frame.run.unique()[-2:])] if name in ('landscape', 'coverage') else frame
    )  # two of six runs, for the sake of time


@pytest.mark.parametrize('name', DRAWN)
def test_a_frame_and_its_file_give_the_same_picture(name, tmp_path):
    frame, draw = recorded(name), DRAWN[name][1]
    finer = frame.assign(
        **{k: frame[k] * (1 + 1e-9) for k in frame.select_dtypes('float')}
    )  # as it was before it was written with six digits
    made = save_figure(draw(finer, 'said'), tmp_path / 'measured', name, finer)
    with plt.rc_context(
        {
            'axes.labelsize': 20,
            'ytick.labelsize': 20,
            'lines.linewidth': 5,
            'axes.spines.top': True,
            'figure.dpi': 50,
            'svg.hashsalt': None,
        }
    ):
        again = save_figure(draw(pd.read_csv(made[2]), 'said'), tmp_path / 'read', name, pd.read_csv(made[2]))
    plt.close('all')
    assert not finer.equals(frame) and [f.read_bytes() for f in made] == [f.read_bytes() for f in again]


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


LONG = """
from adt_repro.runs.config import RULES
from adt_repro.runs.resolve import resolve
from adt_repro.runs.sweeps import finish_runs
if __name__ == '__main__':
    blank = dict.fromkeys(RULES) | dict(
        method='adt_exp', dataset='digits', recipe='paper2020', device='cpu', scale='long', epochs=1000
    )
    list(finish_runs([resolve(blank | dict(seed=s)) for s in range(3)], 'outputs', jobs=2))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc').is_dir(), reason='looks for processes in /proc')
def test_workers_end_with_their_parent(project):
    (project / 'long.py').write_text(LONG)
    process = subprocess.Popen([sys.executable, 'long.py'], cwd=project)

    def children():
        stats = {p.name: p / 'stat' for p in Path('/proc').glob('[0-9]*')}
        parents = {pid: f.read_text().rsplit(')', 1)[1].split()[1] for pid, f in stats.items() if f.exists()}
        return [int(pid) for pid, parent in parents.items() if parent == str(process.pid)]

    begin = time.monotonic()
    while (
        len(list(project.glob('outputs/long/runs/*/checkpoint.pt'))) < 2
        and time.monotonic() - begin < 120
        and process.poll() is None
    ):
        time.sleep(0.1)
    workers = children()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(workers) >= 2
    begin = time.monotonic()
    while any(Path(f'/proc/{p}').is_dir() for p in workers) and time.monotonic() - begin < 20:
        time.sleep(0.1)
    assert not [p for p in workers if Path(f'/proc/{p}').is_dir()]
