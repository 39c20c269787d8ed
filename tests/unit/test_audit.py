"The audit of records: its sample and its bound against plain formulas, what it finds, leaves out and refuses"

import math

import nbformat
import numpy as np
import pandas as pd
import pytest
from helpers import MINI, ROOT, experiments, refusal

from adt_repro.base.tables import note_files
from adt_repro.command import main as command
from adt_repro.data import load_data
from adt_repro.evaluation.records import save_records
from adt_repro.evaluation.suite import run_suite
from adt_repro.paper.recompute import record_tables, table_differences
from adt_repro.runs import audit
from adt_repro.runs.attacks import white_box_attacks
from adt_repro.runs.audit import (
    audit_line,
    audited_data,
    check_listed,
    choose_rows,
    compare_rows,
    disagreement_lines,
    find_population,
    is_wrong,
    sample_rows,
    wrong_bound,
)
from adt_repro.runs.notebook import NotebookError
from adt_repro.runs.scales import check_scale, read_scale
from adt_repro.runs.store import load_run, weights_digest

RUN = 'digits-small_cnn-at_pgd-s0'
FILE = f'records/white_box-{RUN}.parquet'
ALL = MINI | experiments(methods=['at_pgd'], spsa=None, white_box=dict(attacks=['fgsm', 'pgd20'], draws=0))
ALL['experiments']['white_box']['n_test'] = 360


def probability_of_at_most(found, shares):
    "Of at most `found` wrong rows in one draw from each block, by the shares in the blocks"
    of = [1.0]  # probability of each number, after the blocks so far
    for p in shares:
        of = [a * (1 - p) + b * p for a, b in zip([*of, 0.0], [0.0, *of], strict=True)]
    return sum(of[: found + 1])


@pytest.mark.parametrize('n', [1, 7, 40])
def test_the_bound_is_where_the_tail_has_five_percent(n):
    for wrong in range(n):
        bound = wrong_bound(wrong, n)
        tail = sum(math.comb(n, k) * bound**k * (1 - bound) ** (n - k) for k in range(wrong + 1))
        assert abs(tail - 0.05) < 1e-9
    assert wrong_bound(n, n) == 1 and wrong_bound(0, n, 0.5) < wrong_bound(0, n)


@pytest.mark.parametrize('spread', ['even', 'one block', 'few blocks', 'random'])
def test_the_bound_covers_wherever_the_wrong_rows_are(spread):
    n, rng = 30, np.random.default_rng(0)
    for total in np.linspace(0.2, 20, 34):  # the sum of the shares in the blocks
        shares = np.full(n, total / n)
        if spread == 'one block':
            shares = np.minimum(1, np.maximum(0, total - np.arange(n)))
        elif spread == 'few blocks':
            shares = np.where(np.arange(n) < math.ceil(total), total / math.ceil(total), 0)
        elif spread == 'random':
            shares = rng.dirichlet(np.ones(n)) * total
            shares = shares if shares.max() <= 1 else np.full(n, total / n)
        too_low = [k for k in range(n + 1) if wrong_bound(k, n) < shares.mean() - 1e-12]
        missed = probability_of_at_most(max(too_low), shares) if too_low else 0
        assert missed <= 0.05 + 1e-9, (spread, total, missed)


def plain_rows(n, **change):
    columns = dict(record='r', run='a', source='a', attack='fgsm', seed=0, i=range(n), y=1, pred=1)
    return pd.DataFrame(columns | dict(margin=0.5, linf=0.1) | change)


@pytest.mark.parametrize('n_rows, n', [(1000, 300), (301, 300), (300, 300), (5, 300), (977, 1)])
def test_each_block_gives_a_row_and_each_row_has_the_same_chance(n_rows, n):
    rows, times, repeats = plain_rows(n_rows), np.zeros(n_rows), 400
    size = max(1, n_rows / n)
    for seed in range(repeats):
        found = sample_rows(rows.sample(frac=1, random_state=seed), n, seed).i.to_numpy()
        assert len(found) == min(n, n_rows)
        blocks = np.arange(len(found))
        assert (found >= np.floor(blocks * size)).all() and (found <= np.ceil((blocks + 1) * size)).all()
        times += np.bincount(found, minlength=n_rows)
    expected = repeats * min(1, n / n_rows)
    allowed = 5.5 * expected**0.5 + 4 if n < n_rows else 0
    assert abs(times - expected).max() <= allowed
    assert sample_rows(rows, n, 3).equals(sample_rows(rows, n, 3))


@pytest.fixture(scope='module')
def folder(tmp_path_factory, give_tiny_runs):
    "A scale with one run and its record of 1,080 rows"
    root = tmp_path_factory.mktemp('root')
    give_tiny_runs(root, 'at_pgd', scale='mini')
    folder = root / 'outputs' / 'mini'
    model, config = load_run(folder / 'runs' / RUN)
    data = load_data('digits')
    attacks, _ = white_box_attacks(model, config, data, check_scale(ALL).asked['white_box'])
    save(folder, run_suite(model, data.x_test, data.y_test, attacks, eps=config['eps'], run=RUN))
    return folder


