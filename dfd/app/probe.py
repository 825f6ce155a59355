"""The image probe: widgets around examinations, in JupyterLab and Voilà; still HTML where no widget can run."""

import os
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
from IPython.display import HTML

from dfd import config
from dfd.app.case import opened
from dfd.app.evidence import KINDS, Examination, draw, trace
from dfd.app.examine import address, examine_or_refuse, fragment
from dfd.app.metadata import plain, sentence
from dfd.core import HEADLESS, TEMPLATES, ImageError, load_rgb, template
from dfd.data import layouts, manifest, sample
from dfd.inference.detector import Detector

MAX_ITEMS = 50  # images that are kept; the oldest go first
SHEETS = [(TEMPLATES / f"{name}.css").read_text("utf-8") for name in ("examination", "probe")]
STYLE = "<style>.dfd-probe {{\n{}\n}}\n{}</style>".format(*SHEETS)  # both for what has the class dfd-probe only


@dataclass(eq=False)
class Item:
    """One image that somebody gave the probe, and what is known of it so far."""

    name: str  # printable, not escaped
    source: Path | bytes = field(repr=False)
    examination: Examination | None = None

    @property
    def is_judged(self) -> bool:
        """Whether there is an answer, and no refusal."""
        return self.examination is not None and self.examination.image is not None


def probe(cfg: config.Probe) -> widgets.Widget | HTML:
    """The probe of a detector: widgets to look at, or still HTML where `run` executes the notebook."""
    is_run = cfg.model == "run" or (cfg.model == "auto" and HEADLESS in os.environ)
    detector = Detector.load(cfg.out) if is_run else Detector.load()
    print(f"Answers come from {'the run in ' + cfg.out if is_run else 'the detector that ships, see data/detector'}.")
    detector, items = detector.at_fpr(cfg.fpr) if cfg.fpr else detector, examples(cfg)
    if not (cfg.static or HEADLESS in os.environ):
        return Probe(detector, items, Path(cfg.out).resolve() / "probe").view
    articles = []
    for item in items:
        examination = examine_or_refuse(detector, item.source, item.name)
        if examination.image:
            draw(detector, examination)
            deque(trace(detector, examination), maxlen=0)
        articles.append(fragment("article", examination))
    return HTML(f'{STYLE}<div class="dfd-probe static">{"".join(articles)}</div>')


def examples(cfg: config.Probe) -> list[Item]:
    """Test images, evenly drawn from those sorted by class, photos first; else installed photos."""
    names = []
    with suppress(FileNotFoundError, layouts.ManifestError):
        table = manifest.load(cfg.out, cfg.data)
        rows = table[table["split"] == "test"].sort_values(["is_fake", "label", "path"])
        places = np.linspace(0, len(rows), min(cfg.examples, len(rows)), endpoint=False).astype(int)
        names = rows["path"].iloc[places].tolist() if len(rows) else []
    items = [Item(name, Path(cfg.data) / name) for name in names if (Path(cfg.data) / name).is_file()]
    return items or [Item(photo.file, photo.path) for photo in sample.PHOTOS[: cfg.examples]]


