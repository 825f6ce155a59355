"""The image probe: widgets around an examination, in JupyterLab and Voilà; still HTML where no widget can run."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import ipywidgets as widgets
from IPython.display import HTML

from dfd import config
from dfd.app import page
from dfd.app.evidence import KINDS, Examination, draw
from dfd.app.examine import AT_REST, AXES, Stability, examine, refused
from dfd.app.metadata import plain
from dfd.core.images import ImageError, load_rgb
from dfd.core.runs import HEADLESS
from dfd.data import layouts, manifest, sample
from dfd.inference.detector import Detector

ACCEPTED = ".jpg,.jpeg,.png,.webp,.bmp,.tif,.tiff,.gif"
MAX_ITEMS = 50  # images that are kept; the oldest go first
PREVIEW_SIDE = 384  # pixels; the longer side of the picture beside the sliders
SLOTS = ("live", "evidence", "examine", "curve", "save")  # the most urgent first
EMPTY = "No image yet. Choose files, give a path, or take an example."


class Jobs:
    """Runs one job per slot on one thread, the first slot of the order first, a step at a time.

    A job is a generator: between two steps a job of an earlier slot gets its turn, and a job that was replaced or
    cancelled is not resumed. So a job that yields between computing and showing never shows what is out of date.

    Args:
        order: names of the slots, the most urgent first.
        failed: gets the slot and the error of a job that raised one; that job is dropped.
        idle: called on the thread when nothing is left to do, and not where the last job was cancelled.
    """

    def __init__(self, order: Sequence[str], failed: Callable[[str, Exception], None], idle: Callable[[], None]):
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
            error = None
            try:
                next(job)
                continue
            except StopIteration:
                pass
            except Exception as raised:  # a job's failure is told, and the thread goes on
                error = raised
            with self.changed:
                was_dropped = self.jobs.get(slot) is not job
                if not was_dropped:
                    del self.jobs[slot]
                has_more = bool(self.jobs)
            if error is not None and not was_dropped:
                self.failed(slot, error)
            elif not has_more and not was_dropped:
                self.idle()


@dataclass(eq=False)
class Item:
    """One image that somebody gave, and what is known of it so far."""

    name: str  # printable, not escaped
    source: Path | bytes = field(repr=False)
    examination: Examination | None = None
    stability: Stability | None = None

    @property
    def is_judged(self) -> bool:
        """Whether there is an answer, and no refusal."""
        return self.examination is not None and self.examination.verdict.error is None

    def line(self) -> str:
        """The line in the list."""
        if self.examination is None:
            return f"{self.name}: waiting"
        score = f" ({self.examination.verdict.p_fake:.2f})" if self.is_judged else ""
        return f"{self.name}: {self.examination.headline}{score}"


def gallery(cfg: config.Probe) -> list[Item]:
    """Test images of each class in turn, of different photos where the classes share them; else installed photos."""
    items = []
    try:
        table = manifest.load(cfg.out, cfg.data)
        rows = table[table["split"] == "test"].sort_values("path")
        classes = {label: part["path"].tolist() for label, part in rows.groupby("label")}
        labels = sorted(classes, key=lambda label: (label != config.REAL, label))
        for number in range(cfg.examples):
            paths = classes[labels[number % len(labels)]]
            name = paths[(2 * number + 1) * len(paths) // (2 * cfg.examples)]
            items.append(Item(name, Path(cfg.data) / name))
    except (FileNotFoundError, layouts.ManifestError):
        pass
    items = [item for item in items if item.source.is_file()]
    return items or [Item(photo.file, photo.path) for photo in sample.PHOTOS[: cfg.examples]]


def probe(cfg: config.Probe) -> widgets.Widget | HTML:
    """The probe of a run folder's networks: widgets to look at, or still HTML where `run` executes the notebook.

    Raises:
        FileNotFoundError, ValueError: no checkpoints, or not such; the text says what to do.
    """
    detector = Detector.load(cfg.out)
    detector = detector.at_fpr(cfg.fpr) if cfg.fpr else detector
    items = gallery(cfg)
    if not cfg.static and HEADLESS not in os.environ:
        return Probe(detector, items, Path(cfg.out).resolve() / "probe").view
    parts = []
    for item in items:
        try:
            examination = examine(detector, item.source, item.name)
        except ImageError as error:
            parts.append(page.fragment("answer", refused(item.name, error), page.LIMITS))
            continue
        stability = Stability.of(examination.image, detector.threshold)
        for _ in (*draw(detector, examination), *stability.compute(detector)):
            pass
        examination.pictures["curve"] = stability.picture()
        parts.append(page.fragment("answer", examination, page.LIMITS))
        parts += [page.fragment("evidence", examination, []), page.fragment("facts", examination)]
    return HTML(f'{page.style()}<div class="dfd-probe static">{"".join(parts)}</div>')


class Controls:
    """Every widget of the probe, and `view`, which holds them all; each of the examples gets a button."""

    def __init__(self, examples: Sequence[Item]):
        self.upload = widgets.FileUpload(accept=ACCEPTED, multiple=True, description="Choose images")
        self.upload.tooltip = "Image files from your computer"
        self.path = widgets.Text(description="Path", continuous_update=False)
        self.path.placeholder = "an image or a folder on this machine, then Enter"
        self.stop = widgets.Button(description="Stop", tooltip="Drop the work that goes on", icon="stop")
        self.report = widgets.Button(description="Save report", tooltip="Write a page and JSON of all images")
        self.report.icon = "save"
        self.clear = widgets.Button(description="Clear", tooltip="Forget all images", icon="trash")
        self.rest = widgets.Button(description="Sliders to rest", tooltip="Set every slider to no degradation")
        self.list = widgets.Select(description="Images", rows=4)
        self.status, self.links, self.answer, self.evidence, self.facts = (widgets.HTML() for _ in range(5))
        self.preview, self.curve, self.sentence, self.summary = (widgets.HTML() for _ in range(4))
        self.sliders = {}
        for axis in AXES:
            steps = [("none" if step == axis.neutral else f"{step:g}", step) for step in axis.steps]
            slider = widgets.SelectionSlider(options=steps, value=axis.neutral, description=axis.label)
            self.sliders[axis.name] = slider
        self.takes = []
        for number, item in enumerate(examples, 1):
            take = widgets.Button(description=f"Example {number}", tooltip=f"Examine {item.name}")
            take.layout = widgets.Layout(width="96px", padding="0")
            self.takes.append(take)
        self.view = self._layout(examples)

    def _layout(self, examples: Sequence[Item]) -> widgets.VBox:
        for widget in (self.upload, self.stop, self.report, self.clear, self.rest, self.list, *self.sliders.values()):
            widget.layout.width = "auto"
        for labelled in (self.path, self.list, *self.sliders.values()):
            labelled.style.description_width = "4.5rem"
        self.rest.layout.align_self, self.links.layout.min_height = "flex-start", "36px"
        self.path.layout = widgets.Layout(flex="1 1 20rem", max_width="34rem", width="auto")
        thumbs = []
        for item, take in zip(examples, self.takes, strict=True):
            thumbs.append(widgets.VBox([widgets.HTML(page.thumb(load_rgb(item.source), item.name)), take]))
        sliders = widgets.VBox([*self.sliders.values(), self.rest, self.sentence])
        sliders.layout, self.preview.layout = widgets.Layout(flex="3 1 22rem"), widgets.Layout(flex="2 1 16rem")
        parts = [widgets.HTML(page.style()), _row(self.upload, self.path), _row(*thumbs), self.status, self.list]
        parts += [_row(self.stop, self.report, self.clear), self.links, self.answer]
        parts += [widgets.HTML("<h3>Does the answer stand?</h3>"), _row(sliders, self.preview, kind="top")]
        view = widgets.VBox([*parts, self.curve, self.summary, self.evidence, self.facts])
        view.add_class("dfd-probe")
        return view


def _row(*children: widgets.Widget, kind: str = "middle") -> widgets.HBox:
    row = widgets.HBox(children)
    row.add_class("dfd-row")
    row.add_class(kind)
    return row


class Probe:
    """The widgets and what they do. Slow work runs in `jobs`, a step at a time; the rest answers at once."""

    def __init__(self, detector: Detector, examples: list[Item], folder: Path):
        self.detector, self.examples, self.folder = detector, examples, folder
        self.items: list[Item] = []
        self.shown: Item | None = None
        self.is_quiet = False  # values that the probe sets itself are no wishes
        self.jobs = Jobs(SLOTS, self._failed, self._enable_buttons)
        self.on = Controls(examples)
        self.view = self.on.view
        self._watch()
        self.empty()

    def add(self, items: list[Item]) -> None:
        """Take images in and examine them; the first is shown as soon as its verdict is there."""
        if items:
            self.items = (self.items + items)[-MAX_ITEMS:]
            self._fill_list(self.on.list.value)
            self.jobs.start("examine", self._examine(items[0]))
            self._enable_buttons()

    def show(self, item: Item | None) -> None:
        """Show an examined image; its evidence and its curve are drawn in the background."""
        self.shown = item
        self.jobs.cancel("live", "evidence", "curve")
        examination = item and item.examination
        self.on.answer.value = page.fragment("nothing", "The answer appears here.")
        if examination:
            self.on.answer.value = page.fragment("answer", examination, page.LIMITS)
        self.on.facts.value, self.on.evidence.value = "", ""
        self._set_sliders(AT_REST)
        if item and item.is_judged:
            self.on.facts.value = page.fragment("facts", examination)
            item.stability = item.stability or Stability.of(examination.image, self.detector.threshold)
            item.stability.now = None
            self._say_sentence("Move a slider to see whether the answer stands.")
            self._show_preview(item.stability.image, "The image as it is")
            self._show_evidence(examination)
            self.jobs.start("evidence", self._draw_evidence(item))
            self.jobs.start("curve", self._compute_curve(item.stability))
        else:
            self.on.preview.value = page.fragment("picture", None, "The degraded image appears here.", "preview")
        self._show_curve()
        self._enable_buttons()

    def cancel(self) -> None:
        """Drop all work that goes on; what is done stays."""
        if slots := self.jobs.cancel():
            waiting = sum(item.examination is None for item in self.items)
            left = f" {waiting} of {len(self.items)} images wait; Clear forgets them." if waiting else ""
            what = ", ".join(name for name in SLOTS if name in slots)
            self._say("stopped", f"Stopped ({what}). What was done before is kept.{left}")
            if self.shown and self.shown.is_judged:
                self._show_evidence(self.shown.examination, waiting=False)
        self._enable_buttons()

    def empty(self) -> None:
        """Forget all images and begin anew."""
        self.jobs.cancel()
        self.items = []
        self._fill_list(None)
        self.show(None)
        self.on.links.value = ""
        self._say("", EMPTY)

    def save(self) -> None:
        """Save what was examined as a page and as JSON."""
        self.jobs.start("save", self._save())
        self._enable_buttons()

    def reset_sliders(self) -> None:
        """Set every slider to no degradation."""
        self._set_sliders(AT_REST)
        self._moved()

    def _examine(self, first: Item) -> Iterator[None]:
        began, is_first = time.monotonic(), True
        todo = [item for item in self.items if item.examination is None]
        for number, item in enumerate(todo, 1):
            self._say("working", f"Examining {number} of {len(todo)}: {item.name} …")
            yield
            try:
                examination = examine(self.detector, item.source, item.name)
            except Exception as error:  # of one image; the others shall be answered
                examination = refused(item.name, _reason(error, item))
            yield
            item.examination = examination
            self._fill_list(item if is_first or item is first else self.shown)
            if is_first or item is first:
                self.show(item)
            is_first = False
        bad = [item for item in todo if not item.is_judged]
        took = f"{len(todo)} {'image' if len(todo) == 1 else 'images'} in {time.monotonic() - began:.1f} s"
        if not bad:
            self._say("done", f"Examined {took}.")
        else:
            reasons = "; ".join(f"{item.name}: {item.examination.verdict.error.rstrip('.')}" for item in bad[:3])
            more = "" if len(bad) <= 3 else f"; and {len(bad) - 3} more"
            self._say("failed", f"Examined {took}; {len(bad)} refused. {reasons}{more}.")

    def _draw_evidence(self, item: Item) -> Iterator[None]:
        for kind in KINDS:
            if kind not in item.examination.pictures:
                yield
                next(draw(self.detector, item.examination, [kind]))
                yield
                if item is self.shown:
                    self._show_evidence(item.examination)

    def _compute_curve(self, stability: Stability) -> Iterator[None]:
        for is_done in stability.compute(self.detector):
            yield
            if is_done:
                self._show_curve()

    def _judge_degraded(self, stability: Stability, levels: dict[str, float]) -> Iterator[None]:
        self._say_sentence("Scoring …")
        yield
        verdict, image = stability.judge_at(self.detector, levels)
        yield
        stability.now = levels, verdict
        sentence = stability.sentence(levels, verdict)
        self._say_sentence(sentence)
        self._show_preview(image, sentence)
        self._show_curve()

    def _save(self) -> Iterator[None]:
        ready = [item for item in self.items if item.examination]
        for number, item in enumerate(ready, 1):
            if item.is_judged:
                self._say("working", f"Drawing evidence for the report, {number} of {len(ready)}: {item.name} …")
                yield from self._draw_evidence(item)
        self._say("working", "Writing the report …")
        yield
        paths = page.save(self.folder, self.detector, [(item.examination, item.stability) for item in ready])
        yield
        links = []
        for path, mime in zip(paths, ("text/html", "application/json"), strict=True):
            links.append({"name": path.name, "source": page.data_address(path.read_bytes(), mime)})
        self.on.links.value = page.fragment("saved", *links, str(self.folder))
        self._say("done", f"Saved {paths[0]} and {paths[1].name}.")

    def _moved(self) -> None:
        if self.shown and self.shown.stability:
            levels = {operator: slider.value for operator, slider in self.on.sliders.items()}
            self.jobs.start("live", self._judge_degraded(self.shown.stability, levels))
            self._enable_buttons()

    def _uploaded(self) -> None:
        if files := self.on.upload.value:
            self.on.upload.value = ()
            self.add([Item(plain(file["name"]) or "image", bytes(file["content"])) for file in files])

    def _path_given(self) -> None:
        text, self.on.path.value = self.on.path.value.strip().strip("\"'"), ""
        if not text:
            return
        try:
            path = config.resolve(text)
            files = [path]
            if path.is_dir():
                files = sorted(file for file in path.iterdir() if file.is_file())[:MAX_ITEMS]
        except (OSError, ValueError, RuntimeError) as error:
            self._say("failed", f"{plain(text)} cannot be read: {plain(error)}")
            return
        if files:
            self.add([Item(plain(file.name), file) for file in files])
        else:
            self._say("failed", f"The folder {plain(text)} holds no file.")

    def _failed(self, slot: str, error: Exception) -> None:
        what = {"examine": "examining", "live": "degrading", "curve": "the curve", "save": "saving"}.get(slot, slot)
        self._say("failed", f"Failed at {what}: {type(error).__name__}: {plain(error, 400)}")
        self._enable_buttons()

    def _say(self, kind: str, text: str) -> None:
        self.on.status.value = page.fragment("status", kind, text)

    def _say_sentence(self, text: str) -> None:
        self.on.sentence.value = page.fragment("sentence", text)

    def _show_preview(self, image, alt: str) -> None:
        png = page.encoded(page.smaller(image, PREVIEW_SIDE))
        self.on.preview.value = page.fragment("picture", page.data_address(png), alt, "preview")

    def _show_evidence(self, examination: Examination, waiting: bool = True) -> None:
        left = [title for kind, (title, _) in KINDS.items() if waiting and kind not in examination.pictures]
        self.on.evidence.value = page.fragment("evidence", examination, left)

    def _show_curve(self) -> None:
        stability = self.shown and self.shown.stability
        if stability and stability.base:
            png, alt = page.data_address(stability.png()), stability.alt()
            summary = f"{stability.summary()} {stability.CAPTION}"
        else:
            alt = "The curve is being computed …" if stability else "The curve of the score appears here."
            png, summary = None, ""
        self.on.curve.value = page.fragment("picture", png, alt, "curve")
        self.on.summary.value = page.fragment("sentence", summary)

    def _set_sliders(self, levels: dict[str, float]) -> None:
        self.is_quiet = True
        for operator, slider in self.on.sliders.items():
            slider.value = levels[operator]
        self.is_quiet = False
        self._say_sentence("")

    def _fill_list(self, chosen: Item | None) -> None:
        self.is_quiet = True
        self.on.list.options = [(f"{number}. {item.line()}", item) for number, item in enumerate(self.items, 1)]
        self.on.list.value = chosen if chosen in self.items else None
        self.is_quiet = False

    def _enable_buttons(self) -> None:
        self.on.stop.disabled = not self.jobs.jobs
        self.on.report.disabled = not any(item.examination for item in self.items)
        self.on.clear.disabled = not self.items
        for control in (*self.on.sliders.values(), self.on.rest):
            control.disabled = not (self.shown and self.shown.stability)

    def _watch(self) -> None:
        self.on.upload.observe(lambda change: self._uploaded(), "value")
        self.on.path.observe(lambda change: self._path_given(), "value")
        self.on.list.observe(lambda change: self.is_quiet or self.show(change.new), "value")
        acts = {self.on.stop: self.cancel, self.on.report: self.save}
        acts |= {self.on.clear: self.empty, self.on.rest: self.reset_sliders}
        for button, act in acts.items():
            button.on_click(lambda button, act=act: act())
        for button, item in zip(self.on.takes, self.examples, strict=True):
            button.on_click(lambda button, item=item: self.add([Item(item.name, item.source)]))
        for slider in self.on.sliders.values():
            slider.observe(lambda change: self.is_quiet or self._moved(), "value")


def _reason(error: Exception, item: Item) -> str:
    """Why an image got no answer; the name stands beside it anyway."""
    if isinstance(error, ImageError):
        return str(error).removeprefix(f"{item.source}: ").removeprefix("the given bytes: ")
    return f"it could not be examined: {type(error).__name__}: {error}"
