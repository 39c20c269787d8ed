"""Build the site in `_docs`.

nbdev processes the notebooks, smalldocs renders them, and what is left makes the site self-contained:
a reference made from the library's source, MathML in place of TeX, and nothing that is loaded from elsewhere.

Why not `smalldocs api build` for the reference: it reads the same comments, but makes a second page for each module.
Here a signature stands in the notebook, below the prose that says why and above the cell that tests it. It also
imports every module, and leaves out sources and what is not annotated. What it could replace is `Reference` and
`parameter_table`; in exchange, each link from a notebook to a name would have to be turned to the second page.
"""

import ast
import html
import io
import json
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

import yaml
from execnb.nbio import mk_cell
from fastcore.utils import AttrDict
from math_core import LatexError, LatexToMathML
from nbdev import config, doclinks, process, processors, quarto, serve
from smalldocs.site import build

ROOT = Path(__file__).resolve().parents[1]
DEFINITIONS = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
TITLE = 'adt_repro'  # of the site, as nbs/_quarto.yml has it


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
    return '```python\n' + code.rstrip() + '\n```'


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
        '::: {.definition}',
        '#' * level + ' ' + name,
        fenced(textwrap.dedent('\n'.join(signature))),
        ast.get_docstring(definition.node) or '',
        parameter_table(documented),
        f'<details><summary>Source, {definition.file.relative_to(ROOT).as_posix()}</summary>',
        fenced(definition.source),
        '</details>',
        ':::',
    ]
    return '\n\n'.join(parts)


def documented(name, found):
    "The entries of a function or class, and of its methods that have a docstring, as Markdown"
    yield described(name, 3, found[name])
    for method in members(found[name].node):
        if not method.name.startswith('_') and ast.get_docstring(method):
            full = f'{name}.{method.name}'
            yield described(full, 4, found[full])


class Reference(process.Processor):
    "Below each exported cell the entries of what it defines, from the source: nothing is imported or run"

    def begin(self):
        directives = [cell.directives_ for cell in self.nb.cells]
        module = next((d['default_exp'][0] for d in directives if 'default_exp' in d), None)
        if module is None:
            return
        found, cells = definitions(cfg.lib_path / (module.replace('.', '/') + '.py')), []
        for cell, directive in zip(self.nb.cells, directives, strict=True):
            cells.append(cell)
            nodes = cell.parsed_() or [] if 'export' in directive else []
            names = [n.name for n in nodes if isinstance(n, DEFINITIONS) and n.name[0] != '_']
            for name in names:
                cells += [mk_cell(entry, 'markdown') for entry in documented(name, found)]
        self.nb.cells = cells


# What is folded


PREPARATION = 'Imports and preparation'


def begins_with_import(cell):
    statements = cell.parsed_() or [None]
    return isinstance(statements[0], (ast.Import, ast.ImportFrom))


class Fold(process.Processor):
    "Folds parameters and code of figures; of an experiment what it prepares too, of results all code"

    def begin(self):
        self.page = Path(self.nb.path_).resolve().relative_to(cfg.nbs_path)
        self.experiment = self.page.parent == Path() and self.page.stem != 'index'
        self.nothing_shown = True

    def name(self, cell):
        "What a cell's code is called where it is folded; None where it stands open"
        if 'parameters' in cell.metadata.get('tags', []):
            return 'Parameters'
        if 'fig-alt:' in cell.directives_:
            return 'Code of this figure'
        if self.page.parent.name == 'results':
            return 'Code'
        if self.experiment and (self.nothing_shown or begins_with_import(cell)):
            return PREPARATION
        return None

    def cell(self, cell):
        if cell.cell_type == 'code':
            cell.fold_ = self.name(cell)
            self.nothing_shown = self.nothing_shown and not cell.outputs

    def end(self):
        "One box for what is prepared by several cells without a word between them"
        cells = []
        for cell in self.nb.cells:
            above = cells[-1] if cells else {}
            if cell.get('fold_') == above.get('fold_') == PREPARATION and not above.outputs:
                above.source += f'\n\n{cell.source}'
                above.outputs = cell.outputs
            else:
                cells.append(cell)
        for cell in cells:
            if cell.get('fold_'):
                cell.source = f'#| code-fold: true\n#| code-summary: "{cell.fold_}"\n{cell.source}'
        self.nb.cells = cells


class Pages(processors.FilterDefaults):
    "nbdev's steps from a notebook to a page, with `Reference` in place of its own, which imports and runs everything"

    def base_procs(self):
        replaced = 'add_show_docs', 'clean_show_doc', 'exec_show_docs', 'add_fold', 'mv_exports'
        kept = [step for step in super().base_procs() if step.__name__ not in replaced]
        return [Reference, *kept, Fold]


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


def unbroken_intervals(text):
    "Cells with a line break at most between a number and its interval, so that Table 1 fits a page"

    def unbroken(cell):
        return re.sub(r'(\[-?[\d.]+,) (?=-?[\d.]+\])', r'\1&nbsp;', cell[0].replace(' ± ', '&nbsp;±&nbsp;'))

    return re.sub(r'<td[^>]*>[^<]*', unbroken, text)


def plain(fragment):
    "The text of some HTML, on one line"
    return ' '.join(html.unescape(re.sub('<[^>]*>', '', fragment)).split())


