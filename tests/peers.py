"""PGD by other libraries, in an environment of their own (their requirements do not go with ours):

    uv venv .venv-peers
    uv pip install -p .venv-peers/bin/python torch torchvision safetensors packaging torchattacks foolbox \
        adversarial-robustness-toolbox robustbench 'setuptools<81' pyautoattack adv-lib

tests/unit/test_vectors_peers.py runs the test vectors in it, for which adv-lib is there too. tests/unit/test_peers.py
and nbs/benchmark.ipynb start this file with that environment's Python, and exchange files:

    python tests/peers.py attack FOLDER   job.json, weights.safetensors, images.safetensors
                                          -> result.json, x_adv.safetensors
    python tests/peers.py time FOLDER     job.json -> result.json
"""

import copy
import json
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from exported import have

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from adt_repro.attacks.gradient import pgd
from adt_repro.models.classifiers import build_model
from adt_repro.models.weights import load_weights

# PGD by each library as its documentation says, all with one signature: the network in evaluation mode, images,
# labels, the sizes of the attack, whether it starts at random, and that start as an offset from the images.
# Without an offset the library draws its own. All of them clip their start to [0, 1].


@contextmanager
def given(owner, name, value):
    "A context in which the library's own draw, `owner.name`, returns `value`, and has to be made exactly once"
    with mock.patch.object(owner, name, mock.Mock(return_value=value)) as draw:
        yield
    draw.assert_called_once()


def ours(model, x, y, *, eps, steps, step, random):
    return pgd(
        model,
        x,
        y,
        eps=eps,
        steps=steps,
        step_size=step,
        clip_start=True,
        **({} if random else dict(start=torch.zeros_like)),
    )


def by_torchattacks(model, x, y, *, eps, steps, step, random, offset=None):
    import torchattacks

    attack = torchattacks.PGD(model, eps=eps, alpha=step, steps=steps, random_start=random)
    if offset is None:
        return attack(x, y)
    with given(torch.Tensor, 'uniform_', offset):
        return attack(x, y)


def by_foolbox(model, x, y, *, eps, steps, step, random, offset=None):
    import eagerpy
    import foolbox

    net = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
    attack, goal = (
        foolbox.attacks.LinfPGD(abs_stepsize=step, steps=steps, random_start=random),
        foolbox.Misclassification(y),
    )
    if offset is None:
        return attack.run(net, x, goal, epsilon=eps)
    with given(attack, 'get_random_start', eagerpy.astensor(x + offset)):
        return attack.run(net, x, goal, epsilon=eps)


def by_art(model, x, y, *, eps, steps, step, random, offset=None):
    import numpy
    from art.attacks.evasion.projected_gradient_descent import projected_gradient_descent_pytorch as art
    from art.estimators.classification import PyTorchClassifier

    net = PyTorchClassifier(
        model,
        torch.nn.CrossEntropyLoss(),
        tuple(x.shape[1:]),
        model.fc.out_features,
        clip_values=(0, 1),
        device_type='gpu' if x.is_cuda else 'cpu',
    )
    attack = art.ProjectedGradientDescentPyTorch(
        net,
        numpy.inf,
        eps,
        step,
        max_iter=steps,
        num_random_init=int(random),
        batch_size=len(x),
        verbose=False,
    )
    if offset is None:
        return torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy()))
    with given(art, 'random_sphere', offset.flatten(1).numpy()):
        return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))


PEERS = {'torchattacks': by_torchattacks, 'foolbox': by_foolbox, 'adversarial-robustness-toolbox': by_art}

# What is asked for


def attack(folder, job):
    "The same images by each peer, twice: from the given start, and from the clean images"
    from safetensors.torch import load_file, save_file

    data = load_file(folder / 'images.safetensors')
    x, y, offset = (data[k] for k in ('x', 'y', 'offset'))
    net = load_weights(build_model(job['arch'], x.shape[1]), folder / 'weights.safetensors').eval()
    out, starts = {}, dict(random=dict(random=True, offset=offset), clean=dict(random=False))
    for name in have(PEERS):
        for start, how in starts.items():
            out[f'{name}, {start}'] = PEERS[name](copy.deepcopy(net), x, y, **job['pgd'], **how).contiguous()
    save_file(out, folder / 'x_adv.safetensors')
    return {}


def seconds(run, x):
    sync = torch.cuda.synchronize if x.is_cuda else lambda: None
    sync()
    begin = time.perf_counter()
    run()
    sync()
    return time.perf_counter() - begin


def times(folder, job):
    "Seconds of each attack, in turn, each round in another order; all of one network, random images and labels"
    if job['threads']:
        torch.set_num_threads(job['threads'])
    torch.manual_seed(0)
    model = build_model(job['arch']).eval().to(job['device'])
    x, y = (
        torch.rand(job['batch'], 3, 32, 32, device=job['device']),
        torch.randint(10, (job['batch'],), device=job['device']),
    )
    libs = {'adt_repro': ours} | {name: PEERS[name] for name in have(PEERS)}
    nets = {name: copy.deepcopy(model) for name in libs}

    def run(name, **other):
        return libs[name](nets[name], x, y, **job['pgd'] | other, random=True)

    for name in libs:
        run(name, steps=2)  # to warm up
    spent, order = {name: [] for name in libs}, list(libs)
    for _ in range(job['repeats']):
        for name in order:
            spent[name].append(seconds(partial(run, name), x))
        order = order[1:] + order[:1]
    return dict(seconds=spent, threads=torch.get_num_threads())


if __name__ == '__main__':
    what, folder = sys.argv[1], Path(sys.argv[2])
    result = dict(attack=attack, time=times)[what](folder, json.loads((folder / 'job.json').read_text()))
    (folder / 'result.json').write_text(
        json.dumps(result | dict(versions={'torch': torch.__version__} | have(PEERS)))
    )
