"What a user gives to be judged: networks and images of any kind are read, and each mistake gets one line"

import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from adt_repro.attacks.gradient import fgsm
from adt_repro.base.parameters import ParameterError
from adt_repro.data import fingerprint
from adt_repro.evaluation.cache import digest
from adt_repro.evaluation.evaluate import evaluate
from adt_repro.judging.user_data import load_user_data, stratified_order
from adt_repro.judging.user_model import JudgeError, load_user_model, try_model
from adt_repro.models.weights import save_weights

NET = """
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Net(nn.Module):
        def __init__(self, channels=1, pixels=64, classes=10, change=None):
            super().__init__()
            self.fc = nn.Linear(channels * pixels, classes)
            self.change = change

        def forward(self, x):
            z = self.fc(x.flatten(1))
            return z if self.change is None else self.change(x, z)

    def make():
        return Net()

    def needs(depth):
        return Net()

    def gives_text():
        return 'a network'

    def fails():
        return [][1]

    def leaves():
        raise SystemExit(1)

    def a_tuple():
        return Net(change=lambda x, z: (z, x))

    def a_dict():
        return Net(change=lambda x, z: {'out': z})

    def few_classes():
        return Net(classes=7)

    def transposed():
        return Net(change=lambda x, z: z.T)

    def one_score():
        return Net(classes=1)

    def not_finite():
        return Net(change=lambda x, z: z.log() * float('inf'))

    def no_gradient():
        return Net(change=lambda x, z: z.detach())

    def through_numpy():
        return Net(change=lambda x, z: torch.from_numpy(z.detach().numpy()))

    def always_dropout():
        return Net(change=lambda x, z: F.dropout(z))

    def probabilities():
        return Net(change=lambda x, z: z.softmax(1))

    def log_probabilities():
        return Net(change=lambda x, z: z.log_softmax(1))

    def above_zero():
        return Net(change=lambda x, z: z.exp())

    def noisy():
        return Net(change=lambda x, z: z + torch.randn_like(z))

    def batch_statistics():
        return nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), Net())

    def double():
        return Net().double()

    def squeezes():
        return Net(change=lambda x, z: z.squeeze(0))

    def four_only():
        return Net(change=lambda x, z: z.reshape(8, -1))

    def colour():
        return Net(3)

    def lazy():
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
"""


def digits_like(n=120, classes=10, shape=(1, 8, 8), seed=0):
    "Random images in [0, 1], and labels in turn"
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((n, *shape), generator=generator), torch.arange(n) % classes


def write_images(folder, sizes, mode='RGB', classes=('cat', 'dog', 'eel'), kind='png'):
    "Images of noise in subfolders by class"
    rng = np.random.default_rng(0)
    for i, (width, height) in enumerate(sizes):
        place = folder / classes[i % len(classes)]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(place / f'{i:03}.{kind}')
    return folder


def write_home():
    "A network in net.py and images in test.npz, in the working directory"
    Path('net.py').write_text(dedent(NET))
    x, y = digits_like()
    np.savez('test.npz', x=x.numpy(), y=y.numpy())


@pytest.fixture
def home(tmp_path, monkeypatch):
    "A user's folder with a network in net.py and images in test.npz, as the working directory"
    monkeypatch.chdir(tmp_path)
    write_home()
    return tmp_path


# Networks


def test_the_same_network_in_every_form(home):
    "By module, by file, as an object, from files of weights in four forms: the same logits and the same digest"
    x, y = digits_like()
    torch.manual_seed(0)
    plain = load_user_model('net.py:make')
    net = plain.model
    assert try_model(net, x, y) == 10 and not net.training and plain.name == 'net-make'
    with open('net.py', 'a') as file:
        file.write('\nit = make()\n')
    save_weights(net, 'a.safetensors')
    torch.save(net.state_dict(), 'b.pt')
    torch.save({'epoch': 3, 'state_dict': nn.DataParallel(net).state_dict()}, 'c.pth')
    torch.save({'model': {f'_orig_mod.{k}': v for k, v in net.state_dict().items()}}, 'd.pt')
    for weights in 'a.safetensors', 'b.pt', 'c.pth', 'd.pt':
        for spec in 'net:make', 'net:Net', 'net.py:make', 'net.py:it', str(home / 'net.py') + ':Net':
            user = load_user_model(spec, weights=weights)
            assert torch.equal(user.model(x), net(x))
            assert user.facts['weights_sha256'] == plain.facts['weights_sha256']
            assert set(user.facts['files']) == {'net.py', weights}
    assert (
        load_user_model('net:Net').facts['class'] == 'Net'
        and load_user_model('net:Net').facts['n_weights'] == 650
    )


