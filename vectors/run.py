"""Runs the test vectors in cases/ against an implementation. README.md is the specification.

    python run.py ADAPTER [--cases PATTERN ...] [--json FILE] [--verbose]
    python run.py --list

Needs Python 3.9 or newer, NumPy and safetensors. An adapter may import from here:

    from run import NotOffered
"""

import argparse
import ast
import contextlib
import copy
import difflib
import fnmatch
import importlib.util
import inspect
import json
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Optional

try:
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import load_file
except ImportError as error:
    print(f'{error}; run.py needs NumPy and safetensors: pip install numpy safetensors', file=sys.stderr)
    raise SystemExit(2) from None

HERE = Path(__file__).resolve().parent
FORMAT = 1  # of what --json writes
FUNCTIONS = (
    *('forward', 'fgsm', 'pgd', 'mim', 'cw', 'trades_attack', 'feature_attack', 'spsa_gradient', 'square'),
    *('trades_loss', 'alp_loss', 'feature_scatter', 'tanh_gaussian', 'adt_exp', 'adt_exp_am', 'adt_imp_am'),
)
PRECISIONS = ('float64', 'float32')

# Outputs of these functions whose first axis is the step and whose second is the image
_STEPWISE = ('pgd', 'mim', 'cw', 'trades_attack', 'feature_attack', 'adt_exp')
_BY_STEP = ('iterates', 'mu_iterates', 'rho_iterates', 'losses', 'signs', 'objective')
_ITERATES = _BY_STEP[:3]


class NotOffered(Exception):
    "An adapter's function raises it, with a reason, for a vector that its library cannot compute"


class Refused(Exception):
    "The call is wrong; one line says why"


# The vectors


@dataclass
class Case:
    "A vector, as its two files have it"

    name: str
    function: str  # one of FUNCTIONS
    about: str
    network: Optional[str]  # linear, relu, conv or None
    parameters: dict
    weights: dict  # of the network, names to arrays
    inputs: dict  # names to arrays
    outputs: dict  # names to dicts of `required` and `tolerance`
    expected: dict  # names of outputs to arrays
    deviations: dict = field(default_factory=dict)  # id to its reason, and a dict of outputs to arrays

    def tolerance(
        self,
        output: str,  # its name
        precision: str,  # float64 or float32
    ) -> float:  # 0 for integers and flags
        "How far a value may be from the expected one, in units of max(1, |expected|)"
        real = self.expected[output].dtype.kind == 'f'
        return float(self.outputs[output]['tolerance'][precision]) if real else 0.0


def _part(tensors, first):
    "The tensors whose names begin with `first` and a dot, without them"
    return {name[len(first) + 1 :]: a for name, a in tensors.items() if name.startswith(f'{first}.')}


def _case_of(facts, tensors):
    "A vector from the contents of its files; an error if they do not fit each other"
    case = Case(
        **{key: facts[key] for key in ('name', 'function', 'about', 'network', 'parameters', 'outputs')},
        weights=_part(tensors, 'network'),
        inputs=_part(tensors, 'input'),
        expected=_part(tensors, 'output'),
    )
    for known in facts['deviations']:
        case.deviations[known['id']] = known['reason'], _part(tensors, f'deviation.{known["id"]}')
    if case.function not in FUNCTIONS:
        raise ValueError(f'no function {case.function!r} is known')
    if set(case.outputs) != set(case.expected):
        raise ValueError('the outputs of the two files differ')
    for name, output in case.outputs.items():
        output['required'], [case.tolerance(name, precision) for precision in PRECISIONS]
    for id, (_, outputs) in case.deviations.items():
        if not outputs or any(case.expected[name].shape != a.shape for name, a in outputs.items()):
            raise ValueError(f'deviation {id!r} does not fit the outputs')
    return case


def load_case(
    file: Path,  # NAME.json; NAME.safetensors is beside it
) -> Case:
    "Read a vector; `Refused` if a file is missing or damaged"
    try:
        facts = json.loads(file.read_text(encoding='utf-8'))
        case = _case_of(facts, load_file(file.with_suffix('.safetensors')))
        if case.name != file.stem:
            raise ValueError(f'its name is {case.name!r}')
        return case
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        why = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise Refused(f'{file}: damaged or incomplete, expected a vector and its tensors ({why})') from None


