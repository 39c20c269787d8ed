"adt judge as users start it: the exit status is the answer, killed and started again, and without a network"

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from helpers import run, small_project
from test_packaging import run as run_alone

from adt_repro.data import load_data
from adt_repro.models.trained import trained_network

ADT = [sys.executable, '-m', 'adt_repro.command.main']
ATTACKS = ['-y', 'attacks: [fgsm, pgd20, pgd100]', '-p', 'autoattack', 'false']
RESULTS = 'report.html', 'report.json', 'plan.json', 'images.csv', 'records/judge.parquet'

# A user's module: the network is plain PyTorch, and nothing may be looked for in a network
NET = """
import socket
from pathlib import Path

import torch
from torch import nn

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


class Net(nn.Module):
    def __init__(self, factor=1.0, noise=0.0):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 12, 3, padding=1)
        self.conv2 = nn.Conv2d(12, 24, 3, padding=1, stride=2)
        self.fc = nn.Linear(24 * 16, 10)
        self.factor, self.noise = factor, noise

    def forward(self, x):
        x = x + self.noise * torch.randn_like(x)
        x = self.conv2(self.conv1(x).relu()).relu()
        return self.factor * self.fc(x.flatten(1))


def made(**options):
    net = Net(**options)
    net.load_state_dict(torch.load(FOLDER / 'net.pt', weights_only=True))
    return net


def sound():
    return made()


def steep():
    return made(factor=50.0)


def noisy():
    return made(noise=0.3)
"""
SLOW = """
import time

import net


class Slow(net.Net):
    def forward(self, x):
        time.sleep(0.01)
        return super().forward(x)


def make_model():
    slow = Slow()
    slow.load_state_dict(net.made().state_dict())
    return slow
"""


def put_files(folder):
    "A user's files: an adversarially trained network of plain PyTorch, and images with labels"
    import adt_repro as adt

    names = {}
    (folder / 'net.py').write_text(NET)
    (folder / 'my_module.py').write_text(SLOW)
    exec(NET.split('class Net')[1].join(['import torch\nfrom torch import nn\n\n\nclass Net', '']).split('def made')[0], names)
    data, net = load_data('digits'), names['Net']()
    from adt_repro.training.state import Recipe

    recipe = Recipe(epochs=8, lr=0.05, augment=False)
    torch.manual_seed(0)
    adt.train(net, data, method='at_pgd', eps=0.1, recipe=recipe, progress=False)
    torch.save(net.state_dict(), folder / 'net.pt')
    np.savez(folder / 'test.npz', x=data.x_test[:60].numpy(), y=data.y_test[:60].numpy())
    return folder
