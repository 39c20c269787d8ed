"train.ipynb as its users run it: by papermill, in a project folder of its own"

import ast
import json
import re
import shlex
import shutil
import sys

import nbformat
import pandas as pd
import pytest
import torch
import yaml
from helpers import ROOT, copy_files, outputs_of, papermill, papermill_process, small_project
from helpers import run as run_process

from adt_repro.attacks.gradient import fgsm, pgd
from adt_repro.command.main import make_parser
from adt_repro.data import load_data
from adt_repro.evaluation.evaluate import accuracy, evaluate, percent
from adt_repro.evaluation.measures import gain_share
from adt_repro.methods.table import OPTIONS
from adt_repro.runs.config import RULES, SESSION
from adt_repro.runs.gain import run_gain
from adt_repro.runs.store import load_method, load_run
from adt_repro.training.state import Recipe

SMALL = dict(epochs=2, n_train=128, n_test=50, seed=3)


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    return copy_files(['nbs/scales/paper.yaml'], small_project(tmp_path_factory.mktemp('project'), 'train'))


@pytest.fixture(scope='module')
def run(project):
    done = papermill(project, 'train', 'adt_exp.ipynb', method='adt_exp', **SMALL)
    assert done.returncode == 0, done.stderr
    assert 'unknown parameter' not in done.stderr
    return project / 'outputs' / 'demo' / 'runs' / 'digits-small_cnn-adt_exp-s3'


def test_a_run_is_complete(run):
    assert sorted(p.name for p in run.iterdir() if p.name != '.lock') == [
        'checkpoint.pt',
        'config.yaml',
        'history.csv',
        'run.json',
        'weights.safetensors',
    ]
    config = yaml.safe_load((run / 'config.yaml').read_text())
    facts = json.loads((run / 'run.json').read_text())
    assert (config['method'], config['n_mc'], config['eps'], config['n_train']) == ('adt_exp', 1, 0.15, 128)
    assert list(pd.read_csv(run / 'history.csv').epoch) == [1, 2]
    assert [r['attack'] for r in facts['results']] == ['natural', 'fgsm', 'pgd20']
    assert all(r['n'] == 50 for r in facts['results'])
    assert {'git_commit', 'versions', 'device', 'seconds', 'test_set'} <= set(facts)
    assert facts['gain'] == pytest.approx(gain_share(run_gain(run.parents[1], run.name, n_images=50)))


def test_its_weights_say_what_it_recorded(run):
    "An evaluation from scratch, of the network read back from disk, counts the same images"
    model, config = load_run(run)
    data = load_data('digits').head(128, 50)
    recorded = {r['attack']: r['correct'] for r in json.loads((run / 'run.json').read_text())['results']}
    for name, attack in dict(natural=None, fgsm=fgsm, pgd20=pgd).items():
        rows = evaluate(model, data.x_test, data.y_test, attack, eps=config['eps'])
        assert accuracy(rows)['correct'] == recorded[name]


def test_its_notebook_shows_everything(run):
    text = outputs_of(run.parents[3] / 'adt_exp.ipynb')
    assert text.count('"image/png": "') == 3
    assert 'epoch 2 of 2' in text and 'n=50' in text and str(ROOT) not in text and 'Traceback' not in text


def markdown_of(notebook):
    "What cells of an executed notebook have displayed as Markdown, by the cell's id"
    shown = {}
    for cell in nbformat.read(notebook, 4).cells:
        for output in cell.get('outputs', []):
            if 'text/markdown' in output.get('data', {}):
                shown[cell.id] = output.data['text/markdown']
    return shown


def test_its_report_begins_with_what_it_is_about(project, run):
    title = markdown_of(project / 'adt_exp.ipynb')['run-title'].splitlines()[0]
    assert all(word in title for word in ('adt_exp', 'digits', 'small_cnn'))


def test_its_report_ends_with_the_numbers_and_the_files(project, run):
    page, facts = markdown_of(project / 'adt_exp.ipynb')['result'], json.loads((run / 'run.json').read_text())
    for result in facts['results']:
        assert percent(result) in page
    assert '{share:.3f} [{lo:.3f}, {hi:.3f}], n={n}'.format(**facts['gain']) in page
    links = re.findall(r'\]\(([^)]*)\)', page)
    files = {(run.parents[1] / link).resolve() for link in links}  # for a notebook in outputs/demo/
    assert files == {file for file in run.iterdir() if file.name != '.lock'}


def test_its_links_lead_from_where_the_notebook_lies(project, run):
    "By the project's own command, which tells the notebook its place"
    given = [word for name, value in SMALL.items() for word in ('-p', name, value)]
    command = [sys.executable, '-m', 'adt_repro.runs.notebook', 'train', 'a/b/again.ipynb', *given]
    done = run_process(*command, '-p', 'method', 'adt_exp', cwd=project)
    assert done.returncode == 0, done.stderr
    page = markdown_of(project / 'a/b/again.ipynb')['result']
    links = re.findall(r'\]\(([^)]*)\)', page)
    assert links and all((project / 'a/b' / link).is_file() for link in links)


def test_its_report_says_what_next(project, run):
    "Each command is one of adt's and is about this run; the Python loads it"
    page = markdown_of(project / 'adt_exp.ipynb')['next']
    commands = [shlex.split(text) for text in re.findall('```\n(adt .*)\n```', page)]
    parsed = [make_parser().parse_args(words[1:]) for words in commands]
    assert {options.command for options in parsed} == {'evaluate', 'notebook', 'train', 'export'}
    place = str(run.relative_to(project))
    for words in commands:
        assert any(place in word or run.name in word for word in words)
    for options in parsed:
        for file in getattr(options, 'f', None) or []:
            assert (project / file).is_file()
    (code,) = re.findall('```python\n(.*?)```', page, re.DOTALL)
    (folder,) = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    assert folder == place and load_run(project / folder)


