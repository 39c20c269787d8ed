"Gathering the files of a scale from other copies: only what would come out again here, and nothing is replaced"

import json
import shutil

import pytest
import torch
import yaml
from helpers import MINI, refusal

from adt_repro.base.files import lock_file
from adt_repro.base.tables import read_bytes
from adt_repro.methods.table import make_method
from adt_repro.models.classifiers import build_model
from adt_repro.runs import gather
from adt_repro.runs import lock as locks
from adt_repro.runs.gather import (
    HERE,
    NOT_THERE,
    OF_MORE,
    STATE_TAKEN,
    TAKEN,
    gather_units,
    gathered_lines,
    main,
)
from adt_repro.runs.lock import adopt_units, beginning_file, read_lock, stale_units
from adt_repro.runs.made_from import Present, planned_units
from adt_repro.runs.scales import read_scale
from adt_repro.runs.store import lock_run
from adt_repro.training.state import Recipe, State, save_checkpoint

A, S = 'digits-small_cnn-at_pgd-s0', 'digits-small_cnn-standard-s0'
RECORD = f'white_box/records/{A}'


@pytest.fixture(autouse=True)
def code_read_once(monkeypatch):
    "The code is the same for all tests, and is read once"
    for module in (locks, gather):
        monkeypatch.setattr(module, 'Present', with_known_code)


READ = {}


def with_known_code(folder, root=None):
    found = Present(folder, root)
    found.reader, found.code = READ.setdefault('once', (found.reader, found.code))
    return found


@pytest.fixture(scope='module')
def scale(tmp_path_factory):
    file = tmp_path_factory.mktemp('scales') / 'mini.yaml'
    file.write_text(yaml.safe_dump(MINI))
    return read_scale(file)


def fill(folder, scale, *runs, text='there', whole=False):
    "Files as examples: those of some runs, and with `whole` those of the scale too"
    for unit, _ in planned_units(scale):
        own = unit.name.rpartition('/')[2]
        for name in unit.files if own in runs or (whole and own not in (A, S)) else ():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(json.dumps({'of': name, 'text': text}))
    adopt_units(scale, folder, 'examples')
    return folder


def content(folder):
    "By name, the bytes of the files of a scale, without locks"
    names = [file.relative_to(folder).as_posix() for file in folder.rglob('*') if file.is_file()]
    return {name: (folder / name).read_bytes() for name in names if not name.split('/')[-1].startswith('.')}


def results(folder):
    files = content(folder)
    return {
        name: files[name] for name in files if name.split('/')[0] in ('runs', 'records', 'tables', 'frames')
    }


def states(found):
    return {name: what for name, what in found.items() if what != NOT_THERE}


def test_two_halves_are_a_whole(scale, tmp_path):
    "Each of two machines has one run; together they are what one machine with both runs has"
    first = fill(tmp_path / '1' / 'mini', scale, A)
    second = fill(tmp_path / '2' / 'mini', scale, S)
    both = fill(tmp_path / 'both' / 'mini', scale, A, S)
    found = gather_units(scale, first, second)
    assert {what for name, what in states(found).items()} == {TAKEN}
    assert all(name.endswith(S) for name in states(found))
    assert results(first) == results(both)
    assert set(stale_units(scale, first)) == set(stale_units(scale, both))
    assert set(read_lock(first)['units']) == set(read_lock(both)['units'])
    for name in results(first):
        read_bytes(first / name)  # what the list of digests says


def test_a_whole_scale_comes_whole(scale, tmp_path):
    "Files that are made from all records are taken if all records are here afterwards"
    source = fill(tmp_path / '1' / 'mini', scale, A, S, whole=True)
    assert set(gather_units(scale, tmp_path / '2' / 'mini', source).values()) == {TAKEN}
    assert stale_units(scale, tmp_path / '2' / 'mini') == {}


