"Several processes train one network: the numbers of one, broken off or not; what is refused, and what is left when one fails"

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import team
import torch
import yaml

from adt_repro.base.noise import example_noise
from adt_repro.base.parameters import ParameterError
from adt_repro.data import crop_flip
from adt_repro.methods.objective import adt_loss
from adt_repro.runs.distributed import _LEFT_OUT, TeamError, _line, joined, launch, main

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    return launch(team.all_cases, 2, str(tmp_path_factory.mktemp('two')))


@pytest.fixture(scope='module')
def alone():
    "This process as a team of one"
    with pytest.MonkeyPatch.context() as m, socket.create_server(('localhost', 0)) as free:
        for k, v in dict(
            RANK=0, LOCAL_RANK=0, WORLD_SIZE=1, MASTER_ADDR='localhost', MASTER_PORT=free.getsockname()[1]
        ).items():
            m.setenv(k, str(v))
        free.close()
        with joined('cpu', team.SEED) as one:
            yield one


def plain(name):
    "The loop by hand: no DDP, no `train`, whole batches, PyTorch's own mean"
    data, net, method = team.made(name)
    net.train()
    torch.manual_seed(team.SEED)
    opts = [torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=2e-4)]
    if hasattr(method.adversary, 'parameters'):
        opts.append(method.adversary.optimizer(2e-4))
    losses, n = [], 0
    for epoch in range(4):
        for g in opts[0].param_groups:
            g['lr'] = 0.005 if epoch == 3 else 0.05
        for idx in torch.randperm(len(data.x_train)).split(32):
            with example_noise(idx, (team.SEED << 32) + n):
                objective, loss, _ = adt_loss(net, crop_flip(data.x_train[idx]), data.y_train[idx], method)
            for opt in opts:
                opt.zero_grad()
            objective.backward()
            for opt in opts:
                opt.step()
            losses.append(loss.item())
            n += 1
    return losses, team.weights(net, *opts[1:] and [method.adversary])


@pytest.mark.parametrize('name', team.CASES)
def test_two_processes_are_one(name, two, alone):
    "The first 20 losses, all there are, and the weights at the end: two processes, one, and the loop by hand"
    (losses, last, end), theirs = two[0][0][name], two[1][0][name]
    assert losses == theirs[0] and torch.equal(end, theirs[2]) and len(losses) == 20
    for others, final in (plain(name), (one := team.trained(name, alone))[:2]):
        print(
            f'{name}: losses differ by {max(abs(a - b) for a, b in zip(losses, others)):.1e}, weights by {(last - final).abs().max():.1e}'
        )
        assert losses == pytest.approx(others, abs=1e-6)
        torch.testing.assert_close(last, final, rtol=0, atol=1e-6)
    torch.testing.assert_close(end, one[2], rtol=0, atol=1e-6)
    assert abs(losses[-1] - losses[0]) > 0.01  # something was learned


def test_broken_off_and_gone_on(two):
    "Twenty attempts of one step each, in new objects: the same bits"
    for out, (end, n), _ in two:
        assert n == 20 and torch.equal(end, out['adt_imp_am'][2])


def test_batch_normalisation_on_a_cpu(two):
    assert {line for *_, line in two} == {
        'processes=2: expected 1 on a cpu for networks with batch normalisation, whose statistics are shared on CUDA alone'
    }


def gone(folder):
    "Do the processes end that left a trace?"
    pids, end = [int(f.read_text()) for f in folder.glob('pid-*')], time.monotonic() + 20

    def there(pid):
        try:
            return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
        except OSError:
            return False

    while any(map(there, pids)) and time.monotonic() < end:
        time.sleep(0.1)
    return len(pids) == 2 and not any(map(there, pids))


@pytest.mark.parametrize(
    'how, kind, line',
    [
        ('refuses', ParameterError, 'x=1: expected 2'),
        ('is killed', TeamError, 'process 1 was ended, with code -9'),
    ],
)
def test_one_fails(how, kind, line, tmp_path, capfd):
    "One line of the one that failed first, none of the one that waited for it, and nobody is left"
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(kind) as e:
        launch(team.fails, 2, str(tmp_path), how)
    assert str(e.value) == line and gone(tmp_path) and signal.getsignal(signal.SIGINT) is before
    assert capfd.readouterr() == ('', '')


