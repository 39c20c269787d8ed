"The page of a judgement: every number of the report, no request, no code of others, and a schema that refuses"

import base64
import copy
import itertools
import json
import re
from io import BytesIO
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from helpers import ROOT
from jsonschema import Draft202012Validator
from judge_example import made_up_pictures, made_up_report
from PIL import Image

from adt_repro.base.parameters import ParameterError
from adt_repro.judging.page import REPORT_SCHEMA, check_report, judgement_page, report_fields

KINDS = list(itertools.product((0, 1), ('linf', 'l2'), (True, False)))


def page_of(report, pictures=None):
    text = judgement_page(report, made_up_pictures(report) if pictures is None else pictures)
    return BeautifulSoup(text, 'html.parser')


def plain(tag):
    "Text of a tag with ordinary spaces"
    return ' '.join(tag.get_text(' ', strip=True).replace('\u00a0', ' ').split())


@pytest.fixture(scope='module')
def soup():
    return page_of(made_up_report())


# What it says


@pytest.mark.parametrize('status, norm, drawn', KINDS)
def test_the_answer_comes_first(status, norm, drawn):
    report = made_up_report(status, norm, drawn)
    page = page_of(report)
    top = plain(page.header)
    assert report['answer']['line'] in top and 'my_module:make_model' in top
    for said in '41.2 %', '38.2 to 44.3 %', 'n = 1,000 images', '86.1 %', report['threat']['eps_text']:
        assert said in top, said
    assert ('✗ overstated' in top) == (status == 1) and ('✓ sound' in top) == (status == 0)
    assert ('What to do: divide the logits' in top) == (status == 1)
    headings = [plain(h) for h in page.select('main h2')]
    assert (
        headings[0] == 'Accuracy under each attack'
        and headings[-1] == 'How it was made'
        and len(headings) == 8
    )
    assert [a['href'][1:] for a in page.select('nav a')] == [s['id'] for s in page.select('main > section')]


def test_the_same_report_gives_the_same_page():
    report = made_up_report()
    read_again = json.loads(json.dumps(report))
    assert judgement_page(report, made_up_pictures(report)) == judgement_page(
        read_again, made_up_pictures(report)
    )


def test_every_attack_with_its_numbers(soup):
    report = made_up_report()
    rows = [
        [plain(cell) for cell in tr.select('th, td')]
        for tr in soup.select('#attacks table')[0].select('tbody tr')
    ]
    assert [row[0] for row in (rows[0], rows[-1])] == ['Clean images', 'All attacks together']
    for attack, row in zip(report['attacks'], rows[1:-1], strict=True):
        accuracy = f'{100 * attack["accuracy"]:.1f} %'
        assert row[0].startswith(attack['title'])
        assert row[2] == ('not known' if attack['cascade'] else accuracy)
        expected = f'{100 * attack["lo"]:.1f} to {100 * attack["hi"]:.1f} %' if attack['lo'] else '–'
        assert row[3] == expected
        assert row[4] == ('500 of 1,000' if attack['cascade'] else '1,000')
        assert row[5] == str(attack['misclassified'])
        assert row[6] == ('–' if attack['alone'] is None else str(attack['alone']))
    bars = [tag['style'] for tag in soup.select('#attacks .bar')]
    assert bars[0] == '--v:86.1%;--lo:83.8%;--hi:88.1%'
    assert len(bars) == 5, 'clean, three attacks on all images, and all together'


