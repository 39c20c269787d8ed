"all_images.ipynb: a cascade on every test image, beside the same attacks without one"

import pandas as pd
import pytest
import torch
from helpers import outputs_of, papermill, small_project

from adt_repro.attacks.suite import TABLE1_ATTACKS
from adt_repro.evaluation.metrics import robust
from adt_repro.evaluation.records import SCHEMA, read_record
from adt_repro.evaluation.suite import run_suite
from adt_repro.runs.select import first_images, load_runs_and_digests

RUN = 'digits-small_cnn-at_pgd-s0'
GRADIENT_ATTACKS = [name for name in TABLE1_ATTACKS if name != 'feature']


@pytest.fixture(scope='module')
def project(tmp_path_factory, give_tiny_runs):
    project = small_project(tmp_path_factory.mktemp('project'), 'all_images')
    give_tiny_runs(project, 'at_pgd', seeds=(0,))
    return project


def test_the_cascade_changes_no_robust_accuracy(project):
    done = papermill(project, 'all_images', 'out.ipynb', scale='tiny', runs=[RUN])
    assert done.returncode == 0, done.stderr
    assert 'Traceback' not in outputs_of(project / 'out.ipynb')
    folder = project / 'outputs' / 'tiny'
    rows, weights = read_record(folder / 'records' / f'all_images-{RUN}.parquet')
    models, config, digests = load_runs_and_digests(folder, [RUN], torch.device('cpu'))
    _, x, y = first_images(config, None, torch.device('cpu'))
    assert list(rows.columns) == list(SCHEMA) and weights == digests
    assert (rows.groupby('attack').size() == len(x)).all() and len(x) == 360

    attacks = {name: TABLE1_ATTACKS[name] for name in GRADIENT_ATTACKS}
    plain = run_suite(models[RUN], x, y, attacks, run=RUN, eps=config['eps'])
    assert plain.attacked.all() and not rows.attacked.all()
    for names in ['fgsm', 'pgd20'], GRADIENT_ATTACKS:
        assert robust(rows, names).correct.item() == robust(plain, names).correct.item()
    table = pd.read_csv(folder / 'tables' / 'all_images.csv').set_index('attack')
    assert table.accuracy['worst'] == pytest.approx(robust(plain).accuracy.item(), abs=1e-4)
    assert list(table.index[table.bound]) == ['mim', 'cw', 'pgd100']


def test_what_cannot_be_used(project):
    folder = project / 'outputs' / 'tiny'
    for params, line in (
        (dict(runs=[RUN], n_test=361), 'n_test=361: expected at most 360'),
        (dict(attacks=['feature']), "attacks=['feature']: expected a list, each item fgsm, pgd20, mim"),
        (dict(runs=['nobody']), "runs='nobody': expected digits-small_cnn-at_pgd-s0"),
    ):
        before = set(folder.rglob('*'))
        done = papermill(project, 'all_images', 'bad.ipynb', scale='tiny', **params)
        assert done.returncode and line in done.stderr, (line, done.stderr[-400:])
        assert set(folder.rglob('*')) == before
