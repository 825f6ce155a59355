"""The image probe: widgets around an examination, in JupyterLab and Voilà; still HTML where no widget can run."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import ipywidgets as widgets

from dfd import config, evidence, fragments, saved, stress
from dfd.clipboard import Paste
from dfd.controls import Controls
from dfd.credentials import plain
from dfd.examine import Examination, examine, refused
from dfd.gallery import Item, gallery, still
from dfd.images import ImageError
from dfd.inference import Detector
from dfd.jobs import Jobs
from dfd.progress import HEADLESS

if TYPE_CHECKING:
    from IPython.display import HTML

MOST = 50  # images that are kept; the oldest go first
SLOTS = ("live", "evidence", "examine", "curve", "save")  # the most urgent first
TITLES = {"crops": "Scores by place", "residual": "Residual", "spectrum": "Spectrum", "gradcam": "Grad-CAM"}
EMPTY = "No image yet. Choose files, paste one, give a path, or take an example."


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
        self.on = Controls(examples, Paste(self._bytes_given, self._not_given))
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
        self.on.answer.value = fragments.answer(one) if one else fragments.nothing("The answer appears here.")
        self.on.facts.value = fragments.facts(one) if one and not one.verdict.error else ""
        self.on.evidence.value = ""
        self._set_sliders(stress.rest())
        if one and not one.verdict.error:
            item.trial = item.trial or stress.trial(one.image, self.detector.threshold)
            item.trial.now = None
            self._sentence("Move a slider to see whether the answer stands.")
            self.on.preview.value = fragments.picture(stress.small(item.trial.image), "The image as it is", "preview")
            self._draw_evidence(one)
            self.jobs.start("evidence", self._evidence(one))
            self.jobs.start("curve", self._curve(item.trial))
        else:
            self.on.preview.value = fragments.picture(None, "The degraded image appears here.", "preview")
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
        self._set_sliders(stress.rest())
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

    def _curve(self, trial: stress.Trial) -> Iterator[None]:
        for finished in stress.run(self.detector, trial):
            yield
            if finished:
                self._draw_curve()

    def _live(self, trial: stress.Trial, levels: dict[str, float]) -> Iterator[None]:
        self._sentence("Scoring …")
        yield
        verdict, image = stress.at(self.detector, trial.image, levels)
        yield
        trial.now = levels, verdict
        words = stress.words(levels, verdict, trial.base)
        self._sentence(words)
        self.on.preview.value = fragments.picture(stress.small(image), words, "preview")
        self._draw_curve()

    def _save(self) -> Iterator[None]:
        ready = [item for item in self.items if item.examination]
        for number, item in enumerate(ready, 1):
            if not item.examination.verdict.error:
                self._say("working", f"Drawing evidence for the report, {number} of {len(ready)}: {item.name} …")
                yield from self._evidence_for(item)
        self._say("working", "Writing the report …")
        yield
        page, data = saved.write(self.folder, self.detector, [(item.examination, item.trial) for item in ready])
        yield
        self.on.links.value = fragments.saved(page, data)
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

    def _not_given(self, reason: str) -> None:
        self._say("failed", f"Nothing was pasted: {plain(reason)}.")

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
        self.on.status.value = fragments.status(kind, text)

    def _sentence(self, text: str) -> None:
        self.on.said.value = fragments.sentence(text)

    def _draw_evidence(self, one: Examination, waiting: bool = True) -> None:
        left = [title for kind, title in TITLES.items() if kind not in one.pictures and waiting]
        self.on.evidence.value = "" if one.verdict.error else fragments.evidence(one, left)

    def _draw_curve(self) -> None:
        trial = self.shown and self.shown.trial
        if trial and trial.base:
            self.on.curve.value = fragments.picture(stress.png(trial), stress.alt(trial), "curve")
            self.on.summary.value = fragments.sentence(f"{stress.summary(trial)} {stress.CAPTION}")
        else:
            text = "The curve is being computed …" if trial else "The curve of the score appears here."
            self.on.curve.value, self.on.summary.value = fragments.picture(None, text, "curve"), fragments.sentence("")

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
