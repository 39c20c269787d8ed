"""The package in an empty environment: built, installed, complete and without the development tools

pytest -m slow tests/workflow/test_packaging.py                                       # with this Python
ADT_PYTHONS=python3.11,python3.12,python3.13 pytest -m slow tests/workflow/test_packaging.py
"""

import json
import os
import re
import subprocess
import sys

import pytest
from helpers import copy_files, files_of_git

PYTHONS = os.environ.get('ADT_PYTHONS', sys.executable).split(',')
USE = """
import importlib.resources
import pkgutil
import sys

import adt_repro as adt

found = pkgutil.walk_packages(adt.__path__, 'adt_repro.')
names = [m.name for m in found if not m.ispkg]
for name in names:
    importlib.import_module(name)
tools = {'nbdev', 'fastcore', 'papermill', 'pytest', 'nbclient', 'pyautoattack'}
assert len(names) >= 45 and not tools & set(sys.modules)
assert importlib.resources.files('adt_repro').joinpath('py.typed').is_file()

data = adt.load_data('digits')
model = adt.build_model('small_cnn', in_ch=1)
history = adt.train(model, data, method='adt_exp', eps=0.15, epochs=1)
x, y = data.x_test[:50], data.y_test[:50]
rows = adt.evaluate(model, x, y, adt.attacks.pgd, eps=0.15)
assert len(history) == 1 and len(rows) == 50 and rows.linf.max() <= 0.15 + 1e-6
print(sys.version.split()[0], len(names), 'modules')
"""


def run(*command, cwd=None):
    "Run it outside this project, with nothing of this environment"
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'VIRTUAL_ENV')}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "What a wheel puts into site-packages, without its requirements"
    folder = tmp_path_factory.mktemp('built')
    parts = (
        'adt_repro',
        'nbs',
        'vectors',
        'setup.py',
        'settings.ini',
        'pyproject.toml',
        'README.md',
        'MANIFEST.in',
    )
    copy_files([name for name in files_of_git() if name.split('/')[0] in parts], folder / 'clone')
    run(sys.executable, 'setup.py', '-q', 'build_py', '--build-lib', folder / 'lib', cwd=folder / 'clone')
    return folder / 'lib'


def test_vectors_without_a_clone(built, tmp_path):
    "They come with the package, and run in an empty folder, in which the results are written and nothing else"
    shipped = {
        file.relative_to(built / 'adt_repro' / '_vectors').as_posix() for file in built.rglob('_vectors/**/*')
    }
    assert {name for name in files_of_git() if name.startswith('vectors/')} <= {
        f'vectors/{name}' for name in shipped
    }
    code = f'import sys; sys.path.insert(0, {str(built)!r}); from adt_repro.command.main import run_command\n'
    code += 'import os; os.environ["PYTHONPATH"] = sys.path[0]; sys.exit(run_command())'
    listed = run(sys.executable, '-c', code, 'vectors', '--list', cwd=tmp_path)
    assert '  adt_repro: ' in listed and re.search(r'^  pgd: pgd-', listed, re.M), listed
    run(sys.executable, '-c', code, 'vectors', '--cases', 'pgd', '--json', 'found.json', cwd=tmp_path)
    found = json.loads((tmp_path / 'found.json').read_text())
    assert found['adapter'] == 'adt_repro' and {row['result'] for row in found['results']} == {'passed'}
    assert [file.name for file in tmp_path.iterdir()] == ['found.json']


@pytest.mark.slow
@pytest.mark.parametrize('python', PYTHONS)
def test_in_an_empty_environment(python, tmp_path):
    "sdist from git's files, wheel from the sdist, installed alone: complete, and the public face works"
    copy_files(files_of_git(), tmp_path / 'clone')
    for venv in 'build', 'empty':
        run(python, '-m', 'venv', tmp_path / venv)
    build, empty = (
        tmp_path / v / ('Scripts' if os.name == 'nt' else 'bin') / 'python' for v in ('build', 'empty')
    )
    run(build, '-m', 'pip', 'install', '-q', 'setuptools>=77')
    run(
        build,
        '-c',
        f'import setuptools.build_meta as b; b.build_sdist({str(tmp_path / "dist")!r})',
        cwd=tmp_path / 'clone',
    )
    (sdist,) = (tmp_path / 'dist').glob('*.tar.gz')
    run(build, '-m', 'pip', 'wheel', '-q', '--no-deps', '-w', tmp_path / 'dist', sdist)
    (wheel,) = (tmp_path / 'dist').glob('*.whl')
    assert wheel.stat().st_size < 4_000_000
    run(empty, '-m', 'pip', 'install', '-q', wheel)
    assert 'No broken requirements found' in run(empty, '-m', 'pip', 'check')
    assert ' modules' in run(empty, '-c', USE, cwd=tmp_path)
    adt = empty.with_name('adt')
    folder = tmp_path / 'a project of its own'
    folder.mkdir()
    (folder / 'settings.ini').write_text('[DEFAULT]\nlib_name = another\n')
    check_command(adt, folder)


def check_command(adt, folder):
    "The command in an empty folder: notebooks and scales come from the package, results go to this folder"
    trained = run(adt, 'train', 'at_pgd', '-p', 'epochs', '2', cwd=folder)
    assert 'next      adt evaluate digits-small_cnn-at_pgd-s0' in trained
    assert re.search(r'^  digits-small_cnn-at_pgd-s0 +trained .+ no$', run(adt, 'runs', cwd=folder), re.M)
    few = ['-p', 'n_test', '50', '-y', 'attacks: [fgsm, pgd20]']
    judged = run(adt, 'evaluate', 'digits-small_cnn-at_pgd-s0', *few, cwd=folder)
    assert re.search(r'^pgd20 +[0-9.]+ \[.+\] %, n=50$', judged, re.M), judged
    assert re.search(r'^  digits-small_cnn-at_pgd-s0 +trained .+ yes$', run(adt, 'runs', cwd=folder), re.M)
    assert 'Costs of scale paper' in run(adt, 'plan', 'paper', cwd=folder)
    assert 'report.html' in run(adt, 'report', 'demo', cwd=folder)
    listed = run(adt, 'vectors', '--list', cwd=folder)
    assert '  adt_repro: ' in listed and re.search(r'^  pgd: pgd-', listed, re.M), listed
    said = run(adt, 'vectors', '--json', 'vectors.json', cwd=folder)
    assert re.search(r'^adt_repro: passes (\d+) of the \1 vectors that it offers', said, re.M), said
    found = json.loads((folder / 'vectors.json').read_text())
    assert found['adapter'] == 'adt_repro' and len(found['results']) >= 40
    (folder / 'vectors.json').unlink()
    assert sorted(file.name for file in folder.iterdir()) == ['outputs', 'settings.ini']
