"train.ipynb as its users run it: by papermill, in a project folder of its own"

import json
import re
import shutil
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
import torch
import yaml
from helpers import ROOT

from adt_repro.attacks.gradient import fgsm, pgd
from adt_repro.base.parameters import ParameterError
from adt_repro.data import load_data
from adt_repro.evaluation.evaluate import accuracy, evaluate
from adt_repro.methods.table import METHODS, OPTIONS, method_options
from adt_repro.runs.config import RULES, SESSION
from adt_repro.runs.resolve import resolve, start_run
from adt_repro.runs.store import load_method, load_run
from adt_repro.training.loop import train_epochs
from adt_repro.training.state import Recipe

SMALL = dict(epochs=2, n_train=128, n_test=50, seed=3)


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    "What train.ipynb needs of a clone, so that no test touches the real outputs/"
    root = tmp_path_factory.mktemp('project')
    (root / 'nbs').mkdir()
    (root / 'outputs' / 'demo').mkdir(parents=True)
    for f in 'settings.ini', 'nbs/train.ipynb':
        shutil.copy(ROOT / f, root / f)
    return root


def papermill(project, *args, **params):
    given = [w for k, v in params.items() for w in ('-p', k, str(v))]
    return subprocess.run(
        [sys.executable, '-m', 'papermill', 'nbs/train.ipynb', *args, *given],
        cwd=project,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope='module')
def run(project):
    done = papermill(project, 'outputs/demo/adt_exp.ipynb', method='adt_exp', **SMALL)
    assert done.returncode == 0, done.stderr
    assert 'unknown parameter' not in done.stderr
    return project / 'outputs' / 'demo' / 'runs' / 'digits-small_cnn-adt_exp-s3'


def test_a_run_is_complete(run):
    assert sorted(p.name for p in run.iterdir() if p.name != '.lock') == [
        'checkpoint.pt',
        'config.yaml',
        'history.csv',
        'run.json',
        'weights.safetensors',
    ]
    config = yaml.safe_load((run / 'config.yaml').read_text())
    facts = json.loads((run / 'run.json').read_text())
    assert (config['method'], config['n_mc'], config['eps'], config['n_train']) == ('adt_exp', 1, 0.15, 128)
    assert list(pd.read_csv(run / 'history.csv').epoch) == [1, 2]
    assert [r['attack'] for r in facts['results']] == ['natural', 'fgsm', 'pgd20']
    assert all(r['n'] == 50 for r in facts['results'])
    assert {'git_commit', 'versions', 'device', 'seconds', 'test_set'} <= set(facts)


def test_its_weights_say_what_it_recorded(run):
    "An evaluation from scratch, of the network read back from disk, counts the same images"
    model, config = load_run(run)
    data = load_data('digits').head(128, 50)
    recorded = {r['attack']: r['correct'] for r in json.loads((run / 'run.json').read_text())['results']}
    for name, attack in dict(natural=None, fgsm=fgsm, pgd20=pgd).items():
        rows = evaluate(model, data.x_test, data.y_test, attack, eps=config['eps'])
        assert accuracy(rows)['correct'] == recorded[name]


def test_its_notebook_shows_everything(run):
    nb = nbformat.read(run.parents[1] / 'adt_exp.ipynb', 4)
    outputs = [o for c in nb.cells for o in c.get('outputs', [])]
    assert sum('image/png' in o.get('data', {}) for o in outputs) == 3
    text = json.dumps(outputs)
    assert 'epoch 2 of 2' in text and 'n=50' in text and str(ROOT) not in text and 'Traceback' not in text


def test_its_config_repeats_it(project, run):
    "config.yaml is a parameter file; the same parameters give the same weights, to the bit, and the same history"
    before = {f: (run / f).read_bytes() for f in ('weights.safetensors', 'config.yaml')}
    history = pd.read_csv(run / 'history.csv').drop(columns='seconds')
    config = shutil.copy(run / 'config.yaml', project / 'again.yaml')
    assert papermill(project, 'outputs/demo/again.ipynb', '-f', str(config), fresh=True).returncode == 0
    assert {f: (run / f).read_bytes() for f in before} == before
    pd.testing.assert_frame_equal(pd.read_csv(run / 'history.csv').drop(columns='seconds'), history)


def test_without_an_output_path(project):
    done = papermill(project, method='standard', **SMALL)
    assert done.returncode == 0, done.stderr
    assert nbformat.reads(done.stdout, 4).cells
    assert (project / 'outputs' / 'demo' / 'runs' / 'digits-small_cnn-standard-s3' / 'run.json').exists()