def load_cases(
    folder: Path = HERE / 'cases',
) -> list:  # of `Case`, by function in the specification's order, then by name
    "Read all vectors; `Refused` if there are none or one is damaged"
    cases = [load_case(file) for file in folder.glob('*.json')]
    if not cases:
        raise Refused(f'{folder}: expected vectors, NAME.json and NAME.safetensors, and there are none')
    return sorted(cases, key=lambda case: (FUNCTIONS.index(case.function), case.name))


def chosen(
    cases: list,  # of `Case`
    patterns: list,  # of names of vectors or functions, also with * and ?; none: all
) -> list:  # of `Case`, in the same order
    "The vectors that fit a pattern; `Refused` if a pattern fits none"

    def fits(case, pattern):
        return any(fnmatch.fnmatchcase(name, pattern) for name in (case.name, case.function))

    for pattern in patterns:
        if not any(fits(case, pattern) for case in cases):
            hint = (
                '; ADAPTER comes before --cases' if pattern.endswith('.py') or Path(pattern).is_dir() else ''
            )
            expected = 'expected names of functions or vectors, such as pgd or "*-conv"'
            raise Refused(f'--cases {pattern}: fits none; {expected}{hint}')
    return [case for case in cases if not patterns or any(fits(case, p) for p in patterns)]


# What is tested


@dataclass
class Adapter:
    "An implementation: what computes its answers, and what it says of itself"

    name: str
    answer: Callable  # of a `Case`: a dict of outputs, or NotOffered is raised
    precision: Optional[str] = None  # float64 or float32; None: as the numbers of an answer are
    versions: dict = field(default_factory=dict)  # names of libraries to versions
    explained: dict = field(default_factory=dict)  # vectors or functions to explanations of what deviates
    contents: list = field(default_factory=list)  # names of the functions in its file, or of its files


def given_to(
    case: Case,
) -> SimpleNamespace:  # name, function, network, weights, inputs, parameters: copies
    "What an adapter's function gets of a vector"
    names = 'name', 'function', 'network', 'weights', 'inputs', 'parameters'
    return SimpleNamespace(**{name: copy.deepcopy(getattr(case, name)) for name in names})


def _imported(file):
    "The module of an adapter, by its path and under a name of its own: many are named like their library"
    name = f'adapter_of_vectors_{file.stem}'
    spec = importlib.util.spec_from_file_location(name, file)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    beside = str(file.parent)  # what stands beside an adapter can be imported, but never instead of a library
    if file.parent != HERE / 'adapters' and beside not in sys.path:
        sys.path.append(beside)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise Refused(f'{file}: cannot be imported ({_last_line(error)})') from None
    return module


def _last_line(error):
    "An exception in one line"
    return ' '.join(''.join(traceback.format_exception_only(type(error), error)).split())


def _own_functions(module):
    "The functions and classes that an adapter defines itself, by their names"
    found = {name: f for name, f in vars(module).items() if callable(f)}
    return {name: f for name, f in found.items() if getattr(f, '__module__', None) == module.__name__}


def _meant(name, f):
    "The functions of the specification that are meant by a name that is almost theirs; empty: none"
    small = name.lower()
    if small in FUNCTIONS:
        return [small]
    try:
        inspect.signature(f).bind(None)  # it can be called with a vector alone
    except (TypeError, ValueError):
        return []
    longer = [function for function in FUNCTIONS if function.startswith(f'{small}_')]
    swapped = [function for function in FUNCTIONS if sorted(function) == sorted(small)]
    return longer or swapped or difflib.get_close_matches(small, FUNCTIONS, n=1, cutoff=0.8)


def _functions_of(module, file):
    "The functions that an adapter offers; `Refused` if the name of another one is almost that of a function"
    own = _own_functions(module)
    for name, f in own.items():
        meant = [] if name in FUNCTIONS or name.startswith('_') else _meant(name, f)
        if meant and not set(meant) & set(own):  # beside the function itself it is a helper
            raise Refused(
                f'{file}: {name} is no function of the specification, expected {" or ".join(meant)}; '
                f'a helper needs another name, such as _{name}'
            )
    return {name: f for name, f in vars(module).items() if name in FUNCTIONS and callable(f)}


def _texts(module, name, file, known=None):
    "A dict of texts of an adapter; `Refused` if it is another thing or has a name that is not known"
    found = getattr(module, name, {})
    try:
        found = found() if callable(found) else found
    except Exception as error:
        raise Refused(f'{file}: {name} fails ({_last_line(error)})') from None
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise Refused(f'{file}: {name} is {found!r}, expected a dict of names and texts')
    for key in found:
        if known is not None and key not in known:
            raise Refused(f'{file}: {name} has {key!r}, expected the name of a function or of a vector')
    return found


