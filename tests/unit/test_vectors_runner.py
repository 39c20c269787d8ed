"The runner of the test vectors, on tiny vectors made here: results, tolerances, reasons, refusals, and the command"

import ast
import importlib.util
import json
import re
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import ROOT, run
from jsonschema import Draft202012Validator
from safetensors.numpy import load_file, save_file

from adt_repro.base.files import find_vectors
from adt_repro.command.main import main as adt

VECTORS = ROOT / 'vectors'
README = (VECTORS / 'README.md').read_text(encoding='utf-8')
SCHEMA = json.loads((VECTORS / 'schema.json').read_text(encoding='utf-8'))
TOLERANCE = dict(float64=1e-9, float32=1e-5)
N, SHAPE = 3, (3, 2, 2, 3)


def put_case(
    folder, name, function, outputs, inputs=(), weights=(), required=('x_adv',), deviations=(), **more
):
    "Write a vector as its specification says; deviations: id to reason and outputs"
    facts = {'$schema': '../schema.json', 'name': name, 'function': function, 'about': 'Made by a test.'}
    facts |= dict(network=more.get('network'), parameters=more.get('parameters', {}))
    facts['outputs'] = {k: dict(required=k in required, tolerance=TOLERANCE) for k in outputs}
    facts |= dict(margins={}, deviations=[dict(id=k, reason=v[0]) for k, v in dict(deviations).items()])
    parts = {'input': dict(inputs), 'network': dict(weights), 'output': outputs}
    parts |= {f'deviation.{id}': found for id, (_, found) in dict(deviations).items()}
    tensors = {f'{part}.{k}': np.asarray(a) for part, named in parts.items() for k, a in named.items()}
    folder.mkdir(exist_ok=True)
    (folder / f'{name}.json').write_text(json.dumps(facts), encoding='utf-8')
    save_file(tensors, folder / f'{name}.safetensors')


STEPS = dict(eps=0.1, step_size=0.05, steps=4, clip_start=False)


def put_cases(folder):
    "Two of pgd, of four steps and with a known deviation, one of fgsm, and one of square with integers"
    r = np.random.default_rng(0)
    x, y = r.random(SHAPE), np.arange(N)
    for name in 'pgd-a', 'pgd-b':
        iterates, other = r.random((5, *SHAPE)), r.random(SHAPE)
        outputs = dict(x_adv=iterates[-1], iterates=iterates, losses=r.random((4, N)))
        deviations = dict(early_stop=('one step too few', dict(x_adv=iterates[3])))
        deviations |= dict(best=('the best is returned', dict(x_adv=other)))
        inputs = dict(x=x, y=y, start=2 * r.random(SHAPE) - 1)
        put_case(folder, name, 'pgd', outputs, inputs, deviations=deviations, parameters=STEPS)
    put_case(folder, 'fgsm-a', 'fgsm', dict(x_adv=r.random(SHAPE)), dict(x=x, y=y), parameters=dict(eps=0.1))
    outputs = dict(x_adv=r.random(SHAPE), queries=np.array([3, 1, 4]))
    how = dict(required=('x_adv', 'queries'), parameters=dict(eps=0.1, first=0.5, budget=4))
    put_case(folder, 'square-a', 'square', outputs, dict(x=x, y=y), **how)


@pytest.fixture
def folder(tmp_path):
    "A copy of the runner with vectors of its own"
    for name in 'run.py', 'schema.json':
        shutil.copy(VECTORS / name, tmp_path)
    put_cases(tmp_path / 'cases')
    (tmp_path / 'adapters').mkdir()
    return tmp_path


@pytest.fixture
def runner(folder, monkeypatch):
    "The same, imported as adapters import it"
    spec = importlib.util.spec_from_file_location('run', folder / 'run.py')
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, 'run', module)
    monkeypatch.setattr(sys, 'path', [str(folder), *sys.path])
    spec.loader.exec_module(module)
    return module


def right(case_or_name, folder):
    "The expected outputs of a vector"
    tensors = load_file(folder / 'cases' / f'{getattr(case_or_name, "name", case_or_name)}.safetensors')
    return {k[len('output.') :]: a for k, a in tensors.items() if k.startswith('output.')}


RIGHT = """
from pathlib import Path
from safetensors.numpy import load_file

def right(case):
    tensors = load_file(Path(__file__).parent / 'cases' / f'{case.name}.safetensors')
    return {k[len('output.'):]: a for k, a in tensors.items() if k.startswith('output.')}
"""


def put_adapter(folder, code, name='mine.py'):
    (folder / name).write_text(f'"An adapter"\n{RIGHT}\n{code}\n', encoding='utf-8')
    return folder / name


def results_of(runner, folder, change, patterns=(), **more):
    "Results by vector of an adapter that changes the right outputs: change(case, outputs) -> outputs"
    cases = runner.load_cases(folder / 'cases')
    answer = runner.Adapter('here', lambda case: change(case, right(case, folder)), **more)
    return {r['case']: SimpleNamespace(**r) for r in runner.run_cases(answer, cases, patterns)}


def changed(name, function, only='pgd-a'):
    "A change of one output of one vector"

    def change(case, outputs):
        return outputs | {name: function(outputs[name].copy())} if case.name == only else outputs

    return change


# Tolerances


@pytest.mark.parametrize('precision', ['float64', 'float32'])
@pytest.mark.parametrize('value', [0.0, 0.5, -1.0, 3.0, -250.0])
@pytest.mark.parametrize('sign', [-1, 1])
def test_just_inside_passes_and_just_outside_deviates(runner, precision, value, sign):
    expected, room = np.array([0.25, value]), TOLERANCE[precision] * max(1, abs(value))
    for share, inside in (0.999, True), (1.001, False):
        given = expected + np.array([0, sign * share * room])
        assert runner.agrees(given, expected, TOLERANCE[precision]).tolist() == [True, inside]


