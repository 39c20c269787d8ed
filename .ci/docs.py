"Build the site in `_docs`: nbdev processes the notebooks, smalldocs renders them, nothing is left to load from elsewhere"

import ast
import html
import io
import os
import posixpath
import re
import runpy
import shutil
import subprocess
import sys
import textwrap
import tokenize
from pathlib import Path

from fastcore.utils import AttrDict
from math_core import LatexError, LatexToMathML
from nbdev import config, doclinks, process, processors, quarto, serve
from smalldocs.site import build

DEF = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
TICK = '\ue000'  # stands for a backtick in source code, where nbdev would make a link of what it quotes


def members(node):
    return [n for n in node.body if isinstance(n, DEF)] if isinstance(node, ast.ClassDef) else []


def definitions(py):
    "What a module defines, methods too, as {name: (module, node, lines without comments, comments by line number)}"
    src, notes = py.read_text(encoding='utf-8'), {}
    lines = src.splitlines()
    for t in tokenize.generate_tokens(io.StringIO(src).readline):
        row, col = t.start
        if t.type == tokenize.COMMENT:
            notes[row], lines[row - 1] = t.string.strip('# '), lines[row - 1][:col].rstrip()
    tops = [n for n in ast.parse(src).body if isinstance(n, DEF)]
    return {
        name: (py, node, lines, notes)
        for t in tops
        for name, node in [(t.name, t), *((f'{t.name}.{n.name}', n) for n in members(t))]
    }


def first(node):
    return min([node.lineno, *(d.lineno for d in node.decorator_list)])


def head(node, lines):
    "The lines of a definition before its body, and the number of the last of them"
    end = next(
        (i for i in range(node.lineno, node.body[0].lineno) if lines[i - 1].endswith(':')), node.lineno
    )
    return lines[first(node) - 1 : end], end


def parameters(node):
    "(name, node, default) of whatever a function takes, or of a class's annotated fields"
    if isinstance(node, ast.ClassDef):
        return [(n.target.id, n, n.value) for n in node.body if isinstance(n, ast.AnnAssign)]
    a, plain = node.args, node.args.posonlyargs + node.args.args
    pairs = [
        *zip(plain, [None] * (len(plain) - len(a.defaults)) + a.defaults),
        (a.vararg, None),
        *zip(a.kwonlyargs, a.kw_defaults),
        (a.kwarg, None),
    ]
    return [
        ('*' * (p is a.vararg) + '**' * (p is a.kwarg) + p.arg, p, d)
        for p, d in pairs
        if p and p.arg not in ('self', 'cls')
    ]


def described(name, level, py, node, lines, notes):
    "A definition as Markdown: heading, signature, docstring, and a table of the comments in the signature"
    call = next((n for n in members(node) if n.name == '__init__'), node)
    shown, end = head(call, lines)
    if call is not node:
        shown = head(node, lines)[0] + shown
    code = lambda n: f'<code>{html.escape(ast.unparse(n))}</code>' if n else ''
    said = lambda line: re.sub(
        r'(`[^`]*`|\$[^$]+\$)|([<*])', lambda m: m[1] or '\\' + m[2], notes.get(line, '')
    )
    rows = [
        (f'<code>{arg}</code>', code(p.annotation), code(default), said((default or p).end_lineno))
        for arg, p, default in parameters(call)
    ]
    if not isinstance(node, ast.ClassDef) and (node.returns or end in notes):
        rows.append(('**Returns**', code(node.returns), '', said(end)))
    columns = [c for c in zip(('', 'Type', 'Default', 'Details'), ['---'] * 4, *rows) if any(c[2:])]
    table = '\n'.join(
        '| ' + ' | '.join(cell.replace('|', r'\|') for cell in row) + ' |' for row in zip(*columns)
    )
    body = textwrap.dedent(
        ''.join(py.read_text(encoding='utf-8').splitlines(True)[first(node) - 1 : node.end_lineno])
    )
    fenced = lambda code: '```python\n' + code.rstrip().replace('`', TICK) + '\n```'
    return '\n\n'.join(
        [
            '---',
            '#' * level + ' ' + name,
            fenced(textwrap.dedent('\n'.join(shown))),
            ast.get_docstring(node) or '',
            table,
            f'<details><summary>Source, {py.relative_to(cfg.config_path).as_posix()}</summary>',
            fenced(body),
            '</details>',
        ]
    )


class Reference(process.Processor):
    "Fills the `show_doc` cells from the library's source, in place of the processor that imports and runs everything"

    def begin(self):
        own = cfg.lib_path / (processors._default_exp(self.nb) or '').replace('.', '/')
        own = own.with_suffix('.py')
        self.defs = {
            k: v
            for py in sorted(cfg.lib_path.rglob('*.py'), key=own.__eq__)
            for k, v in definitions(py).items()
        }

    def cell(self, cell):
        call = re.search(r'^show_doc\(([\w.]+)(?:, title_level=(\d))?\)', cell.source, re.M)
        if cell.cell_type != 'code' or not call:
            return
        md = described(call[1], int(call[2] or 3), *self.defs[call[1]]).splitlines(True)
        cell.outputs = [
            AttrDict(output_type='display_data', metadata={}, data=AttrDict({'text/markdown': md}))
        ]


