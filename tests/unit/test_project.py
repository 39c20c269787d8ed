"What holds the project together: notebooks, the exported package, and one source of requirements"

import configparser
import json
import re
import runpy
import subprocess
from importlib.metadata import requires, version

import nbformat
import pytest
import setuptools
from helpers import ROOT, copy_files, files_of_git, tool
from mutations import FAULTS, notebook_of
from packaging.requirements import Requirement

NOTEBOOKS = sorted(p for p in (ROOT / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
names = [p.relative_to(ROOT / 'nbs').as_posix() for p in NOTEBOOKS]


@pytest.mark.parametrize('claim, ok', [('assert 1 + 1 == 3', False), ('assert 1 + 1 == 2', True)])
def test_canary(claim, ok, tmp_path):
    "nbdev_test says so when a notebook's assertion is wrong; else all its green lights would mean nothing"
    cells = [nbformat.v4.new_code_cell(claim)]
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=cells,
            metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')),
        ),
        tmp_path / 'canary.ipynb',
    )
    assert (tool('nbdev_test', '--path', tmp_path / 'canary.ipynb').returncode == 0) == ok


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "The files that git would put into a fresh clone, in a folder of their own"
    return copy_files(files_of_git(), tmp_path_factory.mktemp('copy') / 'adt_repro')


def test_the_package_is_what_the_notebooks_export(copy):
    "Modules that are deleted and exported again are those that are committed, and no others"

    def sources(root):
        package = root / 'adt_repro'
        return {f.relative_to(package).as_posix(): f.read_text() for f in package.rglob('*.py')}

    committed = sources(ROOT)
    for name in committed:
        if not name.endswith('__init__.py'):
            (copy / 'adt_repro' / name).unlink()
    assert tool('nbdev_export', cwd=copy).returncode == 0
    assert sources(copy) == committed
    assert len(committed) > 60


def test_notebooks_are_clean(copy):
    assert tool('nbdev_clean', cwd=copy).returncode == 0
    dirty = [
        n
        for n in names
        if json.loads((copy / 'nbs' / n).read_text()) != json.loads((ROOT / 'nbs' / n).read_text())
    ]
    assert not dirty


@pytest.mark.parametrize('path', NOTEBOOKS, ids=names)
def test_notebook_is_readable(path):
    "Executed, small, in small exported cells, free of errors and of the paths of the machine that ran it"
    nb = nbformat.read(path, 4)
    nbformat.validate(nb)
    code = [c for c in nb.cells if c.cell_type == 'code']
    exported = [c for c in code if c.source.startswith('#| export')]
    assert nb.metadata.kernelspec.name == 'python3' and path.stat().st_size < 300_000
    assert all(c.source.count('\n') < 30 for c in exported)
    assert any(c.outputs for c in code) and all(c.execution_count is None for c in code)
    outputs = re.sub(
        r'"image/png": "[^"]*"', '', json.dumps([c.outputs for c in code])
    )  # base64 may spell anything
    assert '"output_type": "error"' not in outputs
    lines = outputs.replace('\\n', ' ')  # a path may begin one
    assert not re.search(r'(?<![\w.])/(root|home|tmp|Users|work)/', lines)


def test_faults_to_try_can_be_put_in():
    "What tests/mutations.py replaces stands once in its notebook"
    for name, fault in FAULTS.items():
        sources = [cell.source for cell in nbformat.read(notebook_of(ROOT, fault.module), 4).cells]
        assert sum(source.count(fault.right) for source in sources) == 1, name


def test_settings_ini_is_the_single_source():
    ini = configparser.ConfigParser(delimiters=['='], interpolation=None)
    ini.read(ROOT / 'settings.ini')
    cfg, import_version = ini['DEFAULT'], (ROOT / 'adt_repro' / '__init__.py').read_text()
    assert version('adt_repro') == cfg['version'] and f'"{cfg["version"]}"' in import_version
    declared = {
        (r.name, str(r.specifier))
        for r in map(Requirement, ' '.join(v for k, v in cfg.items() if k.endswith('requirements')).split())
    }
    assert {(r.name, str(r.specifier)) for r in map(Requirement, requires('adt_repro'))} == declared
    others = (
        (ROOT / 'pyproject.toml').read_text()
        + (ROOT / 'environment.yml').read_text()
        + (ROOT / 'setup.py').read_text()
    )
    assert not [r for r, _ in declared if re.search(rf'\b{r}\b\s*[<>=~]=', others)]


def test_the_wheel_takes_no_folders_and_no_hidden_files(tmp_path, monkeypatch):
    monkeypatch.setattr(setuptools, 'setup', lambda **_: None)  # nothing is built
    files_of_the_wheel = runpy.run_path(str(ROOT / 'setup.py'))['files_of_the_wheel']
    wanted = ['paper.ipynb', 'published/table1.csv', 'scales/cpu.yaml', 'scales/schema.json']
    hidden = ['.ipynb', '.a.ipynb', 'scales/.b.yaml', 'published/.c']
    for name in [*wanted, *hidden, 'index.ipynb']:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for folder in 'x.ipynb', 'scales/.ipynb_checkpoints', 'scales/old', 'published/.ipynb_checkpoints':
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'cpu.yaml').touch()
    found = [file.relative_to(tmp_path).as_posix() for file in files_of_the_wheel(tmp_path)]
    assert found == wanted


def test_the_wheel_takes_all_vectors_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(setuptools, 'setup', lambda **_: None)
    files_of_the_vectors = runpy.run_path(str(ROOT / 'setup.py'))['files_of_the_vectors']
    wanted = ['README.md', 'adapters/a.py', 'cases/a.json', 'cases/a.safetensors', 'run.py', 'schema.json']
    for name in [*wanted, '.a.py', 'cases/.a.json', 'cases/a.npz', '__pycache__/a.pyc', 'adapters/old/b.py']:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    found = [file.relative_to(tmp_path).as_posix() for file in files_of_the_vectors(tmp_path)]
    assert found == wanted
    listed = subprocess.run(
        ['git', 'ls-files', 'vectors'], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert {str(file.relative_to(ROOT)) for file in files_of_the_vectors(ROOT / 'vectors')} == {
        *listed.stdout.splitlines()
    }


def test_torch_and_torchvision_belong_together():
    import torch
    import torchvision

    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1.9], [5, 5, 6, 6]])
    assert torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 2]
