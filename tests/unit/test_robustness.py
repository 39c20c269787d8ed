"Training does what it is for: networks on digits become accurate, and robust"

import pytest
import torch

from adt_repro.attacks.gradient import pgd
from adt_repro.evaluation.evaluate import accuracy, evaluate
from adt_repro.methods.table import METHODS
from adt_repro.runs.config import RULES
from adt_repro.runs.resolve import resolve, start_run
from adt_repro.training.loop import train_epochs

LIMITS = dict(
    standard=(0, 0.25),
    at_fgsm=(0.4, 1),
    at_pgd=(0.75, 1),
    alp=(0.7, 1),
    feature_scatter=(0.6, 1),
    adt_exp=(0.68, 1),
    adt_exp_am=(0.5, 1),
    adt_imp_am=(0.5, 1),
    trades=(0.7, 1),
    adt_exp_trades=(0.6, 1),
    adt_exp_am_trades=(0.5, 1),
    adt_imp_am_trades=(0.3, 1),
    rs_fgsm=(0.6, 1),
    noise=(0, 0.4),
)
QUICK = {'standard', 'at_pgd', 'adt_exp', 'adt_imp_am'}


def least(share, n=360):
    "Three standard errors below a share, of n images"
    return share - 3 * (share * (1 - share) / n) ** 0.5


def accuracies(model, eps, data):
    "Natural accuracy, and accuracy under PGD"
    rows = (evaluate(model, data.x_test, data.y_test, attack, eps=eps) for attack in (None, pgd))
    return [accuracy(of_attack)['accuracy'] for of_attack in rows]


def trained(method, seed, **other):
    "The accuracies of a network that the demo's recipe trains on digits"
    given = dict(method=method, dataset='digits', recipe='paper2020', seed=seed, device='cpu', scale='demo')
    config = resolve(dict.fromkeys(RULES) | given | other)
    data, model, m, recipe = start_run(config, torch.device('cpu'))
    list(train_epochs(model, data, m, recipe, seed=seed))
    return accuracies(model, config['eps'], data)


ALL_OR_QUICK = [m if m in QUICK else pytest.param(m, marks=pytest.mark.slow) for m in METHODS]


@pytest.mark.parametrize('seed', [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize('method', ALL_OR_QUICK)
def test_digits_become_robust(method, seed):
    "At the demo's own recipe: 95 % natural accuracy for every method, and the order of robustness that makes sense"
    nat, adv = trained(method, seed)
    low, high = LIMITS[method]
    assert nat >= least(0.95) and low <= adv <= high, (nat, adv)


def test_the_tuned_recipe():
    "Another recipe for the same method: it trains, and its network is accurate and robust"
    nat, adv = trained('at_pgd', 0, recipe='tuned')
    assert nat >= least(0.95) and adv >= 0.65, (nat, adv)
