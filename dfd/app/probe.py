"""Slow work in steps on one thread of its own, so that a page of widgets stays alive and work can be dropped."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from dfd import config
from dfd.app import evidence, examine
from dfd.app import page as page_module
from dfd.app.evidence import Examination
from dfd.app.examine import examine, refused
from dfd.app.metadata import plain
from dfd.core.images import ImageError, load_rgb
from dfd.core.runs import HEADLESS
from dfd.data import layouts, manifest, sample
from dfd.inference.detector import Detector

if TYPE_CHECKING:
    from IPython.display import HTML


class Jobs:
    """Runs one job per slot, the first slot of the order first, a step at a time.

    A job is a generator: between two steps a job of an earlier slot gets its turn, and a job that was replaced or
    cancelled is not resumed. So a job that yields between computing and showing never shows what is out of date.
    """

    def __init__(self, order: Sequence[str], failed: Callable[[str, Exception], None], idle: Callable[[], None]):
        """Jobs that run in the slots of `order`.

        Args:
            order: names of the slots, the most urgent first.
            failed: gets the slot and the error of a job that raised one; that job is dropped.
            idle: called on the thread when nothing is left to do, and not where the last job was cancelled.
        """
        self.order, self.failed, self.idle = order, failed, idle
        self.jobs: dict[str, Iterator[None]] = {}
        self.thread: threading.Thread | None = None
        self.changed = threading.Condition()

    def start(self, slot: str, job: Iterator[None]) -> None:
        """Run a job; one that its slot still holds is dropped."""
        if slot not in self.order:
            raise ValueError(f"no slot {slot!r}; there are: {', '.join(self.order)}")
        with self.changed:
            self.jobs[slot] = job
            if self.thread is None:
                self.thread = threading.Thread(target=self._run, daemon=True, name="dfd jobs")
                self.thread.start()

    def cancel(self, *slots: str) -> set[str]:
        """Drop the jobs of these slots, of all where none is named, and tell which had one.

        The step that is running ends, but what comes after it does not happen.
        """
        with self.changed:
            return {slot for slot in slots or self.order if self.jobs.pop(slot, None) is not None}

    def has(self, *slots: str) -> bool:
        """Whether one of these slots has work left."""
        return any(slot in self.jobs for slot in slots)

    def wait(self, timeout: float | None = None) -> bool:
        """Block until nothing is left to do, and tell whether that came before the timeout, in seconds."""
        with self.changed:
            return self.changed.wait_for(lambda: self.thread is None, timeout)

    def _run(self) -> None:
        while True:
            with self.changed:
                slot = next((name for name in self.order if name in self.jobs), None)
                if slot is None:
                    self.thread = None
                    self.changed.notify_all()
                    return
                job = self.jobs[slot]
            try:
                next(job)
                continue
            except StopIteration:
                error = None
            except Exception as raised:  # a job's failure is told, and the thread goes on
                error = raised
            with self.changed:
                dropped = self.jobs.get(slot) is not job
                if not dropped:
                    del self.jobs[slot]
                left = bool(self.jobs)
            if error is not None and not dropped:
                self.failed(slot, error)
            elif not left and not dropped:
                self.idle()


@dataclass(eq=False)
class Item:
    """One image that somebody gave, and what is known of it so far."""

    name: str  # printable, not escaped
    source: Path | bytes = field(repr=False)
    examination: Examination | None = None
    trial: examine.Trial | None = None

    def says(self) -> str:
        """The line in the list."""
        verdict = self.examination and self.examination.verdict
        score = "" if not verdict or verdict.error else f" ({verdict.p_fake:.2f})"
        return f"{self.name}: {self.examination.headline if verdict else 'waiting'}{score}"


def gallery(cfg: config.Probe) -> list[Item]:
    """Test images of each class in turn, of different photos where the classes share them; else installed photos."""
    try:
        table = manifest.load(cfg.out, cfg.data)
        rows = table[table["split"] == "test"].sort_values("path")
        classes = {label: one["path"].tolist() for label, one in rows.groupby("label")}
        labels = sorted(classes, key=lambda label: (label != "RealPhotos", label))
        names = []
        for number in range(cfg.examples):
            paths = classes[labels[number % len(labels)]]
            names.append(paths[(2 * number + 1) * len(paths) // (2 * cfg.examples)])
        found = [Item(name, Path(cfg.data) / name) for name in names]
    except (FileNotFoundError, layouts.ManifestError):
        found = []
    found = [item for item in found if item.source.is_file()]
    return found or [Item(photo.file, photo.path) for photo in sample.PHOTOS[: cfg.examples]]


def still(detector: Detector, items: Iterable[Item]) -> HTML:
    """The examples' verdicts, evidence and curves as HTML without widgets."""
    from IPython.display import HTML

    parts = []
    for item in items:
        try:
            one = examine(detector, item.source, item.name)
        except ImageError as error:
            parts.append(page_module.answer(refused(item.name, error)))
            continue
        list(evidence.draw(detector, one))
        attempt = examine.trial(one.image, detector.threshold)
        list(examine.run(detector, attempt))
        one.pictures["curve"] = examine.picture(attempt)
        parts += [page_module.answer(one), page_module.evidence(one), page_module.facts(one)]
    return HTML(f'{page_module.style()}<div class="dfd-probe static">{"".join(parts)}</div>')


