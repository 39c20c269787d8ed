"The documentation site: complete, self-contained, and at ease in a browser"

import ast
import json
import os
import posixpath
import re
import runpy
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from itertools import pairwise
from shutil import which
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup
from helpers import ROOT
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from adt_repro.paper import report as reports

INDEX = runpy.run_path(ROOT / 'adt_repro' / '_modidx.py')['d']['syms']
MODULES = [m for m, names in INDEX.items() if names]


@pytest.fixture(scope='session')
def site():
    "The folder of the site, just built"
    run = subprocess.run([sys.executable, ROOT / '.ci' / 'docs.py'], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return ROOT / '_docs'


def read_pages(site):
    "Each page's parsed HTML by its path in the site, without the reports that are sent as they are"
    found = {p.relative_to(site).as_posix(): p for p in site.rglob('*.html')}
    return {
        name: BeautifulSoup(p.read_bytes(), 'html.parser')
        for name, p in found.items()
        if not name.startswith('reports/')
    }


@pytest.fixture(scope='session')
def pages(site):
    return read_pages(site)


# Files and links


def references(pages, site):
    "(file, address, is it loaded with the page?) for everything that the site refers to"
    for page, soup in pages.items():
        for tag in soup.select('[href], [src], [srcset], [poster], [data]'):
            for attr in ('href', 'src', 'poster', 'data') if tag.name != 'a' else ('href',):
                if tag.get(attr):
                    yield page, tag[attr], tag.name != 'a'
            for part in tag.get('srcset', '').split(', '):
                if part:
                    yield page, part.split()[0], True
    styles = [(page, str(soup)) for page, soup in pages.items()]
    styles += [(p.relative_to(site).as_posix(), p.read_text(encoding='utf-8')) for p in site.rglob('*.css')]
    for file, text in styles:
        for url in re.findall(r"""(?:url\(\s*|@import\s+(?!url))["']?([^"')\s;]+)""", text):
            yield file, url, True
    for entry in json.loads((site / 'search.json').read_text(encoding='utf-8')):
        yield 'search.json', entry['href'], False


def broken(pages, site):
    "Local references without a file or an anchor, and whatever another host would have to deliver"
    anchors = {page: {tag['id'] for tag in soup.select('[id]')} for page, soup in pages.items()}
    for file, url, loaded in references(pages, site):
        parts = urlsplit(url)
        if parts.netloc and loaded:
            yield f'{file} loads {url}'
        if parts.scheme or parts.netloc:
            continue
        target = (
            posixpath.normpath(posixpath.join(posixpath.dirname(file), unquote(parts.path)))
            if parts.path
            else file
        )
        if (site / target).is_dir():
            target = posixpath.normpath(target + '/index.html')
        if not (site / target).is_file():
            yield f'{file}: {url} does not exist'
        elif parts.fragment and target in pages and unquote(parts.fragment) not in anchors[target]:
            yield f'{file}: {url} has no anchor'


def test_every_notebook_has_a_page(pages):
    notebooks = [
        p.relative_to(ROOT / 'nbs')
        for p in (ROOT / 'nbs').rglob('*.ipynb')
        if not any(d[0] in '._' for d in p.parts)
    ]
    assert set(pages) == {nb.with_suffix('.html').as_posix() for nb in notebooks}
    sidebar = [a['href'] for a in pages['index.html'].select('#quarto-sidebar li a[href$=".html"]')]
    assert sorted(sidebar) == sorted(pages), 'nbs/sidebar.yml names each page once'
    library = [a['href'] for a in pages['index.html'].select('.depth1 .depth2 a[href$=".html"]')]
    assert library == [page for page in sidebar if page.startswith('library/')]


def test_references_resolve(pages, site):
    assert not list(broken(pages, site))


def test_math_is_rendered(pages):
    for page, soup in pages.items():
        for span in soup.select('.math'):
            assert span.find('math') and '\\' not in span.text, f'{page}: {span}'
        prose = ' '.join(
            s for s in soup.main.find_all(string=True) if not s.find_parent(['code', 'script', 'style'])
        )
        assert not re.search(r'\$\$|\\[(\[]', prose), f'{page}: TeX that was not recognised'
        assert '\\' not in ' '.join(t.text for t in soup.select('title, nav')), (
            f'{page}: TeX in a heading, which menus show raw'
        )


# The reference


def definitions(module):
    "(name, node, parameters) of what a module's index lists, private names and undocumented methods left out"
    src = (ROOT / (module.replace('.', '/') + '.py')).read_text(encoding='utf-8')
    nodes = {n.name: n for n in ast.parse(src).body if hasattr(n, 'name')}
    classes = [n for n in nodes.values() if isinstance(n, ast.ClassDef)]
    nodes |= {f'{c.name}.{n.name}': n for c in classes for n in c.body if hasattr(n, 'name')}
    for full in INDEX[module]:
        name = full.removeprefix(module + '.')
        node = nodes[name]
        if any(part[0] == '_' for part in name.split('.')) or '.' in name and not ast.get_docstring(node):
            continue
        call = nodes.get(name + '.__init__', node)
        if isinstance(call, ast.ClassDef):
            params = [n.target.id for n in node.body if isinstance(n, ast.AnnAssign)]
        else:
            params = [
                a.arg for a in ast.walk(call.args) if isinstance(a, ast.arg) and a.arg not in ('self', 'cls')
            ]
        yield name, node, params


@pytest.mark.parametrize('module', MODULES)
def test_reference_is_complete(module, pages):
    missing, source = (
        [],
        ''.join((ROOT / (module.replace('.', '/') + '.py')).read_text(encoding='utf-8').split()),
    )
    for name, node, params in definitions(module):
        page, _, anchor = INDEX[module][f'{module}.{name}'][0].partition('#')
        heading = pages[page].find(id=anchor)
        if not heading:
            missing.append(f'{name} is not on {page}')
            continue
        entry = [heading]
        for tag in heading.find_next_siblings():
            if tag.name in ('h2', 'h3', 'h4'):
                break
            entry.append(tag)
        code = next((tag.pre.text for tag in entry if tag.pre), '')
        if not re.search(rf'(def|class) {node.name}\b', code):
            missing.append(f'{name}: no signature')
        body = next(
            (tag.select_one('details pre').text for tag in entry if tag.select_one('details pre')), ''
        )
        if f' {node.name}' not in body or ''.join(body.split()) not in source:
            missing.append(f'{name}: no source')
        tables = [
            t for tag in entry for t in tag.select('table') if t.select('th:last-child')[0].text == 'Details'
        ]
        rows = [[td.text.strip() for td in tr.select('td')] for t in tables for tr in t.select('tbody tr')]
        told = {row[0].lstrip('*') for row in rows if row[-1]}
        returns = (
            ['Returns'] if getattr(node, 'returns', None) and ast.unparse(node.returns) != 'None' else []
        )
        missing += [f'{name}: {p} is not documented' for p in params + returns if p not in told]
    assert not missing


# What is folded, and what others are told of a page


def as_written(code):
    "Code without directives and white space"
    return ''.join(''.join(line for line in code.splitlines() if not line.startswith('#|')).split())


def shown_cells(notebook):
    "The code cells of a notebook that its page shows"
    for cell in json.loads(notebook.read_text(encoding='utf-8'))['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'code' and not re.search(
            r'^#\| *(hide|export|default_exp|echo: false)\b', source, re.M
        ):
            yield cell, source


def test_parameters_and_code_of_figures_are_folded(pages):
    kinds = dict.fromkeys(('parameters', 'figure', 'results'), 0)
    for page, soup in pages.items():
        folded = ''.join(as_written(d.pre.text) for d in soup.select('details.code-fold:not([open])'))
        for cell, source in shown_cells(ROOT / 'nbs' / page.replace('.html', '.ipynb')):
            is_kind = dict(
                parameters='parameters' in cell['metadata'].get('tags', []),
                figure=source.startswith('#| fig-alt:'),
                results=page.startswith('results/'),
            )
            for kind in (kind for kind, is_it in is_kind.items() if is_it):
                kinds[kind] += 1
                assert as_written(source) in folded, f'{page}: {kind} {source[:60]}'
    assert min(kinds.values()) > 4, kinds


def test_an_experiment_begins_with_what_it_shows(pages):
    "Nothing but a command stands open above an experiment's first output"
    begun = 0
    for page, soup in pages.items():
        if '/' in page or page == 'index.html':
            continue
        for tag in soup.main.select('pre.python, .cell-output'):
            if 'cell-output' in tag['class']:
                begun += 1
                break
            fold = tag.find_parent('details')
            assert fold and not fold.has_attr('open'), f'{page}: {tag.text[:60]}'
    assert begun > 8


def test_guides_show_their_imports(pages):
    opened = [
        page
        for page, soup in pages.items()
        if any('import ' in p.text and not p.find_parent('details') for p in soup.main.select('pre.python'))
    ]
    assert {'guides/public_api.html', 'guides/own_model.html', 'guides/own_attack.html'} <= set(opened)


def meta(soup):
    return {
        tag.get('name') or tag['property']: tag['content']
        for tag in soup.select('head meta[name], head meta[property]')
    }


def test_every_page_says_what_it_is(pages, site):
    "A plain description, and the same to whoever shows a link (Open Graph); no TeX, no marks of Markdown or HTML"
    sent = [BeautifulSoup(p.read_bytes(), 'html.parser') for p in (site / 'reports').glob('*.html')]
    assert sent
    told = []
    for soup in [*pages.values(), *sent]:
        facts = meta(soup)
        assert facts['og:title'] in soup.h1.get_text(), facts
        assert facts['og:description'] == facts['description'] and facts['og:type'] and facts['og:site_name']
        assert 25 <= len(facts['description']) <= 200, facts
        for text in facts['og:title'], facts['description']:
            assert not re.search(r'[\\$`*<>]|\]\(|&\w+;|__', text), text
        told.append(facts['description'])
    assert len(set(told)) > 0.9 * len(told)


def test_a_description_is_plain():
    with_description = runpy.run_path(ROOT / '.ci' / 'docs.py')['with_description']
    page = with_description(
        '<head><meta name="description" content="$p(\\delta)$ of `f`"><title>t</title></head><body>'
        '<h1>A <code>f</code></h1><div class="description"><span class="math"><mi>p</mi></span> &amp; <b>f</b>\n'
        + 'much more ' * 40
        + '</div></body>'
    )
    facts = meta(BeautifulSoup(page, 'html.parser'))
    assert facts['og:title'] == 'A f' and facts['description'].startswith('p & f much more')
    assert page.count('name="description"') == 1
    assert len(facts['description']) <= 200 and facts['description'].endswith('more…')


def of_body(report):
    "What a report refers to and the ids it has, without the icon in its head"
    body = BeautifulSoup(report.read_bytes(), 'html.parser').body
    assert not body.select('[srcset], [data], [src]:not([src^="data:"])')
    return [a['href'] for a in body.select('a[href]')], [tag['id'] for tag in body.select('[id]')]


def dead(links, ids, folder):
    "The links that lead neither to an entry of their page nor to a file"
    return [link for link in links if not (link[1:] in ids if link[0] == '#' else (folder / link).is_file())]


def test_reports_lead_back(site):
    "On the site a report has a way back, and names files that it has no link to; the committed one has the links"
    sent, files = [*(site / 'reports').glob('*.html')], 0
    assert sent
    for report in sent:
        links, ids = of_body(report)
        outside = [link for link in links if link[0] != '#']
        assert '../index.html' in outside and len(outside) > 1 and all(link[:3] == '../' for link in outside)
        assert len(set(ids)) == len(ids) and not dead(links, ids, site / 'reports')
        committed = ROOT / 'outputs' / report.stem / 'report.html'
        links, ids = of_body(committed)
        assert len(set(ids)) == len(ids) and not dead(links, ids, committed.parent)
        titles = [
            tag['title'] for tag in BeautifulSoup(report.read_bytes(), 'html.parser').select('span[title]')
        ]
        assert titles == [f'outputs/{report.stem}/{link}' for link in links if link[0] != '#']
        files += len(titles)
    assert files > 100


def test_dead_links_of_a_report_are_found(tmp_path):
    (tmp_path / 'a.csv').touch()
    (tmp_path / 'report.html').write_text(
        '<body><p id="p"><a href="#p"><a href="#q"><a href="a.csv"><a href="b.csv">'
    )
    assert dead(*of_body(tmp_path / 'report.html'), tmp_path) == ['#q', 'b.csv']


@pytest.mark.parametrize('width', [1280, 390])
def test_a_report_shows_what_stands_behind_a_cell(width, browser, prefers):
    "A link of a cell leads to an entry that is seen, without a script, in the dark and on a phone"
    resize(browser, width)
    prefers('dark')
    for report in ROOT.glob('outputs/*/report.html'):
        if 'href="#row-' not in report.read_text(encoding='utf-8'):
            continue
        with served(report.parent) as base:
            assert not list(complaints(browser, base, 'report.html')), report
            assert not list(faint(browser, 'body table.adt *')), report
            for css in 'table.cells a', 'a[href^="#claim-"]':
                link = browser.find_element(By.CSS_SELECTOR, css)
                address = link.get_dom_attribute('href')
                browser.get(base + 'report.html' + address)
                top = browser.execute_script(
                    'return document.getElementById(arguments[0]).getBoundingClientRect().top', address[1:]
                )
                assert browser.find_element(By.ID, address[1:]).is_displayed() and -1 < top < 844


# The browser


class Quiet(SimpleHTTPRequestHandler):
    protocol_version = (
        'HTTP/1.1'  # a connection for each file would take thousands of ports from the other tests
    )

    def log_message(self, *args):
        pass


@contextmanager
def served(folder):
    "The address of a folder, as long as the context lasts"
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f'http://127.0.0.1:{server.server_port}/'
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope='session')
def url(site):
    with served(site) as url:
        yield url