class Probe:
    """The widgets and what they do. Slow work is done on a thread, a step at a time; the rest answers at once.

    `_steps` is what is missing, the most urgent first. Each wish begins it anew; the work before ends with its step.
    """

    def __init__(self, detector: Detector, examples: list[Item], folder: Path):
        self.detector, self.folder = detector, folder
        self.items: list[Item] = []
        self.shown: Item | None = None
        self.is_told = True  # by the status, that all were examined
        self.is_wanted = False  # the report
        self.is_filling = False  # what the probe itself selects in the list is no wish
        self.thread, self.turn = ThreadPoolExecutor(1, "dfd probe"), 0
        self.on = on = SimpleNamespace()
        on.status, on.answer, on.evidence, on.metadata = (widgets.HTML() for _ in range(4))
        on.upload = widgets.FileUpload(description="Choose images", accept=",".join(layouts.SUFFIXES), multiple=True)
        on.list = widgets.Select(description="Images", rows=4)
        on.number = widgets.BoundedIntText(1, min=1, description="Number")  # JupyterLab takes a list's arrow keys away
        on.number.observe(lambda change: self.is_filling or self.show(self.items[change.new - 1]), "value")
        on.upload.observe(lambda change: self._uploaded(), "value")
        on.list.observe(lambda change: self.is_filling or self.show(change.new), "value")
        tip = "Write a folder of pages, tables and hashes of all images"
        on.save = widgets.Button(description="Save case", tooltip=tip, icon="save")
        on.save.on_click(lambda button: self.save())
        takes: list[widgets.Widget] = []
        for number, item in enumerate(examples, 1):
            take = widgets.Button(description=f"Example {number}", tooltip=f"Examine {item.name}")
            take.on_click(lambda button, item=item: self.add([replace(item)]))
            takes.append(widgets.VBox([widgets.HTML(fragment("thumb", load_rgb(item.source), item.name)), take]))
        gallery = widgets.HBox(takes).add_class("dfd-row").add_class("examples")
        parts = [on.upload, gallery, on.status, on.list, on.number, on.save, on.answer, on.evidence, on.metadata]
        self.view = widgets.VBox([widgets.HTML(STYLE), *parts]).add_class("dfd-probe")
        self.show(None)
        self._put("status", "", f"No image yet. Choose up to {MAX_ITEMS} files, or take an example.")

    def add(self, items: list[Item]) -> None:
        """Take images in, examine them, and show the first."""
        self.items = (self.items + items)[-MAX_ITEMS:]
        self.is_told = False
        self.show(items[-MAX_ITEMS:][0])

    def show(self, item: Item | None) -> None:
        """Show an image; its examination, its evidence and its grid are made in the background."""
        self.shown = item
        self._fill_list()
        self._show_examination()
        self._begin()

    def save(self) -> None:
        """Save what was examined as a case; no name of an uploaded file is a part of its path."""
        self.is_wanted = True
        self._begin()

    def _begin(self) -> None:
        self.turn += 1
        self.thread.submit(lambda turn: any(turn != self.turn for _ in self._steps()), self.turn)  # until newer work

    def _steps(self) -> Iterator[None]:
        """All that is missing; a yield stands before whatever only the latest work may show."""
        parts = {"examining": self._examine([self.shown] if self.shown else []), "drawing evidence": self._draw(),
                 "examining the others": self._examine(self.items), "stability": self._trace(),
                 "saving": self._save()}  # fmt: skip
        failed = []
        for what, part in parts.items():
            yield
            try:
                yield from part
            except Exception as error:  # told in the end, and the other parts are done
                self.is_wanted &= what != "saving"
                failed.append(f"Failed at {what}: {type(error).__name__}: {plain(error, 400)}")
        yield
        if failed:
            self._put("status", "failed", "; ".join(failed))

    def _draw(self) -> Iterator[None]:
        self._show_examination()  # earlier work may have shown another one since
        if examination := self._judged():
            for kind in KINDS:
                draw(self.detector, examination, kind)
                yield
                self._show_examination()

    def _examine(self, items: list[Item]) -> Iterator[None]:
        for item in [item for item in items if item.examination is None]:
            self._put("status", "working", f"Examining {item.name} …")
            yield
            item.examination = examine_or_refuse(self.detector, item.source, item.name, errors=Exception)
            self._fill_list()
            if item is self.shown:
                self._show_examination()
        if not self.is_told and all(item.examination for item in self.items):
            kind = "done" if all(item.is_judged for item in self.items) else "failed"
            self._put("status", kind, sentence("examined", self.items))
            self.is_told = True

    def _trace(self) -> Iterator[None]:
        if examination := self._judged():
            for is_done in trace(self.detector, examination):
                yield
                if is_done:
                    self._show_examination()

    def _save(self) -> Iterator[None]:
        if not self.is_wanted:
            return
        examinations = [item.examination for item in self.items if item.examination]
        self._put("status", "working", "Drawing what is missing, and writing the case …")
        for examination in examinations:
            yield
            with suppress(Exception):  # what cannot be drawn was told; one that was refused has no image
                draw(self.detector, examination)
        yield
        self.is_wanted = False  # before it is written: who asks meanwhile wants another one
        folder = self.folder / f"case-{datetime.now(UTC):%Y%m%d-%H%M%S}"
        with opened(folder, self.detector, {"title": "Probe: real or generated?"}) as case:
            for examination in examinations:
                case.add(examination)
            case.finish()
        self._put("status", "done", "Saved", Path(shutil.make_archive(str(folder), "zip", folder)))

    def _uploaded(self) -> None:
        if files := self.on.upload.value:
            self.on.upload.value = ()
            self.add([Item(plain(file["name"]) or "image", bytes(file["content"])) for file in files])

    def _put(self, name: str, *values: Any) -> None:
        getattr(self.on, name).value = fragment(name, *values)

    def _show_examination(self) -> None:
        examination = self.shown and self.shown.examination
        self._put("answer", examination, sentence("limits"))
        self._put("metadata", examination and examination.metadata)
        self._put("evidence", self._judged(), True)

    def _judged(self) -> Examination | None:
        return self.shown.examination if self.shown and self.shown.is_judged else None

    def _fill_list(self) -> None:
        self.is_filling = True
        self.on.list.options = [(sentence("line", number, item), item) for number, item in enumerate(self.items, 1)]
        self.on.list.value = self.shown if self.shown in self.items else None
        self.on.number.max = max(1, len(self.items))
        self.on.number.value = 1 + (self.items.index(self.shown) if self.shown in self.items else 0)
        self.on.number.layout.display = None if len(self.items) > 1 else "none"
        self.is_filling = False
        self.on.save.disabled = not any(item.examination for item in self.items)


