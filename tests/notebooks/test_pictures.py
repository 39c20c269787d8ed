"landscape, diversity and ablation as their users run them: what they leave, repeat and refuse"

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import figures_of, papermill, small_project

from adt_repro.data import load_data
from adt_repro.runs.store import load_run

NOTEBOOKS = 'landscape', 'diversity', 'ablation'


@pytest.fixture(scope='module')
def project(tmp_path_factory, give_tiny_runs):
    root = small_project(tmp_path_factory.mktemp('project'), *NOTEBOOKS)
    give_tiny_runs(root, 'at_pgd', 'adt_exp')  # the third run of landscape, of `standard`, is trained
    return root


MEASURED = ['alignment', 'curvature', 'landscape_along', 'diversity_measures']
PICTURED = ['landscape', 'landscape_plane', 'diversity_samples', 'diversity_map']
LANDSCAPE = dict(grid=5, n_images=3, n_samples=20, n_curvature=8, image=2)


def times_of(files):
    return {file: file.stat().st_mtime_ns for file in files}


def test_landscape_leaves_figures_and_their_numbers(project):
    done = papermill(project, 'landscape', **LANDSCAPE)
    assert done.returncode == 0, done.stderr
    tiny = project / 'outputs' / 'tiny'
    assert figures_of(tiny) == {'landscape', 'landscape_plane', 'alignment', 'curvature'}
    surface, data = pd.read_csv(tiny / 'frames' / 'landscape.csv'), load_data('digits')
    assert surface.run.nunique() == 3
    for name, rows in surface.groupby('run'):
        # the origin is the clean loss of a plain forward pass, and the grid goes to ten times ε
        model, _ = load_run(tiny / 'runs' / name)
        with torch.no_grad():
            logits, labels = model(data.x_test[2:5]), data.y_test[2:5]
            clean = torch.nn.functional.cross_entropy(logits, labels, reduction='none')
        origin = rows[(rows.a == 0) & (rows.b == 0)]
        assert origin.image.tolist() == [2, 3, 4]
        assert np.allclose(origin.loss, clean, rtol=1e-4, atol=1e-6)
        assert len(rows) == 3 * 25 and rows.a.max() == 10
    along = pd.read_csv(tiny / 'frames' / 'landscape_along.csv')
    assert along.run.nunique() == 3 and len(along) == 3 * 5 and (along.n == 8).all()
    for name, rows in along.groupby('run'):
        model, _ = load_run(tiny / 'runs' / name)
        with torch.no_grad():
            clean = torch.nn.functional.cross_entropy(
                model(data.x_test[:8]), data.y_test[:8], reduction='none'
            )
        assert np.isclose(rows[rows.a == 0]['median'].item(), clean.median().item(), rtol=1e-4, atol=1e-6)
    aligned = pd.read_csv(tiny / 'frames' / 'alignment.csv')
    assert list(aligned) == ['run', 'i', 'cloud', 'attack', 'cosine']
    assert (aligned.groupby(['run', 'cloud', 'attack']).size() == 3).all()
    assert set(aligned.cloud) == {'own', 'other_image', 'restarts'} and aligned.attack.nunique() == 5
    plane = pd.read_csv(tiny / 'frames' / 'landscape_plane.csv')
    assert (plane.groupby(['run', 'what']).size().unstack()['draw'] == 20).all()  # all that are drawn
    assert len(pd.read_csv(tiny / 'frames' / 'curvature.csv')) == 3 * 8

    parts = times_of(tiny.glob('records/parts/*/*'))
    made = {f: f.read_bytes() for kind in ('frames/*.csv', 'figures/*') for f in tiny.glob(kind)}
    again = papermill(project, 'landscape', **LANDSCAPE)
    assert again.returncode == 0, again.stderr
    assert parts and times_of(tiny.glob('records/parts/*/*')) == parts
    for kind in 'frames/*.csv', 'figures/*':
        for f in tiny.glob(kind):
            assert f.read_bytes() == made.pop(f), f  # the same bytes come out
    assert not made


def test_diversity_leaves_figures_and_their_numbers(project):
    done = papermill(project, 'diversity', scale='tiny', n_images=3, n_samples=10, runs=['*adt_exp-s0'])
    assert done.returncode == 0, done.stderr
    tiny = project / 'outputs' / 'tiny'
    wanted = {f'diversity_{k}' for k in ('samples', 'measures', 'map')}
    assert {f for f in figures_of(tiny) if f.startswith('diversity')} == wanted
    rows = pd.read_csv(tiny / 'frames' / 'diversity_measures.csv')
    assert set(rows.kind) == {'distribution', 'restarts'}
    assert (rows.groupby(['run', 'kind']).size() == 3).all()
    assert rows.cosine.between(-1, 1).all() and rows.distance.between(0, 2.01).all()
    points = pd.read_csv(tiny / 'frames' / 'diversity_map.csv')
    assert points.groupby('kind').size().to_dict() == dict(distribution=10, restarts=5)  # five made the map
    assert not list(tiny.glob('*/diversity_classes.*'))


def test_many_seeds_are_measured_and_one_of_each_row_is_pictured(project, give_tiny_runs):
    give_tiny_runs(project, 'at_pgd', 'adt_exp', scale='seeds', seeds=(0, 1))
    out = project / 'outputs' / 'seeds'
    done = papermill(project, 'landscape', scale='seeds', **LANDSCAPE)
    assert done.returncode == 0, done.stderr
    done = papermill(project, 'diversity', scale='seeds', n_images=3, n_samples=8)
    assert done.returncode == 0, done.stderr
    runs = {name: set(pd.read_csv(out / 'frames' / f'{name}.csv').run) for name in MEASURED + PICTURED}
    first = {f'digits-small_cnn-{method}-s0' for method in ('at_pgd', 'adt_exp')}
    for name in MEASURED:
        assert runs[name] == first | {run.replace('-s0', '-s1') for run in first}, name
    for name in PICTURED:
        assert runs[name] == first, name


@pytest.mark.parametrize(
    'notebook, params, line',
    [
        ('landscape', dict(grid=4), 'grid=4: expected an odd whole number'),
        ('diversity', dict(scale='tiny', runs=['nothing-*']), "runs='nothing-*': expected"),
        ('ablation', dict(train=True, rho=[-30]), 'rho=[-30]: expected'),
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
    assert done.returncode == 1 and line in done.stderr
    assert 'Traceback' not in done.stderr.split('ParameterError')[-1]
    assert sorted(project.glob('outputs/*/*')) == before