@pytest.fixture(scope='session')
def browser(tmp_path_factory):
    chromium, driver = which('chromium') or which('google-chrome'), which('chromedriver')
    if not (chromium and driver):
        give_up = pytest.fail if os.environ.get('CI') else pytest.skip
        give_up('Chromium and its driver are missing: apt-get install chromium chromium-driver')
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    for flag in (
        'headless=new',
        'no-sandbox',
        'disable-gpu',
        'disable-quic',
        'no-first-run',
        'disable-background-networking',
        'disable-component-update',
        'disable-sync',
        f'user-data-dir={tmp_path_factory.mktemp("chromium")}',
    ):
        options.add_argument('--' + flag)
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


def resize(browser, width):
    screen = dict(width=width, height=844, deviceScaleFactor=1, mobile=width < 500)
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', screen)


NO_IMAGE = 'return [...document.images].filter(i => !i.naturalWidth).map(i => i.src.slice(0, 80))'
LOADED = 'return performance.getEntriesByType("resource").map(e => e.name)'
TOO_WIDE = """// beyond the right edge of the window, with nothing around it that scrolls
const scrolls = e => e && e !== document.body
    && (/auto|scroll/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
return [...document.querySelectorAll('body, body *')]
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !scrolls(e))
    .map(e => `${e.tagName} ${e.textContent.trim().slice(0, 60)}`);"""


