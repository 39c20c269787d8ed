"Every public name says what it takes, what it gives, in which shape, unit and range, and what it refuses"

import dataclasses
import importlib
import inspect
import pkgutil
import re
import textwrap

import pytest
import torch
from fastcore.docments import docments

import adt_repro

FOUND = pkgutil.walk_packages(adt_repro.__path__, 'adt_repro.')
MODULES = [importlib.import_module(m.name) for m in FOUND if not m.ispkg and not m.name.endswith('._modidx')]


def callables(module):
    "(name, callable) of what a module exports: functions, classes, and what classes define without an underscore"
    for name in module.__all__:
        it = getattr(module, name)
        if inspect.getmodule(it) is not module or not (inspect.isclass(it) or inspect.isfunction(it)):
            continue
        yield name, it
        if inspect.isclass(it):
            yield from (
                (f'{name}.{k}', v.fget if isinstance(v, property) else v)
                for k, v in vars(it).items()
                if k[0] != '_' and (inspect.isfunction(v) or isinstance(v, property))
            )


def documented(f):
    "Names of parameters and 'return' to their comments"
    if inspect.isclass(f) and issubclass(f, (BaseException, tuple)):
        return {}
    found = {
        k: (v.docment or '').replace('\n', ' ')
        for k, v in docments(f, full=True, returns=True).items()
        if k not in ('self', 'cls')
    }
    several = re.findall(
        r'^ *\*+(\w+)\b[^#\n]*# (.+)', inspect.getsource(f), re.M
    )  # *args and **kwargs, which docments leaves out
    return dict(several) | {k: v for k, v in found.items() if v}


def parameters(f):
    if inspect.isclass(f):
        if issubclass(f, (BaseException, tuple)):
            return []
        if not dataclasses.is_dataclass(f) and '__init__' not in vars(f):
            return []
    return [p for p in inspect.signature(f).parameters.values() if p.name not in ('self', 'cls')]


def gives(f):
    "Does a function give anything back? None of its own `return`s with a value: no"
    if inspect.isclass(f):
        return False
    return inspect.signature(f).return_annotation not in (inspect.Signature.empty, None)


# What a comment has to say, by the kind of the value
SHAPE = r'\(([A-Zn]\w*|\.\.\.)[,)]'
NUMBER = (
    r'[\[(]-?[\d.∞]+, |above|below|at least|at most|None:|\b0:|1:|pixel|nats|\bunits?\b|MiB|share|factor|weight|'
    r'rate|decay|minutes|seconds|epochs?\b|index|seed|images|indices|points|examples|targets|steps|starts|passes|'
    r'draws|channels|queries|classes|logits|layers|dimensions|largest|smallest|width|noise|iterations|samples|'
    r'order|of the run|right ones'
)
REFUSES = r'Error|refuse|one (clear )?line|[Ss]top|Raise'


def complaints(name, f):
    "What is missing from a definition's documentation"
    if not inspect.getdoc(f):
        yield f'{name}: no docstring'
        return
    if hasattr(f, '_fields'):
        yield from (
            f'{name}: {k} is not documented' for k in f._fields if f'`{k}`' not in f.__doc__
        )  # a namedtuple has no signature to comment
    told = documented(f)
    for p in parameters(f):
        said, kind = told.get(p.name, ''), p.annotation
        if not said:
            yield f'{name}: {p.name} is not documented'
        elif kind is torch.Tensor and not re.search(SHAPE, said):
            yield f'{name}: {p.name} has no shape: {said}'
        elif kind in (int, float) and not re.search(NUMBER, said):
            yield f'{name}: {p.name} has neither unit nor range: {said}'
    if gives(f):
        if not told.get('return'):
            yield f'{name}: what it returns is not documented'
        elif inspect.signature(f).return_annotation is torch.Tensor and not re.search(SHAPE, told['return']):
            yield f'{name}: what it returns has no shape'
    source = '' if inspect.isclass(f) else textwrap.dedent(inspect.getsource(f))
    if re.search(r'^\s.*\b(raise \w+Error|refuse\(|_check\()', source, re.M) and not re.search(
        REFUSES, inspect.getdoc(f) + ' '.join(told.values())
    ):
        yield f'{name}: says nothing of what it refuses'


@pytest.mark.parametrize('module', MODULES, ids=lambda m: m.__name__)
def test_documented(module):
    known = list(callables(module))
    assert known or module.__name__ == 'adt_repro.attacks.suite'  # which defines a table
    assert not [c for name, f in known for c in complaints(name, f)]


def test_modules_are_seen():
    "The modules of all packages, and most of them define several names"
    assert len(MODULES) >= 45
    assert sum(len(list(callables(m))) for m in MODULES) > 200


@pytest.mark.parametrize('name', adt_repro.__all__)
def test_the_public_face_is_documented(name):
    "Each name of `import adt_repro as adt` comes from a module that defines and documents it"
    face = getattr(adt_repro, name)
    if inspect.ismodule(face):
        assert face.__doc__
    else:
        assert face in [f for m in MODULES for _, f in callables(m)]


def test_the_attacks_of_the_public_face():
    from adt_repro import attacks

    assert {'pgd', 'fgsm', 'mim', 'fea_attack', 'spsa', 'square', 'auto_attack'} <= set(attacks.__all__)
    for name in attacks.__all__:
        home = getattr(attacks, name)
        assert name == 'TABLE1_ATTACKS' or home in [f for m in MODULES for _, f in callables(m)]
    with pytest.raises(AttributeError, match='no_such_attack'):
        attacks.no_such_attack  # noqa: B018 - looking it up is the test


# The check itself


def good(
    x: torch.Tensor,  # (N, C) numbers
    eps: float = 0.1,  # radius in pixel values
) -> torch.Tensor:  # (N,) sums
    "Sums; a `ParameterError` where x is empty"
    if not len(x):
        raise ValueError('empty')
    return x.sum(1)


def bad(
    x: torch.Tensor,  # numbers
    eps: float = 0.1,  # radius
    n: int = 1,
) -> torch.Tensor:
    "Sums"
    if not len(x):
        raise ValueError('empty')
    return x.sum(1)


def bare(x):
    return x


def test_what_is_missing_is_found():
    assert not list(complaints('good', good))
    assert list(complaints('bare', bare)) == ['bare: no docstring']
    assert list(complaints('bad', bad)) == [
        'bad: x has no shape: numbers',
        'bad: eps has neither unit nor range: radius',
        'bad: n is not documented',
        'bad: what it returns is not documented',
        'bad: says nothing of what it refuses',
    ]
