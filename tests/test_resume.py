"A run that is broken off: stopped after any step, killed, taken up with other parameters, or from a stranger's file"

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
import torch

from adt_repro.methods.table import METHODS
from adt_repro.runs.config import RULES
from adt_repro.runs.resolve import resolve, start_run
from adt_repro.runs.store import lock_run, resume, run_facts
from adt_repro.training.loop import train
from adt_repro.training.state import State

ROOT = Path(__file__).resolve().parents[1]
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
    return hashlib.sha256(
        b''.join(v.numpy().tobytes() for net in state.nets.values() for v in net.state_dict().values())
    ).hexdigest()


def attempt(config, folder, **kw):
    data, model, method, recipe = start_run(config, torch.device('cpu'))
    torch.manual_seed(config['seed'])
    state = State(model, method, recipe, run_facts(config, data))
    resume(folder, state, False)
    for _ in train(model, data, method, recipe, state=state, checkpoint=folder / 'checkpoint.pt', **kw):
        pass
    return state


@pytest.mark.parametrize('method', METHODS)
def test_stopped_after_every_step(method, tmp_path):
    "Six attempts of one step each, in new objects, against one of six steps: the same bits and the same history"
    config = resolve(BLANK | dict(method=method) | (dict(gen_width=8) if '_am' in method else {}))
    (tmp_path / 'a').mkdir()
    (tmp_path / 'b').mkdir()
    whole, n = attempt(config, tmp_path / 'a'), 0
    while n == 0 or state.epoch < 2:
        state, n = attempt(config, tmp_path / 'b', until=0), n + 1
    timeless = lambda s: [{k: v for k, v in r.items() if k != 'seconds'} for r in s.history]
    assert n == 6 and digest(state) == digest(whole) and timeless(state) == timeless(whole)


class Bomb:
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


def papermill(project, start=subprocess.run, **params):
    given = [
        w
        for k, v in (dict(method='adt_exp', epochs=3, n_train=128, n_test=20) | params).items()
        for w in ('-p', k, str(v))
    ]
    kw = (
        dict(capture_output=True)
        if start is subprocess.run
        else dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    )
    return start(
        [sys.executable, '-m', 'papermill', 'nbs/train.ipynb', 'out.ipynb', *given],
        cwd=project,
        stdin=subprocess.DEVNULL,
        text=True,
        **kw,
    )


def results(run):
    return (run / 'weights.safetensors').read_bytes(), pd.read_csv(run / 'history.csv').drop(
        columns='seconds'
    ).to_csv()


def test_killed_and_stopped(project):
    "An undisturbed run; then the same one stopped by its budget, killed, and finished; and what is refused on the way"
    assert papermill(project).returncode == 0
    run = project / 'outputs' / 'demo' / 'runs' / 'digits-small_cnn-adt_exp-s0'
    want = results(run)
    done = papermill(project, fresh='true', max_minutes=1e-6)
    assert (
        done.returncode == 0
        and 'after step 1 of epoch 1' in (project / 'out.ipynb').read_text()
        and not (run / 'run.json').exists()
    )
    before = (run / 'checkpoint.pt').read_bytes()
    done = papermill(project, epochs=4, lr=0.05)
    assert (
        done.returncode
        and 'epochs=4, lr=0.05: digits-small_cnn-adt_exp-s0 was begun with epochs=3, lr=0.1; expected the same parameters and data, or fresh=true'
        in done.stderr
    )
    lock = lock_run(run)
    done = papermill(project)
    assert done.returncode and 'another process is training it' in done.stderr
    lock.release()
    (run / 'checkpoint.pt').write_bytes(pickle.dumps(Bomb(project / 'gone_off')))
    done = papermill(project)
    assert (
        done.returncode
        and "checkpoint='checkpoint.pt': cannot be read" in done.stderr
        and not (project / 'gone_off').exists()
    )
    (run / 'checkpoint.pt').write_bytes(before)
    victim = papermill(project, subprocess.Popen, checkpoint_minutes=1e-9)
    while (run / 'checkpoint.pt').read_bytes() == before and victim.poll() is None:
        time.sleep(0.01)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    while True:  # the kernel, a process group of its own, notices that it is an orphan
        try:
            lock_run(run).release()
            break
        except ValueError:
            time.sleep(0.1)
    assert papermill(project).returncode == 0 and results(run) == want
    stamp = (run / 'weights.safetensors').stat().st_mtime_ns
    done = papermill(project)
    assert (
        done.returncode == 0
        and 'finished already' in (project / 'out.ipynb').read_text()
        and (run / 'weights.safetensors').stat().st_mtime_ns == stamp
    )
