"Kept rows are used again only where nothing has changed that they can reach"

import importlib
import os
import subprocess
import sys
import threading

import pandas as pd
import pytest
import torch
from helpers import ROOT, lines_of, refusal

import adt_repro.evaluation.cache as cache
from adt_repro.data import load_data
from adt_repro.evaluation.cache import digest, in_parts
from adt_repro.evaluation.reachable import describe
from adt_repro.evaluation.suite import run_suite

OWN = """
import torch
from torch import nn
import {helpers}
from adt_repro.attacks.gradient import pgd
from adt_repro.models.trained import trained_network

STEPS = {steps}

class Own(nn.Module):
    def __init__(self, slope=1.0):
        super().__init__()
        self.net, self.slope = trained_network('standard'), slope

    def forward(self, x):
        return {forward}

def move(model, x, y, eps):
    return {move}

def attack(model, x, y, *, eps):
    return move(model, x, y, eps)
"""
USUAL = dict(forward='self.net(x) * self.slope', move='pgd(model, x, y, eps=eps, steps=STEPS)', steps=10)


@pytest.fixture
def own(tmp_path, monkeypatch):
    "Writes a user's modules, and imports them as a new process would"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, 'dont_write_bytecode', True)
    helpers = f'helpers_{tmp_path.name}'

    def write(helper='VALUE = 1', **change):
        (tmp_path / f'{helpers}.py').write_text(helper)
        (tmp_path / f'own_{tmp_path.name}.py').write_text(OWN.format(**USUAL | change, helpers=helpers))
        importlib.invalidate_caches()
        for name in f'own_{tmp_path.name}', helpers:
            sys.modules.pop(name, None)
        module = importlib.import_module(f'own_{tmp_path.name}')
        module.helpers = sys.modules[helpers]
        return module

    return write


@pytest.fixture(scope='module')
def images():
    data = load_data('digits')
    return data.x_test[:40], data.y_test[:40]


def right_after(module, images, parts, slope=1.0):
    "Right images under the module's attack on its network"
    torch.manual_seed(0)
    rows = run_suite(module.Own(slope), *images, dict(own=module.attack), eps=0.15, run='a', parts=parts)
    return int((rows.pred == rows.y)[rows.attack == 'own'].sum())


CHANGES = {
    'forward repaired': (dict(forward='self.net(x.detach()) + 0 * x.sum()'), {}),
    'an attribute': ({}, dict(slope=-1.0)),
    'the helper of an attack': (dict(move='x'), {}),
    'a global': (dict(steps=1), {}),
    "a helper module's value": (
        dict(move='pgd(model, x, y, eps=eps * HELPERS.VALUE)', helper='VALUE = 0.1'),
        {},
    ),
}


@pytest.mark.filterwarnings('ignore::UserWarning')  # the broken network has no gradients
@pytest.mark.parametrize('what', CHANGES)
def test_kept_rows_follow_what_they_reach(own, images, tmp_path, what):
    "The value that is kept is the one that a fresh evaluation gives, before the change and after it"
    text, settings = CHANGES[what]
    helper = text.get('helper')
    text = {
        k: v.replace('HELPERS', f'helpers_{tmp_path.name}') if isinstance(v, str) else v
        for k, v in text.items()
    }
    before = own(**text)
    stale = right_after(before, images, tmp_path / 'parts', **settings)
    assert stale == right_after(before, images, None, **settings)
    after = own(**text | dict(helper='VALUE = 1')) if helper else own()
    fresh = right_after(after, images, None)
    assert stale != fresh  # or nothing would be shown
    assert right_after(after, images, tmp_path / 'parts') == fresh


def test_nothing_changed_and_nothing_is_computed_again(own, images, tmp_path, monkeypatch):
    "The control: in this process, after a new import, and in another process with another order of sets"
    right = right_after(own(), images, tmp_path / 'parts')
    kept = sorted(file.name for file in (tmp_path / 'parts').iterdir())
    monkeypatch.setattr(cache, 'write_rows', None)  # which follows what is computed
    assert right_after(own(), images, tmp_path / 'parts') == right

    folders = [str(folder) for folder in (tmp_path, ROOT / 'tests', ROOT / 'tests/unit')]
    code = f"""
import sys
sys.path[:0] = {folders!r}
import adt_repro.evaluation.cache as cache
cache.write_rows = None
import own_{tmp_path.name} as module
from adt_repro.data import load_data
from test_reachable import right_after
data = load_data('digits')
print(right_after(module, (data.x_test[:40], data.y_test[:40]), {str(tmp_path / 'parts')!r}))
"""
    environment = dict(os.environ, PYTHONHASHSEED='5')
    done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(right)], done.stderr
    assert sorted(file.name for file in (tmp_path / 'parts').iterdir()) == kept


def makers():
    "By name: a function that makes a value; two values differ in what no printed form or state dict shows"

    def hooked(hook):
        net = torch.nn.Linear(2, 2)
        if hook:
            net.register_forward_hook(lambda net, args, out: -out)
        return net

    def buffered(value):
        net = torch.nn.Linear(2, 2)
        net.register_buffer('shift', torch.full((1,), value), persistent=False)
        return net

    def holding(value):
        net = torch.nn.Linear(2, 2)
        net.best_state_dict = dict(weight=torch.full((2, 2), value))
        return net

    class Called:
        def __init__(self, value):
            self.value = value

        def __call__(self, model, x, y, *, eps):
            return x * self.value

        def method(self, model, x, y, *, eps):
            return x + self.value

    return {
        'hook': hooked,
        'buffer that is not saved': buffered,
        'attribute with weights': holding,
        'callable object': Called,
        'bound method': lambda value: Called(value).method,
        'set in a list': lambda value: [{value, 7.0}],
        'generator of random numbers': lambda value: torch.Generator().manual_seed(int(value)),
    }


