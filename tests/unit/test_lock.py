"The lock of a scale: each change of what its files are made from has its reason, and no other file is stale"

import hashlib
import json
import multiprocessing
import shutil
from contextlib import contextmanager, nullcontext

import pytest
import yaml
from helpers import MINI, ROOT

from adt_repro.base.tables import TableError
from adt_repro.runs import lock as locks
from adt_repro.runs.lock import (
    adopt_units,
    begin_units,
    finish_units,
    main,
    note_units,
    plan_lines,
    read_lock,
    stale_jobs,
    stale_lines,
    stale_units,
    true_rows,
)
from adt_repro.runs.made_from import planned_units
from adt_repro.runs.scales import all_files, call_parameters, read_scale

A, S = 'digits-small_cnn-at_pgd-s0', 'digits-small_cnn-standard-s0'
SQUARE = (
    'adt_repro/attacks/black_box.py',
    'torch.where(inside, images + eps * signs, best)',
    'torch.where(inside, images + 1 * eps * signs, best)',
)
CW = (
    'adt_repro/attacks/gradient.py',
    '    steps: int = 30,  # gradient steps, at least 1\n    **options,  # further arguments of `pgd`',
    '    steps: int = 31,  # gradient steps, at least 1\n    **options,  # further arguments of `pgd`',
)
CONFIG = dict(method='at_pgd', dataset='digits', arch='small_cnn', recipe='paper2020', eps=0.15)
PAPER = 'report.html', 'tables/table1.csv', 'tables/claims.csv', 'tables/code_claims.csv'
PAPER_FIGURES = 'frames/table1.csv', 'figures/table1.png', 'frames/claims.csv', 'figures/claims.png'


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    "The code and the experiments of a clone, which a test may edit"
    root = tmp_path_factory.mktemp('clone')
    shutil.copytree(ROOT / 'adt_repro', root / 'adt_repro', ignore=shutil.ignore_patterns('__pycache__'))
    (root / 'nbs').mkdir()
    for file in (ROOT / 'nbs').glob('*.ipynb'):
        shutil.copy(file, root / 'nbs')
    for folder in ('scales', 'published'):
        shutil.copytree(ROOT / 'nbs' / folder, root / 'nbs' / folder)
    (root / 'nbs' / 'scales' / 'mini.yaml').write_text(yaml.safe_dump(MINI))
    return root


@pytest.fixture
def edited(project):
    "A context in which a text that stands once in a file of the project is another"

    @contextmanager
    def edit(file, old, new):
        kept = (project / file).read_text()
        assert kept.count(old) == 1, (file, old, kept.count(old))
        (project / file).write_text(kept.replace(old, new))
        READ['edited'] = file
        try:
            yield
        finally:
            (project / file).write_text(kept)
            del READ['edited']

    return edit


def scale_of(project, name='mini'):
    return read_scale(project / 'nbs' / 'scales' / f'{name}.yaml')


def fill(folder, scale):
    "Every file that a scale plans, with a content of its own; a run's parameters as training writes them"
    names = [file.removeprefix(f'outputs/{scale.name}/') for file in all_files(scale)]
    for name in [*names, *PAPER, *PAPER_FIGURES]:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'of {name}')
    for run in (A, S):
        config = CONFIG | dict(method=run.split('-')[2])
        (folder / 'runs' / run / 'config.yaml').write_text(yaml.safe_dump(config))
        (folder / 'runs' / run / 'run.json').write_text(json.dumps(dict(train_set='a', test_set='b')))


@pytest.fixture
def mini(project, tmp_path, monkeypatch):
    "A scale whose files were made by hand, and adopted"
    monkeypatch.setattr(locks, 'Present', of_project(project))
    folder = tmp_path / 'outputs' / 'mini'
    fill(folder, scale_of(project))
    adopt_units(scale_of(project), folder, 'made by hand')
    return folder


READ = {}  # what has been read of the code that is not edited; empty while it is


def of_project(project):
    "`Present` for the code of a copy of the project, where only the folder of the scale is given"
    real = locks.Present

    def present(folder, root=None):
        found = real(folder, root or project)
        if 'edited' not in READ:
            found.reader, found.code = READ.setdefault('once', (found.reader, found.code))
        return found

    return present


