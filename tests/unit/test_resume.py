"A run that is interrupted: stopped after any step, killed, resumed with other parameters, or from a stranger's file"

import hashlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from helpers import ROOT

from adt_repro.methods.table import METHODS
from adt_repro.runs.config import RULES
from adt_repro.runs.fit import prepare_run, train_run
from adt_repro.runs.resolve import resolve
from adt_repro.runs.store import lock_run, resume

BLANK = dict.fromkeys(RULES) | dict(
    dataset='digits',
    recipe='tuned',
    seed=1,
    device='cpu',
    scale='tiny',
    epochs=2,
    n_train=96,
    n_test=20,
    batch=32,
)


def digest(state):
    tensors = [v for net in state.nets.values() for v in net.state_dict().values()]
    return hashlib.sha256(b''.join(v.numpy().tobytes() for v in tensors)).hexdigest()


def without_seconds(state):
    return [{k: v for k, v in row.items() if k != 'seconds'} for row in state.history]


def attempt(config, outputs, **limits):
    "Go on with a run in new objects, as far as it comes"
    run = prepare_run(config, outputs)
    resume(run.folder, run.state, False)
    list(train_run(run, **limits))
    run.lock.release()
    return run


@pytest.mark.parametrize('method', METHODS)
def test_stopped_after_every_step(method, tmp_path):
    "Six attempts of one step each, in new objects, against one of six steps: the same bits and the same history"
    small = dict(gen_width=8) if '_am' in method else {}
    config = resolve(BLANK | dict(method=method) | small)
    whole = attempt(config, tmp_path / 'whole')

    attempts, finished = 0, False
    while not finished:
        pieces = attempt(config, tmp_path / 'pieces', max_minutes=1e-9)
        attempts, finished = attempts + 1, pieces.is_trained
    assert attempts == 6
    assert digest(pieces.state) == digest(whole.state)
    assert without_seconds(pieces.state) == without_seconds(whole.state)


class Bomb:
    "A pickle that creates a file when it is opened"

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp('project')
    (root / 'nbs').mkdir()
    for f in 'settings.ini', 'nbs/train.ipynb':
        shutil.copy(ROOT / f, root / f)
    return root


def command(**params):
    "papermill's call of train.ipynb"
    call = [sys.executable, '-m', 'papermill', 'nbs/train.ipynb', 'out.ipynb']
    for k, v in (dict(method='adt_exp', epochs=3, n_train=128, n_test=20) | params).items():
        call += ['-p', k, str(v)]
    return call


def papermill(project, **params):
    "papermill's exit status and what it said"
    done = subprocess.run(
        command(**params), cwd=project, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    return done.returncode, done.stderr


def results(run):
    "Weights and history of a finished run"
    history = pd.read_csv(run / 'history.csv').drop(columns='seconds')
    return (run / 'weights.safetensors').read_bytes(), history.to_csv()


def wait_for_lock(run):
    "Until the kernel of a killed papermill, a process group of its own, has noticed that it is an orphan"
    while True:
        try:
            lock_run(run).release()
            return
        except ValueError:
            time.sleep(0.1)


def test_killed_and_stopped(project):
    "A whole run; then the same one stopped by its budget, killed, and finished; and what is refused on the way"
    assert papermill(project)[0] == 0
    run = project / 'outputs' / 'demo' / 'runs' / 'digits-small_cnn-adt_exp-s0'
    checkpoint = run / 'checkpoint.pt'
    want = results(run)

    assert papermill(project, fresh='true', max_minutes=1e-6)[0] == 0
    assert 'after step 1 of epoch 1' in (project / 'out.ipynb').read_text()
    assert not (run / 'run.json').exists()
    before = checkpoint.read_bytes()

    status, said = papermill(project, epochs=4, lr=0.05)
    assert status != 0
    assert 'epochs=4, lr=0.05: digits-small_cnn-adt_exp-s0 was begun with epochs=3, lr=0.1;' in said
    assert 'expected the same parameters and data, or fresh=true' in said

    lock = lock_run(run)
    status, said = papermill(project)
    assert status != 0 and 'another process is training it' in said
    lock.release()

    checkpoint.write_bytes(pickle.dumps(Bomb(project / 'gone_off')))
    status, said = papermill(project)
    assert status != 0 and "checkpoint='checkpoint.pt': cannot be read" in said
    assert not (project / 'gone_off').exists()
    checkpoint.write_bytes(before)

    streams = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    call = command(checkpoint_minutes=1e-9)
    victim = subprocess.Popen(call, cwd=project, start_new_session=True, **streams)
    while checkpoint.read_bytes() == before and victim.poll() is None:
        time.sleep(0.01)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    wait_for_lock(run)
    assert papermill(project)[0] == 0
    assert results(run) == want

    stamp = (run / 'weights.safetensors').stat().st_mtime_ns
    assert papermill(project)[0] == 0
    assert 'finished already' in (project / 'out.ipynb').read_text()
    assert (run / 'weights.safetensors').stat().st_mtime_ns == stamp