def complaints(browser, base, page):
    "What a reader of a page would see go wrong"
    browser.get_log('browser')
    browser.get(base + page)
    for entry in browser.get_log('browser'):
        if entry['level'] == 'SEVERE':
            yield f'{page}: {entry["message"]}'
    for src in browser.execute_script(NO_IMAGE):
        yield f'{page}: no image {src}'
    for what in browser.execute_script(TOO_WIDE):
        yield f'{page}: too wide {what}'
    for url in browser.execute_script(LOADED):
        if not url.startswith((base, 'data:')):
            yield f'{page}: loads {url}'


@pytest.mark.parametrize('width', [1280, 390])
def test_pages_in_a_browser(width, browser, pages, url):
    resize(browser, width)
    assert not [c for page in pages for c in complaints(browser, url, page)]


CUT_OFF = """// code and tables that are not seen to their end, folded or not; data frames may scroll
document.querySelectorAll('details').forEach(e => { e.open = true; });
return [...document.querySelectorAll('main pre, .sd-table, table.adt')]
    .filter(e => e.scrollWidth > e.clientWidth + 1 || getComputedStyle(e).overflowX === 'hidden')
    .map(e => `${e.tagName} ${e.textContent.trim().slice(0, 60)}`);"""


def cut_off(browser, base, page):
    browser.get(base + page)
    yield from (f'{page}: {what}' for what in browser.execute_script(CUT_OFF))


