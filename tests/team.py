"What the processes of tests/test_parallel.py do: functions of a module, since each process imports them anew"

import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from adt_repro.base.parameters import ParameterError
from adt_repro.data import load_data
from adt_repro.methods.adversaries import ExpAM, ImpAM
from adt_repro.methods.objective import Method
from adt_repro.methods.table import make_method
from adt_repro.runs.distributed import joined, launch
from adt_repro.training.loop import train
from adt_repro.training.state import Recipe, State, load_checkpoint

RECIPE = Recipe(epochs=4, batch=32, lr=0.05, drops=(-1,), augment=True, average=0.9)
CASES = dict(
    at_pgd=137, adt_exp=129, trades=137, adt_exp_am=129, adt_imp_am=137
)  # to training images: a last batch of 9 or of 1 after four of 32. With adt_imp_am halves of a batch are on two sides of the hinge
SEED, EPS = 7, 0.15


def convs(n_in, *more):
    "A network of any number of outputs that has no batch normalisation"
    return nn.Sequential(nn.Conv2d(n_in, 6, 3, padding=1), nn.Tanh(), *more)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.fc = convs(1, nn.Conv2d(6, 8, 3, 2), nn.ReLU(), nn.Flatten()), nn.Linear(72, 10)

    def forward(self, x):
        return self.fc(self.body(x))


class Noisy(nn.Module):
    "A generator that takes noise"

    def __init__(self):
        super().__init__()
        self.inner, self.z = convs(3, nn.Conv2d(6, 1, 3, padding=1)), nn.Linear(4, 64)

    def forward(self, features, z):
        return self.inner(features) + self.z(z).view(-1, 1, 8, 8)


def made(name):
    "Data, network and method in float64, the same in every process"
    torch.manual_seed(SEED)
    data, net = load_data('digits').head(CASES[name], 50), Net()
    if name == 'adt_exp_am':
        method = Method(ExpAM(convs(3, nn.Conv2d(6, 2, 3, padding=1)), EPS), entropy_weight=0.01, name=name)
    elif name == 'adt_imp_am':
        method = Method(
            ImpAM(Noisy(), convs(1, nn.Flatten(), nn.Linear(384, 8)), EPS, 4),
            entropy_weight=1.0,
            entropy_cap=-0.9,
            name=name,
        )
    else:
        method = make_method(name, EPS, (1, 8, 8), **dict(adt_exp=dict(n_mc=2, inner_steps=3)).get(name, {}))
    if isinstance(method.adversary, nn.Module):
        method.adversary.double()
    data = type(data)(
        data.name, data.x_train.double(), data.y_train, data.x_test.double(), data.y_test, data.classes
    )
    return data, net.double(), method


def weights(*nets):
    return torch.cat([v.detach().flatten() for net in nets for v in net.state_dict().values()])


def trained(name, team, checkpoint=None, **kw):
    "(losses of each step, weights after the last one, these and their average), or None where time was over"
    data, net, method = made(name)
    torch.manual_seed(SEED)
    state, sums, last = State(net, method, RECIPE, team=team), [], []

    def look(*at):
        sums.append(list(state.sums))
        last[:] = [weights(net, state.adversary)]

    if checkpoint and checkpoint.exists():
        load_checkpoint(state, checkpoint)
    for _ in train(net, data, method, RECIPE, state=state, checkpoint=checkpoint, on_batch=look, **kw):
        pass
    if state.epoch < RECIPE.epochs:
        return
    losses = [
        (b[0] - a[0] * (b[2] > a[2])) / (b[2] - a[2] * (b[2] > a[2]))
        for a, b in zip([[0.0, 0.0, 0], *sums], sums)
    ]
    return losses, *last, weights(*state.nets.values())


def all_cases(folder):
    "Every case by all processes together; and the last one again, broken off after every step"
    with joined('cpu', SEED) as team:
        out, file, stopped, n = (
            {name: trained(name, team) for name in CASES},
            Path(folder) / 'checkpoint.pt',
            None,
            0,
        )
        while not stopped:
            stopped, n = trained('adt_imp_am', team, file, until=0), n + 1
            dist.barrier()  # the first one has written before others read
        return out, (stopped[-1], n), refused(team)


def refused(team):
    try:
        team.wrap(nn.BatchNorm2d(3))
    except ParameterError as e:
        return str(e)


def leave_a_trace(folder):
    (Path(folder) / f'pid-{os.environ["RANK"]}').write_text(str(os.getpid()))


def fails(folder, how):
    "The second process ends, the first one waits for it"
    leave_a_trace(folder)
    with joined('cpu') as team:
        if team.rank == 1 and how == 'refuses':
            raise ParameterError('x=1: expected\n2')
        if team.rank == 1 and how == 'breaks':
            raise KeyError('x')
        if team.rank == 1 and how == 'is killed':
            os.kill(os.getpid(), signal.SIGKILL)
        team.any(True)


def sleeps(folder):
    leave_a_trace(folder)
    time.sleep(600)


if __name__ == '__main__':  # one that is to be killed while its processes sleep
    import team

    launch(team.sleeps, 2, sys.argv[1])
