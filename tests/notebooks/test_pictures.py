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


LANDSCAPE = dict(grid=5, n_images=3, n_samples=20, n_curvature=8, image=2)


def times_of(files):
    return {file: file.stat().st_mtime_ns for file in files}


def test_landscape_leaves_figures_and_their_numbers(project):
    done = papermill(project, 'landscape', **LANDSCAPE)
    assert done.returncode == 0, done.stderr
    tiny = project / 'outputs' / 'tiny'
    assert figures_of(tiny) == {'landscape', 'landscape_plane', 'coverage', 'curvature'}
    surface, data = pd.read_csv(tiny / 'frames' / 'landscape.csv'), load_data('digits')
    assert surface.run.nunique() == 3
    for name, rows in surface.groupby('run'):
        # the origin is the clean loss of a plain forward pass, and the grid goes to ten times ε
        model, _ = load_run(tiny / 'runs' / name)
        with torch.no_grad():
            clean = torch.nn.functional.cross_entropy(model(data.x_test[2:3]), data.y_test[2:3]).item()
        origin = rows[(rows.a == 0) & (rows.b == 0)].loss.item()
        assert np.isclose(origin, clean, rtol=1e-4, atol=1e-6)
        assert len(rows) == 25 and rows.a.max() == 10
    coverage = pd.read_csv(tiny / 'frames' / 'coverage.csv')
    assert (coverage.groupby(['run', 'cloud', 'attack']).size() == 3).all()
    assert coverage.cloud.nunique() == coverage.attack.nunique() == 5
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
    done = papermill(project, 'diversity', n_images=3, n_samples=10, runs=['*adt_exp-s0'])
    assert done.returncode == 0, done.stderr
    tiny = project / 'outputs' / 'tiny'
    wanted = {f'diversity_{k}' for k in ('samples', 'measures', 'classes', 'map')}
    assert {f for f in figures_of(tiny) if f.startswith('diversity')} == wanted
    rows = pd.read_csv(tiny / 'frames' / 'diversity_measures.csv')
    assert set(rows.kind) == {'distribution', 'restarts'}
    assert (rows.groupby(['run', 'kind']).size() == 3).all()
    assert rows.cosine.between(-1, 1).all() and rows.distance.between(0, 2.01).all()
    seen = pd.read_csv(tiny / 'frames' / 'diversity_classes.csv')
    assert np.allclose(seen.groupby(['run', 'kind']).share.sum(), 1)


@pytest.mark.parametrize(
    'notebook, params, line',
    [
        ('landscape', dict(grid=4), 'grid=4: expected an odd whole number'),
        ('diversity', dict(runs=['nothing-*']), "runs='nothing-*': expected"),
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
