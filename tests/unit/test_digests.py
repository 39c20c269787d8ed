"What was written is what is read: bits that flip, copies without times, other weights, threads, damaged small files"

import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import ROOT, files_of_git, lines_of, refusal, without_digests
from safetensors.torch import load, save

from adt_repro.base.tables import file_digest, note_files, read_table, write_table
from adt_repro.evaluation.cache import in_parts
from adt_repro.evaluation.records import SCHEMA, load_records, save_records
from adt_repro.exchange.export import (
    left_out_records,
    model_card,
    model_info,
    recorded_accuracies,
    run_records,
)
from adt_repro.models.weights import load_weights, save_weights
from adt_repro.paper.evidence import run_table
from adt_repro.runs import store
from adt_repro.runs.config import RULES
from adt_repro.runs.fit import fit_run
from adt_repro.runs.resolve import resolve
from adt_repro.runs.select import chosen_runs, experiment_runs, load_runs_and_digests
from adt_repro.runs.store import (
    load_method,
    load_run,
    read_config,
    read_facts,
    read_history,
    read_runs,
    weights_digest,
)
from adt_repro.runs.sweeps import hinge_curves

CPU_RUN = 'cifar10-small_cnn-at_pgd-s0'
SMALL = dict.fromkeys(RULES) | dict(
    method='adt_imp_am',
    dataset='digits',
    recipe='paper2020',
    seed=0,
    device='cpu',
    scale='mini',
    epochs=1,
    n_train=64,
    n_test=20,
    z_dim=8,
)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "A finished run of a scale, not to be changed"
    return fit_run(resolve(SMALL), tmp_path_factory.mktemp('trained'))


@pytest.fixture
def run(trained, tmp_path):
    "A copy of the scale, and the run in it"
    shutil.copytree(trained.parents[1], tmp_path / 'mini')
    return tmp_path / 'mini' / 'runs' / trained.name


def some_records(name='a', n=40):
    "Records made by hand, of two attacks"
    rows = pd.DataFrame([dict(attack=attack, i=i) for attack in ('natural', 'fgsm') for i in range(n)])
    values = dict(y=3, margin=0.25, loss=1.5, linf=0.1, queries=-1, seed=0, attacked=True, eps=0.15)
    rows = rows.assign(run=name, source=name, pred=rows.i % 10, test_set='0eb9e25e14dc', **values)
    return rows[list(SCHEMA)].astype(SCHEMA)


def flipped(content, rng):
    "Bytes with one bit changed"
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flips(file, read, n=250):
    "How many of n files with one bit changed are refused with a line, or read as something else; and other errors"
    whole, rng, met = file.read_bytes(), random.Random(file.name), dict(refused=0, same=0, believed=0, raw=0)
    expected = read(file)
    for _ in range(n):
        file.write_bytes(flipped(whole, rng))
        line = refusal(lambda: 'the same' if same(read(file), expected) else 'other content')
        met[
            dict([("gave 'the same'", 'same'), ("gave 'other content'", 'believed')]).get(line, kind(line))
        ] += 1
    file.write_bytes(whole)
    assert same(read(file), expected)
    return met


def kind(line):
    "Is it a line of this project, or another error?"
    return 'refused' if 'xpected' in line and '\n' not in line else 'raw'


def same(found, expected):
    "Are two data frames, or two lists of tensors, equal to the bit?"
    if isinstance(expected, pd.DataFrame):
        return found.equals(expected)
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# Bits


def weights_of(file):
    model, _ = load_run(file.parent)
    return list(model.state_dict().values())


def generator_of(file):
    return list(load_method(file.parent).adversary.state_dict().values())


@pytest.mark.parametrize('name, read', [('weights', weights_of), ('adversary', generator_of)])
@pytest.mark.parametrize('listed', [True, False], ids=['listed', 'alone'])
def test_a_bit_of_the_weights(run, name, read, listed):
    "Refused, by run.json or by the scale's list"
    if not listed:
        (run.parents[1] / 'SHA256SUMS').unlink(missing_ok=True)
    met = flips(run / f'{name}.safetensors', read, 63)
    assert met == dict(refused=63, same=0, believed=0, raw=0)


