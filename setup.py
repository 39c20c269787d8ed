"Everything about the package stands in settings.ini; this file only hands it to setuptools."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='], interpolation=None)
ini.read(here / 'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']


def files_of_the_wheel(nbs):
    "The experiments' notebooks, the scales and the published tables in the folder nbs; no hidden files, no folders"
    found = [*nbs.glob('*.ipynb'), *nbs.glob('scales/*'), *nbs.glob('published/*')]
    shown = [file for file in found if file.is_file() and not file.name.startswith('.')]
    return sorted(file for file in shown if file.name != 'index.ipynb')  # the site's home is no experiment


def files_of_the_vectors(vectors):
    "The test vectors, their runner, specification and adapters in the folder vectors; no hidden files"
    kinds = '*.py', '*.md', '*.json', 'adapters/*.py', 'cases/*.json', 'cases/*.safetensors'
    found = [file for kind in kinds for file in vectors.glob(kind)]
    return sorted(file for file in found if file.is_file() and not file.name.startswith('.'))


class BuildWithNotebooks(build_py):
    "Puts notebooks, scales and published tables into the wheel, as adt_repro/_nbs/, and test vectors, as _vectors/"

    def run(self):
        super().run()
        if self.editable_mode:  # a clone has them in nbs/
            return
        package = Path(self.build_lib) / cfg['lib_path']
        for file in [*files_of_the_wheel(here / 'nbs'), *files_of_the_vectors(here / 'vectors')]:
            target = package / f'_{file.relative_to(here)}'
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(file), str(target))


setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=(here / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    author_email=cfg['author_email'],
    license='Apache-2.0',
    keywords=cfg['keywords'].split(),
    cmdclass=dict(build_py=BuildWithNotebooks),
    packages=find_packages(include=[cfg['lib_path'], cfg['lib_path'] + '.*']),
    package_data={cfg['lib_path']: ['py.typed', 'models/digits/*.safetensors']},
    install_requires=cfg['requirements'].split(),
    extras_require={k: cfg[f'{k}_requirements'].split() for k in ('dev', 'autoattack')},
    entry_points={
        'console_scripts': [f'adt={cfg["lib_path"]}.command.main:run_command'],
        'nbdev': [f'{cfg["lib_name"]}={cfg["lib_path"]}._modidx:d'],  # nbdev's links between pages
    },
)
