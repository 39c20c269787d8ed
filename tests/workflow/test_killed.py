"A run from the shell that ends before its time: by its budget, a kill, a lock, a stranger's file, or a full disk"

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
from helpers import papermill, papermill_arguments, papermill_begun, papermill_command, small_project

from adt_repro.runs.store import lock_run

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
    "A whole run; then the same one stopped by its budget, killed, and finished; and what is refused on the way"
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
    assert 'going on after' in (project / 'out.ipynb').read_text()  # not from the start, with the same bits
    assert results(run) == want

    stamp = (run / 'weights.safetensors').stat().st_mtime_ns
    assert train(project)[0] == 0
    assert 'finished already' in (project / 'out.ipynb').read_text()
    assert (run / 'weights.safetensors').stat().st_mtime_ns == stamp


def catches_sigterm(pid):
    "Has a process a handler of SIGTERM? Linux says so"
    for line in Path(f'/proc/{pid}/status').read_text().splitlines():
        if line.startswith('SigCgt:'):
            return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


def wait_for_training(call):
    "Until the first epoch has begun, from when on a signal is noted"
    while call.is_alive():
        try:
            if catches_sigterm(call.pid):
                return True
        except OSError:  # it has just ended
            pass
        time.sleep(0.005)
    return False


@pytest.mark.parametrize('sent', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_first_epoch(sent, project, tmp_path_factory):
    "Nothing but the current step is lost, and what goes on ends with the bits of the undisturbed run"
    many_steps = dict(epochs=2, n_train=400, batch=4)
    whole = small_project(tmp_path_factory.mktemp('whole'), 'train')
    assert train(whole, **many_steps)[0] == 0
    run = 'outputs/demo/runs/digits-small_cnn-adt_exp-s0'

    call = papermill_begun(project, 'train', **PARAMETERS | many_steps)
    assert wait_for_training(call), 'no epoch has ever noted a signal'
    time.sleep(0.2)
    os.kill(call.pid, sent)
    call.join(60)
    assert call.exitcode not in (None, 0)
    kept = torch.load(project / run / 'checkpoint.pt', weights_only=True)
    assert kept['epoch'] == 0 and kept['step'] > 0

    assert train(project, **many_steps)[0] == 0
    assert f'going on after step {kept["step"]} of epoch 1' in (project / 'out.ipynb').read_text()
    assert results(project / run) == results(whole / run)


def test_a_full_disk(project):
    "No file may grow beyond 100 kB, so that the first checkpoint finds no room: one line, no run, nothing half-written"
    given = dict(method='standard', epochs=1, n_train=64, n_test=20)
    args = papermill_arguments('train', 'out.ipynb', **given)
    done = warm.run_fork(warm.papermill_with_small_files, 100_000, *args, cwd=project)
    assert done.returncode != 0
    assert (
        'checkpoint.pt: cannot be written, expected a folder with room that can be written to (File too large)'
        in done.stderr
    ), done.stderr[-500:]
    assert not list(project.rglob('*.part'))
    for name in 'run.json', 'checkpoint.pt', 'weights.safetensors':
        assert not list(project.rglob(name))
