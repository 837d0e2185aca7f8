"""What the site adds to pages that GitHub shows as they are: the root's pages, equations, and links in docstrings.

An equation becomes MathML, which browsers show without a script.
"""

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
ROOT_PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")


def on_files(files: Files, *, config: Any) -> Files:
    """The pages of the project's root, with links as from docs/."""
    for name in ROOT_PAGES:
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    return re.sub(rf"\]\(\.\./({'|'.join(ROOT_PAGES)})", r"](\1", markdown)


def on_page_content(content: str, *, page: Page, **_: Any) -> str:
    """Equations, which arithmatex has marked, as MathML; links for the pages that docstrings name."""
    if page.url.startswith("api/"):
        return re.sub(r"\bdocs/(\w+)\.md", r'<a href="../\1.html">docs/\1.md</a>', content)
    content = re.sub(r'<span class="arithmatex">\\\((.*?)\\\)</span>', _inline, content, flags=re.DOTALL)
    return re.sub(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', _block, content, flags=re.DOTALL)


def _inline(match: re.Match[str]) -> str:
    return convert(html.unescape(match[1])).replace("<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>")  # \sim


def _block(match: re.Match[str]) -> str:
    return f'<div class="equation">{_inline(match).replace("inline", "block", 1)}</div>'
