"ablation.ipynb, killed and started again; and what becomes of its workers"

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import figures_of, papermill, papermill_command, small_project

QUICK = dict(
    train=True,
    scale='quick',
    lbd=[0, 10],
    n_mc=[],
    inner_steps=[],
    inner_momentum=[0, 1],
    rho=[],
    u_max=[0.9],
    seeds=2,
    epochs=1,
    n_train=100,
    n_test=40,
    draws=3,
)


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    return small_project(tmp_path_factory.mktemp('project'), 'ablation')


def test_ablation_goes_on_where_it_was_killed(project):
    quick = project / 'outputs' / 'quick'
    runs = quick / 'ablation' / 'runs'
    with open(project / 'killed.log', 'w') as log:
        process = subprocess.Popen(
            papermill_command('ablation', 'killed.ipynb', **QUICK),
            cwd=project,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    begin = time.monotonic()
    while len(list(runs.glob('*/run.json'))) < 2 and process.poll() is None:
        if time.monotonic() - begin > 240:
            break
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    made = {f: f.stat().st_mtime_ns for f in runs.glob('*/run.json')}
    assert len(made) >= 2, (project / 'killed.log').read_text()
    done = papermill(project, 'ablation', **QUICK)
    assert done.returncode == 0, done.stderr
    assert {f: f.stat().st_mtime_ns for f in made} == made  # what was finished is left alone
    assert len(list(runs.glob('*/run.json'))) == 2 * 7
    assert figures_of(quick) == {'ablation_frontier', 'ablation_options', 'ablation_hinge'}
    results = pd.read_csv(quick / 'frames' / 'ablation.csv')
    assert len(results) == 2 * (2 + 2 + 1 + 2) and results.seed.nunique() == 2
    assert (results.robust <= results.natural + 1e-9).all()
    of_momentum = results[results.option == 'inner_momentum']
    assert of_momentum.groupby('value').run.first()[1].endswith('base-s0')
    entropy = results[results.option == 'lbd'].groupby('value').entropy.mean()
    assert entropy[0] < entropy[10] < np.log(2)
    assert results[results.method == 'noise'].entropy.sub(np.log(2)).abs().max() < 1e-5


LONG = """
from adt_repro.runs.config import RULES
from adt_repro.runs.resolve import resolve
from adt_repro.runs.sweeps import finish_runs
if __name__ == '__main__':
    blank = dict.fromkeys(RULES) | dict(
        method='adt_exp', dataset='digits', recipe='paper2020', device='cpu', scale='long', epochs=1000
    )
    list(finish_runs([resolve(blank | dict(seed=s)) for s in range(3)], 'outputs', jobs=2))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc').is_dir(), reason='looks for processes in /proc')
def test_workers_end_with_their_parent(project):
    (project / 'long.py').write_text(LONG)
    process = subprocess.Popen([sys.executable, 'long.py'], cwd=project)

    def children():
        stats = {p.name: p / 'stat' for p in Path('/proc').glob('[0-9]*')}
        parents = {pid: f.read_text().rsplit(')', 1)[1].split()[1] for pid, f in stats.items() if f.exists()}
        return [int(pid) for pid, parent in parents.items() if parent == str(process.pid)]

    begin = time.monotonic()
    while (
        len(list(project.glob('outputs/long/runs/*/checkpoint.pt'))) < 2
        and time.monotonic() - begin < 120
        and process.poll() is None
    ):
        time.sleep(0.1)
    workers = children()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(workers) >= 2
    begin = time.monotonic()
    while any(Path(f'/proc/{p}').is_dir() for p in workers) and time.monotonic() - begin < 20:
        time.sleep(0.1)
    assert not [p for p in workers if Path(f'/proc/{p}').is_dir()]
