"Results of a scale are not replaced by a selection: which calls pass, which are refused, and what a label adds"

import json

import pandas as pd
import pytest
from helpers import ROOT, cells_of, refusal

from adt_repro.base.tables import SUMS, read_sums, write_table
from adt_repro.runs.config import PARAMETERS
from adt_repro.runs.scales import (
    all_files,
    call_parameters,
    kept_scale,
    read_scale,
    runs_of,
    scale_runs,
    transfer_runs,
)
from adt_repro.runs.select import check_kept, check_kept_run, label_marks, own_runs

KEPT = 'cpu', 'digits', 'gpu', 'mid'
ONE_BY_ONE = 'white_box', 'all_images', 'spsa'
WRITES = *ONE_BY_ONE, 'transfer', 'landscape', 'diversity', 'ablation', 'seeds', 'power', 'paper', 'benchmark'


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    "A folder where every run of the scales looks finished"
    root = tmp_path_factory.mktemp('root')
    for name in KEPT:
        runs = scale_runs(read_scale(ROOT / 'nbs' / 'scales' / f'{name}.yaml'))
        for run in [*runs, 'digits-small_cnn-mine-s0']:
            folder = root / 'outputs' / name / 'runs' / run
            folder.mkdir(parents=True)
            (folder / 'run.json').touch()
            (folder / 'weights.safetensors').touch()
    (root / 'outputs' / 'benchmark').mkdir()
    (root / 'outputs' / 'benchmark' / 'two_cores.csv').touch()
    return root


def call(notebook, **given):
    "The parameters of a notebook, as it hands them to `check_kept`"
    return {name: p.default for name, p in PARAMETERS[notebook].items()} | given


def planned(scale):
    "(notebook, parameters) of the calls of a plan but those of train; of a call for each run the first two"
    for notebook in [*scale.experiments, 'paper']:
        runs = runs_of(scale, notebook) if notebook in ONE_BY_ONE else [None]
        for run in runs[:2]:
            yield notebook, call(notebook, **json.loads(call_parameters(scale, notebook, run)))


def test_committed_scales_are_kept():
    for name in KEPT:
        assert kept_scale(name) is not None
    assert kept_scale('demo') is None


@pytest.mark.parametrize('name', KEPT)
def test_planned_calls_pass(root, name):
    scale = kept_scale(name)
    calls = list(planned(scale))
    assert len(calls) > len(scale.experiments)
    for notebook, given in calls:
        check_kept(notebook, given, root)
        check_kept(notebook, given | dict(label=None), root)
        elsewhere = {k: v for k, v in dict(device='cpu', batch=7, fresh=True).items() if k in given}
        check_kept(notebook, given | elsewhere, root)


# For each notebook a parameter that changes what it finds
OTHER = dict(
    white_box=dict(n_test=3),
    all_images=dict(attacks=['fgsm']),
    transfer=dict(attacks=['fgsm']),
    spsa=dict(steps=3),
    landscape=dict(radius=3.0),
    diversity=dict(n_samples=9),
    ablation=dict(seeds=9),
    paper=dict(margin=1.0),
)


@pytest.mark.parametrize('name', KEPT)
def test_other_parameters_need_a_label(root, name):
    for notebook, given in planned(kept_scale(name)):
        ((parameter, value),) = OTHER[notebook].items()
        line = f'{parameter}={value!r}: expected'
        for fresh in False, True:  # which alone does not lift it
            other = given | OTHER[notebook] | (dict(fresh=fresh) if 'fresh' in given else {})
            said = refusal(check_kept, notebook, other, root)
            assert said.startswith(line) and f'nbs/scales/{name}.yaml' in said, said
        if 'label' in given:
            assert '-p label NAME' in said
            check_kept(notebook, other | dict(label='mine'), root)


@pytest.mark.parametrize('notebook', ['landscape', 'diversity', 'transfer', 'white_box'])
def test_other_runs_need_a_label(root, notebook):
    scale = kept_scale('cpu')
    given = dict(planned(scale))[notebook] | dict(label=None)
    if notebook == 'transfer':
        targets, sources = transfer_runs(scale)
        others = dict(targets=targets[:1]), dict(sources=sources[:1])
    elif notebook == 'white_box':
        others = dict(runs=['digits-small_cnn-mine-s0']), dict(runs=None)  # None: the foreign one too
        check_kept(notebook, given | dict(runs=['*-adt_exp-s*']), root)  # some of them, one file each
    else:
        others = dict(runs=runs_of(scale, notebook)[:1]), dict(runs=None)
    for other in others:
        said = refusal(check_kept, notebook, given | other, root)
        assert said.startswith(next(iter(other))) and 'nbs/scales/cpu.yaml' in said, said
        check_kept(notebook, given | other | dict(label='mine'), root)


