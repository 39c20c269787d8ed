"Scales and parameters from strangers through Snakemake and real kernels: nothing runs, nothing is lost"

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import pytest
import warm
import yaml
from helpers import MINI, ROOT, copy_files, experiments, papermill, run, small_project, snakemake
from warm import run_fork, start_fork

from adt_repro.base.files import lock_file
from adt_repro.runs.scales import plan_digest

HOSTILE = "_ = 1; open('ran', 'w'); _"


def project(root, content=None, name='mini'):
    "What the Snakefile needs of a clone, with a scale of its own"
    for file in ('Snakefile', 'settings.ini', 'profiles', 'nbs', 'adt_repro'):
        copy = shutil.copytree if (ROOT / file).is_dir() else shutil.copy
        copy(ROOT / file, root / file)
    if isinstance(content, dict | None):
        content = yaml.safe_dump(MINI | (content or {}) | dict(scale=name)).encode()
    (root / 'nbs' / 'scales' / f'{name}.yaml').write_bytes(content)
    return root


def has_plan(root, name='mini'):
    "Note a plan, so that a start of Snakemake does not work out the costs"
    plan = root / 'outputs' / name / 'plan.txt'
    plan.parent.mkdir(parents=True, exist_ok=True)
    plan.write_text(f'{plan_digest(root / "nbs" / "scales" / f"{name}.yaml")}\nnoted\n')
    return root


def starts(root, *args, name='mini'):
    "Snakemake's exit status and all that it says"
    done = snakemake(root, '--cores', '2', '--config', f'scale={name}', *args)
    return done.returncode, done.stdout + done.stderr


# Snakemake

MALFORMED = dict(
    broken=b'scale: [mini',
    utf16=yaml.safe_dump(MINI).encode('utf-16'),
    seeds=experiments(seeds=3),
    paper=experiments(paper={HOSTILE: 1}),
    shell=experiments(methods=['`touch ran`'], spsa=None),
    many=experiments(ablation=dict(seeds=10**8)),
)
# More of what tests/unit/test_hostile.py has without Snakemake
MORE_MALFORMED = dict(
    row=dict(rows={'$(touch ran)': dict(method='standard')}),
    u_max=experiments(ablation=dict(u_max=[1e39])),
    radius=experiments(landscape=dict(radius=1e300)),
    empty=b'',
    a_list=b'[1, 2]',
    twice=yaml.safe_dump(MINI).encode() + b'lr: 0.1\nlr: 0.2\n',
    surrogate=yaml.safe_dump(MINI).encode() + b'label: "\\ud800"\n',
    methods=experiments(methods='at_pgd'),
    no_experiments=dict(experiments=None),
)
ALL_MALFORMED = [*MALFORMED, *(pytest.param(kind, marks=pytest.mark.slow) for kind in MORE_MALFORMED)]


@pytest.mark.parametrize('kind', ALL_MALFORMED)
def test_a_scale_that_does_not_fit_is_one_line(kind, tmp_path):
    root = project(tmp_path, (MALFORMED | MORE_MALFORMED)[kind])
    status, said = starts(root, '-n')
    line = [line for line in said.splitlines() if line.startswith('nbs/scales/mini.yaml: ')]
    assert status and len(line) == 1 and 'xpected' in line[0], said[-2000:]
    assert 'Traceback' not in said and not list(root.rglob('ran'))


# A table of costs that needs no PyTorch; the real one is in tests/workflow/test_snakefile.py
REFUSING = 'import sys\nsys.exit("n_mc=2: no such option")\n'


