"Two clones make one run each by Snakemake, and the second one's files are brought to the first"

import re
import shutil
import sys

import pytest
import yaml
from helpers import MINI, ROOT, run, snakemake

A, S = 'digits-small_cnn-at_pgd-s0', 'digits-small_cnn-standard-s0'
SMALL = {name: value for name, value in MINI['experiments'].items() if name != 'spsa'}


def clone(root):
    "What the Snakefile needs of a clone, with a scale of two runs"
    for name in ('Snakefile', 'settings.ini', 'profiles', 'nbs', 'adt_repro'):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, root / name)
    (root / 'nbs' / 'scales' / 'mini.yaml').write_text(yaml.safe_dump(MINI | dict(experiments=SMALL)))
    return root


def record(name):
    return f'outputs/mini/records/white_box-{name}.parquet'


def planned(root):
    "The jobs that Snakemake would run, with the number of each"
    done = snakemake(root, '--cores', '1', '--config', 'scale=mini', '-n')
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.findall(r'^(\w+) +(\d+)$', done.stdout + done.stderr, re.M)
    return {job: int(number) for job, number in found if job not in ('total', 'all')}


@pytest.fixture(scope='module')
def clones(tmp_path_factory):
    "Each has another run, trained and judged"
    roots = []
    for name in (S, A):
        root = tmp_path_factory.mktemp('clone')
        done = snakemake(clone(root), '--cores', '2', '--config', 'scale=mini', '--', record(name))
        assert done.returncode == 0, done.stdout + done.stderr
        assert 'Done. 3 more jobs make all of scale mini: ' in done.stderr and 'is made' not in done.stderr
        roots.append(root)
    return roots


def test_two_clones(clones):
    here, there = clones
    assert planned(here) == planned(there) == dict(train=1, white_box=1, paper=1)
    gather = [sys.executable, '-m', 'adt_repro.runs.gather', 'outputs/mini', there / 'outputs' / 'mini']
    done = run(*gather, cwd=here)
    assert done.returncode == 0, done.stderr
    assert f'\n  {A}: train/run, white_box/records, ' in done.stdout and ' taken\n' in done.stdout
    assert planned(here) == dict(paper=1)
    assert (here / record(A)).read_bytes() == (there / record(A)).read_bytes()
    told = (there / 'outputs' / 'mini' / 'SHA256SUMS').read_text().splitlines()
    assert {line for line in told if A in line} <= set(
        (here / 'outputs' / 'mini' / 'SHA256SUMS').read_text().splitlines()
    )


def test_another_network_of_the_same_name(clones, tmp_path):
    "A clone that has trained the same run with other data: its own network stays, and so no record is taken"
    here = clone(tmp_path)
    change = dict(n_train=300)
    content = MINI | dict(experiments=SMALL)
    (here / 'nbs' / 'scales' / 'mini.yaml').write_text(yaml.safe_dump(content | change))
    weights = f'outputs/mini/runs/{A}/weights.safetensors'
    done = snakemake(here, '--cores', '2', '--config', 'scale=mini', '--', weights)
    assert done.returncode == 0, done.stdout + done.stderr
    before = (here / weights).read_bytes()
    done = run(
        sys.executable,
        '-m',
        'adt_repro.runs.gather',
        'outputs/mini',
        clones[1] / 'outputs' / 'mini',
        cwd=here,
    )
    assert done.returncode == 1, done.stderr
    assert re.search(rf'{A}: train/run: refused: .*other parameters', done.stdout)
    assert re.search(rf'{A}: white_box/records.*: refused: .*other weights', done.stdout)
    assert (here / weights).read_bytes() == before and not (here / record(A)).exists()
