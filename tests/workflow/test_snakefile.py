"The whole of a scale from one command: what it plans, makes and makes again, and what a kill costs"

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import yaml
from helpers import MINI, ROOT, experiments, run, snakemake

from adt_repro.planning.costs import cost_table
from adt_repro.runs.config import PARAMETERS, RULES
from adt_repro.runs.resolve import resolve
from adt_repro.runs.scales import plan_digest
from adt_repro.runs.store import run_folder

SCALES = [p.stem for p in sorted((ROOT / 'nbs' / 'scales').glob('*.yaml'))]
MINI_RUNS = {'digits-small_cnn-standard-s0', 'digits-small_cnn-at_pgd-s0'}
SCALE = ['--cores', '2', '--config', 'scale=mini']


def project(root, **scale):
    "What the Snakefile needs of a clone, with a scale of its own"
    for name in ('Snakefile', 'settings.ini', 'profiles', 'nbs', 'adt_repro'):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, root / name)
    (root / 'nbs' / 'scales' / 'mini.yaml').write_text(yaml.safe_dump(MINI | scale))
    return root


def refusal(root, scale, *settings):
    "What Snakemake says where it does not begin"
    done = snakemake(root, '--cores', '2', '--config', f'scale={scale}', *settings)
    said = done.stdout + done.stderr
    assert done.returncode, said
    assert not list((root / 'outputs').glob('*/runs'))
    return said


def dry_run(root, *args, scale='mini', targets=()):
    "What Snakemake says it would do; what that costs is not asked"
    plan = root / 'outputs' / scale / 'plan.txt'
    plan.parent.mkdir(parents=True, exist_ok=True)
    plan.write_text(plan_digest(root / 'nbs' / 'scales' / f'{scale}.yaml') + '\n')
    done = snakemake(root, '--cores', '2', '--config', f'scale={scale}', '-n', *args, '--', *targets)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def planned(root, scale='mini', targets=()):
    "The jobs of a dry run: {rule: set of runs, or {''}}"
    return jobs_in(dry_run(root, scale=scale, targets=targets))


def jobs_in(said):
    "The jobs in what a dry run says"
    jobs = {}
    for rule, body in re.findall(r'^(?:local)?rule (\w+):\n(.*?)(?=^\S|\Z)', said, re.M | re.S):
        found = re.search(r'wildcards: run=(\S+)', body)
        jobs.setdefault(rule, set()).add(found[1] if found else '')
    return {rule: runs for rule, runs in jobs.items() if rule != 'all'}


@pytest.mark.parametrize('scale', SCALES)
def test_the_plan_names_runs_as_the_package_does(scale, tmp_path):
    "Every run of the plan is the folder that train.ipynb will write to"
    file = yaml.safe_load((ROOT / 'nbs' / 'scales' / f'{scale}.yaml').read_text())
    costs = cost_table(file).set_index('what')
    asked = file.pop('experiments')
    (tmp_path / 'project').mkdir()
    jobs = planned(project(tmp_path / 'project'), scale=scale)
    more = asked.get('more_seeds', {})
    left_out = {name: PARAMETERS['train'][name].default for name in RULES}
    folders = set()
    for method in asked['methods']:
        for seed in [*asked['seeds'], *more.get(method, [])]:
            config = resolve(left_out | file | dict(method=method, seed=seed))
            folders.add(run_folder(config, tmp_path).name)
    assert jobs['train'] == jobs['white_box'] == folders
    assert jobs['paper'] == {''}
    assert len(folders) == len(asked['methods']) * len(asked['seeds']) + sum(map(len, more.values()))
    assert int(costs.runs['total']) >= len(folders)  # an ablation has runs of its own
    if 'ablation' not in asked:
        assert int(costs.runs['total']) == len(folders)
    wanted = {name for name in ('transfer', 'landscape', 'diversity', 'ablation') if name in asked}
    assert {rule for rule, runs in jobs.items() if runs == {''}} == wanted | {'paper'}


def test_a_scale_of_low_precision_and_an_ablation_of_another_network(tmp_path):
    "Attacks in bfloat16 have files of their own, for the report too; an ablation may have its own network"
    change = experiments(
        white_box=MINI['experiments']['white_box'] | dict(precision='bf16'),
        ablation=dict(arch='wrn-10-1', dataset='cifar10', seeds=2),
    )
    said = dry_run(project(tmp_path, **change), '-p')
    for f in (
        'records/white_box_bf16-digits-small_cnn-at_pgd-s0.parquet',
        'tables/white_box_bf16_vs_fp32-digits-small_cnn-at_pgd-s0.csv',
    ):
        assert f in said
    assert 'records/white_box-' not in said
    assert '"precision": "bf16"' in said
    given = re.search(r'notebook ablation .* -j (\S.*?) </dev/null', said)[1]
    assert '"arch": "wrn-10-1"' in given and '"dataset": "cifar10"' in given


