"""mkdocs' hook: pages link to files beside docs/, such as LOG.md, and the site has these files too.

On a code host such a link leads to the file itself. For the site each file that is linked to, and
what it links to in turn, is taken in below `repository/`: Markdown as a page, others as they are,
and of a folder a page that lists its files.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

LINK = re.compile(r"(\]\()([^)#\s]+)")  # up to an anchor, which stays as it is
ASIDE = "repository"
FOREIGN = re.compile(r"""<(?:script|img|iframe|link rel="stylesheet")[^>]*(?:src|href)="https?:""")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take in what pages link to beside docs/."""
    docs = Path(config.docs_dir)
    due = [Path(file.abs_src_path) for file in files.documentation_pages() if file.abs_src_path]
    while due:
        for target in _targets(due.pop()):
            uri = _uri(target, docs)
            if not uri.startswith(ASIDE) or not target.exists() or files.get_file_from_path(uri):
                continue
            is_folder = target.is_dir()
            source = {"content": _listing(target)} if is_folder else {"abs_src_path": str(target)}
            level = InclusionLevel.NOT_IN_NAV
            files.append(File.generated(config, uri, inclusion=level, **source))
            due += [target] if is_folder or target.suffix == ".md" else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links beside docs/ lead to where `on_files` took their targets."""
    if page.file.abs_src_path is None:  # a folder's list, whose files lie beside it
        return markdown
    here = Path(page.file.abs_src_path).parent
    start = Path(page.file.src_uri).parent

    def moved(found: re.Match[str]) -> str:
        if _is_elsewhere(found[2]):
            return found[0]
        uri = _uri((here / found[2]).resolve(), Path(config.docs_dir))
        return found[1] + os.path.relpath(uri, start).replace(os.sep, "/")

    return LINK.sub(moved, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """The page, which must load nothing from another server."""
    foreign = FOREIGN.search(output)
    if foreign is not None:
        raise PluginError(f"{page.file.src_uri} loads from another server: {foreign[0]}")
    return output


def _targets(page: Path) -> list[Path]:
    """What a page links to; of a folder, its files."""
    if page.is_dir():
        return sorted(page.iterdir())
    links = [found[2] for found in LINK.finditer(page.read_text(encoding="utf-8"))]
    return [(page.parent / link).resolve() for link in links if not _is_elsewhere(link)]


def _listing(folder: Path) -> str:
    names = "".join(f"- [{file.name}]({file.name})\n" for file in sorted(folder.iterdir()))
    return f"# {folder.name}\n\n{names}"


def _is_elsewhere(link: str) -> bool:
    return link.startswith(("http:", "https:", "mailto:"))


def _uri(target: Path, docs: Path) -> str:
    """Where a file or folder of the repository is on the site."""
    if target.is_relative_to(docs):
        return target.relative_to(docs).as_posix()
    uri = f"{ASIDE}/{target.relative_to(docs.parent).as_posix()}"
    return f"{uri}/README.md" if target.is_dir() else uri
