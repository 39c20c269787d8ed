"With nothing said, an experiment is about the run that was just trained; where there is none, about tiny ones"

import os
import shutil

import nbformat
import pandas as pd
import pytest
from helpers import papermill, small_project

from adt_repro.evaluation.records import load_records

EXPERIMENTS = dict(
    white_box=dict(attacks=['fgsm'], n_test=5, draws=0, sound=False),
    all_images=dict(attacks=['fgsm'], cascade=[], n_test=5),
    spsa=dict(samples=[4], steps=1, budget=5, n_test=5),
    transfer=dict(attacks=['fgsm'], n_test=5),
    landscape=dict(grid=3, n_images=2, n_samples=4, n_curvature=2, curvature_steps=2, n_targets=1),
    diversity=dict(n_images=2, n_samples=8),
)
FRAMES = dict(landscape='alignment', diversity='diversity_measures')
FIRST, LAST = 'digits-small_cnn-at_pgd-s0', 'digits-small_cnn-adt_exp-s0'


@pytest.fixture(scope='module')
def project(tmp_path_factory, give_tiny_runs):
    "Two finished runs in demo; the names of runs are in no order of time"
    root = small_project(tmp_path_factory.mktemp('project'), *EXPERIMENTS)
    give_tiny_runs(root, 'at_pgd', 'adt_exp', scale='demo')
    runs = root / 'outputs' / 'demo' / 'runs'
    for seconds, name in (1e9, FIRST), (2e9, LAST):
        os.utime(runs / name / 'run.json', (seconds, seconds))
    unfinished = shutil.copytree(runs / FIRST, runs / 'digits-small_cnn-alp-s0')
    (unfinished / 'run.json').unlink()
    return root


def first_line(notebook):
    "What an executed notebook says before anything else"
    for cell in nbformat.read(notebook, 4).cells:
        for output in cell.get('outputs', []):
            return output.text.splitlines()[0]


def judged(folder, name):
    "The runs in what an experiment has left"
    if name in FRAMES:
        return set(pd.read_csv(folder / 'frames' / f'{FRAMES[name]}.csv').run)
    return set(load_records(*folder.glob(f'records/{name}-*.parquet')).run)


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_the_run_that_was_finished_last(project, name):
    done = papermill(project, name, **EXPERIMENTS[name])
    assert done.returncode == 0, done.stderr
    assert first_line(project / 'out.ipynb').startswith(f'outputs/demo: {LAST}, the last finished run')
    assert judged(project / 'outputs' / 'demo', name) == {LAST}
    assert not (project / 'outputs' / 'tiny').exists()
    if name == 'transfer':
        rows = load_records(*(project / 'outputs' / 'demo' / 'records').glob('transfer-*.parquet'))
        assert set(rows.source) == {FIRST, LAST}


@pytest.mark.parametrize('name', ['white_box', 'transfer'])
def test_tiny_networks_where_there_is_none(tmp_path, give_tiny_runs, name):
    root = small_project(tmp_path, name)
    give_tiny_runs(root, 'standard', 'at_pgd', seeds=(0, 1) if name == 'transfer' else (0,))
    if name == 'transfer':
        give_tiny_runs(root, 'at_pgd', scale='demo')  # one alone attacks nobody
    done = papermill(root, name, **EXPERIMENTS[name])
    assert done.returncode == 0, done.stderr
    line = first_line(root / 'out.ipynb')
    assert line.startswith('outputs/demo has no') and 'outputs/tiny' in line and 'adt train adt_exp' in line
    assert judged(root / 'outputs' / 'tiny', name) == {FIRST, FIRST.replace('at_pgd', 'standard')}


def test_a_scale_means_all_of_its_runs(project):
    done = papermill(project, 'white_box', scale='demo', **EXPERIMENTS['white_box'])
    assert done.returncode == 0, done.stderr
    assert first_line(project / 'out.ipynb') == 'outputs/demo: all finished runs'
    assert set(pd.read_csv(project / 'outputs' / 'demo' / 'tables' / 'white_box.csv').run) == {FIRST, LAST}