def test_random_weights_are_the_same_each_time(home):
    "A network without a file of weights can be judged, and found again after a kill; other draws go on"
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    first = load_user_model('net.py:make')
    assert torch.equal(torch.rand(1), before)
    assert first.facts == load_user_model('net.py:make').facts
    assert first.facts['weights_sha256'] != load_user_model('net.py:colour').facts['weights_sha256']


def test_digests_agree_between_processes(home):
    "Parts are kept under a digest: it must not depend on the process, and change with the code and the weights"
    save_weights(load_user_model('net.py:make').model, 'a.safetensors')
    code = """
        import sys
        from adt_repro.evaluation.cache import digest
        from adt_repro.judging.user_model import load_user_model
        for spec in sys.argv[1:]:
            user = load_user_model(spec, inputs=[-1, 1], weights=None if spec.endswith('pt2') else 'a.safetensors')
            print(digest(model=user.model), user.facts['weights_sha256'])
    """
    x = digits_like()[0][:4]
    torch.export.save(torch.export.export(load_user_model('net.py:make').model, (x,)), 'n.pt2')
    command = [sys.executable, '-c', dedent(code), 'net.py:make', 'net:make', 'n.pt2']
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in '12')
    assert first == second
    by_file, by_name, program = first.splitlines()
    assert by_file == by_name and not set(by_file.split()) & set(program.split())
    Path('net.py').write_text(Path('net.py').read_text().replace('x.flatten(1)', '-x.flatten(1)'))
    third = subprocess.run(command[:-1], capture_output=True, text=True, check=True).stdout
    assert not set(third.split()[::2]) & set(first.split()) and third.split()[1] == first.split()[1]


def test_neighbours_and_files_of_the_same_name(home):
    "Two files of one name, each with neighbours of one name; sys.path is as before, even after an error"
    for place, width in dict(a=3, b=5).items():
        (home / place / 'parts').mkdir(parents=True)
        (home / place / 'layers.py').write_text(f'width = {width}\n')
        (home / place / 'parts' / '__init__.py').write_text('from layers import width\n')
        code = 'from torch import nn\nfrom parts import width\nnet = nn.Linear(width, width)\n'
        (home / place / 'model.py').write_text(code)
    before = list(sys.path)
    nets = [load_user_model(f'{place}/model.py:net').model for place in 'abab']
    assert [net.in_features for net in nets] == [3, 5, 3, 5] and sys.path == before
    (home / 'a' / 'model.py').write_text('import no_such_package\n')
    with pytest.raises(ParameterError, match='no_such_package.*line 1 of model.py'):
        load_user_model('a/model.py:net')
    assert sys.path == before
    assert 'adt_repro.judging.user_model' in sys.modules


@pytest.mark.parametrize('inputs', [[-1, 1], '[-1, 1]', [[0.5], [0.5]], [[0.2, 0.4, 0.6], [0.5, 0.25, 2]]])
def test_input_ranges(home, inputs):
    "A network that expects other pixels gets them: compared with the arithmetic"
    x, y = digits_like(shape=(3, 8, 8), classes=10)
    net = load_user_model('net.py:colour').model
    user = load_user_model('net.py:colour', inputs=inputs)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in user.facts['inputs'])
    torch.testing.assert_close(user.model(x), net((x - mean) / std))
    assert try_model(user.model, x, y) == 10
    if inputs == [-1, 1]:
        torch.testing.assert_close(user.model(x), net(2 * x - 1))
    assert user.facts['weights_sha256'] != load_user_model('net.py:colour').facts['weights_sha256']


def exported(net, x, name, fixed=False):
    shapes = None if fixed else ({0: torch.export.Dim('n')},)
    torch.export.save(torch.export.export(net, (x,), dynamic_shapes=shapes), name)
    return name


def scripted(net, x, name, how='script'):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        (torch.jit.script(net) if how == 'script' else torch.jit.trace(net, x)).save(name)
    return name