def test_code_and_tables_are_not_cut_off(browser, pages, url):
    resize(browser, 1440)
    assert sum(len(soup.select('table.adt.cells')) for soup in pages.values()) > 0
    assert not [what for page in pages for what in cut_off(browser, url, page)]


def test_what_is_cut_off_is_found(browser, tmp_path):
    (tmp_path / 'a.html').write_text(
        '<main><pre style="overflow-x: auto">' + 'x' * 400 + '</pre><pre>short</pre></main>'
    )
    resize(browser, 1440)
    with served(tmp_path) as url:
        assert list(cut_off(browser, url, 'a.html')) == ['a.html: PRE ' + 'x' * 60]


QUERIES = {  # what users type, and a page that the first three results must have
    'install': 'guides/get_started.html',
    'first run': 'guides/get_started.html',
    'load a trained model': 'guides/load_model.html',
    'resume': 'guides/resume.html',
    'continue training after crash': 'guides/resume.html',
    'judge my own model': 'guides/own_model.html',
    'compare two methods': 'guides/compare.html',
    'change lambda': 'guides/parameters.html',
    'landscape': 'landscape.html',
    'export robustbench': 'guides/export.html',
    'latex table': 'guides/records.html',
    'results cifar10': 'results/cpu.html',
    'autoattack': 'library/attacks/autoattack.html',
    'all parameters': 'guides/parameters.html',
    'cluster slurm': 'guides/cluster.html',
    'sign_ascent': 'library/attacks/gradient.html#sign_ascent',
    'landscpe': 'landscape.html',
}
TYPE = """const box = document.querySelector('#quarto-search'), input = box.querySelector('input');
box.querySelector('.smalldocs-search-results').innerHTML = '';
input.value = arguments[0];
input.dispatchEvent(new Event('input'));"""