def reasons(project, folder, scale='mini'):
    "By file, why it is stale"
    stale = stale_units(scale_of(project, scale), folder, project)
    return {file: why for unit, why in stale.values() for file in unit.files}


def records(kind, *runs):
    return [f'records/{kind}-{run}.parquet' for run in runs]


def of_record(run):
    "What is counted from a record of white_box"
    return [f'tables/white_box-{run}.csv']


# What each scale has


@pytest.mark.parametrize('name', sorted(file.stem for file in (ROOT / 'nbs' / 'scales').glob('*.yaml')))
def test_each_planned_file_is_in_one_unit(name):
    scale = scale_of(ROOT, name)
    files = [file for unit, _ in planned_units(scale) for file in unit.files]
    planned = {file.removeprefix(f'outputs/{name}/') for file in all_files(scale)}
    assert sorted(files) == sorted(planned | {*PAPER, *PAPER_FIGURES})


# One change at a time


def test_nothing_has_changed(mini, project):
    assert reasons(project, mini) == {}
    assert stale_lines({}) == plan_lines(mini, {}) == [] and stale_jobs({}) == set()


def test_code_of_one_attack(mini, project, edited):
    with edited(*CW):
        found = reasons(project, mini)
    for run in (A, S):
        assert found[f'records/white_box-{run}.parquet'] == ['rows of cw: attacks.gradient.cw']
    assert 'attacks.gradient.cw' not in str([why for file, why in found.items() if 'records' not in file])
    expected = {*records('white_box', A, S), *of_record(A), *of_record(S), *PAPER, *PAPER_FIGURES}
    assert set(found) == expected


def test_parameters(mini, project, edited):
    "Other parameters in the scale's file, which is itself a file that the paper's page is made from"
    change = MINI['experiments'] | dict(white_box=MINI['experiments']['white_box'] | dict(n_targets=2))
    file = project / 'nbs' / 'scales' / 'mini.yaml'
    kept = file.read_text()
    file.write_text(yaml.safe_dump(MINI | dict(experiments=change)))
    try:
        found = reasons(project, mini)
    finally:
        file.write_text(kept)
    for run in (A, S):
        assert found[f'records/white_box-{run}.parquet'] == ['rows of feature: some code is no longer used']
        assert 'other parameters' in found[f'tables/white_box-{run}.csv']
        assert f'frames/gain-{run}.csv' not in found and f'runs/{run}/run.json' not in found
    assert f'records/spsa-{A}.parquet' not in found


def renote(project, folder, *names):
    "Note some units as they are now, and no other"
    adopt_units(scale_of(project), folder, 'noted again', list(names))


def test_weights(mini, project):
    weights = mini / 'runs' / A / 'weights.safetensors'
    weights.write_text('other weights')
    found = reasons(project, mini)
    assert found[f'runs/{A}/run.json'] == [f'runs/{A}/weights.safetensors is not as it was noted']
    assert found[f'frames/gain-{A}.csv'] == [f'{A} is trained again', 'other weights']
    renote(project, mini, 'train')
    found = reasons(project, mini)
    assert found[f'frames/gain-{A}.csv'] == found[f'records/spsa-{A}.parquet'] == ['other weights']
    assert f'frames/gain-{S}.csv' not in found and not any(file.startswith('runs/') for file in found)


def test_weights_that_only_run_json_knows(mini, project):
    "The file is not in every clone: its digest in run.json counts"
    weights, facts = mini / 'runs' / A / 'weights.safetensors', mini / 'runs' / A / 'run.json'
    sums = {'weights.safetensors': hashlib.sha256(weights.read_bytes()).hexdigest()}
    facts.write_text(json.dumps(dict(train_set='a', test_set='b', file_sha256=sums)))
    renote(project, mini, 'train', 'paper')
    assert reasons(project, mini) == {}
    weights.unlink()
    found = reasons(project, mini)
    assert found[f'frames/gain-{A}.csv'] == [f'{A} is trained again']
    sums['weights.safetensors'] = 64 * '0'
    facts.write_text(json.dumps(dict(train_set='a', test_set='b', file_sha256=sums)))
    assert reasons(project, mini)[f'frames/gain-{A}.csv'] == [f'{A} is trained again', 'other weights']


