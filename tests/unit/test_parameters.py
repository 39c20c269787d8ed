"Parameters are declared once, in runs/config: parameters cells, registries, the schema and the docs agree"

import ast
import json
import re
import subprocess
import sys

import jsonschema
import pytest
import yaml
from helpers import ROOT

from adt_repro.attacks.l2 import NORMS
from adt_repro.attacks.suite import TABLE1_ATTACKS
from adt_repro.base.parameters import ParameterError
from adt_repro.data import DATASETS
from adt_repro.judging.budget import JUDGE_ATTACKS
from adt_repro.methods.adversaries import GEN_INPUTS
from adt_repro.methods.table import METHODS, OPTIONS
from adt_repro.models.classifiers import arch_rule
from adt_repro.paper.evidence import PARTS
from adt_repro.runs import config
from adt_repro.runs.config import PARAMETERS, check_notebook, parameter_table, parameters_cell
from adt_repro.runs.scales import check_scale, read_scale, scale_schema
from adt_repro.speed.precision import COMPILES, PRECISIONS
from adt_repro.training.state import RECIPES, Recipe

SCALES = sorted((ROOT / 'nbs' / 'scales').glob('*.yaml'))
SCHEMA = json.loads((ROOT / 'nbs' / 'scales' / 'schema.json').read_text(encoding='utf-8'))


def notebook_cell(notebook):
    "The source of a notebook's parameters cell"
    cells = json.loads((ROOT / 'nbs' / f'{notebook}.ipynb').read_text(encoding='utf-8'))['cells']
    return next(''.join(c['source']) for c in cells if 'parameters' in c['metadata'].get('tags', []))


def declared_in(source):
    "A parameters cell without its comments: {name: (type, default)}"
    lines = ast.parse(source).body
    assert all(isinstance(line, ast.AnnAssign) for line in lines)
    return {line.target.id: (line.annotation.id, ast.literal_eval(line.value)) for line in lines}


# Cells


def test_every_experiment_is_declared():
    notebooks = {path.stem for path in (ROOT / 'nbs').glob('*.ipynb')} - {'index'}
    assert set(PARAMETERS) == notebooks


@pytest.mark.parametrize('notebook', PARAMETERS)
def test_a_parameters_cell_has_what_is_declared(notebook):
    "Names, types and defaults"
    there = declared_in(notebook_cell(notebook))
    declared = {name: (p.rule.type.__name__, p.default) for name, p in PARAMETERS[notebook].items()}
    assert there == declared


@pytest.mark.parametrize('notebook', PARAMETERS)
def test_a_parameters_cell_is_written_as_declared(notebook):
    "The comments too: the cell is what `parameters_cell` gives"
    assert notebook_cell(notebook) == parameters_cell(notebook)


@pytest.mark.parametrize('notebook', PARAMETERS)
def test_papermill_reads_the_cell(notebook):
    "One parameter a line, at most 110 columns, with a comment; the cell passes its own check"
    from papermill.translators import PythonTranslator

    source = parameters_cell(notebook)
    found = {p.name: p for p in PythonTranslator.inspect(dict(source=source))}
    assert list(found) == list(PARAMETERS[notebook])
    assert {name: p.help for name, p in found.items()} == {
        name: p.meaning for name, p in PARAMETERS[notebook].items()
    }
    assert all(len(line) <= 110 for line in source.splitlines())
    exec(source, names := {'__name__': '__main__'})
    assert check_notebook(notebook, names) == {name: p.default for name, p in PARAMETERS[notebook].items()}


@pytest.mark.parametrize('notebook', PARAMETERS)
def test_one_line_on_what_is_wrong(notebook):
    exec(parameters_cell(notebook), names := {})
    name = next(iter(PARAMETERS[notebook]))
    with pytest.raises(ParameterError, match=f"there is no such parameter, did you mean '{name}'"):
        check_notebook(notebook, names | {f'{name}x': 1})
    for name in PARAMETERS[notebook]:
        with pytest.raises(ParameterError, match=rf'^{name}=\(1, 2, 3\): expected '):
            check_notebook(notebook, names | {name: (1, 2, 3)})


# Registries


def test_choices_are_those_of_the_registries():
    assert config.METHOD_NAMES == tuple(METHODS)
    assert config.DATASET_NAMES == tuple(DATASETS)
    assert config.RECIPE_NAMES == tuple(RECIPES)
    assert config.GEN_INPUT_NAMES == tuple(GEN_INPUTS)
    assert config.PRECISION_NAMES == tuple(PRECISIONS)
    assert config.COMPILE_NAMES == tuple(COMPILES)
    assert config.ATTACK_NAMES == tuple(TABLE1_ATTACKS)
    assert config.EXPERIMENTS == tuple(PARTS)
    assert config.NORM_NAMES == tuple(NORMS)
    assert set(config.JUDGED_ATTACK_NAMES) == set(JUDGE_ATTACKS)


def test_every_option_and_every_part_of_a_recipe_can_be_set():
    assert set(OPTIONS) <= set(config.RULES)
    assert set(Recipe.__dataclass_fields__) <= set(config.RULES)


def test_networks_are_those_that_can_be_built():
    names = [
        'small_cnn',
        'resnet18',
        'resnet34',
        'wrn',
        'wrn-28',
        'WRN-28-10',
        'wrn-28-10 ',
        '',
        'x-wrn-28-10',
    ]
    names += [f'wrn-{depth}-{widen}' for depth in range(0, 130) for widen in range(0, 30)]
    names += ['half_wrn-10-2', 'half_wrn-12-2', 'half_wrn-10', 'half-wrn-10-2', 'half_small_cnn']
    for name in [*names, None, 3]:
        assert config.ARCH.ok(name) == arch_rule.ok(name), name
    assert config.ARCH.says == arch_rule.says