def test_a_planned_scale_is_checked_all_the_same(tmp_path):
    "A plan.txt that is newer than the scale, and not of it: it was believed, and printed as it is"
    root = project(tmp_path)
    (root / 'adt_repro' / 'planning' / 'costs.py').write_text(REFUSING)
    plan = root / 'outputs' / 'mini' / 'plan.txt'
    plan.parent.mkdir(parents=True)
    plan.write_text('planted \x1b]0;owned\x07\n')
    later = time.time() + 1000
    os.utime(plan, (later, later))
    status, said = starts(root, '-n')
    assert status and 'nbs/scales/mini.yaml: n_mc=2: no such option' in said, said[-2000:]
    assert 'planted' not in said

    has_plan(root)
    plan.write_text(plan.read_text() + 'Costs \x1b]0;owned\x07 of it\n')
    status, said = starts(root, '-n')
    assert status == 0 and 'Costs ]0;owned of it' in said and '\x1b]0' not in said


def test_a_small_number_stays_one(tmp_path):
    "5e-05 in JSON is text in YAML; and every word of a job's line is quoted"
    root = has_plan(project(tmp_path, dict(lr=0.00005)))
    status, said = starts(root, '-n', '-p')
    lines = re.findall(r'Shell command: (.*)', said)
    calls = [shlex.split(line) for line in lines if 'train-' in line]
    assert status == 0 and len(calls) == 2, said[-2000:]
    for words in calls:
        at = max(i for i, word in enumerate(words) if word in ('-y', '-j'))
        read = json.loads if words[at] == '-j' else yaml.safe_load
        assert read(words[at + 1])['lr'] == 5e-05
        assert words[-3:-1] == ['</dev/null', f'>{words[-2][1:]}'] and words[-1] == '2>&1'
    shell = (ROOT / 'Snakefile').read_text().partition('def call')[2].partition('wildcard_constraints')[0]
    assert '{log}' not in shell and '{wildcards.run}' not in shell and 'papermill' not in shell


# A job in place of a notebook, which needs no PyTorch and ends when it is told to
WAITING = """import os, time
while not os.path.exists('stop'):
    time.sleep(0.05)
"""


def test_a_second_snakemake_on_a_scale_is_refused(tmp_path):
    "It deleted what the first had finished; now a line says who is at work, and a kill leaves nothing locked"
    root = has_plan(project(tmp_path))
    (root / 'adt_repro' / 'runs' / 'notebook.py').write_text(WAITING)
    command, said = ['--cores', '1', '--config', 'scale=mini'], [f'{root}/first.out', f'{root}/first.err']
    first = start_fork(warm.snakemake, *command, cwd=root, said=said)
    try:
        until(lambda: list((root / 'outputs' / 'mini').glob('logs/train-*')), first)
        status, said = starts(root)
        who = rf"scale='mini': another process is making it \(process {first.pid} on host \S+, since .*\)"
        assert status and re.search(who, said), said[-2000:]
        assert 'Removing output files' not in said and 'Error in rule' not in said
        status, said = starts(root, '-n')
        assert status == 0 and 'This was a dry-run' in said, said[-2000:]
        assert first.is_alive()
        first.kill()
        first.join()
        _, said = starts(root, '--touch')  # the job of the first one is still there
        assert REFUSED not in said, said[-2000:]
    finally:
        first.kill()
        (root / 'stop').touch()


def until(condition, going):
    "Wait until something is there, for at most two minutes"
    last = time.monotonic() + 120
    while not condition() and going.is_alive() and time.monotonic() < last:
        time.sleep(0.05)
    assert condition() and going.is_alive(), 'the first one has ended too early'


REFUSED = 'another process is making it'
TRAINED = 'outputs/mini/runs/digits-small_cnn-standard-s0/run.json'
CHANGING = dict(
    delete=['--delete-all-output'],
    delete_temporary=['--delete-temp-output'],
    no_hooks=['--no-hooks'],
    touch=['--touch'],
    metadata=['--cleanup-metadata', TRAINED],
    dry_metadata=['-n', '--cm', TRAINED],
    shadow=['--cleanup-shadow'],
    unlock=['--unlock'],
    archive=['--archive', 'all.tar'],
    report=['--report', 'page.html'],
)
PRINTING = dict(
    dry=['-n'],
    dry_delete=['-n', '--delete-all-output'],
    summary=['--summary'],
    details=['-D'],
    lint=['--lint=text'],
    graph=['--rulegraph'],
    jobs=['--dag', 'dot'],
    rules=['--list'],
    untracked=['--list-untracked'],
    # How Snakemake starts a job, here and on another host
    job=['--mode', 'subprocess', '--delete-temp-output'],
    remote_job=['--mode', 'remote', '--delete-temp-output'],
)