def test_both_tolerances_reach_the_results(runner, folder):
    for precision, tolerance in TOLERANCE.items():
        for share, result in (0.9, 'passed'), (1.1, 'deviates'):
            change = changed('x_adv', lambda a, by=share * tolerance: a + by)
            found = results_of(runner, folder, change, precision=precision)['pgd-a']
            assert (found.result, found.precision) == (result, precision)
            assert abs(found.difference / tolerance - share) < 1e-3


def test_numbers_in_float32_are_judged_so_unless_the_adapter_says_otherwise(runner, folder):
    rounded = changed('x_adv', lambda a: a.astype(np.float32))
    found = results_of(runner, folder, rounded)['pgd-a']
    assert (found.result, found.precision) == ('passed', 'float32')
    found = results_of(runner, folder, rounded, precision='float64')['pgd-a']
    assert (found.result, found.precision) == (
        'deviates',
        'float64',
    ) and 'tolerance of float32' in found.reason
    assert results_of(runner, folder, rounded)['pgd-b'].precision == 'float64'
    half = changed('losses', lambda a: a.astype(np.float16))
    assert results_of(runner, folder, half)['pgd-a'].precision == 'float32'


def test_integers_and_flags_must_be_equal(runner, folder):
    found = results_of(runner, folder, changed('queries', lambda a: a + [0, 1, 0], 'square-a'))['square-a']
    assert (found.result, found.output, found.difference, found.images) == ('deviates', 'queries', 1, 1)
    exact = changed('queries', lambda a: a.astype(float), 'square-a')
    assert results_of(runner, folder, exact)['square-a'].result == 'passed'
    near = changed('queries', lambda a: a + 1e-12, 'square-a')
    assert results_of(runner, folder, near)['square-a'].result == 'deviates'
    flags = np.array([True, False])
    assert runner.agrees(flags, flags, 0).all() and not runner.agrees(~flags, flags, 0).any()


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_deviates(runner, folder, bad):
    found = results_of(runner, folder, changed('x_adv', lambda a: np.where(a == a.max(), bad, a)))['pgd-a']
    assert found.result == 'deviates' and found.difference == np.inf
    assert found.images == 1 and found.reason == 'an overflow, or a division by 0'


# Results, and where an answer deviates


def test_right_answers_pass(runner, folder):
    found = results_of(runner, folder, lambda case, outputs: outputs)
    assert {r.result for r in found.values()} == {'passed'} and len(found) == 4
    assert all(r.difference == 0 and r.reason is None for r in found.values())


def test_only_what_is_required_has_to_be_given(runner, folder):
    less = results_of(runner, folder, lambda case, outputs: {k: outputs[k] for k in outputs if k != 'losses'})
    assert {r.result for r in less.values()} == {'passed'}

    def without(case, outputs):
        return {k: a for k, a in outputs.items() if k != 'x_adv'}

    found = results_of(runner, folder, without)
    assert {r.result for r in found.values()} == {'error'} and 'x_adv is required' in found['pgd-a'].reason


def test_a_known_deviation_is_named_and_explained(runner, folder):
    def early(case, outputs):
        return outputs | dict(x_adv=outputs['iterates'][3]) if case.function == 'pgd' else outputs

    explained = {'pgd': 'line 3 of its source', 'pgd-b': 'line 4'}
    found = results_of(runner, folder, early, explained=explained)
    a, b = found['pgd-a'], found['pgd-b']
    assert a.result == 'deviates' and (a.deviation, a.reason) == ('early_stop', 'one step too few')
    assert a.explained == 'line 3 of its source' and b.explained == 'line 4'
    assert found['fgsm-a'].result == 'passed' and found['fgsm-a'].explained is None


def test_a_known_deviation_is_named_within_the_tolerance_only(runner, folder):
    for by, id in (0.9e-9, 'early_stop'), (1.1e-9, None):

        def near(case, outputs, by=by):
            return outputs | dict(x_adv=outputs['iterates'][3] + by) if case.name == 'pgd-a' else outputs

        found = results_of(runner, folder, near)['pgd-a']
        assert found.result == 'deviates' and found.deviation == id


def test_a_deviation_is_named_by_what_the_answer_gives(runner, tmp_path):
    "Several, if it lacks the output in which they differ; none, if all of a deviation that it gives is right"
    r = np.random.default_rng(1)
    x_adv, queries = r.random(SHAPE), np.array([3, 1, 4])
    other = np.roll(x_adv, 1)
    deviations = dict(
        worse=('it is worse', dict(x_adv=other, queries=queries + 1)),
        slower=('it is slower', dict(x_adv=other, queries=queries + 2)),
        counted=('it counts', dict(x_adv=x_adv, queries=queries + 1)),
    )
    outputs = dict(x_adv=x_adv, queries=queries, losses=r.random(N))
    inputs = dict(x=np.zeros(SHAPE), y=np.arange(N))
    put_case(tmp_path, 'square-b', 'square', outputs, inputs, deviations=deviations)
    case = runner.load_case(tmp_path / 'square-b.json')

    def said(**answer):
        found = runner.judge(case, answer, 'float64')
        return found.get('deviation'), found.get('reason', found['result'])

    assert said(x_adv=other, queries=queries + 1) == ('worse', 'it is worse')
    assert said(x_adv=other) == (None, 'it is worse; or it is slower')
    assert said(x_adv=x_adv, queries=queries + 1) == ('counted', 'it counts')
    assert said(x_adv=x_adv) == (None, 'passed')
    assert said(x_adv=other, queries=queries) == (None, 'no known deviation gives this')
    assert said(x_adv=x_adv, losses=r.random(N))[0] is None


def put(where, value):
    def change(a):
        a[where] = value
        return a

    return change


