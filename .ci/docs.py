"""Build the site in `_docs`.

nbdev processes the notebooks, smalldocs renders them, and what is left makes the site self-contained:
a reference made from the library's source, MathML in place of TeX, and nothing that is loaded from elsewhere.
"""

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
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from fastcore.utils import AttrDict
from math_core import LatexError, LatexToMathML
from nbdev import config, doclinks, process, processors, quarto, serve
from smalldocs.site import build

ROOT = Path(__file__).resolve().parents[1]
DEFINITIONS = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
BACKTICK = '\ue000'  # stands for a backtick in source code, where nbdev would make a link of what it quotes


# The reference: signatures, docstrings and the comments of parameters, from the source


class Definition(NamedTuple):
    "A function, class or method of the library"

    file: Path
    node: ast.AST
    lines: list  # of the file, without their comments
    comments: dict  # line number to comment

    @property
    def first_line(self):
        decorators = [d.lineno for d in getattr(self.node, 'decorator_list', [])]
        return min([self.node.lineno, *decorators])

    @property
    def head_end(self):
        "The number of the last line before the body"
        for number in range(self.node.lineno, self.node.body[0].lineno):
            if self.lines[number - 1].endswith(':'):
                return number
        return self.node.lineno

    @property
    def head(self):
        return self.lines[self.first_line - 1 : self.head_end]

    @property
    def source(self):
        text = self.file.read_text(encoding='utf-8').splitlines(keepends=True)
        return textwrap.dedent(''.join(text[self.first_line - 1 : self.node.end_lineno]))


def members(node):
    "The methods and classes that a class defines"
    if not isinstance(node, ast.ClassDef):
        return []
    return [n for n in node.body if isinstance(n, DEFINITIONS)]


def without_comments(source):
    "Lines of a module without their comments, and the comments by line number"
    lines, comments = source.splitlines(), {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            comments[row] = token.string.strip('# ')
            lines[row - 1] = lines[row - 1][:column].rstrip()
    return lines, comments


@cache  # every page asks for every file
def definitions(file):
    "What a module defines, methods too, by name"
    source = file.read_text(encoding='utf-8')
    lines, comments = without_comments(source)
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, DEFINITIONS):
            found[node.name] = Definition(file, node, lines, comments)
            for member in members(node):
                found[f'{node.name}.{member.name}'] = Definition(file, member, lines, comments)
    return found


def parameters(node):
    "(name, node, default) of whatever a function takes, or of a class's annotated fields"
    if isinstance(node, ast.ClassDef):
        return [(n.target.id, n, n.value) for n in node.body if isinstance(n, ast.AnnAssign)]
    arguments = node.args
    plain = arguments.posonlyargs + arguments.args
    defaults = [None] * (len(plain) - len(arguments.defaults)) + arguments.defaults
    found = [(p.arg, p, default) for p, default in zip(plain, defaults, strict=True)]
    if arguments.vararg:
        found.append(('*' + arguments.vararg.arg, arguments.vararg, None))
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    found += [(p.arg, p, default) for p, default in pairs]
    if arguments.kwarg:
        found.append(('**' + arguments.kwarg.arg, arguments.kwarg, None))
    return [entry for entry in found if entry[0] not in ('self', 'cls')]


def as_code(node):
    return f'<code>{html.escape(ast.unparse(node))}</code>' if node else ''


def as_text(comment):
    "A comment as Markdown: < and * are escaped, except in code and in TeX"
    return re.sub(r'(`[^`]*`|\$[^$]+\$)|([<*])', lambda m: m[1] or '\\' + m[2], comment)


def fenced(code):
    return '```python\n' + code.rstrip().replace('`', BACKTICK) + '\n```'


def parameter_table(definition):
    "A Markdown table of a definition's parameters and of what it returns"
    node, comments = definition.node, definition.comments
    rows = []
    for name, parameter, default in parameters(node):
        said = comments.get((default or parameter).end_lineno, '')
        rows.append((f'<code>{name}</code>', as_code(parameter.annotation), as_code(default), as_text(said)))
    if not isinstance(node, ast.ClassDef) and (node.returns or definition.head_end in comments):
        said = comments.get(definition.head_end, '')
        rows.append(('**Returns**', as_code(node.returns), '', as_text(said)))
    if not rows:
        return ''
    titles = ('', 'Type', 'Default', 'Details')
    used = [i for i in range(len(titles)) if any(row[i] for row in rows)]
    lines = [titles, ['---'] * len(titles), *rows]
    return '\n'.join('| ' + ' | '.join(line[i].replace('|', r'\|') for i in used) + ' |' for line in lines)


def described(name, level, definition):
    "A definition as Markdown: heading, signature, docstring, and a table of its parameters"
    call = next((n for n in members(definition.node) if n.name == '__init__'), None)
    signature = definition.head
    documented = definition
    if call:
        documented = definition._replace(node=call)
        signature = signature[:1] + documented.head
    parts = [
        '---',
        '#' * level + ' ' + name,
        fenced(textwrap.dedent('\n'.join(signature))),
        ast.get_docstring(definition.node) or '',
        parameter_table(documented),
        f'<details><summary>Source, {definition.file.relative_to(ROOT).as_posix()}</summary>',
        fenced(definition.source),
        '</details>',
    ]
    return '\n\n'.join(parts)


