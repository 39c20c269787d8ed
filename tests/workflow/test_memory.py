"How much memory a process needs: SPSA stays within its limit, ADT_EXP within its group of images"

from pathlib import Path

import pytest
import torch
from helpers import ROOT
from warm import run_fork

from adt_repro.attacks.black_box import spsa
from adt_repro.methods.objective import adt_loss
from adt_repro.methods.table import make_method
from adt_repro.models.classifiers import build_model
from adt_repro.planning.timing import peak_growth
from adt_repro.speed.precision import ComputeWrapper

STATUS = Path('/proc/self/status')
pytestmark = pytest.mark.skipif(not STATUS.exists(), reason='the peak is read where Linux tells it')


def peak():
    "The largest memory of this process so far in MiB; unlike ru_maxrss, of this process alone"
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith('VmHWM'))
    return int(line.split()[1]) / 1024


def grow_by_spsa(memory):
    "By how much many queries raise the peak of this process"
    torch.manual_seed(0)
    net, x, y = build_model('wrn-10-1').eval(), torch.rand(4, 3, 32, 32), torch.zeros(4, dtype=torch.int64)
    with torch.no_grad():
        net.fc.bias[0] = 100.0  # nothing is misclassified
    spsa(net, x, y, eps=0.03, samples=4, steps=1, memory=1)  # what the first pass allocates for good
    before = peak()
    spsa(net, x, y, eps=0.03, samples=2048, steps=1, memory=memory)
    print(peak() - before)


def grow_by_adt_exp(draws, group):
    "By how much a step of ADT_EXP raises the peak of this process"
    torch.manual_seed(0)
    net = ComputeWrapper(build_model('wrn-10-1').train())
    x, y = torch.rand(16, 3, 32, 32), torch.zeros(16, dtype=torch.int64)
    before = peak()
    method = make_method('adt_exp', 8 / 255, inner_steps=1, n_mc=draws, group=group)
    adt_loss(net, x, y, method)[0].backward()
    print(peak() - before)


def growth(step, *how):
    "MiB that a fork, which begins with nothing of other tests, grows by in a step"
    done = run_fork(step, *how, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_memory_stays_within_its_limit():
    "PyTorch's own included; and the limit is what keeps it down"
    grown = {limit: growth(grow_by_spsa, limit) for limit in (128, 1000)}
    assert grown[128] < 128
    assert grown[128] < 0.8 * grown[1000] < 800, grown


def test_memory_is_bounded_by_the_group_and_not_by_the_draws():
    "A step with one draw, with many, and with as many that are allowed to go together"
    one, many, together = (growth(grow_by_adt_exp, *how) for how in ((1, 16), (16, 16), (16, 256)))
    assert many < 1.7 * one and many < 0.5 * together, (one, many, together)


def test_the_package_measures_the_same():
    "`peak_growth` starts a process of its own"
    ours = growth(grow_by_adt_exp, 8, 128)
    assert 0.7 * ours < peak_growth('wrn-10-1', 16, 8, 128) < 1.4 * ours
