"The test vectors against torchattacks, Foolbox, ART and adversarial-library: as recorded, and each deviation explained"

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT

from adt_repro.reference.attack_cases import run_again
from adt_repro.reference.attacks import THRESHOLDS, negative_margin
from adt_repro.reference.cases import load_case
from adt_repro.reference.networks import logits, margins

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
            if result['deviation'] is None:  # several deviations give this result
                said = [reason for reason, _ in case.deviations.values()]
                assert '; or ' in result['reason'] and set(result['reason'].split('; or ')) <= set(said)
            else:
                assert case.deviations[result['deviation']][0] == result['reason']
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


RUN = """
import json, sys
sys.path.insert(0, {vectors!r})
import numpy, run
cases = run.load_cases()
adapter = run.find_adapter({name!r}, cases)
results = run.run_cases(adapter, cases)
deviating = {{result['case'] for result in results if result['result'] == 'deviates'}}
for case in cases:
    if case.name in deviating:
        numpy.savez({folder!r} + '/' + case.name, **adapter.answer(case))
with open({folder!r} + '/found.json', 'w', encoding='utf-8') as f:
    f.write(run.record_text(adapter, results))
with open({folder!r} + '/library.txt', 'w', encoding='utf-8') as f:
    f.write(__import__({name!r}).__path__[0])
"""


@pytest.fixture(scope='module', params=NAMES)
def found(request, tmp_path_factory):
    "An adapter's name and a folder: its results, its answers that deviate, and where its library is"
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    by_peers('-c', RUN.format(vectors=str(VECTORS), name=name, folder=str(folder)))
    here, kept = (
        found['versions'] for found in (json.loads((folder / 'found.json').read_text()), record(name))
    )
    library = next(iter(kept))
    if here[library] != kept[library]:
        pytest.skip(f'{library} {here[library]} is here, the record is of {kept[library]}')
    return name, folder


@with_peers
def test_the_libraries_are_as_recorded(found):
    "The same result and the same reason for every vector"
    name, folder = found
    assert said(json.loads((folder / 'found.json').read_text())['results']) == said(record(name)['results'])


@with_peers
def test_explanations_cite_code_that_is_there(found):
    "`Class.function in folder/file.py`: the file has a definition of the function, and of its class"
    name, folder = found
    library = Path((folder / 'library.txt').read_text())
    for text in texts(name)[1].values():
        cited = re.findall(r'([\w.]+) in ([\w/]+\.py)', text)
        assert cited
        for names, file in cited:
            code = (library / file).read_text(encoding='utf-8')
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


# What the explanations say, computed by the oracle, as functions of a vector


def clipped(case, **changed):
    "The attack from a start that is clipped to [0, 1]"
    return run_again(case, clip_start=True, **changed)


def added_signs(case):
    "Foolbox's MI-FGSM"
    decay = case.parameters['decay']
    return clipped(case, follow=lambda before, g: decay * before + np.sign(g))


def quarter_of_the_batch(case):
    "Foolbox's estimate: the differences of all images together, divided by 8 σ times the number of directions"

    def together(net, images, y):
        return np.full(len(y), negative_margin(net, images, y).sum() / 4)

    return run_again(case, loss=together)


def last_misclassified(case):
    "adversarial-library's PGD: of x_0 to x_{T-1} the last that is misclassified, else the clean image"
    iterates, x_adv = clipped(case)['iterates'], case.inputs['x'].copy()
    for point in iterates[:-1]:
        wrong = margins(logits(case.network, case.weights, point), case.inputs['y']) < 0
        x_adv[wrong] = point[wrong]
    return dict(x_adv=x_adv, iterates=iterates)


def other_patches(case, smaller):
    "The vector's patches with other sizes: `smaller` maps (t - 1) / T and a limit to whether the limit is passed"
    patches, shape = case.inputs['patches'].copy(), case.inputs['x'].shape
    for t in range(len(patches)):
        share = case.parameters['first'] * 0.5 ** sum(smaller(t / len(patches), each) for each in THRESHOLDS)
        patches[t, :, 2:] = max(1, round(np.sqrt(share * shape[2] * shape[3])))
    return patches


def square_of_torchattacks(case):
    found = run_again(
        case,
        patches=other_patches(case, lambda done, limit: int(done * 10000) > round(limit * 10000)),
        always_first=True,
    )
    right = margins(logits(case.network, case.weights, found['x_adv']), case.inputs['y']) > 0
    found['x_adv'][right] = case.inputs['x'][right]
    return found


def square_of_art(case):
    return run_again(case, patches=other_patches(case, lambda done, limit: done > limit))


SAYS = dict(
    torchattacks=dict(pgd=clipped, mim=clipped, trades_attack=clipped, square=square_of_torchattacks),
    foolbox=dict(pgd=clipped, mim=added_signs, spsa_gradient=quarter_of_the_batch),
    art=dict(pgd=clipped, mim=clipped, square=square_of_art),
    adv_lib=dict(pgd=last_misclassified),
)


@with_peers
def test_explanations_give_the_same_numbers(found):
    "What deviates agrees with the oracle changed as the explanation says, and not with the oracle unchanged"
    name, folder = found
    precision = record(name)['precision']
    cases = {case.name: case for case in run.load_cases()}
    assert {cases[file.stem].function for file in folder.glob('*.npz')} == {*SAYS[name]}
    for file in folder.glob('*.npz'):
        case = cases[file.stem]
        says = SAYS[name][case.function](load_case(VECTORS / 'cases' / f'{case.name}.json'))
        with np.load(file) as arrays:
            answer = dict(arrays)

        def fits(wanted, answer=answer, case=case):
            tolerances = {output: case.tolerance(output, precision) for output in answer}
            return all(
                run.agrees(answer[o], wanted[o], tolerance).all() for o, tolerance in tolerances.items()
            )

        assert fits(says), case.name
        assert not fits(case.expected)
