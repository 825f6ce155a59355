"""The pages: self-contained, tidy, escaped; and the index over them."""

import base64
import io
import json
import re

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from dfd.reports import html


def png(width, height):
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def executed(tmp_path):
    """An executed notebook with what cells may show, written by hand."""
    bars = "\repoch:   0%|          | 0/9\repoch: 100%|##| 9/9 [00:01<00:00, 9.00it/s]\x1b[A\n"
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "0%| | 0/9"}
    cells = [
        new_markdown_cell("# 00 · Is it <safe>?\n\nAnd **how**\nmuch?\n\n![far](https://example.org/far.png)"),
        new_code_cell(
            "secret = 'code'",
            outputs=[
                new_output("stream", name="stdout", text="epoch 1\n"),
                new_output("stream", name="stderr", text=bars),
                new_output("stream", name="stdout", text="epoch 2 <b>\n"),
                new_output("display_data", data=widget),
                new_output("display_data", data={"image/png": png(4, 4)}),
                new_output("display_data", data={"application/javascript": "alert(1)"}),
                new_output("execute_result", data={"text/html": "<table class='dataframe'><td>7</td></table>"}),
            ],
        ),
    ]
    path = tmp_path / "00_safe.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    return path


def test_a_page_loads_nothing_and_runs_nothing(executed):
    page = html.export(executed).read_text()
    assert "<script" not in page and "alert(1)" not in page
    assert not re.findall(
        r"""<link\b|@import|url\(|(?:src|srcset|data)\s*=\s*["']?(?:https?:)?//(?!example\.org/far)""", page
    )
    assert "default-src 'none'; img-src data:" in page  # so that the browser does not load the far picture either
    assert f"data:image/png;base64,{png(4, 4)}" in page
    assert "<td>7</td>" in page


def test_a_page_shows_what_was_printed_without_progress_bars(executed):
    page = html.export(executed).read_text()
    assert re.search(r"<pre[^>]*>epoch 1\nepoch 2 &lt;b&gt;\n</pre>", page)
    assert "0/9" not in page and "it/s" not in page


def test_code_is_there_but_folded_and_the_title_is_escaped(executed):
    page = html.export(executed, {"cell": 2, "text": "Traceback\nValueError: <bad>"}).read_text()
    assert "<title>00 · Is it &lt;safe&gt;?</title>" in page
    assert re.search(r'<div class="code">.*secret', page) and ".code { display: none;" in page
    assert (
        re.search(r'<input id="show-code" type="checkbox"/?>', page)
        and "body:has(#show-code:checked) .code { display: block; }" in page
    )
    assert "ValueError: &lt;bad&gt;" in page


def test_a_link_to_another_notebook_leads_to_the_list_of_all_in_a_report(executed):
    notebook = nbformat.read(executed, as_version=4)
    notebook.cells.append(new_markdown_cell("After: [`01`](01_stage1_real_fake.ipynb), not [mine](mine.ipynb)."))
    nbformat.write(notebook, executed)
    links = re.findall(r'<a href="([^"#]+)"', html.export(executed).read_text().partition("<main>")[2])
    assert links == ["index.html", "mine.ipynb"]


def test_papermill_error_marks_are_left_out(tmp_path):
    mark = new_markdown_cell("An Exception was encountered", metadata={"tags": ["papermill-error-cell-tag"]})
    nbformat.write(new_notebook(cells=[mark, new_markdown_cell("# Own title")]), tmp_path / "00_x.ipynb")
    page = html.export(tmp_path / "00_x.ipynb").read_text()
    assert "An Exception" not in page and "<title>Own title</title>" in page


def test_the_index_of_an_empty_folder_is_a_page(tmp_path):
    assert "<h2>Notebooks</h2>" in html.write_index(tmp_path).read_text()


