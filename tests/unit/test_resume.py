"A run that is stopped after every step and resumed in new objects is the run that was never stopped"

import hashlib

import pytest

from adt_repro.methods.table import METHODS
from adt_repro.runs.config import RULES
from adt_repro.runs.fit import prepare_run, train_run
from adt_repro.runs.resolve import resolve
from adt_repro.runs.store import resume

BLANK = dict.fromkeys(RULES) | dict(dataset='digits', recipe='tuned', seed=1, device='cpu', scale='tiny')
SIX_STEPS = dict(epochs=2, n_train=96, n_test=20, batch=32)


def digest(state):
    tensors = [v for net in state.nets.values() for v in net.state_dict().values()]
    return hashlib.sha256(b''.join(v.numpy().tobytes() for v in tensors)).hexdigest()


def without_seconds(rows):
    "Rows of history, but for what the clock says"
    return [{k: v for k, v in row.items() if k != 'seconds'} for row in rows]


def attempt(config, outputs, **limits):
    "Go on with a run in new objects, as far as it comes"
    run = prepare_run(config, outputs)
    resume(run.folder, run.state, False)
    list(train_run(run, **limits))
    run.lock.release()
    return run


@pytest.mark.parametrize('method', METHODS)
def test_stopped_after_every_step(method, tmp_path):
    "Six attempts of one step each, in new objects, against one of six steps: the same bits and history"
    small = dict(gen_width=8) if '_am' in method else {}
    config = resolve(BLANK | SIX_STEPS | dict(method=method) | small)
    whole = attempt(config, tmp_path / 'whole')

    attempts, finished = 0, False
    while not finished and attempts < 10:
        pieces = attempt(config, tmp_path / 'pieces', max_minutes=1e-9)
        attempts, finished = attempts + 1, pieces.is_trained
    assert attempts == 6
    assert digest(pieces.state) == digest(whole.state)
    assert without_seconds(pieces.state.history) == without_seconds(whole.state.history)
