"Writing: nothing leaves its folder, two writers do not meet, a full disk costs nothing, and locks say who holds them"

import ast
import errno
import fcntl
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import filelock
import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from helpers import ROOT, cells_of, refusal

from adt_repro.analysis.style import save_figure
from adt_repro.base.files import lock_file, replacing
from adt_repro.base.parameters import ParameterError
from adt_repro.base.tables import read_sums
from adt_repro.evaluation.records import SCHEMA, save_records
from adt_repro.models.classifiers import build_model
from adt_repro.models.weights import save_weights
from adt_repro.runs.config import RULES
from adt_repro.runs.resolve import resolve, start_run
from adt_repro.runs.store import (
    close_outputs,
    load_run,
    lock_run,
    open_outputs,
    run_facts,
    run_folder,
    save_run,
)
from adt_repro.training.state import State, save_checkpoint

CPU = torch.device('cpu')
CONFIG = resolve(
    dict.fromkeys(RULES)
    | dict(method='standard', dataset='digits', recipe='paper2020', seed=0, device='cpu', scale='mini')
    | dict(epochs=1, n_train=64, n_test=20)
)


def bytes_to(file):
    with replacing(file) as f:
        f.write(b'new')


def row():
    "One row of records"
    values = dict(str='a', int64=0, float64=0.0, bool=True)
    return pd.DataFrame({name: [values[kind]] for name, kind in SCHEMA.items()}).assign(eps=0.1, queries=-1)


def figure_to(folder):
    save_figure(plt.figure(), folder, 'a', pd.DataFrame(dict(x=[1])))


def checkpoint_to(folder):
    data, model, method, recipe = start_run(CONFIG, CPU)
    save_checkpoint(State(model, method, recipe, run_facts(CONFIG, data)), folder / 'checkpoint.pt')


def run_to(folder):
    save_run(folder, build_model('small_cnn', 1, 10), None, CONFIG, pd.DataFrame(dict(epoch=[1])))


# A writer of the project, and the files that it makes in a folder
WRITERS = {
    'replacing': (lambda folder: bytes_to(folder / 'a.bin'), ['a.bin']),
    'records': (lambda folder: save_records(row(), folder / 'a.parquet'), ['a.parquet']),
    'weights': (
        lambda folder: save_weights(build_model('small_cnn', 1, 10), folder / 'a.safetensors'),
        ['a.safetensors'],
    ),
    'figure': (figure_to, ['figures/a.svg', 'figures/a.png', 'frames/a.csv']),
    'checkpoint': (checkpoint_to, ['checkpoint.pt']),
    'run': (run_to, ['config.yaml', 'history.csv', 'weights.safetensors', 'run.json']),
}


@pytest.mark.parametrize('writer', WRITERS)
@pytest.mark.parametrize('place', ['{}.part', '{}'])
def test_no_writer_follows_a_link(writer, place, tmp_path):
    "Links where a writer puts its files lead to a file outside, which stays; the files are whole and no links"
    write, names = WRITERS[writer]
    treasure, folder = tmp_path / 'treasure', tmp_path / 'folder'
    treasure.write_bytes(b'probe')
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / place.format(name)).symlink_to(treasure)
    write(folder)
    assert treasure.read_bytes() == b'probe'
    for name in names:
        assert not (folder / name).is_symlink() and (folder / name).stat().st_size > 0


def test_a_folder_in_the_place_of_a_file(tmp_path):
    (tmp_path / 'a.csv').mkdir()
    line = refusal(bytes_to, tmp_path / 'a.csv')
    assert line == 'a.csv: cannot be written, expected a file and not a folder of this name'
    assert refusal(bytes_to, tmp_path / 'b.csv') == 'gave None'


def test_the_folder_of_a_run_is_tried_without_following_links(tmp_path):
    "A link named .writable is not followed; a link in the place of the run's folder or above is refused"
    folder = run_folder(CONFIG, tmp_path)
    outside = tmp_path / 'outside'
    (folder / '.writable').symlink_to(outside)
    assert run_folder(CONFIG, tmp_path) == folder
    assert not outside.exists()

    other = CONFIG | dict(scale='other')
    (tmp_path / 'other' / 'runs').mkdir(parents=True)
    (tmp_path / 'other' / 'runs' / folder.name).symlink_to(folder)
    line = refusal(run_folder, other, tmp_path)
    assert line == (
        f"scale='other': expected a folder of outputs/ that can be written to (runs/{folder.name} is a link)"
    )
    (tmp_path / 'third').symlink_to(tmp_path / 'mini')  # the scale's own folder may be on another disk
    assert run_folder(CONFIG | dict(scale='third'), tmp_path).is_dir()


