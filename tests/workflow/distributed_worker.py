"What each process of test_distributed.py does; torchrun starts this script with the name of a function below"

import os
import signal
import sys
import time
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import record

from adt_repro.base.parameters import ParameterError
from adt_repro.data import load_data
from adt_repro.methods.adversaries import ExpAM, ImpAM
from adt_repro.methods.objective import Method
from adt_repro.methods.table import make_method
from adt_repro.runs.distributed import joined
from adt_repro.runs.launch import end_with_input
from adt_repro.training.loop import train_epochs
from adt_repro.training.state import Recipe, State, load_checkpoint

SEED, EPS = 7, 0.15
RECIPE = Recipe(epochs=4, batch=32, lr=0.05, drops=(-1,), augment=True, average=0.9)
# training images: after four batches of 32 the last batch has 9 images, or the fourth one has 33;
# with adt_imp_am the two halves of a batch are on two sides of the hinge
CASES = dict(at_pgd=137, adt_exp=129, trades=137, adt_exp_am=129, adt_imp_am=137)


def convs(n_in, *more):
    "A network of any number of outputs without batch normalisation"
    return nn.Sequential(nn.Conv2d(n_in, 6, 3, padding=1), nn.Tanh(), *more)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = convs(1, nn.Conv2d(6, 8, 3, 2), nn.ReLU(), nn.Flatten())
        self.fc = nn.Linear(72, 10)

    def forward(self, x):
        return self.fc(self.body(x))


class NoisyGenerator(nn.Module):
    "A generator that takes noise"

    def __init__(self):
        super().__init__()
        self.inner = convs(3, nn.Conv2d(6, 1, 3, padding=1))
        self.z = nn.Linear(4, 64)

    def forward(self, features, z):
        return self.inner(features) + self.z(z).view(-1, 1, 8, 8)


def small_method(name):
    "A method without batch normalisation, in float64"
    if name == 'adt_exp_am':
        generator = convs(3, nn.Conv2d(6, 2, 3, padding=1))
        return Method(ExpAM(generator, EPS).double(), entropy_weight=0.01, name=name)
    if name == 'adt_imp_am':
        encoder = convs(1, nn.Flatten(), nn.Linear(384, 8))
        adversary = ImpAM(NoisyGenerator(), encoder, EPS, 4).double()
        return Method(adversary, entropy_weight=1.0, entropy_cap=-0.9, name=name)
    if name == 'adt_exp':
        return make_method(name, EPS, (1, 8, 8), n_mc=2, inner_steps=3)
    return make_method(name, EPS, (1, 8, 8))


def new_parts(name):
    "Data, network and method in float64, the same in every process"
    torch.manual_seed(SEED)
    data = load_data('digits').head(CASES[name], 50)
    data = type(data)(
        data.name, data.x_train.double(), data.y_train, data.x_test.double(), data.y_test, data.classes
    )
    net = Net()
    method = small_method(name)
    return data, net.double(), method


def weights(*nets):
    "All numbers of some networks"
    return torch.cat([v.detach().flatten() for net in nets for v in net.state_dict().values()])


def losses_of_steps(sums):
    "The loss of each step, from an epoch's sums of (loss, entropy, images) after each step"
    losses = []
    for before, after in pairwise([[0.0, 0.0, 0], *sums]):
        if after[2] <= before[2]:  # a new epoch begins
            before = [0.0, 0.0, 0]
        losses.append((after[0] - before[0]) / (after[2] - before[2]))
    return losses


def trained(name, group, checkpoint=None, **kw):
    "(losses of the steps, weights after the last one, these and their average), or None where the time was over"
    data, net, method = new_parts(name)
    torch.manual_seed(SEED)
    state = State(net, method, RECIPE, group=group)
    sums, last = [], None

    def look(*place):
        nonlocal last
        sums.append(list(state.sums))
        last = weights(net, state.adversary)

    if checkpoint and checkpoint.exists():
        load_checkpoint(state, checkpoint)
    list(train_epochs(net, data, method, RECIPE, state=state, checkpoint=checkpoint, on_batch=look, **kw))
    if state.epoch < RECIPE.epochs:
        return None
    return losses_of_steps(sums), last, weights(*state.nets.values())


def all_cases(folder):
    "Every case by all processes together; and the last one again, interrupted after every step"
    checkpoint, end, attempts = folder / 'checkpoint.pt', None, 0
    with joined('cpu', SEED) as group:
        whole = {name: trained(name, group) for name in CASES}
        while not end:
            end = trained('adt_imp_am', group, checkpoint, until=0)
            attempts += 1
            dist.barrier()  # the first process has written before others read
        refused = None
        try:
            group.wrap(nn.BatchNorm2d(3))
        except ParameterError as e:
            refused = str(e)
        found = dict(whole=whole, weights=end[-1], attempts=attempts, refused=refused)
        torch.save(found, folder / f'rank-{group.rank}.pt')


def leave_a_trace(folder):
    (folder / f'pid-{os.environ["RANK"]}').write_text(str(os.getpid()))


def fails(folder, how):
    "The second process ends, the first one waits for it"
    leave_a_trace(folder)
    with joined('cpu') as group:
        if group.rank == 1 and how == 'refuses':
            raise ParameterError('x=1: expected\n2')
        if group.rank == 1 and how == 'breaks':
            raise KeyError('x')
        if group.rank == 1 and how == 'is killed':
            os.kill(os.getpid(), signal.SIGKILL)
        group.any(True)


def sleeps(folder):
    "Wait for the end of the process that called torchrun"
    end_with_input()
    leave_a_trace(folder)
    time.sleep(600)


@record
def main(name, folder, *args):
    globals()[name](Path(folder), *args)


if __name__ == '__main__':
    main(*sys.argv[1:])
