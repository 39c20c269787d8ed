"What stands behind each number of a report: its links are followed, and the number is counted again from the files"

import hashlib
import json
import re
import shutil
from dataclasses import replace
from functools import cache
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from bs4 import BeautifulSoup
from helpers import ROOT

from adt_repro.paper.claims import claim_statistics, judge_code, judge_paper, published_table1
from adt_repro.paper.evidence import TABLE1, read_evidence
from adt_repro.paper.report import REAL
from adt_repro.paper.sources import claim_sources, row_sources

OUTPUTS = ROOT / 'outputs'
SCALES = [scale for scale in REAL if (OUTPUTS / scale / 'report.html').exists()]
evidence = cache(read_evidence)  # of a committed scale: nothing changes it


# A reader of the page that shares no code with it


def listed(folder):
    "Name to SHA-256, from a scale's list"
    lines = (folder / 'SHA256SUMS').read_text('utf-8').splitlines()
    return {line[66:]: line[:64] for line in lines}


def sha256(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def addresses(tag):
    return [unquote(a['href']) for a in tag.select('a[href]')]


def file_complaints(folder, page):
    "Links of a page that lead nowhere, or to a file that is not the one in the list"
    ids, sums = {tag['id'] for tag in page.select('[id]')}, listed(folder)
    for address in dict.fromkeys(addresses(page.body)):
        if address[0] == '#':
            if address[1:] not in ids:
                yield f'{address} is not on the page'
        elif not (folder / address).is_file():
            yield f'{address} does not exist'
        elif address != 'SHA256SUMS' and sums.get(address) != sha256(folder / address):
            yield f'{address} is not what SHA256SUMS says'


def entry_of(page, address):
    "The table below the heading to which a cell links"
    return page.find(id=address[1:]).find_next_sibling()


def record_of(folder, line, kind):
    "The rows of the records of a network, None if it has no such link or file, and the text behind the link"
    link = next((a for a in line.select('a') if re.fullmatch(kind, a.text)), None)
    file = folder / link['href'] if link else None
    return (pd.read_parquet(file), str(link.next_sibling)) if file and file.is_file() else (None, '')


def percent(rows, column):
    "Accuracy of a network: a plain count of rows, for rob with a set of images"
    if column != 'rob':
        met = rows[rows.attack == column]
        return 100 * (met.pred == met.y).sum() / len(met)
    common = set.intersection(*(set(rows.i[rows.attack == attack]) for attack in TABLE1))
    wrong = set(rows.i[rows.attack.isin(TABLE1) & (rows.pred != rows.y)])
    return 100 * len(common - wrong) / len(common)


def cell_complaints(folder, page):
    "Cells of Table 1 without a link, or with a number that is not what the linked rows give"
    lines = page.select('table.cells tr')
    columns = [head.text for head in lines[0].select('th')][1:]
    for line in lines[1:]:
        for column, cell in zip(columns, line.select('td'), strict=True):
            where = f'{line.th.find(string=True)}, {column}'
            number = re.match(r'[\d.]+', cell.text)
            if not number:
                continue
            if not cell.a:
                yield f'{where}: no link'
                continue
            networks = entry_of(page, cell.a['href']).select('tbody tr')
            found = [record_of(folder, network, r'white_box\w*')[0] for network in networks]
            counted = [percent(rows, column) for rows in found if rows is not None]
            if not counted or abs(np.mean(counted) - float(number[0])) > 0.0501:
                yield f'{where}: {number[0]} on the page, {np.mean(counted or np.nan):.2f} counted'


def record_complaints(folder, network):
    "What a page says of the records of a network, against the files"
    name = network.th.find(string=True)
    for kind in r'white_box\w*', 'all_images', 'spsa', 'transfer-itself', 'transfer-from':
        rows, said = record_of(folder, network, kind)
        if rows is None:
            continue
        numbers = [int(n.replace(',', '')) for n in re.findall(r'[\d,]*\d(?= rows| of them)', said)]
        if numbers != list(dict.fromkeys([len(rows), int(rows.attacked.sum())])):
            yield f'{name}: {said} but {len(rows)} rows, {rows.attacked.sum()} attacked'
        if said.split('; ')[1] != ', '.join(dict.fromkeys(rows.attack)):
            yield f'{name}: {said} but {set(rows.attack)}'
        if set(rows.source if kind == 'transfer-from' else rows.run) != {name}:
            yield f'{name}: {kind} has rows of others'


def told_digests(folder, network):
    "The digests of a network's weights in run.json and in the records behind its links"
    name = network.th.find(string=True)
    yield (
        json.loads((folder / 'runs' / name / 'run.json').read_text('utf-8'))
        .get('file_sha256', {})
        .get('weights.safetensors')
    )
    old = folder / 'records' / 'weights.json'
    old = json.loads(old.read_text('utf-8')) if old.exists() else {}
    for file in (folder / address for address in addresses(network) if address.endswith('.parquet')):
        if file.is_file():
            own = json.loads(pq.read_metadata(file).metadata.get(b'adt_repro', b'{}')).get('facts', {})
            yield own.get('weights', {}).get(name)
            yield old.get(sha256(file), {}).get(name)


def weight_complaints(folder, network):
    "A digest of weights that no file tells, or that is not the file's"
    name, cell = network.th.find(string=True), network.select('td')[1]
    shown, link = cell.code, cell.a
    told = set(filter(None, told_digests(folder, network)))
    kept = listed(folder).get(f'runs/{name}/weights.safetensors')
    if (shown is None) != (not told and not kept) or (link is None) != (kept is None):
        yield f'{name}: weights {cell.text} but {told} {kept}'
    if shown and not (shown['title'].startswith(shown.text) and {shown['title']} == (told or {kept})):
        yield f'{name}: weights {shown["title"]} but {told} {kept}'
    if link and (folder / link['href']).exists() and sha256(folder / link['href']) != shown['title']:
        yield f'{name}: weights {shown["title"]} but the file has others'


def training_complaints(folder, network):
    "Commit, versions and commands of a network, against run.json and the names of files"
    name, cells = network.th.find(string=True), network.select('td')
    facts = json.loads((folder / 'runs' / name / 'run.json').read_text('utf-8'))
    commit = facts.get('git_commit')
    if (cells[2].code is None) != (commit is None) or commit and cells[2].code['title'] != commit:
        yield f'{name}: commit {cells[2].text} but {commit}'
    for fact in facts['device'], *(f'{k} {facts["versions"][k]}' for k in ('torch', 'python')):
        if fact not in cells[2].small.text:
            yield f'{name}: {fact} is not shown'
    make = cells[3].text.removeprefix(f'snakemake --cores 2 --config scale={folder.name} -- ')
    target = make.removeprefix(f'outputs/{folder.name}/')
    if make == cells[3].text or target not in addresses(network) or not (folder / target).is_file():
        yield f'{name}: made by {cells[3].text}'
    check = f'adt audit {folder.name} --runs {name}' if cells[1].a else 'needs the weights'
    if cells[4].text != check:
        yield f'{name}: checked by {cells[4].text}'


def claim_complaints(page):
    "Claims that were run and have no link, or whose entry names neither rows nor files"
    lines = [line for line in page.select('table.adt tr') if len(line.select('td')) == 9 and line.b]
    if not lines:
        yield 'no claims'
    for line in lines:
        cells = line.select('td')
        is_run = 'not run' not in cells[-1].b.text
        if is_run != (cells[0].a is not None):
            yield f'{cells[0].text}: {"no link" if is_run else "a link to nothing"}'
        elif is_run:
            entry = page.find(id=cells[0].a['href'][1:])
            if entry is None or entry.th.text != cells[0].text or not entry.select('a'):
                yield f'{cells[0].text}: its entry has no links'


def complaints(folder):
    "Everything that is wrong with the links of a scale's report"
    page = BeautifulSoup((folder / 'report.html').read_bytes(), 'html.parser')
    networks = page.select('table.sources tbody tr')
    found = [*file_complaints(folder, page), *cell_complaints(folder, page), *claim_complaints(page)]
    for network in networks:
        for look in record_complaints, weight_complaints, training_complaints:
            found += look(folder, network)
    return found if networks else ['no networks', *found]


@pytest.mark.parametrize('scale', SCALES)
def test_links_lead_to_the_rows_of_each_number(scale):
    assert complaints(OUTPUTS / scale) == []
    assert (OUTPUTS / scale / 'report.html').stat().st_size < 10**6


# The reader itself


@pytest.fixture
def copied(tmp_path):
    "The files of scale cpu"
    kept = shutil.ignore_patterns('figures', '*.pt')
    return shutil.copytree(OUTPUTS / 'cpu', tmp_path / 'cpu', ignore=kept)


RUN = 'cifar10-small_cnn-at_pgd-s0'


def altered(text, old, new):
    assert old in text
    return text.replace(old, new, 1)


def test_a_record_that_was_renamed_is_found(copied):
    record = copied / 'records' / f'white_box-{RUN}.parquet'
    record.rename(record.with_name('other.parquet'))
    found = complaints(copied)
    assert f'records/{record.name} does not exist' in found and f'{RUN}: made by' in '\n'.join(found)


def test_altered_files_are_found(copied):
    record = copied / 'records' / f'white_box-{RUN}.parquet'
    rows = pd.read_parquet(record)
    rows.loc[rows.attack == 'mim', 'pred'] = rows.y[rows.attack == 'mim']
    rows.to_parquet(record)
    weights = copied / 'runs' / RUN / 'weights.safetensors'
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    found = '\n'.join(complaints(copied))
    for name in f'records/{record.name}', f'runs/{RUN}/{weights.name}':
        assert f'{name} is not what SHA256SUMS says' in found
    assert 'at_pgd, mim: ' in found and 'at_pgd, fgsm: ' not in found
    assert f'{RUN}: weights' in found and 'but the file has others' in found


def test_an_altered_page_is_found(copied):
    page = copied / 'report.html'
    text = page.read_text('utf-8')
    link = re.search(r'<a href="#row-adt_exp">([\d.]+)', text)
    text = altered(text, link[0], f'<a href="#row-adt_exp">{float(link[1]) + 1}')
    link = re.search(r'<a href="#row-trades">([^<]+)</a>', text)
    text = altered(text, link[0], link[1])
    text = altered(text, 'id="row-standard"', 'id="row-other"')
    text = altered(text, '<a href="#claim-C13">C13</a>', 'C13')
    with pytest.raises(AttributeError):  # an entry that is not there has no table
        page.write_text(text) and complaints(copied)
    text = altered(text, 'id="row-other"', 'id="row-standard"')
    number = re.search(r'white_box</a>: ([\d,]+) rows', text)
    page.write_text(altered(text, number[0], 'white_box</a>: 1 rows'), encoding='utf-8')
    found = '\n'.join(complaints(copied))
    for sign in 'adt_exp, natural: ', 'trades, natural: no link', 'C13: no link', ': 1 rows':
        assert sign in found, sign
    assert found.count('\n') == 3


# What a claim reads, by taking it away


@cache
def claims_of(scale):
    "By key, what the statistic of a claim reads"
    e, paper = evidence(OUTPUTS / scale), published_table1()
    judged = pd.concat([judge_paper(e, paper), judge_code(e)])
    found = claim_sources(e, judged, row_sources(OUTPUTS / scale, e))
    return {claim.key: claim.reads[0] for claim in found}


@cache
def statistics_of(scale, keys=None):
    return claim_statistics(evidence(OUTPUTS / scale), keys)


def is_same(grids, others):
    "Are two statistics of a claim equal, number by number?"
    if others is None or isinstance(grids, float):
        return grids == others
    return len(grids) == len(others) and all(map(np.array_equal, grids, others))


def touched(scale, keys=None, **parts):
    "Keys of the claims whose statistic is another, or none, with other evidence"
    again = claim_statistics(replace(evidence(OUTPUTS / scale), **parts), keys)
    before = {key: grids for key, grids in statistics_of(scale, keys).items() if grids is not None}
    return {key for key, grids in before.items() if not is_same(grids, again[key])}


PARTS = dict(
    curvature='frames/curvature.csv',
    alignment='frames/alignment.csv',
    diversity='frames/diversity_measures.csv',
    ablation='frames/ablation.csv',
    ablation_rows='records/ablation.parquet',
)


@pytest.mark.parametrize('part', PARTS)
def test_a_claim_names_the_frames_without_which_it_has_no_number(part):
    scale, keys = ('cpu', ('C6a', 'C7', 'C12')) if part == 'alignment' else ('digits', None)
    named = {key for key, reads in claims_of(scale).items() if PARTS[part] in reads.files}
    assert named and touched(scale, keys, **{part: None}) == named


@pytest.mark.parametrize('part, key', [('transfer', 'C11a'), ('spsa', 'C11b')])
def test_claims_of_black_boxes(part, key):
    "Each attack that is named was made on each network of the two rows, and C11a names the files with such rows"
    assert touched('digits', **{part: None}) == {key}
    e, reads = evidence(OUTPUTS / 'digits'), claims_of('digits')[key]
    runs = set(e.runs.run[e.runs.row.isin(reads.rows)])
    files, attacks = set(), set()
    for file in OUTPUTS.glob(f'digits/records/{part}-*.parquet'):
        rows = pd.read_parquet(file)
        rows = rows[rows.run.isin(runs) & (rows.attack.str.startswith('spsa') | (rows.source != rows.run))]
        attacks |= set(rows.attack) - {'natural'}
        files |= {f'records/{file.name}'} if len(rows) else set()
    assert files and set(reads.attacks) == attacks
    assert set(reads.files) == (files if part == 'transfer' else set())


@pytest.mark.parametrize('row', ['at_pgd', 'adt_exp', 'adt_imp_am', 'at_fgsm', 'trades'])
def test_a_claim_names_its_rows(row):
    runs = evidence(OUTPUTS / 'digits').runs
    named = {key for key, reads in claims_of('digits').items() if row in reads.rows}
    assert bool(named) == (row != 'trades') and touched('digits', runs=runs[runs.row != row]) == named


@pytest.mark.parametrize('attack', TABLE1)
@pytest.mark.parametrize('scale, keys', [('digits', None), ('cpu', ('C1', 'C1b', 'C10a', 'C13'))])
def test_a_claim_names_its_attacks(scale, keys, attack):
    "Declared claims of cpu read five attacks, the others all six"
    e, known = evidence(OUTPUTS / scale), claims_of(scale)
    parts = {part: getattr(e, part) for part in ('rows', 'all_images')}
    parts = {part: None if rows is None else rows[rows.attack != attack] for part, rows in parts.items()}
    named = {key for key, reads in known.items() if attack in reads.attacks and 'white_box' in reads.what}
    assert touched(scale, keys, **parts) == (named if keys is None else named & set(keys))


# Where the digest of weights is from


@pytest.fixture
def one_run(tmp_path):
    "A run of cpu, with its records, in a folder of its own"
    folder = tmp_path / 'outputs' / 'cpu'
    shutil.copytree(OUTPUTS / 'cpu' / 'runs' / RUN, folder / 'runs' / RUN)
    (folder / 'records').mkdir()
    for name in 'SHA256SUMS', 'records/weights.json', f'records/white_box-{RUN}.parquet':
        shutil.copy(OUTPUTS / 'cpu' / name, folder / name)
    return folder


def test_the_digest_of_weights_is_that_of_the_first_file_that_has_it(one_run):
    "run.json, then records, then the list; the weights themselves are not read"
    weights, sums = one_run / 'runs' / RUN / 'weights.safetensors', one_run / 'SHA256SUMS'
    digest, e = sha256(weights), read_evidence(one_run)
    weights.unlink()

    def source():
        [found] = row_sources(one_run, e)['at_pgd']
        return found

    facts, noted = one_run / 'runs' / RUN / 'run.json', sums.read_text()
    content = json.loads(facts.read_text())
    assert 'file_sha256' not in content and source().weights == digest
    assert source().weights_file == f'runs/{RUN}/weights.safetensors' and source().check
    (one_run / 'records' / 'weights.json').unlink()
    others = ''.join(line for line in noted.splitlines(True) if '/run.json' not in line)
    sums.write_text(others.replace(digest, 'b' * 64))
    assert source().weights == 'b' * 64
    facts.write_text(json.dumps(content | dict(file_sha256={'weights.safetensors': 'a' * 64})))
    assert source().weights == 'a' * 64
    facts.write_text(json.dumps(content))
    sums.unlink()
    assert source().weights == source().weights_file == source().check == ''
    assert source().make and source().commit == content['git_commit']
