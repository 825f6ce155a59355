"""Every page in a real browser: it asks for nothing, complains of nothing, fits a phone, the dark and a sheet of paper.

The run is written by hand, with every kind of output that the notebooks have, so that nothing is trained.
"""

import io
import json
import os
import shutil
from base64 import b64encode
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from sweeps import fabricate

from dfd import config
from dfd.plots import results
from dfd.reports import html

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PRINTABLE = (680, 1009)  # A4 less margins of 15 mm, in CSS pixels
STEMS = list(config.NOTEBOOKS)
SWEEP = "sweep/index"  # a parameter sweep's page, in a folder of its own
WHOLE = ("index", SWEEP)  # without contents of their own
PAGES = [*STEMS, *WHOLE]
FIGURES = {
    "plots.plot_spectra(spectra)": lambda: results.plot_spectra(dict.fromkeys("abcd", np.eye(8))),  # wide
    "plots.plot_examples(rows)": lambda: results.plot_examples({f"{i}": [np.ones((8, 8, 3))] * 3 for i in range(14)}),
}
FAULTS = (Path(__file__).parent / "page.js").read_text("utf-8")


def displayed(figure):
    """A figure as a cell shows it."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=60)
    plt.close(figure)
    return new_output("display_data", data={"image/png": b64encode(file.getvalue()).decode(), "text/plain": "<Figure>"})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder whose pages have figures, wide tables, long lines, colours, code, warnings and one failed cell."""
    out = tmp_path_factory.mktemp("run")
    number = {"value": 0.9, "low": 0.8, "high": 0.95}
    names = ("auc", "accuracy", "real_accuracy", "fake_accuracy", "tpr_at_fpr_5", "balanced_accuracy", "ece")
    test = {name: number | {"value": 0.85 + 0.01 * place} for place, name in enumerate(names)}
    stages = {stage: {"test": test} for stage in ("stage1", "stage2")}
    audit = {stage: {"auc": number, "warning": "The files give it away."} for stage in stages}
    (out / "metrics.json").write_text(json.dumps(stages | {"audit": audit, "notes": ["A note."]}))
    entries = {stem: {"status": "finished", "seconds": 1, "parameters": {}, "error": None} for stem in STEMS}
    record = {"data": "data/" + "long" * 30, "profile": "demo", "notebooks": entries}
    (out / "config.json").write_text(json.dumps(record))
    table = pd.DataFrame(np.ones((4, 16)), columns=[f"a_long_column_{i}" for i in range(16)])
    outputs = [
        new_output(
            "stream", name="stdout", text="word " * 60 + "\nunbroken" * 3 + "x" * 300 + "\n\x1b[31mred\x1b[0m\n"
        ),
        new_output("stream", name="stderr", text="a warning\n"),
        new_output("execute_result", data={"text/html": table.to_html(), "text/plain": ""}),
        new_output("execute_result", data={"text/html": table.style.to_html(), "text/plain": ""}),
        new_output("execute_result", data={"text/plain": "Config(\n" + "    field=1,\n" * 60 + ")"}),
    ]
    figures = [new_code_cell(source, outputs=[displayed(draw())]) for source, draw in FIGURES.items()]
    for stem in STEMS:
        cells = [
            new_markdown_cell(
                f"# {stem} · Does it *fit*?\n\nReads `x`, [a link](index.html).\n\n| a | b |\n|-|-|\n| 1 | 2 |"
            ),
            new_markdown_cell("## Results\n\n### Part\n\n" + "Some words of it. " * 40),
            new_code_cell("import this  # a comment\nx = {'a': 1.0}", outputs=outputs),
            new_markdown_cell("## Results\n\nLook at the picture."),
            *figures,
            new_markdown_cell("## End\n\n- **Learnt:** this.\n- **Not shown:** `that`."),
        ]
        nbformat.write(new_notebook(cells=cells), out / f"{stem}.ipynb")
        html.export(out / f"{stem}.ipynb", {"cell": 3, "text": "ValueError: no"} if stem == STEMS[-1] else None)
    html.write_index(out)
    fabricate(out)
    return out


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium; skipped with what to install where it is not there."""
    api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install -e '.[dev]'")
    if not CHROMIUM:
        pytest.skip("needs Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        sandbox = [] if os.getuid() else ["--no-sandbox"]  # Chromium refuses to run as root with one
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def opened(browser, run):
    """Opens a page of the run at a size and in a colour scheme: what was found, requests and console messages."""

    def look(stem, width=1280, height=900, scheme="light", media="screen", code=False):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        page, asked, said = context.new_page(), [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto((run / f"{stem}.html").as_uri())
        if code and page.locator("#show-code").count():
            page.check("#show-code")
        page.emulate_media(media=media, color_scheme=scheme)
        found = page.evaluate(FAULTS)
        found |= {"asked": [url for url in asked[1:] if not url.startswith("data:")], "said": said}
        if media == "print":
            found["pdf"] = page.pdf(format="A4")
        context.close()
        return found

    return look


@pytest.mark.parametrize("stem", PAGES)
def test_a_page_asks_for_nothing_and_describes_its_images(opened, stem):
    found = opened(stem)
    assert found["asked"] == [] and found["said"] == []
    assert len(found["alts"]) == (0 if stem in WHOLE else len(FIGURES))
    assert all(text.startswith("Results: ") and len(text) > 25 for text in found["alts"])
    assert found["overflow"] <= 0 and found["lost"] == []
    assert found["contents"] == ([] if stem in WHOLE else ["contents beside"])
    assert found["links"] == (0 if stem in WHOLE else 4)


def test_the_table_of_all_metrics_sorts_by_each_column(browser, run):
    page = browser.new_page()
    page.goto((run / "index.html").as_uri())
    page.locator("summary").click()
    rows = page.locator("table.sortable tbody tr")
    for name, column, kind in (("Value", 2, float), ("Metric", 1, str)):
        for order in ("ascending", "descending"):
            page.get_by_role("button", name=name).press("Enter")
            shown = [kind(row.locator("th, td").nth(column).inner_text()) for row in rows.all()]
            assert shown == sorted(shown, reverse=order == "descending") and len(set(shown)) > 1
            assert page.locator(f"th[aria-sort={order}]").inner_text().startswith(name)
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("stem", [STEMS[0], STEMS[-1], "index", SWEEP])
def test_a_page_fits_a_phone_and_can_be_read_by_day_and_night(opened, stem, scheme):
    found = opened(stem, 390, 844, scheme, code=True)
    assert found["overflow"] <= 0
    assert found["contents"] == ([] if stem in WHOLE else ["contents inline"])
    assert found["texts"] > 20 and found["faint"] == []
    assert (found["page"] < 0.05) == (scheme == "dark")
    assert all(card > 0.9 for card in found["cards"])


@pytest.mark.parametrize("stem", [STEMS[0], "index", SWEEP])
def test_a_page_prints_without_cutting_figures_or_tables(opened, stem):
    found = opened(stem, *PRINTABLE, scheme="dark", media="print", code=True)
    assert found["pdf"].startswith(b"%PDF") and found["page"] > 0.9
    assert set(found["breaks"]) <= {"avoid"} and max(found["heights"], default=0) < PRINTABLE[1]
    assert max(found["rights"]) <= PRINTABLE[0] + 1 and found["faint"] == []