def test_overlaps(soup):
    cells = [[int(plain(td)) for td in tr.select('td')] for tr in soup.select('.heat tbody tr')]
    assert cells == made_up_report()['overlap']['counts']
    weights = [float(td['style'].removeprefix('--w:')) for td in soup.select('.heat tbody td')]
    assert max(weights) == 1 and weights[0] == round(250 / 338, 2)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_the_curve_is_drawn_to_scale(norm):
    "Heights and places of its points, from the drawing alone: the axis has 0 % and 100 % as its outermost lines"
    report = made_up_report(norm=norm)
    svg = ElementTree.fromstring(str(page_of(report).select_one('#curve svg')))
    lines = [line.attrib for line in svg.iter('line')]
    levels = sorted(
        float(line['y1']) for line in lines if line['y1'] == line['y2'] and 'stroke-dasharray' not in line
    )
    top, bottom = levels[0], levels[-1]
    points = [(float(c.get('cx')), float(c.get('cy'))) for c in svg.iter('circle')]
    heights = [(bottom - y) / (bottom - top) for _, y in points]
    assert np.allclose(heights, [p['accuracy'] for p in report['curve']], atol=1e-3)
    start, end = points[0][0], points[-1][0]
    places = [(x - start) / (end - start) * report['curve'][-1]['eps'] for x, _ in points]
    assert np.allclose(places, [p['eps'] for p in report['curve']], atol=2e-3 * report['curve'][-1]['eps'])
    (at_eps,) = [float(line['x1']) for line in lines if line['x1'] == line['x2']]
    assert at_eps == points[4][0]
    (chance,) = [float(line['y1']) for line in lines if line.get('stroke-dasharray') == '1 3']
    assert abs((bottom - chance) / (bottom - top) - 0.1) < 1e-3


def test_checks_that_failed_come_first():
    page = page_of(made_up_report(1))
    shown = [(li['class'][0], plain(li.strong)) for li in page.select('.checks > li')]
    assert shown[0] == ('failed', 'Zero gradients') and {kind for kind, _ in shown[1:]} == {'passed'}
    assert len(shown) == len(made_up_report(1)['checks'])
    for check in made_up_report(1)['checks']:
        assert check['saw'] in plain(page.select_one('#checks'))
    assert '31.0 %, limit 9.5 %; n = 250' in plain(page.select_one('#checks .failed'))
    assert not page_of(made_up_report(0)).select('.failed')


def test_probabilistic_robustness_is_never_called_a_certificate():
    texts = [plain(page_of(made_up_report(*kind))) for kind in KINDS] + [json.dumps(REPORT_SCHEMA)]
    found = [text[max(0, m.start() - 9) : m.end()] for text in texts for m in re.finditer('certif', text)]
    assert found and set(found) == {'is not a certif'}
    drawn = made_up_report()
    section = plain(page_of(drawn).select_one('#distribution'))
    assert (
        f'{100 * drawn["distribution"]["mean"]["value"]:.1f} %' in section
        and 'these distributions only' in section
    )
    assert 'not defined for l2' in plain(page_of(made_up_report(0, 'l2', False)).select_one('#distribution'))


def test_the_distribution_image_by_image(soup):
    images = made_up_report()['distribution']['images']
    rows = soup.select('#distribution tbody tr')
    assert [plain(tr.select('td')[2]) for tr in rows] == [
        f'{d["misclassified"]} of {d["draws"]}' for d in images
    ]
    svg = ElementTree.fromstring(str(soup.select_one('#distribution svg')))
    heights = [float(c.get('cy')) for c in svg.iter('circle')]
    assert len(heights) == len(images) and heights == sorted(heights, reverse=True)


def test_how_it_was_made(soup):
    made, report = plain(soup.select_one('#made')), made_up_report()
    for said in (
        report['command'],
        '9f' * 32,
        'c4' * 32,
        '0123456789ab',
        '75,562',
        'The limit was 10 minutes.',
    ):
        assert said in made, said
    assert '0.49, 0.48, 0.45; 0.25, 0.24, 0.26' in made
    assert soup.select('#made pre')[-1].get_text() == report['cite']
    assert plain(soup.select_one('#left-out li')) == 'AutoAttack : pyautoattack is not installed'