@pytest.fixture(scope='module')
def again(project, run):
    "The run as it was, after a real papermill made it anew from its config.yaml; and what that printed"
    names = 'weights.safetensors', 'config.yaml', 'history.csv', 'run.json'
    kept = shutil.copytree(run, project / 'kept')
    before = {name: (run / name).stat().st_mtime_ns for name in names}
    done = papermill_process(project, 'train', None, '-f', kept / 'config.yaml', fresh=True)
    assert done.returncode == 0, done.stderr
    assert all((run / name).stat().st_mtime_ns > before[name] for name in names)
    return kept, done.stdout


def test_its_config_repeats_it(run, again):
    "config.yaml is a parameter file; the same parameters give the same weights, to the bit, and the same history"
    kept, _ = again
    for name in 'weights.safetensors', 'config.yaml':
        assert (run / name).read_bytes() == (kept / name).read_bytes()
    first, second = (pd.read_csv(folder / 'history.csv').drop(columns='seconds') for folder in (kept, run))
    pd.testing.assert_frame_equal(first, second)


def test_without_an_output_path(again):
    "The executed notebook is what papermill prints"
    cells = nbformat.reads(again[1], 4).cells
    assert any(cell.get('outputs') for cell in cells)


def test_a_generator_is_part_of_the_run(project):
    "The implicit method: generator and encoder are on disk, with their optimiser, and U is on its curve"
    small = SMALL | dict(gen_width=8, z_dim=4)
    done = papermill(project, 'train', 'imp.ipynb', method='adt_imp_am', **small)
    assert done.returncode == 0, done.stderr
    run = project / 'outputs' / 'demo' / 'runs' / 'digits-small_cnn-adt_imp_am-s3'
    saved = torch.load(run / 'checkpoint.pt', weights_only=True)
    assert saved['epoch'] == 2 and len(saved['opts']) == 2 and saved['opts'][1]['state']
    for k, v in load_method(run).adversary.state_dict().items():
        assert torch.equal(v, saved['adversary'][k])
        assert k.split('.')[0] in ('generator', 'encoder')
    cells = {c.id: c.source for c in nbformat.read(project / 'imp.ipynb', 4).cells}
    assert "config['u_max']" in cells['curves']


def test_a_loss_that_is_not_finite_stops_papermill(project):
    done = papermill(project, 'train', method='trades', lr=1e19, **SMALL)
    assert done.returncode != 0 and 'adt_repro/training/' not in done.stderr
    line = (
        r'trades: the loss became (nan|inf) in epoch 1, step \d of 2. The last good checkpoint does not exist'
    )
    assert re.search(line, done.stderr)
    assert not (project / 'outputs' / 'demo' / 'runs' / 'digits-small_cnn-trades-s3' / 'run.json').exists()


def test_every_parameter_is_explained():
    done = run_process(sys.executable, '-m', 'papermill', '--help-notebook', 'nbs/train.ipynb')
    assert done.returncode == 0 and 'Unknown' not in done.stdout
    assert {*OPTIONS, *Recipe.__dataclass_fields__} <= set(RULES)
    for name in RULES | SESSION:
        assert f'  {name}: ' in done.stdout, name


def test_a_row_of_the_paper_rehearses(project):
    "-f paper.yaml with a row's name, made small: the row's own recipe is in the run's record"
    row = dict(method='at_pgd_madry', dataset='digits', arch='small_cnn', scale='demo', batch=64)
    scale = 'nbs/scales/paper.yaml'
    done = papermill(project, 'train', 'row.ipynb', '-f', scale, **row | SMALL | dict(epochs=1))
    assert done.returncode == 0, done.stderr
    run = project / 'outputs' / 'demo' / 'runs' / 'digits-small_cnn-at_pgd_madry-s3'
    config = yaml.safe_load((run / 'config.yaml').read_text())
    assert config.items() >= dict(method='at_pgd', drops=[102, 154], rows=None, eps=0.15).items()


def test_a_misspelt_parameter_stops_papermill(project):
    done = papermill_process(project, 'train', methdo='at_pgd')
    assert done.returncode == 1
    assert "methdo='at_pgd': there is no such parameter, did you mean 'method'?" in done.stderr
    assert 'adt_repro/base/' not in done.stderr  # a line, not a stack through our code


def test_numbers_as_text(tmp_path):
    "A fraction by -p, and 1e-3 in a file, which YAML reads as text: both are the run's numbers, in every cell"
    project = small_project(tmp_path, 'train')
    (project / 'given.yaml').write_text('lr: 1e-3\nn_train: 64\nn_test: 20\nepochs: 2\n')
    file = ('-f', project / 'given.yaml')
    done = papermill(
        project, 'train', 'out.ipynb', *file, method='standard', eps='8/255', max_minutes='1/1e7'
    )
    assert done.returncode == 0, done.stderr
    assert '1e-07 minutes are over after epoch 1' in (project / 'out.ipynb').read_text()
    done = papermill(project, 'train', 'out.ipynb', *file, method='standard', eps='8/255')
    assert done.returncode == 0, done.stderr
    (run,) = (project / 'outputs' / 'demo' / 'runs').iterdir()
    config = yaml.safe_load((run / 'config.yaml').read_text())
    assert (config['lr'], config['eps'], config['epochs']) == (0.001, 8 / 255, 2)
