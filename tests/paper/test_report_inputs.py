"""Files of the report from strangers, or damaged: text stays text, and half a file is refused with one line

Most of it calls the readers of paper.ipynb one by one; the notebook itself runs on a few of the files."""

import hashlib
import json
import shutil
from collections import Counter
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import ROOT, copy_files, papermill, refusal

from adt_repro.base.parameters import shown
from adt_repro.base.tables import file_digest, read_parquet, write_text
from adt_repro.evaluation import records
from adt_repro.evaluation.records import read_record, save_records
from adt_repro.paper import inputs
from adt_repro.paper.claims import (
    judge_code,
    judge_paper,
    published_table1,
    weakest_columns,
)
from adt_repro.paper.drawings import rows_run
from adt_repro.paper.evidence import PARTS, read_evidence, run_table
from adt_repro.paper.report import (
    claims_html,
    claims_table,
    frame_markdown,
    inline,
    legend_html,
    lost_to_attacks,
    paper_settings,
    scale_line,
    setting_line,
    table1_cells,
    table1_html,
    table1_markdown,
    weakest_table,
)
from adt_repro.paper.sections import Report, add_tables, write_report
from adt_repro.paper.summaries import (
    beyond_table1,
    black_box_table,
    low_precision_gaps,
    network_pairs,
    paper_frames,
    run_labels,
    sanity_table,
    table1_caption,
    training_times,
)
from adt_repro.runs.store import weights_digest

METHODS = 'at_pgd', 'adt_exp', 'adt_imp_am'
RUNS = {
    'digits': [f'digits-small_cnn-{method}-s{seed}' for method in METHODS for seed in (0, 1)],
    'gpu': [f'cifar10-resnet18-{method}-s0' for method in ('at_pgd', 'adt_exp')],
}


# A project of eight networks


def files_of(scale, runs):
    "The files of a scale's report that are of some runs, relative to the root"
    at = f'outputs/{scale}'
    files = [f'{at}/runs/{run}/{name}' for run in runs for name in ('run.json', 'config.yaml', 'history.csv')]
    for folder in 'records', 'frames', 'tables':
        files += [
            str(file.relative_to(ROOT)) for run in runs for file in ROOT.glob(f'{at}/{folder}/*-{run}.*')
        ]
    return files


def of_runs(frame, runs):
    "A frame without the rows of other runs"
    kept = frame[frame.run.isin(runs)]
    return kept[kept.source.isin(runs)] if 'source' in kept else kept


def copy_project(root):
    "The settings of the project, and what a scale has of a few runs; no list of digests"
    names = [
        'settings.ini',
        'README.md',
        'nbs/paper.ipynb',
        'nbs/published/table1.csv',
        'nbs/scales/paper.yaml',
    ]
    names += [file for scale, runs in RUNS.items() for file in files_of(scale, runs)]
    digits = 'outputs/digits'
    names += [f'{digits}/frames/{name}.csv' for name in ('ablation', 'ablation_hinge', 'soundness_transfer')]
    names += [f'{digits}/records/ablation.parquet', f'{digits}/figures/landscape_plane.png']
    copy_files(names, root)
    for name in 'curvature', 'landscape', 'diversity_measures':
        frame = pd.read_csv(ROOT / digits / 'frames' / f'{name}.csv')
        of_runs(frame, RUNS['digits']).to_csv(root / digits / 'frames' / f'{name}.csv', index=False)
    write_measured(root / digits / 'frames')
    for file in (root / digits / 'records').glob('transfer-*.parquet'):
        of_runs(pd.read_parquet(file), RUNS['digits']).to_parquet(file, index=False)
    frame = pd.read_csv(root / digits / 'frames' / 'soundness_transfer.csv')
    source = frame.check.str.partition(' made on ')[2]
    kept = frame[frame.run.isin(RUNS['digits']) & source.isin(RUNS['digits'])]
    kept.to_csv(root / digits / 'frames' / 'soundness_transfer.csv', index=False)
    forget_digests(root / digits)
    return root


