"Gathering the files of a scale from other copies: only what would come out again here, and nothing is replaced"

import json
import shutil

import pandas as pd
import pytest
import yaml
from helpers import MINI, refusal

from adt_repro.base.files import lock_file
from adt_repro.base.tables import read_bytes, write_text
from adt_repro.methods.table import make_method
from adt_repro.models.classifiers import build_model
from adt_repro.runs import gather
from adt_repro.runs import lock as locks
from adt_repro.runs.config import RULES
from adt_repro.runs.gather import (
    ADOPTED,
    HERE,
    NOT_THERE,
    OTHER_FILES,
    STATE_TAKEN,
    TAKEN,
    gather_units,
    gathered_lines,
    main,
    unplanned_files,
)
from adt_repro.runs.lock import adopt_units, beginning_file, read_lock, stale_units
from adt_repro.runs.made_from import Present, made_from, planned_units, read_parameters
from adt_repro.runs.resolve import resolve
from adt_repro.runs.scales import read_scale
from adt_repro.runs.store import lock_run, save_run
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


@pytest.fixture(scope='module')
def trained(scale, tmp_path_factory):
    "By run, a folder as a training leaves it, with a network that was not trained"
    found = {}
    for unit, given in planned_units(scale):
        if unit.notebook == 'train':
            (run,) = unit.runs
            config = resolve({name: read_parameters('train', given)[name] for name in RULES})
            found[run] = tmp_path_factory.mktemp('trained') / 'mini' / 'runs' / run
            found[run].mkdir(parents=True)
            history = pd.DataFrame([dict(epoch=1, lr=0.1, loss=1.0, entropy=0.0, seconds=1.0)])
            save_run(found[run], build_model('small_cnn'), None, config, history, train_set='a', test_set='b')
    return found


@pytest.fixture
def fill(scale, trained):
    "A function that fills a folder: runs, with examples of what is made of them, and with `whole` of the scale"

    def fill(folder, *runs, whole=False):
        for unit, _ in planned_units(scale):
            own = unit.name.rpartition('/')[2]
            if unit.notebook == 'train' and own in runs:
                shutil.copytree(trained[own], folder / 'runs' / own)
            elif own in runs or (whole and own not in (A, S)):
                for name in unit.files:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_text(f'an example of {name}')
        adopt_units(scale, folder, 'examples')
        return folder

    return fill


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


def test_two_halves_are_a_whole(scale, tmp_path, fill):
    "Each of two machines has one run; together they are what one machine with both runs has"
    first = fill(tmp_path / '1' / 'mini', A)
    second = fill(tmp_path / '2' / 'mini', S)
    both = fill(tmp_path / 'both' / 'mini', A, S)
    found = gather_units(scale, first, second)
    assert set(states(found).values()) == {ADOPTED}
    assert all(name.endswith(S) for name in states(found))
    assert results(first) == results(both)
    assert set(stale_units(scale, first)) == set(stale_units(scale, both))
    assert set(read_lock(first)['units']) == set(read_lock(both)['units'])
    for name in results(first):
        read_bytes(first / name)  # what the list of digests says


def test_a_whole_scale_comes_whole(scale, tmp_path, fill):
    "Files that are made from all records are taken if all records are here afterwards"
    source = fill(tmp_path / '1' / 'mini', A, S, whole=True)
    assert set(gather_units(scale, tmp_path / '2' / 'mini', source).values()) == {ADOPTED}
    assert stale_units(scale, tmp_path / '2' / 'mini') == {}


def test_a_report_of_fewer_runs_is_made_again(scale, tmp_path, fill):
    source = fill(tmp_path / '1' / 'mini', S, whole=True)
    here = fill(tmp_path / '2' / 'mini', A)
    found = gather_units(scale, here, source)
    assert found[f'white_box/records/{S}'] == ADOPTED
    assert found['paper/claims'] == OTHER_FILES and not (here / 'tables' / 'claims.csv').exists()
    assert gathered_lines(found)[0].endswith(', refused: 0')
    assert 'paper/claims' in gathered_lines(found)[-1] and gathered_lines(found)[-1].endswith(OTHER_FILES)


def test_a_second_time_changes_nothing(scale, tmp_path, fill):
    source = fill(tmp_path / '1' / 'mini', A)
    here = tmp_path / '2' / 'mini'
    gather_units(scale, here, source)
    before = content(here)
    assert set(states(gather_units(scale, here, source)).values()) == {HERE}
    assert content(here) == before


