"""Adversarial Distributional Training (Dong et al., NeurIPS 2020), reproduced.

The names below are all that most programs need; each is imported when it is first used,
so that `import adt_repro` costs nothing. The packages have the rest: `base`, `models`, `speed`,
`attacks`, `analysis`, `methods`, `evaluation`, `training`, `runs`, `exchange`, `paper`, `planning`,
`judging`, and the modules `data` and `losses`.
"""

__version__ = "0.1.0"

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .data import load_data
    from .evaluation.evaluate import accuracy, evaluate
    from .judging.judgement import judge_model
    from .models.classifiers import build_model
    from .runs.store import load_model
    from .training.loop import train

_HOMES = {
    'load_data': 'data',
    'build_model': 'models.classifiers',
    'load_model': 'runs.store',
    'train': 'training.loop',
    'evaluate': 'evaluation.evaluate',
    'accuracy': 'evaluation.evaluate',
    'judge_model': 'judging.judgement',
}
_PACKAGES = (
    'base', 'data', 'losses', 'models', 'speed', 'attacks', 'analysis', 'methods',
    'evaluation', 'training', 'runs', 'exchange', 'paper', 'planning', 'judging',
)  # fmt: skip

__all__ = ['load_data', 'build_model', 'load_model', 'train', 'evaluate', 'accuracy', 'judge_model', 'attacks']


def __getattr__(name):
    if name in _HOMES:
        return getattr(import_module(f'.{_HOMES[name]}', __name__), name)
    if name in _PACKAGES:
        return import_module(f'.{name}', __name__)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
    return sorted({*globals(), *_HOMES, *_PACKAGES})
