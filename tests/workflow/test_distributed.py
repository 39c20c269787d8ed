"Several processes train one network: the numbers of one process, what is refused, and what is left when one fails"

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import distributed_worker as worker
import pandas as pd
import pytest
import torch
import yaml
from helpers import ROOT

from adt_repro.base.noise import example_noise
from adt_repro.base.parameters import ParameterError
from adt_repro.data import crop_flip
from adt_repro.methods.objective import adt_loss
from adt_repro.runs.distributed import _LEFT_OUT, joined, main
from adt_repro.runs.launch import DistributedError, _first_failure, torchrun

SCRIPT = ROOT / 'tests' / 'workflow' / 'distributed_worker.py'


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    "What each of two processes found"
    folder = tmp_path_factory.mktemp('two')
    torchrun(2, SCRIPT, 'all_cases', folder)
    return [torch.load(folder / f'rank-{rank}.pt') for rank in range(2)]


@pytest.fixture(scope='module')
def alone():
    "This process as a group of one"
    with socket.create_server(('localhost', 0)) as free:
        port = free.getsockname()[1]
    environment = dict(RANK=0, LOCAL_RANK=0, WORLD_SIZE=1, MASTER_ADDR='localhost', MASTER_PORT=port)
    with pytest.MonkeyPatch.context() as m:
        for k, v in environment.items():
            m.setenv(k, str(v))
        with joined('cpu', worker.SEED) as group:
            yield group


def plain_loop(name):
    "The loop by hand: no DDP, no `train_epochs`, whole batches, PyTorch's own mean; losses, and weights at the end"
    data, net, method = worker.new_parts(name)
    net.train()
    torch.manual_seed(worker.SEED)
    opts, nets = [torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=2e-4)], [net]
    if hasattr(method.adversary, 'parameters'):
        opts.append(method.adversary.optimizer(2e-4))
        nets.append(method.adversary)
    losses = []
    for epoch in range(4):
        for settings in opts[0].param_groups:
            settings['lr'] = 0.005 if epoch == 3 else 0.05
        for idx in torch.randperm(len(data.x_train)).split(32):
            with example_noise(idx, (worker.SEED << 32) + len(losses)):
                objective, loss, _ = adt_loss(net, crop_flip(data.x_train[idx]), data.y_train[idx], method)
            for opt in opts:
                opt.zero_grad()
            objective.backward()
            for opt in opts:
                opt.step()
            losses.append(loss.item())
    return losses, worker.weights(*nets)


@pytest.mark.parametrize('name', worker.CASES)
def test_two_processes_are_one(name, two, alone):
    "The first 20 losses, all there are, and the weights at the end: two processes, one, and the loop by hand"
    losses, last, end = two[0]['whole'][name]
    losses_of_other, _, end_of_other = two[1]['whole'][name]
    assert losses == losses_of_other and len(losses) == 20
    assert torch.equal(end, end_of_other)

    losses_of_one, last_of_one, end_of_one = worker.trained(name, alone)
    losses_by_hand, last_by_hand = plain_loop(name)
    assert losses == pytest.approx(losses_of_one, abs=1e-6)
    assert losses == pytest.approx(losses_by_hand, abs=1e-6)
    torch.testing.assert_close(last, last_of_one, rtol=0, atol=1e-6)
    torch.testing.assert_close(last, last_by_hand, rtol=0, atol=1e-6)
    torch.testing.assert_close(end, end_of_one, rtol=0, atol=1e-6)
    assert abs(losses[-1] - losses[0]) > 0.01  # something was learned


def test_interrupted_and_resumed(two):
    "Twenty attempts of one step each, in new objects: the same bits"
    for found in two:
        _, _, end = found['whole']['adt_imp_am']
        assert found['attempts'] == 20
        assert torch.equal(found['weights'], end)


def test_batch_normalisation_on_a_cpu(two):
    for found in two:
        assert found['refused'] == (
            'processes=2: expected 1 on a cpu for networks with batch normalisation,'
            ' whose statistics are shared on CUDA alone'
        )


