"Experiments that have noted what they made: what is still true is taken, and what is stale is made again"

import json
import os
import re
import shutil
import time

import nbformat
import pandas as pd
import pytest
import yaml
from helpers import (
    MINI,
    ROOT,
    experiments,
    outputs_of,
    papermill,
    papermill_begun,
    papermill_command,
    run,
    small_project,
    without_digests,
)

from adt_repro.base.tables import file_digest, read_table, write_table, write_text
from adt_repro.evaluation.records import read_record, save_records
from adt_repro.runs.lock import begin_units
from adt_repro.runs.scales import call_parameters, check_scale

ONE, OTHER = 'digits-small_cnn-at_pgd-s0', 'digits-small_cnn-standard-s0'
SETTINGS = dict(
    white_box=dict(n_test=16, n_targets=1, draws=2, generator=4, n_sound=8, batch=8),
    all_images=dict(n_test=16, batch=8),
    spsa=dict(n_test=8, samples=[4], steps=2, budget=20, batch=4),
    transfer=dict(n_test=8, attacks=['fgsm', 'mim'], batch=4),
)
RECORDS = dict(
    white_box=[f'records/white_box-{ONE}.parquet'],
    all_images=[f'records/all_images-{ONE}.parquet'],
    spsa=[f'records/spsa-{ONE}.parquet'],
    transfer=[f'records/transfer-{which}-{ONE}.parquet' for which in ('itself', 'from')],
)
RECORD = RECORDS['white_box'][0]
GAIN, DISTRIBUTION, SOUNDNESS = [f'frames/{name}-{ONE}.csv' for name in ('gain', 'distribution', 'soundness')]
CHANGED = 'is not as it was noted: all of its rows are made again'


def given_for(project, name, **change):
    "The parameters of the plan's call of an experiment, after a change of the scale's file"
    pairs = dict(targets=['standard', 'at_pgd'], target_seeds=[0], source_seeds=[0])
    own = SETTINGS | dict(transfer=SETTINGS['transfer'] | pairs)
    scale = check_scale(MINI | experiments(**own | {name: own[name] | change}))
    (project / 'nbs' / 'scales' / 'mini.yaml').write_text(yaml.safe_dump(scale.content))
    return json.loads(call_parameters(scale, name, None if name == 'transfer' else ONE))


def called(project, name, fresh=False, **change):
    "Call an experiment of the plan; what its notebook shows, by cell"
    done = papermill(project, name, **given_for(project, name, **change), fresh=fresh)
    assert done.returncode == 0, done.stderr
    return shown(project)


def called_with_own_code(project, name, **change):
    "The same with the project's copy of the package, in processes of their own"
    command = papermill_command(name, **given_for(project, name, **change))
    done = run(*command, cwd=project, env=os.environ | dict(PYTHONPATH=str(project)))
    assert done.returncode == 0, done.stderr
    return shown(project)


def shown(project):
    "The outputs of an executed notebook as text, by cell; the cell with the call's parameters has no name"
    assert 'Traceback' not in outputs_of(project / 'out.ipynb')
    cells = nbformat.read(project / 'out.ipynb', 4).cells
    own = [cell for cell in cells if 'injected-parameters' not in cell.metadata.get('tags', [])]
    return {cell.id: json.dumps(cell.get('outputs')) for cell in own if cell.cell_type == 'code'}


def files_of(project):
    "Content by name of all results of the scale, and of its lock"
    folder = project / 'outputs' / 'mini'
    files = [file for kind in ('records', 'tables', 'frames') for file in (folder / kind).glob('*.*')]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in [*files, folder / 'lock.json']}


def rows_of(project, record=RECORD):
    return read_record(project / 'outputs' / 'mini' / record)[0]


def differing(files, others):
    "Names of the results that differ, but for the lock"
    return {name for name in files | others if files.get(name) != others.get(name)} - {'lock.json'}


def note(project, file):
    "Write the digest of a file into the lock, as if an experiment had made it so"
    folder = project / 'outputs' / 'mini'
    lock = json.loads((folder / 'lock.json').read_text())
    (entry,) = [entry for entry in lock['units'].values() if file in entry['files']]
    entry['files'][file] = file_digest(folder / file)[:16]
    write_text(folder / 'lock.json', json.dumps(lock))


def plant_in_record(project, record=RECORD):
    "Change the loss of each attack's first rows, so that rows that are taken can be told from rows that are made"
    place = project / 'outputs' / 'mini' / record
    rows, weights = read_record(place)
    rows.loc[rows.attacked & (rows.i == 0), 'loss'] += 1000.0
    save_records(rows, place, weights)


def planted(project, record=RECORD):
    "The attacks whose changed rows are there"
    rows = rows_of(project, record)
    return set(rows.attack[rows.loss > 500])


def plant_in_frame(project, frame, column):
    place = project / 'outputs' / 'mini' / frame
    table = read_table(place)
    write_table(table.assign(**{column: table[column] + 1000}), place)
    note(project, frame)
    return place.read_bytes()


def copied(project, folder):
    shutil.copytree(project, folder / 'project')
    return folder / 'project'


