"""The image probe: widgets around an examination, in JupyterLab and Voilà; still HTML where no widget can run."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ipywidgets as widgets
from IPython.display import HTML

from dfd import config
from dfd.app import page
from dfd.app.evidence import KINDS, draw
from dfd.app.examine import Stability, examine_or_refuse
from dfd.app.metadata import plain, sentence
from dfd.app.page import Item
from dfd.core.images import load_rgb
from dfd.core.runs import HEADLESS
from dfd.inference.detector import Detector

MAX_ITEMS = 50  # images that are kept; the oldest go first
ACCEPTED = ".jpg,.jpeg,.png,.webp,.bmp,.tif,.tiff,.gif"
SLOTS = {  # of Jobs, the most urgent first -> what is said where it fails
    "live": "degrading", "evidence": "drawing evidence", "examine": "examining", "curve": "the curve", "save": "saving",
}  # fmt: skip
BUTTONS = {  # method of the probe -> its button
    "cancel": {"description": "Stop", "tooltip": "Drop the work that goes on", "icon": "stop"},
    "save": {"description": "Save report", "tooltip": "Write a page and JSON of all images", "icon": "save"},
    "empty": {"description": "Clear", "tooltip": "Forget all images", "icon": "trash"},
    "reset": {"description": "Sliders to rest", "tooltip": "Set every slider to no degradation", "icon": "undo"},
}
TEXTS = ("status", "answer", "said", "preview", "curve", "evidence", "metadata")  # widgets that show HTML


class Jobs:
    """Runs one job per slot on one thread, the first slot of the order first, a step at a time.

    A job is a generator: between two steps a job of an earlier slot gets its turn, and a job that was replaced or
    cancelled is not resumed. So a job that yields between computing and showing never shows what is out of date.
    `ended` gets the slot of a job that ends by itself, and its error if it raised one.
    """

    def __init__(self, order: Sequence[str], ended: Callable[[str, Exception | None], None]):
        self.order, self.ended = order, ended
        self.jobs: dict[str, Iterator[None]] = {}
        self.changed, self.is_running = threading.Condition(), False

    def start(self, slot: str, job: Iterator[None]) -> None:
        """Run a job; one that its slot still holds is dropped."""
        with self.changed:
            self.jobs[slot] = job
            if not self.is_running:
                self.is_running = True
                threading.Thread(target=self._run, daemon=True, name="dfd jobs").start()

    def cancel(self, *slots: str) -> list[str]:
        """Drop the jobs of these slots, of all where none is named, and tell which had one; a step that runs ends."""
        with self.changed:
            return [slot for slot in slots or self.order if self.jobs.pop(slot, None)]

    def wait(self, timeout: float | None = None) -> bool:
        """Block until nothing is left to do; tell whether that came before the timeout, in seconds."""
        with self.changed:
            return self.changed.wait_for(lambda: not self.is_running, timeout)

    def _run(self) -> None:
        while True:
            with self.changed:
                if not self.jobs:
                    self.is_running = False
                    return self.changed.notify_all()
                slot = min(self.jobs, key=self.order.index)
                job = self.jobs[slot]
            error = None
            try:
                if next(job, "ended") is None:
                    continue
            except Exception as raised:  # a job's failure is told, and the thread goes on
                error = raised
            with self.changed:
                if is_current := self.jobs.get(slot) is job:
                    del self.jobs[slot]
            if is_current:
                self.ended(slot, error)


def probe(cfg: config.Probe) -> widgets.Widget | HTML:
    """The probe of a run folder's networks: widgets to look at, or still HTML where `run` executes the notebook."""
    detector = Detector.load(cfg.out)
    detector = detector.at_fpr(cfg.fpr) if cfg.fpr else detector
    if cfg.static or HEADLESS in os.environ:
        return HTML(page.still(detector, page.examples(cfg)))
    return Probe(detector, page.examples(cfg), Path(cfg.out).resolve() / "probe").view


