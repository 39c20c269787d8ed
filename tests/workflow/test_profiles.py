"Profiles: options that Snakemake knows, cards given out one by one, and a scale through a real Slurm"

import os
import re
import shutil
import subprocess
import sys
import time
from itertools import pairwise

import pandas as pd
import pytest
import yaml
from helpers import ROOT, snakemake

PROFILES = {
    p.parent.name: yaml.safe_load(p.read_text()) for p in sorted((ROOT / 'profiles').glob('*/config.yaml'))
}
MINI = dict(
    scale='mini',
    dataset='digits',
    arch='small_cnn',
    epochs=2,
    eps=0.15,
    augment=False,
    experiments=dict(
        methods=['standard', 'at_pgd'],
        seeds=[0, 1],
        white_box=dict(n_test=60, n_targets=2, draws=2, sound=False),
        spsa=dict(methods=['at_pgd'], seeds=[0], n_test=10, samples=[4], steps=2, budget=20),
    ),
)


def slurm(*args):
    return subprocess.run(args, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout


def test_profiles_name_options_of_snakemake():
    known = set(re.findall(r'^  --([a-z][a-z-]+)', snakemake(ROOT, '--help').stdout, re.M))
    assert {'retries', 'default-resources', 'slurm-logdir'} <= known and 'help-me' not in known
    assert {'default', 'slurm'} <= set(PROFILES)
    for name, options in PROFILES.items():
        assert set(options) <= known, (name, set(options) - known)
    # slurm is read instead of default, not beside it; it has more retries
    repeated = {name: value for name, value in PROFILES['default'].items() if name != 'retries'}
    assert repeated.items() <= PROFILES['slurm'].items()
    assert PROFILES['default']['retries'] < PROFILES['slurm']['retries']


def test_the_profile_that_is_named_is_the_only_one_read(tmp_path):
    "Else a line of profiles/default would not have to be repeated in the others"
    (tmp_path / 'Snakefile').write_text('rule all:\n    shell: "true"\n')
    for name, line in ('default', 'no-such-option: 1'), ('other', 'nolock: true'):
        (tmp_path / 'profiles' / name).mkdir(parents=True)
        (tmp_path / 'profiles' / name / 'config.yaml').write_text(line + '\n')
    assert snakemake(tmp_path, '-n').returncode != 0
    assert snakemake(tmp_path, '-n', '--workflow-profile', 'profiles/other').returncode == 0


def test_cards_are_given_out_one_by_one(tmp_path, monkeypatch):
    "ADT_GPUS: two jobs at a time, never on the same card; a third stops and says why; without it nothing is set"
    block = re.search(r'^if cards := .*?(?=^#)', (ROOT / 'Snakefile').read_text(), re.M | re.S)[0]
    (tmp_path / 'Snakefile').write_text(
        f'import os\n{block}\n'
        + """
rule all:
    input: [f'{i}.txt' for i in range(5)]
rule one:
    output: '{i}.txt'
    shell: 'a=$(date +%s.%N); sleep 0.5; echo ${{CUDA_VISIBLE_DEVICES-none}} $a $(date +%s.%N) > {output}'
"""
    )

    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', 'none')

    def ran(n, cards):
        for f in tmp_path.glob('*.txt'):
            f.unlink()
        monkeypatch.setenv('ADT_GPUS', cards)
        done = snakemake(tmp_path, '--cores', '8', '--default-resources', 'gpu=1', '--resources', f'gpu={n}')
        return done, [f.read_text().split() for f in sorted(tmp_path.glob('*.txt'))]

    done, jobs = ran(2, '3 5')
    assert done.returncode == 0, done.stderr
    assert len(jobs) == 5
    assert {card for card, *_ in jobs} == {'3', '5'}
    for card in '3', '5':
        spans = sorted((float(begin), float(end)) for c, begin, end in jobs if c == card)
        assert all(end <= begin for (_, end), (begin, _) in pairwise(spans)), spans

    done, _ = ran(5, '3 5')
    assert done.returncode != 0
    assert 'no card is free, --resources gpu=2 is missing' in done.stderr

    done, jobs = ran(5, '')
    assert done.returncode == 0, done.stderr
    assert [card for card, *_ in jobs] == ['none'] * 5


@pytest.fixture
def two(tmp_path):
    "Two folders with what the Snakefile needs of a clone, and a scale of four runs; the second is made without Slurm"
    if not shutil.which('sinfo') or not slurm(
        'sinfo', '--noheader', '--responding', '--states=idle,mixed,allocated'
    ):
        pytest.skip('there is no Slurm here that answers')
    for root in (tmp_path / 'slurm', tmp_path / 'here'):
        (root / 'outputs' / 'mini').mkdir(parents=True)
        for f in ('Snakefile', 'settings.ini', 'profiles', 'nbs'):
            (shutil.copytree if (ROOT / f).is_dir() else shutil.copy)(ROOT / f, root / f)
        (root / 'nbs' / 'scales' / 'mini.yaml').write_text(yaml.safe_dump(MINI))
        (root / 'outputs' / 'mini' / 'plan.txt').write_text('')  # what it costs is not asked here
    return tmp_path / 'slurm', tmp_path / 'here'


def results(root):
    out = root / 'outputs' / 'mini'
    return {
        str(f.relative_to(out)): pd.read_parquet(f) if f.suffix == '.parquet' else f.read_bytes()
        for f in sorted(out.glob('records/*.parquet')) + sorted(out.glob('runs/*/weights.safetensors'))
    }


@pytest.mark.slow
def test_a_scale_through_slurm(two):
    "Nine jobs, the records of a run without Slurm; a cancelled training is handed in again by `retries`"
    root, here = two
    command = [
        sys.executable,
        '-m',
        'snakemake',
        '--workflow-profile',
        'profiles/slurm',
        '--config',
        'scale=mini',
    ]
    with open(root / 'said.txt', 'w') as said:
        going = subprocess.Popen(
            command,
            cwd=root,
            env=os.environ | dict(OMP_NUM_THREADS='1'),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
    try:
        until = time.time() + 300
        while (
            not (
                ours := [
                    j.split()[0]
                    for j in slurm('squeue', '--noheader', '--states=running', '-o', '%i %Z').splitlines()
                    if j.endswith(f' {root}')
                ]
            )
            and time.time() < until
            and going.poll() is None
        ):
            time.sleep(1)
        assert ours, (root / 'said.txt').read_text()
        slurm('scancel', ours[0])
        assert going.wait(1800) == 0, (root / 'said.txt').read_text()[-3000:]
    finally:
        if going.poll() is None:
            going.terminate()
            going.wait(60)  # Snakemake takes its jobs back
    text = (root / 'said.txt').read_text()
    jobs = re.findall(r'has been submitted with SLURM jobid (\d+)', text)
    assert len(set(jobs)) == 10 and "SLURM status is: 'CANCELLED'" in text and 'Trying to restart' in text
    done = snakemake(here, '--cores', '2', '--config', 'scale=mini')
    assert done.returncode == 0, done.stderr[-3000:]
    by_slurm, by_hand = results(root), results(here)
    assert list(by_slurm) == list(by_hand) and len(by_hand) == 9
    for f, a in by_slurm.items():
        assert a.equals(by_hand[f]) if isinstance(a, pd.DataFrame) else a == by_hand[f], f
    assert 'Nothing to be done' in snakemake(root, *command[3:]).stderr
