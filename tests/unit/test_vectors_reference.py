"The oracle of the test vectors: its derivatives, what it imports, and that it makes the files that are there"

import ast
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT

from adt_repro.reference.attack_cases import attack_cases, attack_plans, draw_network
from adt_repro.reference.attacks import ATTACKS, bounded_margin_of, cosine_of, cross_entropy_of, divergence_of
from adt_repro.reference.cases import are_apart, arrays_of, compare_case, load_case, save_case
from adt_repro.reference.networks import gradient, image_gradients, log_softmax, logits, margins

FOLDER = ROOT / 'vectors' / 'cases'
FILES = sorted(FOLDER.glob('*.json'))
OF_ATTACKS = {plan.name for plan in attack_plans()}
ALLOWED = {'numpy', 'safetensors', *sys.stdlib_module_names}


@pytest.fixture(scope='module')
def made():
    return {case.name: case for case in attack_cases()}


@pytest.fixture(scope='module')
def there():
    return {file.stem: load_case(file) for file in FILES}


def central(value, x, step=1e-5):
    "Central differences of each image's own value"
    found = np.empty_like(x)
    for place in np.ndindex(x.shape):
        moved = np.stack([x[place[0]]] * 2)
        moved[:, *place[1:]] += [step, -step]
        high, low = value(moved, place[0])
        found[place] = (high - low) / (2 * step)
    return found


@pytest.mark.parametrize('kind', ['linear', 'relu', 'conv'])
def test_complex_steps_agree_with_central_differences(kind):
    rng = np.random.default_rng(5)
    net = kind, draw_network(rng, kind, (2, 3, 4))
    x, targets = rng.random((2, 3, 2, 3, 4))
    y = np.array([0, 1, 2])
    values = dict(
        cross_entropy=cross_entropy_of(net, y),
        margin=bounded_margin_of(net, y, 50),
        divergence=divergence_of(net, targets),
        reverse=divergence_of(net, targets, reverse=True),
        cosine=cosine_of(net, targets),
    )
    for name, value in values.items():
        exact = image_gradients(value, x)
        assert abs(exact).max() > 1e-3, name
        assert np.allclose(exact, central(value, x), rtol=1e-6, atol=1e-8), name
        assert not np.allclose(exact, central(value, x[::-1]), rtol=1e-6, atol=1e-8) or kind == 'linear', name


def test_closed_forms_of_the_linear_network():
    rng = np.random.default_rng(6)
    weights = draw_network(rng, 'linear', (2, 3, 4))
    x, y = rng.random((5, 2, 3, 4)), np.array([0, 1, 2, 3, 0])
    z, w = logits('linear', weights, x), weights['weight']
    residual = np.exp(log_softmax(z)) - np.eye(4)[y]
    found = image_gradients(cross_entropy_of(('linear', weights), y), x).reshape(5, -1)
    assert np.allclose(found, residual @ w, rtol=1e-10, atol=1e-14)
    others = np.where(np.eye(4)[y] == 1, -np.inf, z).argmax(1)
    of_margin = image_gradients(bounded_margin_of(('linear', weights), y, np.inf), x).reshape(5, -1)
    assert np.allclose(of_margin, w[others] - w[y], rtol=1e-10, atol=1e-14)
    of_weights = gradient(lambda w: (x.reshape(5, -1) @ w.T)[np.arange(5), y].sum(), w)
    assert np.allclose(of_weights, np.eye(4)[y].T @ x.reshape(5, -1), rtol=1e-12, atol=1e-14)


def foreign_imports(source):
    "Names of modules that the oracle must not import"
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add('.' * node.level + (node.module or ''))
    own = {
        name for name in found if name.startswith('adt_repro.reference.') or name.lstrip('.') + '.py' in HERE
    }
    return {name for name in found - own if name.split('.')[0] not in ALLOWED}


HERE = {file.name for file in (ROOT / 'adt_repro' / 'reference').glob('*.py')}


def test_the_oracle_imports_nothing_of_what_it_tests():
    assert len(HERE) >= 6
    for name in HERE:
        assert not foreign_imports((ROOT / 'adt_repro' / 'reference' / name).read_text(encoding='utf-8')), (
            name
        )
    imports = (
        'import torch',
        'import scipy.special',
        'from adt_repro.losses import margin',
        'from ..data import x',
    )
    wrong = {'torch', 'scipy.special', 'adt_repro.losses', '..data'}
    assert foreign_imports('\n'.join(imports)) == wrong
    right = (
        'import json',
        'import numpy as np',
        'from .cases import Case',
        'from safetensors.numpy import save',
    )
    assert not foreign_imports('\n'.join(right))


def test_the_files_say_what_is_made(made, there):
    "Same integers, flags and signs; real numbers within 1e-12"
    assert OF_ATTACKS == made.keys() <= there.keys()
    differences = [line for name, case in made.items() for line in compare_case(case, there[name])]
    assert not differences


