"Several processes train one network: the numbers of one process, what is refused, and what a failure leaves"

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from statistics import mean

import distributed_worker as worker
import pandas as pd
import pytest
import torch
import warm
import yaml
from helpers import ROOT, run, small_project

from adt_repro.base.noise import example_noise
from adt_repro.base.parameters import ParameterError
from adt_repro.data import crop_flip
from adt_repro.methods.objective import adt_loss
from adt_repro.runs.distributed import joined
from adt_repro.runs.launch import DistributedError, torchrun

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


def plain_loop(name, lr=0.05):
    """The loop by hand: no DDP, no `train_epochs`, whole batches, PyTorch's own mean

    It gives the losses, and the weights at the end."""
    data, net, method = worker.new_parts(name)
    net.train()
    torch.manual_seed(worker.SEED)
    opts, nets = [torch.optim.SGD(net.parameters(), lr, momentum=0.9, weight_decay=2e-4)], [net]
    if hasattr(method.adversary, 'parameters'):
        opts.append(method.adversary.optimizer(2e-4))
        nets.append(method.adversary)
    losses = []
    for epoch in range(4):
        for settings in opts[0].param_groups:
            settings['lr'] = lr / 10 if epoch == 3 else lr
        batches = list(torch.randperm(len(data.x_train)).split(32))
        if len(batches[-1]) == 1:  # a single image joins the batch before it
            batches[-2:] = [torch.cat(batches[-2:])]
        for idx in batches:
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
    "All losses, 20 or 16, and the weights at the end: two processes, one, and the loop by hand"
    losses, last, end = two[0]['whole'][name]
    losses_of_other, _, end_of_other = two[1]['whole'][name]
    steps = 16 if worker.CASES[name] == 129 else 20  # of four epochs; see `plain_loop` for 129 images
    assert losses == losses_of_other and len(losses) == steps
    assert torch.equal(end, end_of_other)

    losses_of_one, last_of_one, end_of_one = worker.trained(name, alone)
    losses_by_hand, last_by_hand = plain_loop(name)
    assert losses == pytest.approx(losses_of_one, abs=1e-6)
    assert losses == pytest.approx(losses_by_hand, abs=1e-6)
    torch.testing.assert_close(last, last_of_one, rtol=0, atol=1e-6)
    torch.testing.assert_close(last, last_by_hand, rtol=0, atol=1e-6)
    torch.testing.assert_close(end, end_of_one, rtol=0, atol=1e-6)
    losses_unlearned, _ = plain_loop(name, lr=1e-9)  # of the same images, with the first weights
    assert mean(losses[-4:]) < mean(losses_unlearned[-4:]) - 0.01  # the last four steps


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
            ' whose statistics are shared on CUDA only'
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


@pytest.mark.parametrize('sent', [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_the_parent_is_stopped(sent, tmp_path):
    "A process that waits for torchrun ends by a signal, and those that torchrun has started end too"
    said = [tmp_path / 'stdout', tmp_path / 'stderr']
    parent = warm.start_fork(torchrun, 2, SCRIPT, 'sleeps', tmp_path, cwd=tmp_path, said=said)
    while len(list(tmp_path.glob('pid-*'))) < 2 and parent.is_alive():
        time.sleep(0.1)
    os.kill(parent.pid, sent)
    parent.join(30)
    assert parent.exitcode not in (None, 0)
    assert all_gone(tmp_path)


@pytest.fixture
def project(tmp_path):
    "What train.ipynb needs of a clone, and a file of parameters"
    small_project(tmp_path, 'train')
    parameters = dict(method='at_pgd', epochs=2, n_train=128, n_test=50, device='cpu', processes=1)
    (tmp_path / 'c.yaml').write_text(yaml.safe_dump(parameters))
    return tmp_path


def test_notebook_and_shell(project):
    "A run that a notebook begins in a process of its own, torchrun goes on with, and the notebook evaluates"

    def train_notebook(*more):
        command = ('nbs/train.ipynb', 'out.ipynb', '-f', 'c.yaml', *more)
        done = warm.run_fork(warm.papermill, *command, cwd=project)
        assert done.returncode == 0, done.stderr

    folder = project / 'outputs' / 'demo' / 'runs' / 'digits-small_cnn-at_pgd-s0'
    checkpoint = folder / 'checkpoint.pt'

    train_notebook('-p', 'max_minutes', '1e-6')
    assert 'after step 1 of epoch 1; the state is saved' in (project / 'out.ipynb').read_text()

    torchrun_command = ('torch.distributed.run', '--nproc-per-node', '1', '-m', 'adt_repro.runs.distributed')
    done = run(sys.executable, '-m', *torchrun_command, 'c.yaml', cwd=project)
    assert done.returncode == 0, done.stderr
    assert 'epoch 2 of 2' in done.stdout
    assert torch.load(checkpoint)['epoch'] == 2
    stamp = checkpoint.stat().st_mtime_ns

    train_notebook()
    assert checkpoint.stat().st_mtime_ns == stamp
    history = pd.read_csv(folder / 'history.csv')
    assert list(history.epoch) == [1, 2]
    assert set(history) == {'epoch', 'lr', 'loss', 'entropy', 'seconds', 'natural', 'pgd20'}
    assert json.loads((folder / 'run.json').read_text())['results'][2]['n'] == 50
    assert yaml.safe_load((folder / 'config.yaml').read_text())['processes'] == 1