def test_a_link_in_the_place_of_a_lock(tmp_path):
    (tmp_path / '.lock').symlink_to(tmp_path / 'outside')
    line = refusal(lock_run, tmp_path)
    assert re.match(f'run={tmp_path.name!r}: its lock .*/.lock cannot be used .it is a link.; expected', line)
    assert not (tmp_path / 'outside').exists()


def write_in_turn(file):
    "Two writers at once, of which the second ends first; what the file holds after each"
    with replacing(file) as first:
        first.write(b'of the first')
        with replacing(file) as second:
            second.write(b'second')
        between = file.read_bytes()
    return between, file.read_bytes()


def test_two_writers_of_one_file(tmp_path):
    "Each leaves a whole file, and nothing besides"
    assert refusal(write_in_turn, tmp_path / 'a') == f'gave {(b"second", b"of the first")!r}'
    assert [file.name for file in tmp_path.iterdir()] == ['a']


KILLED = """
import os, sys
from adt_repro.base.files import replacing
with replacing(sys.argv[1]) as f:
    f.write(b'half')
    f.flush()
    os._exit(9)
"""


def test_what_a_killed_writer_leaves(tmp_path):
    "It is deleted by the next writer of the same file, if there is one; what a living one writes is not"
    file = tmp_path / 'a'

    def killed_beside_a_living_one():
        with replacing(file) as living:
            living.write(b'living')
            subprocess.run([sys.executable, '-c', KILLED, file], cwd=ROOT)
            assert len(list(tmp_path.glob('a.*part'))) == 2
            bytes_to(file)
            left = len(list(tmp_path.glob('a.*part')))
        return left, file.read_bytes()

    assert refusal(killed_beside_a_living_one) == f'gave {(1, b"living")!r}'
    assert [found.name for found in tmp_path.iterdir()] == ['a']