def results(browser, query):
    "Addresses of what the search shows for a query, the first first"
    browser.execute_script(TYPE, query)
    css = '#quarto-search .search-result, #quarto-search .search-none'
    hits = WebDriverWait(browser, 60).until(lambda b: b.find_elements(By.CSS_SELECTOR, css))
    return [hit.get_dom_attribute('href') or '' for hit in hits]


@pytest.mark.parametrize('query', QUERIES)
def test_search_finds_what_users_type(query, browser, url):
    resize(browser, 1280)
    if browser.current_url != url + 'index.html':
        browser.get(url + 'index.html')
    first = [address.removeprefix('./') for address in results(browser, query)[:3]]
    assert any(address.startswith(QUERIES[query]) for address in first), first


def test_search(browser, pages, url):
    resize(browser, 1280)
    browser.get(url + 'index.html')
    browser.find_element(By.CSS_SELECTOR, 'input[type=search]').send_keys('find_root')
    hits = WebDriverWait(browser, 10).until(lambda b: b.find_elements(By.CSS_SELECTOR, '#quarto-search a'))
    hit = next(h for h in hits if 'find_root' in h.text)
    hit.click()
    WebDriverWait(browser, 10).until(lambda b: b.current_url.startswith(url + 'library/base/files.html'))


# Without a mouse, on a phone, in the dark

NAMED = [
    'index.html',
    'guides/one_image.html',
    'guides/glossary.html',
    'library/attacks/gradient.html',
    'white_box.html',
    'results/mid.html',
]  # one of each kind

