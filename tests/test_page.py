import base64

import pytest

from finetune import page

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "curve.png").write_bytes(PNG)
    return tmp_path


def test_pictures_are_embedded(folder):
    html = page.render("![a curve](curve.png)", folder)
    assert f'src="data:image/png;base64,{base64.b64encode(PNG).decode()}"' in html
    assert "curve.png" not in html


def test_tables_become_tables(folder):
    html = page.render("| a | n |\n| :-- | --: |\n| x | 1 |", folder)
    assert '<td style="text-align: right;">1</td>' in html


def test_the_heading_is_the_title(folder):
    assert "<title>Report of one</title>" in page.render("# Report of `one`\n\ntext", folder)


def test_nothing_is_loaded_from_elsewhere(folder):
    html = page.render("# Report\n\n![a curve](curve.png)", folder)
    assert "http" not in html and "<script" not in html