@pytest.mark.parametrize('name', ['config.yaml', 'history.csv', 'run.json'])
def test_a_bit_of_a_small_file(run, name):
    "Refused by whatever reads it"
    read = dict(
        [
            ('config.yaml', lambda: load_run(run)),
            ('history.csv', lambda: hinge_curves({(0.9, 0): run})),
            ('run.json', lambda: read_facts(run)),
        ]
    )[name]
    read()
    whole, rng = (run / name).read_bytes(), random.Random(name)
    lines = []
    for _ in range(30):
        (run / name).write_bytes(flipped(whole, rng))
        lines.append(refusal(read))
    assert not [line for line in lines if kind(line) == 'raw' or name not in line]


def test_a_bit_of_run_json_out_of_its_scale(run):
    "Refused without the scale's list, each bit of the names of digests too; what is accepted says the same"
    (run.parents[1] / 'SHA256SUMS').unlink()
    expected, file, rng = read_facts(run), run / 'run.json', random.Random(5)
    assert load_run(run) and len(expected['file_sha256']['run.json']) == 64
    whole = file.read_bytes()
    names = [whole.index(name) + i for name in (b'file_sha256', b'"run.json"') for i in range(len(name))]
    places = names + [rng.randrange(len(whole)) for _ in range(250)]
    wrong = []
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1 << rng.randrange(8)
        file.write_bytes(changed)
        line = refusal(lambda: read_facts(run) == expected)
        if line != 'gave True' and kind(line) != 'refused':
            wrong.append((place, line))
    assert not wrong
    file.write_text(json.dumps(json.loads(whole)))  # the same in another form
    assert read_facts(run) == expected and load_run(run)


def test_a_run_json_from_before_it_had_a_digest_is_read(run):
    facts = read_facts(run)
    (run.parents[1] / 'SHA256SUMS').unlink()
    del facts['file_sha256']['run.json']
    (run / 'run.json').write_text(json.dumps(facts | dict(seconds=1.5)))
    assert read_facts(run)['seconds'] == 1.5 and load_run(run)


@pytest.mark.parametrize('listed', [True, False], ids=['listed', 'alone'])
def test_a_bit_of_a_record(tmp_path, listed):
    "Refused, or nothing that is read differs"
    file = tmp_path / 'records' / 'white_box-a.parquet'
    save_records(some_records(), file)
    if not listed:
        (tmp_path / 'SHA256SUMS').unlink(missing_ok=True)
    met = flips(file, load_records, 125)
    assert met['believed'] == met['raw'] == 0, met
    assert met['refused'] > 40, met


def test_a_bit_of_a_part(tmp_path):
    "Made again, without a word"
    made = []

    def make(ids):
        made.append(len(ids))
        return some_records(n=int(ids.max()) + 1)

    def rows(folder):
        return in_parts(make, range(10), batch=10, folder=folder, what='flips')

    expected = rows(tmp_path)
    (file,) = tmp_path.glob('*.parquet')
    whole, rng, wrong = file.read_bytes(), random.Random(0), []
    assert rows(tmp_path).equals(expected) and len(made) == 1
    for _ in range(250):
        file.write_bytes(flipped(whole, rng))
        line = refusal(lambda: rows(tmp_path).equals(expected))
        if line != 'gave True':
            wrong.append(line)
    assert not wrong, (len(wrong), wrong[0])
    assert len(made) > 90


def test_a_bit_of_a_frame(tmp_path):
    file = tmp_path / 'frames' / 'soundness.csv'
    write_table(pd.DataFrame(dict(run=['a', 'b'] * 20, check='steps', n=range(40), share=0.25)), file)
    assert flips(file, read_table) == dict(refused=250, same=0, believed=0, raw=0)