def without_results(project):
    "A project with its runs only"
    for kind in 'records', 'tables', 'frames':
        shutil.rmtree(project / 'outputs' / 'mini' / kind)
    for name in 'lock.json', 'SHA256SUMS':
        (project / 'outputs' / 'mini' / name).unlink()
    return project


def with_package(project):
    shutil.copytree(ROOT / 'adt_repro', project / 'adt_repro', ignore=shutil.ignore_patterns('__pycache__'))
    return project


def edit(project, module, old, new):
    file = project / 'adt_repro' / module
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


@pytest.fixture(scope='module')
def project(tmp_path_factory, give_tiny_runs):
    "A scale of two runs, with no results"
    root = small_project(tmp_path_factory.mktemp('project'), *SETTINGS)
    (root / 'nbs' / 'scales').mkdir()
    give_tiny_runs(root, 'standard', 'at_pgd', scale='mini')
    return root


@pytest.fixture(scope='module')
def made(project, tmp_path_factory):
    "The same after white_box"
    root = copied(project, tmp_path_factory.mktemp('made'))
    said = called(root, 'white_box')
    assert 'taken' not in said['records-show'] and 'rows made' in said['records-show']
    return root


@pytest.fixture(scope='module')
def longer(project, tmp_path_factory):
    "And after white_box of more images, in one go"
    root = copied(project, tmp_path_factory.mktemp('longer'))
    called(root, 'white_box', n_test=32)
    return root


def test_nothing_has_changed(made, tmp_path):
    "Nothing is attacked or measured, every byte stays, and the notebook shows the same"
    root = copied(made, tmp_path)
    shutil.rmtree(root / 'outputs' / 'mini' / 'records' / 'parts')
    said, again = shown(root), called(root, 'white_box')
    said.pop('records-show')
    assert not list((root / 'outputs' / 'mini' / 'records' / 'parts').rglob('*.parquet'))
    assert 'rows made' not in again['records-show']
    assert 'natural, fgsm, pgd20, mim, cw, pgd100, feature, distribution, generator' in again['records-show']
    assert files_of(root) == files_of(made)
    assert {cell: again[cell] for cell in said} == said

    plant_in_record(root)
    note(root, RECORD)
    columns = {GAIN: 'clean', DISTRIBUTION: 'entropy', SOUNDNESS: 'value'}
    frames = {frame: plant_in_frame(root, frame, column) for frame, column in columns.items()}
    called(root, 'white_box')
    assert planted(root) == set(rows_of(root).attack)
    assert {frame: files_of(root)[frame] for frame in frames} == frames
    called(root, 'white_box', fresh=True)
    assert files_of(root) == files_of(made)


def test_an_attack_was_edited(made, tmp_path):
    "Only its rows are made again, and the record is that of a fresh evaluation with the edited code"
    root = with_package(copied(made, tmp_path))
    edit(root, 'attacks/gradient.py', 'steps: int = 30,  # gradient', 'steps: int = 3,  # gradient')
    before = rows_of(root)
    columns = {GAIN: 'clean', DISTRIBUTION: 'entropy', SOUNDNESS: 'value'}
    frames = {frame: plant_in_frame(root, frame, column) for frame, column in columns.items()}
    said = called_with_own_code(root, 'white_box')
    assert '; cw: 16 rows made' in said['records-show']
    others = 'natural, fgsm, pgd20, mim, pgd100, feature, distribution, generator'
    assert f'{others}: 128 rows taken' in said['records-show']
    now = rows_of(root)
    pd.testing.assert_frame_equal(now[now.attack != 'cw'], before[before.attack != 'cw'], check_exact=True)
    assert (now[now.attack == 'cw'].margin != before[before.attack == 'cw'].margin).any()
    files = files_of(root)
    assert {frame: files[frame] for frame in frames} == frames
    called_with_own_code(without_results(root), 'white_box')
    assert differing(files, files_of(root)) == set(frames)


def test_the_sanity_checks_were_edited(made, tmp_path):
    "Only their frame is made again"
    root = with_package(copied(made, tmp_path))
    edit(root, 'evaluation/sanity.py', 'TOLERATED = 0.05', 'TOLERATED = 0.25')
    plant_in_record(root)
    note(root, RECORD)
    frames = {GAIN: 'clean', DISTRIBUTION: 'entropy'}
    for frame, column in frames.items():
        plant_in_frame(root, frame, column)
    before = files_of(root)
    said = called_with_own_code(root, 'white_box')
    assert 'rows made' not in said['records-show']
    assert differing(before, files_of(root)) == {SOUNDNESS}


def test_more_images(made, longer, tmp_path):
    "Only the new ones are attacked; the rows are those of one evaluation"
    root = copied(made, tmp_path)
    said = called(root, 'white_box', n_test=32)
    assert not differing(files_of(root), files_of(longer))
    for what in 'taken from earlier records', 'made':
        assert re.search(rf'generator: 144 rows {what}', said['records-show'])

    plant_in_record(root)
    note(root, RECORD)
    called(root, 'white_box')
    assert len(rows_of(root)) == 9 * 16
    assert planted(root) == set(rows_of(root).attack)  # fewer images: nothing is attacked