@pytest.mark.parametrize(
    'output, function, expected',
    [
        ('x_adv', lambda a: a.swapaxes(2, 3), 'it has another shape: (3, 2, 3, 2), expected (3, 2, 2, 3)'),
        ('x_adv', lambda a: 3 * a, 'x_adv is 3 times what is expected'),
        ('x_adv', lambda a: -a, 'x_adv is -1 times'),
        ('x_adv', lambda a: 0 * a, 'x_adv is 0 everywhere'),
        ('losses', lambda a: a / 3, 'losses is 0.33333 times'),
        ('losses', put((1, 0), 7), 'what is required agrees'),
        ('x_adv', lambda a: 1e-6 * a, 'x_adv is 1e-06 times'),
        ('x_adv', put((1, 0, 0, 0), 0.5), 'no known deviation'),
        ('x_adv', lambda a: np.where(a > 0.5, a - 1e-3, a), 'no known deviation'),
        ('x_adv', lambda a: a + 1e-7, "if float32 is intended, set PRECISION = 'float32'"),
    ],
)
def test_what_can_be_said_of_other_deviations(runner, folder, output, function, expected):
    found = results_of(runner, folder, changed(output, function))
    assert found['pgd-a'].result == 'deviates' and expected in found['pgd-a'].reason
    assert found['pgd-a'].deviation is None and found['pgd-a'].output == output
    assert found['pgd-b'].result == 'passed'


@pytest.mark.parametrize(
    'add, expected',
    [(1, 'queries is always 1 too large'), (-2, 'queries is always 2 too small'), ([0, 1, 1], 'no known')],
)
def test_counts_that_are_wrong_by_the_same_number(runner, folder, add, expected):
    found = results_of(runner, folder, changed('queries', lambda a: a + add, 'square-a'))['square-a']
    assert found.result == 'deviates' and found.reason.startswith(expected)


def test_a_perturbation_of_another_size(runner, tmp_path):
    "Where an entry is clipped in one of the two its size says nothing"
    r = np.random.default_rng(2)
    x, signs = r.uniform(-0.2, 1.2, SHAPE).clip(0, 1), r.choice([-1.0, 1.0], SHAPE)
    right = (x + 0.1 * signs).clip(0, 1)
    assert (right == 0).any() and (right == 1).any() and ((right == x) & (x == 0)).any()
    put_case(
        tmp_path, 'fgsm-b', 'fgsm', dict(x_adv=right), dict(x=x, y=np.arange(N)), parameters=dict(eps=0.1)
    )
    case = runner.load_case(tmp_path / 'fgsm-b.json')

    def reason(x_adv, precision='float64'):
        return runner.judge(case, dict(x_adv=x_adv), precision)['reason']

    def of_another(eps):
        return reason((x + eps * signs).clip(0, 1))

    said = 'the perturbation x_adv − x is {} times what is expected, as with another ε'
    assert of_another(0.1 / 255) == said.format('0.0039216') and of_another(0.2) == said.format('2')
    assert of_another(-0.1) == said.format('-1')
    assert reason(x) == reason(x.astype(np.float32), 'float32') == 'x_adv is x, without a perturbation'
    assert reason((x + 0.1 * signs * r.choice([0.5, 1], SHAPE)).clip(0, 1)) == 'no known deviation gives this'
    assert reason(right + 0.05 * (right == 0)) == 'no known deviation gives this'
    largest = 'the largest entry of x_adv − x is {} times what is expected: another ε, or no ball'
    mixed = signs * np.where(np.arange(x.size) % 2, 1, 0.5).reshape(SHAPE)
    assert reason((x + 1e-3 * mixed).clip(0, 1)) == largest.format('0.01')
    assert reason((x + 0.3 * mixed).clip(0, 1)) == largest.format('3')
    too_small = (x + 5e-5 * mixed).clip(0, 1).astype(np.float32)  # any factor fits it within the tolerance
    assert reason(too_small, 'float32').startswith('the largest entry of x_adv − x is 0.0005')


@pytest.mark.parametrize('start, first', [(0, 0), (2, 2), (4, 4)])
def test_the_first_iterate_that_deviates(runner, folder, start, first):
    "Where the start is wrong it is 0; and one image of three is counted"
    found = results_of(runner, folder, changed('iterates', put((slice(start, None), 1), 7)))['pgd-a']
    assert (found.first_iterate, found.images, found.of_images) == (first, 1, 3)


def test_iterates_that_are_missing_or_too_many(runner, folder):
    for function, first in (
        (lambda a: a[:4], 4),
        (lambda a: np.concatenate([a, a[-1:]]), 5),
        (lambda a: a[1:], 0),
        (lambda a: a[0], None),
    ):
        found = results_of(runner, folder, changed('iterates', function))['pgd-a']
        assert found.result == 'deviates' and found.first_iterate == first
    assert results_of(runner, folder, changed('losses', lambda a: 2 * a))['pgd-a'].first_iterate is None


def test_images_are_on_the_right_axis(runner, folder):
    "Of outputs by step the second one, of gradients of weights none, even where a size is N by chance"
    put_case(folder / 'cases', 'trades_loss-a', 'trades_loss',
             {'loss': np.array(1.0), 'losses': np.ones(N), 'gradient.weight': np.ones((N, 4))},
             dict(x=np.zeros(SHAPE)), required=('loss',))  # fmt: skip
    cases = {case.name: case for case in runner.load_cases(folder / 'cases')}
    axes = {k: runner.image_axis(cases['trades_loss-a'], k) for k in cases['trades_loss-a'].expected}
    assert axes == {'loss': None, 'losses': 0, 'gradient.weight': None}
    assert [runner.image_axis(cases['pgd-a'], k) for k in ('x_adv', 'iterates', 'losses')] == [0, 1, 1]


# Adapters


def status_and_lines(runner, capsys, *args):
    status = runner.main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    return status, out.splitlines(), err.splitlines()