def test_a_torchvision_network_in_files(home):
    "resnet18 of 1,000 classes, not square: TorchScript and torch.export agree with it, and can be attacked and kept"
    from torchvision.models import resnet18

    torch.manual_seed(0)
    net = resnet18(num_classes=1000).eval()
    x, y = digits_like(n=8, classes=1000, shape=(3, 48, 64))
    expected = evaluate(net, x, y, fgsm, eps=4 / 255)
    files = [exported(net, x, 'e.pt2'), scripted(net, x, 's.pt'), scripted(net, x, 't.pt', 'trace')]
    for file in files:
        user = load_user_model(file)
        assert try_model(user.model, x, y) == 1000
        rows = evaluate(user.model, x, y, fgsm, eps=4 / 255)
        assert (rows.pred == expected.pred).all() and np.allclose(rows.margin, expected.margin, atol=1e-4)
        assert user.facts['n_weights'] == sum(p.numel() for p in net.parameters())
        assert digest(model=user.model) == digest(model=load_user_model(file).model)
    normal = load_user_model('e.pt2', inputs=[-1, 1]).model
    assert digest(model=normal) != digest(model=load_user_model('e.pt2').model)
    torch.testing.assert_close(normal(x), net(2 * x - 1), rtol=1e-4, atol=1e-4)


def test_programs_from_code(home):
    "A function that gives a scripted network, or an exported one, is described too"
    code = """
        import torch
        from torch import nn
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        x = torch.zeros(2, 1, 8, 8)
        def scripted():
            return torch.jit.script(net)
        def exported():
            return torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim('n')},)).module()
    """
    Path('programs.py').write_text('import torch\ntorch.manual_seed(0)\n' + dedent(code))
    x, y = digits_like()
    for name in 'scripted', 'exported':
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            user, again = (load_user_model(f'programs.py:{name}') for _ in '12')
        assert try_model(user.model, x, y) == 10 and digest(model=user.model) == digest(model=again.model)


# Images


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=7), st.integers(0, 9))
def test_every_beginning_has_its_share(counts, seed):
    "Each class has its share of every beginning, rounded up or down; every image is there once"
    y = torch.repeat_interleave(torch.arange(len(counts)) * 3, torch.tensor(counts))
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))]
    order = stratified_order(y, seed)
    assert sorted(order.tolist()) == list(range(len(y)))
    n = np.arange(1, len(y) + 1)
    for label, count in enumerate(counts):
        has = (y[order] == 3 * label).numpy().cumsum()
        assert (np.abs(has * len(y) - n * count) < len(y)).all()
    assert torch.equal(order, stratified_order(y, seed))


