"The package’s layout: every import points down a floor, no circle, lines that can be read, imports that are quick"

import ast
import pkgutil
import re
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter

import pytest
from helpers import ROOT

import adt_repro

PACKAGE = ROOT / 'adt_repro'
FLOORS = tomllib.loads((ROOT / 'tests' / 'floors.toml').read_text())['floors']
FLOOR = {name: number for number, names in enumerate(FLOORS, 1) for name in names}
FOUND = list(pkgutil.walk_packages(adt_repro.__path__, 'adt_repro.'))
MODULES = [m.name for m in FOUND if not m.ispkg and not m.name.endswith('_modidx')]
KNOWN = {m.name for m in FOUND}


def module_of(node, module):
    "The dotted name after `from`, without its dots"
    if not node.level:
        return node.module
    return '.'.join([*module.split('.')[: -node.level], *filter(None, [node.module])])


def imported(source, module):
    "Modules and packages of the package that a module’s source imports, within functions too"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            origin = module_of(node, module)
            names = {f'{origin}.{alias.name}' for alias in node.names}
            if names & KNOWN:  # from . import fit, from adt_repro import attacks
                yield from names & KNOWN
            elif origin.startswith('adt_repro.'):
                yield origin
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith('adt_repro.'))


def offences(edges):
    "Imports that do not point down, as text; edges are pairs of dotted names"
    for module, target in edges:
        above, below = module.split('.')[1], target.split('.')[1]
        if above != below and FLOOR[below] >= FLOOR[above]:
            yield f'{module} (floor {FLOOR[above]}) imports {target} (floor {FLOOR[below]})'


def graph(sources):
    "Each module to those that it imports"
    return {module: set(imported(source, module)) for module, source in sources.items()}


@pytest.fixture(scope='module')
def imports():
    files = {m: PACKAGE.joinpath(*m.split('.')[1:]).with_suffix('.py') for m in MODULES}
    return graph({m: file.read_text(encoding='utf-8') for m, file in files.items()})


def test_all_modules_are_seen():
    "Every file of the package is a module that these tests walk, and every package is on one floor"
    files = {p for p in PACKAGE.rglob('*.py') if p.stem not in ('__init__', '_modidx')}
    assert len(MODULES) == len(files) >= 45
    assert {m.split('.')[1] for m in MODULES} == set(FLOOR)
    assert sum(m.ispkg for m in FOUND) == 15


def test_every_import_points_down(imports):
    edges = [(module, target) for module, targets in imports.items() for target in targets]
    assert len(edges) > 150
    assert not list(offences(edges))


def test_no_circle(imports):
    order = list(TopologicalSorter(imports).static_order())
    assert set(order) >= set(MODULES)


def test_an_import_that_points_up_is_found():
    upwards = graph({'adt_repro.base.noise': 'def f():\n    from ..attacks.gradient import pgd'})
    edges = [(module, target) for module, targets in upwards.items() for target in targets]
    assert list(offences(edges)) == [
        'adt_repro.base.noise (floor 1) imports adt_repro.attacks.gradient (floor 3)'
    ]
    sideways = ('adt_repro.models.weights', 'adt_repro.speed.precision')
    assert len(list(offences([sideways]))) == 1
    within = graph(
        {'adt_repro.runs.fit': 'from .store import x', 'adt_repro.runs.store': 'from .fit import y'}
    )
    with pytest.raises(CycleError):
        list(TopologicalSorter(within).static_order())


@pytest.mark.parametrize('module', MODULES)
def test_imports_are_explicit(module):
    source = PACKAGE.joinpath(*module.split('.')[1:]).with_suffix('.py').read_text(encoding='utf-8')
    assert not re.search(r'^\s*from \S+ import \*', source, re.M)
    private = [
        f'{node.module}.{alias.name}'
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or '').startswith('adt_repro'))
        for alias in node.names
        if alias.name.startswith('_')
    ]
    assert not private, 'a private name of another module'


def test_lines_can_be_read():
    "At most one line in two hundred is longer than 110 characters, and none than 120"
    lines = []
    for module in MODULES:
        file = PACKAGE.joinpath(*module.split('.')[1:]).with_suffix('.py')
        source = file.read_text(encoding='utf-8')
        lines += re.sub(r'^__all__ = \[.*?\]$|^# %%.*?$', '', source, flags=re.M | re.S).splitlines()
    assert sum(len(line) > 110 for line in lines) <= 0.005 * len(lines)
    assert max(map(len, lines)) <= 120


def test_public_names_are_defined_once():
    "A name that two modules define would have to be told apart by every reader"
    homes = {}
    for module in MODULES:
        source = PACKAGE.joinpath(*module.split('.')[1:]).with_suffix('.py').read_text(encoding='utf-8')
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith('_'):
                homes.setdefault(node.name, []).append(module)
    assert len(homes) > 200
    twice = {name: modules for name, modules in homes.items() if len(modules) > 1 and name != 'main'}
    assert not twice


@pytest.mark.parametrize(
    'module', ['adt_repro', 'adt_repro.runs.config', 'adt_repro.base.parameters', 'adt_repro.attacks']
)
def test_what_is_light_stays_light(module):
    "These are imported by command lines and by Snakemake, which have no need of PyTorch"
    code = f"import sys, {module}; print(*sorted({{'torch', 'numpy', 'pandas'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ''


def test_imports_are_quick():
    "What only some functions need is imported by them: importing everything takes little longer than PyTorch does"
    code = '\n'.join(
        [
            'import importlib, sys, torch, torchvision',
            'before = set(sys.modules)',
            f'for name in {MODULES}: importlib.import_module(name)',
            "heavy = {'scipy', 'sklearn', 'matplotlib', 'seaborn', 'nbdev', 'fastcore', 'papermill', 'IPython'}",
            'print(*sorted(heavy & (set(sys.modules) - before)))',
        ]
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == '', (
        f'imported by a module rather than by the function that needs it: {done.stdout}'
    )
