"train.ipynb as its users run it: by papermill, in a project folder of its own"
import json, shutil, subprocess, sys
from pathlib import Path

import nbformat, pandas as pd, pytest, torch, yaml

from adt_repro.core import ParameterError
from adt_repro.data import load_data
from adt_repro.evaluation import accuracy, evaluate
from adt_repro.attacks import pgd
from adt_repro.training import load_run

ROOT = Path(__file__).resolve().parents[1]
SMALL = dict(epochs=2, n_train=128, n_test=50, seed=3)

@pytest.fixture(scope='module')
def project(tmp_path_factory):
    "What train.ipynb needs of a clone, so that no test touches the real outputs/"
    root = tmp_path_factory.mktemp('project')
    (root/'nbs').mkdir(); (root/'outputs'/'demo').mkdir(parents=True)
    for f in 'settings.ini', 'nbs/train.ipynb': shutil.copy(ROOT/f, root/f)
    return root

def papermill(project, *args, **params):
    given = [w for k, v in params.items() for w in ('-p', k, str(v))]
    return subprocess.run([sys.executable, '-m', 'papermill', 'nbs/train.ipynb', *args, *given],
                          cwd=project, stdin=subprocess.DEVNULL, capture_output=True, text=True)

@pytest.fixture(scope='module')
def run(project):
    done = papermill(project, 'outputs/demo/adt_exp.ipynb', method='adt_exp', **SMALL)
    assert done.returncode == 0, done.stderr
    assert 'unknown parameter' not in done.stderr
    return project/'outputs'/'demo'/'runs'/'digits-small_cnn-adt_exp-s3'

def test_a_run_is_complete(run):
    assert sorted(p.name for p in run.iterdir()) == ['config.yaml', 'history.csv', 'run.json', 'weights.safetensors']
    config, facts = yaml.safe_load((run/'config.yaml').read_text()), json.loads((run/'run.json').read_text())
    assert (config['method'], config['n_mc'], config['eps'], config['n_train']) == ('adt_exp', 1, 0.15, 128)
    assert list(pd.read_csv(run/'history.csv').epoch) == [1, 2]
    assert [r['attack'] for r in facts['results']] == ['natural', 'pgd20'] and all(r['n'] == 50 for r in facts['results'])
    assert {'git_commit', 'versions', 'device', 'seconds', 'test_set'} <= set(facts)

def test_its_weights_say_what_it_recorded(run):
    "An evaluation from scratch, of the network read back from disk, counts the same images"
    model, config = load_run(run)
    data = load_data('digits').head(128, 50)
    recorded = {r['attack']: r['correct'] for r in json.loads((run/'run.json').read_text())['results']}
    assert accuracy(evaluate(model, data.x_test, data.y_test))['correct'] == recorded['natural']
    assert accuracy(evaluate(model, data.x_test, data.y_test, pgd, eps=config['eps']))['correct'] == recorded['pgd20']

def test_its_notebook_shows_everything(run):
    nb = nbformat.read(run.parents[1]/'adt_exp.ipynb', 4)
    outputs = [o for c in nb.cells for o in c.get('outputs', [])]
    assert sum('image/png' in o.get('data', {}) for o in outputs) == 3
    text = json.dumps(outputs)
    assert 'epoch 2 of 2' in text and 'n=50' in text and str(ROOT) not in text and 'Traceback' not in text

def test_its_config_repeats_it(project, run):
    "config.yaml is a parameter file; the same parameters give the same weights, to the bit, and the same history"
    before = {f: (run/f).read_bytes() for f in ('weights.safetensors', 'config.yaml')}
    history = pd.read_csv(run/'history.csv').drop(columns='seconds')
    config = shutil.copy(run/'config.yaml', project/'again.yaml')
    assert papermill(project, 'outputs/demo/again.ipynb', '-f', str(config)).returncode == 0
    assert {f: (run/f).read_bytes() for f in before} == before
    pd.testing.assert_frame_equal(pd.read_csv(run/'history.csv').drop(columns='seconds'), history)

def test_without_an_output_path(project):
    done = papermill(project, method='standard', **SMALL)
    assert done.returncode == 0, done.stderr
    assert nbformat.reads(done.stdout, 4).cells
    assert (project/'outputs'/'demo'/'runs'/'digits-small_cnn-standard-s3'/'run.json').exists()