def test_files_that_were_copied_by_hand_are_noted(scale, tmp_path, fill):
    source = fill(tmp_path / '1' / 'mini', A)
    here = tmp_path / '2' / 'mini'
    for name in results(source):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, here / name)
    assert f'train/run/{A}' in stale_units(scale, here)
    assert set(states(gather_units(scale, here, source)).values()) == {ADOPTED}
    assert not any(name.endswith(A) for name in stale_units(scale, here))


def test_own_files_stay(scale, tmp_path, fill):
    "A run that both have trained: its own weights stay, and no record of the other weights is taken"
    source = fill(tmp_path / '1' / 'mini', A)
    here = fill(tmp_path / '2' / 'mini')
    for name in results(source):
        if name.startswith('runs/'):
            (here / name).parent.mkdir(parents=True, exist_ok=True)
            (here / name).write_text(json.dumps({'text': 'here'}))
    before = content(here)
    found = gather_units(scale, here, source)
    assert 'is here with another content, and stays' in found[f'train/run/{A}']
    assert 'other weights' in found[RECORD]
    assert not {TAKEN, ADOPTED} & set(found.values()) and content(here) == before


def test_a_record_without_its_run(scale, tmp_path, fill):
    "The weights were not brought along: the record cannot belong to a run here"
    source = fill(tmp_path / '1' / 'mini', A)
    (source / 'runs' / A / 'weights.safetensors').unlink()
    found = gather_units(scale, tmp_path / '2' / 'mini', source)
    assert found[f'train/run/{A}'] == f'there runs/{A}/weights.safetensors is missing'
    assert not {TAKEN, ADOPTED} & set(found.values())


@pytest.mark.parametrize('part', ['weights.safetensors', 'config.yaml', 'run.json'])
def test_what_was_altered_there_is_not_taken(scale, tmp_path, part, fill):
    source = fill(tmp_path / '1' / 'mini', A)
    (source / 'runs' / A / part).write_text('{"altered": 1}')
    found = gather_units(scale, tmp_path / '2' / 'mini', source)
    assert f'{part} is not as it was noted' in found[f'train/run/{A}']
    assert found[RECORD] == f'its run {A} is not here'
    assert not {TAKEN, ADOPTED} & set(found.values())


def test_other_parameters_and_other_code_are_not_taken(scale, tmp_path, fill):
    "The other copy has an entry of other parameters for one record, and of another code for another one"
    source = fill(tmp_path / '1' / 'mini', A, S)
    lock = json.loads((source / 'lock.json').read_text())
    lock['units'][RECORD]['parameters'] = '0' * 12
    lock['units'][f'train/run/{S}']['code'] = '0' * 12
    (source / 'lock.json').write_text(json.dumps(lock))
    (source / 'SHA256SUMS').unlink(missing_ok=True)
    found = gather_units(scale, tmp_path / '2' / 'mini', source)
    assert found[RECORD] == 'it differs from what would be made here: other parameters'
    assert found[f'train/run/{S}'].startswith('it differs from what would be made here: code: ')
    assert (
        found[f'train/run/{A}'] == ADOPTED and found[f'white_box/records/{S}'] == f'its run {S} is not here'
    )


@pytest.mark.parametrize('entry', [None, {}, {'files': []}, {'files': {}, 'rows': []}])
def test_files_that_the_lock_there_does_not_know(scale, tmp_path, entry, fill):
    source = fill(tmp_path / '1' / 'mini', A)
    lock = json.loads((source / 'lock.json').read_text())
    lock['units'].pop(RECORD)
    if entry is not None:
        lock['units'][RECORD] = entry
    (source / 'lock.json').write_text(json.dumps(lock))
    (source / 'SHA256SUMS').unlink(missing_ok=True)
    found = gather_units(scale, tmp_path / '2' / 'mini', source)
    assert found[RECORD] == 'the lock there does not know it' and found[f'train/run/{A}'] == ADOPTED


