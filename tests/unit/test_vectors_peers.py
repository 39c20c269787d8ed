"The test vectors against torchattacks, Foolbox, ART and adversarial-library: as recorded, and each deviation explained"

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from helpers import ROOT

VECTORS = ROOT / 'vectors'
NAMES = ['torchattacks', 'foolbox', 'art', 'adv_lib']
HERE = all(importlib.util.find_spec(name) for name in NAMES)
PYTHON = os.environ.get('ADT_PEERS') or HERE and sys.executable  # from the project's root, or absolute
with_peers = pytest.mark.skipif(
    not PYTHON,
    reason='torchattacks, Foolbox, ART and adversarial-library are not here; to run the vectors against them make '
    '.venv-peers as tests/peers.py says, with adv-lib, then: '
    'ADT_PEERS=.venv-peers/bin/python pytest tests/unit/test_vectors_peers.py',
)
SAID = 'case', 'function', 'result', 'deviation', 'reason', 'explained'  # of a result; the numbers may round


def loaded(name):
    "A module of vectors/, whose folder is not on the path"
    spec = importlib.util.spec_from_file_location(f'vectors_{name}', VECTORS / f'{name}.py')
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


given, run = loaded('draws').given, loaded('run')


def record(name):
    "What is committed of an adapter"
    return json.loads((ROOT / 'outputs' / 'vectors' / f'{name}.json').read_text(encoding='utf-8'))


def said(results):
    return [{key: result[key] for key in SAID} for result in results]


def by_peers(*args):
    "A command in the peers' environment; its standard output"
    done = subprocess.run([ROOT / PYTHON, *args], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def source(name):
    return (VECTORS / 'adapters' / f'{name}.py').read_text(encoding='utf-8')


def texts(name):
    "NOT_OFFERED and EXPLAINED of an adapter, without its library: the assignments of texts alone are executed"
    found = {}
    for node in ast.parse(source(name)).body:
        if isinstance(node, ast.Assign) and node.targets[0].id in (
            'NONE',
            'START',
            'NOT_OFFERED',
            'EXPLAINED',
        ):
            exec(ast.unparse(node), found)
    return found['NOT_OFFERED'], found['EXPLAINED']


def offered(name):
    "The functions of the specification that an adapter has"
    return {node.name for node in ast.parse(source(name)).body if isinstance(node, ast.FunctionDef)} & {
        *run.FUNCTIONS
    }


# Without the libraries


@pytest.mark.parametrize('name', NAMES)
def test_a_record_has_every_vector_and_every_deviation_is_explained(name):
    "Not offered: the adapter says why; deviates: it says what in the library does so; an error is never recorded"
    found, (missing, explained) = record(name), texts(name)
    cases = {case.name: case for case in run.load_cases()}
    assert found['adapter'] == name and len(found['versions']) >= 2
    assert [result['case'] for result in found['results']] == list(cases)
    for result in found['results']:
        case, function = cases[result['case']], result['function']
        assert function == case.function
        if result['result'] == 'not offered':
            assert result['reason'] == missing.get(case.name, missing.get(function)) and result['reason']
        elif result['result'] == 'deviates':
            assert (
                result['explained'] == explained.get(case.name, explained.get(function)) and result['reason']
            )
            assert result['deviation'] is None or case.deviations[result['deviation']][0] == result['reason']
        else:
            assert result['result'] == 'passed'
            for output, difference in result['differences'].items():
                assert difference <= case.tolerance(output, found['precision'])


@pytest.mark.parametrize('name', NAMES)
def test_a_function_is_offered_or_it_is_said_why_not(name):
    missing, explained = texts(name)
    cases = {case.name: case.function for case in run.load_cases()}
    assert {*missing} - {*cases} == {*run.FUNCTIONS} - offered(name)
    deviating = [result for result in record(name)['results'] if result['result'] == 'deviates']
    assert {*explained} <= {r['function'] for r in deviating} | {r['case'] for r in deviating}


@pytest.mark.parametrize('name', NAMES)
def test_what_a_library_has_passes_somewhere(name):
    "So that a deviation is one of the library, and not of its adapter; and nothing of a library deviates everywhere"
    results = record(name)['results']
    assert {'forward'} <= {r['function'] for r in results if r['result'] == 'passed'}
    assert sum(r['result'] == 'passed' for r in results) >= 3


def test_a_draw_is_replaced_exactly_as_often_as_it_is_given():
    a, b = torch.ones(2), torch.zeros(2)
    with given(torch, 'randn', a, b):
        assert torch.randn(2) is a and torch.randn(2) is b
    with given(torch.Tensor, 'uniform_', a, in_place=True):
        assert torch.empty(2).uniform_(3, 4).add(1).tolist() == [2, 2]
    with given(torch, 'randn', a, all_used=False):
        pass
    with pytest.raises(AssertionError, match='randn was called 0 times, not 1'), given(torch, 'randn', a):
        pass
    with pytest.raises(AssertionError, match='more than 1 times'), given(torch, 'randn', a):
        torch.randn(2), torch.randn(2)
    with pytest.raises(AssertionError, match='fills'), given(torch.Tensor, 'uniform_', a, in_place=True):
        torch.empty(3).uniform_()
    assert torch.randn(2).shape == (2,) and torch.randn(2) is not a


# With the libraries


@with_peers
@pytest.mark.parametrize('name', NAMES)
def test_the_libraries_are_as_recorded(name, tmp_path):
    "The same result and the same reason for every vector, where the same version is installed"
    by_peers(VECTORS / 'run.py', name, '--json', tmp_path / 'found.json')
    found, kept = json.loads((tmp_path / 'found.json').read_text()), record(name)
    library = next(iter(kept['versions']))
    if found['versions'][library] != kept['versions'][library]:
        pytest.skip(
            f'{library} {found["versions"][library]} is here, the record is of {kept["versions"][library]}'
        )
    assert said(found['results']) == said(kept['results'])


@with_peers
@pytest.mark.parametrize('name', NAMES)
def test_explanations_cite_code_that_is_there(name):
    "`Class.function in folder/file.py`: the file has a definition of the function, and of its class"
    folder = by_peers('-c', f'import {name}; print({name}.__path__[0])').strip().split('\n')[-1]
    for text in texts(name)[1].values():
        cited = re.findall(r'([\w.]+) in ([\w/]+\.py)', text)
        assert cited
        for names, file in cited:
            code = (ROOT / folder / file).read_text(encoding='utf-8')
            for part in names.split('.'):
                assert re.search(rf'^\s*(def|class) {part}\b', code, re.MULTILINE), (part, file)


CHANGED = """
import importlib.util
spec = importlib.util.spec_from_file_location('adapter_of_foolbox', {file!r})
theirs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(theirs)
PRECISION = theirs.PRECISION

def fgsm(case):
    case.parameters['eps'] *= {factor}
    return theirs.fgsm(case)
"""


@with_peers
@pytest.mark.parametrize(('factor', 'result'), [(1, 'passed'), (1.01, 'deviates')])
def test_a_library_with_another_eps_is_told_apart(factor, result, tmp_path):
    file = tmp_path / 'changed.py'
    file.write_text(CHANGED.format(file=str(VECTORS / 'adapters' / 'foolbox.py'), factor=factor))
    by_peers(VECTORS / 'run.py', file, '--cases', 'fgsm', '--json', tmp_path / 'found.json')
    found = json.loads((tmp_path / 'found.json').read_text())['results']
    assert found and {row['result'] for row in found} == {result}
