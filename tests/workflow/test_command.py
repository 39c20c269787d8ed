"The command adt in a part of a clone, as users start it: in a pipe, and on a terminal"

import json
import os
import pty
import re
import select
import sys

import nbformat
import pandas as pd
import pytest
from helpers import copy_files, run, small_project

ADT = [sys.executable, '-m', 'adt_repro.command.main']
FEW = ['-p', 'epochs', '1', '-p', 'n_train', '200', '-p', 'n_test', '100']
RUN = 'digits-small_cnn-at_pgd-s0'


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    folder = small_project(tmp_path_factory.mktemp('project'), 'train', 'white_box', 'paper')
    scales = [f'nbs/scales/{name}.yaml' for name in ('demo', 'paper')]
    return copy_files([*scales, 'nbs/published/table1.csv'], folder)


def on_terminal(command, folder, stop_at=None):
    "Exit status and all that a command writes to a terminal; Ctrl-C once it has written `stop_at`"
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execv(command[0], command)
    written = b''
    while True:
        select.select([terminal], [], [])
        try:
            new = os.read(terminal, 65536)
        except OSError:  # the command has ended
            break
        if not new:
            break
        written += new
        if stop_at and stop_at in written.decode(errors='replace'):
            os.write(terminal, b'\x03')
            stop_at = None
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), written.decode()


def test_train_evaluate_list_and_report(project):
    done = run(*ADT, 'train', 'at_pgd', *FEW, cwd=project)
    assert done.returncode == 0, done.stderr
    assert '\x1b' not in done.stdout + done.stderr and '\r' not in done.stdout + done.stderr
    assert 'WARNING' not in done.stderr and re.search('^epoch 1 of 1.* natural .* pgd20 ', done.stderr, re.M)
    folder = project / 'outputs' / 'demo'
    facts = json.loads((folder / 'runs' / RUN / 'run.json').read_text())
    for result in facts['results']:
        cell = '{:.1f} [{:.1f}, {:.1f}] %, n={}'.format(
            *(100 * result[k] for k in ('accuracy', 'lo', 'hi')), result['n']
        )
        assert re.search(rf'^{result["attack"]} +{re.escape(cell)}$', done.stdout, re.M)
    notebook = re.search('^notebook +(.+)$', done.stdout, re.M)[1]
    assert nbformat.read(project / notebook, 4).cells[-1].execution_count
    (command,) = re.findall('^next +.*?(evaluate .+)$', done.stdout, re.M)

    few = ['-p', 'n_test', '20', '-y', 'attacks: [fgsm, pgd20]', '-p', 'sound', 'false', '-p', 'draws', '0']
    judged = run(*ADT, *command.split(), *few, cwd=project)
    assert judged.returncode == 0, judged.stderr
    rows = pd.read_parquet(folder / 'records' / f'white_box-{RUN}.parquet')
    for attack, of_attack in rows[rows.attack.isin(['natural', 'fgsm', 'pgd20'])].groupby('attack'):
        right = 100 * (of_attack.pred == of_attack.y).mean()
        assert re.search(rf'^{attack} +{right:.1f} \[.+\] %, n=20$', judged.stdout, re.M), judged.stdout

    listed = run(*ADT, 'runs', cwd=project).stdout
    assert re.search(rf'^  {RUN} +trained .* yes$', listed, re.M), listed
    reported = run(*ADT, 'report', 'demo', cwd=project)
    assert reported.returncode == 0, reported.stderr
    assert (project / re.search('^report +(.+)$', reported.stdout, re.M)[1]).stat().st_size > 10_000


def test_a_failing_notebook_is_one_line(project):
    "Refused by the notebook itself: the run is there with other parameters"
    done = run(*ADT, 'train', 'standard', *FEW, cwd=project)
    assert done.returncode == 0, done.stderr
    other = run(*ADT, 'train', 'standard', *FEW[:6], cwd=project)
    last = other.stderr.splitlines()[-1]
    assert other.returncode == 1 and not other.stdout and 'Traceback' not in other.stderr
    assert last.startswith('n_test=None, ') and 'was begun with n_test=100' in last


def test_on_a_terminal_stopped_and_continued(project):
    train = [*ADT, 'train', 'adt_exp', '-p', 'epochs', '8', '-p', 'n_train', '1000', '-p', 'n_test', '100']
    status, shown = on_terminal(train, project, stop_at='epoch 3 of 8')
    said = shown.split('\r\x1b[K')
    assert status == 130 and 'Traceback' not in shown
    assert said[-1].splitlines()[-1].endswith(' '.join(['train adt_exp', *train[5:]]))
    drawn = [text for text in said if text.startswith('Training ') and 'epoch 2 of 8' in text]
    assert any(re.search(' left, natural [0-9.]+ %, PGD-20 [0-9.]+ %', text) for text in drawn)
    listed = run(*ADT, 'runs', 'demo', cwd=project).stdout
    assert re.search('^  digits-small_cnn-adt_exp-s0 +[0-9]+ % ', listed, re.M), listed

    status, shown = on_terminal(train, project)
    *_, summary = shown.split('\r\x1b[K')
    assert status == 0 and 'resumed' in shown and 'epoch 1 of 8' not in shown
    names = [line.split()[0] for line in summary.splitlines()]
    assert names == ['digits-small_cnn-adt_exp-s0:', 'natural', 'fgsm', 'pgd20', 'run', 'notebook', 'next']
