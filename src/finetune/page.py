"""Markdown with pictures -> one self-contained HTML page."""

import base64
import html
import re
from pathlib import Path

_CSS = """
body { max-width: 62rem; margin: 2.5rem auto; padding: 0 1.5rem; background: #fff; color: #1b1b1b;
       font: 16px/1.55 system-ui, "Segoe UI", "Liberation Sans", Arial, sans-serif; }
h1 { font-size: 1.9rem; } h2 { margin-top: 2.6rem; border-bottom: 1px solid #ddd; padding-bottom: .25rem; }
h3 { margin-top: 1.8rem; } h4 { margin: 1.4rem 0 .3rem; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .34rem .7rem; border-bottom: 1px solid #e2e2e2; vertical-align: top; }
th { border-bottom: 2px solid #888; text-align: left; }
td[style*="right"], td:first-child, code { white-space: nowrap; }
code { font-size: .92em; background: #f3f3f3; padding: .05em .3em; border-radius: 3px; }
img { max-width: 100%; display: block; margin: .6rem 0 1.2rem; }
"""


def render(text: str, folder: Path) -> str:
    """`text` (Markdown with tables) as an HTML page whose pictures, PNG files in `folder`, are embedded."""
    import markdown

    body = markdown.markdown(text, extensions=["tables"], output_format="html")
    body = re.sub(r'src="([^":]+\.png)"', lambda m: f'src="{_data_uri(folder / m.group(1))}"', body)
    body = body.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")
    heading = re.search(r"<h1>(.*?)</h1>", body)
    title = re.sub(r"<[^>]+>", "", heading.group(1)) if heading else html.escape(folder.name)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
        f"<style>{_CSS}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _data_uri(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