def save(folder, rows, name=FILE):
    save_records(rows, folder / name, {RUN: weights_digest(folder / 'runs' / RUN)})
    note_files(folder)


def altered(rows, share, seed):
    "Rows with a share of their classes altered, and where"
    chosen = np.random.default_rng([seed, 99]).permutation(len(rows))[: round(share * len(rows))]
    rows = rows.copy()
    rows.loc[chosen, 'pred'] = (rows.pred[chosen] + 1 + seed % 9) % 10
    return rows


@pytest.mark.parametrize('share, least, most', [(0.02, 95, 100), (0.0, 0, 0), (0.001, 5, 60)])
def test_two_percent_of_altered_classes_are_found(folder, share, least, most):
    rows = find_population(folder, check_scale(ALL)).rows
    assert len(rows) == 1080
    found = 0
    for seed in range(100):
        sample = sample_rows(altered(rows, share, seed), 300, seed)
        found += is_wrong(compare_rows(sample, rows)).any()
    assert least <= found <= most


def test_attacks_find_what_was_altered_and_nothing_else(folder):
    scale, rows = check_scale(ALL), find_population(folder, check_scale(ALL)).rows
    data = audited_data(folder, scale, rows)
    few = rows[rows.i < 20].reset_index(drop=True)
    compared = audit.audit_rows(folder, scale, few, 10_000, data=data)
    assert len(compared) == 60 and (compared.verdict == 'agrees').all()
    compared = audit.audit_rows(folder, scale, altered(few, 0.1, 0), 10_000, data=data)
    wrong = compared[is_wrong(compared)]
    true = few.set_index(['attack', 'i']).pred
    assert len(wrong) == 6 and (wrong.verdict == 'prediction').all()
    assert all(row.pred_again == true[row.attack, row.i] != row.pred for row in wrong.itertuples())
    lines = disagreement_lines(compared)
    assert len(lines) == 6
    for line, row in zip(lines, wrong.itertuples(), strict=True):
        assert f'{row.attack}, image {row.i}:' in line and RUN in line
        assert f'recorded class {row.pred} ' in line and f'now class {row.pred_again} ' in line
    said = audit_line('mini', 60, compared, 'no tables', 3.2)
    assert '54 agree, 6 wrong' in said and f'{100 * wrong_bound(6, 60):.2g} %' in said


def test_a_tie_is_no_wrong_row_and_is_shown():
    near = dict(margin=0.009, pred=1), dict(margin=-0.009, pred=2)
    one, other = plain_rows(1, **near[0]), plain_rows(1, **near[1])
    compared = compare_rows(one, other)
    assert list(compared.verdict) == ['tie'] and not is_wrong(compared).any()
    assert len(disagreement_lines(compared)) == 1 and '1 tied, 0 wrong' in audit_line('x', 1, compared, '', 1)
    far = compare_rows(one.assign(margin=0.02), other.assign(margin=-0.02))
    assert is_wrong(far).all()


def test_what_cannot_be_attacked_again_is_named(folder, tmp_path):
    rows = find_population(folder, check_scale(ALL)).rows
    rows = rows.drop(columns=['record', 'experiment'])
    extra = {
        'ablation': rows.assign(run='digits-small_cnn-x-s0', source='digits-small_cnn-x-s0'),
        f'white_box.mine-{RUN}': rows,
        f'white_box_bf16-{RUN}': rows,
    }
    try:
        for name, content in extra.items():
            save(folder, content[:7], f'records/{name}.parquet')
        found = find_population(folder, check_scale(ALL))
        assert len(found.rows) == 1080
        text = '\n'.join(found.lines('mini'))
        assert text.startswith('mini: 1,080 of 1,101 recorded rows can be attacked again')
        assert '7 rows of 1 record (ablation): the weights of the ablation are not kept' in text
        assert f'14 rows of 2 records (white_box.mine-{RUN}, white_box_bf16-{RUN}): not in the plan' in text
        scale = check_scale(MINI | experiments(methods=['at_pgd', 'trades'], spsa=None))
        assert 'white_box-digits-small_cnn-trades-s0' in '\n'.join(
            find_population(folder, scale).lines('mini')
        )
        low = ALL['experiments'] | dict(white_box=ALL['experiments']['white_box'] | dict(precision='bf16'))
        left = find_population(folder, check_scale(MINI | dict(experiments=low))).left_out
        assert any(lost['record'].startswith('white_box_bf16') and 'bf16' in lost['why'] for lost in left)
    finally:
        for name in extra:
            (folder / f'records/{name}.parquet').unlink()
        note_files(folder)