def test_which_images_come_first_is_drawn():
    "A class's first image is any of its images equally often: a chi-square of 9 degrees of freedom over 2,000 seeds"
    y = torch.arange(20) // 10
    firsts = []
    for seed in range(2000):
        order = stratified_order(y, seed)
        firsts.append(order[y[order] == 0][0].item())
    counts = np.bincount(firsts, minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 33.7  # exceeded once in 10,000


def test_files_of_arrays(home):
    "npz, compressed or not, in either order, and safetensors: the same images as by indexing"
    x, y = digits_like(300, 7, (3, 8, 10))
    bytes_last = (x * 255).round().byte().permute(0, 2, 3, 1).numpy()
    order = np.asfortranarray(x.numpy())
    files = dict(plain=dict(x=x.numpy(), y=y.numpy()), fortran=dict(x=order, y=y.numpy().astype('>i4')))
    files |= dict(
        big=dict(X=x.numpy().astype('>f4'), y=y.numpy()), double=dict(x=x.double().numpy(), y=y.numpy())
    )
    files |= dict(last=dict(images=bytes_last, labels=y[:, None].numpy().astype('uint8')))
    for name, arrays in files.items():
        np.savez(f'{name}.npz', **arrays)
        np.savez_compressed(f'{name}_c.npz', **arrays)
    save_file(dict(x=x, y=y), 'plain.safetensors')
    save_file(dict(images=torch.from_numpy(bytes_last).contiguous(), labels=y.int()), 'last.safetensors')
    for file in sorted(home.glob('*.npz')) + sorted(home.glob('*.safetensors')):
        if file.stem == 'test':
            continue
        data = load_user_data(file.name, n_test=90, seed=2)
        assert torch.equal(data.index, stratified_order(y, 2)[:90]) and torch.equal(data.y, y[data.index])
        exact = x[data.index] if 'last' not in file.stem else (x[data.index] * 255).round() / 255
        torch.testing.assert_close(data.x, exact, rtol=0, atol=1e-7)
        assert data.facts['n_classes'] == 7 and data.facts['n_available'] == 300
        assert data.facts['test_set'] == fingerprint(data.x, data.y) and list(data.facts['files']) == [
            file.name
        ]
        assert ('uint8' in str(data.facts['said'])) == ('last' in file.stem)


def test_a_folder_of_photographs(home, monkeypatch):
    "PNG and JPEG of mixed sizes with size=64, against torchvision's ImageFolder; only those that are used are opened"
    from torchvision import transforms
    from torchvision.datasets import ImageFolder
    from torchvision.models import resnet18

    rng = np.random.default_rng(1)
    sizes = [tuple(rng.integers(40, 120, 2)) for _ in range(90)]
    write_images(home / 'photos', sizes[:60])
    write_images(home / 'photos', sizes[60:], kind='jpg')
    (home / 'photos' / '.hidden').mkdir()
    (home / 'photos' / 'cat' / 'notes.txt').write_text('no image')
    opened = []
    real = Image.open
    monkeypatch.setattr(Image, 'open', lambda file: opened.append(1) or real(file))
    data = load_user_data('photos', n_test=60, size=64)
    assert len(opened) == 60
    steps = [transforms.Resize(64), transforms.CenterCrop(64), transforms.ToTensor()]
    theirs = ImageFolder(
        'photos', transforms.Compose(steps), allow_empty=True, is_valid_file=lambda f: f[-3:] != 'txt'
    )
    assert [*data.classes] == [c for c in theirs.classes if c != '.hidden'] == ['cat', 'dog', 'eel']
    places = [Path(file).relative_to('photos').as_posix() for file, _ in theirs.samples]
    for k in range(60):
        image, _ = theirs[places.index(data.names[k])]
        assert torch.equal(data.x[k], image) and data.names[k].startswith(data.classes[data.y[k]])
    assert data.y.bincount().tolist() == [20, 20, 20]
    torch.manual_seed(0)
    assert try_model(resnet18(num_classes=1000).eval(), data.x, data.y) == 1000


@pytest.mark.parametrize('mode, channels', [('L', 1), ('1', 1), ('P', 3), ('RGBA', 3), ('RGB', 3)])
def test_modes_of_images(home, mode, channels):
    write_images(home / 'photos', [(9, 7)] * 51, mode)
    data = load_user_data('photos')
    assert data.x.shape == (51, channels, 7, 9)
    assert ('converted' in str(data.facts['said'])) == (mode not in ('L', 'RGB'))


def test_a_dataset_in_code(home):
    "A Dataset of PIL images or tensors, with or without targets, by module or file; few of its items are made"
    code = """
        import numpy as np, torch
        from PIL import Image
        from torch.utils.data import Dataset, TensorDataset

        x = torch.randint(0, 256, (200, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        y = torch.arange(200) % 4
        made = []

        class Pictures(Dataset):
            targets = y.tolist()
            classes = ['a', 'b', 'c', 'd']
            def __len__(self):
                return 200
            def __getitem__(self, i):
                made.append(i)
                return Image.fromarray(x[i].permute(1, 2, 0).numpy()), int(y[i])

        def tensors():
            return TensorDataset(x / 255, y)
    """
    Path('mine.py').write_text(dedent(code))
    pictures = load_user_data('mine:Pictures', n_test=60)
    tensors = load_user_data('mine.py:tensors', n_test=60)
    assert torch.equal(pictures.x, tensors.x) and torch.equal(pictures.y, tensors.y)
    assert pictures.classes == ['a', 'b', 'c', 'd'] and len(sys.modules['mine'].made) == 60
    assert torch.equal(pictures.y, pictures.index % 4) and 'mine.py' in pictures.facts['files']


def test_grey_images_and_no_square():
    "One channel, not square, and images without an axis of channels"
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6))
    x, y = digits_like(60, 6, (1, 12, 20))
    assert try_model(net, x, y) == 6


# Mistakes: each gets one line that names the parameter, what was found, and what to do

X, Y = digits_like()


def save(**arrays):
    "Another test.npz"
    np.savez('test.npz', **{k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in arrays.items()})


def ragged():
    "Images of several sizes as an array of objects"
    found = np.empty(120, dtype=object)
    found[:] = [np.zeros((1, 8 + i % 2, 8)) for i in range(120)]
    return found


def with_nan():
    x = X.clone()
    x[:, 0, 3, 3] = float('nan')
    return x


