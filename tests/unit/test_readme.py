"README and the guides: small, with links, commands and code that work, and a result that follows from records"

import ast
import json
import re
import shlex
from functools import cache

import pytest
from helpers import ROOT
from PIL import Image

from adt_repro.base.yaml_files import read_yaml
from adt_repro.command.main import make_parser
from adt_repro.models.weights import read_safetensors
from adt_repro.paper.summaries import headline
from adt_repro.planning.progress import progress_table
from adt_repro.runs.config import METHOD_NAMES, PARAMETERS
from adt_repro.runs.notebook import checked_parameters, given_parameters
from adt_repro.runs.scales import read_scale

README = (ROOT / 'README.md').read_text(encoding='utf-8')
PAGES = [ROOT / 'nbs' / 'index.ipynb', *sorted((ROOT / 'nbs' / 'guides').glob('*.ipynb'))]
EXPERIMENTS = sorted((ROOT / 'nbs').glob('*.ipynb'))
RECIPES = README.split('## Recipes')[1].split('\n## ')[0]


@cache
def cells(page):
    return json.loads(page.read_text(encoding='utf-8'))['cells']


def code_of(page, name):
    (cell,) = [c for c in cells(page) if c['id'] == name]
    return ''.join(cell['source'])


def prose(page):
    return '\n\n'.join(''.join(c['source']) for c in cells(page) if c['cell_type'] == 'markdown')


def test_size_of_the_readme():
    assert 4000 < len(README.encode()) <= 8000


def links(text):
    return [link for link in re.findall(r'\]\(([^)\s]+)\)', text) if not re.match('https?:|#|mailto:', link)]


@pytest.mark.parametrize('page', [ROOT / 'README.md', *PAGES], ids=lambda page: page.stem)
def test_links_lead_to_files(page):
    text = README if page.suffix == '.md' else prose(page)
    for link in links(text):
        assert (page.parent / link.split('#')[0]).exists(), link
    assert page.suffix != '.md' or len(links(text)) > 15


def test_picture():
    "Sharp at 800 pixels, small as a file, the same on Home, and opaque: readable on a dark page too"
    file = ROOT / 'nbs' / 'images' / 'adt.png'
    image = Image.open(file)
    assert file.stat().st_size < 60_000 and image.width >= 1600
    assert image.convert('RGBA').getchannel('A').getextrema() == (255, 255)
    assert '](nbs/images/adt.png)' in README and '](images/adt.png)' in prose(PAGES[0])


def test_two_commands():
    "In the first section, in this form: .ci/run and the workflow read the second one here"
    first = README.split('\n## ')[1]
    blocks = re.findall(r'```\w*\n(.*?)```', first, re.S)
    assert [block.strip() for block in blocks] == [
        'pip install uv && uv run papermill nbs/train.ipynb outputs/demo/adt_exp.ipynb -p method adt_exp',
        'pip install uv && OMP_NUM_THREADS=1 uv run nbdev_test && uv run pytest',
    ]
    assert (ROOT / 'outputs' / 'demo').is_dir()


# The code


def python_of(readme):
    (code,) = re.findall(r'```python\n(.*?)```', readme, re.S)
    return code


def test_api_lines_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(python_of(README), names)
    assert names['x_adv'].shape == names['x'].shape and names['x_adv'].ne(names['x']).any()
    assert list(names['rows'].pred) == names['rows'].pred.tolist() and len(names['rows']) == 100
    assert not list(tmp_path.iterdir())


def test_home_has_the_same_lines():
    of_home = ast.dump(ast.parse(code_of(PAGES[0], 'api')))
    assert of_home == ast.dump(ast.parse(python_of(README)))


# The commands


def commands_in(text):
    "Command lines in a text: whole lines, or in code within a line, without their environment and comments"
    spans = re.findall(r'`([^`\n]+)`', text) + re.findall(r'^(?: {4,}|\s*)(\S.*)$', text, re.M)
    for span in spans:
        for part in span.split(' && '):
            part = re.sub(r'^(?:\w+=\S+ )*(?:uv run )?', '', part.split(' #')[0].strip())
            part = re.sub(r' (?:\|\||</dev/null).*', '', part)
            if re.match(r'(?:adt|papermill|python -m adt_repro\.runs\.notebook) (?!-)', part):
                yield part


def is_grammar(command):
    return re.search(r'\[-|…|\.\.\.|METHOD|SCALE|COMMAND|OUTPUT\b|OUT\b|NOTEBOOK|NAME', command)


def parse(command):
    "The notebook, and the parameters that it gets as they are checked; None: no notebook"
    program, *args = shlex.split(command)
    if program == 'papermill':
        notebook, output, *rest = args
        assert output.endswith('.ipynb'), command
        options = make_parser().parse_args(
            ['notebook', notebook.removeprefix('nbs/').removesuffix('.ipynb'), *rest]
        )
    elif program == 'python':
        _, _, notebook, output, *rest = args
        assert output.endswith('.ipynb'), command
        options = make_parser().parse_args(['notebook', notebook, *rest])
    else:
        options = make_parser().parse_args(args)
    return options


SUBCOMMANDS = (
    'train',
    'evaluate',
    'judge',
    'runs',
    'plan',
    'report',
    'audit',
    'notebook',
    'import',
    'export',
    'vectors',
)