def test_a_lock_cannot_name_files_elsewhere(scale, tmp_path, fill):
    source = fill(tmp_path / '1' / 'mini', A)
    (tmp_path / '1' / 'secret').write_text('x')
    lock = json.loads((source / 'lock.json').read_text())
    lock['units'][f'train/run/{A}']['files']['../secret'] = '0' * 16
    (source / 'lock.json').write_text(json.dumps(lock))
    (source / 'SHA256SUMS').unlink(missing_ok=True)
    found = gather_units(scale, tmp_path / '2' / 'mini', source)
    assert 'which is no file of it' in found[f'train/run/{A}']
    assert not (tmp_path / '2' / 'secret').exists()


# Which run it is


def test_a_run_of_another_scale_or_seed(scale, tmp_path, fill):
    "Its lock was adopted; its own config.yaml says which run it is"
    for name, value in dict(scale='other', seed=7).items():
        source = fill(tmp_path / name / 'mini', A)
        config = source / 'runs' / A / 'config.yaml'
        config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {name: value}))
        facts = json.loads((source / 'runs' / A / 'run.json').read_text())
        del facts['file_sha256']
        (source / 'runs' / A / 'run.json').write_text(json.dumps(facts))
        (source / 'SHA256SUMS').unlink(missing_ok=True)
        adopt_units(scale, source, 'examples')
        found = gather_units(scale, tmp_path / f'to-{name}' / 'mini', source)
        assert found[f'train/run/{A}'].startswith(f'there it is another run: {name}={value!r} and not ')
        assert found[RECORD] == f'its run {A} is not here'


def test_weights_that_run_json_does_not_know(scale, tmp_path, fill):
    source = fill(tmp_path / '1' / 'mini', A, S)
    shutil.copy(source / 'runs' / S / 'weights.safetensors', source / 'runs' / A / 'weights.safetensors')
    with (source / 'runs' / A / 'weights.safetensors').open('ab') as file:
        file.write(b' ')
    (source / 'SHA256SUMS').unlink(missing_ok=True)
    adopt_units(scale, source, 'examples')
    found = gather_units(scale, tmp_path / '2' / 'mini', source)
    assert 'its weights.safetensors is not what its run.json says' in found[f'train/run/{A}']
    assert found[f'train/run/{S}'] == ADOPTED


def test_what_was_made_there_is_not_said_to_be_adopted(scale, tmp_path, fill):
    source = fill(tmp_path / '1' / 'mini', A)
    lock = json.loads((source / 'lock.json').read_text())
    del lock['units'][f'train/run/{A}']['adopted']
    (source / 'lock.json').write_text(json.dumps(lock))
    (source / 'SHA256SUMS').unlink(missing_ok=True)
    found = gather_units(scale, tmp_path / '2' / 'mini', source)
    assert (found[f'train/run/{A}'], found[RECORD]) == (TAKEN, ADOPTED)


# The state of a training


@pytest.fixture
def save_state(scale):
    "A function that writes the state of a training after some epochs, and from which code it began"

    def save(folder, epoch, run=A, **facts):
        recipe = Recipe(epochs=3, batch=10, lr=0.1)
        state = State(build_model('small_cnn'), make_method('at_pgd', eps=0.1), recipe, facts)
        state.begin_epoch(epoch)
        row = dict(lr=0.1, loss=1.0, entropy=0.0, seconds=1.0)
        state.history = [dict(epoch=i + 1, **row) for i in range(epoch)]
        file = folder / 'runs' / run / 'checkpoint.pt'
        file.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(state, file, check=True)
        unit, given = next(found for found in planned_units(scale) if found[0].name == f'train/run/{run}')
        facts, definitions = made_from(gather.Present(folder), unit, given)
        beginning_file(folder, run).parent.mkdir(exist_ok=True)
        beginning_file(folder, run).write_text(json.dumps([facts['code'], definitions]))
        return file.read_bytes()

    return save


@pytest.fixture
def here(tmp_path):
    return tmp_path / 'here' / 'mini'


@pytest.fixture
def there(tmp_path):
    return tmp_path / 'there' / 'mini'


def of_run(scale, folder, source, run=A):
    "What becomes of a run"
    return gather_units(scale, folder, source)[f'train/run/{run}']


def test_the_later_state(scale, here, there, save_state):
    first, second = save_state(here, 1), save_state(there, 2)
    kept = here / 'runs' / A / 'checkpoint.pt'
    assert first != second
    assert of_run(scale, there, here) == HERE
    assert (there / 'runs' / A / 'checkpoint.pt').read_bytes() == second
    assert of_run(scale, here, there) == STATE_TAKEN and kept.read_bytes() == second
    assert of_run(scale, here, there) == HERE
    kept.unlink()
    assert of_run(scale, here, there) == STATE_TAKEN and kept.exists()


