"The whole of a scale from one command: what it plans, what it makes, what it makes again, and what a kill costs"

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from adt_repro.planning.costs import cost_table
from adt_repro.runs.config import RULES
from adt_repro.runs.resolve import resolve
from adt_repro.runs.store import run_name

ROOT = Path(__file__).resolve().parents[1]
SCALES = [p.stem for p in sorted((ROOT / 'nbs' / 'scales').glob('*.yaml'))]
MINI = dict(
    scale='mini',
    dataset='digits',
    arch='small_cnn',
    epochs=3,
    eps=0.15,
    augment=False,
    experiments=dict(
        methods=['standard', 'at_pgd'],
        seeds=[0, 1],
        rate=0.02,
        white_box=dict(n_test=40, n_targets=1, draws=2, sound=False, batch=10),
        spsa=dict(methods=['at_pgd'], seeds=[0], n_test=8, samples=[4], steps=2, budget=20),
    ),
)


def project(root, **scale):
    "What the Snakefile needs of a clone, with a scale of its own"
    for f in ('Snakefile', 'settings.ini', 'profiles', 'nbs', 'adt_repro'):
        (shutil.copytree if (ROOT / f).is_dir() else shutil.copy)(ROOT / f, root / f)
    (root / 'nbs' / 'scales' / 'mini.yaml').write_text(yaml.safe_dump(MINI | scale))
    return root


def snakemake(root, *args, scale='mini', **how):
    call = [sys.executable, '-m', 'snakemake', '--cores', '2', '--config', f'scale={scale}', *args]
    return subprocess.run(
        call,
        cwd=root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **how,
    )


def planned(root, *args, **how):
    "The jobs of a dry run: {rule: set of runs, or {''}}"
    said = snakemake(root, '-n', *args, **how)
    assert said.returncode == 0, said.stdout
    jobs = {}
    for rule, body in re.findall(r'^(?:local)?rule (\w+):\n(.*?)(?=^\S|\Z)', said.stdout, re.M | re.S):
        run = re.search(r'wildcards: run=(\S+)', body)
        jobs.setdefault(rule, set()).add(run[1] if run else '')
    return {k: v for k, v in jobs.items() if k != 'all'}


@pytest.mark.parametrize('scale', SCALES)
def test_the_plan_names_runs_as_the_package_does(scale, tmp_path):
    "The Snakefile makes run names without importing PyTorch; every one is the folder that train.ipynb will write to"
    file = yaml.safe_load((ROOT / 'nbs' / 'scales' / f'{scale}.yaml').read_text())
    asked, jobs = file.pop('experiments'), planned(project(tmp_path), scale=scale)
    blank = dict.fromkeys(RULES) | dict(recipe='paper2020', device='auto')
    more = asked.get('more_seeds', {})
    names = {
        run_name(resolve(blank | file | dict(method=m, seed=s)))
        for m in asked['methods']
        for s in [*asked['seeds'], *more.get(m, [])]
    }
    assert (
        jobs['train'] == jobs['white_box'] == names
        and jobs['paper'] == {''}
        and len(names) == len(asked['methods']) * len(asked['seeds']) + sum(map(len, more.values()))
    )
    assert {k for k in ('transfer', 'landscape', 'diversity', 'ablation') if k in asked} == {
        k for k in jobs if jobs[k] == {''}
    } - {'paper'}


def test_a_scale_of_low_precision_and_an_ablation_of_another_network(tmp_path):
    "Attacks in bfloat16 have files of their own, for the report too; and an ablation may have its own network"
    e = MINI['experiments'] | dict(
        white_box=MINI['experiments']['white_box'] | dict(precision='bf16'),
        ablation=dict(arch='wrn-10-1', dataset='cifar10', seeds=2),
    )
    said = snakemake(project(tmp_path, arch='small_cnn', experiments=e), '-n', '-p')
    assert said.returncode == 0, said.stdout
    for f in (
        'records/white_box_bf16-digits-small_cnn-at_pgd-s0.parquet',
        'tables/white_box_bf16_vs_fp32-digits-small_cnn-at_pgd-s0.csv',
    ):
        assert f in said.stdout
    assert 'records/white_box-' not in said.stdout and '"precision": "bf16"' in said.stdout
    given = re.search(r'nbs/ablation.ipynb .* -y (\S.*?) </dev/null', said.stdout)[1]
    assert '"arch": "wrn-10-1"' in given and '"dataset": "cifar10"' in given


