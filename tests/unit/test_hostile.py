"Files of scales and parameters from strangers: used, or refused with one line, and never made into code"

import ast
import copy
import json
import math
import os
import random
import re
import subprocess

import pytest
import torch
import yaml
from helpers import MINI, ROOT, experiments, refusal
from papermill.iorw import read_yaml_file
from papermill.translators import PythonTranslator

from adt_repro.base.parameters import ParameterError, check_params
from adt_repro.base.yaml_files import read_yaml
from adt_repro.runs.config import PARAMETERS, RULES
from adt_repro.runs.notebook import checked_parameters
from adt_repro.runs.scales import all_files, call_parameters, read_scale, scale_runs
from adt_repro.runs.store import provenance, read_config

TOUCH = "__import__('os').system('touch ran')"
NAMES = [
    f'_ = {TOUCH}; _',
    f'label = 1\n{TOUCH}\nlabel',
    f'{TOUCH} or label',
    'label: exec("1")',
    '*label',
    '`touch ran`',
    '$(touch ran)',
    '../ran',
    'a b',
    'a\nb',
    '"; touch ran; "',
    "'; touch ran; '",
    '__class__',
    '{wildcards.run}',
    'é\u2028',
    'x' * 5000,
    '',
    1,
    True,
    None,
    2.5,
    (1, 2),
]
VALUES = [
    *NAMES[:12],
    '\\" + 1 #',
    "\\'",
    '\\\n',
    '{}',
    math.inf,
    -math.inf,
    math.nan,
    1e39,
    1e300,
    10**9,
    10**400,
    -1,
    [],
    {},
    {'"; touch ran': 1},
    {1: 2},
    {f'{TOUCH}': {f'{TOUCH}': [TOUCH]}},
    [[[[TOUCH]]]],
    None,
    b'"; touch ran',
    {'"; touch ran', 'b'},
]


def write_new(file, text):
    "Write a file anew; some file systems take long over one that is written in place of another"
    file.unlink(missing_ok=True)
    file.write_text(text)


def one_line(said):
    assert '\n' not in said and said.isprintable() and len(said) < 5000, said[:500]


# Names

LEFT_OUT = dict.fromkeys(RULES) | dict(
    method='at_pgd', dataset='digits', recipe='paper2020', seed=0, device='cpu', scale='tiny'
)


def test_names_that_python_cannot_have_are_refused(tmp_path):
    "A name with an underscore in front was passed over, as IPython's own names are, and papermill ran it"
    assert refusal(check_params, LEFT_OUT, **RULES) == f'gave {check_params(LEFT_OUT, **RULES)!r}'
    names = [name for name in NAMES if not str(name).isidentifier() and name != (1, 2)]
    assert len(names) > 15
    for name in names:
        said = refusal(check_params, LEFT_OUT | {name: 1}, **RULES)
        assert 'there is no such parameter' in said, name
        one_line(said)
        (tmp_path / 'config.yaml').write_text(yaml.safe_dump(LEFT_OUT | {name: 1}, allow_unicode=True))
        said = refusal(read_config, tmp_path)
        assert not said.startswith('gave'), name
        one_line(said)


def test_no_file_is_given_to_papermill():
    "papermill runs the names in a file as code, so what this project calls and recommends is its own command"
    files = [ROOT / 'Snakefile', *ROOT.glob('nbs/**/*.ipynb'), *ROOT.glob('nbs/scales/*.yaml')]
    bare = re.compile(r"(?:-m'?, '|-m |`|    |: |#   )papermill [^\n]*?(?: -f | -y \{)|'papermill', 'nbs")
    found = [f.name for f in files if bare.search(f.read_text(encoding='utf-8'))]
    found = [name for name in found if name != 'notebook.ipynb']  # which says why
    assert len(files) > 60 and not found, found


# Parameter files


def escapes(parameters):
    "Does the cell that papermill makes of parameters hold more than values of names that Python has?"
    try:
        cell = ast.parse(PythonTranslator.codify(parameters))
        for line in cell.body:
            assert isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name)
            if not isinstance(line.value, ast.Call):  # float('inf')
                ast.literal_eval(line.value)
    except (SyntaxError, ValueError, AssertionError, TypeError):
        return True
    return False