OPEN = """// what can be operated and is on the screen or can be scrolled to
const seen = e => e.getClientRects().length && getComputedStyle(e).visibility === 'visible' && e.checkVisibility();
const kinds = 'a[href], button, input, select, textarea, summary, [tabindex="0"]';
window.operable = [...document.querySelectorAll(kinds)].filter(e => seen(e) && !e.disabled);
const look = s => [s.outlineStyle, s.outlineWidth, s.outlineColor, s.boxShadow,
    s.backgroundColor, s.borderColor, s.textDecorationLine].join();
window.before = new Map(operable.map(e => [e, look(getComputedStyle(e))]));
window.reached = new Set();
window.unmarked = new Set();
window.note = () => {
    const e = document.activeElement;
    reached.add(e);
    if (before.has(e) && look(getComputedStyle(e)) === before.get(e)) unmarked.add(e);
};
return operable.length;"""
NAMES = """
const chosen = arguments[0] === 'missed' ? operable.filter(e => !reached.has(e)) : unmarked;
return [...chosen].map(e => `${e.tagName} ${e.getAttribute('aria-label') || e.textContent.trim().slice(0, 40)}`)"""
MOUSE_ONLY = """// looks as if it could be clicked, and no key gets there
const known = 'a[href], button, input, label, summary, select, [tabindex="0"], .code-copy-button';
return [...document.querySelectorAll('body *')]
    .filter(e => getComputedStyle(e).cursor === 'pointer' && e.checkVisibility() && !e.closest(known))
    .map(e => `${e.tagName}.${e.className} ${e.textContent.trim().slice(0, 40)}`);"""


def unreached(browser):
    "What Tab does not get to, what it gets to without a sign of it, and what only a mouse can use"
    n = browser.execute_script(OPEN)
    for _ in range(3 * n + 30):  # boxes that scroll are stations of their own
        ActionChains(browser).send_keys(Keys.TAB).perform()
        browser.execute_script('note()')
        if browser.execute_script('return operable.every(e => reached.has(e))'):
            break
    yield from (f'not reached: {e}' for e in browser.execute_script(NAMES, 'missed'))
    yield from (f'no visible focus: {e}' for e in browser.execute_script(NAMES, 'unmarked'))
    yield from (f'mouse only: {e}' for e in browser.execute_script(MOUSE_ONLY))


@pytest.mark.parametrize('page', NAMED)
def test_keyboard(page, browser, url):
    resize(browser, 1280)
    browser.get(url + page)
    assert not list(unreached(browser))


def focus_and_press(browser, css, key):
    browser.execute_script('arguments[0].focus()', browser.find_element(By.CSS_SELECTOR, css))
    ActionChains(browser).send_keys(key).perform()


def test_a_section_of_the_sidebar_closes_by_a_key(browser, url):
    resize(browser, 1280)
    browser.get(url + 'index.html')
    inside = browser.find_element(By.CSS_SELECTOR, '#quarto-sidebar a[href$="resume.html"]')
    assert inside.is_displayed()
    focus_and_press(browser, 'a.sidebar-item-text[data-bs-toggle]', Keys.ENTER)
    WebDriverWait(browser, 10).until(lambda b: not inside.is_displayed())


def test_keyboard_on_a_phone(browser, url):
    "The menu and the list of pages open by a key, and what is in them can be used"
    resize(browser, 390)
    browser.get(url + 'index.html')
    page_link = browser.find_element(By.CSS_SELECTOR, '#quarto-sidebar a[href$="glossary.html"]')

    def on_screen(element):
        script = """const r = arguments[0].getBoundingClientRect();
            return r.left >= 0 && r.right <= innerWidth && r.width > 0"""
        return browser.execute_script(script, element)

    assert not on_screen(page_link)
    focus_and_press(browser, '.quarto-btn-toggle', Keys.ENTER)
    WebDriverWait(browser, 10).until(lambda b: on_screen(page_link))
    browser.get(url + 'index.html')
    search = browser.find_element(By.CSS_SELECTOR, 'input[type=search]')
    assert not search.is_displayed()
    focus_and_press(browser, '.navbar-toggler', Keys.ENTER)
    WebDriverWait(browser, 10).until(
        lambda b: search.is_displayed() and b.execute_script('return !document.querySelector(".collapsing")')
    )
    search.send_keys('tanh_gaussian')
    hits = WebDriverWait(browser, 10).until(lambda b: b.find_elements(By.CSS_SELECTOR, '#quarto-search a'))
    assert any('tanh_gaussian' in h.text for h in hits)


WIDE_INSIDE = 'return [document.documentElement.scrollWidth, innerWidth]'