SUFFIXES = ".jpg,.jpeg,.png,.webp,.bmp,.tif,.tiff,.gif"
LABEL = "4.5rem"  # width of the labels left of their controls


class Controls:
    """Every widget of the probe, and `view`, which holds them all."""

    def __init__(self, examples: Sequence[Item]):
        """Make the widgets.

        Args:
            examples: images that get a button each.
        """
        self.upload = widgets.FileUpload(
            accept=SUFFIXES, multiple=True, description="Choose images", tooltip="Image files from your computer"
        )
        self.path = widgets.Text(
            description="Path", placeholder="an image or a folder on this machine, then Enter", continuous_update=False
        )
        self.takes = [
            _button(f"Example {number}", f"Examine {item.name}", layout=widgets.Layout(width="96px", padding="0"))
            for number, item in enumerate(examples, 1)
        ]
        self.stop = _button("Stop", "Drop the work that goes on", icon="stop")
        self.report = _button("Save report", "Write a page and JSON of all images", icon="save")
        self.clear = _button("Clear", "Forget all images", icon="trash")
        self.rest = _button("Sliders to rest", "Set every slider to no degradation")
        self.list = widgets.Select(description="Images", rows=4)
        self.status, self.links, self.answer, self.evidence, self.facts = (widgets.HTML() for _ in range(5))
        self.preview, self.curve, self.said, self.summary = (widgets.HTML() for _ in range(4))
        self.sliders = {
            axis.operator: widgets.SelectionSlider(
                options=examine.options(axis), value=axis.neutral, description=axis.name
            )
            for axis in examine.AXES
        }
        self.view = self._layout(examples)

    def _layout(self, examples: Sequence[Item]) -> widgets.VBox:
        for button in (self.upload, self.stop, self.report, self.clear, self.rest):
            button.layout.width = "auto"
        self.rest.layout.align_self, self.links.layout.min_height = "flex-start", "36px"
        self.path.layout = widgets.Layout(flex="1 1 20rem", max_width="34rem", width="auto")
        for wide in (self.list, *self.sliders.values()):
            wide.layout.width = "auto"
        for labelled in (self.path, self.list, *self.sliders.values()):
            labelled.style.description_width = LABEL
        gallery = []
        for item, take in zip(examples, self.takes, strict=True):
            gallery.append(widgets.VBox([widgets.HTML(page_module.thumb(load_rgb(item.source), item.name)), take]))
        sliders = widgets.VBox([*self.sliders.values(), self.rest, self.said])
        sliders.layout, self.preview.layout = widgets.Layout(flex="3 1 22rem"), widgets.Layout(flex="2 1 16rem")
        view = widgets.VBox(
            [
                widgets.HTML(page_module.style()),
                _row(self.upload, self.path),
                _row(*gallery),
                self.status,
                self.list,
                _row(self.stop, self.report, self.clear),
                self.links,
                self.answer,
                widgets.HTML("<h3>Does the answer stand?</h3>"),
                _row(sliders, self.preview, kind="top"),
                self.curve,
                self.summary,
                self.evidence,
                self.facts,
            ]
        )
        view.add_class("dfd-probe")
        return view