MISTAKES = {
    # models: options of load_user_model; words that the line must have
    'wrong path': (dict(model='nets/net.py:make'), 'model=.*there is no .*nets/net.py'),
    'no such module': (dict(model='no_such:make'), 'model=.*there is no no_such in'),
    'no such file': (dict(model='best.pt2'), 'model=.*there is no .*best.pt2'),
    'no such function': (dict(model='net.py:mak'), "model=.*no 'mak', did you mean 'make'"),
    'no function named': (dict(model='net.py'), 'model=.*expected net.py:name'),
    'not a text': (dict(model=3), 'model=3: expected module:name'),
    'function with required arguments': (
        dict(model='net.py:needs'),
        'model=.*without required arguments.*depth',
    ),
    'gives no module': (dict(model='net.py:gives_text'), 'model=.*expected a torch.nn.Module.*str'),
    'fails when called': (dict(model='net.py:fails'), 'model=.*IndexError.*line \\d+ of net.py'),
    'exits when called': (dict(model='net.py:leaves'), 'model=.*SystemExit'),
    'import error': (
        dict(model='broken.py:make'),
        'model=.*ModuleNotFoundError.*line 1 of broken.py.*install',
    ),
    'syntax error': (dict(model='typo.py:make'), 'model=.*SyntaxError.*line 2'),
    'weights without lazy sizes': (dict(model='net.py:lazy'), 'model=.*LazyLinear|model=.*lazy layers'),
    'weights given as the model': (dict(model='weights.pt'), 'model=.*torch.save.*given as weights'),
    'weights of another network': (dict(weights='other.pt'), 'weights=.*fc.weight is missing.*model=Net'),
    'weights of another size': (
        dict(weights='larger.pt'),
        'weights=.*fc.weight is \\(12, 64\\), not \\(10, 64\\)',
    ),
    'no file of weights': (dict(weights='absent.pt'), 'weights=.*there is no'),
    'weights that run code': (dict(weights='evil.pt'), 'weights=.*cannot be read.*expected'),
    'weights that diverged': (dict(weights='nan.pt'), 'weights=.*finite numbers: fc.weight'),
    'wrong inputs': (dict(inputs=[1, 0]), 'inputs=.*expected a range'),
    'means of three channels': (dict(inputs=[[0.5] * 3, [0.2] * 3]), 'inputs: 3 means .* expected 1'),
    'CUDA absent': (dict(device='cuda:77'), "device='cuda:77': expected one of auto, cpu"),
    # judged on images
    'a tuple': (dict(model='net.py:a_tuple'), 'model=Net: gives a tuple.*forward gives the logits'),
    'a dict': (dict(model='net.py:a_dict'), 'model=Net: gives a dict.*forward gives the logits'),
    'too few classes': (dict(model='net.py:few_classes'), 'y: labels go from 0 to 9, expected 0 to 6'),
    'wrong shape': (dict(model='net.py:transposed'), 'model=Net: gives \\(10, 8\\).*expected logits'),
    'one score': (dict(model='net.py:one_score'), 'model=Net: gives one logit.*two classes'),
    'not finite': (dict(model='net.py:not_finite'), 'model=Net: the logits are not finite'),
    'no gradient': (dict(model='net.py:no_gradient'), 'model=Net: its logits have no gradient.*detach'),
    'through NumPy': (dict(model='net.py:through_numpy'), 'model=Net: its logits have no gradient.*NumPy'),
    'dropout in evaluation': (dict(model='net.py:always_dropout'), 'model=Net: .*second pass.*dropout'),
    'probabilities': (
        dict(model='net.py:probabilities'),
        'model=Net: gives probabilities.*leave out the softmax',
    ),
    'noise': (dict(model='net.py:noisy'), 'model=Net: .*second pass.*noise'),
    'batch statistics': (dict(model='net.py:batch_statistics'), 'model=Sequential: .*another batch.*running'),
    'double precision': (
        dict(model='net.py:double'),
        'model=Net: its weights are torch.float64.*float\\(\\)',
    ),
    'no single image': (dict(model='net.py:squeezes'), 'model=Net: gives \\(10,\\) for 1 images'),
    'one size of batch': (dict(model='net.py:four_only'), 'model=Net: '),
    'one size of batch, exported': (dict(model='fixed.pt2'), 'model=FileNetwork: .*dynamic_shapes'),
    'other channels': (dict(model='net.py:colour'), 'model=Net: cannot take images of shape \\(1, 8, 8\\)'),
    # images
    'labels 1 to 10': (dict(save=dict(x=X, y=Y + 1)), 'y: labels go from 1 to 10, expected 0 to 9.*y - 1'),
    'one-hot': (dict(save=dict(x=X, y=F.one_hot(Y))), 'data=.*labels \\(120, 10\\).*argmax\\(1\\)'),
    'float labels': (dict(save=dict(x=X, y=Y.float())), 'data=.*float32.*whole numbers'),
    'names as labels': (dict(save=dict(x=X, y=np.array(['cat'] * 120))), 'data=.*whole numbers'),
    'negative labels': (dict(save=dict(x=X, y=Y - 1)), 'data=.*labels from -1'),
    'one class': (dict(save=dict(x=X, y=0 * Y)), 'data=.*at least two classes'),
    'unequal lengths': (dict(save=dict(x=X, y=Y[:100])), 'data=.*120 images and labels \\(100,\\)'),
    'layout not certain': (
        dict(save=dict(x=torch.rand(120, 3, 8, 3), y=Y)),
        'data=.*\\(120, 3, 8, 3\\).*transpose',
    ),
    'channels at the end': (
        dict(save=dict(x=torch.rand(120, 8, 8, 4), y=Y)),
        'data=.*second axis.*transpose',
    ),
    'flat images': (dict(save=dict(x=X.flatten(1), y=Y)), 'data=.*\\(120, 64\\).*reshape'),
    'pixels to 255': (dict(save=dict(x=255 * X, y=Y)), 'data=.*divide them by 255'),
    'normalised': (dict(save=dict(x=(X - 0.5) / 0.2, y=Y)), 'data=.*before normalisation.*inputs'),
    'whole numbers': (dict(save=dict(x=(255 * X).int(), y=Y)), 'data=.*int32.*uint8'),
    'NaN': (dict(save=dict(x=with_nan(), y=Y)), 'data: expected finite pixels'),
    'few images': (dict(save=dict(x=X[:40], y=Y[:40])), 'data=.*at least 50 images: it has 40'),
    'no images': (dict(save=dict(x=X[:0], y=Y[:0])), 'data=.*at least 50 images: it has 0'),
    'few images asked': (dict(n_test=10), 'n_test=10: .*at least 50'),
    'no arrays x and y': (dict(save=dict(a=X, b=Y)), "data=.*x and y.*'a', 'b'"),
    'two pairs': (dict(save=dict(x=X, y=Y, images=X, labels=Y)), 'data=.*one pair.*x, y and images, labels'),
    'pickled': (dict(save=dict(x=ragged(), y=Y)), 'data=.*objects.*pickles'),
    'no such data': (dict(data='absent.npz'), 'data=.*there is no .*absent.npz'),
    'another kind of file': (dict(data='net.py'), 'data=.*expected a .npz.*of another kind'),
    'damaged': (dict(data='cut.npz'), 'data=.*cannot be read'),
    'empty folder': (dict(data='empty'), 'data=.*a subfolder of images for each class: it has none'),
    'no subfolders': (dict(data='flat'), 'data=.*a subfolder.*3 images'),
    'no images in subfolders': (dict(data='texts'), 'data=.*images in the subfolders'),
    'mixed sizes': (dict(data='mixed'), 'data=.*2 sizes.*give size'),
    'broken image': (dict(data='broken'), 'data=.*cat/000.png.*mend or delete'),
    'wrong size': (dict(data='mixed', size=0), 'size=0: expected a whole number'),
    'size of a file': (dict(size=8), 'size=8: expected None'),
    'no Dataset': (dict(data='net.py:gives_text'), 'data=.*pairs of image and label|data=.*Dataset'),
    'a loader': (dict(data='loader.py:loader'), 'data=.*a torch Dataset.*DataLoader'),
    'labels as text': (dict(data='loader.py:Names'), "data=.*whole numbers as labels.*'cat'"),
}


