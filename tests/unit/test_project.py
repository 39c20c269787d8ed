"What holds the project together: notebooks, the exported package, and one source of requirements"

import configparser
import json
import re
from importlib.metadata import requires, version

import nbformat
import pytest
from helpers import ROOT, copy_files, files_of_git, tool
from mutations import FAULTS, notebook_of
from packaging.requirements import Requirement
from scipy.stats import t as student

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


def test_torch_and_torchvision_belong_together():
    import torch
    import torchvision

    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1.9], [5, 5, 6, 6]])
    assert torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 2]


def test_readme_repeats_the_recorded_numbers():
    import pandas as pd

    readme, table = (
        (ROOT / 'README.md').read_text(),
        pd.read_csv(ROOT / 'outputs' / 'digits' / 'tables' / 'digits_seeds.csv'),
    )
    assert (
        set(table.seed) == set(range(5))
        and (table.n == 360).all()
        and ((table.correct / table.n - table.accuracy).abs() < 1e-4).all()
    )
    for (method, recipe), rows in table.groupby(['method', 'recipe']):
        by = rows.groupby('attack').accuracy
        cells = [
            f'{100 * a.mean():.1f} ± {100 * student.ppf(0.975, len(a) - 1) * a.std() / len(a) ** 0.5:.1f}'
            for a in map(by.get_group, ('natural', 'fgsm', 'pgd20'))
        ]
        assert (
            f'| `{method}`{"" if recipe == "paper2020" else f", {recipe}"} | {" | ".join(cells)} |' in readme
        )


def test_readme_repeats_the_black_box_tables():
    import pandas as pd

    readme, tables, frames = (
        (ROOT / 'README.md').read_text(),
        ROOT / 'outputs' / 'digits' / 'tables',
        ROOT / 'outputs' / 'digits' / 'frames',
    )
    transfer, spsa = (
        pd.read_csv(tables / 'transfer.csv'),
        pd.concat(map(pd.read_csv, sorted(tables.glob('spsa-*.csv')))),
    )
    assert (
        (transfer.n == 360).all()
        and (spsa.n == 50).all()
        and (spsa.steps == 20).all()
        and transfer.run.nunique() == 4
    )
    for run, rows in transfer[transfer.attack == 'pgd20'].groupby('run'):
        own, other = (
            rows[(rows.source == run) == same].sort_values('accuracy').iloc[0] for same in (True, False)
        )
        asked = spsa[spsa.run == run].set_index('attack').accuracy
        cells = [
            f'{100 * own.accuracy:.1f}',
            f'{100 * other.accuracy:.1f} (`{other.source.split("-")[2]}`)',
            *(f'{100 * asked[k]:.0f}' for k in ('pgd20', 'spsa32', 'spsa256', 'square')),
        ]
        assert f'| `{run.split("-")[2]}` | {" | ".join(cells)} |' in readme
    black = [
        pd.read_csv(frames / 'soundness_transfer.csv'),
        *map(pd.read_csv, sorted(frames.glob('soundness_spsa-*.csv'))),
    ]
    assert all(f.passed.all() for f in black) and len(black[0]) == 32 and len(black) == 5


def test_readme_repeats_the_numbers_of_the_pictures():
    import pandas as pd

    from adt_repro.base.stats import mean_interval

    def pm(values, digits):
        m = mean_interval(values)
        return f'{m["mean"]:.{digits}f} ± {m["mean"] - m["lo"]:.{digits}f}'

    readme, frames = (ROOT / 'README.md').read_text(), ROOT / 'outputs' / 'digits' / 'frames'
    rows = pd.read_csv(frames / 'ablation.csv')
    assert (
        (rows.n_test == 360).all()
        and set(rows.seed) == {0, 1, 2}
        and (rows[rows.option == 'lbd'].groupby('value').size() == 3).all()
    )
    for lbd, d in rows[rows.option == 'lbd'].groupby('value'):
        assert (
            f'| {lbd:g} | {d.entropy.mean():.2f} | {pm(100 * d.natural, 1)} | {pm(100 * d.robust, 1)} |'
            in readme
        )
    assert f'`at_pgd` has {pm(100 * rows[rows.method == "at_pgd"].robust, 1)} %' in readme
    spread = pd.read_csv(frames / 'diversity_measures.csv').groupby(['run', 'kind']).variance.mean()
    for method in 'adt_exp', 'adt_exp_am', 'adt_imp_am':
        a, b = (spread[f'digits-small_cnn-{method}-s0'][k] for k in ('distribution', 'restarts'))
        assert f'({a:.2f} against {b:.2f}' in readme and (a > b) == (method == 'adt_exp')
    median = pd.read_csv(frames / 'curvature.csv').groupby('run').eigenvalue.median()
    said = [
        f'{median[f"digits-small_cnn-{m}-s0"]:.2g}'
        for m in ('standard', 'at_pgd', 'adt_exp', 'feature_scatter')
    ]
    assert (
        f'(median {said[0]}, against {said[1]} for `at_pgd`, {said[2]} for `adt_exp` '
        f'and {said[3]} for `feature_scatter`)'
        in readme
        and median.idxmin().endswith('-standard-s0')
    )