def _row(*children: widgets.Widget, kind: str = "middle") -> widgets.HBox:
    row = widgets.HBox(children)
    row.add_class("dfd-row")
    row.add_class(kind)
    return row


def _button(text: str, tooltip: str, **options: Any) -> widgets.Button:
    return widgets.Button(description=text, tooltip=tooltip, **options)


MOST = 50  # images that are kept; the oldest go first
SLOTS = ("live", "evidence", "examine", "curve", "save")  # the most urgent first
TITLES = {"crops": "Scores by place", "residual": "Residual", "spectrum": "Spectrum", "gradcam": "Grad-CAM"}
EMPTY = "No image yet. Choose files, give a path, or take an example."


def probe(cfg: config.Probe) -> widgets.Widget | HTML:
    """The probe of a run folder's networks: widgets to look at, or still HTML where `run` executes the notebook.

    Raises:
        FileNotFoundError, ValueError: no checkpoints, or not such; the text says what to do.
    """
    detector = Detector.load(cfg.out)
    detector = detector.at_fpr(cfg.fpr) if cfg.fpr else detector
    chosen = gallery(cfg)
    if cfg.static or HEADLESS in os.environ:
        return still(detector, chosen)
    return Probe(detector, chosen, Path(cfg.out).resolve() / "probe").view