@pytest.mark.parametrize('kind', makers())
def test_what_a_name_must_tell_apart(kind):
    "Another value has another name; the same value, made once more, the same"

    def name(value):
        torch.manual_seed(0)
        return digest(value=makers()[kind](value))

    assert name(1.0) != name(0.0)
    assert name(0.0) == name(0.0)


def test_a_layer_whose_forward_was_replaced(monkeypatch):
    net = torch.nn.Sequential(torch.nn.Linear(2, 2))
    before = digest(net=net)
    monkeypatch.setattr(torch.nn.Linear, 'forward', lambda self, x: x)
    assert digest(net=net) != before
    monkeypatch.undo()
    assert digest(net=net) == before


def test_the_default_type_of_numbers():
    "A network may make numbers of it"
    before = digest(value=1.0)
    torch.set_default_dtype(torch.float64)
    try:
        assert digest(value=1.0) != before
    finally:
        torch.set_default_dtype(torch.float32)
    assert digest(value=1.0) == before


@pytest.mark.parametrize('thing', [threading.Lock, lambda: open(os.devnull)], ids=['lock', 'open file'])
def test_what_cannot_be_described_is_not_kept(tmp_path, thing):
    "The rows are computed each time, no file is written, and one line says why"
    calls = []

    def make(ids):
        calls.append(len(ids))
        return pd.DataFrame(dict(i=ids.numpy()))

    thing = thing()
    for _ in range(2):
        (line,) = lines_of(in_parts, make, range(4), batch=2, folder=tmp_path / 'parts', attack=[thing])
        assert 'neither saved nor looked up' in line
        assert f'attack > [0] ({type(thing).__name__})' in line and '\n' not in line
    assert calls == [2, 2, 2, 2]
    assert list(tmp_path.iterdir()) == []


def function_of(text, name='f'):
    "A function of a user's module with this text"
    namespace = dict(__name__='own', __package__='own')
    exec(text, namespace)
    return namespace[name]


LOOKED_UP = {
    'importlib.import_module': [
        'import importlib\ndef f(x): return importlib.import_module("helper").move(x)',
        'import importlib as il\ndef f(x): return il.import_module("helper").move(x)',
        'from importlib import import_module\ndef f(x): return import_module("helper").move(x)',
        'def f(x):\n    import importlib\n    return importlib.import_module("helper").move(x)',
        'def f(x):\n    from importlib import import_module\n    return import_module("helper").move(x)',
    ],
    'importlib.__import__': ['import importlib\ndef f(x): return importlib.__import__("helper").move(x)'],
    'importlib.util.module_from_spec': [
        'import importlib.util\ndef f(spec): return importlib.util.module_from_spec(spec)',
    ],
    'module_from_spec': ['from importlib.util import module_from_spec as new\ndef f(spec): return new(spec)'],
    'sys.modules': [
        'import sys\ndef f(x): return x * sys.modules["helper"].V',
        'import sys\ndef f(x): return x * sys.modules.get("helper").V',
        'from sys import modules\ndef f(x): return x * modules["helper"].V',
    ],
    'runpy.run_path': ['import runpy\ndef f(x): return runpy.run_path("helper.py")["move"](x)'],
    'eval': [
        'import builtins\ndef f(x): return builtins.eval("x")',
        'from builtins import eval as look\ndef f(x): return look("x")',
    ],
    'compile': ['def f(x): return compile("x", "name", "eval")'],
    'os.environ': [
        'import os\ndef f(x): return x * float(os.environ["SCALE"])',
        'from os import environ\ndef f(x): return x * float(environ["SCALE"])',
    ],
    'open': ['def f(x): return x * float(open("scale.txt").read())'],
    'torch.ops': ['import torch\ndef f(x): return torch.ops.my.op(x)'],
}


@pytest.mark.parametrize('name', LOOKED_UP)
def test_code_that_is_looked_up_by_name_is_refused(name):
    "Its name would stay the same after a change"
    for text in LOOKED_UP[name]:
        line = refusal(describe, function_of(text))
        assert f'{name}, so what it runs or reads cannot be known' in line and '\n' not in line, text


@pytest.mark.parametrize(
    'text',
    [
        'import sys\ndef f(x): return sys.byteorder',
        'import re\ndef f(x): return re.compile(x)',
        'import torch\ndef f(net): return torch.compile(net)',
        'import importlib.util\ndef f(name): return importlib.util.find_spec(name)',
    ],
)
def test_code_that_only_looks_like_it_is_described(text):
    assert describe(function_of(text)) == describe(function_of(text))


def test_a_module_among_the_installed_ones_that_has_no_version(tmp_path, monkeypatch):
    "It is described as the user's own"
    folder = tmp_path / 'site-packages'
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, 'dont_write_bytecode', True)
    module = f'loose_{tmp_path.name}'

    def name(step):
        (folder / f'{module}.py').write_text(f'def move(x):\n    return x + {step}\n')
        importlib.invalidate_caches()
        sys.modules.pop(module, None)
        return digest(attack=importlib.import_module(module).move)

    assert name(1) == name(1)
    assert name(1) != name(2)


def test_an_import_in_a_long_function(own, tmp_path):
    "More than 255 constants, so that some instructions have a longer argument"
    own(helper='VALUE = 1')
    long = '\n'.join(f'    x = x + {i}.5' for i in range(300))
    text = f'def f(x):\n{long}\n    from helpers_{tmp_path.name} import VALUE\n    return x * VALUE'
    lines = refusal(describe, function_of(text))
    assert lines.startswith('gave') and f'helpers_{tmp_path.name}' in lines
    own(helper='VALUE = 2')
    assert refusal(describe, function_of(text)) != lines
