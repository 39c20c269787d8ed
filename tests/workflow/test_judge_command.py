"adt judge as users start it: the exit status is the answer, killed and started again, and without a network"

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from helpers import BIN, run

import adt_repro as adt
from adt_repro.command.main import main
from adt_repro.judging.page import check_report
from adt_repro.training.state import Recipe

ADT = [sys.executable, '-m', 'adt_repro.command.main']
README = 'judge my_module:make_model --data test.npz --eps 8/255 --minutes 10'.split()  # as it has it
FEW = ['-y', 'attacks: [fgsm, pgd20, pgd100]', '-p', 'autoattack', 'false']
RESULTS = 'report.html', 'report.json', 'images.csv', 'records/judge.parquet'

NETWORK = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, factor=1.0, noise=0.0):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 12, 3, padding=1)
        self.conv2 = nn.Conv2d(12, 24, 3, padding=1, stride=2)
        self.head = nn.Linear(24 * 16, 10)
        self.factor, self.noise = factor, noise

    def forward(self, x):
        x = x + self.noise * torch.randn_like(x)
        x = self.conv2(self.conv1(x).relu()).relu()
        return self.factor * self.head(x.flatten(1))
"""

# A user's module of plain PyTorch. It notes any other computer that is asked for
MODULE = f"""
import socket
import time
from pathlib import Path
{NETWORK}

FOLDER = Path(__file__).parent


def guarded(call):
    def asked(host, *args, **options):
        place = host[0] if isinstance(host, tuple) else host
        if str(place) not in ('localhost', '127.0.0.1', '::1', '', 'None'):
            (FOLDER / 'asked').write_text(str(place))
            raise OSError('there is no network')
        return call(host, *args, **options)

    return asked


socket.create_connection = guarded(socket.create_connection)
socket.getaddrinfo = guarded(socket.getaddrinfo)


def made(**options):
    net = Net(**options)
    net.load_state_dict(torch.load(FOLDER / 'net.pt', weights_only=True))
    return net


class Slow(Net):
    def forward(self, x):
        time.sleep(0.01)
        return super().forward(x)


def make_model():
    slow = Slow()
    slow.load_state_dict(made().state_dict())
    return slow


def sound():
    return made()


def steep():
    return made(factor=50.0)


def noisy():
    return made(noise=0.3)
