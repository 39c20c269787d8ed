"The audit as its users run it: all rows of a scale made by its own plan, then the same files with one thing altered"

import json
import re
import shutil

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import MINI, copy_files, experiments, papermill, small_project

from adt_repro.base.tables import note_files, read_table
from adt_repro.evaluation.records import read_record, save_records
from adt_repro.runs.scales import call_parameters, check_scale

ONE, OTHER = 'digits-small_cnn-at_pgd-s0', 'digits-small_cnn-standard-s0'
SETTINGS = dict(
    white_box=dict(n_test=20, n_targets=1, draws=2, generator=3, sound=False, cascade=['pgd100']),
    all_images=dict(n_test=30, attacks=['fgsm', 'pgd20', 'mim'], cascade=['mim'], methods=['at_pgd']),
    spsa=dict(n_test=8, samples=[4, 8], steps=2, budget=20),
    transfer=dict(n_test=10, attacks=['fgsm', 'pgd20'], target_seeds=[0], source_seeds=[0]),
)
EXPERIMENTS = dict(SETTINGS, paper=dict(margin=3.0))
KINDS = 'records', 'tables', 'frames', 'figures', 'runs'


@pytest.fixture(scope='module')
def made(tmp_path_factory, give_tiny_runs):
    "A scale of two runs; its files were made by the calls of its plan"
    root = small_project(tmp_path_factory.mktemp('project'), *SETTINGS, 'paper', 'audit')
    copy_files(['nbs/published/table1.csv', 'nbs/scales/paper.yaml'], root)
    give_tiny_runs(root, 'standard', 'at_pgd', scale='mini')
    own = SETTINGS | dict(transfer=SETTINGS['transfer'] | dict(targets=['standard', 'at_pgd']))
    scale = check_scale(MINI | experiments(**own, paper=EXPERIMENTS['paper']))
    (root / 'nbs' / 'scales' / 'mini.yaml').write_text(yaml.safe_dump(scale.content))
    runs = dict(white_box=[ONE, OTHER], spsa=[ONE], all_images=[ONE])
    for name in [*SETTINGS, 'paper']:
        for run in runs.get(name, [None]):
            done = papermill(root, name, **json.loads(call_parameters(scale, name, run)))
            assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def project(made, tmp_path):
    "A copy that a test may alter"
    shutil.copytree(made, tmp_path / 'project')
    return tmp_path / 'project'


def files_of(folder):
    return {file: file.read_bytes() for file in folder.rglob('*') if file.is_file()}


def audited(root, **given):
    "Exit status, and the lines that the executed notebook has printed; the line of its error"
    done = papermill(root, 'audit', scale='mini', **given)
    outputs = [out for cell in nbformat.read(root / 'out.ipynb', 4).cells for out in cell.get('outputs', [])]
    lines = ''.join(out.text for out in outputs if out.get('name') == 'stdout').splitlines()
    errors = [f'{out.ename}: {out.evalue}' for out in outputs if out.output_type == 'error']
    return done.returncode, lines, errors[0] if errors else ''


def test_every_row_of_every_experiment_comes_out_again(made):
    before = files_of(made / 'outputs')
    status, lines, error = audited(made, rows=100_000)
    assert (status, error) == (0, ''), error
    assert files_of(made / 'outputs') == before  # nothing is written
    records = [read_record(file)[0] for file in (made / 'outputs/mini/records').glob('*.parquet')]
    rows = pd.concat(records)
    n, total = int((rows.attacked & (rows.attack != 'generator')).sum()), len(rows)
    assert {'generator', 'distribution', 'feature', 'spsa8', 'square'} < set(rows.attack)
    assert any('left out: 40 rows of 2 records' in line and 'generator' in line for line in lines)
    assert lines[0] == f'mini: {n:,} of {total:,} recorded rows can be attacked again' and n < total
    for name in SETTINGS:
        assert any(line.startswith(f'  {name}: ') for line in lines)
    said = re.fullmatch(
        r'mini: ([\d,]+) of ([\d,]+) rows attacked again: ([\d,]+) agree, 0 wrong; .*', lines[-1]
    )
    assert {int(number.replace(',', '')) for number in said.groups()} == {n}
    claims = len(read_table(made / 'outputs/mini/tables/claims.csv'))
    claims += len(read_table(made / 'outputs/mini/tables/code_claims.csv'))
    assert f'8 tables, with {claims} claims, computed again: all agree' in lines[-1]


def test_another_number_of_threads_agrees(made):
    said = [audited(made, rows=60, seed=4, threads=threads) for threads in (1, 2)]
    for status, lines, error in said:
        assert status == 0, error
        assert '60 agree, 0 wrong' in lines[-1]


