"What code reaches: the static reading against what really runs, and Python's rules for names one by one"

import ast
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers import ROOT

import adt_repro
from adt_repro.base.source import Reader, SourceError, reach_digest, reached
from adt_repro.evaluation.records import save_records
from adt_repro.evaluation.sanity import sanity_checks
from adt_repro.evaluation.suite import run_suite
from adt_repro.runs import made_from as made
from adt_repro.runs.attacks import white_box_attacks
from adt_repro.runs.config import PARAMETERS, RULES
from adt_repro.runs.fit import prepare_run, train_run
from adt_repro.runs.gain import save_gain
from adt_repro.runs.resolve import resolve
from adt_repro.runs.select import first_images, load_runs_and_digests
from adt_repro.speed.precision import attack_view

PACKAGE = Path(adt_repro.__file__).resolve().parent
CPU = torch.device('cpu')


# What really ran


def labels_of(file):
    "The lines of each statement at the top of a module, with its names: (first, last, [label])"
    module = file.relative_to(PACKAGE).with_suffix('').as_posix().replace('/', '.').removesuffix('.__init__')
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        else:
            names = [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
        first = min([node.lineno, *(d.lineno for d in getattr(node, 'decorator_list', []))])
        yield first, node.end_lineno, [f'{module}.{name}' for name in names]


LABELS = {}  # by file, the lines of its statements


def labels(code):
    "The definitions at the top of a module to which some code belongs"
    file = code.co_filename
    if code.co_name == '<module>' or not file.startswith(str(PACKAGE)):
        return []
    if file not in LABELS:
        LABELS[file] = list(labels_of(Path(file)))
    line = code.co_firstlineno
    return [label for first, last, names in LABELS[file] if first <= line <= last for label in names]


def is_in(label, modules):
    return any(f'{label}.'.startswith(f'{module}.') for module in modules)


@contextmanager
def watched(stops):
    """Collects the definitions of the package that are called in the block, except for those that are stopped and
    what these call. Two stopped modules call what they are given, so below them nothing is left out."""
    ran, stopped = set(), {}
    below = stops - {'base.parameters', 'evaluation.cache'}

    def is_stopped(code):
        if code not in stopped:
            stopped[code] = any(is_in(label, below) for label in labels(code))
        return stopped[code]

    def note(frame, event, _):
        if event != 'call' or not frame.f_code.co_filename.startswith(str(PACKAGE)):
            return
        above = frame
        while above is not None:
            if is_stopped(above.f_code):
                return
            above = above.f_back
        ran.update(label for label in labels(frame.f_code) if not is_in(label, stops))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield ran
    finally:
        sys.setprofile(before)


def unread(ran, definitions):
    "What ran, although it is not among the definitions"
    return sorted(ran - {label.partition('[')[0] for label in definitions})


def given_of(notebook, **change):
    "The parameters of a call"
    return {name: p.default for name, p in PARAMETERS[notebook].items()} | change


def facts_of(run, notebook, unit, **change):
    "The definitions of a unit of a run's files"
    given = given_of(notebook, **change)
    bound = made.bound_unit(notebook, unit, given, 'tiny', run.name, (run.name,))
    return made.made_from(made.Present(run.parents[1]), bound, given)[1]


OWN = dict(
    natural='evaluation.evaluate._judge',
    fgsm='attacks.gradient.fgsm',
    pgd20='attacks.gradient.pgd',
    mim='attacks.gradient.mim',
    cw='attacks.gradient.cw',
    feature='attacks.feature.fea_attack',
    distribution='methods.adversaries.worst_of_draws',
)  # what must run for each attack


def evaluated(run, attack, folder):
    "A record of one attack, as white_box.ipynb makes it"
    given = given_of('white_box', n_targets=2, draws=2)
    models, first, digests = load_runs_and_digests(run.parents[1], [run.name], CPU)
    data, x, y = first_images(first, 12, CPU)
    names = [] if attack == 'natural' else [attack]
    attacks, _ = white_box_attacks(models[run.name], first, data, given, names)
    seen = attack_view(models[run.name], 'fp32')
    how = dict(eps=first['eps'], cascade=[], batch=5, seed=0, limits={}, seen=seen, parts=None)
    rows = run_suite(models[run.name], x, y, attacks, run=run.name, **how)
    save_records(rows, folder / 'records' / 'white_box-x.parquet', digests)


@pytest.mark.parametrize('attack', OWN)
def test_what_makes_a_row_is_read(attack, tiny_run_of, tmp_path, monkeypatch):
    "Each function that runs is among the definitions of this attack's rows alone"
    run = tiny_run_of('at_pgd')
    with watched(made._STOPS_OF_OTHERS) as ran:
        evaluated(run, attack, tmp_path)
    monkeypatch.setattr(made, 'attacks_of', lambda kind, given: [attack])
    assert {'models.classifiers.SmallCNN', 'evaluation.suite.run_suite', OWN[attack]} <= ran
    assert unread(ran, facts_of(run, 'white_box', 'records', draws=2)) == []


def test_a_definition_that_is_left_out_is_found(tiny_run_of, tmp_path, monkeypatch):
    "The check above fails if one helper is missing, and if another attack is read instead"
    run = tiny_run_of('at_pgd')
    with watched(made._STOPS_OF_OTHERS) as ran:
        evaluated(run, 'cw', tmp_path)
    monkeypatch.setattr(made, 'attacks_of', lambda kind, given: ['cw'])
    found = facts_of(run, 'white_box', 'records')
    del found['attacks.gradient.sign_ascent']
    assert unread(ran, found) == ['attacks.gradient.sign_ascent']
    monkeypatch.setattr(made, 'attacks_of', lambda kind, given: ['fgsm'])
    assert 'attacks.gradient.cw' in unread(ran, facts_of(run, 'white_box', 'records'))


@pytest.mark.parametrize('method', ['at_pgd', 'adt_exp', 'adt_imp_am', 'feature_scatter', 'trades'])
def test_what_makes_a_network_is_read(method, tmp_path):
    short = dict(epochs=1, n_train=128, n_test=20)
    given = given_of('train', method=method, arch='small_cnn', device='cpu', scale='tiny', **short)
    with watched(made._STOPS_OF_TRAINING) as ran:
        run = prepare_run(resolve({name: given[name] for name in RULES}), tmp_path)
        assert len(list(train_run(run))) == 1
    bound = made.bound_unit('train', 'run', given, 'tiny', run.folder.name, (run.folder.name,))
    found = made.made_from(made.Present(tmp_path / 'tiny'), bound, given)[1]
    assert {'models.classifiers.SmallCNN', 'data._digits', 'training.loop.train_epochs'} <= ran
    assert len(ran) > 40
    assert unread(ran, found) == []


def test_what_makes_the_gain_and_the_checks_is_read(tiny_run_of, tmp_path):
    run = tiny_run_of('adt_exp')
    folder = tmp_path / 'tiny'
    shutil.copytree(run, folder / 'runs' / run.name)
    with watched(made._STOPS_OF_OTHERS) as ran:
        save_gain(folder, run.name, n_images=12, device=CPU, fresh=True, mark='')
    assert 'evaluation.measures.measure_gain' in ran
    assert unread(ran, facts_of(run, 'white_box', 'gain')) == []
    models, first, _ = load_runs_and_digests(folder, [run.name], CPU)
    _, x, y = first_images(first, 12, CPU)
    with watched(made._STOPS_OF_OTHERS) as ran:
        sanity_checks(models[run.name], x, y, eps=first['eps'], seed=0, batch=12)
    assert {'evaluation.sanity.sanity_checks', 'attacks.gradient.fgsm'} <= ran
    assert unread(ran, facts_of(run, 'white_box', 'soundness')) == []


# Python's rules for names


def package(folder, **modules):
    "A package with some modules, `a__b` for a/b.py; and a notebook for each name that begins with nb_"
    for name, text in modules.items():
        if name.startswith('nb_'):
            file = folder / 'nbs' / f'{name.removeprefix("nb_")}.ipynb'
            cells = [dict(cell_type='code', id=cell, source=source) for cell, source in text.items()]
            text = json.dumps(dict(cells=cells))
        else:
            file = folder / 'adt_repro' / f'{name.replace("__", "/")}.py'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    for inner in {file.parent for file in (folder / 'adt_repro').rglob('*.py')}:
        (inner / '__init__.py').touch()
    return Reader(folder)


H = 'def h():\n    return 1\n\n'  # what may be reached


@pytest.mark.parametrize(
    'text, is_reached',
    [
        # A function's own names hide those of the module
        ('def f():\n    return h()', True),
        ('def f(h):\n    return h()', False),
        ('def f(*h):\n    return h', False),
        ('def f(**h):\n    return h', False),
        ('def f(*, h):\n    return h', False),
        ('def f(h, /):\n    return h', False),
        ('def f(x):\n    h = x\n    return h', False),
        ('def f(x):\n    for h in x:\n        return h', False),
        ('def f(x):\n    with x as h:\n        return h', False),
        ('def f(x):\n    h, y = x\n    return h', False),
        ('def f(x):\n    if (h := x):\n        return h', False),
        ('def f(x):\n    try:\n        x()\n    except ValueError as h:\n        return h', False),
        ('def f():\n    import h\n    return h', False),
        ('def f():\n    def h():\n        return 2\n    return h()', False),
        ('def f():\n    class h:\n        pass\n    return h', False),
        ('def f():\n    global h\n    h = h()\n    return h', True),
        ('def f(x):\n    return x.h', False),
        ('def f(x):\n    return dict(h=x)', False),
        # Functions inside functions see the names of both
        ('def f(h):\n    def g():\n        return h()\n    return g', False),
        ('def f():\n    def g(h):\n        return h\n    return g, h', True),
        ('def f():\n    def g():\n        h = 1\n        return h\n    return g', False),
        ('def f():\n    def g():\n        h = 1\n        return h\n    return h', True),
        ('def f():\n    return lambda h: h', False),
        ('def f():\n    return lambda x: h(x)', True),
        ('def f():\n    return lambda x=h: x', True),
        ('def f():\n    h = 1\n    return lambda: h', False),
        # Comprehensions have names of their own
        ('def f(x):\n    return [h for h in x]', False),
        ('def f(x):\n    return {h: 1 for h, _ in x}', False),
        ('def f(x):\n    return [y for y in h(x)]', True),
        ('def f(x):\n    return [h for h in x], h', True),
        ('def f(x):\n    return sum(h(y) for y in x)', True),
        ('def f(x):\n    return [y for y in x if h(y)]', True),
        ('def f(x):\n    return [h for h in h]', True),
        ('def f(x):\n    return [(h := y) for y in x], h', False),
        # What is computed when a function or a class is defined
        ('@h\ndef f():\n    return 1', True),
        ('def f(x=h()):\n    return x', True),
        ('def f(*, x=h()):\n    return x', True),
        ('def f(h=h()):\n    return h', True),
        ('class f:\n    x = h()', True),
        ('class f(h):\n    pass', True),
        ('class f(metaclass=h):\n    pass', True),
        ('class f:\n    def g(self):\n        return h()', True),
        ('class f:\n    def h(self):\n        return 1', False),
        ('class f:\n    h = 1\n    def g(self):\n        return h()', True),
        ('@h\nclass f:\n    pass', True),
        # Values of names
        ('f = h()', True),
        ('f = {1: h}', True),
        ('f: int = h()', True),
        ('f = 1\nf += h()', True),
        ('f = {}\nf["a"] = h', True),
        ('f = {}\nf.a = h', True),
        ('f = {}\nf["a"]["b"] = h', True),
        ('f = {}\nf.update(a=h)', True),
        ('f = {}\nprint(f, h)', True),
        ('f = {}\ng = f["a"], h', False),
        ('f = {}\nwhile not f:\n    f[1] = h', True),
        ('f = 1\nif f:\n    f = h()', True),
        ('f, g = h(), 1', True),
        ('try:\n    f = h()\nexcept ValueError:\n    f = None', True),
        # What has no effect
        ('def f():\n    "h()"\n    return 1', False),
        ('def f():  # h()\n    return 1', False),
        ('def f(x: h) -> h:\n    return x', False),
        ('def g():\n    return h()\n\ndef f():\n    return 1', False),
        ('def f(x):\n    match x:\n        case h:\n            return h', False),
        ('def f(x):\n    del x[h]', True),
        ('def f():\n    return f"{h()}"', True),
        ('async def f():\n    await h()', True),
    ],
)
def test_names(text, is_reached, tmp_path):
    found = reached('m.f', reader=package(tmp_path, m=H + text))
    assert set(found) == ({'m.f', 'm.h'} if is_reached else {'m.f'})


IMPORTS = {
    'from this package': dict(m='from adt_repro.k import h\ndef f():\n    return h()', k=H),
    'relative': dict(m='from .k import h\ndef f():\n    return h()', k=H),
    'relative, of an inner package': dict(a__m='from ..k import h\ndef f():\n    return h()', k=H),
    'of a neighbour': dict(a__m='from .k import h\ndef f():\n    return h()', a__k=H),
    'under another name': dict(m='from .k import h as g\ndef f():\n    return g()', k=H),
    'inside the function': dict(m='def f():\n    from .k import h\n    return h()', k=H),
    'inside, under another name': dict(m='def f():\n    from .k import h as g\n    return g()', k=H),
    'passed on': dict(m='from .l import h\ndef f():\n    return h()', l='from .k import h', k=H),
    'as an attribute': dict(m='from . import k\ndef f():\n    return k.h()', k=H),
    'as an attribute, under another name': dict(m='from . import k as g\ndef f():\n    return g.h()', k=H),
    'of an attribute': dict(m='from adt_repro import k\ndef f():\n    return k.h.x.y()', k=H),
    'of a whole package': dict(m='import adt_repro.k\ndef f():\n    return adt_repro.k.h()', k=H),
    'of a module in a package': dict(m='from .a import k\ndef f():\n    return k.h()', a__k=H),
}


@pytest.mark.parametrize('way', IMPORTS)
def test_imports(way, tmp_path):
    "A definition is found wherever it is imported from, and what its module has besides does not count"
    modules = IMPORTS[way]
    more = {name: text + '\ndef other():\n    return 2\n' for name, text in modules.items()}
    entry = next(name for name in modules if name.endswith('m')).replace('__', '.') + '.f'
    home = next(name for name in modules if name.endswith('k')).replace('__', '.') + '.h'
    assert set(reached(entry, reader=package(tmp_path, **more))) == {entry, home}


def test_a_whole_module_is_reached_if_it_is_handed_on(tmp_path):
    reader = package(tmp_path, m='from . import k\ndef f(g):\n    return g(k)', k=H + 'x = 1\n')
    assert set(reached('m.f', reader=reader)) == {'m.f', 'k.h', 'k.x'}


def test_circles_end(tmp_path):
    reader = package(
        tmp_path,
        m='from .k import g\ndef f():\n    return g()',
        k='from . import m\ndef g():\n    return m.f(), g()',
    )
    assert set(reached('m.f', reader=reader)) == {'m.f', 'k.g'}


@pytest.mark.parametrize(
    'table',
    [
        'T = dict(a=a, b=b)',
        'T = {"a": a, "b": b}',
        'T = dict(a=a) | dict(b=b)',
        'T = {"a": a} | dict(b=b) | {}',
    ],
)
def test_a_choice_from_a_table(table, tmp_path):
    "Only the chosen entries count, also if the table is joined of several"
    text = (
        f'def a():\n    return 1\n\ndef b():\n    return 2\n\n{table}\n\ndef f(name):\n    return T[name]()'
    )
    reader = package(tmp_path, m=text)
    assert set(reached('m.f', reader=reader)) == {'m.f', 'm.T', 'm.a', 'm.b'}
    assert set(reached('m.f', choices={'m.T': ['a']}, reader=reader)) == {'m.f', 'm.T[a]', 'm.a'}
    edited = package(tmp_path, m=text.replace('return 2', 'return 3'))
    old, new = [
        {choice: reach_digest(reached('m.f', choices={'m.T': [choice]}, reader=r)) for choice in 'ab'}
        for r in (reader, edited)
    ]
    assert old['a'] == new['a'] and old['b'] != new['b']


def test_cells_of_notebooks(tmp_path):
    cells = dict(
        imports='from adt_repro.k import h\n',
        one='%matplotlib inline\nx = g(1)',
        two='y = 2',
        make='def g(n):\n    return h() + n',
    )
    reader = package(tmp_path, nb_n=cells, k=H)
    assert set(reached('n#one', reader=reader)) == {'n#one', '#n.g', 'k.h'}
    assert set(reached('n#two', reader=reader)) == {'n#two'}
    assert 'k.h' in reached('n#*', reader=reader)


def test_stops_neither_count_nor_are_followed(tmp_path):
    text = 'from .k import h\ndef g():\n    return h()\n\ndef f():\n    return g()'
    for stop, found in {
        'm.g': {'m.f'},
        'k': {'m.f', 'm.g'},
        'm.f': set(),
        'm.gg': {'m.f', 'm.g', 'k.h'},
    }.items():
        assert set(reached('m.f', stops=frozenset([stop]), reader=package(tmp_path, m=text, k=H))) == found


@pytest.mark.parametrize(
    'before, after, is_same',
    [
        ('def f(x):\n    return x', 'def f(x: int) -> int:\n    return x', True),
        ('def f(x):\n    return x', 'def f(\n    x,  # a number\n):\n    "Gives it"\n\n    return (x)', True),
        ('def f(x):\n    return "a"', "def f(x):\n    return 'a'", True),
        ('def f(x):\n    return 10', 'def f(x):\n    return 0xA', True),
        ('def f(x):\n    return 1', 'def f(x):\n    return 1.0', False),
        ('def f(x):\n    return 1', 'def f(x):\n    return True', False),
        ('def f(x):\n    return x + 1', 'def f(x):\n    return x - 1', False),
        ('def f(x, y=1):\n    return x', 'def f(x, y=2):\n    return x', False),
        ('def f(x, y):\n    return x', 'def f(y, x):\n    return x', False),
        ('@a\ndef f(x):\n    return x', 'def f(x):\n    return x', False),
        ('class f:\n    x: int', 'class f:\n    x: float', False),
        ('class f:\n    "A"\n    x = 1', 'class f:\n    "B"\n    x = 1', True),
    ],
)
def test_digests(before, after, is_same, tmp_path):
    "A digest follows what a definition does, not how it is written"
    old, new = [reached('m.f', reader=package(tmp_path, m=text)) for text in (before, after)]
    assert (old == new) == is_same


def test_what_does_not_exist(tmp_path):
    reader = package(tmp_path, m=H, nb_n=dict(one='1'), bad='def f(:')
    for entry in ('m.g', 'k.h', 'n#two', 'no#one'):
        with pytest.raises(SourceError, match=f'^{entry}: there is no such definition'):
            reached(entry, reader=reader)
    with pytest.raises(SourceError, match='bad.py: .*expected Python code'):
        reached('bad.f', reader=reader)
    with pytest.raises(SourceError, match='m.g'):  # and nothing was remembered of it
        reached('m.h', 'm.g', reader=reader)


def other_pythons():
    "Other versions of Python that are installed here"
    places = [shutil.which(f'python3.{minor}') for minor in (11, 12, 13, 14)]
    places += sorted(Path.home().glob('.pyenv/versions/3.1*/bin/python'))
    found = {}
    for place in filter(None, places):
        ask = [place, '-c', 'import sys; print(*sys.version_info[:2])']
        said = subprocess.run(ask, capture_output=True, text=True).stdout.split()
        version = tuple(map(int, said))
        if version >= (3, 11) and version != sys.version_info[:2]:
            found[version] = place
    return list(found.values())


def test_digests_of_another_python(tmp_path):
    "The same digests from other versions of Python, which need no package for it"
    pythons = other_pythons()
    if not pythons:
        pytest.skip('no other Python here')
    for name in ('base/__init__', 'base/source', 'base/parameters'):
        target = tmp_path / 'adt_repro' / f'{name}.py'
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PACKAGE / f'{name}.py', target)
    (tmp_path / 'adt_repro' / '__init__.py').touch()
    (tmp_path / 'adt_repro' / 'base' / 'files.py').write_text(
        'find_nbs = None'
    )  # the real one needs filelock
    script = (
        'import json\n'
        'from adt_repro.base.source import Reader, reached\n'
        f'print(json.dumps(reached("white_box#*", "train#*", reader=Reader({str(ROOT)!r}))))'
    )
    here = reached('white_box#*', 'train#*', reader=Reader(ROOT))
    assert len(here) > 300
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    for python in pythons:
        ask = [python, '-c', script]
        done = subprocess.run(ask, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == here, python


# What it cannot see


def modules_of_project():
    "Each module and each experiment, as (file, syntax tree, name of its package)"
    for file in [*sorted(PACKAGE.rglob('*.py')), *sorted((ROOT / 'nbs').glob('*.ipynb'))]:
        if file.suffix == '.ipynb':
            cells = [cell for cell in json.loads(file.read_text())['cells'] if cell['cell_type'] == 'code']
            lines = [line for cell in cells for line in ''.join(cell['source']).splitlines()]
            text, package = '\n'.join(line for line in lines if not line.startswith(('%', '!'))), ''
        else:
            text, package = file.read_text(), '.'.join(['adt_repro', *file.relative_to(PACKAGE).parts[:-1]])
        yield file, ast.parse(text), package


def test_every_import_of_the_project_can_be_followed():
    "Each imported name is a module, or stands at the top of its module; none is made while the program runs"
    problems, followed = [], 0
    for file, tree, package in modules_of_project():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import) and any(a.name.startswith('adt_repro.') for a in node.names):
                problems.append((file.name, 'import adt_repro.…'))
            if not isinstance(node, ast.ImportFrom):
                continue
            parents = package.split('.')[: len(package.split('.')) - node.level + 1] if node.level else []
            home = '.'.join([*parents, *filter(None, [node.module])])
            if home.partition('.')[0] != 'adt_repro':
                continue
            place = PACKAGE.joinpath(*home.split('.')[1:])
            source = place.with_suffix('.py') if place.with_suffix('.py').exists() else place / '__init__.py'
            known = {name.rpartition('.')[2] for _, _, names in labels_of(source) for name in names}
            for alias in node.names:
                is_module = (place / f'{alias.name}.py').exists() or (place / alias.name).is_dir()
                followed += 1
                if alias.name not in known and not is_module:
                    problems.append((file.name, f'from {home} import {alias.name}'))
    assert followed > 500 and problems == []