class Evil:
    "Makes a file when it is unpickled"

    def __reduce__(self):
        return open, ('was-here', 'w')


@pytest.fixture(scope='module')
def all_mistakes(tmp_path_factory):
    "A user's folder whose files have mistakes"
    home = tmp_path_factory.mktemp('mistakes') / 'home'
    home.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        write_home()
        write_mistakes(home)
    return home


@pytest.fixture
def spoiled(all_mistakes, tmp_path, monkeypatch):
    "A copy of it as the working directory"
    shutil.copytree(all_mistakes, tmp_path / 'home')
    monkeypatch.chdir(tmp_path / 'home')


def write_mistakes(home):
    "Files of networks, weights and images that cannot be used, in the working directory"
    Path('broken.py').write_text('import no_such_package\n')
    Path('typo.py').write_text('import torch\ndef make(:\n')
    Path('loader.py').write_text(
        dedent("""
            import torch
            from torch.utils.data import DataLoader, Dataset, TensorDataset
            loader = DataLoader(TensorDataset(torch.rand(60, 1, 8, 8), torch.arange(60) % 10))
            class Names(Dataset):
                def __len__(self):
                    return 60
                def __getitem__(self, i):
                    return torch.rand(1, 8, 8), 'cat'
        """)
    )
    net = load_user_model('net.py:make').model
    torch.save(net.state_dict(), 'weights.pt')
    torch.save(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).state_dict(), 'other.pt')
    torch.save({'fc.weight': torch.zeros(12, 64), 'fc.bias': torch.zeros(12)}, 'larger.pt')
    torch.save({'fc.weight': torch.full((10, 64), torch.nan), 'fc.bias': torch.zeros(10)}, 'nan.pt')
    torch.save({'state_dict': Evil()}, 'evil.pt')
    exported(net, X[:4], 'fixed.pt2', fixed=True)
    Path('cut.npz').write_bytes(Path('test.npz').read_bytes()[:3000])
    Path('empty').mkdir()
    Path('flat').mkdir()
    for i in range(3):
        Image.new('RGB', (8, 8)).save(f'flat/{i}.png')
    (home / 'texts' / 'cat').mkdir(parents=True)
    (home / 'texts' / 'cat' / 'a.txt').write_text('no image')
    write_images(home / 'mixed', [(8 + i % 2, 8) for i in range(60)])
    write_images(home / 'broken', [(8, 8)] * 60)
    (home / 'broken' / 'cat' / '000.png').write_bytes(b'no image')


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_gets_one_line(spoiled, mistake):
    "Loaded and tried as a call does it"
    given, expected = MISTAKES[mistake]
    given = dict(given)
    if 'save' in given:
        save(**given.pop('save'))
    of_model = {k: v for k, v in given.items() if k in ('weights', 'inputs', 'device')}
    of_data = {k: v for k, v in given.items() if k in ('n_test', 'size')}
    with pytest.raises(ParameterError) as refused:
        data = load_user_data(given.get('data', 'test.npz'), **of_data)
        user = load_user_model(given.get('model', 'net.py:make'), **of_model)
        try_model(user.model, data.x, data.y)
    line = str(refused.value)
    assert '\n' not in line and 'expected' in line and len(line) < 600, line
    assert re.match(r'(model|weights|inputs|device|data|size|n_test|y)[=:]', line), line
    assert re.search(expected, line), line
    assert not Path('was-here').exists()