@pytest.mark.parametrize(
    'name, content, reason',
    [
        ('config.yaml', yaml.safe_dump(CONFIG | dict(eps=0.1)), 'other parameters of its runs'),
        ('run.json', json.dumps(dict(train_set='a', test_set='c')), 'other data'),
    ],
    ids=['config', 'data'],
)
def test_parameters_and_data_of_a_run(name, content, reason, mini, project):
    (mini / 'runs' / A / name).write_text(content)
    renote(project, mini, 'train')
    found = reasons(project, mini)
    assert found[f'records/white_box-{A}.parquet'] == found[f'frames/gain-{A}.csv'] == [reason]
    assert found[f'records/spsa-{A}.parquet'] == [reason] and f'records/white_box-{S}.parquet' not in found


def test_another_file_that_is_read(mini, project):
    "The published numbers: the paper's page and its tables, and nothing that was measured"
    file = next(file for file in sorted((project / 'nbs' / 'published').iterdir()) if file.is_file())
    kept = file.read_bytes()
    file.write_bytes(kept + b'\n')
    try:
        found = reasons(project, mini)
    finally:
        file.write_bytes(kept)
    assert found['tables/table1.csv'] == found['tables/claims.csv'] == ['other files that it is made from']
    assert set(found) == {*PAPER, *PAPER_FIGURES}


def test_own_files(mini, project):
    table = mini / 'tables' / f'white_box-{A}.csv'
    table.write_text('altered')
    found = reasons(project, mini)
    assert found[f'tables/white_box-{A}.csv'] == [f'tables/white_box-{A}.csv is not as it was noted']
    assert set(found) == {f'tables/white_box-{A}.csv', 'report.html'}  # the report shows the table
    table.unlink()
    found = reasons(project, mini)
    assert found[f'tables/white_box-{A}.csv'] == [f'tables/white_box-{A}.csv is missing']
    (mini / 'records' / f'spsa-{A}.parquet').write_text('altered')
    found = reasons(project, mini)
    again = f'records/spsa-{A}.parquet is made again'
    assert found[f'tables/spsa-{A}.csv'] == [again, 'other files that it is made from']
    assert set(found) >= {'tables/claims.csv', 'report.html', f'frames/soundness_spsa-{A}.csv'}
    assert f'records/white_box-{A}.parquet' not in found
    shutil.rmtree(mini / 'runs' / S)
    found = reasons(project, mini)
    assert found[f'runs/{S}/run.json'] == ['all of these files are missing']
    assert f'{S} is trained again' in found[f'records/white_box-{S}.parquet']


def test_calls_and_lines(mini, project, edited):
    "Calls of the plan; and one line for many runs with the same reason"
    with edited(*CW):
        stale = stale_units(scale_of(project), mini, project)
    assert stale_jobs(stale) == {('white_box', A), ('white_box', S), ('paper', '')}
    lines = plan_lines(mini, stale)
    assert lines[0].endswith('are made again:')
    named = [line for line in lines if 'rows of cw' in line]
    assert len(named) == 1 and named[0].endswith('.parquet and 1 more: rows of cw: attacks.gradient.cw')
    (mini / 'lock.json').unlink()
    lines = plan_lines(mini, stale_units(scale_of(project), mini, project))
    assert len(lines) == 1 and f'python -m adt_repro.runs.lock {mini} --adopt WHY' in lines[0]
    n_files = sum(file.is_file() for file in mini.rglob('*') if '.locks' not in file.parts)
    assert f' {n_files} files are not in lock.json' in lines[0]
    renote(project, mini, 'train')  # some are noted now
    lines = plan_lines(mini, stale_units(scale_of(project), mini, project))
    assert len(lines) == 1 and f' {n_files - 8} files are not in lock.json' in lines[0]
    (mini / 'lock.json').unlink()
    shutil.rmtree(mini)
    mini.mkdir()
    assert plan_lines(mini, stale_units(scale_of(project), mini, project)) == []