def module_adapter(
    file: Path,  # Python, with a function for each function that it offers
    cases: list,  # all vectors, whose names it may use
) -> Adapter:
    "An adapter from its file; `Refused` if it cannot be imported or has names that are not known"
    module = _imported(file)
    functions = _functions_of(module, file)
    known = {*FUNCTIONS, *(case.name for case in cases)}
    missing, explained = (_texts(module, name, file, known) for name in ('NOT_OFFERED', 'EXPLAINED'))
    for name in functions:
        if name in missing:
            raise Refused(f'{file}: NOT_OFFERED has {name!r}, but there is a function of this name')
    precision = getattr(module, 'PRECISION', None)
    if precision not in (None, *PRECISIONS):
        raise Refused(f'{file}: PRECISION is {precision!r}, expected float64 or float32')

    def answer(case):
        reason = missing.get(case.name, missing.get(case.function))
        if reason is not None or case.function not in functions:
            raise NotOffered(reason or '')
        return functions[case.function](given_to(case))

    versions, contents = _texts(module, 'VERSIONS', file), list(_own_functions(module))
    return Adapter(file.stem, answer, precision, versions, explained, contents)


def answers_adapter(
    folder: Path,  # of NAME.safetensors, with a tensor for each output
    cases: list,  # all vectors
) -> Adapter:
    "Answers that another program has written; `Refused` if there are none, or one is of no vector"
    files = {file.stem: file for file in folder.glob('*.safetensors')}
    if not files:
        raise Refused(f'{folder}: expected answers, NAME.safetensors for vectors NAME, and there are none')
    for name in sorted(set(files) - {case.name for case in cases}):
        raise Refused(f'{files[name]}: there is no vector {name}; --list shows the functions')

    def answer(case):
        if case.name not in files:
            raise NotOffered('no file')
        try:
            return load_file(files[case.name])
        except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
            raise Refused(f'{files[case.name]}: cannot be read ({_last_line(error)})') from None

    return Adapter(str(folder), answer, contents=sorted(file.name for file in files.values()))


def find_adapter(
    text: str,  # a name in adapters/, a .py file, or a folder of answers
    cases: list,  # all vectors
) -> Adapter:
    "What the command line names; `Refused` if there is no such thing"
    path = Path(text)
    if not text:
        raise Refused("ADAPTER: expected a name in adapters/, a .py file or a folder, this is ''")
    if path.suffix == '.py' and path.is_file():
        return module_adapter(path.resolve(), cases)
    own = HERE / 'adapters' / f'{text}.py'
    if own.is_file() and own.parent == HERE / 'adapters' and path.name == text:
        return module_adapter(own, cases)
    if path.is_dir():
        return answers_adapter(path, cases)
    there = ', '.join(file.stem for file in adapter_files()) or 'none is there'
    hint = f'; do you mean {text}.py?' if Path(f'{text}.py').is_file() else ''
    raise Refused(
        f'{text}: expected a .py file, a folder of answers, or the name of an adapter ({there}){hint}'
    )


def adapter_files() -> list:  # of paths
    "The adapters in adapters/"
    return [file for file in sorted((HERE / 'adapters').glob('*.py')) if not file.name.startswith('_')]


# How an answer is compared


def agrees(
    given: np.ndarray,  # numbers or flags
    expected: np.ndarray,  # of the same shape
    tolerance: float,  # 0: they must be equal
) -> np.ndarray:  # of bool: entry by entry
    "Does |given − expected| <= tolerance · max(1, |expected|) hold?"
    if tolerance == 0:
        return given == expected
    given, expected = given.astype(np.float64), expected.astype(np.float64)
    with np.errstate(all='ignore'):
        return np.abs(given - expected) <= tolerance * np.maximum(1, np.abs(expected))


def largest_difference(
    given: np.ndarray,  # numbers or flags
    expected: np.ndarray,  # of the same shape
) -> float:  # of real numbers in units of max(1, |expected|)
    "How far two arrays are apart; inf where one is not finite"
    real = expected.dtype.kind == 'f'
    given, expected = given.astype(np.float64), expected.astype(np.float64)
    with np.errstate(all='ignore'):
        difference = np.abs(given - expected) / (np.maximum(1, np.abs(expected)) if real else 1)
    return float(np.where(np.isnan(difference), np.inf, difference).max(initial=0))


