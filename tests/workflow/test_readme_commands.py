"Each command of README is run as it is written, but for a few parameters that make it short; or CI runs it"

import json
import re
import shlex
import shutil

import pytest
import torch
import warm
import yaml
from helpers import BIN, ROOT, copy_files, papermill_process, snakemake
from warm import run_fork

from adt_repro.runs.scales import plan_digest

README = (ROOT / 'README.md').read_text(encoding='utf-8')
QUICK = '-p n_train 100 -p n_test 20 -p epochs 1'.split()
ATTACKS = ['-p', 'n_test', '20', '-p', 'sound', 'false', '-p', 'draws', '1', '-y', 'attacks: [fgsm, pgd20]']

# Commands of the project in the order in which they are run, each with what makes it short
SHORT = {
    'adt train adt_exp': QUICK,
    'adt evaluate digits-small_cnn-adt_exp-s0': ATTACKS,
    'adt train at_pgd': QUICK,
    'adt evaluate digits-small_cnn-adt_exp-s0 digits-small_cnn-at_pgd-s0': ATTACKS,
    'adt train adt_exp -p lbd 0.1 -p label adt_exp-lbd01': QUICK,
    'adt train adt_exp -p max_minutes 30': QUICK,
    'adt notebook landscape -p scale demo -y "runs: [digits-small_cnn-adt_exp-s0]"': [
        *'-p n_images 2 -p grid 3 -p n_samples 2 -p n_targets 1 -p n_curvature 2 -p curvature_steps 2'.split()
    ],
    'adt export digits-small_cnn-adt_exp-s0 exported': [],
    'adt plan demo': [],
}

# Commands of others: what runs them
ELSEWHERE = {
    'pip install uv && uv run papermill nbs/train.ipynb outputs/demo/adt_exp.ipynb -p method adt_exp': 'below',
    'pip install uv && OMP_NUM_THREADS=1 uv run nbdev_test && uv run pytest': '.github/workflows/ci.yml',
    'uv run .ci/docs.py && python -m http.server -d _docs': '.github/workflows/ci.yml',
    'uv run snakemake --cores 2 --config scale=demo': 'below',
    'pip install FOLDER_OF_THE_CLONE': 'tests/workflow/test_packaging.py',
    'uv run python': 'tests/unit/test_readme.py',
    'adt audit digits --rows 300': 'tests/notebooks/test_audit_notebook.py',
    'adt vectors': 'tests/unit/test_vectors_runner.py',
    'adt judge my_module:make_model --data test.npz --eps 8/255 --minutes 10': 'tests/workflow/test_judge_command.py',
}


def written_commands():
    "What stands in README as a command, in code within a line or in a block"
    blocks = [code for kind, code in re.findall(r'^```(\w*)\n(.*?)^```', README, re.M | re.S) if not kind]
    spans = re.findall(r'`([^`\n]+)`', re.sub(r'^```.*?^```', '', README, flags=re.M | re.S))
    lines = [line for block in blocks for line in block.splitlines()] + spans
    return [
        line for line in lines if re.match(r'(uv run|pip install|adt|python -m|papermill|snakemake) ', line)
    ]


def test_each_command_is_run_somewhere():
    commands = {
        command.removeprefix('uv run ') if 'adt' in command.split()[:3] else command
        for command in written_commands()
    }
    assert commands == {*SHORT, *ELSEWHERE}
    for command, place in ELSEWHERE.items():
        if place.endswith('.yml'):
            steps = [
                step.get('run', '').strip()
                for job in yaml.safe_load((ROOT / place).read_text())['jobs'].values()
                for step in job['steps']
            ]
            main = command.split(' && python -m http.server')[0].removeprefix('pip install uv && ')
            assert any(step.endswith(main) for step in steps), command
        assert place == 'below' or (ROOT / place).is_file()


@pytest.fixture(scope='module')
def clone(tmp_path_factory):
    "What the commands need of a clone"
    folder = tmp_path_factory.mktemp('clone')
    notebooks = [f'nbs/{name}.ipynb' for name in ('train', 'white_box', 'landscape')]
    scales = [str(file.relative_to(ROOT)) for file in (ROOT / 'nbs' / 'scales').iterdir()]
    copy_files(['settings.ini', *notebooks, *scales], folder)
    (folder / 'outputs').mkdir()
    return folder