def forget_digests(folder):
    "As of runs and records before they named their weights"
    for file in folder.glob('runs/*/run.json'):
        facts = json.loads(file.read_text())
        facts.pop('file_sha256', None)
        file.write_text(json.dumps(facts, indent=1) + '\n')
    for file in folder.glob('records/*.parquet'):
        pd.read_parquet(file).to_parquet(file, index=False)


def write_measured(frames):
    "Frames of what was measured of single images: where attacks end, and how well the inner problem was solved"
    rng = np.random.default_rng(0)
    runs = [run for run in RUNS['digits'] if 'adt' in run]
    clouds, attacks = ('own', 'other_image', 'restarts'), ('fgsm', 'pgd20', 'mim')
    index = pd.MultiIndex.from_product(
        [runs, range(5), clouds, attacks], names=['run', 'i', 'cloud', 'attack']
    )
    frame = index.to_frame(index=False)
    frame.assign(cosine=rng.uniform(-1, 1, len(frame))).to_csv(frames / 'alignment.csv', index=False)
    index = pd.MultiIndex.from_product([runs, [-1.0, 0.0, 1.0]], names=['run', 'a'])
    along = index.to_frame(index=False).assign(median=rng.uniform(0, 3, len(index)), n=100)
    along.to_csv(frames / 'landscape_along.csv', index=False)
    for run in runs:
        clean = rng.uniform(0, 1, 9)
        gain = dict(i=range(9), y=0, clean=clean, fgsm=clean + 0.8, pgd20=clean + 1, expected=clean + 0.9)
        pd.DataFrame(gain).to_csv(frames / f'gain-{run}.csv', index=False)


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    return copy_project(tmp_path_factory.mktemp('report'))


@pytest.fixture
def altered(project):
    "A function that writes other bytes into a file of the project, until the test ends"
    before = {}

    def alter(name, content):
        file = project / name
        before.setdefault(file, file.read_bytes())
        file.write_bytes(content)

    yield alter
    for file, content in before.items():
        file.write_bytes(content)


def page_of(root, scale='digits'):
    "The report of a scale without its drawings, and README's tables: the text of all of it"
    folder = root / 'outputs' / scale
    e, paper = read_evidence(folder), published_table1(root)
    said, labels = scale_line(e), run_labels(e.runs)
    setting = setting_line(e)
    report, cells = Report(scale, setting), table1_cells(e, paper, paper_settings(root))
    judged, of_code = judge_paper(e, paper), judge_code(e)
    report.add('Table 1', table1_html(cells, table1_caption(e, folder, said)))
    report.add('Claims', claims_html(judged, setting, ['C1']))
    report.add('Code', claims_html(of_code, setting), legend_html(of_code.verdict))
    passed, failed, _ = sanity_table(folder, labels, e.precision, PARTS)
    tables = dict(
        Networks=network_pairs(e),
        Lost=lost_to_attacks(paper),
        Weakest=weakest_table(weakest_columns(e, paper)),
        Beyond=beyond_table1(folder, labels, e.precision, PARTS),
        Transfer=black_box_table(folder, 'transfer', labels, PARTS)[0],
        Queries=black_box_table(folder, 'spsa', labels, PARTS)[0],
        Passed=passed,
        Failed=failed,
        Gaps=low_precision_gaps(folder, labels, e.precision),
    )
    for heading, table in tables.items():
        if table is not None:
            add_tables(report, heading, 'Of', table)
    devices = ', '.join(sorted(set(e.runs.device.dropna())))
    add_tables(report, 'Training time', f'On {devices};', training_times(e.runs, rows_run(cells)))
    paper_frames(folder, PARTS)
    if (folder / 'figures' / 'landscape_plane.png').exists():
        report.add('Plane', inline(folder / 'figures' / 'landscape_plane.png', 'The plane'))
    write_report(report, folder / 'report.html')
    page = (folder / 'report.html').read_text()
    return page + table1_markdown(cells, said) + frame_markdown(claims_table(judged))