def hostile_parameters(draw):
    "A file's content: some names of a notebook, some of strangers, with values of any kind"
    notebook = draw.choice([*PARAMETERS])
    known = PARAMETERS[notebook]
    given = {name: known[name].default for name in draw.sample([*known], min(5, len(known)))}
    kind = draw.randrange(4)
    if kind == 1:
        given[draw.choice(NAMES)] = draw.choice(VALUES)
    elif kind == 2:
        given[draw.choice([*known])] = draw.choice(VALUES)
    elif kind == 3 and notebook == 'train':
        given['rows'] = {draw.choice(NAMES): {draw.choice(NAMES): draw.choice(VALUES)}}
    return notebook, given


def test_500_files_of_parameters(tmp_path):
    "Used, or refused with one line; papermill by itself would have made code of some, so the files can tell"
    draw, file = random.Random(25), tmp_path / 'given.yaml'
    used = refused = dangerous = 0
    for _ in range(500):
        notebook, given = hostile_parameters(draw)
        write_new(file, yaml.dump(given, allow_unicode=True))
        try:
            dangerous += escapes(read_yaml_file(str(file)))
        except (ValueError, TypeError, yaml.YAMLError):
            pass
        try:
            read = checked_parameters(notebook, read_yaml(file, file.name))
        except ParameterError as error:
            one_line(str(error))
            refused += 1
            continue
        used += 1
        assert not escapes(read), given
        assert set(read) <= set(PARAMETERS[notebook])
        json.dumps(read, allow_nan=False)
    assert used > 100 and refused > 150 and dangerous > 30, (used, refused, dangerous)


# Scale files

WHERE = [
    (),
    ('experiments',),
    ('experiments', 'white_box'),
    ('experiments', 'spsa'),
    ('experiments', 'paper'),
    ('experiments', 'ablation'),
    ('experiments', 'ablation', 'base'),
    ('experiments', 'transfer'),
    ('experiments', 'landscape'),
    ('experiments', 'white_box', 'limits'),
    ('experiments', 'more_seeds'),
    ('experiments', 'declared'),
    ('experiments', 'declared', 'claims'),
    ('experiments', 'declared', 'added'),
    ('experiments', 'declared', 'gate'),
    ('rows',),
    ('rows', 'mine'),
]


def table_at(content, place):
    "A table within a scale, made where it is missing"
    for name in place:
        if not isinstance(content.get(name), dict):
            content[name] = {}
        content = content[name]
    return content


@pytest.mark.parametrize('name', [f'_ = {TOUCH}; _', '`touch ran`', 1])
def test_every_table_of_a_scale_has_its_names_checked(name, tmp_path):
    file = tmp_path / 'mini.yaml'
    write_new(file, yaml.safe_dump(MINI))
    assert read_scale(file).name == 'mini'
    for place in WHERE:
        content = copy.deepcopy(MINI)
        table_at(content, place)[name] = 1
        write_new(file, yaml.safe_dump(content))
        said = refusal(read_scale, file)
        assert said.startswith(f'{file}: '), (place, said)
        one_line(said)


HARMLESS = [
    dict(lr=5e-05),
    dict(eps='8/255', epochs='1e1'),
    dict(rows={'at_pgd': {'inner_steps': 3}}),
    dict(rows={'at_pgd': {'label': 'mine'}, 'other': None}),
    experiments(white_box=None),
    experiments(more_seeds={'at_pgd': [1, 2, 1]}, transfer={}),
]


HARMLESS_TEXTS = [yaml.safe_dump(MINI | change) for change in HARMLESS]