def test_a_run_prints_a_table(runner, folder, capsys):
    code = """
from run import NotOffered
VERSIONS = dict(library='1.2')
EXPLAINED = {'pgd': 'its line 3'}
def pgd(case):
    print('a library that talks')
    outputs = right(case)
    return dict(x_adv=outputs['iterates'][3]) if case.name == 'pgd-b' else outputs
def square(case):
    raise NotOffered('no proposals')
def fgsm(case):
    return right(case)
"""
    status, out, err = status_and_lines(runner, capsys, put_adapter(folder, code))
    assert status == 1 and 'a library that talks' in err
    assert out == [
        'fgsm    passed 1 of 1',
        'pgd     passed 1 of 2, deviates 1 of 2',
        'square  not offered: no proposals',
        '',
        out[4],
        '  likely reason: one step too few',
        '  explained: its line 3',
        '',
        'mine: passes 2 of the 3 vectors that it offers (4 in all) (library 1.2)',
    ]
    assert re.fullmatch(r'pgd-b deviates: x_adv by 0\.\d+ in 3 of 3 images', out[4])
    status, out, _ = status_and_lines(runner, capsys, folder / 'mine.py', '--cases', 'fgsm', '*-a')
    assert status == 0 and out[-1].startswith('mine: passes 2 of the 2 vectors that it offers (3 in all)')
    _, verbose, _ = status_and_lines(runner, capsys, folder / 'mine.py', '--verbose')
    assert 'pgd-a passed' in verbose and '  losses: largest difference 0' in verbose


def test_what_cannot_be_compared_is_said_in_sentences(runner, folder, capsys):
    code = "def pgd(case): return dict(x_adv=right(case)['x_adv'][:2])\n"
    code += "def fgsm(case): return dict(x_adv=right(case)['x_adv'] / 0)"
    with np.errstate(all='ignore'):
        status, out, _ = status_and_lines(runner, capsys, put_adapter(folder, code), '--verbose')
    assert status == 1 and out[4:8] == [
        'fgsm-a deviates: x_adv is not finite in 3 of 3 images',
        '  likely reason: an overflow, or a division by 0',
        '  x_adv is not finite',
        'pgd-a deviates: x_adv cannot be compared',
    ]
    assert out[8] == '  likely reason: it has another shape: (2, 2, 2, 3), expected (3, 2, 2, 3)'
    assert out[9] == '  x_adv cannot be compared'


def test_an_explanation_is_printed_once(runner, folder, capsys):
    code = "EXPLAINED = {'pgd': 'its line 3'}\ndef pgd(case): return dict(x_adv=right(case)['iterates'][3])"
    status, out, _ = status_and_lines(runner, capsys, put_adapter(folder, code))
    explained = [line for line in out if line.startswith('  explained: ')]
    assert status == 1 and explained == ['  explained: its line 3', '  explained: as pgd-a']


def test_what_fails_is_an_error_and_the_others_go_on(runner, folder, capsys):
    code = 'def fgsm(case): return right(case)\ndef square(case): raise SystemExit(3)\n'
    code += 'def pgd(case):\n    if case.name == "pgd-a":\n        raise ValueError("two\\nlines")\n'
    code += '    return right(case)'
    status, out, err = status_and_lines(runner, capsys, put_adapter(folder, code))
    assert status == 1 and not err
    assert 'pgd     passed 1 of 2, error 1 of 2' in out and 'fgsm    passed 1 of 1' in out
    assert 'pgd-a error: ValueError: two lines' in out and 'square-a error: SystemExit: 3' in out
    _, _, err = status_and_lines(runner, capsys, folder / 'mine.py', '--verbose')
    assert any(line.startswith('Traceback') for line in err)


def test_values_that_are_no_numbers_are_an_error(runner, folder):
    for value in 'text', [1j], [[1], [2, 3]], None:
        found = results_of(runner, folder, changed('x_adv', lambda a, value=value: value))
        assert found['pgd-a'].result == 'error' and found['pgd-b'].result == 'passed'


@pytest.mark.parametrize(
    'value, expected',
    [
        ("right(case)['x_adv']", 'ValueError: the adapter returned ndarray, expected a dict of outputs'),
        ('None', 'returned NoneType'),
        ('right(case) | dict(xadv=1)', "pgd has no output 'xadv', expected some of iterates, losses, x_adv"),
    ],
)
def test_an_answer_that_is_no_dict_of_outputs_is_an_error(runner, folder, capsys, value, expected):
    code = f'def fgsm(case): return right(case)\ndef pgd(case): return {value}'
    status, out, err = status_and_lines(runner, capsys, put_adapter(folder, code))
    assert status == 1 and not err and out[:2] == ['fgsm    passed 1 of 1', 'pgd     error 2 of 2']
    assert [line.split(':')[0] for line in out if expected in line] == ['pgd-a error', 'pgd-b error']


def test_an_output_that_only_other_vectors_have_is_ignored(runner, folder):
    put_case(folder / 'cases', 'pgd-c', 'pgd', dict(x_adv=np.ones(SHAPE)), dict(x=np.zeros(SHAPE)))
    found = results_of(runner, folder, lambda case, outputs: outputs | dict(losses=7), ['pgd-c'])
    assert found['pgd-c'].result == 'passed' and set(found['pgd-c'].differences) == {'x_adv'}


def test_patterns_fit_functions_and_vectors(runner, folder):
    def names(*patterns):
        return [case.name for case in runner.chosen(runner.load_cases(folder / 'cases'), patterns)]

    assert names('pgd') == names('p?d') == names('pgd-*') == names('pg*') == ['pgd-a', 'pgd-b']
    assert names('*-a', 'fgsm') == ['fgsm-a', 'pgd-a', 'square-a'] and names('f*m', '*b') == [
        'fgsm-a',
        'pgd-b',
    ]


