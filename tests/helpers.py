"What the tests share: where the project is, a copy of a part of it, and a notebook run from the shell"

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import nbformat
import warm
from warm import run_fork, start_fork

from adt_repro.base.parameters import ParameterError

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


# A scale of two runs that takes a minute, and changes of it
MINI = dict(
    scale='mini',
    dataset='digits',
    arch='small_cnn',
    epochs=3,
    eps=0.15,
    augment=False,
    experiments=dict(
        methods=['standard', 'at_pgd'],
        seeds=[0],
        rate=0.02,
        white_box=dict(n_test=40, n_targets=1, draws=2, sound=False, batch=10),
        spsa=dict(methods=['at_pgd'], seeds=[0], n_test=8, samples=[4], steps=2, budget=20),
    ),
)


def experiments(**change):
    "A change of MINI: other experiments"
    return dict(experiments=MINI['experiments'] | change)


def files_of_git():
    "The files that git would put into a fresh clone, relative to the root"
    command = ['git', 'ls-files', '-co', '--exclude-standard']
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in listed if (ROOT / name).is_file()]


def copy_files(names, folder):
    "Copies of some of the project's files, under the same names in another folder"
    for name in names:
        target = Path(folder) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    return Path(folder)


def cells_of(notebook):
    "Place and text of each cell of Python in a notebook of the project"
    for cell in json.loads(notebook.read_text())['cells']:
        code = ''.join(cell['source'])
        if cell['cell_type'] == 'code' and not code.startswith('%%'):
            yield f'{notebook.relative_to(ROOT)}, {cell["id"]}', code


def small_project(folder, *notebooks):
    "What some notebooks need of a clone, so that no test touches the real outputs/"
    copy_files(['settings.ini', *(f'nbs/{name}.ipynb' for name in notebooks)], folder)
    (Path(folder) / 'outputs').mkdir(exist_ok=True)
    return Path(folder)


def run(*command, cwd=ROOT, **options):
    "Run a command without input and keep what it says"
    settings = dict(stdin=subprocess.DEVNULL, capture_output=True, text=True) | options
    return subprocess.run([str(part) for part in command], cwd=cwd, **settings)


def tool(name, *args, cwd=ROOT):
    "Run a tool of this environment"
    return run(BIN / name, *args, cwd=cwd)


def papermill_arguments(notebook, out='out.ipynb', *options, **params):
    "What papermill is given to run a notebook; lists and tables as YAML; `out=None`: no output path"
    given = [] if out is None else [str(out)]
    given += [str(option) for option in options]
    for name, value in params.items():
        if isinstance(value, list | dict):
            given += ['-y', f'{name}: {json.dumps(value)}']
        else:
            given += ['-p', name, str(value)]
    return [f'nbs/{notebook}.ipynb', *given]


def papermill_command(notebook, out='out.ipynb', *options, **params):
    "The same as a command line"
    return [sys.executable, '-m', 'papermill', *papermill_arguments(notebook, out, *options, **params)]


def papermill(project, notebook, out='out.ipynb', *options, **params):
    "Run a notebook of a project in a fork of a process that has imported everything: what most tests need"
    args = papermill_arguments(notebook, out, *options, **params)
    return run_fork(warm.papermill, *args, cwd=project)


def papermill_begun(project, notebook, out='out.ipynb', **params):
    "Begin what `papermill` does, in a process that the caller kills; its output is in said.out and said.err"
    args = papermill_arguments(notebook, out, **params)
    said = [f'{project}/said.out', f'{project}/said.err']
    return start_fork(warm.papermill, *args, cwd=project, said=said)


def papermill_process(project, notebook, out='out.ipynb', *options, **params):
    "Run a notebook of a project as a user does: papermill and its kernel, two processes of their own"
    return run(*papermill_command(notebook, out, *options, **params), cwd=project)


def outputs_of(notebook):
    "All outputs of an executed notebook, as text in JSON"
    return json.dumps([cell.get('outputs') for cell in nbformat.read(notebook, 4).cells])


def snakemake(project, *args):
    "Run Snakemake in a folder, in a fork"
    return run_fork(warm.snakemake, *args, cwd=project)


def figures_of(scale):
    "Names of the figures in a folder such as outputs/tiny that are there as SVG, as PNG and as numbers"
    kinds = 'figures/*.svg', 'figures/*.png', 'frames/*.csv'
    return set.intersection(*({file.stem for file in scale.glob(kind)} for kind in kinds))


def without_digests(run):
    "A run's files as from before there were digests, or from somebody who changed them together with theirs"
    (run.parents[1] / 'SHA256SUMS').unlink(missing_ok=True)
    facts = json.loads((run / 'run.json').read_text())
    facts.pop('file_sha256', None)
    (run / 'run.json').write_text(json.dumps(facts))


def refusal(call, *args, **options):
    "The line of the `ParameterError` of a call; of another error its type and text; else what it gave"
    try:
        return f'gave {call(*args, **options)!r}'
    except ParameterError as error:
        return str(error)
    except Exception as error:  # whatever a library raises
        return f'{type(error).__name__}: {error}'


def lines_of(call, *args, **options):
    "The warnings of a call, as text"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        call(*args, **options)
    return [str(warning.message) for warning in caught]