def test_the_beginning_comes_with_its_state(scale, here, there, save_state):
    "Also if a command was killed before it could bring it"
    save_state(there, 2)
    assert of_run(scale, here, there) == STATE_TAKEN
    assert beginning_file(here, A).read_bytes() == beginning_file(there, A).read_bytes()
    beginning_file(here, A).unlink()
    assert of_run(scale, here, there) == STATE_TAKEN and beginning_file(here, A).exists()


def test_a_state_without_its_beginning_or_of_other_code(scale, here, there, save_state):
    save_state(there, 2)
    code, definitions = json.loads(beginning_file(there, A).read_text())
    other = definitions | {'methods.table._at_pgd': '0' * 12}
    beginning_file(there, A).write_text(json.dumps(['0' * 12, other]))
    assert of_run(scale, here, there) == 'its training began from other code: methods.table._at_pgd'
    beginning_file(there, A).unlink()
    assert f'begun-{A}.json is missing, which belongs to its state' in of_run(scale, here, there)
    assert not (here / 'runs' / A / 'checkpoint.pt').exists()


def test_the_state_of_another_run(scale, here, there, save_state):
    save_state(there, 2, seed=5)
    assert of_run(scale, here, there) == 'there its state is of another run: seed=5 and not 0'
    assert not (here / 'runs' / A / 'checkpoint.pt').exists()


def test_states_of_different_trainings(scale, here, there, save_state):
    first = save_state(here, 1, train_set='a', threads=[1])
    save_state(there, 2, train_set='b', threads=[2])
    assert 'of different data' in of_run(scale, here, there)
    assert (here / 'runs' / A / 'checkpoint.pt').read_bytes() == first
    save_state(there, 2, train_set='a', threads=[2])
    assert of_run(scale, here, there) == STATE_TAKEN


def test_a_finished_run_ends_its_state(scale, tmp_path, here, fill, save_state):
    "The finished run is taken and the state is gone; no state is taken where the run is finished"
    source, third = fill(tmp_path / '2' / 'mini', A), tmp_path / '3' / 'mini'
    save_state(here, 1)
    save_state(third, 2)
    assert of_run(scale, here, source) == ADOPTED
    assert not (here / 'runs' / A / 'checkpoint.pt').exists() and not beginning_file(here, A).exists()
    assert of_run(scale, here, third) == HERE
    assert not (here / 'runs' / A / 'checkpoint.pt').exists()


def test_the_state_of_another_training_does_not_give_way(scale, tmp_path, here, fill, save_state):
    before = save_state(here, 1, seed=5)
    assert 'here is a state of another training: seed=5' in of_run(
        scale, here, fill(tmp_path / '2' / 'mini', A)
    )
    assert (here / 'runs' / A / 'checkpoint.pt').read_bytes() == before


def test_a_damaged_state(scale, here, there, save_state):
    save_state(there, 2)
    save_state(here, 1)
    file, kept = (folder / 'runs' / A / 'checkpoint.pt' for folder in (there, here))
    kept.write_bytes(b'damaged')
    assert of_run(scale, here, there).endswith('; to take the other one, delete it')
    kept.unlink()
    file.write_bytes(b'damaged')
    assert 'cannot be read as a state of training' in of_run(scale, here, there)
    assert not kept.exists()


# Other processes, and the command


def test_a_run_that_is_trained_now_is_left_alone(scale, tmp_path, fill):
    source = fill(tmp_path / '1' / 'mini', A, S)
    run = tmp_path / '2' / 'mini' / 'runs' / A
    run.mkdir(parents=True)
    lock = lock_run(run)
    found = gather_units(scale, run.parents[1], source)
    assert 'another process is training it' in found[f'train/run/{A}']
    assert found[RECORD] == f'its run {A} is not here' and found[f'train/run/{S}'] == ADOPTED
    lock.release()
    assert gather_units(scale, run.parents[1], source)[RECORD] == ADOPTED