def test_a_call_from_python_and_empty_parts():
    "A report without a command, a plan, names, and with empty lists"
    report = made_up_report() | dict(command=None, plan=None, curve=[], classes=[], left_out=[])
    report['model'], report['data'] = {'class': 'Linear'}, dict(n=1000, shape=[3, 32, 32], n_classes=10)
    report['overlap'] = dict(names=['fgsm'], n=1000, counts=[[250]])
    report['images'] = dict(
        worst=[], closest=[dict(made_up_report()['images']['closest'][0], index=None, name=None)]
    )
    page = page_of(report, {})
    text = plain(page)
    assert (
        'How robust is Linear?' in text and 'a call from Python' in text and 'Nothing was left out.' in text
    )
    assert (
        'The curve was not run.' in text and 'no numbers class by class' in text and not page.select('.heat')
    )
    assert 'there is no such image' in text and 'No picture of this image was kept.' in text
    assert 'class 2, still recognised' in text
    no_images = report | dict(images=dict(worst=[], closest=[]))
    assert (
        text.count('there is no such image') == 1
        and plain(page_of(no_images)).count('there is no such image') == 2
    )


def test_a_thousand_classes():
    report = made_up_report(names=[f'n{k:08}' for k in range(1000)], n_images=12)
    text = judgement_page(report, made_up_pictures(report))
    page = BeautifulSoup(text, 'html.parser')
    folded = page.select('#classes details tbody tr')
    assert len(page.select('#classes tbody tr')) == 1000 and len(folded) == 980
    shown = [float(plain(tr.select('td')[1])[:-2]) for tr in page.select('#classes tbody tr')]
    assert shown[:10] == [12.0] * 10 and shown[10:20] == [61.0] * 10
    assert len(text.encode()) < 1_500_000


def test_a_predicted_class_without_images_has_its_name():
    report = made_up_report()
    names = [entry['name'] for entry in report['classes']]
    first = report['images']['worst'][0]
    report['classes'] = [entry for entry in report['classes'] if entry['label'] != first['pred']]
    assert f'taken for class {first["pred"]}' in plain(page_of(report).select_one('article'))
    report['data']['class_names'] = names
    page = page_of(report)
    assert f'taken for {names[first["pred"]]}' in plain(page.select_one('article'))
    assert 'class_names' not in plain(page)


# Nothing but the page itself


def references(text):
    "What a page would load or lead to, other than its own data and its own sections"
    page = BeautifulSoup(text, 'html.parser')
    names = 'src', 'href', 'srcset', 'poster', 'data', 'action', 'formaction', 'background', 'xlink:href'
    found = [tag[name] for name in names for tag in page.find_all(attrs={name: True})]
    found += re.findall(r"""(?:url\(|@import|image-set\()\s*["']?([^"')\s;]*)""", text)
    ids = {f'#{tag["id"]}' for tag in page.find_all(id=True)}
    return [address for address in found if address not in ids and not address.startswith('data:image/')]


@pytest.mark.parametrize('status, norm, drawn', KINDS)
def test_one_file_that_loads_nothing(status, norm, drawn):
    report = made_up_report(status, norm, drawn)
    text = judgement_page(report, made_up_pictures(report))
    assert references(text) == []
    page = BeautifulSoup(text, 'html.parser')
    assert not page.select('script, link:not([rel=icon]), iframe, object, embed, base, form')
    policy = page.select_one('meta[http-equiv="Content-Security-Policy"]')['content']
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_references_are_found():
    bad = (
        '<img src="a.png"><a href="#x">x</a><p style="background:url(b.png)"><style>@import "c.css";</style>'
    )
    assert references(bad) == ['a.png', '#x', 'b.png', 'c.css']