def test_more_seeds_of_one_method(tmp_path):
    "They are trained and evaluated, and belong to an experiment that names its methods and no seeds"
    change = experiments(seeds=[0], more_seeds=dict(at_pgd=[0, 3]), spsa=dict(methods=['at_pgd']))
    jobs = planned(project(tmp_path, **change))
    names = {f'digits-small_cnn-{run}' for run in ('standard-s0', 'at_pgd-s0', 'at_pgd-s3')}
    assert jobs['train'] == jobs['white_box'] == names
    assert jobs['spsa'] == names - {'digits-small_cnn-standard-s0'}
    assert int(cost_table(MINI | change).set_index('what').runs['total']) == 3


@pytest.mark.parametrize(
    'change, line',
    [
        (experiments(spsa=dict(n_tset=3)), 'nbs/scales/mini.yaml: experiments: spsa: n_tset=3: there is no'),
        (experiments(ablation=dict(lbd=[-1])), 'nbs/scales/mini.yaml: experiments: ablation: lbd=[-1]'),
        # From the table of costs
        (dict(n_mc=2), 'nbs/scales/mini.yaml: n_mc=2: method standard has no such'),
    ],
)
def test_and_before_anything_starts(change, line, tmp_path):
    "What cannot be done is said in one line"
    said = refusal(project(tmp_path, **change), 'mini')
    assert line in said
    assert 'Traceback' not in said


def test_unknown_scale_and_setting(tmp_path):
    root = project(tmp_path)
    assert "scale='gpux': expected the files of nbs/scales/" in refusal(root, 'gpux')
    said = refusal(root, 'mini', 'sclae=mini')
    assert '--config sclae: there is no such setting, expected scale' in said