def test_needs_neither_torch_nor_numpy_nor_pandas():
    "The Snakefile is read again by every job"
    line = 'import sys; import adt_repro.runs.scales; print(*sys.modules)'
    done = subprocess.run([sys.executable, '-c', line], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert {'adt_repro.runs.config', 'adt_repro.runs.scales', 'yaml'} <= set(loaded)
    assert not {'torch', 'numpy', 'pandas', 'scipy', 'matplotlib'} & set(loaded)


# Scales, for editors


def test_the_committed_schema_is_the_declared_one():
    assert SCHEMA == scale_schema()
    jsonschema.Draft7Validator.check_schema(SCHEMA)


def complaints(content):
    return list(jsonschema.Draft7Validator(SCHEMA).iter_errors(content))


@pytest.mark.parametrize('path', SCALES, ids=lambda path: path.stem)
def test_scales_fit_the_schema_and_the_check(path):
    assert path.read_text(encoding='utf-8').startswith('# yaml-language-server: $schema=schema.json\n')
    assert not complaints(yaml.safe_load(path.read_text(encoding='utf-8')))
    assert read_scale(path).name == path.stem


GOOD = yaml.safe_load((ROOT / 'nbs' / 'scales' / 'demo.yaml').read_text(encoding='utf-8'))


def changed(place, value):
    "A scale with another value at a place such as experiments.spsa.steps"
    content = json.loads(json.dumps(GOOD))
    *tables, name = place.split('.')
    table = content
    for step in tables:
        table = table.setdefault(step, {})
    table[name] = value
    return content


BAD = [
    ('epoch', 3),
    ('epochs', 0),
    ('epochs', 'three'),
    ('eps', '8:255'),
    ('eps', 1.5),
    ('arch', 'wrn-27-10'),
    ('augment', 'no'),
    ('precision', 'fp16'),
    ('rows.mine.lrr', 0.1),
    ('rows.mine.lr', -1),
    ('rows.mine.seed', 1),
    ('experiments.spsas', {}),
    ('experiments.methods', []),
    ('experiments.methods', 'at_pgd'),
    ('experiments.seeds', [-1]),
    ('experiments.more_seeds', dict(at_pgd=2)),
    ('experiments.rate', 0),
    ('experiments.threads', 0),
    ('experiments.white_box.n_tset', 3),
    ('experiments.white_box.limits', dict(pgd=3)),
    ('experiments.white_box.cascade', ['spsa']),
    ('experiments.white_box.runs', ['*-s0']),
    ('experiments.white_box.eps', 0.1),
    ('experiments.transfer.methods', ['at_pgd']),
    ('experiments.transfer.attacks', ['feature']),
    ('experiments.spsa.samples', [3]),
    ('experiments.spsa.memory', 0),
    ('experiments.landscape.grid', 4),
    ('experiments.diversity.n_samples', 7),
    ('experiments.ablation.seeds', 1),
    ('experiments.ablation.train', False),
    ('experiments.ablation.base', dict(n_test=3)),
    ('experiments.paper.runs', []),
    ('experiments.paper.margin', 0),
]


@pytest.mark.parametrize('place, value', BAD, ids=lambda v: v if isinstance(v, str) else '')
def test_what_does_not_fit_is_refused_by_both(place, value):
    content = changed(place, value)
    if place.startswith('rows.mine'):
        content['rows']['mine']['method'] = 'at_pgd'
    assert complaints(content)
    with pytest.raises(ParameterError) as e:
        check_scale(content)
    said, name = str(e.value), place.split('.')[-1]
    assert '\n' not in said and name in said and re.search('xpected', said)
    for table in place.split('.')[:-1]:
        assert f'{table}: ' in said


NUMBERS_IN_TEXT = [('eps', '8/255'), ('lr', '1e-3'), ('epochs', '1e1'), ('experiments.rate', '2e12')]


@pytest.mark.parametrize('place, value', NUMBERS_IN_TEXT, ids=lambda v: v)
def test_a_number_in_text_fits_both(place, value):
    "YAML reads 1e-3 and 8/255 as text"
    content = changed(place, value)
    assert isinstance(yaml.safe_load(value), str)
    assert not complaints(content)
    check_scale(content)


def test_a_scale_without_its_name_or_its_experiments():
    for name in 'scale', 'dataset', 'experiments':
        assert complaints({k: v for k, v in GOOD.items() if k != name})


def test_what_yaml_can_hold_is_refused_in_one_line():
    "Names and values of other types, and a list of billions in a few bytes"
    laughs = 'a: &a [x, x, x, x]\nb: &b [*a, *a, *a, *a]\nc: [*b, *b, *b, *b]\nscale: demo'
    for text in (
        '3: 4',
        'when: 2020-01-01',
        'epochs: 2020-01-01',
        'experiments: [1]',
        'rows: {x: 3}',
        laughs,
    ):
        with pytest.raises(ParameterError) as e:
            check_scale(GOOD | yaml.safe_load(text))
        assert '\n' not in str(e.value) and len(str(e.value)) < 2000


# Docs


@pytest.mark.parametrize('notebook', PARAMETERS)
def test_the_guide_shows_the_declared_table(notebook):
    cells = json.loads((ROOT / 'nbs' / 'guides' / 'parameters.ipynb').read_text(encoding='utf-8'))['cells']
    shown = [
        ''.join(o['data'].get('text/markdown', ''))
        for c in cells
        for o in c.get('outputs', [])
        if 'data' in o
    ]
    assert parameter_table(notebook) in shown