class Probe:
    """The widgets and what they do. Slow work runs in `jobs`, a step at a time; the rest answers at once."""

    def __init__(self, detector: Detector, examples: list[Item], folder: Path):
        self.detector, self.examples, self.folder = detector, examples, folder
        self.items: list[Item] = []
        self.shown: Item | None = None
        self.quiet = False  # values that the probe sets itself are no wishes
        self.jobs = Jobs(SLOTS, self._failed, self._buttons)
        self.on = Controls(examples)
        self.view = self.on.view
        self._watch()
        self.empty()

    def add(self, items: list[Item]) -> None:
        """Take images in and examine them; the first is shown as soon as its verdict is there."""
        if items:
            self.items = (self.items + items)[-MOST:]
            self._fill_list(self.on.list.value)
            self.jobs.start("examine", self._examine(items[0]))
            self._buttons()

    def show(self, item: Item | None) -> None:
        """Show an examined image; its evidence and its curve are drawn in the background."""
        self.shown = item
        self.jobs.cancel("live", "evidence", "curve")
        one = item and item.examination
        self.on.answer.value = page_module.answer(one) if one else page_module.nothing("The answer appears here.")
        self.on.facts.value = page_module.facts(one) if one and not one.verdict.error else ""
        self.on.evidence.value = ""
        self._set_sliders(examine.rest())
        if one and not one.verdict.error:
            item.trial = item.trial or examine.trial(one.image, self.detector.threshold)
            item.trial.now = None
            self._sentence("Move a slider to see whether the answer stands.")
            self.on.preview.value = page_module.picture(
                examine.small(item.trial.image), "The image as it is", "preview"
            )
            self._draw_evidence(one)
            self.jobs.start("evidence", self._evidence(one))
            self.jobs.start("curve", self._curve(item.trial))
        else:
            self.on.preview.value = page_module.picture(None, "The degraded image appears here.", "preview")
        self._draw_curve()
        self._buttons()

    def cancel(self) -> None:
        """Drop all work that goes on; what is done stays."""
        if slots := self.jobs.cancel():
            waiting = sum(item.examination is None for item in self.items)
            left = f" {waiting} of {len(self.items)} images wait; Clear forgets them." if waiting else ""
            what = ", ".join(name for name in SLOTS if name in slots)
            self._say("stopped", f"Stopped ({what}). What was done before is kept.{left}")
            if self.shown and self.shown.examination:
                self._draw_evidence(self.shown.examination, waiting=False)
        self._buttons()

    def empty(self) -> None:
        """Forget all images and begin anew."""
        self.jobs.cancel()
        self.items = []
        self._fill_list(None)
        self.show(None)
        self.on.links.value = ""
        self._say("", EMPTY)

    def write(self) -> None:
        """Save what was examined as a page and as JSON."""
        self.jobs.start("save", self._save())
        self._buttons()

    def unmoved(self) -> None:
        """Set every slider to no degradation."""
        self._set_sliders(examine.rest())
        self._moved()

    def _examine(self, first: Item) -> Iterator[None]:
        began, fresh = time.monotonic(), True
        todo = [item for item in self.items if item.examination is None]
        for number, item in enumerate(todo, 1):
            self._say("working", f"Examining {number} of {len(todo)}: {item.name} …")
            yield
            try:
                found = examine(self.detector, item.source, item.name)
            except Exception as error:  # of one image; the others shall be answered
                found = refused(item.name, _reason(error, item))
            yield
            item.examination = found
            if item is first or fresh:
                self._fill_list(item)
                self.show(item)
                fresh = False
            else:
                self._fill_list(self.shown)
        bad = [item for item in todo if item.examination.verdict.error]
        took = f"{len(todo)} {'image' if len(todo) == 1 else 'images'} in {time.monotonic() - began:.1f} s"
        if not bad:
            self._say("done", f"Examined {took}.")
        else:
            reasons = "; ".join(f"{item.name}: {item.examination.verdict.error.rstrip('.')}" for item in bad[:3])
            more = "" if len(bad) <= 3 else f"; and {len(bad) - 3} more"
            self._say("failed", f"Examined {took}; {len(bad)} refused. {reasons}{more}.")

    def _evidence(self, one: Examination) -> Iterator[None]:
        for kind in TITLES:
            if kind not in one.pictures:
                yield
                list(evidence.draw(self.detector, one, [kind]))
                yield
                self._draw_evidence(one)

    def _curve(self, trial: examine.Trial) -> Iterator[None]:
        for finished in examine.run(self.detector, trial):
            yield
            if finished:
                self._draw_curve()

    def _live(self, trial: examine.Trial, levels: dict[str, float]) -> Iterator[None]:
        self._sentence("Scoring …")
        yield
        verdict, image = examine.at(self.detector, trial.image, levels)
        yield
        trial.now = levels, verdict
        words = examine.words(levels, verdict, trial.base)
        self._sentence(words)
        self.on.preview.value = page_module.picture(examine.small(image), words, "preview")
        self._draw_curve()

    def _save(self) -> Iterator[None]:
        ready = [item for item in self.items if item.examination]
        for number, item in enumerate(ready, 1):
            if not item.examination.verdict.error:
                self._say("working", f"Drawing evidence for the report, {number} of {len(ready)}: {item.name} …")
                yield from self._evidence_for(item)
        self._say("working", "Writing the report …")
        yield
        page, data = page_module.write(self.folder, self.detector, [(item.examination, item.trial) for item in ready])
        yield
        self.on.links.value = page_module.saved(page, data)
        self._say("done", f"Saved {page} and {data.name}.")

    def _evidence_for(self, item: Item) -> Iterator[None]:
        for kind in TITLES:
            if kind not in item.examination.pictures:
                list(evidence.draw(self.detector, item.examination, [kind]))
                yield

    def _moved(self) -> None:
        if self.shown and self.shown.trial:
            levels = {operator: slider.value for operator, slider in self.on.sliders.items()}
            self.jobs.start("live", self._live(self.shown.trial, levels))
            self._buttons()

    def _uploaded(self) -> None:
        if given := self.on.upload.value:
            self.on.upload.value = ()
            self._bytes_given([(one["name"], bytes(one["content"])) for one in given])

    def _bytes_given(self, files: list[tuple[str, bytes]]) -> None:
        self.add([Item(plain(name) or "image", data) for name, data in files])

    def _path_given(self) -> None:
        text, self.on.path.value = self.on.path.value.strip().strip("\"'"), ""
        if not text:
            return
        try:
            path = config.resolve(text)
            files = sorted(one for one in path.iterdir() if one.is_file())[:MOST] if path.is_dir() else [path]
        except (OSError, ValueError, RuntimeError) as error:
            self._say("failed", f"{plain(text)} cannot be read: {plain(error)}")
            return
        if files:
            self.add([Item(plain(one.name), one) for one in files])
        else:
            self._say("failed", f"The folder {plain(text)} holds no file.")

    def _failed(self, slot: str, error: Exception) -> None:
        what = {"examine": "examining", "live": "degrading", "curve": "the curve", "save": "saving"}.get(slot, slot)
        self._say("failed", f"Failed at {what}: {type(error).__name__}: {plain(error, 400)}")
        self._buttons()

    def _say(self, kind: str, text: str) -> None:
        self.on.status.value = page_module.status(kind, text)

    def _sentence(self, text: str) -> None:
        self.on.said.value = page_module.sentence(text)

    def _draw_evidence(self, one: Examination, waiting: bool = True) -> None:
        left = [title for kind, title in TITLES.items() if kind not in one.pictures and waiting]
        self.on.evidence.value = "" if one.verdict.error else page_module.evidence(one, left)

    def _draw_curve(self) -> None:
        trial = self.shown and self.shown.trial
        if trial and trial.base:
            self.on.curve.value = page_module.picture(examine.png(trial), examine.alt(trial), "curve")
            self.on.summary.value = page_module.sentence(f"{examine.summary(trial)} {examine.CAPTION}")
        else:
            text = "The curve is being computed …" if trial else "The curve of the score appears here."
            self.on.curve.value, self.on.summary.value = (
                page_module.picture(None, text, "curve"),
                page_module.sentence(""),
            )

    def _set_sliders(self, levels: dict[str, float]) -> None:
        self.quiet = True
        for operator, slider in self.on.sliders.items():
            slider.value = levels[operator]
        self.quiet = False
        self._sentence("")

    def _fill_list(self, chosen: Item | None) -> None:
        self.quiet = True
        self.on.list.options = [(f"{number}. {item.says()}", item) for number, item in enumerate(self.items, 1)]
        self.on.list.value = chosen if chosen in self.items else None
        self.quiet = False

    def _buttons(self) -> None:
        self.on.stop.disabled = not self.jobs.has(*SLOTS)
        self.on.report.disabled = not any(item.examination for item in self.items)
        self.on.clear.disabled = not self.items
        for control in (*self.on.sliders.values(), self.on.rest):
            control.disabled = not (self.shown and self.shown.trial)

    def _watch(self) -> None:
        self.on.upload.observe(lambda change: self._uploaded(), "value")
        self.on.path.observe(lambda change: self._path_given(), "value")
        self.on.list.observe(lambda change: self.quiet or self.show(change.new), "value")
        acts = {"stop": self.cancel, "report": self.write, "clear": self.empty, "rest": self.unmoved}
        for name, act in acts.items():
            getattr(self.on, name).on_click(lambda button, act=act: act())
        for button, item in zip(self.on.takes, self.examples, strict=True):
            button.on_click(lambda button, item=item: self.add([Item(item.name, item.source)]))
        for slider in self.on.sliders.values():
            slider.observe(lambda change: self.quiet or self._moved(), "value")


def _reason(error: Exception, item: Item) -> str:
    """Why an image got no answer; the name stands beside it anyway."""
    if isinstance(error, ImageError):
        return str(error).removeprefix(f"{item.source}: ").removeprefix("the given bytes: ")
    return f"it could not be examined: {type(error).__name__}: {error}"