FULL = """
import resource, signal, sys
import pandas as pd
from adt_repro.base.tables import write_table
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_table(pd.DataFrame(dict(x=range(int(sys.argv[2])))), sys.argv[1])
except ValueError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_old_table(tmp_path):
    "No file may grow beyond 1000 bytes: one line, and the old table whole; a small table is written"
    file, said = tmp_path / 'a.csv', []
    for n in 10, 1000, 20:
        done = subprocess.run([sys.executable, '-c', FULL, file, str(n)], capture_output=True, text=True)
        said.append(done.stdout or done.stderr[-300:])
        rows = 10 if n == 1000 else n
        assert len(pd.read_csv(file)) == rows, said
    assert said[0] == said[2] == ''
    assert re.fullmatch('.*a.csv: cannot be written, expected .*too large.\n', said[1]), said[1]


def plain_writes(code):
    "Lines of code that write a file otherwise than through the one writer: not to a buffer, not to a string"
    found = []
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
        modes = [
            a.value for a in [*node.args, *(k.value for k in node.keywords)] if isinstance(a, ast.Constant)
        ]
        opens = name == 'open' and any(str(mode).strip('bt+') in ('w', 'a', 'x') for mode in modes)
        method = isinstance(node.func, ast.Attribute)  # of a path; base/tables has a function of this name
        to_file = (name in ('to_csv', 'to_json', 'savefig') and node.args) or (
            method and name == 'write_text'
        )
        to_buffer = name == 'savefig' and ast.unparse(node.args[0]) == 'drawn'
        if opens or (to_file and not to_buffer):
            found.append(ast.unparse(node))
    return found


# What is written elsewhere than under outputs/, or is the writer itself
EXPECTED = {
    "(Path(folder) / 'job.json').write_text(json.dumps(job))",  # to a temporary folder
    'file.write_text(yaml.safe_dump(run.config | dict(checkpoint_minutes=checkpoint_minutes)))',
    "open(Path(folder) / 'printed', 'w+')",
    "open(part, 'xb')",  # base/files
}


def test_every_table_goes_through_the_one_writer():
    "No experiment and no module has a plain `to_csv` or `open` of a file that stays"
    places = [place for notebook in (ROOT / 'nbs').glob('*.ipynb') for place in cells_of(notebook)]
    for module in (ROOT / 'adt_repro').rglob('*.py'):
        places.append((str(module.relative_to(ROOT)), module.read_text()))
    assert len(places) > 150
    plain = [f'{at}: {line}' for at, code in places for line in plain_writes(code) if line not in EXPECTED]
    assert not plain, '\n'.join(plain)
    assert plain_writes("frame.to_csv(file)\nframe.to_csv(index=False)\nopen(file, 'w')") == [
        'frame.to_csv(file)',
        "open(file, 'w')",
    ]


def failing(number):
    "A call of the operating system that fails"

    def fail(*args, **options):
        raise OSError(number, os.strerror(number))

    return fail


def test_a_held_lock_says_who_holds_it(tmp_path):
    lock = lock_run(tmp_path)
    line = refusal(lock_run, tmp_path)
    who = rf'process {os.getpid()} on host \S+, since \d{{4}}-\d\d-\d\d \d\d:\d\d'
    subject = f'run={tmp_path.name!r}: another process is training it'
    assert re.fullmatch(rf'{subject} \({who}\), expected one at a time', line), line
    lock.release()
    (tmp_path / '.lock').write_bytes(b'\x1b]0;probe\x07\n')  # a stranger's content is not repeated
    lock = lock_run(tmp_path)
    (tmp_path / '.lock').write_bytes(b'12\n\x1b]0;probe\x07\n')
    assert refusal(lock_run, tmp_path) == f'{subject}, expected one at a time'
    lock.release()


@pytest.mark.parametrize('number', [errno.EACCES, errno.EPERM, errno.ENOLCK, errno.ENOTSUP, errno.EIO])
def test_a_lock_that_cannot_be_used(number, tmp_path, monkeypatch):
    "Of another user, or on a file system without locks: one line with the file, and how to clear it"
    lock_run(tmp_path).release()
    monkeypatch.setattr(filelock.FileLock, 'acquire', failing(number))
    line = refusal(lock_run, tmp_path)
    words = f'run={tmp_path.name!r}: its lock {tmp_path}/.lock cannot be used ({os.strerror(number)})'
    assert line.startswith(words) and '\n' not in line
    assert f'(process {os.getpid()} on host' in line and 'delete it if no process' in line


def test_a_lock_of_another_user():
    "The real thing: a lock that may not be opened; root, who may open all, becomes nobody before"
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        lock_run(folder).release()
        (folder / '.lock').chmod(0)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            if os.getuid() == 0:
                os.setuid(65534)
            os.write(write, refusal(lock_run, folder).encode())
            os._exit(0)
        os.waitpid(child, 0)
        line = os.read(read, 5000).decode()
    assert line.startswith(f'run={folder.name!r}: its lock {folder}/.lock cannot be used (Permission'), line


def test_a_file_system_without_flock(tmp_path, monkeypatch, recwarn):
    "A file stands for the lock: a line says so, and the next process gets its holder and how to clear it"
    monkeypatch.setattr(fcntl, 'flock', failing(errno.ENOSYS))
    lock = lock_run(tmp_path)
    said = [str(warning.message) for warning in recwarn]
    assert len(said) == 1 and re.search(
        'no locks that end with their process; if .* delete .lock', said[0]
    ), said
    line = refusal(lock_run, tmp_path)
    assert re.search(rf'process {os.getpid()} on host .*; if that process has ended, delete \S+/.lock$', line)
    lock.release()
    bytes_to(tmp_path / 'a')
    assert sorted(file.name for file in Path(tmp_path).iterdir()) == ['a']


@pytest.mark.parametrize('number', [errno.ENOSYS, errno.ENOLCK, errno.EBADF, errno.ENOTSUP])
def test_a_run_is_written_without_flock(number, tmp_path, monkeypatch):
    "What a training ends with, where no folder can be locked: all files, and in the list"
    folder = tmp_path / 'mini' / 'runs' / 'a'
    folder.mkdir(parents=True)
    monkeypatch.setattr(fcntl, 'flock', failing(number))
    assert refusal(run_to, folder) == 'gave None'
    load_run(folder)
    names = ['config.yaml', 'history.csv', 'run.json', 'weights.safetensors']
    assert list(read_sums(tmp_path / 'mini' / 'SHA256SUMS')) == [f'runs/a/{name}' for name in names]
    assert sorted(file.name for file in (tmp_path / 'mini').iterdir()) == ['SHA256SUMS', 'runs']


def is_free(scale, record):
    "Can a lock of a record be had? The system's locks keep out another open file, of this process too"
    try:
        lock_file(scale / '.locks' / f'{record}.lock', record, 'asking').release()
    except ParameterError:
        return False
    return True


def test_locks_of_records_are_released(tmp_path):
    "Where a later one cannot be had, and when the experiment closes them; those that were held before stay"
    scale = tmp_path / 'mini'
    before = open_outputs(scale, 'spsa', ['a'])
    elsewhere = lock_file(scale / '.locks' / 'c.lock', 'c', 'making it')
    line = refusal(open_outputs, scale, 'spsa', ['a', 'b', 'c'])
    assert line.startswith("record='c': another process is making it")
    assert is_free(scale, 'b') and not is_free(scale, 'a')
    close_outputs(before)
    close_outputs(before)
    assert is_free(scale, 'a')
    elsewhere.release()
    again = open_outputs(scale, 'spsa', dict.fromkeys('ab').keys())
    assert len(again) == 2 and not is_free(scale, 'b')
    close_outputs(again)