def test_not_offered_by_function_by_vector_and_by_exception(runner, folder, capsys):
    code = "from run import NotOffered\nNOT_OFFERED = {'square': 'why', 'pgd-a': 'also'}\n"
    code += 'def pgd(case): return right(case)\ndef fgsm(case): raise NotOffered("third")'
    adapter = put_adapter(folder, code)
    status, _, _ = status_and_lines(runner, capsys, adapter, '--json', folder / 'r.json')
    record = json.loads((folder / 'r.json').read_text())
    found = {r['case']: (r['result'], r['reason']) for r in record['results']}
    assert status == 0 and found == {
        'fgsm-a': ('not offered', 'third'),
        'pgd-a': ('not offered', 'also'),
        'pgd-b': ('passed', None),
        'square-a': ('not offered', 'why'),
    }
    status, out, err = status_and_lines(runner, capsys, adapter, '--cases', 'square', 'fgsm')
    assert status == 2 and not out and len(err) == 1 and 'none of the 2 vectors' in err[0]


def test_an_adapter_cannot_spoil_the_vectors(runner, folder, capsys):
    code = """
SEEN = []
def pgd(case):
    SEEN.append((case.inputs['x'].sum(), case.parameters['eps'], hasattr(case, 'expected')))
    case.inputs['x'][:] = 7
    case.parameters['eps'] = 7
    case.weights['more'] = 7
    return right(case)
"""
    adapter = put_adapter(folder, code)
    cases = runner.load_cases()
    before = {c.name: (c.inputs['x'].sum(), c.parameters.get('eps')) for c in cases}
    found = runner.find_adapter(str(adapter), cases)
    for _ in range(2):
        runner.run_cases(found, cases)
    seen = sys.modules['adapter_of_vectors_mine'].SEEN
    assert seen == 2 * [(*before[name], False) for name in ('pgd-a', 'pgd-b')]
    assert {c.name: (c.inputs['x'].sum(), c.parameters.get('eps')) for c in cases} == before


def test_a_record_is_plain_json(runner, folder, capsys):
    code = "PRECISION = 'float64'\ndef VERSIONS(): return {'numpy': 'x'}\n"
    code += 'def pgd(case): return right(case) | dict(x_adv=right(case)["x_adv"] * float("nan"))'
    file = folder / 'r.json'
    assert status_and_lines(runner, capsys, put_adapter(folder, code), '--json', file)[0] == 1

    def refuse_constant(name):
        raise AssertionError(name)

    record = json.loads(file.read_text(), parse_constant=refuse_constant)
    assert list(record) == ['format', 'adapter', 'versions', 'precision', 'results']
    assert (
        record['format'] == 1 and record['versions'] == dict(numpy='x') and record['precision'] == 'float64'
    )
    row = record['results'][1]
    assert row['case'] == 'pgd-a' and row['difference'] is None and row['differences']['losses'] == 0
    keys = re.findall(
        r'^\| ((?:`\w+`(?:, )?)+) \|', README.split('`--json FILE` writes')[1].split('\n## ')[0], re.M
    )
    told = [key for row in keys for key in re.findall(r'\w+', row)]
    assert set(told) == {*record, *row}


# Answers in files


def put_answers(folder, **change):
    "The right answers of two vectors, as another program writes them"
    place = folder / 'answers'
    place.mkdir()
    for name in 'pgd-a', 'fgsm-a':
        save_file(right(name, folder), place / f'{name}.safetensors')
    for name, outputs in change.items():
        save_file(outputs, place / f'{name}.safetensors')
    return place


def test_a_folder_of_answers(runner, folder, capsys):
    place = put_answers(folder)
    status, out, _ = status_and_lines(runner, capsys, place)
    assert status == 0 and out[:3] == [
        'fgsm    passed 1 of 1',
        'pgd     passed 1 of 2, not offered 1',
        'square  not offered: no file',
    ]
    single = {k: a.astype(np.float32) for k, a in right('pgd-b', folder).items()}
    save_file(single, place / 'pgd-b.safetensors')
    status_and_lines(runner, capsys, place, '--json', folder / 'r.json')
    found = {r['case']: r for r in json.loads((folder / 'r.json').read_text())['results']}
    assert found['pgd-b']['result'] == 'passed' and found['pgd-b']['precision'] == 'float32'
    assert found['pgd-a']['precision'] == 'float64'


@pytest.mark.parametrize(
    'spoil, expected',
    [
        (lambda place: (place / 'pgd-z.safetensors').write_bytes(b''), 'no vector pgd-z'),
        (lambda place: (place / 'pgd-b.safetensors').write_bytes(b'damaged'), 'cannot be read'),
        (lambda place: [file.unlink() for file in place.iterdir()], 'expected answers'),
    ],
)
def test_answers_that_are_refused(runner, folder, capsys, spoil, expected):
    place = put_answers(folder)
    spoil(place)
    status, out, err = status_and_lines(runner, capsys, place)
    assert status == 2 and not out and len(err) == 1 and expected in err[0]


# Refusals