def test_every_parameter_is_explained():
    done = subprocess.run([sys.executable, '-m', 'papermill', '--help-notebook', 'nbs/train.ipynb'], cwd=ROOT, capture_output=True, text=True)
    names = yaml.safe_load((ROOT/'nbs'/'scales'/'paper.yaml').read_text())
    assert done.returncode == 0 and 'Unknown' not in done.stdout
    for name in [*names, 'method', 'data_root', 'n_mc', 'lbd', 'rho', 'device']: assert f'  {name}: ' in done.stdout, name

def test_a_misspelt_parameter_stops_papermill(project):
    done = papermill(project, 'outputs/demo/bad.ipynb', methdo='at_pgd')
    assert done.returncode != 0
    assert "methdo='at_pgd': there is no such parameter, did you mean 'method'?" in done.stderr
    assert 'adt_repro/core.py' not in done.stderr                            # a line, not a stack through our code

BAD = [(dict(method='adt_expp'), "method='adt_expp': allowed is standard, at_pgd, adt_exp"), (dict(dataset='cifar'), "dataset='cifar': allowed is digits"),
       (dict(eps=0), 'eps=0: allowed is a number in (0, 1]'), (dict(eps=1.5), 'eps=1.5: allowed is a number in (0, 1]'),
       (dict(eps='big'), "eps='big': allowed is a number"), (dict(eps=float('nan')), 'eps=nan'), (dict(epochs=0), 'epochs=0: allowed is a whole number'),
       (dict(epochs=2.5), 'epochs=2.5'), (dict(batch=5000), 'batch=5000: allowed is at most 1437'), (dict(n_test=400), 'n_test=400: allowed is at most 360'),
       (dict(arch='wrn-27-10'), "arch='wrn-27-10': allowed is small_cnn"), (dict(device='gpu'), "device='gpu': allowed is one of"),
       (dict(seed=-1), 'seed=-1'), (dict(scale='../up'), "scale='../up'"), (dict(augment='yes'), "augment='yes'"),
       (dict(method='at_pgd', n_mc=5), 'n_mc=5: method at_pgd has no such option'), (dict(lr=True), 'lr=True'), (dict(inner_momentum=1.5), 'inner_momentum=1.5')]

@pytest.mark.parametrize('params, words', BAD, ids=lambda v: next(iter(v)) if isinstance(v, dict) else '')
def test_bad_values_stop_before_any_work(params, words, tmp_path, monkeypatch):
    "The notebook's own parameters and check cells, with papermill's injection between them"
    cells = {c.id: c.source for c in nbformat.read(ROOT/'nbs'/'train.ipynb', 4).cells}
    (tmp_path/'settings.ini').touch(); monkeypatch.chdir(tmp_path)
    space = {'__name__': '__main__'}
    exec(cells['parameters'], space); space.update(params)
    with pytest.raises(ParameterError) as e: exec(cells['check'], space)
    assert words in str(e.value) and '\n' not in str(e.value)
    assert [p.name for p in tmp_path.iterdir()] == ['settings.ini']   # nothing was written, not even a folder

LIMITS = dict(standard=(0, 0.25), at_pgd=(0.75, 1), adt_exp=(0.68, 1))

@pytest.mark.parametrize('method', LIMITS)
@pytest.mark.parametrize('seed', [0] + [pytest.param(s, marks=pytest.mark.slow) for s in range(1, 5)])
def test_digits_become_robust(method, seed):
    "At the demo's own recipe: 95 % natural accuracy for every method, and the order of robustness that makes sense"
    from adt_repro.training import INNER, resolve, start_run, train
    config = resolve(dict(method=method, dataset='digits', data_root=None, n_train=None, n_test=None, batch=64, lr=0.1, momentum=0.9,
                          weight_decay=2e-4, cooldown=2, seed=seed, **dict.fromkeys(['arch', 'eps', 'epochs', 'augment', *INNER])))
    data, model, m, recipe = start_run(config, torch.device('cpu'))
    for _ in train(model, data, m, recipe, seed=seed): pass
    nat, adv = (accuracy(evaluate(model, data.x_test, data.y_test, a, eps=config['eps']))['accuracy'] for a in (None, pgd))
    assert nat >= 0.95 and LIMITS[method][0] <= adv <= LIMITS[method][1], (nat, adv)