def browse(rows: pd.DataFrame, by: Sequence[str], order: Sequence[str] = (), shown: int = 24) -> widgets.Widget | HTML:
    """Pictures of the images that rows name by `path`, to filter by some columns and order by others, page by page.

    Paths are relative to attrs["root"]; a row with a `reason` is a file that cannot be used, and has no picture.
    Values of the first column take turns. Where `run` executes the notebook this is still: the first page.
    """
    by = [name for name in by if name in rows and rows[name].nunique() > 1]
    rows = rows.iloc[rows.groupby(by[0], dropna=False).cumcount().argsort(kind="stable")] if by else rows
    root, is_still = rows.attrs["root"], HEADLESS in os.environ

    def page(chosen: pd.DataFrame, first: int = 0) -> str:
        listed = chosen.iloc[first : first + shown].assign(picture="").to_dict("records")
        for row in listed:
            with suppress(ImageError):  # refused, or moved since it was listed
                row["picture"] = address(load_rgb(Path(root, row["path"])), 160, "JPEG")
        values = {"by": by, "order": order, "count": len(chosen), "first": first, "still": is_still}
        return STYLE + template("gallery.html.j2").render(rows=listed, **values)

    def show(change: Any = None) -> None:
        chosen = rows
        for name, choice in filters.items():
            chosen = chosen[(chosen[name].astype(str) == choice.value) | (choice.value == "")]
        if change and change.owner is not number:
            number.value = 1
        number.max = max(1, -(-len(chosen) // shown))
        chosen = chosen.sort_values(ways[sort.value][0], ascending=ways[sort.value][1]) if sort.value else chosen
        view.value = page(chosen, (number.value - 1) * shown)

    if is_still:
        return HTML(page(rows))
    # text boxes with a list: JupyterLab takes the arrow keys away from drop-downs
    box = partial(widgets.Combobox, ensure_option=True, continuous_update=False)
    every = {name: ["", *sorted(map(str, rows[name].dropna().unique()))] for name in by}  # "", or none can be undone
    filters = {name: box(options=options, description=name, placeholder="all") for name, options in every.items()}
    ways = {f"{name}, {way} first": (name, way == "lowest") for name in order for way in ("highest", "lowest")}
    sort = box(options=["", *ways], description="order", placeholder="as listed")
    number, view = widgets.BoundedIntText(1, min=1, description="page"), widgets.HTML()
    controls = widgets.HBox([*filters.values(), sort, number], layout=widgets.Layout(flex_flow="row wrap"))
    for control in controls.children:
        control.observe(show, "value")
    show()
    return widgets.VBox([controls, view], layout=widgets.Layout(max_width="72rem"))
