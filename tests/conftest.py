"What all tests share: one thread a process, and small trained runs; pyproject.toml has the order of the folders"

import os
import shutil

# The networks of the tests are too small for two threads: each process computes with one
os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest
from filelock import FileLock


@pytest.fixture(scope='session')
def tiny_run_of(tmp_path_factory, worker_id):
    """A function of a method and a seed that gives the folder of a finished tiny run.

    Each is trained once a session, by the first process that asks; the others wait for it.
    """
    from adt_repro.runs.select import tiny_run

    base = tmp_path_factory.getbasetemp()
    shared = (base if worker_id == 'master' else base.parent) / 'shared'
    shared.mkdir(exist_ok=True)

    def run_of(method, seed=0):
        with FileLock(shared / 'lock'):
            return shared / 'tiny' / 'runs' / tiny_run(shared / 'tiny', method, seed)

    return run_of


@pytest.fixture(scope='session')
def give_tiny_runs(tiny_run_of):
    "A function that puts copies of tiny runs into a project, as if its own notebooks had trained them"

    def give(project, *methods, scale='tiny', seeds=(0,)):
        for method in methods:
            for seed in seeds:
                run = tiny_run_of(method, seed)
                shutil.copytree(run, project / 'outputs' / scale / 'runs' / run.name, dirs_exist_ok=True)

    return give