def test_what_is_committed_is_what_was_written():
    "As `sha256sum -c`: each committed file of a scale stands once in its list, with the digest that it has"
    listed, tracked = {}, set()
    for sums in sorted((ROOT / 'outputs').glob('*/SHA256SUMS')):
        for line in sums.read_text().splitlines():
            digest, name = line.split('  ', 1)
            file = (sums.parent / name).relative_to(ROOT).as_posix()
            assert file not in listed
            listed[file] = digest
    for name in files_of_git():
        path = Path(name)
        is_listed = (
            path.name not in ('SHA256SUMS', 'checkpoint.pt', '.gitkeep') and path.parent.name != '.locks'
        )
        if path.parts[0] == 'outputs' and is_listed:
            tracked.add(name)
    assert len(tracked) > 600
    assert not sorted(tracked - set(listed))[:5]
    wrong = [
        name for name in tracked if hashlib.sha256((ROOT / name).read_bytes()).hexdigest() != listed[name]
    ]
    assert not wrong


# Which weights a record is of


def committed_copy(folder):
    "A run of outputs/cpu with its records, as a clone has them"
    scale = ROOT / 'outputs' / 'cpu'
    names = [f'records/{part}-{CPU_RUN}.parquet' for part in ('white_box', 'spsa')]
    names += [
        f'runs/{CPU_RUN}/{file.name}' for file in (scale / 'runs' / CPU_RUN).iterdir() if file.is_file()
    ]
    for name in [*names, 'records/weights.json', 'SHA256SUMS']:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(scale / name, folder / name)
    return folder / 'runs' / CPU_RUN


@pytest.mark.parametrize('times', [dict(records=5, runs=5), dict(records=5, runs=9), dict(records=9, runs=5)])
def test_a_card_does_not_depend_on_times(tmp_path, times):
    "Of a fresh clone whose files are all of one time, or of any order"
    run = committed_copy(tmp_path)
    for part, time in times.items():
        for file in (tmp_path / part).rglob('*'):
            os.utime(file, (time, time))
    card = model_card(run)
    assert '| MIM |' in card and 'These attacks: MIM' not in card and 'does not count' not in card


@pytest.mark.parametrize(
    'within, path', [('', '.'), ('..', CPU_RUN), ('../..', f'runs/{CPU_RUN}'), ('', f'../{CPU_RUN}/')]
)
def test_a_relative_path_is_as_good_as_a_whole_one(tmp_path, monkeypatch, within, path):
    "The same card, with the records beside the runs' folder, the same facts and lines"
    run = committed_copy(tmp_path / 'cpu')
    calls = dict(
        card=model_card,
        info=model_info,
        records=lambda run: sorted(file.name for file in run_records(run)),
        accuracies=lambda run: recorded_accuracies(run).to_csv(),
        facts=read_facts,
        config=read_config,
        history=lambda run: read_history(run).to_csv(),
        digest=lambda run: refusal(weights_digest, run),
        network=lambda run: refusal(load_run, run),
    )
    whole = {name: call(run) for name, call in calls.items()}
    assert 'MIM' in whole['card'].split('## Not run')[0] and len(whole['records']) == 2
    monkeypatch.chdir(run / within)
    assert {name: call(path) for name, call in calls.items()} == whole


def test_a_relative_path_of_a_scale(run, monkeypatch):
    "Its name is that of the folder: no run is made at a scale called ''"
    scale = run.parents[1]
    whole = refusal(chosen_runs, scale, ['x']), refusal(experiment_runs, scale, None)
    monkeypatch.chdir(scale)
    assert (refusal(chosen_runs, '.', ['x']), refusal(experiment_runs, '.', None)) == whole
    shutil.rmtree(run)
    assert "scale='mini': expected one with finished runs" in refusal(experiment_runs, '.', None)
    assert "runs='x': expected a finished run, but there is none with weights" in refusal(
        chosen_runs, '.', ['x']
    )