def with_code(value, path=()):
    "The report with HTML in every text that is the user's or may come from the user"
    if isinstance(value, dict):
        fixed = {'schema', 'status', 'word', 'norm', 'check', 'key', 'kind'}
        keep = path in {('checks', 'name'), ('attacks', 'name')}
        return {k: v if k in fixed or keep else with_code(v, (*path, k)) for k, v in value.items()}
    if isinstance(value, list):
        return [with_code(item, path) for item in value]
    fixed_names = {('checks', 'name')}
    return (
        f'{value}<script>hit()</script>"\'>&' if isinstance(value, str) and path not in fixed_names else value
    )


def test_text_of_the_user_is_never_code():
    "HTML in every text of the report, and as a name of files, versions and classes"
    report = with_code(made_up_report(1))
    hostile = '"><script>hit()</script>'
    report['model']['files'] = report['data']['files'] = report['versions'] = {hostile: hostile}
    report['model'][hostile] = report['data'][hostile] = {hostile: [hostile]}
    report['plan'] = dict(minutes=3, steps=[dict(attack=hostile, n=hostile, at_most_seconds=None)])
    report['attacks'][0]['settings'] = {hostile: hostile}
    assert report['classes'][0]['name'].startswith('airplane<script>')
    assert report['images']['worst'][0]['name'].endswith('&') and '<script>' in report['model']['spec']
    text = judgement_page(report, made_up_pictures(report))
    page = BeautifulSoup(text, 'html.parser')
    assert not page.find_all('script') and '<script' not in text
    assert text.count('&lt;script&gt;') > 150
    attributes = {name for tag in page.find_all(True) for name in tag.attrs}
    assert not [
        name for name in attributes if name.startswith('on') or not re.fullmatch('[a-zA-Z12-]+', name)
    ]
    assert 'airplane<script>hit()</script>"\'>&' in page.select_one('#classes tbody th').get_text()
    assert references(text) == []
    assert BeautifulSoup(hostile, 'html.parser').find_all('script'), 'the text would be code'


# Pictures


def shown_pictures(page, group):
    "The three pictures of the first image of a group, as (H, W) or (H, W, C) levels"
    article = page.select(f'input[name={group}]')[0].find_parent('fieldset').article
    addresses = [img['src'].partition('base64,')[2] for img in article.select('img')]
    return [np.asarray(Image.open(BytesIO(base64.b64decode(address)))) for address in addresses]


@pytest.mark.parametrize('shape', [(1, 28, 28), (3, 32, 32), (3, 20, 48)])
@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_pictures_are_the_pixels(shape, norm):
    report = made_up_report(norm=norm, shape=shape)
    pictures = made_up_pictures(report)
    clean, adversarial = (pictures['0'][name].double().numpy() for name in ('clean', 'adversarial'))
    largest = report['threat']['eps'] if norm == 'linf' else np.abs(adversarial - clean).max()
    magnified = (adversarial - clean + largest) / (2 * largest)
    page = page_of(report, pictures)
    for levels, expected in zip(shown_pictures(page, 'worst'), (clean, adversarial, magnified), strict=True):
        expected = expected[0] if shape[0] == 1 else expected.transpose(1, 2, 0)
        assert levels.shape == expected.shape and np.abs(levels / 255 - expected).max() <= 0.51 / 255
    assert levels.min() == 0 and levels.max() == 255
    first = page.select_one('article img')
    times = 224 // max(shape)
    assert (int(first['width']), int(first['height'])) == (times * shape[2], times * shape[1])
    assert first['class'] == ['pixels']


def test_every_picture_has_a_text(soup):
    pictures = [tag['alt'] for tag in soup.select('img')] + [svg['aria-label'] for svg in soup.select('svg')]
    assert (
        len(pictures) == 3 * 24 + 2 and len(set(pictures)) == len(pictures) and min(map(len, pictures)) > 20
    )
    assert pictures[1] == 'Image 0, adversarial: classified as cat'


@pytest.mark.parametrize('channels', [2, 4, 13])
def test_other_channels_cannot_be_shown(channels):
    page = page_of(made_up_report(shape=(channels, 8, 8)))
    assert not page.select('img')
    assert f'An image of {channels} channels cannot be shown' in plain(page.select_one('article'))
    assert 'airplane/0000.png' in plain(page.select_one('article'))