def arrays_of(
    case: Case,
    answer: dict,  # as an adapter returns it
    known: set,  # names of the outputs that this function has
) -> dict:  # names of this vector's outputs to arrays
    "The outputs of an answer; `ValueError` if it is no dict, has another name, lacks one, or has no numbers"
    if not isinstance(answer, dict):
        raise ValueError(f'the adapter returned {type(answer).__name__}, expected a dict of outputs')
    for name in answer:
        if name not in known:
            have = ', '.join(sorted(known))
            raise ValueError(f'{case.function} has no output {name!r}, expected some of {have}')
    for name, output in case.outputs.items():
        if output['required'] and name not in answer:
            raise ValueError(f'{name} is required and was not given')
    arrays = {name: np.asarray(answer[name]) for name in case.outputs if name in answer}
    for name, a in arrays.items():
        if a.dtype.kind not in 'fiub':
            raise ValueError(f'{name} is an array of {a.dtype}, expected real numbers or flags')
    return arrays


def _is_right(case, name, given, precision):
    "Does an output agree in shape and in every entry?"
    expected = case.expected[name]
    return given.shape == expected.shape and bool(
        agrees(given, expected, case.tolerance(name, precision)).all()
    )


def image_axis(
    case: Case,
    output: str,  # its name
) -> Optional[int]:  # None: the output is not divided by images
    "Which axis of an output is that of the images?"
    if case.function in _STEPWISE and output in _BY_STEP:
        return 1
    n = len(case.inputs['mu' if case.function == 'tanh_gaussian' else 'x'])
    shape = case.expected[output].shape
    return 0 if shape and shape[0] == n and not output.startswith('gradient.') else None


def _images(case, name, given, precision):
    "In how many images an output deviates, and their number; None: no axis of images, or another shape"
    axis, expected = image_axis(case, name), case.expected[name]
    if axis is None or given.shape != expected.shape:
        return None, None
    right = agrees(given, expected, case.tolerance(name, precision))
    others = tuple(k for k in range(right.ndim) if k != axis)
    return int((~right.all(axis=others)).sum()), expected.shape[axis]


def first_iterate(
    case: Case,
    answer: dict,  # names of outputs to arrays
    precision: str,  # float64 or float32
) -> Optional[int]:  # 0: the start; None: no iterates were given, or all agree
    "The first iterate that deviates, or that is missing or too many"
    found = []
    for name in set(_ITERATES) & set(answer):
        given, expected = answer[name], case.expected[name]
        if given.ndim != expected.ndim or given.shape[1:] != expected.shape[1:]:
            continue
        n = min(len(given), len(expected))
        right = agrees(given[:n], expected[:n], case.tolerance(name, precision)).reshape(n, -1).all(axis=1)
        found += np.flatnonzero(~right)[:1].tolist() or ([n] if len(given) != len(expected) else [])
    return min(found, default=None)


# Why it may deviate


def known_deviations(
    case: Case,
    answer: dict,  # names of outputs to arrays
    precision: str,  # float64 or float32
) -> list:  # their ids; several if the answer lacks the output that would tell them apart
    "The known deviations that an answer can be: what it gives of them agrees, and is not all right"

    has_iterates = any('iterates' in outputs for _, outputs in case.deviations.values())

    def fits(outputs):
        if has_iterates and 'iterates' not in outputs and 'iterates' in answer:
            if not _is_right(case, 'iterates', answer['iterates'], precision):
                return False  # this deviation has the right iterates
        given = {name: a for name, a in outputs.items() if name in answer}
        return all(
            answer[name].shape == a.shape and agrees(answer[name], a, case.tolerance(name, precision)).all()
            for name, a in given.items()
        ) and not all(_is_right(case, name, answer[name], precision) for name in given)

    return [id for id, (_, outputs) in case.deviations.items() if fits(outputs)]


def _multiple(given, expected, tolerance):
    "The number that times `expected` gives `given`; None if there is none, or if `given` is almost 0"
    if given.size < 2 or np.abs(given).max() < 10 * tolerance or not expected.any():
        return None
    factor = float((given * expected).sum() / (expected**2).sum())
    return factor if agrees(given, factor * expected, tolerance).all() else None


