"The real thing: CIFAR-10 under $ADT_DATA, if it is there (no test downloads anything)"

import shutil

import pandas as pd
import pytest
import torch
from helpers import ROOT
from safetensors.torch import load_file

from adt_repro.data import DataError, data_folder, fingerprint, load_data
from adt_repro.models.classifiers import build_model
from adt_repro.paper.report import CIFAR10_TEST

BATCHES = data_folder() / 'cifar-10-batches-py'
pytestmark = pytest.mark.skipif(
    not (BATCHES / 'data_batch_1').exists(), reason='no CIFAR-10 under $ADT_DATA or data/'
)


@pytest.fixture(scope='module')
def data():
    return load_data('cifar10', download=False)


def test_the_images_are_cifar10(data):
    assert data.x_train.shape == (50_000, 3, 32, 32) and data.x_test.shape == (10_000, 3, 32, 32)
    assert data.y_train.bincount().tolist() == [5000] * 10 and data.y_test.bincount().tolist() == [1000] * 10
    assert data.classes[:3] == ('airplane', 'automobile', 'bird')
    assert (data.x_train * 255).round().div(255).equal(data.x_train)
    means = data.x_train.mean((0, 2, 3)).tolist()
    assert means == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)  # as everybody normalises by


def test_the_report_knows_them(data):
    "The fingerprint by which it knows the paper's test set"
    assert fingerprint(data.x_test, data.y_test) == CIFAR10_TEST
    assert fingerprint(data.x_test, data.y_test.flip(0)) != CIFAR10_TEST


def test_one_flipped_byte_is_found(tmp_path):
    shutil.copytree(BATCHES, tmp_path / BATCHES.name)
    file = tmp_path / BATCHES.name / 'data_batch_3'
    raw = bytearray(file.read_bytes())
    raw[1_000_000] ^= 1
    file.write_bytes(raw)
    with pytest.raises(DataError, match='cifar-10-batches-py/data_batch_3 has another MD5 sum') as e:
        load_data('cifar10', tmp_path)
    assert '\n' not in str(e.value)


def test_committed_weights_are_those_that_were_judged(data):
    "Each network of scale cpu in plain PyTorch: clean images, and FGSM, written out here, as the records say"
    out, x, y = ROOT / 'outputs' / 'cpu', data.x_test[:300], data.y_test[:300]
    files = sorted(out.glob('records/white_box-*.parquet'))
    assert len(files) >= 10
    for f in files:
        run = f.stem.removeprefix('white_box-')
        rows = pd.read_parquet(f).query('i < 300').pivot(index='i', columns='attack', values='pred')
        net = build_model('small_cnn').eval()
        net.load_state_dict(load_file(out / 'runs' / run / 'weights.safetensors'))
        moved = x.clone().requires_grad_()
        torch.nn.functional.cross_entropy(net(moved), y, reduction='sum').backward()
        with torch.no_grad():
            clean = net(x).argmax(1)
            fgsm = net((x + 8 / 255 * moved.grad.sign()).clamp(0, 1)).argmax(1)
        # another processor may break a tie otherwise
        assert (clean.numpy() != rows.natural.values).sum() <= 1, run
        assert abs((fgsm == y).sum().item() - (rows.fgsm.values == y.numpy()).sum()) <= 2, run