@pytest.mark.parametrize('page', NAMED)
def test_a_phone_scrolls_down_only(page, browser, url):
    "Wide tables and code scroll in boxes of their own, and a box that scrolls can be reached by keyboard"
    resize(browser, 390)
    browser.get(url + page)
    width, window = browser.execute_script(WIDE_INSIDE)
    assert width <= window, page
    boxes = browser.execute_script("""
        const scrolls = e => e.scrollWidth > e.clientWidth + 1
            && /auto|scroll/.test(getComputedStyle(e).overflowX) && e.checkVisibility();
        const reachable = e => {
            e.focus();
            return document.activeElement === e || !!e.querySelector('a[href], button');
        };
        return [...document.querySelectorAll('main *')].filter(scrolls)
            .map(e => [e.tagName + '.' + e.className, reachable(e)])""")
    assert boxes and all(can for _, can in boxes), boxes


def luminance(rgb):
    "Relative luminance as WCAG defines it, of '(r, g, b' in 0 to 255"
    parts = [int(v) / 255 for v in re.findall(r'[\d.]+', rgb)[:3]]
    return sum(
        w * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4)
        for w, c in zip((0.2126, 0.7152, 0.0722), parts, strict=True)
    )


CONTRAST = """// each colour of text with the colour that it stands on, once
const canvas = () => {
    const probe = document.body.appendChild(document.createElement('div'));
    probe.style.background = 'Canvas';
    const color = getComputedStyle(probe).backgroundColor;
    probe.remove();
    return color;
};
const flat = (top, below) => {
    const [a, b] = [top, below].map(c => c.match(/[\\d.]+/g).map(Number)), w = a.length > 3 ? a[3] : 1;
    return `rgb(${[0, 1, 2].map(i => Math.round(w*a[i] + (1 - w)*b[i]))})`;
};
const ground = e => {
    if (!e) return canvas();
    const c = getComputedStyle(e).backgroundColor;
    return flat(c, /, 0\\)$/.test(c) || /rgba/.test(c) ? ground(e.parentElement) : c);
};
const pairs = new Map();
for (const e of document.querySelectorAll(arguments[0])) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || !e.checkVisibility()) continue;
    const under = ground(e), over = flat(getComputedStyle(e).color, under);
    const name = `${e.tagName}.${e.className} ${e.textContent.trim().slice(0, 30)}`;
    if (!pairs.has(over + under)) pairs.set(over + under, [over, under, name]);
}
return [...pairs.values()];"""


def faint(browser, css='main *, nav *'):
    "Text that is hard to read: below a contrast of 4.5"
    for over, under, where in browser.execute_script(CONTRAST, css):
        light, dark = sorted(map(luminance, (over, under)), reverse=True)
        if (light + 0.05) / (dark + 0.05) < 4.5:
            yield f'{where}: {over} on {under}, {(light + 0.05) / (dark + 0.05):.1f}'


def ground(browser):
    return luminance(browser.execute_script('return getComputedStyle(document.body).backgroundColor'))


def canvas(browser):
    "Luminance of the window itself, which follows color-scheme where a page has no background of its own"
    shot = Image.open(BytesIO(browser.get_screenshot_as_png())).convert('RGB')
    return luminance(str(shot.getpixel((5, shot.height - 5))))


@pytest.fixture
def prefers(browser):
    def ask(scheme):
        browser.execute_cdp_cmd(
            'Emulation.setEmulatedMedia', dict(features=[dict(name='prefers-color-scheme', value=scheme)])
        )

    yield ask
    browser.execute_script('localStorage.clear()')
    ask('light')


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_light_and_dark(scheme, browser, url, prefers):
    "The system's choice at first, the reader's from then on, and everything readable in both"
    resize(browser, 1280)
    prefers(scheme)
    for page in NAMED:
        browser.get(url + page)
        WebDriverWait(browser, 10).until(lambda b: (ground(b) < 0.1) == (scheme == 'dark'))
        assert not list(faint(browser)), page
    focus_and_press(browser, '.quarto-color-scheme-toggle', Keys.ENTER)
    WebDriverWait(browser, 10).until(lambda b: (ground(b) < 0.1) == (scheme == 'light'))
    browser.get(url + 'index.html')
    WebDriverWait(browser, 10).until(lambda b: (ground(b) < 0.1) == (scheme == 'light'))


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_a_report_in_light_and_dark(scheme, browser, prefers, tmp_path):
    "Text and tinted cells can be read in both, pictures keep their white paper, and the page has an icon"
    cells = '{% for look in looks %}<td style="{{ look }}">word</td>{% endfor %}'
    rest = '<small>small</small><a href="#x">link</a><img alt="a dot" src="data:image/png;base64,{{ dot }}">'
    looks = [f'background:{look.tint};color:#111' for look in reports.VERDICTS.values() if look.tint]
    dot = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='
    content = reports.fill(f'<table class="adt cells"><tr>{cells}</tr></table>{rest}', looks=looks, dot=dot)
    document = reports.page('A report', [('Table 1', content)])
    (tmp_path / 'report.html').write_text(document, encoding='utf-8')
    resize(browser, 1280)
    prefers(scheme)
    with served(tmp_path) as base:
        assert not list(complaints(browser, base, 'report.html'))
        assert (canvas(browser) < 0.1) == (scheme == 'dark')
        assert not list(faint(browser, 'body *'))
        paper = browser.execute_script('return getComputedStyle(document.images[0]).backgroundColor')
        assert luminance(paper) > 0.9
        assert browser.execute_script('return document.querySelector("link[rel=icon]").href').startswith(
            'data:image'
        )