def test_a_report_of_fewer_runs_is_made_again(scale, tmp_path):
    source = fill(tmp_path / '1' / 'mini', scale, S, whole=True)
    here = fill(tmp_path / '2' / 'mini', scale, A)
    found = gather_units(scale, here, source)
    assert found[f'white_box/records/{S}'] == TAKEN
    assert found['paper/claims'] == OF_MORE and not (here / 'tables' / 'claims.csv').exists()
    assert ', 0 not taken' in gathered_lines(found)[0]


def test_a_second_time_changes_nothing(scale, tmp_path):
    source = fill(tmp_path / '1' / 'mini', scale, A)
    here = tmp_path / '2' / 'mini'
    gather_units(scale, here, source)
    before = content(here)
    assert set(states(gather_units(scale, here, source)).values()) == {HERE}
    assert content(here) == before


def test_files_that_were_copied_by_hand_are_noted(scale, tmp_path):
    source = fill(tmp_path / '1' / 'mini', scale, A)
    here = tmp_path / '2' / 'mini'
    for name in results(source):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, here / name)
    assert f'train/run/{A}' in stale_units(scale, here)
    assert set(states(gather_units(scale, here, source)).values()) == {TAKEN}
    assert not any(name.endswith(A) for name in stale_units(scale, here))


def test_own_files_stay(scale, tmp_path):
    "A run that both have trained: its own weights stay, and no record of the other weights is taken"
    source = fill(tmp_path / '1' / 'mini', scale, A)
    here = fill(tmp_path / '2' / 'mini', scale)
    for name in results(source):
        if name.startswith('runs/'):
            (here / name).parent.mkdir(parents=True, exist_ok=True)
            (here / name).write_text(json.dumps({'text': 'here'}))
    before = content(here)
    found = gather_units(scale, here, source)
    assert 'is here with another content, and stays' in found[f'train/run/{A}']
    assert 'other weights' in found[RECORD]
    assert TAKEN not in found.values() and content(here) == before


def test_a_record_without_its_run(scale, tmp_path):
    "The weights were not brought along: the record cannot belong to a run here"
    source = fill(tmp_path / '1' / 'mini', scale, A)
    (source / 'runs' / A / 'weights.safetensors').unlink()
    found = gather_units(scale, tmp_path / '2' / 'mini', source)
    assert found[f'train/run/{A}'] == f'there runs/{A}/weights.safetensors is missing'
    assert TAKEN not in found.values()


@pytest.mark.parametrize('part', ['weights.safetensors', 'config.yaml', 'run.json'])
def test_what_was_altered_there_is_not_taken(scale, tmp_path, part):
    source = fill(tmp_path / '1' / 'mini', scale, A)
    (source / 'runs' / A / part).write_text('{"altered": 1}')
    found = gather_units(scale, tmp_path / '2' / 'mini', source)
    assert f'{part} is not as it was noted' in found[f'train/run/{A}']
    assert TAKEN not in found.values()


def test_other_parameters_and_other_code_are_not_taken(scale, tmp_path):
    "The other copy has an entry of other parameters for one record, and of another code for another one"
    source = fill(tmp_path / '1' / 'mini', scale, A, S)
    lock = json.loads((source / 'lock.json').read_text())
    lock['units'][RECORD]['parameters'] = '0' * 12
    lock['units'][f'train/run/{S}']['code'] = '0' * 12
    (source / 'lock.json').write_text(json.dumps(lock))
    (source / 'SHA256SUMS').unlink(missing_ok=True)
    found = gather_units(scale, tmp_path / '2' / 'mini', source)
    assert found[RECORD] == 'it differs from what would be made here: other parameters'
    assert found[f'train/run/{S}'].startswith('it differs from what would be made here: code: ')
    assert found[f'train/run/{A}'] == TAKEN and found[f'white_box/records/{S}'] == f'its run {S} is not here'


