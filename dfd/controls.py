"""The probe's controls and where they stand. What they do is in `dfd.probe`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets

from dfd import fragments, stress
from dfd.clipboard import Paste
from dfd.gallery import Item
from dfd.images import load_rgb

SUFFIXES = ".jpg,.jpeg,.png,.webp,.bmp,.tif,.tiff,.gif"
LABEL = "4.5rem"  # width of the labels left of their controls


class Controls:
    """Every widget of the probe, and `view`, which holds them all."""

    def __init__(self, examples: Sequence[Item], paste: Paste):
        """Make the widgets.

        Args:
            examples: images that get a button each.
            paste: what takes images from the clipboard.
        """
        self.paste = paste
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
                options=stress.options(axis), value=axis.neutral, description=axis.name
            )
            for axis in stress.AXES
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
            gallery.append(widgets.VBox([widgets.HTML(fragments.thumb(load_rgb(item.source), item.name)), take]))
        sliders = widgets.VBox([*self.sliders.values(), self.rest, self.said])
        sliders.layout, self.preview.layout = widgets.Layout(flex="3 1 22rem"), widgets.Layout(flex="2 1 16rem")
        view = widgets.VBox(
            [
                widgets.HTML(fragments.style()),
                _row(self.upload, self.paste, self.path),
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