def test_a_record_of_other_weights_does_not_count(run):
    "Nor one of which it is not known; the one that is of these weights does"
    record = run.parents[1] / 'records' / f'white_box-{run.name}.parquet'
    record.parent.mkdir()
    digest = weights_digest(run)
    rows, counted = some_records(run.name, 20), {}
    for weights in digest, '0' * 64, None:
        save_records(rows, record, weights and {run.name: weights})
        counted[weights] = '| FGSM |' in model_card(run)
    assert counted == {digest: True, '0' * 64: False, None: False}
    assert 'does not count: it is not known' in model_card(run)


def other_weights(run):
    "The content of a file of weights of the same network, with one bias changed"
    model, _ = load_run(run)
    with torch.no_grad():
        model.fc.bias += 1
    return save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})


def test_an_old_record_counts_for_the_weights_that_it_is_bound_to(tmp_path):
    "And not for others, whatever the times and the scale's list say"
    run = committed_copy(tmp_path)
    before = (run / 'weights.safetensors').read_bytes()
    assert '| MIM |' in model_card(run)
    (run / 'weights.safetensors').write_bytes(other_weights(run))
    os.utime(run / 'weights.safetensors', (5, 5))
    line = refusal(model_card, run)
    assert 'weights.safetensors: its SHA-256 is' in line and '\n' not in line
    note_files(tmp_path)
    card = model_card(run)
    assert '| MIM |' not in card and card.count('does not count: it is of other weights') == 2
    (tmp_path / 'SHA256SUMS').unlink()
    assert model_card(run) == card
    (run / 'weights.safetensors').write_bytes(before)
    note_files(tmp_path)
    assert '| MIM |' in model_card(run)


def test_a_new_record_without_weights_counts_for_none(tmp_path):
    "Not even in the place of a committed one, with the scale's list noted anew"
    run = committed_copy(tmp_path)
    record = tmp_path / 'records' / f'white_box-{run.name}.parquet'
    rows = load_records(record)
    save_records(rows, record)
    note_files(tmp_path)
    card = model_card(run)
    assert '| MIM |' not in card and f'{record.name} does not count: it is not known' in card
    save_records(rows, record, {run.name: weights_digest(run)})
    assert '| MIM |' in model_card(run)


@pytest.mark.parametrize('content', ['{}', '[]', '{"DIGEST": 3}', '{"DIGEST": {"a": "high"}}', '', '\0'])
def test_a_damaged_list_of_weights(tmp_path, content):
    "One line that names it, or records of which it is not known"
    run = committed_copy(tmp_path)
    listed = tmp_path / 'records' / 'weights.json'
    digest = file_digest(tmp_path / 'records' / f'white_box-{CPU_RUN}.parquet')
    listed.write_text(content.replace('DIGEST', digest))
    assert 'records/weights.json: its SHA-256 is' in refusal(model_card, run)
    note_files(tmp_path)
    line = refusal(model_card, run)
    if content == '{}':
        assert 'does not count: it is not known' in line and '| MIM |' not in line
    else:
        assert line.startswith('records/weights.json') and '\n' not in line and 'expected' in line, line


def test_every_committed_record_is_bound():
    "Of a run whose weights are committed too"
    for run in sorted((ROOT / 'outputs' / 'cpu' / 'runs').iterdir()):
        records = run_records(run)
        assert records and left_out_records(records) == [], run.name


def test_a_record_is_of_the_weights_that_were_loaded(run, monkeypatch):
    "Also where another process puts other weights there in the meantime"
    file = run / 'weights.safetensors'
    before, other = file.read_bytes(), other_weights(run)
    without_digests(run)

    def load_late(*given):
        file.write_bytes(other)
        return load_weights(*given)

    monkeypatch.setattr(store, 'load_weights', load_late)
    models, _, digests = load_runs_and_digests(run.parents[1], [run.name], torch.device('cpu'))
    assert file.read_bytes() == other
    assert digests == {run.name: hashlib.sha256(before).hexdigest()}
    assert torch.equal(models[run.name].fc.bias, load(before)['fc.bias'])


