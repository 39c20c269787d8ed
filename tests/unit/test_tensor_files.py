"Small files that ask for a machine's memory: one line each, before anything is allocated; good files are read"

import json
import struct
import sys
from io import BytesIO
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import pytest
import torch
from helpers import run
from safetensors.torch import save_file

from adt_repro.methods.table import make_method
from adt_repro.models.classifiers import build_model
from adt_repro.training.state import Recipe, State

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')  # PyTorch's, on sparse and quantised tensors
# What a process says about each file, with no more than one further gibibyte of memory
READER = """
import copy, json, resource, sys
from pathlib import Path

import torch
from helpers import refusal

from adt_repro.exchange.import_weights import load_network
from adt_repro.methods.table import make_method
from adt_repro.models.classifiers import build_model
from adt_repro.models.weights import load_weights
from adt_repro.runs.store import load_run
from adt_repro.training.state import Recipe, State, load_checkpoint


def new_state():
    return State(build_model('small_cnn', 1), make_method('standard', 0.1, (1, 8, 8)), Recipe(epochs=3, batch=64))


def run_with(file):
    "The network of a finished run whose weights are this file"
    run = file.parent / 'runs' / file.stem
    run.mkdir(parents=True)
    config = dict(method='imported', dataset='digits', arch='small_cnn', eps=0.1, label='x')
    (run / 'config.yaml').write_text(json.dumps(config | dict(device='cpu', scale='x')))
    (run / 'run.json').write_text('{}')
    (run / 'weights.safetensors').symlink_to(file)
    try:
        return type(load_run(run)[0]).__name__
    except ValueError as error:
        raise type(error)(str(error).replace('weights.safetensors', file.name)) from None


readers = {
    'checkpoint': lambda file: load_checkpoint(new_state(), file).place,
    'network': lambda file: load_network(file)[1]['arch'],
    'weights': lambda file: type(load_weights(build_model('small_cnn', 1), file)).__name__,
    'run': run_with,
}
pages = int(Path('/proc/self/statm').read_text().split()[0])
most = pages * resource.getpagesize() + 2**30
resource.setrlimit(resource.RLIMIT_AS, (most, most))
said = {}
for name in sys.argv[2:]:
    file = Path(sys.argv[1]) / name
    said[name] = refusal(readers[name.split('-')[0]], file)
print(json.dumps(said))
"""


def plain_state():
    "A checkpoint of the reader's network after three steps, and what it is"
    state = State(
        build_model('small_cnn', 1), make_method('standard', 0.1, (1, 8, 8)), Recipe(epochs=3, batch=64)
    )
    row = dict.fromkeys(('epoch', 'lr', 'loss', 'entropy', 'seconds'), 1)
    saved = dict(epoch=1, step=3, sums=[0.0, 0.0, 0], seconds=0.0, history=[row], order=torch.randperm(300))
    saved |= dict(
        facts={}, opts=[opt.state_dict() for opt in state.opts], cpu=torch.get_rng_state(), device=[]
    )
    return saved | {name: net.state_dict() for name, net in state.nets.items()}


def asking_tensors():
    "Name to a state dict that asks for more than it has"
    one, block = torch.zeros(1), torch.zeros(40_000)
    flat = {f'block{k}.layer.0.conv1.weight': torch.empty(320 * k, 0, 0, 0) for k in (1, 2, 3)}
    return dict(
        expanded={'fc.weight': one.expand(200_000, 200_000)},
        sparse={'fc.weight': torch.sparse_coo_tensor([[0], [0]], [1.0], (200_000, 200_000))},
        meta={'fc.weight': torch.empty(200_000, 200_000, device='meta')},
        quantised={'fc.weight': torch.quantize_per_tensor(torch.zeros(4), 1.0, 0, torch.quint8)},
        shared={str(k): block[:] for k in range(12_000)},
        shapes=flat | {'conv1.weight': torch.empty(16, 3, 0, 0), 'fc.weight': torch.empty(10**9, 0)},
        many={f'layer1.{k}.conv1.weight': one for k in range(12_000)},
        dots={'a.' * 200_000 + 'b': one},
        control={'\x1b]0;title\x07\x1b[2J': one},
        normalisation={'norm.mean': torch.zeros(5000), 'norm.std': torch.ones(5000), 'fc.bias': one},
    )


def archive(file, entries, compression=ZIP_STORED):
    with ZipFile(file, 'w', compression) as made:
        for name, content in entries.items():
            made.writestr(f'archive/{name}', content)


def crafted_files(folder):
    "Files that no library would write"
    buffer = BytesIO()
    torch.save(torch.zeros(1000), buffer, _use_new_zipfile_serialization=False)
    count = b'M' + struct.pack('<H', 1000) + b'N'
    assert buffer.getvalue().count(count) == 1
    lie = b'J' + struct.pack('<i', 2**31 - 1) + b'N'
    (folder / 'network-count.pt').write_bytes(buffer.getvalue().replace(count, lie))

    torch.save({'fc.weight': torch.zeros(2**24)}, folder / 'large.pt')
    with ZipFile(folder / 'large.pt') as made:
        entries = {name.partition('/')[2]: made.read(name) for name in made.namelist()}
    archive(folder / 'network-deflated.pt', entries, ZIP_DEFLATED)
    (folder / 'large.pt').unlink()

    deep = b'\x80\x02' + b']' * 200_000 + b'a' * 199_999 + b'.'
    archive(folder / 'network-deep.pt', {'data.pkl': deep, 'version': b'3\n', 'byteorder': b'little'})
    arrays = b'\x80\x02c__builtin__\nbytearray\n' + b'J' + struct.pack('<i', 2**31 - 1) + b'\x85R.'
    archive(folder / 'network-bytearray.pt', {'data.pkl': arrays, 'version': b'3\n', 'byteorder': b'little'})

    (folder / 'weights-length.safetensors').write_bytes(struct.pack('<Q', 2**40) + b'{}')
    header = json.dumps({'fc.weight': dict(dtype='F32', shape=[10**6, 10**6], data_offsets=[0, 4])}).encode()
    (folder / 'network-shape.safetensors').write_bytes(struct.pack('<Q', len(header)) + header + b'0000')
    huge_files(folder)


