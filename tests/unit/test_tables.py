"Tables and the list of digests: two writers at once, a writer that is killed, headers that lie"

import csv
import errno
import fcntl
import os
import resource
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import ROOT, refusal, run

from adt_repro.base import tables as tables_module
from adt_repro.base.files import replacing
from adt_repro.base.tables import (
    main,
    noted_sums,
    read_bytes,
    read_parquet,
    read_sums,
    read_table,
    write_parquet,
    write_table,
    write_text,
)
from adt_repro.evaluation.records import SCHEMA


def begun(work):
    "A process that does some work and ends"
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def test_writers_at_once_lose_no_line(tmp_path):
    "Three processes write files of one scale: each file is in the list, as it is"

    def work(name):
        for i in range(15):
            write_text(tmp_path / 'tables' / f'{name}-{i}.csv', f'{name}\n{i}\n')
            write_text(tmp_path / 'tables' / 'both.csv', f'{name}\n{i}\n')

    for child in [begun(lambda name=name: work(name)) for name in 'abc']:
        os.waitpid(child, 0)
    sums = read_sums(tmp_path / 'SHA256SUMS')
    assert len(sums) == 46 and all(len(digests) == 1 for digests in sums.values())
    for name in sums:
        read_bytes(tmp_path / name)


def test_a_writer_that_is_killed_leaves_what_can_be_read(tmp_path):
    "At any moment: the old file or the new one, and the list fits"
    file = tmp_path / 'frames' / 'a.csv'
    write_text(file, 'a\n0\n')

    def work():
        for i in range(10**6):
            write_text(file, f'a\n{i}\n')

    for k in range(12):
        child = begun(work)
        time.sleep(0.02 + 0.004 * k)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert list(read_table(file)) == ['a'] and 1 <= len(noted_sums(file)) <= 2
    write_text(file, 'a\n7\n')
    assert len(noted_sums(file)) == 1 and read_table(file).a.item() == 7


def test_a_list_that_is_damaged(tmp_path):
    "Is refused with the line's number; without a list nothing is checked"
    file = tmp_path / 'frames' / 'a.csv'
    write_text(file, 'a\n1\n')
    sums = tmp_path / 'SHA256SUMS'
    sums.write_text(sums.read_text() + '\x1b[2Jnonsense\n')
    line = refusal(read_table, file)
    assert 'SHA256SUMS: line 2 is not a line of sha256sum' in line and '\x1b' not in line and '\n' not in line
    sums.unlink()
    assert len(read_table(file)) == 1


def test_a_change_by_hand(tmp_path):
    "The line says how to note it, and after that the file is read"
    file = tmp_path / 'digits' / 'tables' / 'a.csv'
    write_text(file, 'a\n1\n')
    file.write_text('a\n2\n')
    line = refusal(read_table, file)
    said, command = line.split('or note a change of your own with python -m adt_repro.base.tables ')
    assert said and main(shlex.split(command)) == 0
    assert read_table(file).a.item() == 2