def _size_reason(given, expected, x, tolerance):
    "Words for images x_adv whose perturbation has another size than expected; None if it has not"
    if agrees(given, x, tolerance).all():
        return 'x_adv is x, without a perturbation'
    free = np.all([(a != 0) & (a != 1) for a in (given, expected)], axis=0)  # where nothing was clipped
    factor = _multiple((given - x)[free], (expected - x)[free], tolerance)
    if factor is not None and abs(factor - 1) > 1e-3:
        return f'the perturbation x_adv − x is {factor:.5g} times what is expected, as with another ε'
    ratio = np.abs(given - x).max() / max(np.abs(expected - x).max(), tolerance)
    if ratio < 0.1 or ratio > 1.01:
        return f'the largest entry of x_adv − x is {ratio:.5g} times what is expected: another ε, or no ball'
    return None


def _multiple_reason(case, name, given, tolerance):
    "Words for an output that is the expected one times a number; None if it is not"
    expected = case.expected[name]
    if not given.any():
        return f'{name} is 0 everywhere'
    factor = _multiple(given, expected, tolerance)
    if factor is not None:
        return f'{name} is {factor:.5g} times what is expected'
    if name == 'x_adv' and 'x' in case.inputs:
        return _size_reason(given, expected, case.inputs['x'], tolerance)
    return None


def _count_reason(name, given, expected):
    "Words for integers that are all wrong by the same number; None if they are not"
    more = np.unique(given.astype(np.float64) - expected)
    if expected.dtype.kind != 'i' or len(more) != 1:
        return None
    return f'{name} is always {abs(more[0]):g} too {"large" if more[0] > 0 else "small"}'


_ALMOST = (
    'it agrees within the tolerance of float32: something is computed in float32, or a small constant was '
    "added; if float32 is intended, set PRECISION = 'float32', or write answers in float32"
)


def _general_reason(case, answer, wrong, precision):
    "What can be said of an answer that is none of the known deviations; `wrong`: names, the first is shown"
    name = wrong[0]
    given, expected = answer[name], case.expected[name]
    if given.shape != expected.shape:
        return f'it has another shape: {given.shape}, expected {expected.shape}'
    if not np.isfinite(given.astype(np.float64)).all():
        return 'an overflow, or a division by 0'
    if precision == 'float64' and all(_is_right(case, k, answer[k], 'float32') for k in wrong):
        return _ALMOST
    tolerance = case.tolerance(name, precision)
    if tolerance == 0:
        found = _count_reason(name, given, expected)
    else:
        found = _multiple_reason(case, name, given.astype(np.float64), tolerance)
    if found:
        return found
    if not case.outputs[name]['required']:
        return 'what is required agrees, and what was given with it does not'
    return 'no known deviation gives this'


# Results


def judge(
    case: Case,
    answer: dict,  # names of outputs to arrays
    precision: str,  # float64 or float32
) -> dict:  # result, output, difference, images, of_images, first_iterate, deviation, reason, differences
    "Compare an answer with a vector"
    wrong = [name for name in case.outputs if name in answer]
    differences = {
        name: largest_difference(answer[name], case.expected[name])
        if answer[name].shape == case.expected[name].shape
        else None
        for name in wrong
    }
    wrong = [name for name in wrong if not _is_right(case, name, answer[name], precision)]
    wrong.sort(key=lambda name: not case.outputs[name]['required'])
    shown = wrong[0] if wrong else max(differences, key=differences.get)
    result = dict(result='deviates' if wrong else 'passed', precision=precision)
    result.update(output=shown, difference=differences[shown], differences=differences)
    if wrong:
        ids = known_deviations(case, answer, precision)
        result.update(
            **dict(zip(('images', 'of_images'), _images(case, shown, answer[shown], precision))),
            first_iterate=first_iterate(case, answer, precision),
            deviation=ids[0] if len(ids) == 1 else None,
            reason='; or '.join(case.deviations[id][0] for id in ids)
            or _general_reason(case, answer, wrong, precision),
        )
    return result


_KEYS = 'precision output difference images of_images first_iterate deviation reason explained'
_EMPTY = dict.fromkeys([*_KEYS.split(), 'differences'])