class Reference(process.Processor):
    "Fills the `show_doc` cells from the source, in place of the processor that imports and runs everything"

    def begin(self):
        "The definitions of the library; those of the notebook's own module come last and so win"
        exported = processors._default_exp(self.nb) or ''
        own = cfg.lib_path / (exported.replace('.', '/') + '.py')
        self.found = {}
        for file in sorted(cfg.lib_path.rglob('*.py'), key=own.__eq__):
            self.found |= definitions(file)

    def cell(self, cell):
        if cell.cell_type != 'code':
            return
        call = re.search(r'^show_doc\(([\w.]+)(?:, title_level=(\d))?\)', cell.source, re.M)
        if call:
            text = described(call[1], int(call[2] or 3), self.found[call[1]])
            data = AttrDict({'text/markdown': text.splitlines(keepends=True)})
            cell.outputs = [AttrDict(output_type='display_data', metadata={}, data=data)]


def public_names(cell, shown):
    "What needs a `show_doc` cell after `cell`, methods with a docstring too; the last first, as nbdev inserts them"
    names = []
    for node in cell.parsed_() or []:
        if not isinstance(node, DEFINITIONS) or node.name.startswith('_') or node.name in shown:
            continue
        names.append(node.name)
        for method in members(node):
            if not method.name.startswith('_') and ast.get_docstring(method):
                names.append(f'{node.name}.{method.name}, title_level=4')
    return names[::-1]


# The pages, made self-contained


def darken(site):
    "Bootstrap's own dark colours for the dark theme: the light theme's fonts and sizes, nothing from elsewhere"
    themes = site / 'site_libs' / 'themes'
    light, dark = (next(themes.glob(f'{name}*.css')) for name in ('default', 'darkly'))
    css = light.read_text(encoding='utf-8').replace('[data-bs-theme=light]', ':root')
    css = css.replace('[data-bs-theme=dark]', ':is(:root,[data-bs-theme=dark])')
    dark.write_text(css, encoding='utf-8')


def as_mathml(match, page):
    "MathML in place of TeX"
    convert = LatexToMathML(fancy_error=False, allow_unreliable_rendering=True).convert_with_global_state
    kind, tex = match[1], html.unescape(match[2])
    try:
        return f'<span class="math {kind}">{convert(tex, displaystyle=kind == "display")}</span>'
    except LatexError as e:
        sys.exit(f'{page}: {e} In: {match[2]}')


def as_relative_link(match, page, ids):
    "A link to a page beside this one, and to the nearest anchor that is there"
    target, anchor = match[1] or 'index.html', match[2]
    while anchor and anchor not in ids.get(target, ''):
        anchor = anchor.rpartition('.')[0]
    address = posixpath.relpath(target, posixpath.dirname(page) or '.')
    return f'href="{address}#{anchor}"' if anchor else f'href="{address}"'


def self_contained(page, text, ids):
    "A page with MathML, nothing from other hosts, relative links, and sections of the sidebar that keys open"
    tex = r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>'
    text = re.sub(tex, partial(as_mathml, page=page), text, flags=re.S)
    text = re.sub(r'<(script|link)\b[^>]*\b(src|href)="(https?:)?//[^>]*>(</script>)?', '', text)
    text = re.sub(  # a sentence in the sidebar is no link
        r'<a class="sidebar-item-text sidebar-link" href="">(.*?)</a>',
        r'<span class="sidebar-sentence">\1</span>',
        text,
    )
    text = re.sub(  # without an address no key reaches it
        r'(<a class="sidebar-item-[^>]*data-bs-target="(#[^"]*)") role="navigation"',
        r'\1 href="\2" role="button"',
        text,
    )
    home = re.escape(cfg.doc_host + cfg.doc_baseurl)
    return re.sub(rf'href="{home}/?([^"#]*)#?([^"]*)"', partial(as_relative_link, page=page, ids=ids), text)


def rewrite_pages(site):
    "Every page, made self-contained"
    pages = {p.relative_to(site).as_posix(): p.read_text(encoding='utf-8') for p in site.rglob('*.html')}
    ids = {page: set(re.findall(r'\bid="([^"]+)"', text)) for page, text in pages.items()}
    for page, text in pages.items():
        text = self_contained(page, text.replace(BACKTICK, '`'), ids)
        (site / page).write_text(text, encoding='utf-8')
    index = site / 'search.json'
    index.write_text(index.read_text(encoding='utf-8').replace(BACKTICK, '`'), encoding='utf-8')


def copy_reports(site):
    "The reports that are committed, as reports/<scale>.html"
    (site / 'reports').mkdir()
    command = ['git', 'ls-files', 'outputs/*/report.html']
    tracked = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    for report in map(Path, tracked):
        shutil.copy(report, site / 'reports' / f'{report.parent.name}.html')


def own_index(**_):
    "nbdev's entry point of this project, without an installed package"
    return [AttrDict(name=cfg.lib_name, load=lambda: runpy.run_path(cfg.lib_path / '_modidx.py')['d'])]


def main():
    processors.exec_show_docs = Reference
    processors._def_names = public_names
    doclinks.entry_points = own_index
    quarto.refresh_quarto_yml()
    serve.proc_nbs(force=True, n_workers=0)  # in this process, where the three changes above hold
    site = Path('_proc') / cfg.doc_path.name
    for warning in build('_proc').warnings:
        if not re.search('output-file|html-math-method|broken link reports/', warning):  # reports come below
            print(warning, file=sys.stderr)
    rewrite_pages(site)
    darken(site)
    copy_reports(site)
    shutil.rmtree(cfg.doc_path, ignore_errors=True)
    shutil.move(site, cfg.doc_path)


if __name__ == '__main__':
    os.chdir(ROOT)
    cfg = config.get_config()
    main()