def check(command, own_methods=()):
    words = shlex.split(command)
    if words[0] == 'adt' and words[1:] != ['runs'] and len(words) == 2:  # named, not to be copied
        assert words[1] in SUBCOMMANDS, command
        return
    options = parse(command)
    for file in getattr(options, 'f', None) or []:
        assert '/' not in file or (ROOT / file).is_file(), command
    notebook = dict(train='train', evaluate='white_box', report='paper', judge='judge').get(options.command)
    if options.command == 'notebook':
        notebook = options.notebook
        assert ROOT / 'nbs' / f'{notebook}.ipynb' in EXPERIMENTS, command
    if options.command == 'plan' and '.' not in options.scale:
        assert (ROOT / 'nbs' / 'scales' / f'{options.scale}.yaml').is_file(), command
    if notebook is None:
        return
    files, options.f = options.f, []
    given = given_parameters(options)
    if options.command == 'judge':
        own = {name: getattr(options, name) for name in PARAMETERS['judge'] if hasattr(options, name)}
        given |= {name: value for name, value in own.items() if value is not None}
    if options.command == 'train':
        given['method'] = options.method
    assert set(given) <= set(PARAMETERS[notebook]), command
    checked_parameters(notebook, given)
    if notebook == 'train' and not files:  # whose rows may have names of their own
        assert given.get('method', 'adt_exp') in {*METHOD_NAMES, *own_methods}, command


@pytest.mark.parametrize(
    'page', [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *PAGES], ids=lambda page: page.stem
)
def test_commands_are_understood(page):
    "Notebook, subcommand, names and values of each command that a reader may copy"
    text = page.read_text(encoding='utf-8') if page.suffix == '.md' else prose(page)
    own_methods = re.findall(
        r"METHODS, '(\w+)'", text if page.suffix == '.md' else page.read_text(encoding='utf-8')
    )
    for command in commands_in(text):
        if not is_grammar(command):
            check(command, own_methods)


def test_commands_that_are_wrong_are_found():
    text = (
        '`uv run adt train at_pgd -p epoch 3`\n\n    papermill nbs/trian.ipynb out.ipynb -p method at_pgd\n'
    )
    text += '\n    adt attack my-run\n\n`adt train at_pgd -p lbd -1`\n`adt plan atlas`\n'
    text += '`adt attack` `adt train at_pgdd`'
    found = list(commands_in(text))
    assert len(found) == 7
    for command in found:
        with pytest.raises((AssertionError, ValueError)):
            check(command)


def test_scales_of_the_guide_are_there():
    text = prose(ROOT / 'nbs' / 'guides' / 'get_started.ipynb')
    named = re.findall(r'^\| `(\w+)` \|', text, re.M)
    assert sorted(named) == sorted(file.stem for file in (ROOT / 'nbs' / 'scales').glob('*.yaml'))
    assert all(read_scale(ROOT / 'nbs' / 'scales' / f'{name}.yaml') for name in named)


# The recipes


def recipes():
    return re.split(r'^\d+\. ', RECIPES, flags=re.M)[1:]


def test_ten_recipes():
    "Numbered, each of few lines, with a page that shows more and something to copy"
    numbers = re.findall(r'^(\d+)\. ', RECIPES, re.M)
    assert numbers == [str(k) for k in range(1, 11)]
    for recipe in recipes():
        assert re.match(r'\[[^\]]+\]\(nbs/[\w/]+\.ipynb\)', recipe), recipe
        assert re.search(r'`[^`]+`', recipe) and recipe.strip().count('\n') <= 3, recipe


# The result


def test_result_follows_from_the_records():
    "Estimate, interval, seeds, images, published value and verdict of C1; the network's size and its epochs"
    c1 = headline('cpu', 'C1', ROOT)
    (line,) = [line for line in README.splitlines() if 'points [' in line]
    told = re.search(r'\*\*(-?\d+\.\d\d) points \[(-?\d+\.\d\d), (-?\d+\.\d\d)\]\*\*', line)
    for text, value in zip(told.groups(), (c1['estimate'], c1['lo'], c1['hi']), strict=True):
        assert abs(float(text) - value) <= 0.005 + 1e-9
    assert f'{c1["published"]:+.2f}' in line and f'*{c1["verdict"]}*' in line
    assert {int(n) for n in re.findall(r'(\d+) seeds', line)} == set(c1['seeds'])
    assert [int(n.replace(',', '')) for n in re.findall(r'([\d,]+) test images', line)] == [c1['n']]
    run = ROOT / 'outputs' / 'cpu' / 'runs' / 'cifar10-small_cnn-adt_exp-s0'
    epochs = read_yaml(run / 'config.yaml', 'config.yaml')['epochs']
    state = read_safetensors(run / 'weights.safetensors')
    trained = [v for name, v in state.items() if not re.search('running|num_batches', name)]
    n_weights = sum(v.numel() for v in trained)
    for text in line, prose(PAGES[0]):
        assert f'{n_weights:,} weights' in text and f'{epochs} epochs' in text


def test_how_far_scale_mid_is():
    "Its runs that are trained and judged, of all that are declared; to be changed with each record that is added"
    runs = progress_table(read_scale(ROOT / 'nbs' / 'scales' / 'mid.yaml'))
    n_ready = int(((runs.trained == 1) & runs.judged).sum())
    for text in README, prose(PAGES[0]):
        assert f'is under way: {n_ready} of {len(runs)} runs are trained and judged.' in text