def run_case(
    adapter: Adapter,
    case: Case,
    known: set,  # names of the outputs that this function has
    verbose: bool = False,  # tracebacks go to standard error
) -> dict:  # case, function, result: passed, deviates, not offered or error; and what `judge` says
    "The result of one vector; `Refused` if a file of answers is damaged"
    result = dict(case=case.name, function=case.function, result='not offered', **_EMPTY)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what a library prints does not go into the table
            answer = arrays_of(case, adapter.answer(case), known)
    except Refused:
        raise
    except NotOffered as error:
        return {**result, 'reason': str(error)}
    except (Exception, SystemExit) as error:
        if verbose:
            traceback.print_exc()
        return {**result, 'result': 'error', 'reason': _last_line(error)}
    single = any(a.dtype.kind == 'f' and a.dtype.itemsize < 8 for a in answer.values())
    result.update(judge(case, answer, adapter.precision or ('float32' if single else 'float64')))
    if result['result'] == 'deviates':
        result['explained'] = adapter.explained.get(case.name, adapter.explained.get(case.function))
    return result


def run_cases(
    adapter: Adapter,
    cases: list,  # of `Case`: all that there are
    patterns: list = (),  # which of them are run; none: all
    verbose: bool = False,  # tracebacks go to standard error
) -> list:  # of results, see `run_case`
    "The results of the vectors that are chosen; `Refused` if the adapter offers none of them"
    known = {}
    for case in cases:
        known.setdefault(case.function, set()).update(case.outputs)
    picked = chosen(cases, patterns)
    results = [run_case(adapter, case, known[case.function], verbose) for case in picked]
    if all(result['result'] == 'not offered' for result in results):
        found = ', '.join(adapter.contents) or 'no function of its own'
        what = f'offers none of the {len(picked)} vectors that were chosen; found in it: {found}'
        raise Refused(f'{adapter.name}: {what}')
    return results


def status_of(
    results: list,  # see `run_case`
) -> int:  # 0: all that is offered passes; 1: something deviates or fails
    "The exit status"
    return int(any(result['result'] in ('deviates', 'error') for result in results))


# What is printed and written


def _counts(results):
    "The results of one function in a few words"
    found, n = Counter(result['result'] for result in results), len(results)
    said = [f'{word} {found[word]} of {n}' for word in ('passed', 'deviates', 'error') if found[word]]
    if len(found) == 1 and found['not offered']:
        reasons = {result['reason'] for result in results if result['reason']}
        return 'not offered' + (f': {"; ".join(sorted(reasons))}' if reasons else '')
    return ', '.join(said + ([f'not offered {found["not offered"]}'] if found['not offered'] else []))


def _what(output, difference):
    "An output, and how far it is from what is expected"
    if difference is None:
        return f'{output} cannot be compared'
    return f'{output} is not finite' if difference == np.inf else f'{output} by {difference:.2g}'


def _lines_of(result, verbose, said):
    "What is said of one vector; said: explanations to the vector at which they stand"
    name, kind = result['case'], result['result']
    if kind == 'deviates':
        where = f' in {result["images"]} of {result["of_images"]} images' if result['images'] else ''
        since = result['first_iterate']
        since = '' if since is None else f', from iterate {since} on'
        yield f'{name} deviates: {_what(result["output"], result["difference"])}{where}{since}'
        yield f'  likely reason: {result["reason"]}'
        if result['explained']:
            first = said.setdefault(result['explained'], name)
            yield '  explained: ' + (result['explained'] if first == name else f'as {first}')
    elif kind == 'error':
        yield f'{name} error: {result["reason"]}'
    elif verbose:
        yield f'{name} {kind}' + (f': {result["reason"]}' if result['reason'] else '')
    if verbose:
        for output, value in (result['differences'] or {}).items():
            far = value is None or value == np.inf
            yield '  ' + (_what(output, value) if far else f'{output}: largest difference {value:.2g}')


def table_text(
    adapter: Adapter,
    results: list,  # see `run_case`
    verbose: bool = False,  # a line for each vector and each output
) -> str:
    "One line for each function, then what deviates or fails, then the sum"
    functions = {result['function']: [] for result in results}
    for result in results:
        functions[result['function']].append(result)
    width = max(map(len, functions))
    lines = [f'{name:<{width}}  {_counts(found)}' for name, found in functions.items()]
    said = {}
    more = [line for result in results for line in _lines_of(result, verbose, said)]
    passed = sum(result['result'] == 'passed' for result in results)
    offered = sum(result['result'] != 'not offered' for result in results)
    versions = ', '.join(f'{name} {version}' for name, version in adapter.versions.items())
    tail = f'{adapter.name}: passes {passed} of the {offered} vectors that it offers ({len(results)} in all)'
    tail += f' ({versions})' if versions else ''
    return '\n'.join([*lines, '', *more, *([''] if more else []), tail])