def hostile_scale(draw):
    "The text of a scale that somebody has changed, well or at one to three places badly"
    if draw.random() < 0.4:
        return draw.choice(HARMLESS_TEXTS)
    content = copy.deepcopy(MINI)
    for _ in range(draw.randrange(1, 4)):
        table = table_at(content, draw.choice(WHERE))
        if draw.random() < 0.4:
            table[draw.choice(NAMES)] = draw.choice(VALUES)
        else:
            known = [*table, *RULES, 'methods', 'seeds', 'targets', 'sources', 'n_test', 'lbd', 'label']
            table[draw.choice(known)] = draw.choice([*VALUES, ['at_pgd'], [0], 1e-5, 3])
    text = yaml.dump(content, allow_unicode=True)
    if draw.random() < 0.2:
        at = draw.randrange(len(text))
        text = text[:at] + draw.choice(['\t', '"', '[', '&a ', '*a ', '\0', '<<: ', ': ', '\n']) + text[at:]
    return text


def test_500_scale_files(tmp_path):
    "Used, or refused with one line that names the file; what is used has names that are safe everywhere"
    draw, file = random.Random(25), tmp_path / 'mini.yaml'
    used = refused = 0
    for _ in range(500):
        write_new(file, hostile_scale(draw))
        try:
            scale = read_scale(file)
        except ParameterError as error:
            assert str(error).startswith(f'{tmp_path}/mini.yaml: ')
            one_line(str(error))
            refused += 1
            continue
        used += 1
        assert all(re.fullmatch(r'[A-Za-z0-9_-]+', run) for run in scale_runs(scale))
        assert all(re.fullmatch(r'[A-Za-z0-9_./-]+', name) and '..' not in name for name in all_files(scale))
        given = [call_parameters(scale, 'train', run) for run in scale_runs(scale)]
        for text in [*given, call_parameters(scale, 'paper')]:
            assert not escapes(json.loads(text)), text
    assert used > 150 and refused > 200, (used, refused)


BOMB = ''.join(f'a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n' for i in range(1, 30))
GOOD = yaml.safe_dump(MINI)
WHITE_BOX = MINI['experiments']['white_box']
MALFORMED = dict(
    broken='scale: [mini',
    empty='',
    blank=' \n\n',
    comment='# nothing\n',
    utf16=GOOD.encode('utf-16'),
    latin='label: Schr\xf6dinger\n'.encode('latin-1'),
    binary=bytes(range(256)),
    null_bytes=GOOD + '\0',
    a_list='[1, 2]',
    a_number='3',
    text='mini',
    seeds_3=experiments(seeds=3),
    seeds_none=experiments(seeds=None),
    methods_text=experiments(methods='at_pgd'),
    methods_none=experiments(methods=None),
    methods_empty=experiments(methods=[]),
    experiments_null=dict(experiments=None),
    experiments_list=dict(experiments=[1]),
    white_box_list=experiments(white_box=[1]),
    dataset_null=dict(dataset=None),
    twice=GOOD + 'lr: 0.1\nlr: 0.2\n',
    twice_within=GOOD + 'rows: {at_pgd: {lr: 0.1, lr: 0.2}}\n',
    itself=GOOD + 'rows: &a {at_pgd: *a}\n',
    no_anchor=GOOD + 'rows: *nowhere\n',
    merge_text=GOOD + 'rows: {<<: 3}\n',
    bomb='a0: &a0 {x: 1}\n' + BOMB,
    deep=GOOD + f'rows: {500 * "["}{500 * "]"}\n',
    huge_number=GOOD + f'lr: {5000 * "9"}\n',
    large_number=dict(lr=10**400),
    date=GOOD + 'label: 2026-12-24\n',
    a_set=GOOD + 'rows: !!set {a: null}\n',
    bytes_within=GOOD + 'label: !!binary aGVsbG8=\n',
    code=GOOD + 'label: !!python/object/apply:os.system ["touch ran"]\n',
    number_as_name=GOOD + '1: 2\n',
    on=GOOD + 'on: true\n',
    nan=GOOD + 'lr: .nan\n',
    inf=GOOD + 'lr: .inf\n',
    tabs=GOOD + 'rows:\n\tat_pgd: 1\n',
    two_documents=GOOD + '---\n' + GOOD,
    surrogate=GOOD + 'label: "\\ud800"\n',
    many_bytes=GOOD + '#' * 10**7,
    many_seeds=experiments(seeds=[*range(5000)]),
    many_runs=experiments(seeds=[*range(400)]),
    one_label=dict(label='x'),
    lr_1e39=dict(lr=1e39),
    u_max_1e39=experiments(ablation=dict(u_max=[1e39])),
    radius_1e300=experiments(landscape=dict(radius=1e300)),
    seeds_1e8=experiments(ablation=dict(seeds=10**8)),
    jobs_1e8=experiments(ablation=dict(jobs=10**8)),
    n_mc_1e8=dict(rows=dict(at_pgd=dict(n_mc=10**8))),
    name_of_another=GOOD.replace('mini', 'maxi'),
    draws_1e9=experiments(white_box=WHITE_BOX | dict(draws=10**9)),
)