def test_there_are_enough_mistakes_and_none_without_one(spoiled):
    "The same call without a mistake passes; what is judged on images is a JudgeError"
    assert len(MISTAKES) >= 25
    data, user = load_user_data('test.npz'), load_user_model('net.py:make', weights='weights.pt')
    assert try_model(user.model, data.x, data.y) == 10
    with pytest.raises(JudgeError):
        try_model(load_user_model('net.py:noisy').model, data.x, data.y)


@pytest.mark.parametrize('name', ['log_probabilities', 'above_zero'])
def test_outputs_that_only_look_like_probabilities(name, home):
    x, y = digits_like()
    assert try_model(load_user_model(f'net.py:{name}').model, x, y) == 10


def test_a_network_that_never_looks_at_its_pixels():
    "Constant logits have no gradient; logits that depend on the image by a step have one of zero, which is for checks"
    x, y = digits_like()
    weight = torch.zeros(1, requires_grad=True)
    constant = SimpleNamespace(forward=lambda x: weight.expand(len(x), 10))
    with pytest.raises(JudgeError, match='no gradient'):
        try_model(constant.forward, x, y)

    class Steps(nn.Module):
        def forward(self, x):
            return (x - x.detach() + x.round().detach() * 1).flatten(1)[:, :10] * 0 + x.flatten(1)[
                :, :10
            ].round()

    assert try_model(Steps(), x, y) == 10