def test_saved_weights_are_noted_at_once(run):
    "A kill right after they are written leaves weights that can be read"
    model, _ = load_run(run)
    without_digests(run)
    note_files(run.parents[1])
    with torch.no_grad():
        model.fc.bias += 1
    save_weights(model, run / 'weights.safetensors')
    assert refusal(lambda: torch.equal(load_run(run)[0].fc.bias, model.fc.bias)) == 'gave True'


def test_a_card_reads_each_record_once(run, monkeypatch):
    "And takes the digest of the weights once"
    record = run.parents[1] / 'records' / f'white_box-{run.name}.parquet'
    save_records(some_records(run.name, 20), record, {run.name: weights_digest(run)})
    read = []

    def counted(call):
        def noted(path, *more):
            read.append(Path(path).name)
            return call(path, *more)

        return noted

    for name in 'read_record', 'file_digest':
        monkeypatch.setattr(store, name, counted(getattr(store, name)))
    assert '| FGSM |' in model_card(run)
    assert read.count(record.name) == read.count('weights.safetensors') == 1


# Threads


@pytest.fixture
def threads():
    "Sets the number of threads; the test's own number is set again at the end"
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def stop_and_go_on(outputs, threads, first, second, **how):
    "The lines on threads, and what run.json says, of a run that goes on with another number"
    config = resolve(SMALL | dict(method='standard', z_dim=None, epochs=2))
    threads(first)
    folder = fit_run(config, outputs, max_minutes=1e-9)
    assert (folder / 'checkpoint.pt').exists()
    threads(second)
    lines = [line for line in lines_of(fit_run, config, outputs, **how) if 'threads' in line]
    return lines, read_facts(folder).get('threads')


def test_another_number_of_threads_is_noted(tmp_path, threads):
    "The run goes on, with one line, and run.json has both numbers; nothing is said where it is the same"
    lines, noted = stop_and_go_on(tmp_path / 'a', threads, 1, 2)
    assert noted == [1, 2]
    (line,) = lines
    assert 'begun with 1 CPU threads and continued with 2 CPU threads' in line and '\n' not in line
    assert stop_and_go_on(tmp_path / 'b', threads, 1, 1) == ([], [1])
    lines, noted = stop_and_go_on(tmp_path / 'c', threads, 2, 1, fresh='changed')
    assert noted == [2, 1] and len(lines) == 1  # it was not begun anew
    assert stop_and_go_on(tmp_path / 'd', threads, 2, 1, fresh=True) == ([], [1])


# Small files of a finished run

RESULT = dict(attack='fgsm', n=20, correct=10, accuracy=0.5, lo=0.3, hi=0.7)
BAD_FACTS = dict(
    eps_text=dict(eps='high'),
    eps_large=dict(eps=7),
    seed=dict(seed='zero'),
    seed_list=dict(seed=[0]),
    run=dict(run=3),
    method=dict(method=['adt_exp']),
    results_number=dict(results=3),
    results_table=dict(results=dict(fgsm=0.5)),
    results_text=dict(results=['fgsm']),
    attack=dict(results=[RESULT | dict(attack=None)]),
    n=dict(results=[RESULT | dict(n='20')]),
    no_images=dict(results=[RESULT | dict(n=0)]),
    correct=dict(results=[RESULT | dict(correct=True)]),
    accuracy=dict(results=[RESULT | dict(accuracy=1.5)]),
    accuracy_text=dict(results=[RESULT | dict(accuracy='good')]),
    not_so=dict(results=[RESULT | dict(accuracy=0.9)]),
    nan=dict(results=[RESULT | dict(accuracy=float('nan'))]),
    interval=dict(results=[RESULT | dict(lo='low')]),
    versions=dict(versions='new'),
    seconds=dict(seconds='long'),
    threads=dict(threads=2),
)