def test_more_seeds_of_one_method(tmp_path):
    "They are trained and evaluated, and belong to an experiment that names its methods and no seeds"
    e = MINI['experiments'] | dict(seeds=[0], more_seeds=dict(at_pgd=[0, 3]), spsa=dict(methods=['at_pgd']))
    jobs, names = (
        planned(project(tmp_path, experiments=e)),
        {f'digits-small_cnn-{run}' for run in ('standard-s0', 'at_pgd-s0', 'at_pgd-s3')},
    )
    assert jobs['train'] == jobs['white_box'] == names and jobs['spsa'] == names - {
        'digits-small_cnn-standard-s0'
    }
    assert int(cost_table(MINI | dict(experiments=e)).set_index('what').runs['total']) == 3


@pytest.mark.parametrize(
    'change, line',
    [
        (dict(scale='other'), "scale='other', expected the name of the file, 'mini'"),
        (
            dict(experiments=dict(methods=['standard'], rate=1)),
            'expected a table with at least methods and seeds',
        ),
        (dict(experiments=MINI['experiments'] | dict(spsas={})), "'spsas', expected methods, seeds"),
        (
            dict(experiments=MINI['experiments'] | dict(more_seeds=dict(at_pdg=[2]))),
            "more_seeds: 'at_pdg', expected standard, at_pgd",
        ),
        (
            dict(experiments=MINI['experiments'] | dict(more_seeds=dict(at_pgd=2))),
            "more_seeds={'at_pgd': 2}: expected a table of methods, for each a list of seeds",
        ),
        (
            dict(experiments=MINI['experiments'] | dict(more_seeds=['at_pgd'])),
            "more_seeds=['at_pgd']: expected a table of methods",
        ),
        (
            dict(experiments=MINI['experiments'] | dict(more_seeds=dict(at_pgd=[-2]))),
            "more_seeds={'at_pgd': [-2]}: expected a table of methods",
        ),
        (
            dict(experiments=MINI['experiments'] | dict(spsa=dict(seeds=[7]))),
            'digits-small_cnn-at_pgd-s7, expected the runs of methods and seeds',
        ),
        (dict(experiments=MINI['experiments'] | dict(methods=['at_pdg', 'at_pgd'])), "method='at_pdg'"),
        (dict(epochs=0), 'epochs=0: expected'),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_starts(change, line, tmp_path):
    done = snakemake(project(tmp_path, **change))
    assert done.returncode and line in done.stdout and not list((tmp_path / 'outputs').glob('*/runs')), (
        done.stdout
    )
    assert 'Traceback' not in done.stdout


def test_unknown_scale_and_setting(tmp_path):
    root = project(tmp_path)
    assert "scale='gpux': expected the files of nbs/scales/" in snakemake(root, scale='gpux').stdout
    assert '--config sclae: there is no such setting, expected scale' in snakemake(root, 'sclae=mini').stdout


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    root = project(tmp_path_factory.mktemp('whole'))
    done = snakemake(root)
    assert done.returncode == 0, done.stdout[-3000:]
    return root, done.stdout


def results(root):
    "What came out, free of how long it took"
    out = root / 'outputs' / 'mini'
    records = {f.name: pd.read_parquet(f) for f in sorted(out.glob('records/*.parquet'))}
    tables = {f.name: pd.read_csv(f) for f in sorted(out.glob('tables/*.csv'))}
    facts = {
        f.parent.name: {
            k: v for k, v in json.loads(f.read_text()).items() if k in ('results', 'train_set', 'test_set')
        }
        for f in sorted(out.glob('runs/*/run.json'))
    }
    return (
        records | tables,
        {f.parent.name: f.read_bytes() for f in out.glob('runs/*/weights.safetensors')},
        facts,
    )


def test_everything_is_made_and_then_nothing(made):
    root, said = made
    out = root / 'outputs' / 'mini'
    assert said.index('Costs of scale mini') < said.index('rule train')  # the cost, before anything starts
    assert {f.name for f in (out / 'runs').iterdir()} == {
        f'digits-small_cnn-{m}-s{s}' for m in ('standard', 'at_pgd') for s in (0, 1)
    }
    assert (
        len(list(out.glob('records/white_box-*.parquet'))) == 4
        and len(list(out.glob('notebooks/*.ipynb'))) == 4 + 4 + 1 + 1
    )
    assert '<table' in (out / 'report.html').read_text() and (out / 'tables' / 'claims.csv').exists()
    assert planned(root) == {}


@pytest.mark.parametrize(
    'file, again',
    [
        (
            'records/white_box-digits-small_cnn-at_pgd-s1.parquet',
            dict(white_box={'digits-small_cnn-at_pgd-s1'}, paper={''}),
        ),
        (
            'records/spsa-digits-small_cnn-at_pgd-s0.parquet',
            dict(spsa={'digits-small_cnn-at_pgd-s0'}, paper={''}),
        ),
        (
            'runs/digits-small_cnn-standard-s0/weights.safetensors',
            dict(
                train={'digits-small_cnn-standard-s0'}, white_box={'digits-small_cnn-standard-s0'}, paper={''}
            ),
        ),
        (
            'tables/white_box-digits-small_cnn-standard-s1.csv',
            dict(white_box={'digits-small_cnn-standard-s1'}, paper={''}),
        ),
        ('report.html', dict(paper={''})),
    ],
)
def test_what_is_deleted_is_made_again_with_what_depends_on_it(made, file, again):
    at = made[0] / 'outputs' / 'mini' / file
    kept, times = at.read_bytes(), at.stat()
    at.unlink()
    try:
        assert planned(made[0]) == again
    finally:
        at.write_bytes(kept)
        os.utime(at, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert planned(made[0]) == {}


def test_a_changed_parameter_makes_again_what_it_changes(made):
    file = made[0] / 'nbs' / 'scales' / 'mini.yaml'
    kept, runs = (
        file.read_text(),
        {f'digits-small_cnn-{m}-s{s}' for m in ('standard', 'at_pgd') for s in (0, 1)},
    )
    changes = [
        (
            dict(
                experiments=MINI['experiments']
                | dict(white_box=MINI['experiments']['white_box'] | dict(n_test=50))
            ),
            dict(white_box=runs, paper={''}),
        ),
        (dict(experiments=MINI['experiments'] | dict(paper=dict(margin=3.0))), dict(paper={''})),
        (dict(epochs=4), dict(train=runs, white_box=runs, spsa={'digits-small_cnn-at_pgd-s0'}, paper={''})),
    ]
    try:
        for change, again in changes:
            file.write_text(yaml.safe_dump(MINI | change))
            assert planned(made[0]) == again
    finally:
        file.write_text(kept)
    assert planned(made[0]) == {}


@pytest.mark.slow
def test_killed_in_training_and_in_evaluation_the_tables_are_the_same(made, tmp_path):
    root = project(tmp_path)
    out = root / 'outputs' / 'mini'

    def until(there, killed):
        call = subprocess.Popen(
            [sys.executable, '-m', 'snakemake', '--cores', '2', '--config', 'scale=mini'],
            cwd=root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while not there() and call.poll() is None:
            time.sleep(0.05)
        assert call.poll() is None, 'it came to its end before it could be killed'
        os.killpg(call.pid, signal.SIGKILL)
        call.wait()
        assert killed(), 'the kill came too late'

    until(lambda: list(out.glob('runs/*/checkpoint.pt')), lambda: not list(out.glob('runs/*/run.json')))
    until(lambda: list(out.glob('records/parts/*')), lambda: not list(out.glob('records/*.parquet')))
    first = {
        f: f.stat().st_mtime_ns
        for f in [*out.glob('records/parts/*'), *out.glob('runs/*/weights.safetensors')]
    }
    done = snakemake(root)
    assert done.returncode == 0, done.stdout[-3000:]
    assert first and {f: f.stat().st_mtime_ns for f in first} == first  # what was there was not made again
    (frames, weights, facts), (frames0, weights0, facts0) = results(root), results(made[0])
    assert weights == weights0 and facts == facts0 and frames.keys() == frames0.keys()
    for name, frame in frames.items():
        pd.testing.assert_frame_equal(frame, frames0[name], obj=name)
    assert planned(root) == {}