@pytest.fixture(scope='module')
def said(clone):
    "What each command printed, all run one after the other in one clone"
    printed = {}
    for command, more in SHORT.items():
        done = run_fork(warm.adt, *shlex.split(command)[1:], *more, cwd=clone)
        assert done.returncode == 0, f'{command}\n{done.stdout}{done.stderr}'
        printed[command] = done.stdout
    return printed


def folder_of(clone, run):
    return clone / 'outputs' / 'demo' / 'runs' / run


def test_train_and_change_lambda(clone, said):
    config = folder_of(clone, 'digits-small_cnn-adt_exp-lbd01-s0') / 'config.yaml'
    assert yaml.safe_load(config.read_text())['lbd'] == 0.1
    for run_name in 'digits-small_cnn-adt_exp-s0', 'digits-small_cnn-at_pgd-s0':
        assert (folder_of(clone, run_name) / 'run.json').is_file()
    assert 'digits-small_cnn-adt_exp-s0' in said['adt train adt_exp -p max_minutes 30']


def test_evaluate_and_compare(said):
    one, two = (printed for command, printed in said.items() if command.startswith('adt evaluate'))
    for attack in 'natural', 'fgsm', 'pgd20':
        assert len(re.findall(rf'^{attack} .*n=20$', one, re.M)) == 1
        assert len(re.findall(rf'^{attack} .*n=20$', two, re.M)) == 2


def test_landscape_export_and_plan(clone, said):
    assert list((clone / 'outputs' / 'demo' / 'figures').glob('landscape*.png'))
    files = {file.suffix: file for file in (clone / 'exported').iterdir()}
    assert set(files) == {'.pt', '.json', '.md'}
    assert (
        torch.load(files['.pt'], weights_only=True)
        and json.loads(files['.json'].read_text())['eps'] == '0.15'
    )
    assert 'at_pgd' in said['adt plan demo']


def test_lines_of_python(clone, said, monkeypatch, capsys):
    "Load, judge, LaTeX: as they are written, in the clone where the commands were run"
    monkeypatch.chdir(clone)
    recipes = README.split('## Recipes')[1].split('\n## ')[0]
    lines = [
        line
        for line in re.findall(r'`([^`\n]+)`', recipes)
        if re.search(r'[=(]|^from ', line) and '--' not in line
    ]
    assert len(lines) == 5
    import adt_repro as adt

    names = dict(adt=adt, x=adt.load_data('digits').x_test[:10], y=adt.load_data('digits').y_test[:10])
    for line in lines:
        exec(line, names)
        names['net'] = names['model']
    assert set(names['rows'].attack) >= {'natural', 'fgsm', 'pgd20'} and set(names['rows'].i) == set(
        range(20)
    )
    assert r'\begin{tabular}' in capsys.readouterr().out


def test_first_command(tmp_path):
    "papermill and its kernel; one epoch in place of fifteen"
    copy_files(['settings.ini', 'nbs/train.ipynb'], tmp_path)
    (tmp_path / 'outputs' / 'demo').mkdir(parents=True)
    done = papermill_process(
        tmp_path, 'train', 'outputs/demo/adt_exp.ipynb', method='adt_exp', epochs=1, n_train=100
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'outputs/demo/runs/digits-small_cnn-adt_exp-s0/weights.safetensors').is_file()


def test_whole_paper_is_planned(tmp_path):
    "What Snakemake would do; tests/workflow/test_snakefile.py runs a small scale to its end"
    for name in 'Snakefile', 'settings.ini', 'profiles', 'nbs', 'adt_repro':
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    (command,) = [command for command in written_commands() if 'snakemake' in command]
    args = shlex.split(command)[3:]
    plan = tmp_path / 'outputs' / 'demo' / 'plan.txt'
    plan.parent.mkdir(parents=True)
    plan.write_text(
        plan_digest(tmp_path / 'nbs' / 'scales' / 'demo.yaml') + '\n'
    )  # `adt plan` is asked above
    done = snakemake(tmp_path, *args, '-n')
    assert done.returncode == 0, done.stderr
    methods = yaml.safe_load((ROOT / 'nbs' / 'scales' / 'demo.yaml').read_text())['experiments']['methods']
    assert all(method in done.stdout + done.stderr for method in methods)
    assert (BIN / 'snakemake').exists()
