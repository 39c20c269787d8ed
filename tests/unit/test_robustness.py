"Training does what it is for: networks on digits become accurate, and robust"

import pytest
import torch

from adt_repro.attacks.gradient import pgd
from adt_repro.data import load_data
from adt_repro.evaluation.evaluate import accuracy, evaluate
from adt_repro.methods.table import METHODS
from adt_repro.runs.config import RULES
from adt_repro.runs.resolve import resolve, start_run
from adt_repro.runs.store import load_run
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
AFTER_FOUR_EPOCHS = dict(standard=(0, 0.25), at_pgd=(0.62, 1), adt_exp=(0.6, 1), adt_imp_am=(0.28, 1))


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


@pytest.mark.parametrize('method', AFTER_FOUR_EPOCHS)
def test_four_epochs_make_digits_robust(method, tiny_run_of):
    "A run of four epochs, as it is read back: 95 % natural accuracy, and the order of robustness that makes sense"
    model, config = load_run(tiny_run_of(method))
    nat, adv = accuracies(model, config['eps'], load_data('digits'))
    low, high = AFTER_FOUR_EPOCHS[method]
    assert nat >= least(0.95) and low <= adv <= high, (nat, adv)


@pytest.mark.slow
@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize('method', METHODS)
def test_digits_become_robust(method, seed):
    "The same at the demo's own recipe, with every method"
    nat, adv = trained(method, seed)
    assert nat >= least(0.95) and LIMITS[method][0] <= adv <= LIMITS[method][1], (nat, adv)


@pytest.mark.parametrize('epochs, robust', [(5, 0.6), pytest.param(None, 0.65, marks=pytest.mark.slow)])
def test_the_tuned_recipe(epochs, robust):
    "Another recipe for the same method: it trains, and its network is accurate and robust"
    nat, adv = trained('at_pgd', 0, recipe='tuned', epochs=epochs)
    assert nat >= least(0.95) and adv >= robust, (nat, adv)