@pytest.mark.parametrize(
    'notebook, given, line',
    [
        ('seeds', dict(train=True, methods=['at_pgd'], scale='digits'), "methods=['at_pgd']: expected None"),
        ('power', dict(effect=1.0), 'effect=1.0: expected None'),
        ('paper', dict(scale='cpu', parts=['spsa']), "parts=['spsa']: expected ["),
        ('paper', dict(scale='cpu', runs=['x']), "runs=['x']: expected those of nbs/scales/cpu.yaml"),
        ('paper', dict(scale='gpu', precision='fp32'), "precision='fp32': expected 'bf16'"),
        ('spsa', dict(scale='gpu'), "scale='gpu': expected a scale whose file has a table spsa"),
        ('benchmark', dict(machine='two_cores'), "machine='two_cores': expected another name"),
    ],
)
def test_refusals(root, notebook, given, line):
    said = refusal(check_kept, notebook, call(notebook, **given), root)
    assert said.startswith(line) and '\n' not in said, said


@pytest.mark.parametrize(
    'notebook, given',
    [
        ('paper', dict(scale='cpu')),
        ('paper', dict(scale='digits')),
        ('seeds', dict(train=True)),
        ('seeds', dict(methods=['at_pgd'])),  # only shows
        ('power', dict(repeats=200)),
        ('ablation', dict(seeds=9)),  # only draws what is there
        ('ablation', dict(train=True, jobs=2)),  # as README has it, at scale digits
        ('benchmark', dict(machine='mine')),
        ('benchmark', dict()),
        ('white_box', dict(scale='demo', n_test=3)),
        ('white_box', dict(scale='of_my_own', n_test=3)),
    ],
)
def test_what_passes(root, notebook, given):
    check_kept(notebook, call(notebook, **given), root)


def test_every_notebook_that_writes_asks():
    "The rule is called where outputs are opened, and before"
    for notebook in WRITES:
        code = '\n'.join(text for _, text in cells_of(ROOT / 'nbs' / f'{notebook}.ipynb'))
        asks = code.index(f"check_kept('{notebook}', given")
        assert asks < code.index('open_outputs(') or 'import' in code[: code.index('open_outputs(')], notebook
        writes = [code.index(word) for word in ('= open_outputs(', '\nopen_outputs(') if word in code]
        assert all(asks < place for place in writes), notebook


def test_a_kept_run_is_not_trained_anew_with_other_parameters():
    scale = kept_scale('digits')
    name = 'digits-small_cnn-at_pgd-s0'
    from adt_repro.runs.config import RULES
    from adt_repro.runs.resolve import resolve

    given = {k: v for k, v in json.loads(call_parameters(scale, 'train', name)).items() if k in RULES}
    own = {k: PARAMETERS['train'][k].default for k in RULES} | given
    check_kept_run(resolve(own))
    said = refusal(check_kept_run, resolve(own | dict(epochs=1)))
    assert said.startswith('epochs=1: expected 15, as in nbs/scales/digits.yaml'), said
    check_kept_run(resolve(own | dict(epochs=1, label='short')))


@pytest.mark.parametrize('change', [dict(seed=77), dict(method='noise', rows=None)], ids=['seed', 'method'])
def test_a_run_that_is_not_planned_needs_a_label(change):
    "With the parameters of the scale, or by a command that names the scale only"
    from adt_repro.runs.config import RULES
    from adt_repro.runs.resolve import resolve

    given = {name: PARAMETERS['train'][name].default for name in RULES} | dict(scale='digits') | change
    said = refusal(check_kept_run, resolve(given))
    assert said.startswith("scale='digits': expected a run of its plan"), said
    check_kept_run(resolve(given | dict(label='mine')))
    check_kept_run(resolve(given | dict(scale='demo')))


def test_a_file_with_a_label_is_not_in_the_list_of_a_scale(tmp_path):
    write_table(pd.DataFrame(dict(a=[1])), tmp_path / 'tables' / 'white_box.csv')
    write_table(pd.DataFrame(dict(a=[1])), tmp_path / 'tables' / 'white_box.few.csv')
    assert list(read_sums(tmp_path / SUMS)) == ['tables/white_box.csv']
    assert len(pd.read_csv(tmp_path / 'tables' / 'white_box.few.csv')) == 1


def test_a_kept_scale_has_runs_of_its_own(root):
    "The folder has another run"
    outputs = root / 'outputs'
    for name in KEPT:
        assert own_runs(outputs / name) == list(scale_runs(kept_scale(name)))
    assert own_runs(outputs / 'demo') is None and own_runs(outputs / 'paper') == []


def test_a_label_is_in_no_name_that_a_scale_has():
    "A dot follows the kind; no file of a scale has one before its ending"
    run = 'digits-small_cnn-at_pgd-s0'
    assert label_marks('few', [run]) == ('.few', '.few')
    assert label_marks(run, [run, 'another']) == (f'.{run}', f'.{run}')
    assert label_marks(run, [run]) == ('', f'-{run}')
    for name in KEPT:
        for file in all_files(kept_scale(name)):
            assert file.rpartition('/')[2].count('.') == 1, file