@pytest.fixture(scope='module')
def in_work(tmp_path_factory):
    "A project whose scale is being made, by this process, with one file that is there"
    root = has_plan(project(tmp_path_factory.mktemp('in_work')))
    (root / TRAINED).parent.mkdir(parents=True)
    (root / TRAINED).write_text('{}')
    lock = lock_file(root / 'outputs' / 'mini' / '.snakemake.lock', 'mini', 'making it')
    yield root
    lock.release()


@pytest.mark.parametrize('command', CHANGING)
def test_what_changes_a_scale_in_work_is_refused(command, in_work):
    "Not only what makes files: --delete-all-output deleted all that the first had made"
    status, said = starts(in_work, *CHANGING[command])
    assert (in_work / TRAINED).exists()
    assert status and f'{REFUSED} (process {os.getpid()} on host ' in said, said[-2000:]
    assert 'Traceback' not in said


@pytest.mark.parametrize('command', PRINTING)
def test_what_prints_needs_no_lock(command, in_work):
    "Nor does a job, whose process reads the Snakefile while the main process holds the lock"
    status, said = starts(in_work, *PRINTING[command])
    assert (in_work / TRAINED).exists()
    assert REFUSED not in said and 'Traceback' not in said, said[-2000:]
    assert status == (command == 'lint'), said[-2000:]  # which has its advice


def test_delete_all_output_deletes(tmp_path):
    "Where nobody is at work"
    root = has_plan(project(tmp_path))
    (root / TRAINED).parent.mkdir(parents=True)
    (root / TRAINED).write_text('{}')
    status, said = starts(root, '--delete-all-output')
    assert status == 0 and not (root / TRAINED).exists(), said[-2000:]


@pytest.mark.parametrize('link', ['outputs', 'outputs/mini'])
def test_outputs_may_be_on_another_disk(link, tmp_path):
    "It was refused here, and by no notebook"
    (tmp_path / 'project').mkdir()
    root = has_plan(project(tmp_path / 'project'))
    (root / link).rename(tmp_path / 'disk')
    (root / link).symlink_to(tmp_path / 'disk')
    (tmp_path / 'disk' / TRAINED.removeprefix(f'{link}/')).parent.mkdir(parents=True)
    (root / TRAINED).write_text('{}')
    status, said = starts(root, '--delete-all-output')
    assert status == 0 and not (root / TRAINED).exists(), said[-2000:]
    assert (root / link).is_symlink() and (root / 'outputs' / 'mini' / 'plan.txt').is_file()


# papermill


def cells_of(tmp_path, *sources):
    "A small project whose train.ipynb has these cells, the first one its parameters"
    (tmp_path / 'nbs').mkdir()
    (tmp_path / 'settings.ini').write_text('[DEFAULT]\nlib_name = adt_repro\n')
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    nb.cells[0].metadata.tags = ['parameters']
    nb.metadata.kernelspec = dict(name='python3', language='python', display_name='python3')
    nbformat.write(nb, tmp_path / 'nbs' / 'train.ipynb')
    return tmp_path


def call(root, *args):
    "Execute train.ipynb into out.ipynb by the command that the Snakefile uses"
    return run(sys.executable, '-m', 'adt_repro.runs.notebook', 'train', 'out.ipynb', *args, cwd=root)


