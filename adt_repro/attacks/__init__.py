"""Attacks, (model, x, y, eps=...) to x_adv: gradient, l2, feature, black_box, autoattack, suite; their inputs."""

from importlib import import_module

_MODULES = dict(
    inputs=['checked', 'in_ball', 'norm_of'],
    gradient=['sign_ascent', 'gradient_log', 'fgsm', 'pgd', 'mim', 'cw', 'worst_of', 'targeted'],
    l2=['l2_ball', 'pgd_l2', 'fgm_l2'],
    feature=['fea_attack'],
    black_box=['spsa', 'square', 'patches_l2'],
    autoattack=['auto_attack'],
    suite=['TABLE1_ATTACKS'],
)
_DEFINED_IN = {name: module for module, names in _MODULES.items() for name in names}

__all__ = list(_DEFINED_IN)


def __getattr__(name):  # PEP 562: a name's module, and PyTorch with it, is imported at the name's first use
    if name in _MODULES:
        return import_module(f'{__name__}.{name}')
    if name in _DEFINED_IN:
        return getattr(import_module(f'{__name__}.{_DEFINED_IN[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
    return sorted([*__all__, *_MODULES])