def _row(*children: widgets.Widget | list[widgets.Widget], kind: str = "middle") -> widgets.Widget:
    """Widgets beside each other, those of a list one below the other; kind is a class of probe.css."""
    row = widgets.HBox([widgets.VBox(child) if isinstance(child, list) else child for child in children])
    return row.add_class("dfd-row").add_class(kind)


class Probe:
    """The widgets and what they do. Slow work runs in `jobs`, a step at a time; the rest answers at once."""

    def __init__(self, detector: Detector, examples: list[Item], folder: Path):
        self.detector, self.folder = detector, folder
        self.items: list[Item] = []
        self.shown: Item | None = None
        self.is_filling = False  # what the probe itself selects in the list is no wish
        self.jobs = Jobs(list(SLOTS), self._ended)
        self.on = on = SimpleNamespace(**{name: widgets.HTML() for name in TEXTS})
        on.upload = widgets.FileUpload(description="Choose images", accept=ACCEPTED, multiple=True)
        on.list = widgets.Select(description="Images", rows=4)
        on.upload.observe(lambda change: self._uploaded(), "value")
        on.list.observe(lambda change: self.is_filling or self.show(change.new), "value")
        for name, options in BUTTONS.items():
            setattr(on, name, widgets.Button(**options))
            getattr(on, name).on_click(lambda button, name=name: getattr(self, name)())
        self.sliders = {}
        for axis in Stability.axes:
            steps = [("none" if step == axis.neutral else f"{step:g}", step) for step in axis.steps]
            slider = widgets.SelectionSlider(options=steps, value=axis.neutral, description=axis.label)
            slider.observe(lambda change: self._moved(), "value")
            self.sliders[axis.name] = slider
        takes: list[list[widgets.Widget]] = []
        for number, item in enumerate(examples, 1):
            take = widgets.Button(description=f"Example {number}", tooltip=f"Examine {item.name}")
            take.on_click(lambda button, item=item: self.add([replace(item)]))
            takes.append([widgets.HTML(page.fragment("thumb", load_rgb(item.source), item.name)), take])
        heading = widgets.HTML("<h3>Does the answer stand?</h3>")
        parts = [on.upload, _row(*takes, kind="examples"), on.status, on.list]
        parts += [_row(on.cancel, on.save, on.empty), on.answer, heading]
        parts += [_row([*self.sliders.values(), on.reset, on.said], on.preview, kind="top")]
        parts += [on.curve, on.evidence, on.metadata]
        self.view = widgets.VBox([widgets.HTML(page.style()), *parts]).add_class("dfd-probe")
        self.empty()

    def add(self, items: list[Item]) -> None:
        """Take images in and examine them; the first is shown as soon as its verdict is there."""
        if items:
            self.items = (self.items + items)[-MAX_ITEMS:]
            self._fill_list(self.on.list.value)
            self._start("examine", self._examine(items[0]))

    def show(self, item: Item | None) -> None:
        """Show an examined image; its evidence and its curve are drawn in the background."""
        self.shown = item
        self.jobs.cancel("live", "evidence", "curve")
        examination = item and item.examination
        self._put("answer", examination, sentence("limits"))
        self._put("metadata", examination and examination.metadata)
        self._put("preview", None, "The degraded image appears here.")
        self._put("said", "")
        if item and examination and examination.image:
            item.stability = item.stability or Stability(examination.image, self.detector.threshold)
            self._start("evidence", self._draw_evidence(item))
            self._start("curve", self._compute_curve(item.stability))
        self._show_evidence()
        self._put("curve", item and item.stability)
        self.reset()
        self._enable_buttons()

    def cancel(self) -> None:
        """Drop all work that goes on; what is done stays."""
        if slots := self.jobs.cancel():
            self._put("status", "stopped", sentence("stopped", slots, self.items))
            self._show_evidence(is_waiting=False)
        self._enable_buttons()

    def empty(self) -> None:
        """Forget all images and begin anew."""
        self.jobs.cancel()
        self.items = []
        self._fill_list(None)
        self.show(None)
        self._put("status", "", sentence("empty"))

    def save(self) -> None:
        """Save what was examined as a page and as JSON."""
        self._start("save", self._save())

    def reset(self) -> None:
        """Set every slider to no degradation."""
        for axis in Stability.axes:
            self.sliders[axis.name].value = axis.neutral
        self._moved()  # also where none of them did

    def _examine(self, first: Item) -> Iterator[None]:
        began, todo = time.monotonic(), [item for item in self.items if item.examination is None]
        for number, item in enumerate(todo, 1):
            self._put("status", "working", f"Examining {number} of {len(todo)}: {item.name} …")
            yield
            examination = examine_or_refuse(self.detector, item.source, item.name, errors=Exception)
            yield
            item.examination = examination
            if number == 1 or item is first:
                self.show(item)
            self._fill_list(self.shown)
        kind = "done" if all(item.is_judged for item in todo) else "failed"
        self._put("status", kind, sentence("examined", todo, time.monotonic() - began))

    def _draw_evidence(self, item: Item) -> Iterator[None]:
        assert item.examination is not None
        for kind in KINDS:
            yield
            draw(self.detector, item.examination, kind)
            yield
            if item is self.shown:
                self._show_evidence()

    def _compute_curve(self, stability: Stability) -> Iterator[None]:
        for is_done in stability.compute(self.detector):
            yield
            if is_done:
                self._put("curve", stability)

    def _judge_degraded(self, stability: Stability) -> Iterator[None]:
        levels = {operator: slider.value for operator, slider in self.sliders.items()}
        self._put("said", "Scoring …")
        yield
        text, image = stability.move(self.detector, levels)
        yield
        self._put("said", text)
        self._put("preview", image, text)
        self._put("curve", stability)

    def _save(self) -> Iterator[None]:
        for number, item in enumerate(self.items, 1):
            if item.is_judged:
                self._put("status", "working", f"Drawing evidence, {number} of {len(self.items)}: {item.name} …")
                yield from self._draw_evidence(item)
        self._put("status", "working", "Writing the report …")
        yield
        paths = page.save(self.folder, self.detector, self.items)
        yield
        self._put("status", "done", "", self.folder, paths)

    def _uploaded(self) -> None:
        if files := self.on.upload.value:
            self.on.upload.value = ()
            self.add([Item(plain(file["name"]) or "image", bytes(file["content"])) for file in files])

    def _moved(self) -> None:
        if self.shown and self.shown.stability:
            self._start("live", self._judge_degraded(self.shown.stability))

    def _start(self, slot: str, job: Iterator[None]) -> None:
        self.jobs.start(slot, job)
        self._enable_buttons()

    def _ended(self, slot: str, error: Exception | None) -> None:
        if error:
            self._put("status", "failed", f"Failed at {SLOTS[slot]}: {type(error).__name__}: {plain(error, 400)}")
        self._enable_buttons()

    def _put(self, name: str, *values: Any) -> None:
        getattr(self.on, name).value = page.fragment(name, *values)

    def _show_evidence(self, is_waiting: bool = True) -> None:
        examination = self.shown and self.shown.is_judged and self.shown.examination
        missing = [title for kind, (title, _) in KINDS.items() if examination and kind not in examination.pictures]
        self._put("evidence", examination, missing if is_waiting else ())

    def _fill_list(self, chosen: Item | None) -> None:
        self.is_filling = True
        self.on.list.options = [(sentence("line", number, item), item) for number, item in enumerate(self.items, 1)]
        self.on.list.value = chosen if chosen in self.items else None
        self.is_filling = False

    def _enable_buttons(self) -> None:
        self.on.cancel.disabled = not self.jobs.jobs
        self.on.save.disabled = not any(item.examination for item in self.items)
        self.on.empty.disabled = not self.items
        for control in (*self.sliders.values(), self.on.reset):
            control.disabled = not (self.shown and self.shown.stability)