def huge_files(folder):
    "Sparse files of 200 GB: of a header that asks for little, for as much, for more, and of none"
    size = 200 * 10**9
    for name, asked in dict(little=4, much=size, more=10 * size).items():
        tensor = dict(dtype='F32', shape=[asked // 4], data_offsets=[0, asked])
        header = json.dumps({'fc.weight': tensor}).encode()
        for reader in 'network', 'weights', 'run':
            with (folder / f'{reader}-{name}.safetensors').open('wb') as file:
                file.write(struct.pack('<Q', len(header)) + header)
                file.truncate(8 + len(header) + size)
    for k, header in enumerate(
        [b'[]', b'{"a": 3}', b'{"a": {"data_offsets": [0, "4"]}}', b'{', b'[' * 10**6]
    ):
        (folder / f'weights-header{k}.safetensors').write_bytes(struct.pack('<Q', len(header)) + header)


@pytest.fixture(scope='module')
def said(tmp_path_factory):
    "Name of a file to what its reader says"
    folder = tmp_path_factory.mktemp('files')
    net = build_model('small_cnn', 1)
    for is_archive, kind in (True, ''), (False, '-old'):
        torch.save(
            dict(net=net.state_dict(), epoch=3),
            folder / f'network-good{kind}.pt',
            _use_new_zipfile_serialization=is_archive,
        )
        for name, tensors in asking_tensors().items():
            file = folder / f'network-{name}{kind}.pt'
            torch.save(tensors, file, _use_new_zipfile_serialization=is_archive)
    save_file(net.state_dict(), folder / 'weights-good.safetensors')
    save_file(net.state_dict(), folder / 'network-good.safetensors')
    save_file(net.state_dict(), folder / 'run-good.safetensors')
    whole = plain_state()
    torch.save(whole, folder / 'checkpoint-good.pt')
    orders = dict(
        expanded=torch.zeros(1, dtype=torch.int64).expand(10**10),
        sparse=torch.sparse_coo_tensor([[0]], [1], (10**10,)),
        meta=torch.empty(10**10, dtype=torch.int64, device='meta'),
    )
    for name, order in orders.items():
        torch.save(whole | dict(order=order), folder / f'checkpoint-{name}.pt')
    crafted_files(folder)
    names = sorted(file.name for file in folder.iterdir())
    helpers = str(Path(__file__).resolve().parents[1])
    script = f'import sys; sys.path.insert(0, {helpers!r})\n' + READER
    done = run(sys.executable, '-W', 'ignore', '-c', script, folder, *names)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_good_files_are_read(said):
    good = {name: line for name, line in said.items() if 'good' in name}
    assert good == {
        'checkpoint-good.pt': "gave 'after step 3 of epoch 2'",
        'network-good.pt': "gave 'small_cnn'",
        'network-good-old.pt': "gave 'small_cnn'",
        'network-good.safetensors': "gave 'small_cnn'",
        'run-good.safetensors': "gave 'SmallCNN'",
        'weights-good.safetensors': "gave 'SmallCNN'",
    }


def test_a_file_gets_no_more_memory_than_it_has_numbers(said):
    bad = {name: line for name, line in said.items() if 'good' not in name}
    assert bad
    wrong = {}
    for name, line in bad.items():
        parameter = 'checkpoint' if name.startswith('checkpoint') else 'weights'
        begins = line.startswith(f'{parameter}={name!r}: ')
        helps = 'xpected' in line or 'of another architecture' in line
        if not (begins and helps and line.isprintable() and len(line) < 500):
            wrong[name] = line[:200]
    assert not wrong, wrong


def test_the_lines_say_what_was_asked_for(said):
    found = {
        'network-expanded.pt': 'asks for 1.6e+11 bytes',
        'network-sparse-old.pt': 'it asks for torch._utils._rebuild_sparse_tensor',
        'network-meta.pt': 'it asks for torch._utils._rebuild_meta_tensor_no_storage',
        'network-shared.pt': 'times as large as the file',
        'network-deflated.pt': 'its entries are compressed',
        'network-count.pt': 'another size than it says',
        'network-control.pt': 'of no network that is known here',
        'weights-length.safetensors': 'its header has more than',
        'weights-header0.safetensors': 'its header cannot be read',
        'weights-header2.safetensors': 'its header cannot be read',
        'checkpoint-expanded.pt': 'asks for 8e+10 bytes',
    }
    for reader in 'network', 'weights', 'run':
        found[f'{reader}-little.safetensors'] = ' bytes, it has 200,000,000,'
        found[f'{reader}-more.safetensors'] = 'its header asks for a file of 2,000,000,000,'
        found[f'{reader}-much.safetensors'] = 'it is larger than 8,589,934,592 bytes'
    assert {name: words for name, words in found.items() if words not in said[name]} == {}