# Variables of cells are not followed: each unit names the cells that make its values

GIVEN = set(
    # what was asked for, places, and which files are still true
    'given fresh sound train cascade autoattack aa_version scale runs parts parts_chosen names judged '
    'from_source itself sources made_on low tail mark dev folder records files scale_file '
    'making true_frames true_figures earlier needed unused again used_parts of_fp32 of_checks of_draws '
    # parameters of runs, and digests: counted by their content
    'digests config '
    # the paper's page: evidence is read from files that count
    'frames dataset_and_network page paper cells evidence setting sources '.split()
)


def cell_names(cells, ctx):
    "The names that cells store or load, for a context of ast"
    nodes = [node for cell in cells for node in ast.walk(cell) if isinstance(node, ast.Name)]
    return {node.id for node in nodes if isinstance(node.ctx, ctx)}


def not_named(notebook, code, uses):
    "Values from other cells of a notebook, and parameters, that some of its cells need and that do not count"
    file = ROOT / 'nbs' / f'{notebook}.ipynb'
    cells = {
        cell['id']: ast.parse(''.join(cell['source']))
        for cell in json.loads(file.read_text())['cells']
        if cell['cell_type'] == 'code' and not ''.join(cell['source']).startswith('%')
    }
    own = [cells[name] for name in code]
    others = [cell for name, cell in cells.items() if name not in (*code, 'parameters')]
    made_there = cell_names(others, ast.Store) & cell_names(own, ast.Load) - cell_names(own, ast.Store)
    return made_there - GIVEN - set(uses)


def cells_of_units():
    for notebook, units in made.UNITS.items():
        for name, unit in units.items():
            code = made._ROW_CODE[unit.rows] if unit.rows else unit.code
            cells = [cell.partition('#')[2] for cell in code if '#' in cell]
            if cells and '*' not in cells:
                yield pytest.param(notebook, cells, unit.uses, id=f'{notebook}-{name}')


@pytest.mark.parametrize('notebook, cells, uses', [*cells_of_units()])
def test_a_unit_names_the_cells_that_make_its_values(notebook, cells, uses):
    assert not_named(notebook, cells, uses) == set()


def test_a_cell_that_is_not_named_is_found():
    "Without the cell in which the attacks of the landscape are chosen"
    unit = made.UNITS['landscape']['landscape_plane']
    cells = [cell.partition('#')[2] for cell in unit.code if '#' in cell]
    assert 'attacks' in cells
    cells.remove('attacks')
    assert not_named('landscape', cells, unit.uses) == {'attacks'}
