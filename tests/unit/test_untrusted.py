"Parameters of any kind and files from strangers: each is used, or refused with one line, and nothing in it is run"

import copy
import random
import shutil
import string

import pandas as pd
import pytest
import torch
from helpers import ROOT
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from adt_repro.base.parameters import ParameterError, check_params
from adt_repro.data import DATASETS
from adt_repro.evaluation.records import load_records, save_records
from adt_repro.evaluation.suite import run_suite
from adt_repro.methods.table import METHODS
from adt_repro.models.classifiers import build_model
from adt_repro.models.weights import load_weights
from adt_repro.runs.config import RULES
from adt_repro.runs.resolve import resolve, start_run
from adt_repro.runs.store import load_run, provenance, save_run
from adt_repro.training.loop import train_epochs
from adt_repro.training.state import RECIPES, State, load_checkpoint

CPU = torch.device('cpu')
LEFT_OUT = dict.fromkeys(RULES) | dict(
    method='at_pgd', dataset='digits', recipe='paper2020', seed=0, device='cpu', scale='tiny'
)


def refused(e):
    assert '\n' not in str(e) and 'xpected' in str(e), str(e)


# Parameters

junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.text(),
    st.text(string.printable),
    st.binary(max_size=9),
    st.dates(),
    st.lists(st.integers() | st.text(), max_size=4),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
    st.tuples(st.integers()),
)
sensible = dict(
    method=st.sampled_from([*METHODS]),
    dataset=st.sampled_from([*DATASETS]),
    recipe=st.sampled_from([*RECIPES]),
    arch=st.sampled_from(['small_cnn', 'resnet18', 'wrn-16-1', 'wrn-16', 'WRN-16-1']),
    eps=st.floats(0, 1),
    epochs=st.integers(0, 9),
    batch=st.integers(0, 999),
    lr=st.floats(0, 1),
    drops=st.lists(st.integers(-9, 9), max_size=3),
    schedule=st.sampled_from(['step', 'one_cycle', 'cosine']),
    rows=st.dictionaries(
        st.sampled_from([*METHODS, 'mine']),
        st.dictionaries(st.sampled_from([*RULES, 'x']), junk, max_size=3),
        max_size=2,
    ),
)
names = st.sampled_from([*RULES] * 3 + [k + 's' for k in RULES]) | st.text(
    string.ascii_letters, min_size=1, max_size=9
)
sets = st.dictionaries(names, junk, max_size=3).flatmap(
    lambda odd: st.fixed_dictionaries({}, optional=sensible).map(lambda good: good | odd)
)


def test_any_parameters():
    "As train.ipynb checks them: a full set that checks again to itself, or one line; and both ends are met"
    met = dict(good=0, bad=0)

    @settings(
        max_examples=700,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(sets)
    def check(params):
        try:
            full = resolve(check_params(LEFT_OUT | params, **RULES))
        except ParameterError as e:
            refused(e)
            met['bad'] += 1
        else:
            assert set(full) == set(RULES) and resolve(full) == full
            met['good'] += 1

    check()
    assert min(met.values()) > 35, met


@pytest.mark.slow
def test_some_of_them_through_papermill(tmp_path):
    "Twenty sets, as a program would hand them over: it runs, or stops with one line and leaves no run behind"
    import papermill
    from papermill.exceptions import PapermillExecutionError

    (tmp_path / 'nbs').mkdir()
    for f in 'settings.ini', 'nbs/train.ipynb':
        shutil.copy(ROOT / f, tmp_path / f)
    small = dict(method='standard', epochs=1, n_train=64, n_test=20, seed=0)
    plain = sets.map(
        lambda d: {k: v for k, v in d.items() if k not in ('dataset', 'epochs', 'n_train', 'n_test')}
    ).filter(lambda d: all(type(v) in (int, str, float, bool, list) for v in d.values()))
    met = []

    @settings(
        max_examples=20,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(plain)
    def notebook(params):
        before = set(tmp_path.glob('outputs/*/runs/*/run.json'))
        try:
            papermill.execute_notebook(
                str(tmp_path / 'nbs' / 'train.ipynb'),
                str(tmp_path / 'out.ipynb'),
                small | params,
                cwd=str(tmp_path / 'nbs'),
                progress_bar=False,
            )
            met.append('ran')
        except PapermillExecutionError as e:
            assert e.ename in ('ParameterError', 'TrainingError', 'DataError') and '\n' not in e.evalue, (
                params,
                e.ename,
                e.evalue,
            )
            assert set(tmp_path.glob('outputs/*/runs/*/run.json')) == before
            met.append('refused')

    notebook()
    assert len(met) >= 20 and 'refused' in met


# Files


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "A finished run with a checkpoint, and records: name to bytes, and what reads the file"
    folder = tmp_path_factory.mktemp('files') / 'run'
    folder.mkdir()
    config = resolve(LEFT_OUT | dict(epochs=2, n_train=64, n_test=20))
    data, model, method, recipe = start_run(config, CPU)
    history = pd.DataFrame(train_epochs(model, data, method, recipe, checkpoint=folder / 'checkpoint.pt'))
    save_run(folder, model, method, config, history, results=[], **provenance(CPU))
    save_records(run_suite(model, data.x_test, data.y_test, {}, eps=0.1, run='a'), folder / 'records.parquet')

    _, *parts = start_run(config, CPU)

    def new():
        return State(*copy.deepcopy(parts))

    readers = {
        'checkpoint.pt': lambda f: load_checkpoint(new(), f),
        'weights.safetensors': lambda f: load_weights(build_model('small_cnn', in_ch=1), f),
        'config.yaml': lambda f: load_run(f.parent),
        'records.parquet': load_records,
    }
    return folder, {k: ((folder / k).read_bytes(), read) for k, read in readers.items()}


def mutant(rng, data):
    "Bytes flipped, cut off, cut out, doubled, put in, or put over"
    data, how, at = bytearray(data), rng.randrange(6), rng.randrange(len(data))
    if how == 0:
        for _ in range(rng.choice([1, 3, 30])):
            data[rng.randrange(len(data))] = rng.randrange(256)
    if how == 1:
        del data[at:]
    if how == 2:
        del data[at : at + rng.choice([1, 8, 1000])]
    if how == 3:
        data[at:at] = data[at : at + rng.choice([1, 8, 1000])]
    if how == 4:
        data[at:at] = rng.randbytes(rng.choice([1, 8, 1000]))
    if how == 5:
        data[at : at + 8] = rng.choice([b'\0' * 8, b'\xff' * 8, b'!!python', b'[[[[[[[[', b': *a &a '])
    return bytes(data)


@pytest.mark.parametrize('name', ['checkpoint.pt', 'weights.safetensors', 'config.yaml', 'records.parquet'])
def test_mutated_files(files, name):
    "300 mutants of each kind, 1,200 in all"
    folder, kinds = files
    whole, read = kinds[name]
    rng, met = random.Random(name), dict(loaded=0, refused=0)
    read(folder / name)
    for _ in range(300):
        (folder / name).write_bytes(mutant(rng, whole))
        try:
            read(folder / name)
            met['loaded'] += 1
        except ParameterError as e:
            assert '\n' not in str(e), str(e)
            met['refused'] += 1
    (folder / name).write_bytes(whole)
    read(folder / name)
    assert met['refused'] > 30, met
