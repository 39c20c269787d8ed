"""What other libraries make of an exported run, in an environment of their own:

    uv venv .venv-peers
    uv pip install -p .venv-peers/bin/python torch torchvision safetensors packaging torchattacks foolbox \
        adversarial-robustness-toolbox robustbench 'setuptools<81' pyautoattack

tests/unit/test_interop.py starts this file with that environment's Python, which needs nothing of this project:

    python tests/exported.py have                    -> the versions of what is there, as JSON
    python tests/exported.py FOLDER DEPTH WIDEN EPS  NAME.pt, NAME.json, images.safetensors
                                                     -> logits.safetensors, x_adv.safetensors
"""

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PEERS = 'torch', 'robustbench', 'torchattacks', 'foolbox', 'pyautoattack'


def have(names=PEERS):
    "The peers that this interpreter has, with their versions"
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
    return found


def attacks(net, x, y, eps):
    "Each library's attack on the network as it was loaded"
    import foolbox
    import torchattacks
    from pyautoattack import AutoAttack

    yield 'torchattacks_pgd', torchattacks.PGD(net, eps=eps, alpha=eps / 4, steps=10)(x, y)
    yield 'torchattacks_mim', torchattacks.MIFGSM(net, eps=eps, alpha=eps / 4, steps=10)(x, y)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=eps / 4, steps=10)
    yield (
        'foolbox_pgd',
        attack.run(
            foolbox.PyTorchModel(net, bounds=(0, 1), device=x.device),
            x,
            foolbox.Misclassification(y),
            epsilon=eps,
        ),
    )
    judge = AutoAttack(net, eps=eps, version='standard', device=x.device, seed=0)
    judge.verbose = False
    yield 'autoattack', judge.run_standard_evaluation(x, y, batch_size=len(x))[0]


def main(folder, depth, widen, eps):
    import torch
    from robustbench.model_zoo.architectures.wide_resnet import WideResNet
    from robustbench.utils import ModelInfo, clean_accuracy
    from safetensors.torch import load_file, save_file

    folder, images = Path(folder), load_file(Path(folder) / 'images.safetensors')
    x, y, logits, acc = images['x'], images['y'], {}, {}
    for file in sorted(folder.glob('*.pt')):
        state = torch.load(file, weights_only=True)
        net = WideResNet(
            depth=int(depth),
            num_classes=10,
            widen_factor=int(widen),
            sub_block1=any(k.startswith('sub_block1.') for k in state),
        )
        net.load_state_dict(state, strict=True)
        net.eval()
        ModelInfo(**json.loads(file.with_suffix('.json').read_text()))  # refuses keys that it does not know
        with torch.no_grad():
            logits[file.stem] = net(x)
        acc[file.stem] = clean_accuracy(net, x, y)
    save_file(logits, folder / 'logits.safetensors')
    if float(eps):
        save_file(
            {k: v.detach().contiguous() for k, v in attacks(net, x, y, float(eps))},
            folder / 'x_adv.safetensors',
        )
    (folder / 'result.json').write_text(json.dumps(dict(versions=have(), clean_accuracy=acc)))


if __name__ == '__main__':
    if sys.argv[1] == 'have':
        print(json.dumps(have()))
    else:
        main(*sys.argv[1:])