def test_the_index_shows_numbers_intervals_warnings_and_files(executed, tmp_path):
    metrics = {
        "stage1": {
            "test": {
                "auc": {"value": 0.9312, "low": None, "high": None},
                "by_generator": {"ProGAN": {"auc": {"value": 0.75, "low": 0.7, "high": 0.8}}},
            },
        },
        "stage2": {"test": {"by_generator": {"BigGAN": {"recall": {"value": 0.5, "low": 0.4, "high": 0.6}}}}},
        "audit": {"stage1": {"auc": {"value": 0.97, "low": 0.95, "high": 0.98}, "warning": "files give <it> away"}},
        "notes": ["The fakes are simulated."],
    }
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    (tmp_path / "rejected.csv").write_text("path,reason\na.png,empty\n")
    table = pd.DataFrame({"label": ["ProGAN", "ProGAN", "RealPhotos"], "split": ["test", "val", "test"], "group": "g"})
    table.to_parquet(tmp_path / "manifest.parquet")
    entry = {"status": "finished", "seconds": 75.2, "ended": "", "error": None}
    entries = {"00_safe": entry | {"ended": "2026-01-02"}, "01_x": entry | {"ended": "2026-01-01"}, "02_y": entry}
    (tmp_path / "config.json").write_text(json.dumps({"data": "d", "profile": "demo", "notebooks": entries}))
    html.export(executed)
    page = re.sub(r"\s+", " ", html.write_index(tmp_path).read_text())
    for text in (
        '<div class="value">0.931</div><div class="interval">without an interval: too few sources or groups</div>',
        '<th scope="row">ProGAN</th><td>1</td><td>0.750 [0.700, 0.800]</td><td>–</td>',
        '<th scope="row">BigGAN</th><td>–</td><td>–</td><td>0.500 [0.400, 0.600]</td>',
        "files give &lt;it&gt; away",
        "The fakes are simulated.",
        "Left out: 1 file; rejected.csv names each with its reason.",
        '<a href="00_safe.html">00 · Is it &lt;safe&gt;?</a>',
        "finished, 1:15",
        "And how much?",
        '<a href="rejected.csv">rejected.csv</a></th><td>24 Bytes</td>',
    ):
        assert text in page
    assert page.count("before one above was made anew") == 1
    assert "Which generator: accuracy" not in page and "http" not in page.replace("http-equiv", "")


def test_the_index_shows_the_first_picture_of_a_cell_with_its_tag(tmp_path):
    first, second = png(30, 20), png(20, 30)
    outputs = [new_output("display_data", data={"image/png": image}) for image in (first, second)]
    cells = [new_markdown_cell("# T?"), new_markdown_cell("## Results")]
    cells += [new_code_cell("plots.plot_pr(x)", outputs=outputs[1:])]
    cells += [new_code_cell("plots.plot_roc(x)", outputs=outputs, metadata={"tags": ["index"]})]
    entries = {stem: {"status": "finished"} for stem in ("00_eda", "01_stage1_real_fake", "04_error_analysis")}
    for stem in list(entries)[1:2]:
        nbformat.write(new_notebook(cells=cells), tmp_path / f"{stem}.ipynb")
    (tmp_path / "config.json").write_text(json.dumps({"notebooks": entries}))
    assert "<img" not in html.write_index(tmp_path).read_text()  # of a notebook that was interrupted: no page
    (tmp_path / "01_stage1_real_fake.html").write_text("x")
    page = html.write_index(tmp_path).read_text()
    assert re.findall(r'<img src="data:image/png;base64,(.*?)" alt="(.*?)"', page) == [
        (first, "Results: ROC curve of stage 1 for each generator against all photos, from rows of a score table")
    ]


def test_only_wide_pictures_scroll_on_a_phone(tmp_path):
    outputs = [new_output("display_data", data={"image/png": png(*size)}) for size in ((751, 9), (750, 9))]
    nbformat.write(new_notebook(cells=[new_code_cell("1", outputs=outputs)]), tmp_path / "00_x.ipynb")
    page = html.export(tmp_path / "00_x.ipynb").read_text()
    assert re.findall(r'<figure class="([\w ]+)"', page) == ["output wide", "output"]
