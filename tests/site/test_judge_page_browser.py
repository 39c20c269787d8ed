"The page of a judgement in a browser: one request, light and dark, on a phone, by keyboard, and safe to open"

import threading
from contextlib import contextmanager
from functools import partial
from http.server import ThreadingHTTPServer

import pytest
import test_docs as docs
from judge_example import made_up_pictures, made_up_report
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from adt_repro.judging.page import judgement_page

browser, prefers = docs.browser, docs.prefers  # fixtures

LONG = 'a_name_without_any_place_for_a_line_break_' * 8
SIGHTS = {
    'sound': dict(),
    'overstated': dict(status=1, norm='l2', drawn=False, shape=(1, 28, 28)),
    'large': dict(shape=(3, 224, 224), n_images=2),
    'four channels': dict(shape=(4, 8, 8)),
    'many classes': dict(names=tuple(f'class with the name {k}' for k in range(40))),
}


@pytest.fixture(scope='module')
def texts():
    found = {}
    for name, options in SIGHTS.items():
        report = made_up_report(**options)
        found[name] = judgement_page(report, made_up_pictures(report))
    report = made_up_report(1)
    for part in (report['classes'][0], report['images']['worst'][0], report['attacks'][0]):
        part['name' if 'title' not in part else 'title'] = LONG
    report['model'] = {'spec': LONG, 'class': LONG, LONG: LONG}
    report['command'] = report['cite'] = LONG
    found['long names'] = judgement_page(report, made_up_pictures(report))
    return found


@contextmanager
def heard(folder):
    "The address of a folder, and the list of what is asked of it"
    asked = []

    class Listening(docs.Quiet):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Listening, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f'http://127.0.0.1:{server.server_port}/', asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize('width', [1440, 390])
@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('name', [*SIGHTS, 'long names'])
def test_the_page_in_a_browser(name, scheme, width, texts, browser, prefers, tmp_path):
    "No error, no request but its own, nothing too wide, every text readable, in the colours that are asked for"
    (tmp_path / 'report.html').write_text(texts[name], encoding='utf-8')
    docs.resize(browser, width)
    prefers(scheme)
    with heard(tmp_path) as (base, asked):
        assert not list(docs.complaints(browser, base, 'report.html'))
    assert asked == ['/report.html']
    inside, window = browser.execute_script(docs.WIDE_INSIDE)
    assert inside <= window == width
    assert (docs.ground(browser) < 0.1) == (scheme == 'dark')
    browser.execute_script('document.querySelectorAll("details").forEach(e => { e.open = true; })')
    assert not list(docs.faint(browser, 'body *'))
    assert not browser.execute_script(docs.TOO_WIDE)


def test_a_request_would_be_heard(browser, tmp_path):
    (tmp_path / 'a.html').write_text('<link rel="icon" href="data:,"><img src="b.png" alt="">')
    docs.resize(browser, 1440)
    with heard(tmp_path) as (base, asked):
        assert list(docs.complaints(browser, base, 'a.html'))
    assert asked == ['/a.html', '/b.png']


def test_the_answer_is_on_the_first_screen(texts, browser, tmp_path):
    "On a phone too: the number, the word, and what to do about the check that failed"
    (tmp_path / 'report.html').write_text(texts['overstated'], encoding='utf-8')
    with docs.served(tmp_path) as base:
        for width in 1440, 390:
            docs.resize(browser, width)
            browser.get(base + 'report.html')
            for css in '.badge', '.answer .lead', '.main .big', '.reasons li':
                bottom = browser.execute_script(
                    'return document.querySelector(arguments[0]).getBoundingClientRect().bottom', css
                )
                assert 0 < bottom < 844, (width, css)


SHOWN = """return [...document.querySelectorAll('article')].filter(e => e.checkVisibility())
    .map(e => e.querySelector('h4').textContent)"""
OUTLINED = """const label = document.activeElement.nextElementSibling;
return [document.activeElement.id, getComputedStyle(label).outlineStyle, label.textContent]"""


def press(browser, *keys):
    for key in keys:
        ActionChains(browser).send_keys(key).perform()