@pytest.mark.parametrize(
    'code, expected',
    [
        ('import no_such_library', "No module named 'no_such_library'"),
        ('1 / 0', 'ZeroDivisionError'),
        ('def pgd(case:', 'SyntaxError'),
        ('raise SystemExit(0)', 'cannot be imported'),
        ('def pdg(case): return right(case)', 'pdg is no function of the specification, expected pgd'),
        (
            'def pdg(case, steps=3): return right(case)',
            'pdg is no function of the specification, expected pgd',
        ),
        ('def sqare(case): return right(case)', 'sqare is no function of the specification, expected square'),
        ('def PGD(case): return right(case)', 'PGD is no function of the specification, expected pgd'),
        (
            'def FGSM(case, eps): return right(case)',
            'FGSM is no function of the specification, expected fgsm',
        ),
        ('class Square:\n    pass', 'Square is no function of the specification, expected square'),
        ('def alp(case): return right(case)', 'expected alp_loss; a helper needs another name, such as _alp'),
        (
            'spsa = lambda case: right(case)',
            'spsa is no function of the specification, expected spsa_gradient',
        ),
        ('def trades(case): return right(case)', 'expected trades_attack or trades_loss;'),
        (
            'def my_attack(case): return right(case)',
            'vectors that were chosen; found in it: right, my_attack',
        ),
        ("PRECISION = 'double'", "PRECISION is 'double'"),
        ("NOT_OFFERED = {'sqare': 'why'}", "NOT_OFFERED has 'sqare'"),
        ('def VERSIONS(): return 1 / 0', 'VERSIONS fails (ZeroDivisionError'),
        ('VERSIONS = dict(torch=2)', "VERSIONS is {'torch': 2}"),
        ("NOT_OFFERED = ['square']", "NOT_OFFERED is ['square']"),
        ("EXPLAINED = {'pgd-z': 'why'}", "EXPLAINED has 'pgd-z'"),
        (
            "NOT_OFFERED = {'pgd': 'why'}\ndef pgd(case): return right(case)",
            'there is a function of this name',
        ),
        ('', 'offers none of the 4 vectors'),
    ],
)
def test_adapters_that_are_refused(runner, folder, capsys, code, expected):
    status, out, err = status_and_lines(runner, capsys, put_adapter(folder, code))
    assert status == 2 and not out and len(err) == 1 and expected in err[0], err


def test_helpers_may_have_names_that_no_one_takes_for_a_function(runner, folder, capsys):
    "One that needs more than a vector, one with _, one of another module, one with another name"
    code = 'from fractions import Fraction as FGSM\ndef squared(a, b): pass\ndef _pdg(case): pass\n'
    code += 'def gradient(x): pass\ndef squashed(x): pass\ndef cw_loss(z): pass\ndef fgsm(case): return right(case)'
    status, out, _ = status_and_lines(runner, capsys, put_adapter(folder, code))
    assert status == 0 and out[0] == 'fgsm    passed 1 of 1'


def test_a_helper_of_a_function_may_have_a_name_like_it(runner, folder, capsys):
    "pgd2 beside pgd is a helper; pgd2 alone is taken for a misspelt pgd"
    helper = 'def pgd2(case): return right(case)\n'
    status, out, _ = status_and_lines(
        runner, capsys, put_adapter(folder, helper + 'def pgd(case): return pgd2(case)')
    )
    assert status == 0 and out[1] == 'pgd     passed 2 of 2'
    status, _, err = status_and_lines(runner, capsys, put_adapter(folder, helper))
    assert status == 2 and 'expected pgd;' in err[0]


def test_an_adapter_imports_what_stands_beside_it(runner, folder, capsys, monkeypatch):
    "But never instead of a library: its folder comes last"
    monkeypatch.setattr(sys, 'path', [*sys.path])
    place = folder / 'elsewhere'
    place.mkdir()
    (place / 'beside_the_adapter.py').write_text('VALUE = 3')
    (place / 'fractions.py').write_text('raise SystemError')
    code = 'from fractions import Fraction\nfrom beside_the_adapter import VALUE\n'
    (place / 'cases').symlink_to(folder / 'cases')
    code += 'def pgd(case): return right(case)'
    status, out, _ = status_and_lines(runner, capsys, put_adapter(place, code))
    assert status == 0 and out[1] == 'pgd     passed 2 of 2' and sys.path[-1] == str(place.resolve())


@pytest.mark.parametrize(
    'args, expected',
    [
        ([], 'ADAPTER: expected a name in adapters/'),
        (['--cases', 'fgsm', 'mine.py'], 'ADAPTER: expected before --cases'),
        (['mine.py', '--cases', 'fgsm', 'mine.py'], '--cases mine.py: fits none'),
        (['mine.py', '--cases', 'fgsm', 'mine.py'], 'ADAPTER comes before --cases'),
        (['mine'], 'do you mean mine.py?'),
        (['nobody'], 'nobody: expected a .py file'),
        (['nobody.py'], 'nobody.py: expected a .py file'),
        (['nowhere/'], 'nowhere/: expected a .py file'),
        (['mine.py', '--cases', 'pgd', 'q*'], '--cases q*: fits none'),
        (['mine.py', '--json', 'nowhere/r.json'], '--json nowhere/r.json: expected'),
        (['mine.py', '--json', 'cases'], '--json cases: expected a file'),
        ([''], "this is ''"),
        (['mine.py', '--json'], 'expected one argument'),
        (['mine.py', '--jsno', 'r'], '--jsno'),
    ],
)
def test_calls_that_are_refused(runner, folder, capsys, monkeypatch, args, expected):
    put_adapter(folder, 'def pgd(case): return right(case)')
    monkeypatch.chdir(folder)
    status, out, err = status_and_lines(runner, capsys, *args)
    assert status == 2 and not out and len(err) == 1 and expected in err[0], err


def rewrite(change):
    def spoil(cases):
        file = cases / 'pgd-a.json'
        facts = json.loads(file.read_text())
        change(facts)
        file.write_text(json.dumps(facts))

    return spoil


@pytest.mark.parametrize(
    'spoil',
    [
        lambda cases: (cases / 'pgd-a.json').write_text('{'),
        lambda cases: (cases / 'pgd-a.json').write_bytes(b'\xff'),
        lambda cases: (cases / 'pgd-a.json').write_text('[]'),
        lambda cases: (cases / 'pgd-a.safetensors').unlink(),
        lambda cases: (cases / 'pgd-a.safetensors').write_bytes(b'damaged'),
        rewrite(lambda facts: facts.pop('deviations')),
        rewrite(lambda facts: facts.update(name='pgd-z')),
        rewrite(lambda facts: facts.update(function='pdg')),
        rewrite(lambda facts: facts['outputs'].pop('losses')),
        rewrite(lambda facts: facts['outputs']['losses'].pop('tolerance')),
        rewrite(lambda facts: facts['outputs']['losses'].pop('required')),
        rewrite(lambda facts: facts['deviations'].append(dict(id='unknown', reason='no tensors'))),
    ],
)
def test_damaged_vectors_are_refused(runner, folder, capsys, spoil):
    put_adapter(folder, 'def fgsm(case): return right(case)')
    assert status_and_lines(runner, capsys, folder / 'mine.py')[0] == 0
    spoil(folder / 'cases')
    status, out, err = status_and_lines(runner, capsys, folder / 'mine.py')
    assert status == 2 and not out and len(err) == 1 and 'pgd-a.json: damaged or incomplete' in err[0], err