def test_the_small_project_is_read(project):
    for scale in RUNS:
        page = page_of(project, scale)
        assert page.count('<section>') >= 7 and 'adt_exp' in page
    assert len(run_table(project / 'outputs' / 'digits')) == 6


# Text that would be HTML

PROBE = """<script>x('1')</script>"><img src=x onerror=x('1')>&lt;b&gt;[x](javascript:x)|**x**<!-- x -->"""
RAW = '<script>x', '<img src=x', "onerror=x('1')>&lt;b&gt;[x]", '<!-- x -->'
DIGITS = 'outputs/digits'
RUN = RUNS['digits'][2]


def raw_in(text):
    "The parts of the probe that a browser would take for HTML"
    return [part for part in RAW if part in text]


def with_values(content, name, keys):
    "The content of a file in which some fields, or each row of some columns, are the probe"
    probes = dict.fromkeys(keys, PROBE)
    if name.endswith('.json'):
        return json.dumps(json.loads(content) | probes).encode()
    if name.endswith('.yaml'):
        return yaml.safe_dump(yaml.safe_load(content) | probes).encode()
    if name.endswith('.csv'):
        return pd.read_csv(BytesIO(content)).assign(**probes).to_csv(index=False).encode()
    return pd.read_parquet(BytesIO(content)).assign(**probes).to_parquet(index=False)


def text_fields():
    "(file, field) of all that the report reads: names in small files, and columns of text"
    fields = []
    for name in f'{DIGITS}/runs/{RUN}/run.json', f'{DIGITS}/runs/{RUN}/config.yaml':
        keys = yaml.safe_load((ROOT / name).read_text())
        fields += [(name, key) for key in keys]
    columns = {
        f'{DIGITS}/records/white_box-{RUN}.parquet': ['run', 'attack', 'source', 'test_set'],
        f'{DIGITS}/records/transfer-itself-{RUN}.parquet': ['run', 'attack', 'source', 'test_set'],
        f'{DIGITS}/records/ablation.parquet': ['run', 'attack', 'source', 'test_set'],
        f'{DIGITS}/frames/soundness-{RUN}.csv': ['run', 'check', 'reason', 'passed'],
        f'{DIGITS}/frames/soundness_transfer.csv': ['run', 'check', 'reason'],
        f'{DIGITS}/frames/alignment.csv': ['run', 'cloud', 'attack'],
        f'{DIGITS}/frames/curvature.csv': ['run'],
        f'{DIGITS}/frames/landscape.csv': ['run'],
        f'{DIGITS}/frames/diversity_measures.csv': ['run', 'kind'],
        f'{DIGITS}/frames/ablation.csv': ['option', 'run', 'method', 'dataset', 'arch', 'attacks'],
        f'{DIGITS}/tables/white_box-{RUN}.csv': ['run', 'attack', 'cascade'],
        'nbs/published/table1.csv': ['row'],
    }
    return fields + [(name, key) for name, keys in columns.items() for key in keys]


def test_text_of_every_field_is_refused_or_stays_text(project, altered):
    "The probe in one field after the other: most are refused with a line; the page shows the others as text"
    shown, wrong, refused = {}, {}, 0
    for name, key in text_fields():
        before = (project / name).read_bytes()
        altered(name, with_values(before, name, [key]))
        said = refusal(READERS[name], project)
        altered(name, before)
        if said.startswith('gave '):
            shown.setdefault(name, []).append(key)
            continue
        refused += 1
        if '\n' in said or 'Error: ' in said[:40]:
            wrong[name, key] = said[:200]
    assert not wrong, wrong
    assert refused >= 30
    for name, keys in shown.items():
        altered(name, with_values((project / name).read_bytes(), name, keys))
    page = refusal(lambda: page_of(project))
    assert page.startswith('gave ') and '&lt;script&gt;x(' in page, page[:300]
    assert raw_in(page) == []


