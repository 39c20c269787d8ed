"Our PGD beside torchattacks, Foolbox and ART on a trained network, where they are installed: tests/peers.py says how"

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from helpers import ROOT
from safetensors.torch import load_file, save_file

from adt_repro.attacks.gradient import pgd
from adt_repro.models.weights import save_weights
from adt_repro.runs.config import RULES
from adt_repro.runs.resolve import resolve, start_run
from adt_repro.training.loop import train_epochs

HERE = all(find_spec(m) for m in ('torchattacks', 'foolbox', 'art'))
PYTHON = os.environ.get('ADT_PEERS') or HERE and sys.executable  # from the project's root, or absolute
pytestmark = pytest.mark.skipif(
    not PYTHON,
    reason='torchattacks, Foolbox and ART are not here; to compare with them make .venv-peers '
    'as tests/peers.py says, then: ADT_PEERS=.venv-peers/bin/python pytest tests/unit/test_peers.py',
)
NAMES = ['torchattacks', 'foolbox', 'adversarial-robustness-toolbox']
EPS = 0.15


@pytest.fixture(scope='module')
def net():
    "A network of the demo scale, trained by at_pgd, with the digits' 360 test images"
    config = resolve(
        dict.fromkeys(RULES)
        | dict(method='at_pgd', dataset='digits', recipe='paper2020', seed=0, device='cpu', scale='demo')
    )
    data, model, method, recipe = start_run(config, torch.device('cpu'))
    for _ in train_epochs(model, data, method, recipe):
        pass
    return model.eval(), data.x_test, data.y_test


@pytest.fixture(scope='module')
def start(net):
    "In [-1, 1] of the ball, the same for every library"
    return torch.empty_like(net[1]).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope='module')
def theirs(net, start, tmp_path_factory):
    "What each peer makes of the images by PGD-20 with steps of ε/4, in a process of its own"
    (model, x, y), folder = net, tmp_path_factory.mktemp('peers')
    save_weights(model, folder / 'weights.safetensors')
    save_file(dict(x=x.contiguous(), y=y, offset=EPS * start), folder / 'images.safetensors')
    (folder / 'job.json').write_text(
        json.dumps(dict(arch='small_cnn', pgd=dict(eps=EPS, steps=20, step=EPS / 4)))
    )
    done = subprocess.run(
        [ROOT / PYTHON, ROOT / 'tests' / 'peers.py', 'attack', folder],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads((folder / 'result.json').read_text())['versions']) == {'torch', *NAMES}, (
        f'{PYTHON} does not have them all'
    )
    return load_file(folder / 'x_adv.safetensors')


def ours(net, at, **other):
    "The same by our PGD, its start clipped to [0, 1] as theirs is"
    model, x, y = net
    return pgd(model, x, y, eps=EPS, start=lambda x: at, clip_start=True, **other)


def alike(net, a, b):
    "Share of images that the network gives the same class after both attacks, and share of equal pixels"
    with torch.no_grad():
        same = net[0](a).argmax(1) == net[0](b).argmax(1)
    return same.float().mean().item(), ((a - b).abs() < 1e-5).float().mean().item()


@pytest.mark.parametrize('where', ['random', 'clean'])
@pytest.mark.parametrize('name', NAMES)
def test_pgd_is_theirs(name, where, net, start, theirs):
    "From the same start: the same class for 99 % of the images; nearly all pixels end at the same value"
    model, x, y = net
    x_adv = theirs[f'{name}, {where}']
    assert (x_adv - x).abs().max() <= EPS + 1e-6 and x_adv.min() >= 0 and x_adv.max() <= 1
    with torch.no_grad():
        assert (
            0.7 < (model(x_adv).argmax(1) == y).float().mean() < 0.95
        )  # it is an attack, and not a hopeless case
    outcomes, pixels = alike(net, ours(net, start * (where == 'random')), x_adv)
    assert outcomes >= 0.99 and pixels >= 0.95, (outcomes, pixels)


WRONG = dict(step=dict(step=EPS / 20), steps=dict(steps=5), loss_sign=dict(sign=lambda g: -g.sign()))


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('other', WRONG)
def test_another_attack_is_told_apart(other, name, net, start, theirs):
    "The comparison can fail: smaller steps, fewer steps or the wrong direction are below 99 %"
    assert alike(net, ours(net, start, **WRONG[other]), theirs[f'{name}, random'])[0] < 0.98


@pytest.mark.parametrize('name', NAMES)
def test_a_small_change_shows_in_the_pixels(name, net, start, theirs):
    "Steps of ε/5, 19 steps or another random start leave most classes as they were, but not the pixels"
    for x_adv in ours(net, start, step=EPS / 5), ours(net, start, steps=19), ours(net, -start):
        assert alike(net, x_adv, theirs[f'{name}, random'])[1] < 0.9
