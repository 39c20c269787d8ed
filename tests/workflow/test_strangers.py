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
import yaml
from helpers import MINI, ROOT, copy_files, experiments, papermill, run, small_project, snakemake

from adt_repro.runs import scales

HOSTILE = "_ = 1; open('ran', 'w'); _"
COMMAND = re.search(r'python -m (\S+)', (ROOT / 'Snakefile').read_text())[1]  # that calls notebooks


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
    digest = getattr(scales, 'plan_digest', str)(root / 'nbs' / 'scales' / f'{name}.yaml')
    plan.write_text(f'{digest}\nnoted\n')
    return root


def starts(root, *args, name='mini'):
    "Snakemake's exit status and all that it says"
    done = snakemake(root, '--cores', '2', '--config', f'scale={name}', *args)
    return done.returncode, done.stdout + done.stderr


# Snakemake

MALFORMED = dict(
    broken=b'scale: [mini',
    empty=b'',
    utf16=yaml.safe_dump(MINI).encode('utf-16'),
    a_list=b'[1, 2]',
    twice=yaml.safe_dump(MINI).encode() + b'lr: 0.1\nlr: 0.2\n',
    surrogate=yaml.safe_dump(MINI).encode() + b'label: "\\ud800"\n',
    seeds=experiments(seeds=3),
    methods=experiments(methods='at_pgd'),
    no_experiments=dict(experiments=None),
    paper=experiments(paper={HOSTILE: 1}),
    shell=experiments(methods=['`touch ran`'], spsa=None),
    row=dict(rows={'$(touch ran)': dict(method='standard')}),
    u_max=experiments(ablation=dict(u_max=[1e39])),
    radius=experiments(landscape=dict(radius=1e300)),
    many=experiments(ablation=dict(seeds=10**8)),
)


@pytest.mark.parametrize('kind', MALFORMED)
def test_a_scale_that_does_not_fit_is_one_line(kind, tmp_path):
    root = project(tmp_path, MALFORMED[kind])
    status, said = starts(root, '-n')
    line = [line for line in said.splitlines() if line.startswith('nbs/scales/mini.yaml: ')]
    assert status and len(line) == 1 and 'xpected' in line[0], said[-2000:]
    assert 'Traceback' not in said and not list(root.rglob('ran'))


def test_a_planned_scale_is_checked_all_the_same(tmp_path):
    "A plan.txt that is newer than the scale, and not of it: it was believed, and printed as it is"
    root = project(tmp_path, dict(n_mc=2))  # standard has no such option
    plan = root / 'outputs' / 'mini' / 'plan.txt'
    plan.parent.mkdir(parents=True)
    plan.write_text('planted \x1b]0;owned\x07\n')
    later = time.time() + 1000
    os.utime(plan, (later, later))
    status, said = starts(root, '-n')
    assert status and 'nbs/scales/mini.yaml: n_mc=2: method standard has no such option' in said, said[-2000:]
    assert 'planted' not in said

    has_plan(project_again(root))
    plan.write_text(plan.read_text() + 'Costs \x1b]0;owned\x07 of it\n')
    status, said = starts(root, '-n')
    assert status == 0 and 'Costs ]0;owned of it' in said and '\x1b]0' not in said


def project_again(root):
    "The project with its scale as it should be"
    (root / 'nbs' / 'scales' / 'mini.yaml').write_text(yaml.safe_dump(MINI))
    return root


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


def until(condition, going):
    "Wait until something is there, for at most two minutes"
    last = time.monotonic() + 120
    while not condition() and going.poll() is None and time.monotonic() < last:
        time.sleep(0.05)
    assert condition() and going.poll() is None, 'the first one has ended too early'


def test_a_second_snakemake_on_a_scale_is_refused(tmp_path):
    "It deleted what the first had finished; now one line says who is at work, and a kill leaves nothing locked"
    root = has_plan(project(tmp_path))
    out = root / 'outputs' / 'mini'
    command = [sys.executable, '-m', 'snakemake', '--cores', '1', '--config', 'scale=mini']
    quiet = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first = subprocess.Popen(command, cwd=root, start_new_session=True, **quiet)
    try:
        until(lambda: list(out.glob('logs/train-*')), first)
        status, said = starts(root)
        assert status and re.search(
            rf"scale='mini': another process is making it \(process {first.pid} on host \S+, since .*\)", said
        ), said[-2000:]
        assert 'Removing output files' not in said and 'Error in rule' not in said
        status, said = starts(root, '-n')
        assert status == 0 and 'This was a dry-run' in said, said[-2000:]
        assert first.poll() is None
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    status, said = starts(root, '--touch')
    assert 'another process is making it' not in said, said[-2000:]


# papermill


def cells_of(tmp_path, *sources):
    "A small project whose train.ipynb has these cells, the first one its parameters"
    (tmp_path / 'nbs').mkdir()
    (tmp_path / 'settings.ini').touch()
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    nb.cells[0].metadata.tags = ['parameters']
    nb.metadata.kernelspec = dict(name='python3', language='python', display_name='python3')
    nbformat.write(nb, tmp_path / 'nbs' / 'train.ipynb')
    return tmp_path


def call(root, *args):
    "Execute train.ipynb into out.ipynb by the command that the Snakefile uses"
    name = 'nbs/train.ipynb' if COMMAND == 'papermill' else 'train'
    return run(sys.executable, '-m', COMMAND, name, 'out.ipynb', *args, cwd=root)


def own_lines(done):
    "What a command says, without the notes of Jupyter itself"
    return [line for line in done.stderr.splitlines() if '[IPKernelApp]' not in line]


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
    assert done.returncode == 1 and len(own_lines(done)) == 1 and 'xpected' in done.stderr, done.stderr
    assert not (root / 'ran').exists() and not (root / 'out.ipynb').exists()


def test_what_passes_arrives_as_it_was(tmp_path):
    "Texts with quotes and backslashes, small numbers, tables: in a real kernel"
    rows = {'a"\\\n\'': ['"; open("ran", "w"); "', '\\', 'é\u2028', None, True, 1e-300], "'''": {}}
    root = cells_of(
        tmp_path,
        'lr = 0\nrows = None\neps = 0',
        'import json\nopen("got", "w").write(json.dumps([lr, eps, rows]))',
    )
    (root / 'given.yaml').write_text(yaml.dump(dict(rows=rows, eps='8/255')))
    done = call(root, '-f', 'given.yaml', '-y', 'lr: 5e-05')
    assert done.returncode == 0 and not own_lines(done), done.stderr
    assert json.loads((root / 'got').read_text()) == [5e-05, 8 / 255, rows]
    assert (root / 'out.ipynb').exists() and not (root / 'ran').exists()


def test_a_dead_kernel_is_one_line(tmp_path):
    root = cells_of(tmp_path, 'lr = 0', 'import os, signal\nos.kill(os.getpid(), signal.SIGKILL)')
    done = call(root, '-p', 'lr', '1e-3')
    said = own_lines(done)
    assert done.returncode and len(said) == 1 and said[0].startswith('train.ipynb: the kernel died; '), said
