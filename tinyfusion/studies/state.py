"""Which works of a study are complete, which are begun, and which can be carried out next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyfusion.decision import DECISION_FILE, Decision
from tinyfusion.errors import InputError
from tinyfusion.runtime.folder import CONFIG_FILE, LOG_FILE, in_use
from tinyfusion.settings.composed import composed
from tinyfusion.studies.identity import decision_digest, identity
from tinyfusion.studies.records import Record, Records, is_finished, record_of
from tinyfusion.studies.works import CHOICE, Work, typed

RUNS = "runs"
SEED = "seed="


@dataclass(frozen=True)
class Found:
    """What is known of a work.

    Attributes:
        identity: hash of what it does; ``None`` while a work it needs is not complete.
        folder: where it runs, or would.
        record: its record; ``None`` while it is not complete.
        begun: a run of it was begun and has not ended.
        waits: a work that it needs is not complete.
    """

    identity: str | None
    folder: Path
    record: Record | None = None
    begun: bool = False
    waits: bool = False


class StudyState:
    """The works of a study, looked up by what they do: among folders of runs, then records.

    Args:
        root: folder of studies' runs.
        records: records that are known besides.
        folders: further configuration folders (``--config-dir``).
    """

    def __init__(self, root: Path, records: Records, folders: Sequence[Path] = ()) -> None:
        self.root, self.records, self.folders = root, records, folders
        self._configs: dict[tuple[str, ...], dict[str, Any]] = {}
        self._found: dict[Work, Found] = {}

    def look_again(self) -> None:
        """Forget what was found but for runs that had ended: others may have ended since."""
        found = self._found.items()
        self._found = {work: one for work, one in found if is_finished(one.folder) and one.record}

    def find(self, work: Work) -> Found:
        """What is known of a work.

        Raises:
            InputError: its configuration is wrong.
        """
        if work not in self._found:
            self._found[work] = self._look_up(work)
        return self._found[work]

    def _look_up(self, work: Work) -> Found:
        needs = {name: self.find(need) for name, need in work.needs}
        if any(found.record is None for found in needs.values()):
            self.config_of(work)  # refuses a wrong one before anything is run
            return Found(None, self.root / RUNS / work.name, waits=True)
        known = self._identity(work, {name: found.record for name, found in needs.items()})
        folder = self.root / RUNS / f"{known}_{work.name}"
        twins = sorted((self.root / RUNS).glob(f"{known}_*"))
        if twins and folder not in twins:
            folder = twins[0]
        if is_finished(folder):
            record, modules = record_of(folder, known, work.command, work.overrides)
            self.records.add(record, modules)
            return Found(known, folder, record)
        record_there = self.records.get(known)
        return Found(known, folder, record_there, (folder / CONFIG_FILE).is_file())

    def config_of(self, work: Work) -> dict[str, Any]:
        """The configuration of a work, with names for the folders of those it needs.

        Works that differ in their seed alone have the same, and so have those that apply different
        decisions: configurations are composed once.

        Raises:
            InputError: a wrong key or value.
        """
        filled = work.filled({name: f"/{name}" for name, _ in work.needs})
        key = (work.command, *(text for text in filled if not text.startswith(SEED)))
        if key not in self._configs:
            self._configs[key] = composed(work.command, typed(filled), self.folders)
        return self._configs[key]

    def _identity(self, work: Work, needs: dict[str, Record | None]) -> str:
        read = {
            f"/{name}{inside}": digest
            for name, record in needs.items()
            if record is not None
            for inside, digest in _digests(name, record).items()
        }
        (seed,) = (text.removeprefix(SEED) for text in work.overrides if text.startswith(SEED))
        return identity(work.command, self.config_of(work), read, int(seed))

    def places(self, work: Work) -> dict[str, str]:
        """Folders of the works that a work needs, by name; decisions of records are written there.

        Raises:
            InputError: one is known from a record alone, which has not all that is read of it.
        """
        places = {}
        for name, need in work.needs:
            found = self.find(need)
            assert found.record is not None
            if not is_finished(found.folder):
                if name != CHOICE or "kept" not in found.record.decision:
                    raise InputError(f"{need.name}: its folder is not here")
                file = found.folder / DECISION_FILE
                if not file.is_file():
                    Decision.from_dict(dict(found.record.decision)).save(file)
            places[name] = str(found.folder)
        return places

    def lacks_files(self, work: Work) -> list[Work]:
        """Works that are complete by their records, but whose files a work would read."""
        lacking = []
        for name, need in work.needs:
            found = self.find(need)
            if found.record is None or is_finished(found.folder):
                continue
            if name != CHOICE or "kept" not in found.record.decision:
                lacking.append(need)
        return lacking

    def why_pending(self, work: Work) -> str:
        """Why a work is still to be done after its turn, in one line."""
        found = self.find(work)
        lacking = [need for _, need in work.needs if self.find(need).record is None]
        if lacking := lacking or self.lacks_files(work):
            return f"{work.name} waits for {lacking[0].name}"
        if in_use(found.folder):
            return (
                f"{work.name} is being run by another process, in {found.folder}; the same command "
                "reports it once that has ended"
            )
        log = found.folder / LOG_FILE
        return f"{work.name} failed{f'; see {log}' if log.is_file() else ''}"

    def pending(self, works: Iterable[Work]) -> list[Work]:
        """What is still to be done for some works, each once, what comes first before the rest."""
        wanted: dict[str | Work, Work] = {}
        for work in works:
            self._want(work, wanted)
        return sorted(wanted.values(), key=lambda one: one.level)

    def _want(self, work: Work, wanted: dict[str | Work, Work], files: bool = False) -> None:
        found = self.find(work)
        if found.record is not None and not files:
            return
        for _, need in work.needs:
            self._want(need, wanted)
        if not found.waits:
            for need in self.lacks_files(work):
                self._want(need, wanted, files=True)
        wanted.setdefault(found.identity or work, work)


def _digests(name: str, record: Record) -> dict[str, str]:
    """Digests of what a record's work wrote, by the path in its folder."""
    if name == CHOICE:
        # Of a choice of widths the record has no list; the model that it left tells them apart.
        digest = record.outputs.get("pruned", record.identity)
        if "kept" in record.decision:
            digest = decision_digest(Decision.from_dict(dict(record.decision)))
        return {f"/{DECISION_FILE}": digest}
    return {f"/{folder}": digest for folder, digest in record.outputs.items()} | {
        "": record.identity
    }