@pytest.mark.parametrize(
    'shape, noise',
    [((3, 32, 32), False), ((3, 96, 96), True), ((3, 224, 224), True), ((1, 500, 400), False)],
)
def test_the_page_stays_below_three_megabytes(shape, noise):
    report = made_up_report(shape=shape)
    text = judgement_page(report, made_up_pictures(report, noise))
    assert text.count('<img') == 72 and len(text.encode()) < 3_000_000
    sizes = [(int(w), int(h)) for w, h in re.findall(r'<img .*?width="(\d+)" height="(\d+)"', text)]
    assert max(map(max, sizes)) <= 224
    assert ('are compressed (JPEG)' in text) == ('data:image/jpeg' in text) == (noise and shape[1] >= 96)
    assert ('Pictures are made smaller' in text) == (max(shape) > 224)
    (ratio,) = {w / h for w, h in sizes}
    assert abs(ratio - shape[2] / shape[1]) < 0.01


@pytest.mark.parametrize(
    'pair, message',
    [
        (dict(clean=torch.zeros(3, 8, 8)), r"pictures\['0'\]=\['clean'\]: expected clean and adversarial"),
        (dict(clean=torch.zeros(3, 8, 8), adversarial=torch.zeros(3, 8, 9)), 'two images of the same shape'),
        (dict(clean=torch.zeros(8, 8), adversarial=torch.zeros(8, 8)), r'the same shape \(C, H, W\)'),
    ],
)
def test_pictures_that_do_not_fit(pair, message):
    with pytest.raises(ParameterError, match=message) as refusal:
        judgement_page(made_up_report(), {'0': pair})
    assert '\n' not in str(refusal.value)


# The schema


def places(value, schema, path=()):
    "(path, schema) of every table of a report that is in the schema"
    schema = schema | (schema.get('then' if 'left_out' in value else 'else', {}) if 'if' in schema else {})
    if isinstance(value, dict) and 'properties' in schema:
        yield path, schema
        for name, inner in schema['properties'].items():
            if isinstance(value.get(name), dict | list):
                yield from places(value[name], inner, (*path, name))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield from places(value[0], schema['items'], (*path, 0))


def at(report, path):
    for part in path:
        report = report[part]
    return report


def named(path):
    return 'report' + ''.join(f'[{p}]' if isinstance(p, int) else f'.{p}' for p in path)


def refusal_of(report):
    with pytest.raises(ParameterError) as refusal:
        check_report(report)
    message = str(refusal.value)
    assert '\n' not in message and message.startswith('report') and len(message) < 1500
    return message


def test_the_schema_is_one_and_says_what_each_field_is():
    Draft202012Validator.check_schema(REPORT_SCHEMA)
    json.dumps(REPORT_SCHEMA, allow_nan=False)
    fields = report_fields()
    assert len(fields) > 120 and all(len(meaning) > 3 for _, _, meaning in fields)
    names = {place for place, _, _ in fields}
    for path, schema in places(made_up_report(1), REPORT_SCHEMA):
        prefix = re.sub(r'\[0\]', '[]', named(path)).removeprefix('report').lstrip('.')
        for name in schema['properties']:
            assert (f'{prefix}.{name}' if prefix else name) in names
    notebook = (ROOT / 'nbs/library/judging/page.ipynb').read_text(encoding='utf-8')
    assert all(place.rpartition('.')[2] in notebook for place in names)


@pytest.mark.parametrize('status, norm, drawn', KINDS)
def test_a_report_fits(status, norm, drawn):
    assert check_report(made_up_report(status, norm, drawn)) is None


def without(report, path, name):
    changed = copy.deepcopy(report)
    del at(changed, path)[name]
    return changed