def altered_record(root, change):
    "Alter a record, and make all digests fit"
    file = root / f'outputs/mini/records/white_box-{ONE}.parquet'
    rows, weights = read_record(file)
    change(rows)
    save_records(rows, file, weights)
    note_files(root / 'outputs/mini')


@pytest.mark.parametrize('column', ['pred', 'margin', 'linf'])
def test_an_altered_value_is_found_with_both_values(project, column):
    def change(rows):
        k = np.flatnonzero(rows.attacked & (rows.attack == 'feature'))[3]
        value = dict(pred=(rows.pred[k] + 1) % 10, margin=rows.margin[k] + 0.02, linf=rows.linf[k] - 1e-5)
        chosen.update(i=rows.i[k], before=rows[column][k], after=value[column])
        rows.loc[k, column] = value[column]

    chosen = {}
    altered_record(project, change)
    status, lines, error = audited(project, rows=100_000, runs=[ONE], attacks=['feature', 'fgsm'])
    assert status != 0 and error.startswith('AuditError: mini: ') and ', 1 wrong; ' in error
    (line,) = [line for line in lines if f'feature, image {chosen["i"]}:' in line]
    recorded, now = line.split('; now ')
    for text, value in (recorded, chosen['after']), (now, chosen['before']):
        assert f'{value:.6g}' in text
    assert error.removeprefix('AuditError: ') == lines[-1]
    refused = any(line.startswith('Table 1 and the claims cannot be computed') for line in lines)
    assert refused == (column == 'pred')  # one image less is right than its table says


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def alter_cell(file):
    text = file.read_text()
    file.write_text(text.replace(',20,', ',19,', 1))
    assert file.read_text() != text


@pytest.mark.parametrize(
    'name, alter',
    [
        (f'runs/{ONE}/weights.safetensors', flip),
        (f'records/white_box-{ONE}.parquet', flip),
        (f'tables/white_box-{ONE}.csv', alter_cell),
        ('tables/claims.csv', flip),
        ('frames/gain-' + ONE + '.csv', flip),
    ],
)
def test_a_changed_file_is_refused_by_name_before_any_attack(project, name, alter):
    alter(project / 'outputs/mini' / name)
    status, lines, error = audited(project, rows=10)
    assert status != 0 and not lines
    place, file = name.split('/')[-2:]
    assert error.partition(': ')[0] in ('TableError', 'ParameterError') and file in error and len(error) < 500
    assert place in error and 'SHA-256' in error


def test_a_record_altered_row_by_row_is_refused(project):
    file = project / f'outputs/mini/records/white_box-{ONE}.parquet'
    listed = (project / 'outputs/mini/SHA256SUMS').read_text()
    rows, weights = read_record(file)
    rows.loc[5, 'margin'] += 0.5
    save_records(rows, file, weights)
    (project / 'outputs/mini/SHA256SUMS').write_text(listed)
    _, lines, error = audited(project, rows=10)
    assert not lines and f'records/{file.name}: its SHA-256' in error


@pytest.mark.parametrize(
    'name, column',
    [(f'white_box-{ONE}', 'correct'), ('transfer', 'lo'), ('table1', 'accuracy'), ('claims', 'published')],
)
def test_a_cell_that_is_no_sum_over_the_records_is_found(project, name, column):
    "The digests were made to fit, so only the sums can tell"
    file = project / f'outputs/mini/tables/{name}.csv'
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    k = next(k for k, value in enumerate(table[column]) if value not in ('', '0'))
    before = table.loc[k, column]
    table.loc[k, column] = after = f'{float(before) * 1.01 + 0.01:.4f}'
    file.write_text(table.to_csv(index=False))
    note_files(project / 'outputs/mini')
    status, lines, error = audited(project, rows=10)
    assert status != 0 and '1 cells differ' in error
    (line,) = [line for line in lines if line.startswith(f'tables/{name}.csv: ')]
    assert f', {column}: recorded {after}, computed again {before}' in line


def test_without_weights_there_is_nothing_to_attack(project):
    for file in (project / 'outputs/mini').glob('runs/*/weights.safetensors'):
        file.unlink()
    status, lines, error = audited(project, rows=10)
    assert status != 0 and error.startswith('ParameterError: no recorded row can be') and 'weights' in error


@pytest.mark.parametrize(
    'given, said', [(dict(runs=['*-s7']), "runs='*-s7'"), (dict(attacks=['x']), "attacks='x'")]
)
def test_what_is_not_there_is_refused(made, given, said):
    status, lines, error = audited(made, rows=10, **given)
    assert status != 0 and said in error and not lines
