"train.ipynb's parameters: the rows of the paper's scale, and values that stop it before any work"

import nbformat
import pytest
import yaml
from helpers import ROOT

from adt_repro.base.parameters import ParameterError
from adt_repro.methods.table import METHODS, method_options
from adt_repro.runs.config import RULES
from adt_repro.runs.resolve import resolve

TABLE1 = 'standard at_fgsm at_pgd_madry at_pgd alp feature_scatter adt_exp adt_exp_am adt_imp_am'.split()
PAPER_RECIPE = dict(
    arch='wrn-28-10', epochs=76, batch=64, lr=0.1, momentum=0.9, weight_decay=2e-4, drops=[-2]
)


def pick(config, *names):
    return {k: config[k] for k in names}


@pytest.fixture(scope='module')
def paper():
    "nbs/scales/paper.yaml, without what is done with the networks (see test_costs.py)"
    given = yaml.safe_load((ROOT / 'nbs' / 'scales' / 'paper.yaml').read_text())
    given.pop('experiments')
    return given


def paper_run(paper, name):
    "All parameters of a row"
    return resolve(dict.fromkeys(RULES) | dict(recipe='paper2020', device='cpu') | paper | dict(method=name))


def test_paper_yaml_has_the_rows(paper):
    assert set(paper['rows']) == {*TABLE1, *METHODS}


@pytest.mark.parametrize('name', dict.fromkeys([*TABLE1, *METHODS]))
def test_a_row_of_paper_yaml_is_whole(name, paper):
    "It has every option of its method and every field of the recipe, the paper's but for two rows"
    config = paper_run(paper, name)
    row = {k: v for k, v in paper['rows'][name].items() if k != 'method'}
    options = [k for k in method_options(config['method']) if k != 'group']  # group: a matter of memory
    assert config.items() >= row.items()
    assert row.items() >= pick(config, *options).items()
    assert (config['eps'], config['augment'], config['seed'], config['dataset']) == (
        8 / 255,
        True,
        1,
        'cifar10',
    )
    if name not in ('feature_scatter', 'at_pgd_madry'):
        assert pick(config, *PAPER_RECIPE) == PAPER_RECIPE


def test_rows_of_paper_yaml_of_their_own(paper):
    scatter = paper_run(paper, 'feature_scatter')
    assert scatter.items() >= dict(epochs=200, batch=60, drops=[60, 90]).items()
    madry = paper_run(paper, 'at_pgd_madry')
    assert madry.items() >= dict(method='at_pgd', label='at_pgd_madry', batch=128).items()
    implicit = dict(lbd=1.0, u_max=0.9, gen_lr=2e-4, gen_width=256, z_dim=64, gen_input='gradients')
    assert paper_run(paper, 'adt_imp_am').items() >= implicit.items()


BAD = [
    (dict(method='adt_expp'), "method='adt_expp': expected standard, at_fgsm, at_pgd, alp"),
    (dict(dataset='cifar'), "dataset='cifar': expected digits"),
    (dict(eps=0), 'eps=0: expected a number in (0, 1]'),
    (dict(eps=1.5), 'eps=1.5: expected a number in (0, 1]'),
    (dict(eps='big'), "eps='big': expected a number"),
    (dict(eps=float('nan')), 'eps=nan'),
    (dict(epochs=0), 'epochs=0: expected a whole number'),
    (dict(epochs=2.5), 'epochs=2.5'),
    (dict(batch=5000), 'batch=5000: expected at most 1437'),
    (dict(n_test=400), 'n_test=400: expected at most 360'),
    (dict(arch='wrn-27-10'), "arch='wrn-27-10': expected small_cnn"),
    (dict(device='gpu'), "device='gpu': expected one of"),
    (dict(seed=-1), 'seed=-1'),
    (dict(scale='../up'), "scale='../up'"),
    (dict(augment='yes'), "augment='yes'"),
    (dict(method='at_pgd', n_mc=5), 'n_mc=5: method at_pgd has no such option'),
    (dict(lr=True), 'lr=True'),
    (dict(inner_momentum=1.5), 'inner_momentum=1.5'),
    (dict(recipe='best'), "recipe='best': expected paper2020, tuned"),
    (dict(drops=[60, 'x']), "drops=[60, 'x']: expected a list"),
    (dict(schedule='cosine'), "schedule='cosine'"),
    (dict(gen_width=8), 'gen_width=8: method adt_exp has no such option'),
    (dict(rows=3), 'rows=3'),
    (dict(method='at_fgsm', target='worst'), "target='worst'"),
    (dict(rows=dict(adt_exp=dict(lbdd=1))), "rows['adt_exp']='lbdd'"),
    (dict(label='a/b'), "label='a/b'"),
    (dict(processes=0), 'processes=0'),
    (dict(processes=2), 'processes=2: expected 1 on a cpu for networks with batch normalisation'),
    (dict(processes=65), 'processes=65: expected at most 64'),
]


@pytest.mark.parametrize('params, words', BAD, ids=lambda v: next(iter(v)) if isinstance(v, dict) else '')
def test_bad_values_stop_before_any_work(params, words, tmp_path, monkeypatch):
    "The notebook's own first cells, with papermill's injection after the parameters"
    cells = {c.id: c.source for c in nbformat.read(ROOT / 'nbs' / 'train.ipynb', 4).cells}
    (tmp_path / 'settings.ini').touch()
    monkeypatch.chdir(tmp_path)
    space = {'__name__': '__main__'}
    exec(cells['parameters'], space)
    space.update(params)
    with pytest.raises(ParameterError) as e:
        for name in 'check', 'checked', 'prepare':
            exec(cells[name], space)
    assert words in str(e.value) and '\n' not in str(e.value)
    assert [p.name for p in tmp_path.iterdir()] == ['settings.ini']  # nothing was written, not even a folder