def test_a_scale_that_is_made_now_is_left_alone(scale, tmp_path, fill):
    source, here = fill(tmp_path / '1' / 'mini', A), tmp_path / '2' / 'mini'
    here.mkdir(parents=True)
    lock = lock_file(here / '.snakemake.lock', 'scale', 'making it')
    assert 'another process is making it' in refusal(gather_units, scale, here, source)
    lock.release()
    assert ADOPTED in gather_units(scale, here, source).values()


def test_one_file_that_cannot_be_read(scale, tmp_path, fill, monkeypatch):
    "Its unit is refused with one line, and all others are taken"
    source = fill(tmp_path / '1' / 'mini', A, S)

    def read(path, most):
        if path.name == f'white_box-{A}.parquet':
            raise PermissionError(13, 'Permission denied', str(path))
        return read_bytes(path, most)

    monkeypatch.setattr(gather, 'read_bytes', read)
    found = gather_units(scale, tmp_path / '2' / 'mini', source)
    assert 'Permission denied, expected files and folders of your own' in found[RECORD]
    assert found[f'train/run/{A}'] == found[f'white_box/records/{S}'] == ADOPTED


def test_what_is_no_file_stays_in_its_place(scale, tmp_path, fill):
    source, here = fill(tmp_path / '1' / 'mini', A), tmp_path / '2' / 'mini'
    (here / 'records').mkdir(parents=True)
    link = here / 'records' / f'white_box-{A}.parquet'
    link.symlink_to(tmp_path / 'nowhere')
    found = gather_units(scale, here, source)
    assert 'is here with another content, and stays' in found[RECORD] and link.is_symlink()
    assert found[f'train/run/{A}'] == ADOPTED


def test_folders_that_cannot_be_meant(scale, tmp_path, fill):
    folder = fill(tmp_path / '1' / 'mini', A)
    assert "source='nothing': expected the folder" in refusal(gather_units, scale, folder, 'nothing')
    assert 'another folder than the one' in refusal(gather_units, scale, folder, folder)
    assert 'there is no lock.json in it' in refusal(gather_units, scale, folder, tmp_path)
    (tmp_path / 'file').touch()
    assert 'expected files and folders of your own' in refusal(gather_units, scale, tmp_path / 'file', folder)
    (folder / 'lock.json').write_text('[]')
    (folder / 'SHA256SUMS').unlink(missing_ok=True)
    assert 'is not a lock' in refusal(gather_units, scale, tmp_path / '2' / 'mini', folder)


def test_the_command_says_what_it_took(scale, tmp_path, fill, monkeypatch, capsys):
    nbs = tmp_path / 'nbs'
    (nbs / 'scales').mkdir(parents=True)
    (nbs / 'scales' / 'mini.yaml').write_text(yaml.safe_dump(MINI))
    monkeypatch.setattr('adt_repro.runs.gather.find_nbs', lambda: nbs)
    sources = [fill(tmp_path / name / 'mini', run) for name, run in (('1', A), ('2', S))]
    here = tmp_path / '3' / 'mini'
    assert main([str(here), str(sources[0]), str(tmp_path / 'nothing')]) == 2
    assert capsys.readouterr().err.count('\n') == 1 and not here.exists()  # checked before anything is taken
    assert main([str(tmp_path / 'unknown'), str(sources[0])]) == 2
    assert capsys.readouterr().err.startswith('folder=')

    assert main([str(here), *map(str, sources)]) == 0
    said = capsys.readouterr().out
    assert said.count('units taken: ') == 2 and f'\n  {S}: train/run, white_box/records, ' in said
    assert gathered_lines(gather_units(scale, here, sources[0]))[0].startswith('units taken: 0, ')

    (sources[0] / 'runs' / A / 'history.csv').write_text('altered')
    assert main([str(here), str(sources[0])]) == 1
    said = capsys.readouterr().out
    assert f'\n  {A}: train/run: refused: there runs/{A}/history.csv is not as it was noted' in said


def test_files_of_no_plan_are_named(scale, tmp_path, fill, capsys):
    source = fill(tmp_path / '1' / 'mini', A)
    write_text(source / 'tables' / 'pilot.csv', 'a\n')
    assert unplanned_files(scale, source) == ['tables/pilot.csv']
    assert gather._gather_and_say(scale, tmp_path / '2' / 'mini', source)
    assert 'because no plan of the scale has them: tables/pilot.csv' in capsys.readouterr().out
    assert not (tmp_path / '2' / 'mini' / 'tables' / 'pilot.csv').exists()