def is_running(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError:
        return False


def all_gone(folder):
    "Do the two processes end that left a trace?"
    pids = [int(f.read_text()) for f in folder.glob('pid-*')]
    end = time.monotonic() + 20
    while any(map(is_running, pids)) and time.monotonic() < end:
        time.sleep(0.1)
    return len(pids) == 2 and not any(map(is_running, pids))


@pytest.mark.parametrize(
    'how, kind, line',
    [
        ('refuses', ParameterError, 'x=1: expected 2'),
        ('is killed', DistributedError, 'process 1 was ended from outside, with code -9'),
    ],
)
def test_one_fails(how, kind, line, tmp_path, capfd):
    "One line of the process that failed first, none of the one that waited for it, and no process is left"
    with pytest.raises(kind) as e:
        torchrun(2, SCRIPT, 'fails', tmp_path, how)
    assert str(e.value) == line
    assert all_gone(tmp_path)
    assert capfd.readouterr() == ('', '')


def test_the_best_reason(tmp_path):
    "A parameter that is refused before an unexpected error, the earlier before the later, and no stack"

    def write(rank, timestamp, message):
        file = tmp_path / str(rank) / 'error.json'
        file.parent.mkdir()
        about = dict(message=message, extraInfo=dict(timestamp=str(timestamp), py_callstack='a page'))
        file.write_text(json.dumps(dict(message=about)))

    def reason(printed=''):
        return repr(_first_failure(tmp_path, printed))

    assert reason() == "DistributedError('unexpected worker failure, without a message')"
    write(0, 3, 'RuntimeError: connection')
    write(1, 2, 'KeyError: x')
    assert reason() == "DistributedError('unexpected worker failure: KeyError: x')"
    page = 'Root Cause (first observed failure):\n  rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: 7)'
    assert 'process 1' in reason(page) and 'code -9' in reason(page)
    ended = 'Failures:\n  rank      : 0 (local_rank: 0)\n  exitcode  : -15 (pid: 6)\n'  # by torchrun itself
    assert 'process 1' in reason(ended + page) and 'process 0' in reason(ended)
    write(2, 9, 'TrainingError: the loss')
    assert reason(page) == "TrainingError('the loss')"


@pytest.mark.parametrize(
    'args, words',
    [
        ('', 'processes=3: expected 1, as many as were started'),
        ('-p processes 1 -p epoch 3', "epoch=3: there is no such parameter, did you mean 'epochs'?"),
        ('-p processes 1 -p lr [1', 'expected a file of parameters (ParserError)'),
    ],
)
def test_command_line(args, words, tmp_path, monkeypatch, capsys):
    (tmp_path / 'c.yaml').write_text('processes: 3')
    monkeypatch.setattr('adt_repro.runs.distributed.end_with_parent', lambda parent: None)
    assert main([str(tmp_path / 'c.yaml'), *args.split()]) == 1
    said = capsys.readouterr().err
    assert words in said and said.count('\n') == 1


@pytest.mark.parametrize('sent', [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_the_parent_is_stopped(sent, tmp_path):
    parent = subprocess.Popen([sys.executable, SCRIPT, 'parent', tmp_path], stderr=subprocess.DEVNULL)
    while len(list(tmp_path.glob('pid-*'))) < 2 and parent.poll() is None:
        time.sleep(0.1)
    parent.send_signal(sent)
    assert parent.wait(30) != 0
    assert all_gone(tmp_path)


@pytest.fixture
def project(tmp_path):
    "What train.ipynb needs of a clone, and a file of parameters"
    (tmp_path / 'nbs').mkdir()
    for f in 'settings.ini', 'nbs/train.ipynb':
        shutil.copy(ROOT / f, tmp_path / f)
    parameters = dict(method='at_pgd', epochs=2, n_train=128, n_test=50, device='cpu', processes=1)
    (tmp_path / 'c.yaml').write_text(yaml.safe_dump(parameters))
    return tmp_path


def call(project, *args):
    done = subprocess.run(
        [sys.executable, '-m', *args],
        cwd=project,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_notebook_and_shell(project):
    "A run that a notebook begins in a process of its own, torchrun goes on with, and the notebook evaluates"
    notebook = ('papermill', 'nbs/train.ipynb', 'out.ipynb', '-f', 'c.yaml')
    run = project / 'outputs' / 'demo' / 'runs' / 'digits-small_cnn-at_pgd-s0'
    checkpoint = run / 'checkpoint.pt'

    call(project, *notebook, '-p', 'max_minutes', '1e-6')
    assert 'after step 1 of epoch 1, which is kept' in (project / 'out.ipynb').read_text()

    torchrun_command = ('torch.distributed.run', '--nproc-per-node', '1', '-m', 'adt_repro.runs.distributed')
    assert 'epoch 2 of 2' in call(project, *torchrun_command, 'c.yaml')
    assert torch.load(checkpoint)['epoch'] == 2
    stamp = checkpoint.stat().st_mtime_ns

    call(project, *notebook)
    assert checkpoint.stat().st_mtime_ns == stamp
    history = pd.read_csv(run / 'history.csv')
    assert list(history.epoch) == [1, 2]
    assert set(history) == {'epoch', 'lr', 'loss', 'entropy', 'seconds', 'natural', 'pgd20'}
    assert json.loads((run / 'run.json').read_text())['results'][2]['n'] == 50
    assert yaml.safe_load((run / 'config.yaml').read_text())['processes'] == 1


def test_left_out_is_what_the_notebook_has():
    "The command line has the defaults of train.ipynb's parameters, so that the notebook goes on with the same run"
    for cell in json.loads((ROOT / 'nbs' / 'train.ipynb').read_text())['cells']:
        if 'parameters' in cell['metadata'].get('tags', []):
            names = {}
            exec(''.join(cell['source']), names)
    defaults = {k: v for k, v in names.items() if k not in ('__builtins__', '__annotations__')}
    assert defaults == _LEFT_OUT
