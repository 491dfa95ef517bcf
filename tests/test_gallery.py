"""The figures of the documentation: every one is there, in the gallery, and on a page that explains it."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def figures(page: Path) -> set[Path]:
    return {(page.parent / link).resolve() for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text())}


def test_every_figure_is_in_the_gallery_and_on_a_page() -> None:
    shown = {page.name: figures(page) for page in PAGES}
    there = {path.resolve() for path in (ROOT / "docs" / "img").iterdir()}
    gallery = shown.pop("gallery.md")
    assert gallery == there
    assert set().union(*shown.values()) == there


def test_links_lead_to_pages_and_sections() -> None:
    for page in PAGES:
        for link in re.findall(r"(?<!!)\[[^]]*\]\(([^)\s]+)\)", page.read_text()):
            if "://" in link:
                continue
            name, _, section = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            assert target.exists(), f"{page.name}: {link}"
            if section:
                headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
                slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert section in slugs, f"{page.name}: {link}"