"""


@pytest.fixture(scope='module')
def user(tmp_path_factory):
    "A user's folder: an adversarially trained network of plain PyTorch, and images with labels"
    folder, names = tmp_path_factory.mktemp('user'), {}
    exec(NETWORK, names)
    torch.manual_seed(0)
    data, net = adt.load_data('digits'), names['Net']()
    recipe = Recipe(epochs=8, lr=0.05, augment=False)
    adt.train(net, data, method='at_pgd', eps=0.1, recipe=recipe, progress=False)
    torch.save(net.state_dict(), folder / 'net.pt')
    (folder / 'my_module.py').write_text(MODULE)
    np.savez(folder / 'test.npz', x=data.x_test[:60].numpy(), y=data.y_test[:60].numpy())
    return folder


@pytest.fixture
def folder(user, tmp_path):
    "A copy of it that a test may alter"
    return Path(shutil.copytree(user, tmp_path / 'user', ignore=shutil.ignore_patterns('outputs')))


def page_of(done, folder):
    "The folder of the page that a call names at its end"
    page = folder / re.search('^page +(.+)$', done.stdout, re.M)[1]
    assert page.is_file() and page.name == 'report.html'
    return page.parent


def test_judged_and_sound_without_a_network(user):
    done = run(*ADT, 'judge', 'my_module:sound', '--data', 'test.npz', '--eps', '0.1', *FEW, cwd=user)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((page_of(done, user) / 'report.json').read_text())
    check_report(report)
    assert done.stdout.splitlines()[0] == report['answer']['line'] and report['answer']['status'] == 0
    assert len(done.stdout.splitlines()) == 2 and 'Traceback' not in done.stderr
    plan, _, steps = done.stderr.partition('Judging ...')
    assert re.search('^10 minutes, 60 images', plan, re.M) and re.search('^ +PGD-100: 60 images', plan, re.M)
    shown = re.findall('^(.+)  step [0-9]+ of [0-9]+$', steps, re.M)
    names = [line.split(',')[0] for line in shown]
    assert names[:5] == ['clean images', 'FGSM', 'PGD-20', 'PGD-100', 'checks'], names
    assert not (user / 'asked').exists()
    assert sorted(file.name for file in user.iterdir() if file.name != '__pycache__') == [
        'my_module.py', 'net.pt', 'outputs', 'test.npz'
    ]  # fmt: skip


def test_a_failed_check_is_status_1(user):
    done = run(*ADT, 'judge', 'my_module:steep', '--data', 'test.npz', '--eps', '0.1', *FEW, cwd=user)
    assert done.returncode == 1, done.stdout + done.stderr
    answer = json.loads((page_of(done, user) / 'report.json').read_text())['answer']
    assert answer['status'] == 1 and answer['word'] == 'overstated'
    assert all(reason['check'] in done.stdout for reason in answer['reasons']) and answer['reasons']


def test_what_cannot_be_judged_is_status_2(user):
    done = run(*ADT, 'judge', 'my_module:noisy', '--data', 'test.npz', '--eps', '0.1', *FEW, cwd=user)
    assert done.returncode == 2 and not done.stdout, done.stdout
    line = done.stderr.splitlines()[-1]
    assert line.startswith('model') and 'Traceback' not in done.stderr, line
    assert not (user / 'outputs' / 'judged' / 'my_module-noisy' / 'report.json').exists()


@pytest.mark.parametrize(
    'args, expected',
    [
        (['--minutes', '0'], 'minutes='),
        (['--eps', '8:255'], "eps='8:255'"),
        (['--norm', 'l1'], "norm='l1'"),
        (['--inputs', '[1, -1]'], 'inputs='),
        (['--name', 'a/b'], "name='a/b'"),
        (['-p', 'epochs', '3'], "epochs='3'"),
        (['-p', 'eps', '0.2', '--eps', '0.1'], 'eps='),
        (['--epsilon', '0.1'], '--epsilon'),
        (['-o', 'out.txt'], "output='out.txt'"),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else '',
)
def test_a_mistake_is_status_2_and_leaves_nothing(args, expected, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(['judge', 'my_module:sound', *args]) == 2
    out, err = capfd.readouterr()
    assert not out and expected in err.splitlines()[-1], err
    assert not list(tmp_path.iterdir())


def killed_at(parts, folder):
    "Begin README's call and kill it and its kernel when it has saved some parts; False: it has ended before"
    with open(folder / 'said', 'w') as said:
        process = subprocess.Popen([*ADT, *README, *FEW], cwd=folder, stdout=said, stderr=said)
    there = folder / 'outputs' / 'judged' / 'my_module-make_model' / 'parts'
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if there.exists() and sum(file.is_file() for file in there.rglob('*')) >= parts:
            break
        time.sleep(0.02)
    if process.poll() is not None:
        return False
    for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        os.kill(one.pid, signal.SIGKILL)
    process.wait()
    return True


def test_killed_and_started_again_gives_the_same_bytes(folder, user, tmp_path):
    "Against an undisturbed call with the same plan"
    assert killed_at(1, folder)
    mine = folder / 'outputs' / 'judged' / 'my_module-make_model'
    plan = (mine / 'plan.json').read_bytes()
    assert not (mine / 'report.html').exists()
    assert killed_at(4, folder)
    done = run(*ADT, *README, *FEW, cwd=folder)
    assert done.returncode in (0, 1), done.stderr
    other = shutil.copytree(user, tmp_path / 'other', ignore=shutil.ignore_patterns('outputs'))
    undisturbed = Path(other) / 'outputs' / 'judged' / 'my_module-make_model'
    undisturbed.mkdir(parents=True)
    (undisturbed / 'plan.json').write_bytes(plan)
    again = run(*ADT, *README, *FEW, cwd=other)
    assert (again.returncode, again.stdout) == (done.returncode, done.stdout), again.stderr
    assert (mine / 'plan.json').read_bytes() == plan
    for name in RESULTS:
        assert (mine / name).read_bytes() == (undisturbed / name).read_bytes(), name


def test_two_at_a_time_are_refused(user):
    from adt_repro.judging.files import judged_folder, open_judged

    lock = open_judged(judged_folder('held', user))
    done = run(
        *ADT, 'judge', 'my_module:sound', '--data', 'test.npz', '--eps', '0.1', '--name', 'held', cwd=user
    )
    lock.release()
    assert done.returncode == 2 and 'another process is judging it' in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_from_an_installed_wheel(user, tmp_path):
    "Nothing of a clone: the wheel in an environment of its own, which finds the other packages of this one"
    from helpers import copy_files, files_of_git

    clone, folder = copy_files(files_of_git(), tmp_path / 'clone'), tmp_path / 'user'
    shutil.copytree(user, folder, ignore=shutil.ignore_patterns('outputs', '__pycache__'))
    build = "import setuptools.build_meta as b; b.build_wheel('..')"
    assert run(sys.executable, '-c', build, cwd=clone).returncode == 0
    (wheel,) = tmp_path.glob('*.whl')
    shutil.rmtree(clone)
    site = tmp_path / 'site'
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'} | dict(PYTHONPATH=str(site))
    shutil.unpack_archive(wheel, site, 'zip')
    where = [sys.executable, '-c', 'import adt_repro; print(adt_repro.__file__)']
    assert run(*where, cwd=folder, env=env).stdout.startswith(str(site))
    call = ['judge', 'my_module:sound', '--data', 'test.npz', '--eps', '0.1', *FEW]
    done = run(*ADT, *call, cwd=folder, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (page_of(done, folder) / 'report.json').is_file() and (BIN / 'python').exists()