def notebook_command(*args):
    "The same command in a fork, with cells that run in its process"
    from papermill.engines import papermill_engines

    from adt_repro.runs.notebook import main

    papermill_engines.register(None, warm._engine())  # in place of the one that starts a kernel
    sys.exit(main([*args]))


def test_names_in_a_scale_do_not_run_in_seeds(tmp_path):
    "A name with an underscore in front passed the check, and papermill ran it"
    root = small_project(tmp_path, 'seeds', 'train')
    copy_files(['nbs/scales/digits.yaml'], root)
    content = {k: v for k, v in MINI.items() if k != 'experiments'} | {HOSTILE: 1, 'epochs': 1, 'n_train': 64}
    (root / 'nbs' / 'scales' / 'mini.yaml').write_text(yaml.safe_dump(content))
    done = papermill(root, 'seeds', scale='mini', train='true', methods=['standard'], seeds=2, jobs=1)
    assert not (root / 'ran').exists()
    assert done.returncode and 'there is no such parameter' in done.stderr


@pytest.mark.parametrize(
    'content',
    [
        {HOSTILE: 1},
        {"import os; os.system('touch ran'); label": 1},
        {'lr': 1e39},
        {'rows': {'mine': {1, 2}}},
        b'lr: 0.1\nlr: 0.2\n',
    ],
    ids=['underscore', 'import', 'large', 'set', 'twice'],
)
def test_a_file_of_parameters_is_checked_before_papermill(content, tmp_path):
    root = cells_of(tmp_path, 'lr = 0')
    text = content if isinstance(content, bytes) else yaml.dump(content).encode()
    (root / 'given.yaml').write_bytes(text)
    done = call(root, '-f', 'given.yaml')
    said = done.stderr.splitlines()
    assert done.returncode == 1 and len(said) == 1 and 'xpected' in said[0], said
    assert not (root / 'ran').exists() and not (root / 'out.ipynb').exists()


def test_what_passes_arrives_as_it_was(tmp_path):
    "Texts with quotes and backslashes, small numbers, tables"
    rows = {'a"\\\n\'': ['"; open("ran", "w"); "', '\\', 'é\u2028', None, True, 1e-300], "'''": {}}
    root = cells_of(
        tmp_path,
        'lr = 0\nrows = None\neps = 0',
        'import json\nopen("got", "w").write(json.dumps([lr, eps, rows]))',
    )
    (root / 'given.yaml').write_text(yaml.dump(dict(rows=rows, eps='8/255')))
    given = ['-f', 'given.yaml', '-y', 'lr: 5e-05']
    done = run_fork(notebook_command, 'train', 'out.ipynb', *given, cwd=root)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert json.loads((root / 'got').read_text()) == [5e-05, 8 / 255, rows]
    assert (root / 'out.ipynb').exists() and not (root / 'ran').exists()


def test_a_dead_kernel_is_one_line(tmp_path):
    "A real one"
    root = cells_of(tmp_path, 'lr = 0', 'import os, signal\nos.kill(os.getpid(), signal.SIGKILL)')
    done = call(root, '-p', 'lr', '1e-3')
    said = done.stderr.splitlines()
    assert done.returncode and len(said) == 1 and said[0].startswith('train.ipynb: the kernel died; '), said


def test_a_stopped_notebook_is_one_line(tmp_path):
    "Ctrl-C within a cell printed a traceback of the kernel, after its warning of TCP"
    root = cells_of(tmp_path, 'lr = 0', 'import time\nopen("begun", "w").close()\ntime.sleep(100)')
    command = [sys.executable, '-m', 'adt_repro.runs.notebook', 'train', 'out.ipynb']
    with subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True) as going:
        last = time.monotonic() + 120
        while not (root / 'begun').exists() and going.poll() is None and time.monotonic() < last:
            time.sleep(0.05)
        going.send_signal(signal.SIGINT)
        said = going.communicate()[1]
    assert (root / 'begun').exists() and going.returncode == 130
    assert said == 'train: stopped; the same command resumes it\n'