def make(root):
    "Make the whole scale with the code of this project, as a user does; what Snakemake says"
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    done = run(sys.executable, '-m', 'snakemake', *SCALE, cwd=root, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A whole scale as a user makes it, and what Snakemake says: every process is a real one"
    root = project(tmp_path_factory.mktemp('whole'))
    return root, make(root)


def results(root):
    "What came out, free of how long it took: frames, weights, facts of the runs"
    out = root / 'outputs' / 'mini'
    frames = {f.name: pd.read_parquet(f) for f in sorted(out.glob('records/*.parquet'))}
    frames |= {f.name: pd.read_csv(f) for f in sorted(out.glob('tables/*.csv'))}
    weights = {f.parent.name: f.read_bytes() for f in out.glob('runs/*/weights.safetensors')}
    facts = {}
    for file in out.glob('runs/*/run.json'):
        run = json.loads(file.read_text())
        facts[file.parent.name] = {k: run[k] for k in ('results', 'train_set', 'test_set')}
    return frames, weights, facts


def test_everything_is_made_and_then_nothing(made):
    root, said = made
    out = root / 'outputs' / 'mini'
    assert said.index('Costs of scale mini') < said.index('rule train')  # the cost, before anything starts
    assert {folder.name for folder in (out / 'runs').iterdir()} == MINI_RUNS
    assert len(list(out.glob('records/white_box-*.parquet'))) == 2
    assert len(list(out.glob('notebooks/*.ipynb'))) == 2 + 2 + 1 + 1
    assert '<table' in (out / 'report.html').read_text() and (out / 'tables' / 'claims.csv').exists()
    assert planned(root) == {}


@pytest.mark.parametrize(
    'file, again',
    [
        (
            'records/white_box-digits-small_cnn-at_pgd-s0.parquet',
            dict(white_box={'digits-small_cnn-at_pgd-s0'}, paper={''}),
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
            'tables/white_box-digits-small_cnn-standard-s0.csv',
            dict(white_box={'digits-small_cnn-standard-s0'}, paper={''}),
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
    kept = file.read_text()
    white_box = MINI['experiments']['white_box'] | dict(n_test=50)
    spsa_run = {'digits-small_cnn-at_pgd-s0'}
    changes = [
        (experiments(white_box=white_box), dict(white_box=MINI_RUNS, paper={''})),
        (experiments(paper=dict(margin=3.0)), dict(paper={''})),
        (dict(epochs=4), dict(train=MINI_RUNS, white_box=MINI_RUNS, spsa=spsa_run, paper={''})),
    ]
    try:
        for change, again in changes:
            file.write_text(yaml.safe_dump(MINI | change))
            assert planned(made[0]) == again
    finally:
        file.write_text(kept)
    assert planned(made[0]) == {}


AT_PGD, STANDARD = 'digits-small_cnn-at_pgd-s0', 'digits-small_cnn-standard-s0'
REASONS = 'are missing or would come out differently'


@pytest.fixture
def clone(made, tmp_path):
    "The made scale as git would give it: its files without Snakemake's notes, and with times in any order"
    (tmp_path / 'clone').mkdir()
    root = project(tmp_path / 'clone')
    shutil.copytree(made[0] / 'outputs', root / 'outputs')
    shutil.rmtree(root / 'outputs' / 'mini' / '.locks', ignore_errors=True)
    order = random.Random(0)
    for file in root.rglob('*'):
        if file.is_file():
            seconds = order.randrange(10**9, 17 * 10**8)
            os.utime(file, (seconds, seconds))
    return root


def edit(root, file, old, new):
    "Replace a text that stands once in a file of a project"
    text = (root / file).read_text()
    assert text.count(old) == 1, (file, old)
    (root / file).write_text(text.replace(old, new))


CW = (
    'adt_repro/attacks/gradient.py',
    '    steps: int = 30,  # gradient steps, at least 1\n    **options,  # further arguments of `pgd`',
    '    steps: int = 2,  # gradient steps, at least 1\n    **options,  # further arguments of `pgd`',
)


SQUARE = (  # in `square`, and not in `patches_l2`
    '_next_patch(images, first, t / budget)\n            tried',
    '_next_patch(images, first, 1.01 * t / budget)\n            tried',
)
PGD_STEPS = (
    '(from_attack(pgd, eps=eps, steps=inner_steps, step_size=step_size, clip_start=True))',
    ('(from_attack(pgd, eps=eps, steps=1 + inner_steps, step_size=step_size, clip_start=True))'),
)


def test_nothing_is_to_be_done_in_a_fresh_clone(clone):
    said = dry_run(clone)
    assert jobs_in(said) == {} and 'Nothing to be done' in said
    assert REASONS not in said and '--adopt' not in said


def test_an_edited_attack_makes_its_records_and_what_follows_again(clone):
    edit(clone, *CW)
    said = dry_run(clone)
    assert jobs_in(said) == dict(white_box=MINI_RUNS, paper={''})
    reason = f'records/white_box-{STANDARD}.parquet and 1 more: rows of cw: attacks.gradient.cw'
    assert said.count(REASONS) == said.count(reason) == 1
    assert 'rows of fgsm' not in said and f'  records/spsa-{AT_PGD}' not in said
    one = f'outputs/mini/records/white_box-{AT_PGD}.parquet'
    assert planned(clone, targets=[one]) == dict(white_box={AT_PGD})
    assert planned(clone, targets=[f'outputs/mini/records/spsa-{AT_PGD}.parquet']) == {}


def test_other_edits_make_again_what_they_change(clone):
    bound = 'adt_repro/paper/claims.py', 'bounds=(-np.inf, np.log10(0.5))', 'bounds=(-np.inf, np.log10(0.6))'
    comment = 'adt_repro/attacks/gradient.py', 'def cw(', 'def cw(  # Carlini and Wagner'
    rules = 'adt_repro/base/parameters.py', 'import reprlib', 'import reprlib, sys'
    for change, again in [(bound, ['paper']), (comment, []), (rules, [])]:
        file = clone / change[0]
        kept = file.read_text()
        edit(clone, *change)
        assert set(planned(clone)) == set(again), change
        file.write_text(kept)
    edit(clone, 'adt_repro/attacks/black_box.py', *SQUARE)
    assert planned(clone) == dict(spsa={AT_PGD}, paper={''})


ADOPT = sys.executable, '-m', 'adt_repro.runs.lock', 'outputs/mini', '--adopt', 'why'


def test_a_lock_that_is_missing_or_damaged(clone):
    lock = clone / 'outputs' / 'mini' / 'lock.json'
    text = lock.read_text()
    lock.unlink()
    said = dry_run(clone)
    assert jobs_in(said)['train'] == MINI_RUNS
    assert said.count('python -m adt_repro.runs.lock outputs/mini --adopt WHY') == 1 and REASONS not in said
    lock.write_text(text[:-20])
    done = snakemake(clone, *SCALE, '-n')
    said = done.stdout + done.stderr
    assert done.returncode and 'Traceback' not in said
    assert 'mini/lock.json: its SHA-256 is ' in said and 'it was changed or damaged' in said
    (clone / 'outputs' / 'mini' / 'SHA256SUMS').unlink()  # nothing is known of its digest
    assert 'mini/lock.json: is not a lock' in run(*ADOPT, cwd=clone).stderr
    lock.write_text(text)
    assert run(*ADOPT, cwd=clone).returncode == 0


def test_a_first_run_says_nothing_of_locks(tmp_path):
    said = dry_run(project(tmp_path))
    assert jobs_in(said)['train'] == MINI_RUNS
    assert REASONS not in said and '--adopt' not in said


def killed_when(root, there):
    "Start to make the scale, and kill all processes as soon as something is there"
    call = subprocess.Popen(
        [sys.executable, '-m', 'snakemake', *SCALE],
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


def test_a_job_that_was_killed_is_made_again(clone):
    "Although its files are there and true; what depends on it is not, because it reads the same files"
    edit(clone, *CW)
    killed_when(clone, lambda: list(clone.glob('.snakemake/incomplete/*')))
    edit(clone, CW[0], CW[2], CW[1])
    jobs = planned(clone)
    assert set(jobs) == {'white_box'} and jobs['white_box'] <= MINI_RUNS
    edit(clone, 'adt_repro/attacks/black_box.py', *SQUARE)
    assert planned(clone) == jobs | dict(spsa={AT_PGD}, paper={''})


def test_what_is_stale_is_made_again_and_the_rest_stays(clone):
    "Rows of other attacks are taken from the record; a stale run is trained from its beginning"
    out = clone / 'outputs' / 'mini'
    record = out / 'records' / f'white_box-{AT_PGD}.parquet'
    before, spsa = pd.read_parquet(record), (out / 'records' / f'spsa-{AT_PGD}.parquet').stat().st_mtime_ns
    edit(clone, *CW)
    said_then = make(clone)
    places = [said_then.index(said) for said in (REASONS, 'Costs of scale mini', 'rule white_box')]
    assert places == sorted(places)
    after = pd.read_parquet(record)
    others = before.attack != 'cw'
    pd.testing.assert_frame_equal(after[others], before[others])
    assert not after[~others].equals(before[~others])
    assert (out / 'records' / f'spsa-{AT_PGD}.parquet').stat().st_mtime_ns == spsa
    assert planned(clone) == {}

    weights = {name: (out / 'runs' / name / 'weights.safetensors').read_bytes() for name in MINI_RUNS}
    edit(clone, 'adt_repro/methods/table.py', *PGD_STEPS)
    assert planned(clone) == dict(train={AT_PGD}, white_box={AT_PGD}, spsa={AT_PGD}, paper={''})
    make(clone)
    same = {
        name: (out / 'runs' / name / 'weights.safetensors').read_bytes() == w for name, w in weights.items()
    }
    assert same == {STANDARD: True, AT_PGD: False}
    assert planned(clone) == {}


@pytest.mark.slow
def test_killed_in_training_and_in_evaluation_the_tables_are_the_same(made, tmp_path):
    root = project(tmp_path)
    out = root / 'outputs' / 'mini'

    def until(there, killed):
        killed_when(root, there)
        assert killed(), 'the kill came too late'

    until(lambda: list(out.glob('runs/*/checkpoint.pt')), lambda: not list(out.glob('runs/*/run.json')))
    until(lambda: list(out.glob('records/parts/*/*')), lambda: not list(out.glob('records/*.parquet')))
    there = [*out.glob('records/parts/*/*'), *out.glob('runs/*/weights.safetensors')]
    first = {file: file.stat().st_mtime_ns for file in there}
    done = snakemake(root, *SCALE)
    assert done.returncode == 0, done.stderr[-3000:]
    assert first and {f: f.stat().st_mtime_ns for f in first} == first  # what was there was not made again
    (frames, weights, facts), (frames0, weights0, facts0) = results(root), results(made[0])
    assert weights == weights0 and facts == facts0 and frames.keys() == frames0.keys()
    for name, frame in frames.items():
        pd.testing.assert_frame_equal(frame, frames0[name], obj=name)
    assert planned(root) == {}
