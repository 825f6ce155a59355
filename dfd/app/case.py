"""The case: a folder that one can hand over, with a page an image, tables, and hashes of all that went in and came out.

index.html, images/<sha256>.html, thumbs/, verdicts.csv and .json, case.json, case.pdf, and originals/ where asked for.
Pages load nothing but the thumbnails beside them, and run but the index's own script. verdicts.csv is a Journal.
"""

import csv
import hashlib
import io
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from dfd import __version__, config
from dfd.app.metadata import TRUST, plain, sentence
from dfd.core import command_line, explained, now, perceptual_hash, printable, run_lock
from dfd.core.io import TEMPLATES, atomic_write, code, digest, read_json, sha256_of, template, write_json, write_text
from dfd.data.splits import components
from dfd.inference import Detector, Verdict, uses_bfloat16

RECORD, VERDICTS, INDEX, PDF = "case.json", "verdicts.csv", "index.html", "case.pdf"
PACKAGES = ("torch", "torchvision", "timm", "pillow", "numpy")
THUMB_SIDE, PRINTED = 160, 50  # pixels; images whose pages are in the PDF, behind the table of all
COLUMNS = "path sha256 is_fake verdict p_fake log10_lr source candidates crops crop_std outside error".split()


class Journal:
    """A CSV file that grows by one whole line for each image, so that a run can be stopped and gone on with.

    One that exists is a FileExistsError unless `resume`, which leaves out rows of the `paths` asked for (none: of any)
    that were refused or have changed, and a ValueError if other networks or crops wrote it. `done`: SHA-256 by path.
    """

    def __init__(self, path: Path, resume, detector: Detector, about, changed=lambda _: False, begin=lambda: None):
        networks, asked = digest(detector.files, [s.key for s in detector.stages]), about.get("paths")
        crops = f"{about.get('crop_mode')} {about.get('crops')}"
        self.judged_by = {"networks": networks, "threshold": repr(detector.threshold), "crops_asked": crops}
        classes = [f"p_source.{name}" for name in (detector.stage2.classes if detector.stage2 else ())]
        self.path, self.done, before = path, dict[str, str](), path.read_bytes() if path.is_file() else b""
        if before and not resume:
            raise FileExistsError(f"{path} exists; add --resume to go on with it, or take another name")
        whole = before[: before.rfind(b"\n") + 1]  # a run that was killed may have left half a line
        lines = csv.DictReader(io.StringIO(whole.decode("utf-8", "surrogateescape"), newline=""))
        kept = io.StringIO(newline="")
        rows = csv.DictWriter(kept, lines.fieldnames or [*COLUMNS, *classes, *self.judged_by])
        rows.writeheader()
        is_ours = {*COLUMNS, *classes, "networks", "threshold"} <= set(rows.fieldnames)
        if not is_ours or not (whole or kept.getvalue().encode("utf-8", "surrogateescape").startswith(before)):
            raise ValueError(f"{path} was not written by `predict --csv`, and stays as it is; take another name")
        for row in lines:
            if None in row.values() or ((asked is None or row["path"] in asked) and (row["error"] or changed(row))):
                continue  # cut within a name, or asked for again
            if any(row.get(name, value) != value for name, value in self.judged_by.items()):
                raise ValueError(f"{path} was written by other networks, threshold or crops; take another name")
            self.done[row["path"]] = row["sha256"]
            rows.writerow(row)
        begin()  # a case's record, which a refused table leaves alone, tells of the run before its table is touched
        if (content := kept.getvalue().encode("utf-8", "surrogateescape")) != before:
            with atomic_write(path) as draft:
                draft.write_bytes(content)
        self.file = path.open("a", newline="", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
        self.rows = csv.DictWriter(self.file, rows.fieldnames, extrasaction="ignore")

    def write(self, verdict: Verdict) -> None:
        """Add one line, on disk when this returns."""
        values = {n: getattr(verdict, n) for n in COLUMNS} | {"candidates": json.dumps(verdict.candidates or ())}
        shares = {f"p_source.{name}": p for name, p in (verdict.p_source or {}).items()}
        try:
            self.rows.writerow(values | shares | self.judged_by)
            self.file.flush()
            os.stat(self.path)  # else nobody would say that its folder has gone
        except OSError as error:
            with suppress(OSError):  # else it would try again when it is closed, and say less
                self.file.close()
            raise explained(error, self.path) from error


def read_verdicts(path: Path) -> list[Verdict]:
    """The verdicts that a journal holds, in order."""
    verdicts = []
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        for row in csv.DictReader(file):
            shares = {name.removeprefix("p_source."): float(p) for name, p in row.items() if p and "p_source." in name}
            values: dict[str, Any] = {name: row[name] or None for name in COLUMNS}
            values |= {name: float(row[name]) for name in ("p_fake", "log10_lr", "crop_std") if row[name]}
            values |= {"is_fake": row["is_fake"] == "True", "candidates": tuple(json.loads(row["candidates"])) or None}
            values |= {"crops": int(row["crops"]), "p_source": shares or None} if row["crops"] else {}
            verdicts.append(Verdict(row["path"], error=row["error"]) if row["error"] else Verdict(**values))
    return verdicts


class Case:
    """A case that is being made or continued; see `opened`."""

    def __init__(self, folder: Path, detector: Detector, about: Mapping[str, Any]):
        self.folder, self.about, run, stage = folder, about, detector.run, detector.stage1
        made_by = {"name": "the detector that ships with dfd" if run == config.DETECTOR else plain(run),
                   "files": detector.files, "band": stage.band, "threshold": detector.threshold,
                   "temperature": stage.temperature, "likelihood": digest(stage.likelihood),
                   "crops": about.get("crops"), "crop_mode": about.get("crop_mode"), "kind_of_rows": 2}  # fmt: skip
        self.record: dict[str, Any] = read_json(folder / RECORD)
        place = next((run["folder"] for run in self.record.get("runs", ())), os.getcwd())
        relative = (path for path in about.get("paths") or () if os.path.exists(path) and not os.path.isabs(path))
        if place != os.getcwd() and (first := next(relative, None)):
            raise ValueError(f"{folder} was begun in {place}; go on there, or give {first} by its whole path")
        has_ended = "ended" in (self.record.get("runs") or [{}])[-1]
        found = differences(folder, self.record) if "outputs" in self.record else []
        if has_ended and (VERDICTS, "was changed") in found:
            raise ValueError(f"{folder / VERDICTS} was changed behind its last run; bring back a copy, or begin anew")
        if self.record and self.record["detector"] | {"name": ""} != made_by | {"name": ""}:
            known = read_verdicts(folder / VERDICTS) if (folder / VERDICTS).exists() else []
            before = f"{folder} was judged by another detector or threshold, or on other crops"
            if lost := [v.path for v in known if v.path not in (about.get("paths") or ())]:
                remedy = f"go on as its last run did ({self.record['runs'][-1]['command']}), or take another folder"
                raise ValueError(f"{before}, and holds {len(lost)} images more, such as {lost[0]}: name all, {remedy}")
            print(f"{before}: all is judged anew.", file=sys.stderr)
            self.record.pop("outputs", None)  # pages of a run that breaks off are then no changed ones
            write_json(folder / RECORD, self.record)  # before anything goes: where the disk is full all stays
            shutil.rmtree(folder / "images", ignore_errors=True)
            (folder / VERDICTS).unlink(missing_ok=True)
        elif not self.record and any(not name.startswith(".") for name in os.listdir(folder)):
            raise FileExistsError(f"{folder} holds files and is no case; take an empty folder, or a new one")
        for name, what in found:
            if what == "was changed" and name.startswith(("images/", "thumbs/")):
                (folder / name).unlink(missing_ok=True)  # a page is made anew where its image is named
            if has_ended:  # else what differs may be of the run that broke off
                print(f"{folder}: {printable(name)} {what} behind its last run.", file=sys.stderr)
        fresh: Any = {"id": str(uuid.uuid4()), "created": now(), "examiner": None, "runs": []}
        self.record = fresh | {"title": f"Case {folder.resolve().name}"} | self.record | {"detector": made_by}
        self.record |= {name: about[name] for name in ("title", "examiner") if about.get(name)}
        self.record["notes"] = [*dict.fromkeys([*self.record.get("notes", []), *about.get("notes", ())])]
        device = f"{stage.device}, {'bfloat16' if uses_bfloat16(stage.device) else 'float32'}"
        versions = {"dfd": __version__, "code": code(frozenset()), "system": sys.platform, "device": device}
        versions |= {"trust list": sha256_of(os.environ[TRUST])} if os.environ.get(TRUST) else {}
        versions |= {"python": sys.version} | {name: metadata.version(name) for name in PACKAGES}
        where = os.getcwd() if "paths" in about else os.devnull  # uploads lie in no folder
        told = {"started": now(), "command": command_line(sys.orig_argv), "folder": where}
        self.record["runs"].append(told | {"versions": versions, "detector": made_by, "found": found * has_ended})
        self.journal = Journal(folder / VERDICTS, True, detector, about, lambda row: self._is_stale(row, place),
                               lambda: write_json(folder / RECORD, self.record))  # fmt: skip
        for name in ("images", "thumbs", *["originals"] * bool(about.get("with_images"))):
            (folder / name).mkdir(exist_ok=True)

    def page_of(self, sha256: str) -> Path:
        """The page of an image."""
        return self.folder / "images" / f"{sha256[:32]}.html"

    def has(self, path: str) -> bool:
        """Whether the case has a row and a page of this file as it was when the case was opened."""
        return path in self.journal.done and self.page_of(self.journal.done[path]).exists()

    def add(self, examination: Any) -> Verdict:  # an evidence.Examination
        """Take in an image, judged or refused: page, thumbnail, and a row, whose verdict it gives."""
        verdict = replace(examination.verdict, path=examination.verdict.path or examination.name)
        if (image := examination.image) is not None:
            verdict = replace(verdict, sha256=(sha256 := verdict.sha256 or hashlib.sha256(image.tobytes()).hexdigest()))
            (thumb := image.copy()).thumbnail((THUMB_SIDE, THUMB_SIDE))
            with atomic_write(self.folder / "thumbs" / f"{sha256[:32]}.jpg") as draft:
                thumb.save(draft, "JPEG", quality=80)
            from dfd.app.examine import fragment  # here: the evidence behind it takes a second to import

            values = {"article": fragment("article", examination), "name": examination.name}
            if not self.page_of(sha256).exists():  # of a copy: the first one's stays
                write_text(self.page_of(sha256), template("case_image.html.j2").render(**values, **_facts()))
        self.journal.write(verdict)
        return verdict

    def finish(self) -> Path:
        """Write tables, index, PDF, copies if wanted, and the record with its hashes; gives the index."""
        verdicts, folder = read_verdicts(self.folder / VERDICTS), self.folder
        write_json(folder / "verdicts.json", [asdict(verdict) for verdict in verdicts])
        values = {"case": self.record, "rows": self._rows(verdicts), **_facts()}
        write_text(folder / INDEX, (page := template("case.html.j2")).render(**values))
        printed = dict.fromkeys(own for v in verdicts if v.sha256 and (own := self.page_of(v.sha256)).exists())
        found = [re.search(r"<article.*?</article>", path.read_text("utf-8"), re.S) for path in [*printed][:PRINTED]]
        articles = [part[0].replace("<details>", "<details open>") for part in found if part]
        write_pdf(page.render(**values, articles=articles), folder / PDF)
        files = {v.path: Path(self.record["runs"][0]["folder"], v.path) for v in verdicts if v.path}
        sizes = {path: file.stat().st_size for path, file in files.items() if os.path.isfile(file)}
        noted = {(row["path"], row["sha256"]): row for row in self.record.get("inputs", ()) if row["sha256"]}
        rows = [noted.get((v.path, v.sha256)) or {"path": v.path, "sha256": v.sha256 or _hash_of(files[v.path]),
                "bytes": sizes.get(v.path)} for v in verdicts if v.path]  # fmt: skip
        for v in verdicts if self.about.get("with_images") else ():  # those of earlier runs too
            suffix = re.sub(r"[^\w.]", "", Path(v.path or "").suffix)[:10]
            copy = folder / "originals" / f"{(v.sha256 or '')[:32]}{suffix}"
            if v.sha256 and v.path in sizes and _hash_of(copy) != v.sha256 == _hash_of(files[v.path]):
                with atomic_write(copy) as draft:
                    shutil.copyfile(files[v.path], draft)
        self.record |= {"inputs": rows, "outputs": _hashes(folder)}
        self.record["runs"][-1]["ended"] = now()
        write_json(folder / RECORD, self.record)
        return folder / INDEX

    def _is_stale(self, noted: Mapping[str, Any], place: str) -> bool:
        """Whether an image that was judged is there and another one by now, or its page is gone."""
        was, page = noted["sha256"], self.page_of(noted["sha256"])
        return bool(was) and (not page.exists() or _hash_of(Path(place, noted["path"])) not in (None, was))

    def _rows(self, verdicts: list[Verdict]) -> list[dict[str, Any]]:
        """What the index shows of each image; near-duplicates have one group, numbered from 1, and others 0."""
        thumbs = [self.folder / "thumbs" / f"{(v.sha256 or '')[:32]}.jpg" for v in verdicts]
        known = pd.DataFrame({"sha256": [v.sha256 or f"none {place}" for place, v in enumerate(verdicts)]})
        known["phash"] = [perceptual_hash(Image.open(p, formats=("JPEG",))) if p.exists() else None for p in thumbs]
        groups = pd.Series(components(known))
        sizes, firsts = groups.map(groups.value_counts()), ~groups.duplicated()
        numbers = pd.Series(pd.factorize(groups.where(sizes > 1))[0] + 1)
        differs = pd.Series([v.verdict for v in verdicts]).groupby(groups).transform("nunique") > 1
        return [{"verdict": v, "key": path.stem, "group": int(numbers[place]), "alike": int(sizes[place]) - 1,
                 "is_first": bool(firsts[place]), "differs": bool(differs[place]),
                 "has_page": (page := self.page_of(v.sha256 or "")).exists(), "has_thumb": path.exists(),
                 "in_part": page.exists() and b"<li>In part:" in page.read_bytes()}
                for place, (v, path) in enumerate(zip(verdicts, thumbs, strict=True))]  # fmt: skip


@contextmanager
def opened(folder: Path, detector: Detector, about: Mapping[str, Any]) -> Iterator[Case]:
    """Make a case, or go on with one, in a folder for this process alone.

    `about` may hold title, examiner, notes, with_images, crops and crop_mode. A folder with other files is a
    FileExistsError. One of another detector, threshold or crops is judged anew where `paths` names all of it.
    """
    with run_lock(folder), (case := Case(folder, detector, about)).journal.file:
        yield case


def verify(folder: Path) -> tuple[list[str], list[str]]:
    """Hash all that a case's record names: lines of what changed or is missing. No record is a FileNotFoundError."""
    if not {"outputs", "inputs", "runs"} <= set(record := read_json(folder / RECORD)):
        raise FileNotFoundError(f"{folder} holds no finished {RECORD}; `predict --case FOLDER` makes a case")
    wrong, place = [f"{printable(n)} {what}" for n, what in differences(folder, record)], record["runs"][0]["folder"]
    held = [(printable(row["path"]), row["sha256"], _hash_of(Path(place, row["path"]))) for row in record["inputs"]]
    wrong += [f"{path}, an image that was judged, was changed" for path, was, own in held if own and was and own != was]
    return wrong, [f"{path} is not here, or cannot be read" for path, _, own in held if own is None]


def differences(folder: Path, record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Files of a case that are not as its record has them, each with: was changed, is gone or was added."""
    noted, present = record["outputs"], _hashes(folder)
    wrong = [(n, "was changed" if n in present else "is gone") for n in noted if present.get(n) != noted[n]]
    return [*wrong, *((name, "was added") for name in present if name not in noted)]


def write_pdf(html: str, path: Path) -> None:
    """Print a page by Playwright's Chromium, or by WeasyPrint; where neither is there a line says so."""
    path.unlink(missing_ok=True)
    print_html = write_text(path.with_name("." + path.name + ".html"), html)
    try:
        try:
            from playwright.sync_api import sync_playwright

            chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
            with sync_playwright() as playwright:  # whose end closes the browser
                asks_nobody = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND"]
                browser = playwright.chromium.launch(executable_path=chromium, args=asks_nobody)
                tab = browser.new_page(offline=True, java_script_enabled=False)
                tab.goto(print_html.absolute().as_uri())
                options = {"tagged": True, "outline": True, "margin": {"top": "15mm", "bottom": "15mm"}}
                tab.pdf(path=path, format="A4", print_background=True, **options)
        except Exception:  # no package, or no browser
            from weasyprint import HTML  # pyright: ignore

            HTML(filename=str(print_html)).write_pdf(str(path))
    except Exception as error:  # no package, no browser, or one that fails: the case is whole without
        first = error.__context__ if isinstance(error, ImportError) else error  # without WeasyPrint what Chromium said
        why = plain((str(first).strip().splitlines() or [type(first).__name__])[0])
        print(f"No {PDF}: {why}. Playwright with Chromium, or WeasyPrint, makes it (dfd[case]).", file=sys.stderr)
    finally:
        print_html.unlink()


def _hashes(folder: Path) -> dict[str, dict[str, Any]]:
    """Of all files of a case but its record and hidden ones, by name."""
    every = {f.relative_to(folder).as_posix(): f for f in sorted(folder.rglob("*")) if f.is_file() or f.is_symlink()}
    own = {name: f for name, f in every.items() if name != RECORD and "/." not in f"/{name}"}  # nor in a hidden folder
    return {name: {"sha256": _hash_of(f), "bytes": f.lstat().st_size} for name, f in own.items()}


def _hash_of(path: Path) -> str | None:
    """The SHA-256 of an image; None where there is no file, or one that cannot be read."""
    with suppress(OSError):  # a name that is too long for the system is one
        return sha256_of(path) if path.is_file() else None
    return None


def _facts() -> dict[str, Any]:
    """What every page says of itself."""
    style = "".join((TEMPLATES / f"{name}.css").read_text("utf-8") for name in ("style", "examination", "case"))
    return {"style": style, "sentence": sentence, "version": __version__, "written": now()}