def write_scale(path, content):
    "A malformed scale in any of the forms above"
    if isinstance(content, dict):
        content = yaml.safe_dump(MINI | content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def test_a_malformed_scale_is_one_line(tmp_path):
    for kind, content in MALFORMED.items():
        file = tmp_path / kind / 'mini.yaml'
        file.parent.mkdir()
        write_scale(file, content)
        said = refusal(read_scale, file)
        assert said.startswith(f'{file}: ') and 'xpected' in said, (kind, said[:300])
        one_line(said)


@pytest.mark.parametrize('kind', ['folder', 'loop', 'pipe', 'missing'])
def test_what_is_no_file_is_one_line(kind, tmp_path):
    path = tmp_path / 'mini.yaml'
    if kind == 'folder':
        path.mkdir()
    elif kind == 'loop':
        path.symlink_to(path)
    elif kind == 'pipe':
        os.mkfifo(path)
        opened = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # which does not wait for a reader
        os.write(opened, b'scale: [')
        os.close(opened)
    said = refusal(read_scale, path)
    assert said.startswith(f'{path}: cannot be read') and 'xpected' in said, said
    one_line(said)


@pytest.mark.parametrize(
    'change',
    [
        {},
        experiments(white_box=None),
        experiments(white_box=None, spsa=None),
        dict(experiments=dict(methods=['standard'], seeds=[0], rate=1)),
        dict(rows=None),
        dict(lr='5e-05', eps='8/255'),
    ],
)
def test_a_good_scale_is_read(change, tmp_path):
    (tmp_path / 'mini.yaml').write_text('\ufeff' + yaml.safe_dump(MINI | change), encoding='utf-8')
    scale = read_scale(tmp_path / 'mini.yaml')
    assert all_files(scale) and scale_runs(scale)
    assert json.loads(call_parameters(scale, 'paper'))['parts'] == scale.experiments


# Numbers

DECLARED = {(notebook, name): p for notebook, table in PARAMETERS.items() for name, p in table.items()}
FLOATS = {where: p for where, p in DECLARED.items() if p.rule.type is float}
COUNTS = {where: p for where, p in DECLARED.items() if p.rule.type is int and where[1] != 'seed'}


def accepted(parameters, values):
    "Where a parameter may have one of some values"
    found = {where: [v for v in values if p.rule.ok(p.rule.read(v))] for where, p in parameters.items()}
    return {where: values for where, values in found.items() if values}


def test_a_number_is_one_that_float32_holds():
    "1e39 and 1e300 overflowed in the middle of a run"
    large = 1e31, 1e39, 1e300, -1e39, 10**400, math.inf, math.nan, '1e39', '1e999'
    assert len(FLOATS) > 20 and accepted(FLOATS, large) == {}
    assert all(p.default is None or p.rule.ok(p.default) for p in FLOATS.values())


def test_a_count_has_an_end():
    "100,000,000 seeds took all memory before the first line"
    assert len(COUNTS) > 40 and accepted(COUNTS, (10**8, 10**400, '100000000', '1e8')) == {}


def test_a_far_end_is_told_to_what_is_beyond_it():
    "Such ends stand in every rule, and made each line twice as long; somebody who has written 0 needs none"
    refused = [
        ('train', 'epochs', 0, 'epochs=0: expected a whole number of at least 1, or None for the default'),
        ('train', 'lr', 0, 'lr=0: expected a number above 0, or None for the default'),
        ('train', 'rho', 30, 'rho=30: expected a number in [-20, 20], or None for the default'),
        ('spsa', 'samples', [7], 'samples=[7]: expected a list, each item an even number of at least 2'),
        ('landscape', 'grid', 4, 'grid=4: expected an odd whole number of at least 3'),
        ('ablation', 'lbd', [1e39], 'lbd=[1e+39]: expected a list, each item a number in [0, 1e+06]'),
    ]
    for notebook, name, value, line in refused:
        assert refusal(checked_parameters, notebook, {name: value}) == line
    for notebook, name, value, end in (
        ('train', 'epochs', '1e8', 'of at least 1 and at most 1000000, or None for the default'),
        ('train', 'lr', 1e39, 'a number in (0, 1e+30], or None for the default'),
        ('spsa', 'samples', [2] * 101, 'a list of at most 100, each item an even number of at least 2'),
    ):
        said = refusal(checked_parameters, notebook, {name: value})
        assert said.endswith(end), said


def test_lists_have_an_end():
    for name in 'lbd', 'n_mc', 'inner_steps', 'inner_momentum', 'rho', 'u_max':
        rule = PARAMETERS['ablation'][name].rule
        assert rule.ok([1]) and not rule.ok([1] * 10**5) and not rule.ok([1e39])


# git


def repository(folder):
    "A repository with one commit, whose settings start programs that leave a file"
    folder.mkdir()
    (folder / 'settings.ini').write_text('[DEFAULT]\n')
    git = ['git', '-C', str(folder), '-c', 'user.name=a', '-c', 'user.email=a@b']
    for step in ('init -q', 'add settings.ini', 'commit -q -m first'):
        subprocess.run([*git, *step.split()], check=True, capture_output=True)
    return folder


def commit_at(folder, monkeypatch):
    "The commit in what a run notes"
    monkeypatch.chdir(folder)
    return provenance(torch.device('cpu'))['git_commit']


@pytest.mark.parametrize('how', ['fsmonitor', 'filter', 'process', 'hook', 'ssh'])
def test_git_runs_nothing_of_a_repository(how, tmp_path, monkeypatch):
    root, ran = repository(tmp_path / 'project'), tmp_path / 'ran'
    plain = commit_at(root, monkeypatch)
    assert re.fullmatch('[0-9a-f]{40}', plain)
    program = root / '.git' / 'program'
    program.write_text(f'#!/bin/sh\ntouch {ran}\ncat\n')
    program.chmod(0o755)
    settings = dict(
        fsmonitor=('core.fsmonitor', str(program)),
        filter=('filter.x.clean', str(program)),
        process=('filter.x.process', str(program)),
        hook=('core.hooksPath', str(root / '.git')),
        ssh=('core.sshCommand', str(program)),
    )
    subprocess.run(['git', '-C', str(root), 'config', *settings[how]], check=True)
    program.with_name('post-index-change').write_bytes(program.read_bytes())
    program.with_name('post-index-change').chmod(0o755)
    (root / '.git' / 'info' / 'attributes').write_text('* filter=x\n')
    (root / 'settings.ini').write_text('[DEFAULT]\nchanged = 1\n')
    commit = commit_at(root, monkeypatch)
    assert not ran.exists()
    assert commit == plain + ('?' if how in ('filter', 'process') else '+')


def test_only_the_own_repository_is_asked(tmp_path, monkeypatch):
    "Not one above the project's folder, and not one that the environment names"
    above = repository(tmp_path / 'above')
    (above / 'project').mkdir()
    (above / 'project' / 'settings.ini').touch()
    own, other = commit_at(above, monkeypatch), repository(tmp_path / 'other')
    assert commit_at(above / 'project', monkeypatch) is None
    (other / 'settings.ini').write_text('another\n')
    subprocess.run(
        ['git', '-C', str(other), '-c', 'user.name=a', '-c', 'user.email=a@b', 'commit', '-qam', 'x']
    )
    monkeypatch.setenv('GIT_DIR', str(other / '.git'))
    assert commit_at(above, monkeypatch) == own
    monkeypatch.delenv('GIT_DIR')
    assert commit_at(other, monkeypatch) != own