MADE_AGAIN = """
import sys
from adt_repro.reference.vectors import attack_cases, compare_cases
lines = [line for line in compare_cases(attack_cases(), sys.argv[1]) if 'it is not made' not in line]
print(*lines, sep=chr(10))
"""


@pytest.mark.parametrize('kernel', ['Prescott', 'Haswell'])
def test_another_blas_kernel_makes_the_same_files(kernel):
    "No result, and no known deviation, is decided by rounding"
    if 'openblas' not in np.show_config('dicts')['Build Dependencies']['blas']['name']:
        pytest.skip('the BLAS of NumPy is not OpenBLAS, whose kernels can be chosen')
    env = os.environ | dict(OPENBLAS_CORETYPE=kernel)
    call = [sys.executable, '-W', 'ignore', '-c', MADE_AGAIN, FOLDER]
    done = subprocess.run(call, env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ''


def test_a_file_that_says_something_else_is_found(made, tmp_path):
    case = made['pgd-conv']
    for name in ('iterates', 'signs'):
        changed = load_case(save_case(case, tmp_path))
        assert compare_case(changed, case) == []
        changed.outputs[name][2, 1, 0, 1, 1] += 2e-12
        assert compare_case(changed, case) == [f'pgd-conv: output.{name} differs by 2.0e-12']


def test_made_twice_the_bytes_are_the_same(made, tmp_path):
    again = attack_cases()
    for case, folder in [(c, 'first') for c in made.values()] + [(c, 'second') for c in again]:
        save_case(case, tmp_path / folder)
    first, second = (sorted((tmp_path / name).iterdir()) for name in ('first', 'second'))
    assert [file.name for file in first] == [file.name for file in second]
    assert len(first) == 2 * len(OF_ATTACKS)
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))


def test_a_file_read_and_written_has_the_same_bytes(there, tmp_path):
    for name, case in there.items():
        save_case(case, tmp_path)
        for suffix in ('.json', '.safetensors'):
            assert (tmp_path / (name + suffix)).read_bytes() == (FOLDER / (name + suffix)).read_bytes(), name


def test_all_files_are_small_and_come_in_pairs():
    everything = list(FOLDER.iterdir())
    assert sum(file.stat().st_size for file in everything) <= 2_000_000
    assert {file.stem for file in everything if file.suffix == '.safetensors'} == {
        file.stem for file in FILES
    }
    assert len(everything) == 2 * len(FILES) >= 2 * len(OF_ATTACKS)


@pytest.mark.parametrize('name', sorted(OF_ATTACKS))
def test_no_tie(there, name):
    "The distances from ties, computed again from the files"
    case = there[name]
    _, ties = ATTACKS[case.function]((case.network, case.weights), case.inputs, case.parameters)
    ties = {tie: gap for tie, gap in ties.items() if np.isfinite(gap)}
    assert ties.keys() == case.margins.keys()
    for tie, gap in ties.items():
        assert gap == pytest.approx(case.margins[tie], rel=0.06)  # two digits
        assert gap >= (3e-4 if tie in ('gradient', 'activation') else 1e-3), tie
    zeros = (case.outputs.get('signs', np.ones(1)) == 0).any()
    assert zeros == ('exactly 0' in case.about)


def test_deviations_can_be_told_apart(there):
    "From the right result by more than rounding to float32, and nearly all from each other"
    pairs, same = 0, 0
    for name in sorted(OF_ATTACKS):
        case = there[name]
        results = [case.outputs, *(outputs for _, outputs in case.deviations.values())]
        for i, one in enumerate(results):
            assert one.keys() >= set(case.required)
            assert not are_apart(case, one, one)
            assert i == 0 or are_apart(case, one, case.outputs), name
            same += sum(not are_apart(case, one, other) for other in results[:i])
            pairs += i
    assert pairs > 1000
    assert same < 10


def test_inputs_are_what_the_specification_says(there):
    seen = set()
    for name in sorted(OF_ATTACKS):
        case = there[name]
        x, y, z = case.inputs['x'], case.inputs['y'], logits(case.network, case.weights, case.inputs['x'])
        assert x.min() == 0 and x.max() == 1
        assert x.shape[2] != x.shape[3]
        assert y.min() >= 0 and y.max() < z.shape[1]
        assert (margins(z, y) < 0).tolist() == [False] * (len(y) - 1) + [True]
        assert all(str(a.dtype) in ('float64', 'int64', 'bool') for a in arrays_of(case).values())
        seen |= {case.function}
    assert seen == ATTACKS.keys()


def test_descriptions_follow_the_schema():
    schema = json.loads((FOLDER.parent / 'schema.json').read_text(encoding='utf-8'))
    jsonschema = pytest.importorskip('jsonschema')
    validator = jsonschema.Draft202012Validator(schema)
    for file in FILES:
        said = json.loads(file.read_text(encoding='utf-8'))
        assert not [error.message for error in validator.iter_errors(said)], file.name
    assert list(validator.iter_errors(said | dict(network='dense')))