def shortened(text, most=200):
    "A text of at most so many characters, cut between words"
    return text if len(text) <= most else text[: most - 1].rpartition(' ')[0].rstrip(',;:') + '…'


def with_description(text):
    "A page with a plain description, and the same for whoever shows a link to it (Open Graph)"
    body = text.partition('<body')[2]
    title = re.search('<h1[^>]*>(.*?)</h1>', body, re.S)
    said = re.search(r'<div class="description">(.*?)</div>', body, re.S) or re.search(
        r'<p>(.{20,}?)</p>', body.partition('</h1>')[2], re.S
    )
    title, said = plain(title[1]), shortened(plain(said[1]))
    facts = {'og:title': title, 'og:description': said, 'og:type': 'website', 'og:site_name': TITLE}
    tags = [f'<meta name="description" content="{html.escape(said)}">']
    tags += [f'<meta property="{name}" content="{html.escape(fact)}">' for name, fact in facts.items()]
    text = re.sub('<meta name="description"[^>]*>', '', text)
    return text.replace('</title>', '</title>' + ''.join(tags), 1)


def rewrite_pages(site):
    "Every page, made self-contained"
    pages = {p.relative_to(site).as_posix(): p.read_text(encoding='utf-8') for p in site.rglob('*.html')}
    ids = {page: set(re.findall(r'\bid="([^"]+)"', text)) for page, text in pages.items()}
    for page, text in pages.items():
        text = with_description(unbroken_intervals(self_contained(page, text, ids)))
        (site / page).write_text(text, encoding='utf-8')


def sidebar_titles(contents):
    "(notebook, title) of the pages in the sidebar, whatever section they are in; '' where none is given"
    for entry in contents:
        if isinstance(entry, str):
            yield entry, ''
        elif 'contents' in entry:
            yield from sidebar_titles(entry['contents'])
        elif 'href' in entry:
            yield entry['href'], entry['text']


def improve_search(site):
    "Pages are found by their titles in the sidebar and the words in nbs/search.yml, and guides come first"
    read = partial(Path.read_text, encoding='utf-8')
    sidebar = yaml.safe_load(read(ROOT / 'nbs' / 'sidebar.yml'))['website']['sidebar']
    words = yaml.safe_load(read(ROOT / 'nbs' / 'search.yml'))
    titles = dict(sidebar_titles(sidebar['contents']))
    index = site / 'search.json'
    entries = {entry['href']: entry for entry in json.loads(read(index))}
    for notebook, title in titles.items():
        page = notebook.replace('.ipynb', '.html')
        found = dict(objectID=page, href=page, title=title or Path(notebook).stem, section='', text='')
        entry = entries.setdefault(page, found)
        entry['words'] = f'{title} {words.pop(notebook, "")}'.strip()
    if words:
        sys.exit(f'nbs/search.yml: not in nbs/sidebar.yml: {", ".join(words)}')
    index.write_text(json.dumps([*entries.values()], ensure_ascii=False), encoding='utf-8')
    fuse = site / 'site_libs' / 'fuse' / 'fuse.min.js'
    fuse.write_text(read(fuse) + read(ROOT / '.ci' / 'search.js'), encoding='utf-8')


WAY_BACK = '<nav aria-label="Site"><a href="../index.html">{}</a> › <a href="../{}">{}</a></nav>'


def without_files(text, scale):
    "A report whose links to files of a clone, which the site does not have, are the files' names for whoever asks"
    link = r'<a href="(?![#.])([^":]+)">(.*?)</a>'
    return re.sub(link, rf'<span title="outputs/{scale}/\1">\2</span>', text)


def copy_reports(site):
    "The reports that are committed, as reports/<scale>.html, with a way back that a clone's own have no use for"
    (site / 'reports').mkdir()
    command = ['git', 'ls-files', 'outputs/*/report.html']
    tracked = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    for report in map(Path, tracked):
        scale = report.parent.name
        page = next(p for p in (f'results/{scale}.html', 'paper.html') if (site / p).exists())
        text = without_files(with_description(report.read_text(encoding='utf-8')), scale)
        text = text.replace('<body>', '<body>' + WAY_BACK.format(TITLE, page, f'Results, {scale}'), 1)
        (site / 'reports' / f'{scale}.html').write_text(text, encoding='utf-8')


def own_index(**_):
    "nbdev's entry point of this project, without an installed package"
    return [AttrDict(name=cfg.lib_name, load=lambda: runpy.run_path(cfg.lib_path / '_modidx.py')['d'])]


def main():
    serve.FilterDefaults = Pages
    doclinks.entry_points = own_index
    quarto.refresh_quarto_yml()
    serve.proc_nbs(force=True, n_workers=0)  # in this process, where the two changes above hold
    site = Path('_proc') / cfg.doc_path.name
    for warning in build('_proc').warnings:
        if not re.search('output-file|html-math-method|broken link reports/', warning):  # reports come below
            print(warning, file=sys.stderr)
    rewrite_pages(site)
    improve_search(site)
    darken(site)
    copy_reports(site)
    shutil.rmtree(cfg.doc_path, ignore_errors=True)
    shutil.move(site, cfg.doc_path)


if __name__ == '__main__':
    os.chdir(ROOT)
    cfg = config.get_config()
    main()