def test_lines_of_files_that_are_gone(tmp_path, capsys):
    "Noting drops them and says so; then `sha256sum -c` has nothing to complain of"
    for name in 'ab':
        write_text(tmp_path / 'tables' / f'{name}.csv', 'a\n1\n')
    write_text(tmp_path / 'tables' / 'note.md', 'no table')  # listed, of a kind that is not looked for
    (tmp_path / 'tables' / 'a.csv').unlink()
    (tmp_path / 'tables' / 'note.md').write_text('changed')
    outside = tmp_path / 'SHA256SUMS'
    outside.write_text(outside.read_text() + f'{"0" * 64}  ../{tmp_path.name}/tables/b.csv\n')
    assert main([str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert '2 files noted, 1 of them changed, 2 lines dropped' in said
    assert 'no longer there: tables/a.csv' in said.replace("'", '')
    checked = run('sha256sum', '-c', '--quiet', 'SHA256SUMS', cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr


def test_old_digests_do_not_add_up(tmp_path):
    "Writers that stop before they replace the file leave two digests, however many there were"
    file = tmp_path / 'tables' / 'a.csv'
    write_text(file, 'a\n0\n')

    def stopped(path):
        raise KeyboardInterrupt

    for i in range(1, 5):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(tables_module, 'replacing', stopped_after_the_list(file, stopped))
            write_text(file, f'a\n{i}\n')
        assert len(noted_sums(file)) == 2
        assert read_table(file).a.item() == 0


def stopped_after_the_list(file, stop):
    "What stands for `replacing`: it stops where the file itself would be replaced, not its list"
    return lambda path: stop(path) if path == file else replacing(path)


@pytest.mark.parametrize('name', ['README.md', 'notes.csv', 'x.parquet'])
def test_a_project_below_a_folder_called_runs(tmp_path, name):
    "Its files are no files of a run: there is no list above it"
    write_text(tmp_path / 'runs' / 'adt' / name, 'content')
    assert [file.name for file in tmp_path.iterdir()] == ['runs']
    write_text(tmp_path / 'runs' / 'adt' / 'history.csv', 'content')
    assert list(read_sums(tmp_path / 'SHA256SUMS')) == ['runs/adt/history.csv']


FILE_READERS = """
import sys, time
from helpers import refusal
from adt_repro.base.tables import file_digest, read_bytes, read_parquet, read_table
from adt_repro.exchange.import_weights import load_network
from adt_repro.models.classifiers import build_model
from adt_repro.models.weights import load_weights

net = build_model('small_cnn', 1)
for file in sys.argv[1:]:
    for read in file_digest, read_bytes, read_parquet, read_table, lambda f: load_weights(net, f), load_network:
        print(refusal(read, file))
"""


def test_what_is_no_file(tmp_path):
    "A pipe, a link to a device without an end, and a folder are refused at once by every reader"
    makers = dict(pipe=os.mkfifo, device=lambda file: file.symlink_to('/dev/zero'), folder=os.mkdir)
    files = []
    for kind, make in makers.items():
        for suffix in 'pt', 'safetensors':
            files.append(tmp_path / f'{kind}.{suffix}')
            make(files[-1])
    code = f'import sys; sys.path.insert(0, {str(ROOT / "tests")!r})\n' + FILE_READERS
    lines = ended(sys.executable, '-W', 'ignore', '-c', code, *files).splitlines()
    assert len(lines) == 6 * len(files), lines
    wrong = [line for line in lines if 'not a regular file' not in line or 'expected' not in line]
    assert not wrong, wrong


def ended(*command):
    "What a command prints within a minute, or another text if it hangs or asks for too much memory"

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))

    try:
        return run(*command, timeout=60, preexec_fn=limit).stdout
    except subprocess.TimeoutExpired:
        return 'it did not end'


def test_a_list_is_kept_without_flock(tmp_path, monkeypatch):
    "Three processes write files of one scale where no folder can be locked: no line is lost, no lock stays"
    for number in errno.ENOSYS, errno.ENOLCK, errno.EBADF:
        monkeypatch.setattr(fcntl, 'flock', failing(number))
        folder = tmp_path / str(number)

        def work(name, folder=folder):
            for i in range(5):
                write_text(folder / 'tables' / f'{name}-{i}.csv', f'{name}\n{i}\n')

        for child in [begun(lambda name=name, work=work: work(name)) for name in 'abc']:
            os.waitpid(child, 0)
        sums = read_sums(folder / 'SHA256SUMS')
        assert len(sums) == 15
        assert sorted(file.name for file in folder.iterdir()) == ['SHA256SUMS', 'tables']


def failing(number):
    "A call of the operating system that fails"

    def fail(*args, **options):
        raise OSError(number, os.strerror(number))

    return fail


def test_a_lock_that_stays_without_flock(tmp_path, monkeypatch):
    "One line names the file to delete"
    monkeypatch.setattr(fcntl, 'flock', failing(errno.ENOSYS))
    monkeypatch.setattr(tables_module, '_LOCK_SECONDS', 0.1)
    (tmp_path / '.SHA256SUMS.lock').write_text('1\nelsewhere\n')
    line = refusal(write_text, tmp_path / 'tables' / 'a.csv', 'a')
    assert 'another process holds the folder' in line and '\n' not in line
    assert line.endswith(f'if that process has ended, delete {tmp_path}/.SHA256SUMS.lock')


def test_the_writer_refuses_what_the_reader_would(tmp_path, monkeypatch):
    "Before anything is replaced; what it takes is read"
    rows, file = pd.DataFrame(dict(a=['x' * 1000] * 1000)), tmp_path / 'x.parquet'
    write_parquet(rows[:10], file)
    monkeypatch.setattr(tables_module, '_MOST_MEMORY', 10**6)
    assert 'it would have 1,000 rows' in refusal(write_parquet, rows, file)
    assert len(read_parquet(file)[0]) == 10
    write_parquet(rows[:900], file)
    assert len(read_parquet(file)[0]) == 900


@pytest.mark.parametrize('lines', [1, 3])
@pytest.mark.parametrize('names', [1001, 20_000, 200_000])
def test_a_table_of_too_many_columns(tmp_path, monkeypatch, names, lines):
    "Refused from the beginning of its text: neither reader gets the whole line"
    file = tmp_path / 'a.csv'
    file.write_text((','.join(f'c{k}' for k in range(names)) + '\n') * lines)
    read, reader = [], csv.reader

    def counted(text, **how):
        for line in reader(text, **how):
            read.append(len(line))
            yield line

    monkeypatch.setattr(csv, 'reader', counted)
    monkeypatch.setattr(pd, 'read_csv', lambda *_, **__: pytest.fail('pandas was asked'))
    line = refusal(read_table, file)
    assert 'a.csv: it has more than 1,000 columns, expected at most 1,000' in line
    assert sum(read) < 100_000, read


@pytest.mark.parametrize(
    'header, why',
    [
        ('a' * 100_001, 'the names of its columns have more than 100,000 characters'),
        ('"a\n' * 40_000 + '"', 'cannot be read as CSV'),
        ('"' + 'a\n' * 60_000 + '"', 'cannot be read as CSV'),
        ('a,a', 'two of its columns have the same name'),
    ],
    ids=['long', 'quotes', 'lines', 'twice'],
)
def test_names_of_columns_that_cannot_be(tmp_path, header, why):
    (tmp_path / 'a.csv').write_text(f'{header}\n1,2\n')
    line = refusal(read_table, tmp_path / 'a.csv')
    assert why in line and 'expected' in line and '\n' not in line


@pytest.mark.parametrize('names, rows', [(900, 2), (1000, 1), (1, 60_000)])
def test_a_table_of_many_columns_or_rows_is_read(tmp_path, names, rows):
    table = pd.DataFrame({f'column {k}': range(rows) for k in range(names)})
    write_table(table, tmp_path / 'a.csv')
    assert read_table(tmp_path / 'a.csv').equals(table)


def test_records_of_fifty_runs_are_within_bounds(tmp_path, monkeypatch):
    "10,000 images, 8 attacks and 50 runs: a thousandth of them is within a thousandth of the bounds"
    names = [f'cifar10-wrn-28-10-adt_imp_am_trades-s{k:02d}' for k in range(50)]
    rows = pd.DataFrame([dict(run=name, attack='distribution', i=i) for name in names for i in range(80)])
    rng = np.random.default_rng(0)
    numbers = {name: rng.random(len(rows)) for name in ('margin', 'loss', 'linf')}
    values = dict(y=3, pred=7, queries=-1, seed=0, attacked=True, eps=8 / 255, test_set='0eb9e25e14dc')
    rows = rows.assign(source=rows.run, **numbers, **values)[list(SCHEMA)].astype(SCHEMA)
    for name in '_MOST_MEMORY', '_MOST_PARQUET':
        monkeypatch.setattr(tables_module, name, getattr(tables_module, name) // 1000)
    write_parquet(rows, tmp_path / 'x.parquet')
    assert len(read_parquet(tmp_path / 'x.parquet')[0]) == 4000


@pytest.mark.parametrize(
    'other', [['a', 'bc', None], ['ab', 'c', ''], ['ab', None, 'c'], ['c', 'ab', None], ['ab', 'c', 'null']]
)
def test_the_digest_of_content(tmp_path, other):
    "Other texts, or the same in other rows, under the digest of a file are refused"
    write_parquet(pd.DataFrame(dict(a=['ab', 'c', None])), tmp_path / 'a.parquet')
    table = pq.read_table(tmp_path / 'a.parquet')
    pq.write_table(table, tmp_path / 'b.parquet')
    assert read_parquet(tmp_path / 'b.parquet', needs_digest=True)[0].a.tolist()[:2] == ['ab', 'c']
    changed = pa.table([pa.array(other, table.schema.types[0])], schema=table.schema)
    pq.write_table(changed, tmp_path / 'b.parquet')
    assert 'its content does not match its digest' in refusal(read_parquet, tmp_path / 'b.parquet')


PLAIN_READER = """
import resource, sys
import pyarrow as pa
import pyarrow.parquet as pq

pages = int(open('/proc/self/statm').read().split()[0])
most = pages * resource.getpagesize() + 2**29
resource.setrlimit(resource.RLIMIT_AS, (most, most))
try:
    file = pq.ParquetFile(sys.argv[1], page_checksum_verification=True)
    print(sum(batch.num_rows for batch in file.iter_batches(1024, use_threads=False)))
except pa.ArrowMemoryError as error:
    print('no memory:', error)
"""


def page_that_lies(content, size):
    "A Parquet file whose first page says that it has another size when it is decompressed; nothing else does"
    begin = 4 + 3
    assert content[4:begin] == b'\x15\x00\x15'  # a page of data, and then the size, seven bits at a time
    end = begin
    while content[end] > 127:
        end += 1
    said = bytearray()
    size *= 2
    while size > 127:
        said.append(size & 127 | 128)
        size >>= 7
    return content[:begin] + bytes([*said, size]) + content[end + 1 :]


@pytest.mark.parametrize('compression', ['snappy', 'gzip', 'zstd'])
def test_pages_that_lie(tmp_path, compression):
    "Arrow asks for what the header of a page says, whatever the footer says; here it is refused before"
    file = tmp_path / 'x.parquet'
    table = pa.table(dict(a=range(100_000)))
    pq.write_table(table, file, compression=compression, use_dictionary=False, write_page_checksum=True)
    plain = ended(sys.executable, '-c', PLAIN_READER, file)
    assert plain == '100000\n' and len(read_parquet(file)[0]) == 100_000
    file.write_bytes(page_that_lies(file.read_bytes(), 2**31 - 1))
    chunk = pq.ParquetFile(file).metadata.row_group(0).column(0)
    assert chunk.total_uncompressed_size < 10**6  # the footer is honest
    assert 'no memory: malloc of size 2147483648 failed' in ended(sys.executable, '-c', PLAIN_READER, file)
    assert 'its pages need' in refusal(read_parquet, file)