def put_into_all(project, altered):
    "The probe in the fields that may hold any text, of all runs; and checks that fail, so that the reason shows"
    for run in RUNS['digits']:
        name = f'{DIGITS}/runs/{run}/run.json'
        altered(name, with_values((project / name).read_bytes(), name, ['device', 'platform', 'git_commit']))
        name = f'{DIGITS}/frames/soundness-{run}.csv'
        checks = pd.read_csv(project / name).assign(passed=False, reason=PROBE)
        altered(name, checks.to_csv(index=False).encode())
    name = f'{DIGITS}/frames/ablation.csv'
    altered(name, with_values((project / name).read_bytes(), name, ['attacks']))


def test_the_page_and_the_notebook_show_the_text(project, altered):
    "What a browser gets: report.html, and the HTML and Markdown of the executed notebook"
    put_into_all(project, altered)
    done = papermill(project, 'paper', scale='digits', parts=['white_box', 'ablation'])  # all that have it
    assert done.returncode == 0, done.stderr[-2000:]
    page = (project / DIGITS / 'report.html').read_text()
    assert '&lt;script&gt;x(' in page and raw_in(page) == []
    shown = []
    for cell in nbformat.read(project / 'out.ipynb', 4).cells:
        for output in cell.get('outputs', []):
            data = output.get('data', {})
            shown += [data[kind] for kind in ('text/html', 'text/markdown', 'image/svg+xml') if kind in data]
    html = '\n'.join(shown)
    assert '&lt;script&gt;x(' in html and raw_in(html) == []


# Half a file


def lines_of_file(content):
    return content.decode().splitlines(keepends=True)


def cut_after_a_line(content):
    lines = lines_of_file(content)
    return ''.join(lines[: max(1, len(lines) - 2)]).encode()


def without_a_column(content):
    lines = [line.rstrip('\n').split(',') for line in lines_of_file(content)]
    first = next(k for k, name in enumerate(lines[0]) if name in ('run', 'row', 'epoch', 'seed', 'expected'))
    return ('\n'.join(','.join(line[:first] + line[first + 1 :]) for line in lines) + '\n').encode()


def text_for_a_number(content):
    lines = lines_of_file(content)
    names, cells = lines[0].rstrip('\n').split(','), lines[1].rstrip('\n').split(',')
    read = 'entropy', 'n', 'U', 'loss', 'eigenvalue', 'cosine', 'expected', 'rob'
    cells[names.index(next(name for name in read if name in names))] = 'many'
    return ''.join([lines[0], ','.join(cells) + '\n', *lines[2:]]).encode()


def of_another_run(content):
    return (
        content.replace(b'adt_exp', b'trades')
        if b'adt_exp' in content
        else content.replace(b'at_pgd', b'trades')
    )


