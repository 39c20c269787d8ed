"Experiments on a file of weights: white_box.ipynb, transfer.ipynb and spsa.ipynb with `weights`"

import pandas as pd
import pytest
import torch
from helpers import outputs_of, papermill, small_project

from adt_repro.attacks.gradient import pgd
from adt_repro.data import load_data
from adt_repro.evaluation.evaluate import evaluate
from adt_repro.evaluation.records import load_records
from adt_repro.runs.store import load_run

RUN = 'digits-small_cnn-at_pgd-s0'


@pytest.fixture(scope='module')
def project(tmp_path_factory, give_tiny_runs):
    root = small_project(tmp_path_factory.mktemp('project'), 'white_box', 'transfer', 'spsa')
    give_tiny_runs(root, 'at_pgd')
    net, _ = load_run(root / 'outputs' / 'tiny' / 'runs' / RUN)
    torch.save(dict(net={'module.' + k: v for k, v in net.state_dict().items()}, epoch=3), root / 'theirs.pt')
    return root


def test_white_box_of_a_file(project):
    "The same network as a run and as a file: the same rows, tables and figures, nothing of it at scale tiny"
    how = dict(attacks=['fgsm', 'pgd20'], n_test=40, draws=0, sound=False)
    done = papermill(project, 'white_box', 'white_box.ipynb', weights='theirs.pt', **how)
    assert done.returncode == 0, done.stderr
    name, folder = 'digits-small_cnn-theirs', project / 'outputs' / 'imported'
    rows = load_records(folder / 'records' / f'white_box-{name}.parquet')
    net, _ = load_run(project / 'outputs' / 'tiny' / 'runs' / RUN)
    d = load_data('digits')
    again = evaluate(net, d.x_test[:40], d.y_test[:40], pgd, eps=0.15)
    found = rows[rows.attack == 'pgd20'][list(again)].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, again, check_dtype=False)
    assert set(pd.read_csv(folder / 'tables' / 'white_box.csv').run) == {name}
    assert [p.name for p in (project / 'outputs' / 'tiny' / 'runs').iterdir()] == [RUN]
    text = outputs_of(project / 'white_box.ipynb')
    assert text.count('image/png') >= 2 and str(project) not in text


def test_transfer_from_a_file(project):
    "A file as one more target, made into a run of the scale that was asked for"
    how = dict(scale='demo', n_test=20, attacks=['pgd20'])
    done = papermill(project, 'transfer', 'transfer.ipynb', weights='theirs.pt', **how)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(project / 'outputs' / 'demo' / 'tables' / 'transfer.csv')
    assert set(table.run) == {'digits-small_cnn-theirs'} and set(table.attack) == {'natural', 'pgd20'}


@pytest.mark.slow
def test_spsa_and_refusals(project):
    done = papermill(project, 'spsa', weights='theirs.pt', n_test=10, samples=[16], steps=3, budget=20)
    assert done.returncode == 0, done.stderr
    for words, bad in {
        "dataset='digits': expected None without weights": dict(dataset='digits'),
        "weights='none.pt': cannot be read (there is no ": dict(weights='none.pt'),
        'inputs=[1, 0]: expected a range': dict(weights='theirs.pt', inputs=[1, 0]),
    }.items():
        done = papermill(project, 'white_box', 'white_box.ipynb', **bad)
        assert done.returncode and words in done.stderr
        assert 'Traceback' not in done.stderr.split(words)[0].split('Exception encountered')[-1]