def public_names(cell, shown):
    "What needs a `show_doc` cell after `cell`, methods with a docstring too; the last comes first, as nbdev inserts them"
    tops = [
        n for n in cell.parsed_() or [] if isinstance(n, DEF) and n.name[0] != '_' and n.name not in shown
    ]
    methods = lambda t: [
        f'{t.name}.{n.name}, title_level=4' for n in members(t) if n.name[0] != '_' and ast.get_docstring(n)
    ]
    return [name for t in tops for name in [t.name, *methods(t)]][::-1]


def darkened(site):
    "Bootstrap's own dark colours for the dark theme: the light theme's fonts and sizes, and nothing from elsewhere"
    light, dark = (
        next((site / 'site_libs' / 'themes').glob(f'{name}*.css')) for name in ('default', 'darkly')
    )
    dark.write_text(
        light.read_text(encoding='utf-8')
        .replace('[data-bs-theme=light]', ':root')
        .replace('[data-bs-theme=dark]', ':is(:root,[data-bs-theme=dark])'),
        encoding='utf-8',
    )


def self_contained(page, text, ids):
    "A page with MathML for its TeX, nothing from a CDN, relative links to the pages beside it, and sections that keys open"
    tex2mathml = LatexToMathML(fancy_error=False, allow_unreliable_rendering=True).convert_with_global_state

    def math(m):
        try:
            return f'<span class="math {m[1]}">{tex2mathml(html.unescape(m[2]), displaystyle=m[1] == "display")}</span>'
        except LatexError as e:
            sys.exit(f'{page}: {e} In: {m[2]}')

    def link(m):
        target, anchor = m[1] or 'index.html', m[2]
        while anchor and anchor not in ids.get(target, ''):
            anchor = anchor.rpartition('.')[0]
        return f'href="{posixpath.relpath(target, posixpath.dirname(page) or ".")}{"#" + anchor if anchor else ""}"'

    text = re.sub(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', math, text, flags=re.S)
    text = re.sub(r'<(script|link)\b[^>]*\b(src|href)="(https?:)?//[^>]*>(</script>)?', '', text)
    text = re.sub(  # a sentence in the sidebar is no link
        r'<a class="sidebar-item-text sidebar-link" href="">(.*?)</a>',
        r'<span class="sidebar-sentence">\1</span>',
        text,
    )
    text = re.sub(
        r'(<a class="sidebar-item-[^>]*data-bs-target="(#[^"]*)") role="navigation"',
        r'\1 href="\2" role="button"',
        text,
    )  # else no key reaches it
    return re.sub(rf'href="{re.escape(cfg.doc_host + cfg.doc_baseurl)}/?([^"#]*)#?([^"]*)"', link, text)


if __name__ == '__main__':
    os.chdir(Path(__file__).resolve().parents[1])
    cfg = config.get_config()
    processors.exec_show_docs, processors._def_names = Reference, public_names
    doclinks.entry_points = lambda **_: [
        AttrDict(name=cfg.lib_name, load=lambda: runpy.run_path(cfg.lib_path / '_modidx.py')['d'])
    ]
    quarto.refresh_quarto_yml()
    serve.proc_nbs(force=True, n_workers=0)  # in this process, where the three changes above hold
    site = Path('_proc') / cfg.doc_path.name
    sys.stderr.writelines(
        w + '\n'
        for w in build('_proc').warnings
        if not re.search('output-file|html-math-method|broken link reports/', w)
    )  # reports are copied below
    pages = {p.relative_to(site).as_posix(): p.read_text(encoding='utf-8') for p in site.rglob('*.html')}
    ids = {page: set(re.findall(r'\bid="([^"]+)"', text)) for page, text in pages.items()}
    for page, text in pages.items():
        (site / page).write_text(self_contained(page, text.replace(TICK, '`'), ids), encoding='utf-8')
    darkened(site)
    index = site / 'search.json'
    index.write_text(index.read_text(encoding='utf-8').replace(TICK, '`'), encoding='utf-8')
    (site / 'reports').mkdir()
    for report in map(
        Path,
        subprocess.run(
            ['git', 'ls-files', 'outputs/*/report.html'], capture_output=True, text=True, check=True
        ).stdout.split(),
    ):  # those that are committed
        shutil.copy(report, site / 'reports' / f'{report.parent.name}.html')
    shutil.rmtree(cfg.doc_path, ignore_errors=True)
    shutil.move(site, cfg.doc_path)