def test_outline_and_pictures(pages):
    "One title, no level of headings left out, and a text for every picture"
    wrong = []
    for page, soup in pages.items():
        levels = [int(h.name[1]) for h in soup.main.select('h1, h2, h3, h4, h5, h6')]
        if levels.count(1) != 1 or levels[0] != 1 or any(b > a + 1 for a, b in pairwise(levels)):
            wrong.append(f'{page}: headings {levels}')
        wrong += [
            f'{page}: a picture without a text' for img in soup.select('img') if len(img.get('alt', '')) < 15
        ]
        wrong += [
            f'{page}: {tag.name} without a name'
            for tag in soup.select('button, input, a[href]')
            if not (tag.get_text(strip=True) or tag.get('aria-label') or tag.get('title') or tag.find('img'))
        ]
    assert not wrong and sum(len(soup.select('img')) for soup in pages.values()) > 30


# The checks themselves


@pytest.fixture
def bad_site(tmp_path):
    (tmp_path / 'search.json').write_text('[]')
    (tmp_path / 'a.html').write_text(
        '<p id="p">good</p><a href="https://example.invalid/">elsewhere</a><a href="#p">here</a>'
    )
    (
        tmp_path / 'b.html'
    ).write_text("""<link rel="icon" href="data:,"><style>@import url("https://example.invalid/i.css");</style>
        <a href="a.html#nowhere">1</a><a href="c.html">2</a><img src="missing.png"><div style="width: 2000px">wide</div>
        <script src="https://example.invalid/s.js"></script><script>undefined_function()</script>""")
    return tmp_path


def test_bad_references_are_found(bad_site):
    assert sorted(b.split(': ', 1)[-1] for b in broken(read_pages(bad_site), bad_site)) == [
        'a.html#nowhere has no anchor',
        'b.html loads https://example.invalid/i.css',
        'b.html loads https://example.invalid/s.js',
        'c.html does not exist',
        'missing.png does not exist',
    ]


def test_a_bad_page_is_found_in_a_browser(browser, bad_site):
    resize(browser, 390)
    with served(bad_site) as url:
        found = '\n'.join(complaints(browser, url, 'b.html'))
    for sign in (
        'undefined_function',
        'missing.png - Failed',
        'no image',
        'too wide DIV',
        'loads https://example.invalid/s.js',
    ):
        assert sign in found, sign


def test_a_page_for_mice_only_is_found(browser, tmp_path):
    (tmp_path / 'a.html').write_text("""<link rel="icon" href="data:,">
        <style>a:focus, button:focus { outline: none }</style>
        <main><a href="#p" id="p">no sign</a>
        <button tabindex="-1">out of the way</button>
        <div style="cursor: pointer">pretends</div>
        <p style="color: #999; background: #fff">faint</p></main>""")
    resize(browser, 1280)
    with served(tmp_path) as url:
        browser.get(url + 'a.html')
        assert sorted(unreached(browser)) == [
            'mouse only: DIV. pretends',
            'no visible focus: A no sign',
            'not reached: BUTTON out of the way',
        ]
        assert [f.split(':')[0] for f in faint(browser)] == ['P. faint']
