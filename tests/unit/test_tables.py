"Tables and the list of digests: two writers at once, a writer that is killed, headers that lie"

import os
import signal
import time

import pyarrow as pa
import pyarrow.parquet as pq
from helpers import refusal

from adt_repro.base import tables as tables_module
from adt_repro.base.tables import noted_sums, read_bytes, read_parquet, read_sums, read_table, write_text


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
    assert 'SHA256SUMS: line 2 is no line of sha256sum' in line and '\x1b' not in line and '\n' not in line
    sums.unlink()
    assert len(read_table(file)) == 1


def test_pages_that_lie(tmp_path, monkeypatch):
    "A header of a page that asks for more than the bounds is refused before anything is allocated"
    file = tmp_path / 'x.parquet'
    pq.write_table(pa.table(dict(a=['x' * 1000] * 1000)), file, compression='zstd', use_dictionary=False)
    whole = file.read_bytes()
    read_parquet(file)
    sizes = [header[2] for header in tables_module._pages(whole, tables_module._footer(whole)[4][0][1][0])]
    assert sum(sizes) > 10**6 > 20 * len(whole)  # a page of a megabyte in a file of a few thousand bytes
    monkeypatch.setattr(tables_module, 'MOST_MEMORY', 10**6)
    line = refusal(read_parquet, file)
    assert 'its pages need' in line
