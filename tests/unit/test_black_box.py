"SPSA against a plain version of it, its memory; transfer.ipynb and spsa.ipynb as their users run them"

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from helpers import papermill, papermill_command, small_project

from adt_repro.attacks.autoattack import auto_attack
from adt_repro.attacks.black_box import query_curve, spsa, square
from adt_repro.base.noise import example_noise, rand_unit
from adt_repro.base.stats import mcnemar
from adt_repro.data import load_data
from adt_repro.evaluation.evaluate import accuracy, evaluate
from adt_repro.evaluation.records import SCHEMA, load_records
from adt_repro.methods.table import make_method
from adt_repro.models.classifiers import build_model
from adt_repro.training.loop import train_epochs
from adt_repro.training.state import Recipe

NOTEBOOKS = 'transfer', 'spsa'


@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    net = build_model('small_cnn', in_ch=1)
    list(
        train_epochs(
            net, load_data('digits'), make_method('at_pgd', 0.15, (1, 8, 8)), Recipe(epochs=2, augment=False)
        )
    )
    return net.eval()


def plain_spsa(net, x, y, name, eps, samples, steps, sigma, lr):
    "One image, one query at a time, Adam written out"

    def loss(z):
        with torch.no_grad():
            out = net(z[None])[0]
        return max(out[c].item() for c in range(10) if c != y) - out[y].item()

    delta, m, v, queries = torch.zeros_like(x), 0.0, 0.0, 1
    if loss(x) > 0:
        return x, queries
    for t in range(steps):
        g = torch.zeros_like(x)
        with example_noise(torch.tensor([name]), t):
            signs = [rand_unit(x[None])[0].sign() for _ in range(samples // 2)]
        for s in signs:
            g += (loss(x + delta + sigma * s) - loss(x + delta - sigma * s)) / (2 * sigma) * s / len(signs)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        delta = delta + lr * (m / (1 - 0.9 ** (t + 1))) / ((v / (1 - 0.999 ** (t + 1))).sqrt() + 1e-8)
        delta = delta.clamp(-eps, eps)
        delta = (x + delta).clamp(0, 1) - x
        queries += samples + 1
        if loss(x + delta) > 0:
            break
    return x + delta, queries


def test_spsa_is_what_it_says(net):
    data, net = load_data('digits'), net.double()
    x, y = data.x_test[:8].double(), data.y_test[:8]
    with example_noise(torch.arange(8), 5):
        high, low = ((rand_unit(x.new_empty(8, 2)) + 1) * 2**23).long().T
    with example_noise(torch.arange(8), 5):
        x_adv, queries = spsa(net, x, y, eps=0.25, samples=12, steps=10, lr=0.05, sigma=0.002)
    plain = [
        plain_spsa(net, x[i], int(y[i]), int(high[i] * 2**24 + low[i]), 0.25, 12, 10, 0.002, 0.05)
        for i in range(8)
    ]
    net.float()
    assert queries.tolist() == [q for _, q in plain] and 1 < len(set(queries.tolist()))
    assert max((a - b).abs().max().item() for a, (b, _) in zip(x_adv, plain, strict=True)) < 1e-8


MEMORY = """
import sys, torch
from adt_repro.attacks.black_box import spsa
from adt_repro.models.classifiers import build_model
torch.manual_seed(0)
net, x, y = build_model('wrn-16-1').eval(), torch.rand(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64)
with torch.no_grad(): net.fc.bias[0] = 100.                       # nothing falls
def peak():   # of this program alone, unlike ru_maxrss
    return next(int(l.split()[1])/1024 for l in open('/proc/self/status') if l.startswith('VmHWM'))
spsa(net, x, y, eps=0.03, samples=4, steps=1, memory=1)           # what the first pass allocates for good
before = peak()
spsa(net, x, y, eps=0.03, samples=2048, steps=1, memory=float(sys.argv[1]))
print(peak() - before)
"""


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='the peak is read where Linux tells it')
def test_memory_stays_within_its_limit():
    "Growth of the process for SPSA-2048 in MiB, PyTorch's own included; and the limit is what keeps it down"
    grown = {
        mib: float(
            subprocess.run(
                [sys.executable, '-c', MEMORY, str(mib)], capture_output=True, text=True, check=True
            ).stdout
        )
        for mib in (128, 1000)
    }
    assert grown[128] < 128 and grown[128] < 0.8 * grown[1000] < 800, grown


def test_square_is_as_strong_as_the_package(net):
    "AutoAttack's own Square with the same budget: what only one of the two makes wrong could be chance"
    pytest.importorskip('pyautoattack')
    data = load_data('digits')
    x, y = data.x_test[:100], data.y_test[:100]
    ours = evaluate(net, x, y, lambda *a, eps: square(*a, eps=eps, budget=5000), eps=0.15)
    theirs = evaluate(net, x, y, lambda *a, eps: auto_attack(*a, eps=eps, attacks=['square']), eps=0.15)
    a, b = ours.pred == ours.y, theirs.pred == theirs.y
    assert mcnemar(a.values, b.values)['p'] > 1e-3, (accuracy(ours), accuracy(theirs))


# The notebooks


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    return small_project(tmp_path_factory.mktemp('project'), *NOTEBOOKS)


@pytest.fixture(scope='module')
def tiny(project):
    "Both at their defaults, where there is nothing: four runs are trained and judged"
    for name in NOTEBOOKS:
        done = papermill(project, name, f'{name}.ipynb')
        assert done.returncode == 0, done.stderr
        text = json.dumps([c.get('outputs') for c in nbformat.read(project / f'{name}.ipynb', 4).cells])
        assert 'image/png' in text and 'Traceback' not in text and str(project) not in text
    return project / 'outputs' / 'tiny'


def test_transfer(tiny):
    rows = load_records(*tiny.glob('records/transfer-*.parquet'))
    assert (
        list(rows.columns) == list(SCHEMA)
        and rows.attacked.all()
        and (rows.queries == -1).all()
        and rows.run.nunique() == 2
        and rows.source.nunique() == 4
    )
    table = pd.read_csv(tiny / 'tables' / 'transfer.csv').set_index(['run', 'source', 'attack']).accuracy
    for (run, source, attack), g in rows.groupby(['run', 'source', 'attack']):
        assert table[run, source, attack] == pytest.approx((g.pred == g.y).mean(), abs=1e-4)
    for run in set(rows.run):
        for attack in 'pgd20', 'mim':
            assert table[run, run, attack] < min(
                a for (r, s, k), a in table.items() if (r, k) == (run, attack) and s != run
            )
    assert len(pd.read_csv(tiny / 'frames' / 'soundness_transfer.csv')) == 2 * 2 * 2


def test_spsa_notebook(tiny):
    rows = load_records(*tiny.glob('records/spsa-*.parquet'))
    assert (
        set(rows.attack) == {'natural', 'pgd20', 'spsa16', 'spsa64', 'square'}
        and (rows.groupby(['run', 'attack']).size() == 50).all()
    )
    for attack, most in dict(spsa16=1 + 15 * 17, spsa64=1 + 15 * 65, square=501).items():
        q = rows[rows.attack == attack]
        stood = q.pred == q.y
        assert (
            (q.queries[stood] == most).all()
            and q.queries.between(1, most).all()
            and (rows[rows.attack == 'pgd20'].queries == -1).all()
        )
        for _, g in q.groupby('run'):
            assert query_curve(g).accuracy.iloc[-1] == (g.pred == g.y).mean()
    assert {'black box: square', 'black box: spsa16'} <= set(
        pd.read_csv(tiny / 'frames' / 'soundness_spsa.csv').check
    )


def test_killed_and_started_again(project, tiny):
    "Killed in the middle: finished parts stay as they are, and the records end as those of an undisturbed run"
    params = dict(scale='killed', runs=['*-s0'], samples=[16, 64], batch=10)
    for scale in 'killed', 'whole':
        shutil.copytree(tiny / 'runs', project / 'outputs' / scale / 'runs')
    folder = project / 'outputs' / 'killed' / 'records'
    process = subprocess.Popen(
        papermill_command('spsa', 'killed.ipynb', **params),
        cwd=project,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while len(list(folder.glob('parts/*.parquet'))) < 12 and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {f: f.stat().st_mtime_ns for f in folder.glob('parts/*.parquet')}
    assert 12 <= len(kept) < 2 * 5 * 5  # two runs, five attacks with the clean images, five batches
    for scale, out in (('killed', 'again.ipynb'), ('whole', 'whole.ipynb')):
        done = papermill(project, 'spsa', out, **params | dict(scale=scale))
        assert done.returncode == 0, done.stderr
    assert {f: f.stat().st_mtime_ns for f in kept} == kept and len(
        list(folder.glob('parts/*.parquet'))
    ) == 2 * 5 * 5
    for f in folder.glob('spsa-*.parquet'):
        pd.testing.assert_frame_equal(
            pd.read_parquet(f), pd.read_parquet(project / 'outputs' / 'whole' / 'records' / f.name)
        )


def test_what_cannot_be_used(project, tiny):
    for name, params, line in (
        ('spsa', dict(samples=[7]), 'samples=[7]: expected a list, each item an even number of at least 2'),
        ('spsa', dict(runs=['nobody']), "runs='nobody': expected digits-small_cnn-at_pgd-s0"),
        ('transfer', dict(n_test=361), 'n_test=361: expected at most 360'),
        (
            'transfer',
            dict(attacks=['feature']),
            "attacks=['feature']: expected a list, each item fgsm, pgd20, mim, cw, pgd100",
        ),
        ('transfer', dict(sauces=['x']), "sauces=['x']: there is no such parameter, did you mean 'sources'?"),
    ):
        before = set(tiny.rglob('*'))
        done = papermill(project, name, 'bad.ipynb', **params)
        assert done.returncode and line in done.stderr, (line, done.stderr[-400:])
        assert set(tiny.rglob('*')) == before