# As a program


def test_the_program_is_imported_once(folder):
    "An adapter gets the runner's own NotOffered, and the library whose name it has, not itself"
    code = """
import sys
import safetensors
import run
assert run is sys.modules['__main__'] and run.HERE == Path(__file__).parents[1]
assert not any(Path(place).name == 'adapters' for place in sys.path) and hasattr(safetensors, 'safe_open')
assert not [name for name in sys.modules if name.startswith('adt_repro')]
from run import NotOffered
def pgd(case):
    raise NotOffered('as said')
def fgsm(case):
    tensors = load_file(Path(run.HERE) / 'cases' / f'{case.name}.safetensors')
    return dict(x_adv=tensors['output.x_adv'])
"""
    put_adapter(folder, code, 'adapters/safetensors.py')
    for more in [], ['-I']:
        done = run(sys.executable, *more, folder / 'run.py', 'safetensors', cwd=ROOT)
        assert done.returncode == 0 and not done.stderr, done.stderr
        assert 'pgd     not offered: as said' in done.stdout.splitlines()


def test_the_program_gives_the_three_statuses(folder):
    put_adapter(folder, 'def fgsm(case): return right(case)')
    put_adapter(folder, 'def fgsm(case): return dict(x_adv=right(case)["x_adv"] + 1)', 'wrong.py')
    for name, status in ('mine.py', 0), ('wrong.py', 1), ('nobody', 2):
        done = run(sys.executable, 'run.py', name, cwd=folder)
        assert done.returncode == status and bool(done.stderr) == (status == 2)


def test_the_program_needs_little():
    "Only the standard library, NumPy and safetensors, and Python 3.9; functions and lines are short"
    source = (VECTORS / 'run.py').read_text(encoding='utf-8')
    tree = ast.parse(source, feature_version=(3, 9))
    imports = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imports |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    others = {name.split('.')[0] for name in imports} - set(sys.stdlib_module_names)
    assert others == {'numpy', 'safetensors'} and 'match ' not in source
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert len(functions) > 20 and all(node.end_lineno - node.lineno < 30 for node in functions)
    public = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name[0] != '_']
    assert len(public) > 10 and all(ast.get_docstring(node) for node in public)
    assert max(map(len, source.splitlines())) <= 110


def test_the_list(runner, folder, capsys):
    code = 'from fractions import Fraction as mim\ndef pgd(case): pass\ncw = pgd\ndef _fgsm(case): pass'
    put_adapter(folder, f'import no_such_library\n{code}', 'adapters/other.py')
    status, out, _ = status_and_lines(runner, capsys, '--list')
    assert status == 0 and out[0] == f'folder: {folder}, README.md is the specification'
    assert out[1:4] == ['adapters:', '  other: An adapter', '    pgd cw']
    assert '  pgd: pgd-a pgd-b' in out and '  cw: none' in out


# Schema and specification


def test_the_schema_fits_the_specification(runner, folder):
    Draft202012Validator.check_schema(SCHEMA)
    functions = re.findall(r'^### (\w+)$', README.split('\n## Functions')[1], re.M)
    assert tuple(functions) == runner.FUNCTIONS == tuple(SCHEMA['properties']['function']['enum'])
    table = README.split('\n## The files')[1].split('\n## ')[0]
    assert re.findall(r'^\| `(\w+)` \|', table, re.M) == SCHEMA['required']
    sections = dict(zip(functions, re.split(r'^### \w+$', README, flags=re.M)[1:], strict=True))
    for rule in SCHEMA['allOf']:
        function = rule['if']['properties']['function']['const']
        referred = [sections[name] for name in functions if f'`{name}`' in sections[function]]
        named = re.findall(r'`(\w+)`', ' '.join([sections[function], *referred]))
        assert set(rule['then']['properties']['parameters']['required']) <= set(named), function


def errors(facts):
    return list(Draft202012Validator(SCHEMA).iter_errors(facts))


def test_the_schema_refuses_what_is_wrong(folder):
    facts = json.loads((folder / 'cases' / 'pgd-a.json').read_text())
    assert not errors(facts)
    for key in SCHEMA['required']:
        assert errors({k: v for k, v in facts.items() if k != key}), key
    for change in (
        dict(more=1),
        dict(function='pdg'),
        dict(network='lstm'),
        dict(parameters=dict(eps=0.1)),
        dict(outputs={}),
        dict(outputs=dict(x_adv=dict(required=True))),
        dict(margins=dict(gradient=-1)),
        dict(deviations=[dict(id='a')]),
        dict(name='PGD a'),
    ):
        assert errors(facts | change), change


