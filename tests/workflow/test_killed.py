"A run from the shell that ends early: by its budget, a kill, a lock, a stranger's file, or a full disk"

import os
import pickle
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import warm
from helpers import papermill, papermill_arguments, papermill_command, small_project

from adt_repro.runs.store import lock_run
from adt_repro.training import loop

PARAMETERS = dict(method='adt_exp', epochs=3, n_train=128, n_test=20)


class Bomb:
    "A pickle that creates a file when it is opened"

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.fixture
def project(tmp_path):
    return small_project(tmp_path, 'train')


def train(project, **params):
    "papermill's exit status and what it said"
    done = papermill(project, 'train', **PARAMETERS | params)
    return done.returncode, done.stderr


def results(run):
    "Weights and history of a finished run"
    history = pd.read_csv(run / 'history.csv').drop(columns='seconds')
    return (run / 'weights.safetensors').read_bytes(), history.to_csv()


def wait_for_lock(run):
    "Until the kernel of a killed papermill, a process group of its own, has noticed that it is an orphan"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            lock_run(run).release()
            return
        except ValueError:
            time.sleep(0.1)
    pytest.fail('the kernel still holds the lock')


def test_killed_and_stopped(project):
    "A whole run; then the same one stopped by its budget, killed, and finished; and what is refused meanwhile"
    assert train(project)[0] == 0
    run = project / 'outputs' / 'demo' / 'runs' / 'digits-small_cnn-adt_exp-s0'
    checkpoint = run / 'checkpoint.pt'
    want = results(run)

    assert train(project, fresh='true', max_minutes=1e-6)[0] == 0
    assert 'after step 1 of epoch 1' in (project / 'out.ipynb').read_text()
    assert not (run / 'run.json').exists()
    before = checkpoint.read_bytes()

    status, said = train(project, epochs=4, lr=0.05)
    assert status != 0
    assert 'epochs=4, lr=0.05: digits-small_cnn-adt_exp-s0 was begun with epochs=3, lr=0.1;' in said
    assert 'expected the same parameters and data, or a label of its own to keep both runs' in said

    lock = lock_run(run)
    status, said = train(project)
    assert status != 0 and 'another process is training it' in said
    lock.release()

    checkpoint.write_bytes(pickle.dumps(Bomb(project / 'gone_off')))
    status, said = train(project)
    assert status != 0 and "checkpoint='checkpoint.pt': cannot be read" in said
    assert not (project / 'gone_off').exists()
    checkpoint.write_bytes(before)

    # a real papermill and its kernel, which has to notice that papermill is gone
    streams = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    call = papermill_command('train', 'out.ipynb', **PARAMETERS, checkpoint_minutes=1e-9)
    victim = subprocess.Popen(call, cwd=project, start_new_session=True, **streams)
    while checkpoint.read_bytes() == before and victim.poll() is None:
        time.sleep(0.01)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    wait_for_lock(run)
    assert train(project)[0] == 0
    assert 'resumed after' in (project / 'out.ipynb').read_text()  # not from the start, with the same bits
    assert results(run) == want

    stamp = (run / 'weights.safetensors').stat().st_mtime_ns
    assert train(project)[0] == 0
    assert 'already finished' in (project / 'out.ipynb').read_text()
    assert (run / 'weights.safetensors').stat().st_mtime_ns == stamp


def papermill_with_a_signal(sent, step, *args):
    "papermill in a process that gets a signal in this step of training, counted from 1"
    train_step, done = loop.train_step, []

    def with_signal(*given):
        means = train_step(*given)
        done.append(means)
        if len(done) == step:
            os.kill(os.getpid(), sent)
        return means

    loop.train_step = with_signal
    warm.papermill(*args)


@pytest.mark.parametrize('sent', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_first_epoch(sent, project, tmp_path_factory):
    "Not even the current step is lost, and what goes on ends with the bits of the undisturbed run"
    more = dict(epochs=2, batch=16)  # an epoch has eight steps
    whole = small_project(tmp_path_factory.mktemp('whole'), 'train')
    assert train(whole, **more)[0] == 0
    run = 'outputs/demo/runs/digits-small_cnn-adt_exp-s0'

    args = papermill_arguments('train', 'out.ipynb', **PARAMETERS | more)
    done = warm.run_fork(papermill_with_a_signal, sent, 3, *args, cwd=project)
    assert done.returncode != 0
    kept = torch.load(project / run / 'checkpoint.pt', weights_only=True)
    assert (kept['epoch'], kept['step']) == (0, 3)

    assert train(project, **more)[0] == 0
    assert 'resumed after step 3 of epoch 1' in (project / 'out.ipynb').read_text()
    assert results(project / run) == results(whole / run)


def test_a_full_disk(project):
    "No file may grow beyond 100 kB, so the first checkpoint finds no room: one line, nothing half-written"
    given = dict(method='standard', epochs=1, n_train=64, n_test=20)
    args = papermill_arguments('train', 'out.ipynb', **given)
    done = warm.run_fork(warm.papermill_with_small_files, 100_000, *args, cwd=project)
    assert done.returncode != 0
    assert (
        'checkpoint.pt: cannot be written, expected a writable folder on a disk with free space (File too large)'
        in done.stderr
    ), done.stderr[-500:]
    assert not list(project.rglob('*.part'))
    for name in 'run.json', 'checkpoint.pt', 'weights.safetensors':
        assert not list(project.rglob(name))