@pytest.mark.parametrize('entry', [None, {}, {'files': []}])
def test_files_that_the_lock_there_does_not_know(scale, tmp_path, entry):
    source = fill(tmp_path / '1' / 'mini', scale, A)
    lock = json.loads((source / 'lock.json').read_text())
    lock['units'].pop(RECORD)
    if entry is not None:
        lock['units'][RECORD] = entry
    (source / 'lock.json').write_text(json.dumps(lock))
    (source / 'SHA256SUMS').unlink(missing_ok=True)
    found = gather_units(scale, tmp_path / '2' / 'mini', source)
    assert found[RECORD] == 'the lock there does not know it' and found[f'train/run/{A}'] == TAKEN


def test_a_lock_cannot_name_files_elsewhere(scale, tmp_path):
    source = fill(tmp_path / '1' / 'mini', scale, A)
    (tmp_path / '1' / 'secret').write_text('x')
    lock = json.loads((source / 'lock.json').read_text())
    lock['units'][f'train/run/{A}']['files']['../secret'] = '0' * 16
    (source / 'lock.json').write_text(json.dumps(lock))
    (source / 'SHA256SUMS').unlink(missing_ok=True)
    found = gather_units(scale, tmp_path / '2' / 'mini', source)
    assert 'which is no file of it' in found[f'train/run/{A}']
    assert not (tmp_path / '2' / 'secret').exists()


# The state of a training


def save_state(folder, epoch, run=A, **facts):
    "The state of a training after some epochs"
    recipe = Recipe(epochs=3, batch=10, lr=0.1)
    state = State(build_model('small_cnn'), make_method('at_pgd', eps=0.1), recipe, facts)
    state.begin_epoch(epoch)
    row = dict(lr=0.1, loss=1.0, entropy=0.0, seconds=1.0)
    state.history = [dict(epoch=i + 1, **row) for i in range(epoch)]
    file = folder / 'runs' / run / 'checkpoint.pt'
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(epoch)
    save_checkpoint(state, file, check=True)
    return file.read_bytes()


def test_the_state_that_is_further(scale, tmp_path):
    here, source = tmp_path / '1' / 'mini', tmp_path / '2' / 'mini'
    first, second = save_state(here, 1), save_state(source, 2)
    kept = here / 'runs' / A / 'checkpoint.pt'
    assert first != second
    beginning_file(source, A).parent.mkdir()
    beginning_file(source, A).write_text('["11", {}]')
    assert gather_units(scale, source, here)[f'train/run/{A}'] == HERE
    assert (source / 'runs' / A / 'checkpoint.pt').read_bytes() == second
    assert gather_units(scale, here, source)[f'train/run/{A}'] == STATE_TAKEN
    assert kept.read_bytes() == second
    assert beginning_file(here, A).read_text() == '["11", {}]'
    kept.unlink()
    beginning_file(source, A).unlink()
    assert gather_units(scale, here, source)[f'train/run/{A}'] == STATE_TAKEN and kept.exists()
    assert not beginning_file(here, A).exists()  # it was the beginning of another state


def test_states_of_different_trainings(scale, tmp_path):
    here, source = tmp_path / '1' / 'mini', tmp_path / '2' / 'mini'
    first = save_state(here, 1, train_set='a', threads=[1])
    save_state(source, 2, train_set='b', threads=[2])
    assert 'of different parameters' in gather_units(scale, here, source)[f'train/run/{A}']
    assert (here / 'runs' / A / 'checkpoint.pt').read_bytes() == first
    save_state(source, 2, train_set='a', threads=[2])
    assert gather_units(scale, here, source)[f'train/run/{A}'] == STATE_TAKEN