def test_a_missing_field_is_named():
    "Each required field of each table in turn"
    n = 0
    for report in made_up_report(1), made_up_report(0, 'l2', False):
        for path, schema in places(report, REPORT_SCHEMA):
            for name in schema.get('required', []):
                if path == ('distribution',) and name == 'left_out':
                    continue  # without it, the fields of a distribution are asked for
                message = refusal_of(without(report, path, name))
                assert message.startswith(f'{named((*path, name))} is missing: expected')
                n += 1
    assert n > 150


def test_an_unknown_field_is_named():
    "In each table that is closed; facts about network and images, and the plan, are open"
    closed, opened = 0, []
    for path, schema in places(made_up_report(1), REPORT_SCHEMA):
        report = made_up_report(1)
        at(report, path)['extra'] = 1
        if schema.get('additionalProperties', True):
            opened.append(path)
            check_report(report)
        else:
            closed += 1
            message = refusal_of(report)
            assert message.startswith(f'{named(path)}.extra=1: there is no such field; remove it. Expected ')
    assert closed == 20 and opened == [('model',), ('data',)]
    report = made_up_report()
    report['threat']['epss'] = 0.1
    assert "report.threat.epss=0.1: there is no such field, did you mean 'eps'?" in refusal_of(report)


WRONG = {
    'accuracy above 1': (('clean', 'accuracy'), 86.1, 'a number at most 1'),
    'negative count': (('attacks', 0, 'met'), -1, 'a number at least 0'),
    'text for a number': (('threat', 'eps'), '8/255', 'a number'),
    'ε of 0': (('threat', 'eps'), 0, 'a number above 0'),
    'another norm': (('threat', 'norm'), 'l1', 'linf or l2'),
    'another version': (('schema',), 'adt_repro.judgement/9', 'adt_repro.judgement/1'),
    'no line': (('answer', 'line'), '', 'text that is not empty'),
    'a list for a table': (('images',), [], 'a table of fields'),
    'text for a list': (('data', 'said'), 'text', 'a list'),
    'null where it may not be': (('robust', 'lo'), None, 'a number'),
    'a share where null is allowed': (('attacks', 0, 'lo'), 7, 'a number at most 1'),
    'a number for yes or no': (('checks', 2, 'passed'), 1, 'true or false'),
    'a number for text': (('versions', 'torch'), 2.14, 'text'),
    'NaN': (('curve', 1, 'accuracy'), float('nan'), 'a finite number'),
    'infinity': (('plan', 'minutes'), float('inf'), 'a finite number'),
    'status against the checks': (('answer', 'status'), 0, '1: 1 checks failed'),
    'word against the status': (('answer', 'word'), 'sound', 'overstated'),
    'a reason is missing': (('answer', 'reasons'), [], 'the checks that failed: zero'),
    'a check against the reasons': (('checks', 2, 'passed'), True, 'the checks that failed: none did'),
    'overlaps not square': (('overlap', 'counts', 1), [240, 333], '3 rows of 3 counts'),
    'a draw of none': (('distribution', 'images', 3, 'draws'), 0, 'a number at least 1'),
}


@pytest.mark.parametrize('name', WRONG)
def test_a_wrong_value_is_named(name):
    path, value, expected = WRONG[name]
    report = made_up_report(1)
    at(report, path[:-1])[path[-1]] = value
    message = refusal_of(report)
    assert f'expected {expected}' in message
    if 'square' not in name and 'against the reasons' not in name:
        assert message.startswith(f'{named(path)}=')


def test_the_page_refuses_what_the_schema_refuses():
    report = made_up_report(1)
    report['answer'] |= dict(status=0, word='sound', reasons=[])
    with pytest.raises(ParameterError, match='expected the checks that failed: zero'):
        judgement_page(report, {})
    with pytest.raises(ParameterError, match='report=None: expected a table of fields'):
        judgement_page(None, {})
