"Files of MNIST: read where they are MNIST's, one line where they are not"

import hashlib
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import refusal

from adt_repro import data
from adt_repro.data import DATASETS, load_data

NAMES = {'train': ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte')}
NAMES['test'] = ('t10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte')


def idx(array):
    "An array of bytes in the format of MNIST's files"
    sizes = np.array(array.shape, dtype='>i4').tobytes()
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def unpacked(root, n=50, side=28, n_labels=None):
    "Unpacked files of so many images, with labels; and their MD5 sums"
    folder, rng, sums = root / 'MNIST' / 'raw', np.random.default_rng(0), {}
    folder.mkdir(parents=True)
    for images, labels in NAMES.values():
        arrays = {images: rng.integers(0, 256, (n, side, side)), labels: np.arange(n_labels or n) % 10}
        for name, array in arrays.items():
            (folder / name).write_bytes(idx(array))
            sums[name] = hashlib.md5(idx(array)).hexdigest()
    return sums


def loaded(root):
    found = load_data('mnist', root, download=False)
    return tuple(found.x_train.shape), tuple(found.x_test.shape), len(found.y_train)


@pytest.mark.parametrize('given', [{}, dict(side=14), dict(n_labels=30)], ids=['few', 'small', 'labels'])
def test_unpacked_files_with_other_contents(tmp_path, given):
    unpacked(tmp_path, **given)
    line = refusal(loaded, tmp_path)
    assert line.startswith(
        f'data_root={str(tmp_path)!r}: mnist is damaged, MNIST/raw/train-images-idx3-ubyte has'
    )
    assert 'another MD5 sum' in line and 'Delete it, and put into' in line and line.isprintable()


def test_files_of_an_old_torchvision_are_not_read(tmp_path):
    (tmp_path / 'MNIST' / 'processed').mkdir(parents=True)
    for name in 'training.pt', 'test.pt':
        torch.save(
            (torch.zeros(50, 28, 28).byte(), torch.arange(50) % 10), tmp_path / 'MNIST/processed' / name
        )
    line = f'data_root={str(tmp_path)!r}: mnist is missing. Put into this folder: '
    assert refusal(loaded, tmp_path).startswith(line)


@pytest.fixture
def as_if_mnist(tmp_path, monkeypatch):
    "A small data set whose files have the right sums"
    sums = unpacked(tmp_path)
    monkeypatch.setattr(data, 'MNIST_SUMS', sums, raising=False)
    monkeypatch.setitem(DATASETS, 'mnist', replace(DATASETS['mnist'], n_train=50, n_test=50))
    return tmp_path


def test_right_files_are_read(as_if_mnist):
    assert loaded(as_if_mnist) == ((50, 1, 28, 28), (50, 1, 28, 28), 50)
    shutil.copytree(as_if_mnist / 'MNIST' / 'raw', as_if_mnist / 'MNIST' / 'processed')  # is not looked at
    assert loaded(as_if_mnist)[2] == 50


def test_one_altered_byte(as_if_mnist):
    file = as_if_mnist / 'MNIST' / 'raw' / 't10k-labels-idx1-ubyte'
    content = bytearray(file.read_bytes())
    content[20] ^= 1
    file.write_bytes(content)
    assert 'MNIST/raw/t10k-labels-idx1-ubyte has another MD5 sum' in refusal(loaded, as_if_mnist)


def test_right_sums_of_too_few_images(as_if_mnist, monkeypatch):
    monkeypatch.setitem(DATASETS, 'mnist', replace(DATASETS['mnist'], n_test=60))
    expected = 'mnist: 50 test images (1, 28, 28), expected 60 of (1, 28, 28)'
    assert refusal(loaded, as_if_mnist) == expected