def test_what_is_said_of_a_failure(tmp_path):
    "What a parameter is refused for before what nobody foresaw, the earlier before the later, and no stack"
    said = lambda code=1: repr(_line(tmp_path, SimpleNamespace(local_rank=0, exitcode=code)))

    def says(rank, *line):
        (tmp_path / f'line-{rank}').write_text(json.dumps(line))

    assert said() == "TeamError('process 0 was ended, with code 1')"
    says(0, True, 3.0, 'RuntimeError', 'connection')
    says(1, True, 2.0, 'KeyError', 'x')
    assert said() == "TeamError('KeyError: x')" and 'code -9' in said(-9)
    says(2, False, 9.0, 'TrainingError', 'the loss')
    assert said() == "TrainingError('the loss')"


def test_command_line(tmp_path, monkeypatch, capsys):
    (tmp_path / 'c.yaml').write_text('processes: 3')
    monkeypatch.setattr('adt_repro.runs.sweeps._begin', lambda *args: None)
    for args, words in {
        (): 'processes=3: expected 1, as many as were started',
        (
            '-p',
            'processes',
            '1',
            '-p',
            'epoch',
            '3',
        ): "epoch=3: there is no such parameter, did you mean 'epochs'?",
        ('-p', 'processes', '1', '-p', 'lr', '[1'): 'expected a file of parameters (ParserError)',
    }.items():
        assert (
            main([str(tmp_path / 'c.yaml'), *args]) == 1
            and words in (said := capsys.readouterr().err)
            and said.count('\n') == 1
        )


@pytest.mark.parametrize('sent', [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_the_parent_is_stopped(sent, tmp_path):
    parent = subprocess.Popen(
        [sys.executable, ROOT / 'tests' / 'team.py', tmp_path], stderr=subprocess.DEVNULL
    )
    while len(list(tmp_path.glob('pid-*'))) < 2 and parent.poll() is None:
        time.sleep(0.1)
    parent.send_signal(sent)
    assert parent.wait(30) != 0 and gone(tmp_path)


def test_notebook_and_shell(tmp_path):
    "A run that a notebook begins in a process of its own, torchrun goes on with, and the notebook evaluates"
    (tmp_path / 'nbs').mkdir()
    for f in 'settings.ini', 'nbs/train.ipynb':
        shutil.copy(ROOT / f, tmp_path / f)
    (tmp_path / 'c.yaml').write_text(
        yaml.safe_dump(dict(method='at_pgd', epochs=2, n_train=128, n_test=50, device='cpu', processes=1))
    )

    def call(*args):
        return subprocess.run(
            [sys.executable, '-m', *args],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    papermill, shell = (
        ('papermill', 'nbs/train.ipynb', 'out.ipynb', '-f', 'c.yaml'),
        ('torch.distributed.run', '--nproc-per-node', '1', '-m', 'adt_repro.runs.distributed', 'c.yaml'),
    )
    run = tmp_path / 'outputs' / 'demo' / 'runs' / 'digits-small_cnn-at_pgd-s0'
    done = call(*papermill, '-p', 'max_minutes', '1e-6')
    assert (
        done.returncode == 0
        and 'after step 1 of epoch 1, which is kept' in (tmp_path / 'out.ipynb').read_text()
    ), done.stderr
    done = call(*shell)
    assert (
        done.returncode == 0
        and 'epoch 2 of 2' in done.stdout
        and torch.load(run / 'checkpoint.pt')['epoch'] == 2
    ), done.stderr
    done, stamp = call(*papermill), (run / 'checkpoint.pt').stat().st_mtime_ns
    assert done.returncode == 0 and (run / 'checkpoint.pt').stat().st_mtime_ns == stamp, done.stderr
    history = pd.read_csv(run / 'history.csv')
    assert list(history.epoch) == [1, 2] and set(history) == {
        'epoch',
        'lr',
        'loss',
        'entropy',
        'seconds',
        'natural',
        'pgd20',
    }
    assert (
        json.loads((run / 'run.json').read_text())['results'][2]['n'] == 50
        and yaml.safe_load((run / 'config.yaml').read_text())['processes'] == 1
    )


def test_left_out_is_what_the_notebook_has():
    "torchrun's command line takes the defaults of train.ipynb's parameters cell, so that the notebook goes on with the same run"
    cell = next(
        c
        for c in json.loads((ROOT / 'nbs' / 'train.ipynb').read_text())['cells']
        if 'parameters' in c['metadata'].get('tags', [])
    )
    exec(''.join(cell['source']), names := {})
    assert {k: v for k, v in names.items() if k not in ('__builtins__', '__annotations__')} == _LEFT_OUT