def test_the_adapter_of_the_specification_passes(runner, folder, capsys):
    "On two classes, for which the gradient is known: w1 - w0 of one, times the probability of the other"
    (code,) = re.findall(r'```python\n(.*?)```', README, re.S)
    assert code.count('\n') <= 21
    r = np.random.default_rng(1)
    weight, x, y, eps = r.normal(size=(2, 12)), r.random(SHAPE), np.array([0, 1, 0]), 0.1
    x[0, 0, 0, :2] = 0, 1
    up = (weight[1] - weight[0]) * np.where(y == 0, 1, -1)[:, None]
    gradient = (up / (1 + np.exp(-(up * x.reshape(N, -1)).sum(1, keepdims=True)))).reshape(SHAPE)
    outputs = dict(x_adv=np.clip(x + eps * np.sign(gradient), 0, 1), gradient=gradient)
    given = dict(inputs=dict(x=x, y=y), weights=dict(weight=weight, bias=np.zeros(2)), network='linear')
    put_case(folder / 'cases', 'fgsm-linear', 'fgsm', outputs, parameters=dict(eps=eps), **given)
    (folder / 'theirs.py').write_text(code)
    status, out, _ = status_and_lines(runner, capsys, folder / 'theirs.py', '--cases', 'fgsm-linear')
    assert status == 0 and out[0] == 'fgsm  passed 1 of 1', out


# adt vectors


@pytest.fixture
def clone(folder, tmp_path_factory, monkeypatch):
    "A clone with these vectors, and an adapter that has our package's name"
    root = tmp_path_factory.mktemp('clone')
    shutil.copytree(folder, root / 'vectors')
    shutil.copy(ROOT / 'settings.ini', root)
    code = RIGHT.replace("parent / 'cases'", "parents[1] / 'cases'")
    code += '\nimport adt_repro\nVERSIONS = dict(at=adt_repro.__file__)\ndef pgd(case): return right(case)'
    (root / 'vectors' / 'adapters' / 'adt_repro.py').write_text(code)
    monkeypatch.chdir(root)
    monkeypatch.delenv('PYTHONPATH', raising=False)
    return root


def test_the_command_runs_the_same_program(clone, capfd):
    assert find_vectors() == clone / 'vectors'
    assert adt(['vectors']) == 0
    out = capfd.readouterr().out
    assert f'adt_repro: passes 2 of the 2 vectors that it offers (4 in all) (at {ROOT}/adt_repro/' in out
    assert (
        out == run(sys.executable, 'vectors/run.py', 'adt_repro', env=dict(PYTHONPATH=ROOT), cwd=clone).stdout
    )
    assert adt(['vectors', '--cases', 'pgd-a', '--json', 'r.json', '--verbose']) == 0
    assert 'pgd-a passed' in capfd.readouterr().out
    assert [r['case'] for r in json.loads((clone / 'r.json').read_text())['results']] == ['pgd-a']
    assert adt(['vectors', '--list']) == 0 and 'pgd: pgd-a pgd-b' in capfd.readouterr().out
    put_adapter(clone / 'vectors', 'def pgd(case): return dict(x_adv=0)')
    assert adt(['vectors', 'vectors/mine.py']) == 1
    assert 'pgd  deviates 2 of 2' in re.sub(' +', ' ', capfd.readouterr().out).replace('pgd ', 'pgd  ')


@pytest.mark.parametrize(
    'args, expected', [(['nobody'], 'nobody'), (['--case'], '--case'), (['a', 'b'], 'b')]
)
def test_the_command_refuses_in_one_line(clone, capfd, args, expected):
    assert adt(['vectors', *args]) == 2
    out, err = capfd.readouterr()
    assert not out and len(err.splitlines()) == 1 and expected in err


# The vectors that are published, as far as the runner goes


@pytest.fixture(scope='module')
def published():
    "The runner as it is, and all vectors"
    spec = importlib.util.spec_from_file_location('published_run', VECTORS / 'run.py')
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, module.load_cases()


def test_the_vectors_fit_the_schema_and_are_small(published):
    run, cases = published
    assert {case.function for case in cases} == set(run.FUNCTIONS) and len(cases) >= 40
    found = {}
    for file in (VECTORS / 'cases').iterdir():
        found.setdefault(file.stem, set()).add(file.suffix)
    assert found == {case.name: {'.json', '.safetensors'} for case in cases}
    for case in cases:
        facts = json.loads((VECTORS / 'cases' / f'{case.name}.json').read_text(encoding='utf-8'))
        assert not errors(facts), case.name
        assert list(facts) == ['$schema', *SCHEMA['required']], case.name
    size = sum(file.stat().st_size for file in VECTORS.rglob('*') if '__pycache__' not in file.parts)
    assert size <= 2_000_000


def as_written(outputs, precision):
    "Outputs with the rounding of a precision"
    return {k: a.astype(precision) if a.dtype.kind == 'f' else a for k, a in outputs.items()}


@pytest.mark.parametrize('precision', TOLERANCE)
def test_each_vector_is_passed_by_its_own_outputs_only(published, precision):
    "And each of its known deviations is known again, with what is right besides; few have the result of another"
    run, cases = published
    reasons, alone, shared = {}, 0, 0
    for case in cases:
        answer = as_written(case.expected, precision)
        assert run.judge(case, answer, precision)['result'] == 'passed', case.name
        for id, (reason, outputs) in case.deviations.items():
            found = run.judge(case, answer | as_written(outputs, precision), precision)
            named = found['reason'].split('; or ')
            assert found['result'] == 'deviates' and reason in named, case.name
            assert found['deviation'] == (id if len(named) == 1 else None), case.name
            alone, shared = alone + (len(named) == 1), shared + (len(named) > 1)
            reasons.setdefault(id, set()).add(reason)
    assert len(reasons) >= 20 and alone > 20 * shared > 0


def test_an_adapter_of_answers_for_all_vectors(published, tmp_path, capsys):
    "Right answers pass; each vector with the answers of another one of its function does not"
    run, cases = published
    for case in cases:
        save_file(case.expected, tmp_path / f'{case.name}.safetensors')
    assert run.main([str(tmp_path)]) == 0
    assert f'passes {len(cases)} of the {len(cases)} vectors' in capsys.readouterr().out
    for one, two in zip(cases, cases[1:], strict=False):
        if one.function == two.function:
            shared = {k: a for k, a in one.expected.items() if k in two.outputs}
            assert run.judge(two, shared, 'float32')['result'] == 'deviates', two.name