def test_other_files_are_refused_by_name(folder):
    scale = check_scale(ALL)
    for name in f'runs/{RUN}/weights.safetensors', FILE:
        file = folder / name
        content = file.read_bytes()
        for place in 0, len(content) // 2, len(content) - 1:
            file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            assert file.name in refusal(check_listed, folder)
            assert file.name in refusal(find_population, folder, scale)
        file.write_bytes(content)
    n, absent = check_listed(folder)
    assert n > 4 and not absent
    rows = find_population(folder, scale).rows.drop(columns=['record', 'experiment'])
    save_records(rows, folder / FILE, {RUN: 'e' * 64})
    assert refusal(find_population, folder, scale).startswith(f'{FILE}: made with weights of {RUN}')
    save(folder, rows)
    data = find_population(folder, scale).rows.assign(test_set='f' * 12)
    assert refusal(audited_data, folder, scale, data).startswith(f'{FILE}: its test_set is ffffffffffff')


def test_a_data_set_that_is_not_here_is_not_fetched(tmp_path, monkeypatch):
    monkeypatch.delenv('ADT_DATA', raising=False)
    folder, scale = ROOT / 'outputs' / 'cpu', read_scale(ROOT / 'nbs' / 'scales' / 'cpu.yaml')
    rows = choose_rows(find_population(folder, scale).rows, ['*-at_pgd-s0'])
    said = refusal(audited_data, folder, scale, rows, tmp_path)
    assert str(tmp_path) in said and 'cifar-10-python.tar.gz' in said and not any(tmp_path.iterdir())


def test_runs_and_attacks_are_chosen(folder):
    rows = find_population(folder, check_scale(ALL)).rows
    assert set(choose_rows(rows, ['*-s0'], ['natural', 'fgsm']).attack) == {'natural', 'fgsm'}
    assert refusal(choose_rows, rows, ['*-s1']).startswith("runs='*-s1'")
    assert refusal(choose_rows, rows, None, ['cw']).startswith("attacks='cw'")
    assert refusal(choose_rows, rows[:0]).startswith('no recorded row')


def test_a_table_is_a_sum_over_its_record(folder):
    "A table as plain pandas counts it, then one with another count"
    scale, file = check_scale(ALL), folder / 'tables' / f'white_box-{RUN}.csv'
    rows = find_population(folder, scale).rows
    right = (rows.pred == rows.y).groupby(rows.attack, sort=False).agg(['size', 'sum'])
    worst = (rows.pred == rows.y).groupby(rows.i).all()
    counts = {attack: (int(n), int(k)) for attack, n, k in right.itertuples()}
    counts['worst'] = len(worst), int(worst.sum())
    file.parent.mkdir()
    for change in 0, 1:
        lines = ['run,attack,n,correct,accuracy,bound']
        for attack, (n, k) in counts.items():
            k += change * (attack == 'pgd20')
            lines.append(f'{RUN},{attack},{n},{k},{k / n:.4f},False')
        file.write_text('\n'.join(lines) + '\n')
        note_files(folder)
        found = table_differences(folder, record_tables(folder, scale))
        found = found[found.recorded != 'no column']
        expected = [('pgd20', 'correct'), ('pgd20', 'accuracy')] * change
        assert [
            (row.split(', ')[1], column) for row, column in zip(found.row, found.column, strict=True)
        ] == expected
    file.unlink()
    note_files(folder)


def notebook_that_says(text, error=None):
    "What replaces the execution of a notebook: it prints, and may end in an error"

    def run(notebook, output, given, follow):
        cell = nbformat.v4.new_code_cell(
            '', outputs=[nbformat.v4.new_output('stream', name='stdout', text=text)]
        )
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), output)
        calls.append((notebook, given))
        if error:
            raise NotebookError(error)

    calls = []
    run.calls = calls
    return run


@pytest.mark.parametrize(
    'error, status, out, err',
    [
        (None, 0, 'all of it\nlast\n', ''),
        ('AuditError: mini: 1 wrong', 1, 'all of it\nlast\n', ''),
        ('TableError: runs/x: was changed', 2, '', 'runs/x: was changed\n'),
        ('DataError: data_root: missing', 2, '', 'data_root: missing\n'),
        ('RecordError: a record', 2, '', 'a record\n'),
        ('KeyError: x', 1, '', 'KeyError: x\n'),
    ],
)
def test_exit_status_and_what_is_printed(error, status, out, err, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = notebook_that_says('all of it\nlast\n', error)
    monkeypatch.setattr(command, 'run_notebook', run)
    args = [
        'audit',
        'mini',
        '--rows',
        '20',
        '--runs',
        '*-s0',
        '*-s1',
        '--attacks',
        'fgsm',
        '-p',
        'threads',
        '2',
    ]
    assert command.main(args) == status
    assert capsys.readouterr() == (out, err)
    given = dict(rows=20, runs=['*-s0', '*-s1'], attacks=['fgsm'], threads=2, scale='mini')
    assert run.calls == [('audit', given)]
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    'args', [['--rows', '0'], ['-p', 'row', '3'], ['--seed', 'x'], ['-p', 'scale', 'other']]
)
def test_bad_parameters_are_refused_with_status_two(args, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command.main(['audit', 'mini', *args]) == 2
    out, err = capsys.readouterr()
    assert not out and len(err.splitlines()) == 1 and not any(tmp_path.iterdir())