def list_text(
    cases: list,  # of `Case`
) -> str:
    "The folder; adapters, by their first lines and functions; the functions with their vectors"
    lines = [f'folder: {HERE}, README.md is the specification', 'adapters:']
    for file in adapter_files():
        tree = ast.parse(file.read_text(encoding='utf-8'))
        bound = [getattr(node, 'targets', [node]) for node in tree.body]
        names = {getattr(k, 'id', getattr(k, 'name', '')) for targets in bound for k in targets}
        about = (ast.get_docstring(tree) or '').split('\n')[0]
        lines += [f'  {file.stem}: {about}', f'    {" ".join(k for k in FUNCTIONS if k in names)}']
    lines.append('functions and their vectors:')
    for function in FUNCTIONS:
        lines.append(f'  {function}: {" ".join(c.name for c in cases if c.function == function) or "none"}')
    return '\n'.join(lines)


def record_text(
    adapter: Adapter,
    results: list,  # see `run_case`
) -> str:  # JSON; null for a difference that is not finite
    "What --json writes"

    def finite(value):
        if isinstance(value, dict):
            return {key: finite(v) for key, v in value.items()}
        return None if value == np.inf else value

    record = dict(format=FORMAT, adapter=adapter.name, versions=adapter.versions, precision=adapter.precision)
    record['results'] = [finite(result) for result in results]
    return json.dumps(record, indent=1, ensure_ascii=False) + '\n'


# The command line


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Refused(f'{message}; --help says what is expected')


def _parser():
    parser = _Parser(prog='run.py', description='Run the test vectors against an implementation.')
    what = 'a name in adapters/, a .py file, or a folder of answers NAME.safetensors'
    parser.add_argument('adapter', metavar='ADAPTER', nargs='?', help=what)
    which = 'only these functions or vectors, such as pgd or "*-conv"; after ADAPTER'
    parser.add_argument('--cases', metavar='PATTERN', nargs='+', default=[], help=which)
    parser.add_argument('--json', metavar='FILE', help='write the results to this file')
    parser.add_argument('--verbose', action='store_true', help='a line for each vector, and tracebacks')
    parser.add_argument('--list', action='store_true', help='list adapters, functions and vectors')
    return parser


def _write(file, text):
    part = Path(f'{file}.part')
    try:
        part.write_text(text, encoding='utf-8')
        part.replace(file)
    except OSError as error:
        raise Refused(f'--json {file}: cannot be written ({error.strerror})') from None


def _run(options):
    "What is printed, and the exit status"
    cases = load_cases()
    if options.list:
        return list_text(cases), 0
    if options.adapter is None and options.cases:
        raise Refused('ADAPTER: expected before --cases, which takes all names that follow it')
    if options.adapter is None:
        raise Refused('ADAPTER: expected a name in adapters/, a .py file or a folder; --list shows the names')
    chosen(cases, options.cases)
    if options.json and (Path(options.json).is_dir() or not Path(options.json).absolute().parent.is_dir()):
        raise Refused(f'--json {options.json}: expected a file in a folder that is there')
    adapter = find_adapter(options.adapter, cases)
    results = run_cases(adapter, cases, options.cases, options.verbose)
    if options.json:
        _write(options.json, record_text(adapter, results))
    return table_text(adapter, results, options.verbose), status_of(results)


def _say(text):
    "Print, with ? for a sign that the terminal cannot show; a reader that has ended is no error"
    encoding = getattr(sys.stdout, 'encoding', None) or 'utf-8'
    try:
        print(text.encode(encoding, 'replace').decode(encoding), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(
    args: list,  # of the command line, without the program's name
) -> int:  # exit status: 0 all that is offered passes, 1 something deviates or fails, 2 the call is wrong
    "Run the vectors, and print a table"
    if str(HERE) not in sys.path:
        sys.path.insert(0, str(HERE))  # for `from run import NotOffered`, and torch_networks
    try:
        text, status = _run(_parser().parse_args(args))
        _say(text)
    except Refused as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('stopped', file=sys.stderr)
        return 130
    return status


if __name__ == '__main__':
    sys.modules['run'] = sys.modules['__main__']  # an adapter imports this module, and not a second one
    sys.exit(main(sys.argv[1:]))