def test_a_finished_run_ends_its_state(scale, tmp_path):
    "The finished run is taken and the state is gone; no state is taken where the run is finished"
    here, source = tmp_path / '1' / 'mini', fill(tmp_path / '2' / 'mini', scale, A)
    save_state(here, 1)
    beginning_file(here, A).parent.mkdir()
    beginning_file(here, A).touch()
    assert gather_units(scale, here, source)[f'train/run/{A}'] == TAKEN
    assert not beginning_file(here, A).exists()
    assert not (here / 'runs' / A / 'checkpoint.pt').exists()
    third = tmp_path / '3' / 'mini'
    save_state(third, 2)
    assert gather_units(scale, here, third)[f'train/run/{A}'] == HERE
    assert not (here / 'runs' / A / 'checkpoint.pt').exists()


def test_a_damaged_state(scale, tmp_path):
    here, source = tmp_path / '1' / 'mini', tmp_path / '2' / 'mini'
    save_state(source, 2)
    (source / 'runs' / A / 'checkpoint.pt').write_bytes(b'damaged')
    assert 'cannot be read as a state of training' in gather_units(scale, here, source)[f'train/run/{A}']
    assert not (here / 'runs' / A / 'checkpoint.pt').exists()


# Other processes, and the command


def test_a_run_that_is_trained_now_is_left_alone(scale, tmp_path):
    source = fill(tmp_path / '1' / 'mini', scale, A, S)
    run = tmp_path / '2' / 'mini' / 'runs' / A
    run.mkdir(parents=True)
    lock = lock_run(run)
    found = gather_units(scale, run.parents[1], source)
    assert 'another process is training it' in found[f'train/run/{A}']
    assert found[RECORD] == f'its run {A} is not here' and found[f'train/run/{S}'] == TAKEN
    lock.release()
    assert gather_units(scale, run.parents[1], source)[RECORD] == TAKEN


def test_a_scale_that_is_made_now_is_left_alone(scale, tmp_path):
    source, here = fill(tmp_path / '1' / 'mini', scale, A), tmp_path / '2' / 'mini'
    here.mkdir(parents=True)
    lock = lock_file(here / '.snakemake.lock', 'scale', 'making it')
    assert 'another process is making it' in refusal(gather_units, scale, here, source)
    lock.release()
    assert TAKEN in gather_units(scale, here, source).values()


def test_folders_that_cannot_be_meant(scale, tmp_path):
    folder = fill(tmp_path / '1' / 'mini', scale, A)
    assert "source='nothing': expected the folder" in refusal(gather_units, scale, folder, 'nothing')
    assert 'another folder than the one' in refusal(gather_units, scale, folder, folder)
    (folder / 'lock.json').write_text('[]')
    (folder / 'SHA256SUMS').unlink(missing_ok=True)
    assert 'is not a lock' in refusal(gather_units, scale, tmp_path / '2' / 'mini', folder)


def test_the_command_says_what_it_took(scale, tmp_path, monkeypatch, capsys):
    nbs = tmp_path / 'nbs'
    (nbs / 'scales').mkdir(parents=True)
    (nbs / 'scales' / 'mini.yaml').write_text(yaml.safe_dump(MINI))
    monkeypatch.setattr('adt_repro.runs.gather.find_nbs', lambda: nbs)
    sources = [fill(tmp_path / name / 'mini', scale, run) for name, run in (('1', A), ('2', S))]
    here = tmp_path / '3' / 'mini'
    assert main([str(here), *map(str, sources)]) == 0
    said = capsys.readouterr().out
    assert said.count(' units taken, ') == 2 and f'\n  train/run/{S}: taken\n' in said

    (sources[0] / 'runs' / A / 'history.csv').write_text('altered')
    assert main([str(here), str(sources[0])]) == 1
    assert f'train/run/{A}: not taken: there runs/{A}/history.csv is not' in capsys.readouterr().out
    assert main([str(tmp_path / 'unknown'), str(sources[0])]) == 2
    assert capsys.readouterr().err.startswith('folder=')
    assert main([str(here), str(tmp_path / 'nothing')]) == 2
    assert capsys.readouterr().err.count('\n') == 1