def test_other_weights(made, tmp_path, tiny_run_of):
    "Everything is made again"
    root = copied(made, tmp_path)
    folder = root / 'outputs' / 'mini' / 'runs' / ONE
    without_digests(folder)
    shutil.copy(tiny_run_of('standard') / 'weights.safetensors', folder)
    plant_in_record(root)
    note(root, RECORD)
    said = called(root, 'white_box')
    assert 'taken' not in said['records-show']
    assert not planted(root)
    assert {RECORD, GAIN, DISTRIBUTION, SOUNDNESS} <= differing(files_of(root), files_of(made))


def test_a_record_that_was_changed_behind_the_locks_back(made, tmp_path):
    "Everything is made again, and a line says why"
    root = copied(made, tmp_path)
    plant_in_record(root)
    said = called(root, 'white_box')
    assert f'{RECORD} {CHANGED}' in said['earlier']
    assert 'taken' not in said['records-show']
    assert files_of(root) == files_of(made)


def test_killed_between_the_record_and_its_entry(made, longer, tmp_path):
    "The next call makes the record again, and everything is as without the kill"
    root = copied(made, tmp_path)
    record = root / 'outputs' / 'mini' / RECORD
    before, lock = record.read_bytes(), (root / 'outputs' / 'mini' / 'lock.json').read_bytes()
    begun = papermill_begun(root, 'white_box', **given_for(root, 'white_box', n_test=32))
    while record.read_bytes() == before and begun.is_alive():
        time.sleep(0.01)
    begun.kill()
    begun.join()
    assert record.read_bytes() == files_of(longer)[RECORD]
    assert (root / 'outputs' / 'mini' / 'lock.json').read_bytes() == lock

    said = called(root, 'white_box', n_test=32)
    assert f'{RECORD} {CHANGED}' in said['earlier']
    assert not differing(files_of(root), files_of(longer))
    assert (
        json.loads(files_of(root)['lock.json'])['units'] == json.loads(files_of(longer)['lock.json'])['units']
    )


def test_low_precision(project, tmp_path):
    "The comparison with float32, which attacks once more, is read back where nothing has changed"
    root = copied(project, tmp_path)
    change = dict(precision='bf16', n_beside=8, attacks=['fgsm', 'cw'], generator=0, sound=False)
    beside = f'tables/white_box_bf16_vs_fp32-{ONE}.csv'
    called(root, 'white_box', **change)
    first = files_of(root)
    assert beside in first
    before = plant_in_frame(root, beside, 'gap')
    again = called(root, 'white_box', **change)
    assert 'rows made' not in again['records-show']
    assert files_of(root)[beside] == before
    called(root, 'white_box', **change | dict(n_beside=7))
    table = read_table(root / 'outputs' / 'mini' / beside)
    assert set(table.n) == {7}
    assert table.gap.max() < 1


@pytest.mark.parametrize('name', ['all_images', 'spsa', 'transfer'])
def test_other_experiments(project, tmp_path, name):
    "All rows are taken where nothing has changed, those of more images are made, and `fresh` takes none"
    root = copied(project, tmp_path)
    n = SETTINGS[name]['n_test']
    called(root, name)
    first = files_of(root)
    called(root, name)
    assert files_of(root) == first

    for record in RECORDS[name]:
        plant_in_record(root, record)
        note(root, record)
    said = called(root, name, n_test=2 * n)
    assert 'taken from earlier records; ' in said['records-show']
    for record in RECORDS[name]:
        rows = rows_of(root, record)
        assert planted(root, record) == set(rows.attack[rows.attacked & (rows.i == 0)])
        assert set(rows.i) == set(range(2 * n))
    again = called(root, name, n_test=2 * n, fresh=True)
    assert 'taken' not in again['records-show']
    assert not any(planted(root, record) for record in RECORDS[name])
    called(root, name, fresh=True)
    assert not differing(files_of(root), first)


def test_a_run_is_noted_when_it_is_saved(tmp_path):
    "And not again when the finished run is shown"
    root = small_project(tmp_path, 'train')
    given = dict(method='standard', epochs=1, n_train=100, n_test=20, scale='mini')
    name = f'train/run/{OTHER}'
    assert papermill(root, 'train', **given).returncode == 0
    folder = root / 'outputs' / 'mini'
    making = begin_units('train', folder, given | dict(runs=[OTHER]))
    assert making.is_true(f'runs/{OTHER}/weights.safetensors')
    lock = json.loads((folder / 'lock.json').read_text())
    lock['units'][name]['code'] = 'of earlier code'
    write_text(folder / 'lock.json', json.dumps(lock))
    assert papermill(root, 'train', **given).returncode == 0
    assert json.loads((folder / 'lock.json').read_text()) == lock
    assert papermill(root, 'train', **given, fresh=True).returncode == 0
    now = json.loads((folder / 'lock.json').read_text())['units'][name]
    assert now['code'] == making.facts[name][0]['code']