def test_a_plan_says_at_most_32_lines(mini, project):
    unit = planned_units(scale_of(project))[0][0]
    stale = {f'train/run/{i}': (unit, [f'reason {i}']) for i in range(100)}
    lines = plan_lines(mini, stale)
    assert len(lines) == 32 and lines[-1] == f'  and 70 more: python -m adt_repro.runs.lock {mini}'
    assert len(stale_lines(stale)) == 100


# The lock's file


def _note(folder, number):
    for i in range(20):
        entry = dict(files={f'{number}-{i}': 'x'})
        note_units(folder, {f'u/{number}/{i}': entry}, {f'd.{number}.{i}': 'y', 'd.all': f'{number}'})


def test_two_processes_that_note_at_once_lose_nothing(tmp_path):
    "Twenty entries of each, one at a time"
    context = multiprocessing.get_context('fork')
    processes = [context.Process(target=_note, args=(tmp_path, number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    lock = read_lock(tmp_path)
    assert set(lock['units']) == {f'u/{number}/{i}' for number in range(3) for i in range(20)}
    assert len(lock['definitions']) == 61 and set(lock['definitions']['d.all']) == {'0', '1', '2'}


DAMAGED = ['', '{', '[]', 'null', 100_000 * '[', '{"units": {}}', '{"units": [], "definitions": {}}']


@pytest.mark.parametrize('text', [*DAMAGED, '{"units": {"a": 1}, "definitions": {}}'], ids=range(8))
def test_a_damaged_lock(text, mini, project):
    "One line that names it; a call of an experiment stops before any work, and writes nothing"
    (mini / 'lock.json').write_text(text)
    for call in (
        lambda: stale_units(scale_of(project), mini, project),
        lambda: begin_units('spsa', mini, dict(runs=[A], label=A)),
        lambda: note_units(mini, dict(a={}), {}),
        lambda: adopt_units(scale_of(project), mini, 'why'),
    ):
        with pytest.raises(TableError) as e:
            call()
        assert str(e.value).startswith('mini/lock.json: is not a lock') and '\n' not in str(e.value)
    assert (mini / 'lock.json').read_text() == text


def test_a_lock_that_cannot_be_read(mini, project):
    (mini / 'lock.json').unlink()
    (mini / 'lock.json').mkdir()
    with pytest.raises(ValueError, match='lock.json'):
        read_lock(mini)


def test_an_entry_is_one_line(mini, project):
    "So that git shows which entries a commit has changed"
    before = (mini / 'lock.json').read_text().splitlines()
    (mini / 'tables' / f'white_box-{A}.csv').write_text('other')
    renote(project, mini, f'white_box/tables/{A}')
    after = (mini / 'lock.json').read_text().splitlines()
    differing = [new for old, new in zip(before, after, strict=True) if old != new]
    assert len(differing) == 1 and differing[0].startswith(f'"white_box/tables/{A}"')


# To adopt


def test_adopt_marks_says_why_and_leaves_out_what_is_missing(mini, project, edited):
    with edited(*CW):
        (mini / 'tables' / f'white_box-{S}.csv').unlink()
        names = adopt_units(scale_of(project), mini, 'audit of 600 rows: all agree', ['white_box'])
        assert {f'white_box/records/{A}', f'white_box/records/{S}', f'white_box/tables/{A}'} >= set(names)
        assert f'white_box/records/{A}' in names
        entries = read_lock(mini)['units']
        assert entries[f'white_box/records/{A}']['adopted'] == 'audit of 600 rows: all agree'
        assert entries[f'spsa/records/{A}']['adopted'] == 'made by hand'
        found = reasons(project, mini)
        assert f'records/white_box-{A}.parquet' not in found
        assert found[f'tables/white_box-{S}.csv'] == [f'tables/white_box-{S}.csv is missing']
    assert f'records/white_box-{A}.parquet' in reasons(project, mini)  # the old code is the stale one now


@pytest.mark.parametrize('why', ['', ' ', 'two\nlines', '\x1b[31m'])
def test_why_is_one_line(why, mini, project):
    before = (mini / 'lock.json').read_text()
    with pytest.raises(ValueError, match='why='):
        adopt_units(scale_of(project), mini, why)
    assert (mini / 'lock.json').read_text() == before


def test_the_command(tmp_path, capsys):
    "It needs the folder of a scale that has a file"
    assert main([str(tmp_path / 'nothing')]) == 2
    assert capsys.readouterr().err.count('\n') == 1
    (tmp_path / 'demo').mkdir()
    assert main([str(tmp_path / 'demo')]) == 1
    assert 'missing' in capsys.readouterr().out
    (tmp_path / 'demo' / 'lock.json').write_text('{')
    assert main([str(tmp_path / 'demo')]) == 2
    assert 'demo/lock.json: is not a lock' in capsys.readouterr().err


# While an experiment runs


def begun(folder, **change):
    own = MINI['experiments']['spsa']
    given = {name: own[name] for name in ('n_test', 'samples', 'steps', 'budget')}
    return begin_units('spsa', folder, given | dict(runs=[A], label=A) | change)


def test_an_experiment_asks_and_notes(mini, project, edited):
    record, table = f'records/spsa-{A}.parquet', f'tables/spsa-{A}.csv'
    making = begun(mini)
    assert making.is_true(record) and making.is_true(table) and not making.is_true('tables/none.csv')
    assert true_rows(making, record) == ['natural', 'pgd20', 'spsa4', 'square']
    assert true_rows(begun(mini, fresh=True), record) == [] and not begun(mini, fresh=True).is_true(table)
    assert true_rows(begun(mini, n_test=9), record) == ['natural', 'pgd20', 'spsa4', 'square']
    assert not begun(mini, n_test=9).is_true(record)
    assert true_rows(begun(mini, steps=3), record) == ['natural', 'pgd20', 'square']
    assert true_rows(begun(mini, seed=1), record) == []
    with edited(*SQUARE):
        making = begun(mini)
        assert true_rows(making, record) == ['natural', 'pgd20', 'spsa4']
        (mini / record).write_text('new rows')
        finish_units(making)
        follow = 'tables/claims.csv', 'tables/code_claims.csv', 'frames/claims.csv', 'figures/claims.png'
        assert {*reasons(project, mini)} == {'report.html', *follow}  # Table 1 has no such attack
    assert record in reasons(project, mini)


def test_files_that_come_out_again_change_no_lock(mini, project):
    "So that tests and readers can run an experiment in a clone without a change that git would see"
    before = (mini / 'lock.json').read_bytes()
    finish_units(begun(mini))
    assert (mini / 'lock.json').read_bytes() == before and b'made by hand' in before
    (mini / 'tables' / f'spsa-{A}.csv').write_text('other content')
    finish_units(begun(mini))
    entries = read_lock(mini)['units']
    assert 'adopted' not in entries[f'spsa/tables/{A}']
    assert entries[f'white_box/tables/{A}']['adopted'] == 'made by hand'


def test_an_edit_while_an_experiment_runs_is_not_missed(mini, project, edited):
    "What is noted is the code from which it began"
    making = begun(mini)
    with edited(*SQUARE):
        finish_units(making)
        assert reasons(project, mini)[f'records/spsa-{A}.parquet'] == [
            'rows of square: attacks.black_box.square'
        ]
    assert reasons(project, mini) == {}


@pytest.mark.parametrize('kept', ['as written', 'damaged', 'gone'])
def test_a_training_that_goes_on_is_made_from_the_code_of_its_beginning(kept, mini, project, edited):
    "If that is not known, from the code with which it goes on, and a warning says so"
    given = json.loads(call_parameters(scale_of(project), 'train', A)) | dict(runs=[A])
    steps = (
        'adt_repro/methods/table.py',
        'eps=eps, steps=inner_steps, step_size=step_size, clip',
        ('eps=eps, steps=1 + inner_steps, step_size=step_size, clip'),
    )
    begin_units('train', mini, given)
    (mini / 'runs' / A / 'checkpoint.pt').write_text('an epoch')
    beginning = mini / '.locks' / f'begun-{A}.json'
    if kept != 'as written':
        beginning.write_text('[1') if kept == 'damaged' else beginning.unlink()
    with edited(*steps):
        says = pytest.warns(UserWarning, match='which says from which code its training began, is missing')
        with nullcontext() if kept == 'as written' else says:
            making = begin_units('train', mini, given)
        finish_units(making)
        assert beginning.exists()
        found = reasons(project, mini)
        if kept == 'as written':
            assert found[f'runs/{A}/run.json'] == ['code: methods.table._at_pgd']
        else:
            assert f'runs/{A}/run.json' not in found
        (mini / 'runs' / A / 'checkpoint.pt').unlink()
        finish_units(begin_units('train', mini, given))  # anew
        assert not beginning.exists()
        assert f'runs/{A}/run.json' not in reasons(project, mini)


def test_an_altered_record_has_no_true_rows(mini):
    record = f'records/spsa-{A}.parquet'
    (mini / record).write_text('altered')
    assert true_rows(begun(mini), record) == [] and not begun(mini).is_true(record)
    (mini / record).unlink()
    assert true_rows(begun(mini), record) == [] and not begun(mini).is_true(record)


def test_files_with_a_label_are_in_no_lock(mini):
    before = (mini / 'lock.json').read_text()
    making = begun(mini, label='other')
    assert making.units == [] and true_rows(making, f'records/spsa-{A}.parquet') == []
    finish_units(making)
    assert (mini / 'lock.json').read_text() == before


# Edits, and what they make stale in the scale that is committed


@pytest.fixture(scope='module')
def cpu(project, tmp_path_factory):
    "A copy of outputs/cpu whose files are adopted as if the code had made them"
    folder = tmp_path_factory.mktemp('outputs') / 'cpu'
    shutil.copytree(ROOT / 'outputs' / 'cpu', folder)
    (folder / 'lock.json').unlink(missing_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locks, 'Present', of_project(project))
        adopt_units(scale_of(project, 'cpu'), folder, 'for a test')
    assert reasons(project, folder, 'cpu') == {}
    return folder


def names_in(folder, *patterns):
    found = {file.relative_to(folder).as_posix() for pattern in patterns for file in folder.glob(pattern)}
    assert found
    return found


def fgsm_edit():
    "In the sanity checks, which call fgsm"
    return (
        'adt_repro/evaluation/sanity.py',
        'attacked(attacks.fast, eps=eps)',
        'attacked(attacks.fast, eps=1 * eps)',
    )


@pytest.mark.parametrize(
    'change, patterns',
    [
        (
            CW,
            [
                'records/white_box-*',
                'tables/white_box-*-s?.csv',
                'records/all_images-*',
                'tables/all_images-*',
                'frames/landscape_plane.csv',
                'figures/landscape_plane.png',
                'frames/alignment.csv',
                'figures/alignment.png',
                *PAPER,
                *PAPER_FIGURES,
            ],
        ),
        (fgsm_edit(), ['frames/soundness-*', *PAPER[:1]]),
        (
            (
                'adt_repro/paper/claims.py',
                'bounds=(-np.inf, np.log10(0.5)),',
                'bounds=(-np.inf, np.log10(0.6)),',
            ),
            ['tables/claims.csv', 'frames/claims.csv', 'figures/claims.png', 'report.html'],
        ),
        (
            ('adt_repro/analysis/plots.py', 'def draw_curvature(', '@partial\ndef draw_curvature('),
            ['figures/curvature.png', 'report.html'],
        ),
        (('adt_repro/attacks/gradient.py', 'def cw(', 'def cw(  # Carlini and Wagner, in their words'), []),
        (('adt_repro/base/parameters.py', 'import reprlib', 'import reprlib, sys'), []),
    ],
    ids=['cw', 'caller of fgsm', 'bound of a claim', 'plot', 'comment', 'rules of parameters'],
)
def test_an_edit_makes_stale_what_it_changes(change, patterns, cpu, project, edited):
    with edited(*change):
        found = reasons(project, cpu, 'cpu')
    expected = names_in(cpu, *patterns) if patterns else set()
    assert set(found) == expected
