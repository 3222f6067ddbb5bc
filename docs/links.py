"""mkdocs' hook: pages link to files outside of docs/, such as LOG.md; the site gets them too.

On a code host such a link leads to the file itself. The site takes each linked file, and the files
that it links to in turn, in below `repository/`: Markdown as a page, another file as it is, a
folder as a page that lists its files.
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
OUTSIDE = "repository"  # the site's folder of files outside of docs/
FOREIGN = re.compile(r"""<(?:script|img|iframe|link rel="stylesheet")[^>]*(?:src|href)="https?:""")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside of docs/ that pages link to."""
    docs = Path(config.docs_dir)
    queue = [Path(file.abs_src_path) for file in files.documentation_pages() if file.abs_src_path]
    while queue:
        for target in _targets(queue.pop()):
            uri = _uri(target, docs)
            if not uri.startswith(OUTSIDE) or not target.exists() or files.get_file_from_path(uri):
                continue
            is_folder = target.is_dir()
            source = {"content": _listing(target)} if is_folder else {"abs_src_path": str(target)}
            level = InclusionLevel.NOT_IN_NAV
            files.append(File.generated(config, uri, inclusion=level, **source))
            queue += [target] if is_folder or target.suffix == ".md" else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links that leave docs/ to the places where `on_files` put their targets."""
    if page.file.abs_src_path is None:  # a list of a folder's files, which lie beside it
        return markdown
    here = Path(page.file.abs_src_path).parent
    start = Path(page.file.src_uri).parent

    def relocate(match: re.Match[str]) -> str:
        if _is_external(match[2]):
            return match[0]
        uri = _uri((here / match[2]).resolve(), Path(config.docs_dir))
        return match[1] + os.path.relpath(uri, start).replace(os.sep, "/")

    return LINK.sub(relocate, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """The page as it is, once checked: it must load nothing from another server."""
    foreign = FOREIGN.search(output)
    if foreign is not None:
        raise PluginError(f"{page.file.src_uri} loads from another server: {foreign[0]}")
    return output


def _targets(page: Path) -> list[Path]:
    """The files that a page links to; for a folder, its files."""
    if page.is_dir():
        return sorted(page.iterdir())
    links = [match[2] for match in LINK.finditer(page.read_text(encoding="utf-8"))]
    return [(page.parent / link).resolve() for link in links if not _is_external(link)]


def _listing(folder: Path) -> str:
    names = "".join(f"- [{file.name}]({file.name})\n" for file in sorted(folder.iterdir()))
    return f"# {folder.name}\n\n{names}"


def _is_external(link: str) -> bool:
    return link.startswith(("http:", "https:", "mailto:"))


def _uri(target: Path, docs: Path) -> str:
    """The place on the site of a file or folder of the repository."""
    if target.is_relative_to(docs):
        return target.relative_to(docs).as_posix()
    uri = f"{OUTSIDE}/{target.relative_to(docs.parent).as_posix()}"
    return f"{uri}/README.md" if target.is_dir() else uri