def test_a_generator_is_part_of_the_run(project):
    "The implicit method: generator and encoder are on disk, with their optimiser, and U is on its curve"
    done = papermill(project, 'outputs/demo/imp.ipynb', method='adt_imp_am', gen_width=8, z_dim=4, **SMALL)
    assert done.returncode == 0, done.stderr
    run = project / 'outputs' / 'demo' / 'runs' / 'digits-small_cnn-adt_imp_am-s3'
    saved = torch.load(run / 'checkpoint.pt', weights_only=True)
    assert saved['epoch'] == 2 and len(saved['opts']) == 2 and saved['opts'][1]['state']
    for k, v in load_method(run).adversary.state_dict().items():
        assert torch.equal(v, saved['adversary'][k])
        assert k.split('.')[0] in ('generator', 'encoder')
    cells = {c.id: c.source for c in nbformat.read(project / 'outputs' / 'demo' / 'imp.ipynb', 4).cells}
    assert 'threshold' in cells['curves']


def test_a_loss_that_is_not_finite_stops_papermill(project):
    done = papermill(project, 'outputs/demo/nan.ipynb', method='trades', lr=1e19, **SMALL)
    assert done.returncode != 0 and 'adt_repro/training/' not in done.stderr
    assert re.search(
        r'trades: the loss became (nan|inf) in epoch 1, step \d of 2. The last good checkpoint does not exist',
        done.stderr,
    )
    assert not (project / 'outputs' / 'demo' / 'runs' / 'digits-small_cnn-trades-s3' / 'run.json').exists()


def test_every_parameter_is_explained():
    done = subprocess.run(
        [sys.executable, '-m', 'papermill', '--help-notebook', 'nbs/train.ipynb'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and 'Unknown' not in done.stdout
    assert {*OPTIONS, *Recipe.__dataclass_fields__} <= set(RULES)
    for name in RULES | SESSION:
        assert f'  {name}: ' in done.stdout, name


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


def test_a_row_of_the_paper_rehearses(project):
    "-f paper.yaml with a row's name, made small: the row's own recipe is in the run's record"
    (project / 'nbs' / 'scales').mkdir()
    shutil.copy(ROOT / 'nbs' / 'scales' / 'paper.yaml', project / 'nbs' / 'scales')
    done = papermill(
        project,
        'outputs/demo/row.ipynb',
        '-f',
        'nbs/scales/paper.yaml',
        method='at_pgd_madry',
        dataset='digits',
        arch='small_cnn',
        scale='demo',
        batch=64,
        **SMALL | dict(epochs=1),
    )
    assert done.returncode == 0, done.stderr
    run = project / 'outputs' / 'demo' / 'runs' / 'digits-small_cnn-at_pgd_madry-s3'
    config = yaml.safe_load((run / 'config.yaml').read_text())
    assert config.items() >= dict(method='at_pgd', drops=[102, 154], rows=None, eps=0.15).items()


def test_a_misspelt_parameter_stops_papermill(project):
    done = papermill(project, 'outputs/demo/bad.ipynb', methdo='at_pgd')
    assert done.returncode != 0
    assert "methdo='at_pgd': there is no such parameter, did you mean 'method'?" in done.stderr
    assert 'adt_repro/base/' not in done.stderr  # a line, not a stack through our code


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


def trained(method, seed, **other):
    "Natural accuracy and accuracy under PGD of a network on digits"
    given = dict(method=method, dataset='digits', recipe='paper2020', seed=seed, device='cpu', scale='demo')
    config = resolve(dict.fromkeys(RULES) | given | other)
    data, model, m, recipe = start_run(config, torch.device('cpu'))
    list(train_epochs(model, data, m, recipe, seed=seed))
    natural = evaluate(model, data.x_test, data.y_test, None, eps=config['eps'])
    attacked = evaluate(model, data.x_test, data.y_test, pgd, eps=config['eps'])
    return accuracy(natural)['accuracy'], accuracy(attacked)['accuracy']


@pytest.mark.parametrize('seed', [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    'method', [m if m in QUICK else pytest.param(m, marks=pytest.mark.slow) for m in METHODS]
)
def test_digits_become_robust(method, seed):
    "At the demo's own recipe: 95 % natural accuracy for every method, and the order of robustness that makes sense"
    nat, adv = trained(method, seed)
    assert nat >= least(0.95) and LIMITS[method][0] <= adv <= LIMITS[method][1], (nat, adv)


def test_the_tuned_recipe():
    "Another recipe for the same method: it trains, and its average of the weights is what is evaluated"
    nat, adv = trained('at_pgd', 0, recipe='tuned')
    assert nat >= least(0.95) and adv >= 0.65, (nat, adv)
