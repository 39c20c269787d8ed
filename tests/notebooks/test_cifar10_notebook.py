"train.ipynb on the real CIFAR-10 under $ADT_DATA, if it is there (no test downloads anything)"

import json

import pytest
from helpers import papermill, small_project

from adt_repro.data import data_folder

THERE = (data_folder() / 'cifar-10-batches-py' / 'data_batch_1').exists()


@pytest.mark.skipif(not THERE, reason='no CIFAR-10 under $ADT_DATA or data/')
def test_a_wide_resnet_trains_on_it(tmp_path):
    project = small_project(tmp_path, 'train')
    data = dict(dataset='cifar10', data_root=data_folder(), n_train=320, n_test=40)
    how = dict(arch='wrn-10-1', epochs=1, inner_steps=2, n_mc=1)
    done = papermill(project, 'train', **data, **how)
    assert done.returncode == 0, done.stderr
    run = project / 'outputs' / 'demo' / 'runs' / 'cifar10-wrn-10-1-adt_exp-s0'
    facts = json.loads((run / 'run.json').read_text())
    assert facts['eps'] == pytest.approx(8 / 255) and facts['results'][0]['n'] == 40
