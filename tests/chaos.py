"""Every method's training and evaluation, killed twenty times and more, against the same ones left alone.

Takes minutes:

    python tests/chaos.py [METHOD ...] [--kills 20]

A child process trains, with a checkpoint after each step, and then evaluates, with a file for each few images.
The parent sends it SIGKILL, by turns at a random moment and while a file is being written, which a file left
half-written proves; then a new child goes on. At the end weights, history and records have to be equal.
"""

import argparse
import hashlib
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

from adt_repro.attacks.black_box import square
from adt_repro.attacks.gradient import pgd
from adt_repro.evaluation.records import save_records
from adt_repro.evaluation.suite import run_suite
from adt_repro.methods.table import METHODS
from adt_repro.runs.config import RULES
from adt_repro.runs.resolve import resolve, start_run
from adt_repro.runs.store import load_run, lock_run, resume, run_facts, run_folder, save_run
from adt_repro.training.loop import train_epochs
from adt_repro.training.state import State

CPU = torch.device('cpu')


def work(method, outputs):
    "What train.ipynb and an evaluation do, from wherever they were"
    config = resolve(
        dict.fromkeys(RULES)
        | dict(
            method=method,
            dataset='digits',
            recipe='tuned',
            seed=1,
            device='cpu',
            scale='chaos',
            epochs=2,
            n_train=240,
            n_test=40,
            batch=12,
        )
        | (dict(gen_width=8) if '_am' in method else {})
    )
    folder = run_folder(config, outputs)
    lock = lock_run(folder)
    data, model, m, recipe = start_run(config, CPU)
    torch.manual_seed(config['seed'])
    state = State(model, m, recipe, run_facts(config, data))
    if not resume(folder, state, False):
        for _ in train_epochs(
            model, data, m, recipe, state=state, checkpoint=folder / 'checkpoint.pt', minutes=1e-9
        ):
            pass
        save_run(folder, state.result, m, config, pd.DataFrame(state.history), results=[])
    net, _ = load_run(folder)
    attacks = dict(pgd20=pgd, square=lambda *a, eps: square(*a, eps=eps, budget=60))
    save_records(
        run_suite(
            net, data.x_test, data.y_test, attacks, eps=0.15, run='a', batch=4, parts=outputs / 'parts'
        ),
        outputs / 'records.parquet',
    )
    lock.release()


def forked(method, outputs):
    pid = os.fork()
    if pid:
        return pid
    try:
        sys.stdout = sys.stderr = open(outputs / 'log', 'a')
        work(method, outputs)
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


def ended(pid):
    return os.waitpid(pid, os.WNOHANG)[0] != 0


def kill(pid, outputs, evaluating, writing, rng):
    "Kill after something new was written, at random or while a file is half there; None if the child was faster"

    def seen():
        written = [*outputs.glob('chaos/runs/*/checkpoint.pt'), *outputs.glob('parts/*.parquet')]
        return {f: f.stat().st_mtime_ns for f in written}

    def parts():
        return set(outputs.rglob('*.part'))  # each has a name of its own

    def tried(f):
        try:
            return f()
        except FileNotFoundError:
            return None

    while evaluating and not any(outputs.glob('chaos/runs/*/run.json')):
        if ended(pid):
            return None
        time.sleep(0.001)
    before, half = seen(), parts()
    while tried(seen) in (None, before):
        if ended(pid):
            return None
        time.sleep(0.0005)
    until = time.monotonic() + (1.0 if writing else rng.uniform(0, 0.1))
    while time.monotonic() < until and not (writing and (tried(parts) or half) - half):
        if ended(pid):
            return None
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return ('evaluation' if any(outputs.glob('chaos/runs/*/run.json')) else 'training', bool(parts() - half))


def digest(outputs):
    (run,) = outputs.glob('chaos/runs/*')
    history, records = (
        pd.read_csv(run / 'history.csv').drop(columns='seconds'),
        pd.read_parquet(outputs / 'records.parquet'),
    )
    return hashlib.sha256(
        (run / 'weights.safetensors').read_bytes() + history.to_csv().encode() + records.to_csv().encode()
    ).hexdigest()[:16]


def chaos(method, kills):
    rng, hits = random.Random(method), []
    with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
        alone, killed = Path(a), Path(b)
        assert os.waitpid(forked(method, alone), 0)[1] == 0, (alone / 'log').read_text()
        for i in range(20 * kills):
            if len(hits) >= kills:
                break
            pid = forked(method, killed)
            hit = kill(pid, killed, len(hits) >= 0.6 * kills, i % 2, rng)
            if hit:
                hits.append(hit)
            elif (killed / 'records.parquet').exists():
                break
        assert os.waitpid(forked(method, killed), 0)[1] == 0, (killed / 'log').read_text()
        same = digest(alone) == digest(killed)
    training = sum(what == 'training' for what, _ in hits)
    half_written = sum(half for _, half in hits)
    print(
        f'{method}: {len(hits)} kills, {training} of training, {len(hits) - training} of evaluation,',
        f'{half_written} with a file half-written:',
        'equal' if same else 'DIFFERENT',
        flush=True,
    )
    return same and len(hits) >= kills and half_written >= kills // 4


if __name__ == '__main__':
    args = argparse.ArgumentParser(
        description='Kill every training and evaluation, and see whether it matters'
    )
    args.add_argument('methods', nargs='*', default=[*METHODS])
    args.add_argument('--kills', type=int, default=20)
    given = args.parse_args()
    torch.set_num_threads(1)
    sys.exit(not all([chaos(m, given.kills) for m in given.methods]))