TEXT = dict(
    line=cut_after_a_line,
    middle=lambda content: content[: len(content) - 7],
    empty=lambda content: b'',
    binary=lambda content: bytes(range(256)) * 8,
    column=without_a_column,
    text=text_for_a_number,
    doubled=lambda content: content + lines_of_file(content)[1].encode(),
    another=of_another_run,
)
WHOLE = dict(
    half=lambda content: content[: len(content) // 2],
    empty=lambda content: b'',
    binary=lambda content: bytes(range(256)) * 8,
    table=lambda content: b'{"a": 1}',
)


def by_rows(change):
    "A change of the rows of a Parquet file"

    def changed(content):
        return change(pd.read_parquet(BytesIO(content))).to_parquet(index=False)

    return changed


ROWS = dict(
    half=lambda content: content[: len(content) // 2],
    empty=lambda content: b'',
    binary=lambda content: bytes(range(256)) * 8,
    column=by_rows(lambda rows: rows.drop(columns='pred')),
    text=by_rows(lambda rows: rows.assign(pred='many')),
    fewer=by_rows(lambda rows: rows.iloc[:-3]),
    gap=by_rows(lambda rows: rows.drop(index=rows.index[5])),
    doubled=by_rows(lambda rows: pd.concat([rows, rows.iloc[:1]])),
    another=by_rows(lambda rows: rows.assign(run=rows.run.str.replace('adt_exp', 'trades'))),
)
FRAME_OF = {
    f'{DIGITS}/frames/{name}.csv': reader
    for name, reader in {
        'alignment': lambda root: read_evidence(root / DIGITS, parts=['landscape']),
        f'gain-{RUN}': lambda root: read_evidence(root / DIGITS, parts=['white_box']),
        'curvature': lambda root: read_evidence(root / DIGITS, parts=['landscape']),
        'ablation': lambda root: read_evidence(root / DIGITS, parts=['ablation']),
        'ablation_hinge': lambda root: paper_frames(root / DIGITS, ['ablation']),
        'landscape': lambda root: paper_frames(root / DIGITS, ['landscape']),
        'landscape_along': lambda root: paper_frames(root / DIGITS, ['landscape']),
        'diversity_measures': lambda root: paper_frames(root / DIGITS, ['diversity']),
        f'soundness-{RUN}': lambda root: sanity_table(root / DIGITS, labels_of(root), 'fp32', ['white_box']),
        'soundness_transfer': lambda root: sanity_table(root / DIGITS, labels_of(root), 'fp32', ['transfer']),
        f'soundness_spsa-{RUN}': lambda root: sanity_table(root / DIGITS, labels_of(root), 'fp32', ['spsa']),
    }.items()
}


def labels_of(root, scale='digits'):
    return run_labels(run_table(root / 'outputs' / scale))


def caption(root):
    folder = root / DIGITS
    return table1_caption(read_evidence(folder, parts=[]), folder, 'said')


def gaps(root):
    return low_precision_gaps(root / 'outputs' / 'gpu', labels_of(root, 'gpu'), 'bf16')


GAPS = f'outputs/gpu/tables/white_box_bf16_vs_fp32-{RUNS["gpu"][1]}.csv'
HISTORY = f'{DIGITS}/runs/{RUNS["digits"][4]}/history.csv'
READERS = FRAME_OF | {
    f'{DIGITS}/tables/white_box-{RUN}.csv': caption,
    GAPS: gaps,
    HISTORY: lambda root: run_table(root / DIGITS),
    'nbs/published/table1.csv': published_table1,
    f'{DIGITS}/records/white_box-{RUN}.parquet': lambda root: read_evidence(
        root / DIGITS, parts=['white_box']
    ),
    f'{DIGITS}/records/ablation.parquet': lambda root: read_evidence(root / DIGITS, parts=['ablation']),
    f'{DIGITS}/records/spsa-{RUN}.parquet': lambda root: black_box_table(
        root / DIGITS, 'spsa', labels_of(root), ['spsa']
    ),
    f'{DIGITS}/records/transfer-itself-{RUN}.parquet': lambda root: black_box_table(
        root / DIGITS, 'transfer', labels_of(root), ['transfer']
    ),
    f'{DIGITS}/runs/{RUN}/run.json': lambda root: run_table(root / DIGITS),
    f'{DIGITS}/runs/{RUN}/config.yaml': lambda root: run_table(root / DIGITS),
    'nbs/scales/paper.yaml': paper_settings,
    f'{DIGITS}/figures/landscape_plane.png': lambda root: inline(
        root / DIGITS / 'figures/landscape_plane.png', 'a'
    ),
}
NOT_OF_A_RUN = 'ablation_hinge.csv', 'history.csv', f'gain-{RUN}.csv'


def damages():
    "(file, what is done to it, a function of its content): several of each kind of file that the report reads"
    for name in READERS:
        kinds = dict(csv=TEXT, parquet=ROWS).get(name.rpartition('.')[2], WHOLE)
        for what, damage in kinds.items():
            of_no_run = name.endswith(NOT_OF_A_RUN) and what == 'another'
            is_json_table = (
                name.endswith('run.json') and what == 'table'
            )  # all that is read of it may be left out
            of_fewer_images = 'gain-' in name and what == 'line'  # which is as good a measurement
            if not (of_no_run or is_json_table or of_fewer_images):
                yield name, what, damage


def names_the_file(line, name):
    "Does a line say which file it is about?"
    file = name.rpartition('/')[2]
    run = name.split('/')[-2]
    return file in line and (run in line if '/runs/' in name else True)


def test_half_a_file_is_refused_with_a_line_that_names_it(project, altered):
    wrong, count = {}, 0
    for name, reader in READERS.items():
        assert refusal(reader, project).startswith('gave '), name
    for name, what, damage in damages():
        before = (project / name).read_bytes()
        altered(name, damage(before))
        line = refusal(READERS[name], project)
        altered(name, before)
        count += 1
        if not (names_the_file(line, name) and line.isprintable() and 'Error: ' not in line[:40]):
            wrong[name, what] = line[:160]
    assert not wrong, '\n'.join(f'{key}: {line}' for key, line in wrong.items())
    assert count >= 38


def test_the_notebook_says_it_too(project, altered):
    name = f'{DIGITS}/frames/soundness-{RUN}.csv'
    altered(name, TEXT['line']((project / name).read_bytes()))
    done = papermill(project, 'paper', scale='digits')
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode and last.startswith(f'TableError: frames/soundness-{RUN}.csv: ')


def test_a_check_that_is_cut_off_is_not_counted(project, altered):
    "Of eight checks of a run, five: not 5 of 5"
    name = f'{DIGITS}/frames/soundness-{RUN}.csv'
    altered(name, ''.join(lines_of_file((project / name).read_bytes())[:6]).encode())
    said = refusal(
        lambda: list(sanity_table(project / DIGITS, labels_of(project), 'fp32', ['white_box'])[0].panel)
    )
    assert said.startswith(f'frames/soundness-{RUN}.csv: it has 5 checks and lacks')


def test_a_history_that_run_json_does_not_know(project, altered):
    "A number in it was changed: complete, and not what was written"
    of_run = f'{DIGITS}/runs/{RUNS["digits"][4]}'
    history, facts = ((project / of_run / name).read_bytes() for name in ('history.csv', 'run.json'))
    noted = dict(file_sha256={'history.csv': hashlib.sha256(history).hexdigest()})
    altered(f'{of_run}/run.json', json.dumps(json.loads(facts) | noted).encode())
    at_the_end = run_table(project / DIGITS).set_index('run').u_end[RUNS['digits'][4]]
    assert at_the_end == -pd.read_csv(BytesIO(history)).entropy.iloc[-1]
    changed = pd.read_csv(BytesIO(history)).assign(entropy=0.0)
    altered(f'{of_run}/history.csv', changed.to_csv(index=False).encode())
    line = refusal(lambda: run_table(project / DIGITS))
    assert line.startswith(f'run={RUNS["digits"][4]!r}: its history.csv is not what its run.json says'), line


def test_each_record_is_read_once(project, tmp_path, monkeypatch):
    "All tables of the report together, and again where a file has changed"
    read = Counter()

    def counted(path, *args, **options):
        read[Path(path).name] += 1
        return read_parquet(path, *args, **options)

    monkeypatch.setattr(records, 'read_parquet', counted)
    for name in 'outputs', 'nbs':
        shutil.copytree(project / name, tmp_path / name)
    first = page_of(tmp_path)
    assert len(read) > 10 and set(read.values()) == {1}, read
    file = tmp_path / DIGITS / 'records' / f'white_box-{RUN}.parquet'
    shown = file.read_bytes()
    file.write_bytes(by_rows(lambda rows: rows.assign(loss=rows.loss + 1))(shown))
    assert page_of(tmp_path) == first  # the report shows no loss
    assert read.pop(file.name) == 2 and set(read.values()) == {1}


# Records of other weights

FROM_ITSELF = f'{DIGITS}/records/transfer-itself-{RUN}.parquet'
FROM = f'{DIGITS}/records/transfer-from-digits-small_cnn-adt_exp-s1.parquet'
BOUND = {  # record to the folder of its runs
    f'{DIGITS}/records/white_box-{RUN}.parquet': 'runs',
    f'{DIGITS}/records/spsa-{RUN}.parquet': 'runs',
    FROM_ITSELF: 'runs',
    FROM: 'runs',
    f'{DIGITS}/records/ablation.parquet': 'ablation/runs',
}


@pytest.fixture
def copied(project, tmp_path):
    "A copy of a scale, whose records may be written again"
    shutil.copytree(project / DIGITS, tmp_path / DIGITS)
    return tmp_path


def digest_of(text):
    return hashlib.sha256(text.encode()).hexdigest()


def say_weights(folder, text):
    "A run's run.json says that its weights are these bytes"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / 'run.json'
    facts = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(facts | dict(file_sha256={'weights.safetensors': digest_of(text)})))


def bind(file, weights):
    "Write a record again, of these weights of each of its runs"
    rows = read_record(file)[0]
    runs = sorted({*rows.run, *rows.source})
    save_records(rows, file, {run: digest_of(weights) for run in runs})
    return runs


@pytest.mark.parametrize('name', BOUND)
def test_a_record_of_other_weights_is_refused(copied, name):
    "A run was trained again: its old records are read no more, until it is evaluated again"
    file, reader = copied / name, READERS.get(name, READERS[FROM_ITSELF])
    runs = bind(file, 'first')
    assert refusal(reader, copied).startswith('gave ')  # no run.json says which weights a run has
    trained = copied / DIGITS / BOUND[name]
    for run in runs:
        say_weights(trained / run, 'first')
    assert refusal(reader, copied).startswith('gave ')
    say_weights(trained / runs[-1], 'second')
    expected = (
        f'records/{file.name}: its rows of {runs[-1]!r} are of other weights than those that the run has now,'
        ' expected records of this run; evaluate it again'
    )
    assert refusal(reader, copied) == expected
    save_records(read_record(file)[0], file)  # as before records named weights
    assert refusal(reader, copied).startswith('gave ')
    listed = {file_digest(file): {run: digest_of('first') for run in runs}}
    write_text(file.with_name('weights.json'), json.dumps(listed))  # as of the records that are committed
    assert refusal(reader, copied) == expected


def test_weights_that_are_there_are_read_once(copied, monkeypatch):
    "The file counts, not only what run.json says; and again when the run was trained again"
    read = Counter()

    def counted(folder):
        read[Path(folder).name] += 1
        return weights_digest(folder)

    monkeypatch.setattr(inputs, 'weights_digest', counted, raising=False)
    for name, at in BOUND.items():
        if at == 'runs':
            for run in bind(copied / name, 'first'):
                (copied / DIGITS / at / run / 'weights.safetensors').write_text('first')

    def reader():
        return read_evidence(copied / DIGITS, parts=['white_box']), READERS[FROM_ITSELF](copied)

    assert refusal(reader).startswith('gave ')
    assert len(read) > 1 and set(read.values()) == {1}, read
    (copied / DIGITS / 'runs' / RUN / 'weights.safetensors').write_text('again')
    assert refusal(reader).startswith(f'records/white_box-{RUN}.parquet: its rows of {RUN!r} are of other')
    assert read.pop(RUN) == 2 and set(read.values()) == {1}, read


def test_what_was_declared_later_stays_text(capsys):
    "The cell of results/mid that prints what a scale file says was added: one line, in one direction"
    cells = nbformat.read(ROOT / 'nbs' / 'results' / 'mid.ipynb', 4).cells
    code = next(cell.source for cell in cells if cell.id == 'added')
    reason = '2026-12-24: a\u2028b\u202ec'
    scale = SimpleNamespace(asked=dict(declared=dict(added=dict(C1=reason))))
    exec(code, dict(scale=scale, shown=shown))
    said = capsys.readouterr().out
    assert said.startswith('C1: ') and said.rstrip('\n').isprintable(), said