def test_images_by_keyboard_and_mouse(texts, browser, tmp_path):
    "Tab leads to each row of numbers, arrows turn over, and the number shows the focus; no script has a part in it"
    (tmp_path / 'report.html').write_text(texts['sound'], encoding='utf-8')
    docs.resize(browser, 1440)
    with docs.served(tmp_path) as base:
        browser.get(base + 'report.html')
        first, closest = browser.execute_script(SHOWN)
        assert first == '1 of 12: airplane, taken for cat' and closest == '1 of 12: bird, still recognised'
        for _ in range(60):
            press(browser, Keys.TAB)
            if browser.execute_script('return document.activeElement.name') == 'worst':
                break
        assert browser.execute_script(OUTLINED) == ['worst-1', 'solid', 'Image 1']
        press(browser, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
        assert browser.execute_script(OUTLINED) == ['worst-3', 'solid', 'Image 3']
        assert browser.execute_script(SHOWN) == ['3 of 12: bird, taken for dog', closest]
        press(browser, Keys.TAB, Keys.ARROW_LEFT)
        assert browser.execute_script(SHOWN)[1].startswith('12 of 12')
        browser.find_element('css selector', 'label[for=worst-12]').click()
        assert browser.execute_script(SHOWN)[0].startswith('12 of 12')


@pytest.mark.parametrize('width', [1440, 390])
def test_everything_else_by_keyboard(width, texts, browser, tmp_path):
    "Tab reaches all that can be operated, with a sign of it; of a row of radio buttons it reaches the chosen one"
    (tmp_path / 'report.html').write_text(texts['many classes'], encoding='utf-8')
    docs.resize(browser, width)
    with docs.served(tmp_path) as base:
        browser.get(base + 'report.html')
        browser.execute_script('document.querySelectorAll("input").forEach(e => { e.disabled = true; })')
        assert not list(docs.unreached(browser))
        boxes = browser.execute_script("""
            document.querySelectorAll('details').forEach(e => { e.open = true; });
            return [...document.querySelectorAll('body *')]
                .filter(e => e.scrollWidth > e.clientWidth + 1 && /auto|scroll/.test(getComputedStyle(e).overflowX))
                .map(e => { e.focus(); return document.activeElement === e && !!e.ariaLabel; })""")
        assert all(boxes) and (boxes or width == 1440)


def test_small_pictures_are_enlarged(texts, browser, tmp_path):
    docs.resize(browser, 1440)
    sizes = {}
    with docs.served(tmp_path) as base:
        for name in 'sound', 'overstated', 'large':
            (tmp_path / f'{name}.html').write_text(texts[name], encoding='utf-8')
            browser.get(f'{base}{name}.html')
            sizes[name] = browser.execute_script(
                'const i = document.images[0]; return [i.naturalWidth, i.width, getComputedStyle(i).imageRendering]'
            )
    assert sizes == dict(
        sound=[32, 224, 'pixelated'], overstated=[28, 224, 'pixelated'], large=[224, 224, 'auto']
    )


def test_code_in_names_is_text(browser, tmp_path):
    "Not run; and even if it were in the page, the page's policy would not run it"
    code = '<script>window.hit = 1</script><img src=x onerror="window.hit = 1">'
    report = made_up_report(1)
    report['model'] = {'spec': code, 'class': code, code: code}
    report['classes'][0]['name'] = report['images']['worst'][0]['name'] = report['checks'][0]['title'] = code
    text = judgement_page(report, made_up_pictures(report))
    policy = text[text.index('<meta http-equiv') : text.index('<meta name="viewport"')]
    assert 'Content-Security-Policy' in policy
    pages = dict(escaped=text, raw=text.replace('<main>', f'<main>{code}'))
    pages['lax'] = pages['raw'].replace(policy, '')
    docs.resize(browser, 1440)
    hits = {}
    with docs.served(tmp_path) as base:
        for name, page in pages.items():
            (tmp_path / f'{name}.html').write_text(page, encoding='utf-8')
            browser.get(f'{base}{name}.html')
            hits[name] = browser.execute_script('return window.hit || 0')
            assert (
                browser.execute_script('return document.querySelector("#classes tbody th").textContent')
                == code
            )
    assert hits == {'escaped': 0, 'raw': 0, 'lax': 1}