@pytest.mark.parametrize('bad', BAD_FACTS.values(), ids=BAD_FACTS)
def test_facts_that_cannot_be(run, bad):
    "One line that names run.json and the entry, from each reader"
    without_digests(run)
    facts = json.loads((run / 'run.json').read_text()) | dict(results=[RESULT])
    (run / 'run.json').write_text(json.dumps(facts))
    assert len(read_runs(run.parent)) == len(run_table(run.parents[1])) == 1 and load_run(run)
    (run / 'run.json').write_text(json.dumps(facts | bad))
    for read, folder in (
        (read_facts, run),
        (read_runs, run.parent),
        (run_table, run.parents[1]),
        (load_run, run),
    ):
        line = refusal(read, folder)
        assert kind(line) == 'refused' and 'run.json' in line, line
        assert next(iter(bad)) in line or 'NaN' in line, line


@pytest.mark.parametrize('name', ['run.json', 'config.yaml', 'history.csv'])
@pytest.mark.parametrize('content', [b'', b'[1, 2]', b'3', b'\xff\xfea\0', b'null', 'cut'], ids=repr)
def test_small_files_that_are_damaged(run, name, content):
    "Cut off, empty, of another form: one line that names the file, for a run without digests"
    without_digests(run)
    whole = (run / name).read_bytes()
    (run / name).write_bytes(whole[: len(whole) * 2 // 3] if content == 'cut' else content)
    read = dict(
        [('history.csv', lambda: hinge_curves({(0.9, 0): run})), ('run.json', lambda: read_runs(run.parent))]
    ).get(name, lambda: load_run(run))
    line = refusal(read)
    if name == 'config.yaml' and content == b'null':
        return  # an empty config.yaml is valid: all its parameters are defaults
    assert '\n' not in line and not line.startswith('gave'), line
    assert name in line or 'expected' in line, line


# Records that no evaluation can have found

BAD_ROWS = dict(
    eps_inf=dict(eps=float('inf')),
    eps_nan=dict(eps=float('nan')),
    eps_zero=dict(eps=0.0, linf=0.0),
    eps_large=dict(eps=1.5),
    linf_negative=dict(linf=-0.1),
    linf_nan=dict(linf=float('nan')),
    loss_nan=dict(loss=float('nan')),
    loss_inf=dict(loss=float('inf')),
    image=dict(i=-1),
    label=dict(y=-1),
    label_large=dict(y=10**6),
    class_large=dict(pred=10**6),
    queries=dict(queries=-2),
    seed=dict(seed=-1),
    text=dict(attack=None),
    two_labels=dict(y=4),
)


@pytest.mark.parametrize('bad', BAD_ROWS.values(), ids=BAD_ROWS)
def test_records_that_cannot_be(tmp_path, bad):
    "Refused where they are read, in a plain Parquet file without a digest; in the good file all rows are read"
    rows, file = some_records(), tmp_path / 'x.parquet'
    rows.to_parquet(file)
    assert load_records(file).equals(rows)
    for column, value in bad.items():
        if column == 'eps':
            rows[column] = value
        else:
            rows.loc[rows.index[-1], column] = value
    rows.to_parquet(file)
    line = refusal(load_records, file)
    assert (
        'x.parquet: ' in line and '\n' not in line and next(iter(bad)).replace('eps', 'ε') in words(line)
    ), line


def words(line):
    "A line with the names of the columns that its words are about"
    for word, column in dict(distance='linf loss', moved='linf', labels='y').items():
        if word in line:
            line += f' {column}'
    return line


def bombs():
    "Name to a table that is small as a file and large in memory"
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 1100, pa.int8()), ['x' * 10**6])
    return dict(
        text=pa.table(dict(a=pa.chunked_array([repeated]))),
        rows=pa.table(dict(a=pa.nulls(2 * 10**8, pa.int8()))),
        columns=pa.table({f'c{i}': [1] for i in range(1000)}),
        nested=pa.table(dict(a=[[[1]]])),
    )


@pytest.mark.parametrize('name', ['text', 'rows', 'columns', 'nested'])
def test_parquet_that_asks_for_much(tmp_path, name):
    "Known from the footer, or before the rows are put together"
    file = tmp_path / 'x.parquet'
    pq.write_table(bombs()[name], file, store_schema=False)
    assert file.stat().st_size < 1_000_000
    line = refusal(load_records, file)
    assert 'expected flat columns, and at most' in line and '\n' not in line, line
