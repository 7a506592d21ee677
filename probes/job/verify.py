"""What a stranger can check of a run: its files against its manifest, its report against its tables, its models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from probes.errors import RunError
from probes.reporting.chapter import chapters_of
from probes.reporting.in_short import verdicts_of
from probes.reporting.report import report_page
from probes.reporting.same_page import page_differences
from probes.store import remote
from probes.store.digests import FILES, OWN, digest_of, file_digest, sizes_of
from probes.store.journal import JOURNAL, digest, journal_of
from probes.store.manifest import MANIFEST, read_manifest
from probes.store.prompts import prompt_digest, prompts_of
from probes.store.remote import Place, place_of
from probes.store.run import Run, load
from probes.store.schemas import BITS, NAME, PARTITIONS, SCHEMA_VERSION, SCHEMAS, TEXT
from probes.store.verdict import VERDICT
from tv.errors import InputError, first_line
from tv.runtime.progress import Progress, ProgressOption, reporting

_REPORT = "report.html"
#: What later commands keep in a run beside its tables: it is in no manifest.
_BESIDE = ("features/", "experiments/")
_MB = 2**20


@dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Attributes:
        name: "manifest", "journal", "files", "tables", "prompts", "report" or "models".
        passes: Whether it is as it should be; None where that cannot be told.
        said: What was found, in a line.

    Examples:
        >>> [check.name for check in probes.verify("reports/demo").checks if check.passes is False]
        []
    """

    name: str
    passes: bool | None
    said: str


@dataclass(frozen=True)
class RunVerified:
    """What `probes.verify` found.

    Attributes:
        checks: One or more of each kind; what fails has a line for each thing.
        digest: The manifest's SHA-256, which stands for the whole run: who has had it from elsewhere compares it.

    Examples:
        >>> verified = probes.verify("reports/demo")
        >>> verified.passes, len(verified.digest)
        (True, 64)
    """

    checks: tuple[Check, ...]
    digest: str

    @property
    def passes(self) -> bool | None:
        """Whether all is as it should be; None where nothing fails and something cannot be told."""
        found = {check.passes for check in self.checks}
        return False if False in found else None if None in found else True


def verify(
    run: str | Path | Run, *, models: bool = False, digest: str | None = None, progress: ProgressOption = None
) -> RunVerified:
    """Check a run as one who trusts nobody: digests, tables, prompts, and that the report's numbers are the tables'.

    A manifest can be written anew by whoever edits the rest. So compare `digest` with what its maker told you, and have
    the models hashed.

    Args:
        run: A run, its directory or its URL.
        models: Hash the models' weights too, and compare what the run read.
        digest: The manifest's SHA-256 as the run's maker told it.
        progress: Called as files are read; see `Compute.progress`.

    Returns:
        What was checked, and the run's digest.

    Raises:
        RunError: There is no run, or a newer program wrote it.

    Examples:
        >>> probes.verify("reports/demo", digest="0" * 64).passes
        False
    """
    place = run.path if isinstance(run, Run) else place_of(run)
    manifest = read_manifest(place)
    if manifest is None:
        raise RunError(f"{place}: not a run directory (no readable {MANIFEST}); pass what `probes run --out` wrote")
    if manifest["schema_version"] > SCHEMA_VERSION:
        raise RunError(
            f"{place}: a newer version wrote it (schema version {manifest['schema_version']}); update this program"
        )
    own, tell = digest_of(manifest), reporting(progress)
    checks = list(_of_manifest(manifest, own, digest))
    checks += _of_files(place, manifest, tell)
    began = journal_of(place)
    checks += _of_journal(began, manifest)
    try:
        opened = load(place if isinstance(place, Path) else str(place))
    except InputError as error:
        checks.append(Check("tables", False, str(error)))
        checks.append(Check("report", None, "it cannot be compared with tables that are not whole"))
    else:
        checks += _of_tables(opened, tell)
        checks += _held("prompts", _of_prompts(opened, began))
        checks += _held("report", _of_report(opened))
    if models:
        checks += _of_models(manifest, tell)
    return RunVerified(tuple(checks), own)


def _held(part: str, checks: Iterator[Check]) -> list[Check]:
    """The checks; a failed one where the tables were edited so that nothing can be made of them."""
    try:
        return list(checks)
    except OSError:
        raise
    except Exception as error:
        return [Check(part, False, f"it cannot be recreated from these tables: {first_line(error)}")]


def _of_manifest(manifest: Mapping[str, Any], own: str, told: str | None) -> Iterator[Check]:
    said = manifest.get(OWN)
    if told is not None and told.strip().lower() != own:
        yield Check("manifest", False, f"its SHA-256 is {own}, not {told.strip()}, which you gave")
    if said is None:
        yield Check("manifest", None, "it holds no digests, because an older version wrote it: an edit would not show")
    elif said != own:
        yield Check("manifest", False, f"it was edited: its SHA-256 is {own[:12]}…, but it records {str(said)[:12]}…")
    elif told is None or told.strip().lower() == own:
        yield Check("manifest", True, f"its SHA-256 is {own}" + (", as you gave" if told else ""))


def _of_files(place: Place, manifest: Mapping[str, Any], tell: Progress) -> Iterator[Check]:
    """The run's files against the digests in its manifest."""
    there, listed = sizes_of(place), manifest.get(FILES)
    own = (MANIFEST, _REPORT)
    beside = [name for name in there if name.startswith(_BESIDE)]
    if listed is None:
        ours = (*own, *_BESIDE, "tables/", "kept/", "shares/", JOURNAL, VERDICT)
        odd = [name for name in there if not name.startswith(ours)]
        yield from (Check("files", False, f"{name}: does not belong to a run") for name in odd)
        yield Check("files", None, f"{len(there)} files, for which the manifest lists no digests")
        return
    bad = [
        Check("files", False, f"{name}: missing, although the manifest lists it")
        for name in listed
        if name not in there
    ]
    bad += [
        Check("files", False, f"{name}: not listed in the manifest")
        for name in there
        if name not in listed and name not in own and name not in beside
    ]
    names = [name for name in listed if name in there]
    told = _told(tell, "hash files", sum(there[name] for name in names))
    for name in names:
        if file_digest(place / name, told) != listed[name]:
            bad.append(
                Check("files", False, f"{name}: its content does not match the manifest: it was edited or replaced")
            )
    yield from bad
    if not bad:
        more = f"; {len(beside)} files of {' and '.join(_BESIDE)} are in no manifest" if beside else ""
        yield Check("files", True, f"{len(names)} files have the SHA-256 that the manifest lists{more}")


def _told(tell: Progress, stage: str, total: int) -> Callable[[int], None]:
    """A callback for bytes that were read, as progress in MB."""
    done = 0

    def read(n: int) -> None:
        nonlocal done
        done += n
        tell(stage, min(done, total) // _MB, max(1, total // _MB), "MB")

    return read


def _of_journal(lines: Sequence[Mapping[str, Any]], manifest: Mapping[str, Any]) -> Iterator[Check]:
    """What the run was made of, as its journal began, against its manifest."""
    if not lines:
        yield Check("journal", None, "there is none, so what the run was made of cannot be compared")
        return
    identity, bad = lines[0], []
    if "identity" not in manifest:  # `probes.attribute` takes it away
        yield Check("journal", None, "attribution was measured again, so the run is no longer what its journal began")
    elif manifest["identity"] != digest(identity):
        bad.append("its identity differs from the manifest's: one of the two was edited")
    for key in ("suite", "versions", "computed"):
        if key in identity and key in manifest and identity[key] != json.loads(json.dumps(manifest[key])):
            differing = _first(identity[key], manifest[key])
            bad.append(f"the manifest's {key}{differing} differs from what the run began with")
    for name, fingerprint in identity.get("checkpoints", {}).items():
        if manifest.get("checkpoints", {}).get(name, {}).get("fingerprint") != fingerprint:
            bad.append(f"the manifest's fingerprint of {name} differs from what the run began with")
    yield from (Check("journal", False, line) for line in bad)
    if not bad:
        yield Check("journal", True, "suite, versions and fingerprints in the manifest are those the run began with")


def _first(one: Any, other: Any) -> str:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in one:
            if one[key] != other.get(key):
                return f".{key}"
    return ""


def _of_tables(run: Run, tell: Progress) -> Iterator[Check]:
    """Rows and columns of every table; where the manifest lists no digests, also the checksums inside the files."""
    bad, rows = [], 0
    for done, name in enumerate(run.tables):
        said = int(run.manifest["tables"][name]["rows"])
        try:
            found, odd = _scanned(run, name, reads=FILES not in run.manifest)
        except (InputError, pa.ArrowException, OSError, ValueError) as error:
            bad.append(f"{name}: cannot be read: {first_line(error)}")
            continue
        rows += found
        if found != said:
            bad.append(f"{name}: {found:,} rows, but the manifest says {said:,}")
        if odd:
            bad.append(f"{name}: {odd}")
        tell("tables", done + 1, len(run.tables), name)
    yield from (Check("tables", False, line) for line in bad)
    if not bad:
        yield Check("tables", True, f"{len(run.tables)} tables have the expected rows ({rows:,}) and columns")


def _scanned(run: Run, name: str, reads: bool) -> tuple[int, str]:
    """(rows, what is wrong with its columns)."""
    rows, odd = 0, ""
    known = {field.name: TEXT if field.type == NAME else field.type for field in SCHEMAS[name]}
    for fragment in run.table(name).dataset().get_fragments():
        rows += fragment.count_rows()
        for field in fragment.physical_schema:
            if field.name in PARTITIONS.get(name, ()):
                continue
            kind = TEXT if pa.types.is_dictionary(field.type) else field.type
            kind = BITS if pa.types.is_fixed_size_binary(kind) else kind
            if field.name not in known:
                odd = odd or f"its column {field.name!r} does not belong to this table"
            elif kind != known[field.name] and not _as_good(kind, known[field.name]):
                odd = odd or f"its column {field.name!r} is {kind}, and should be {known[field.name]}"
        if reads:
            fragment.to_table()
    return rows, odd


def _as_good(kind: pa.DataType, known: pa.DataType) -> bool:
    """Whether a type is a version of another that files of a program's earlier versions hold, such as a wider one."""
    groups = (pa.types.is_integer, pa.types.is_floating)
    nested = (pa.types.is_list, pa.types.is_fixed_size_list, pa.types.is_large_string, pa.types.is_binary)
    return any(is_one(kind) and is_one(known) for is_one in groups) or any(is_one(kind) for is_one in nested)


def _of_prompts(run: Run, lines: Sequence[Mapping[str, Any]]) -> Iterator[Check]:
    """The table `prompts` against the hashes of the prompts that the run began with."""
    try:
        began = {name: value for name, value in lines[0]["prompts"]}
    except (ValueError, KeyError, IndexError, TypeError):
        yield Check("prompts", None, "the run does not record which prompts it began with")
        return
    if "prompts" not in run.tables:
        yield Check("prompts", None, "the run has no table of prompts")
        return
    now = {prompt.id: prompt_digest(prompt) for prompt in prompts_of(run)}
    bad = [f"{name}: it was edited" for name in began if name in now and now[name] != began[name]]
    bad += [f"{name}: it is missing" for name in began if name not in now]
    bad += [f"{name}: it was added later" for name in now if name not in began]
    yield from (Check("prompts", False, line) for line in bad)
    if not bad:
        yield Check("prompts", True, f"{len(now)} prompts are those the run began with")


def _of_report(run: Run) -> Iterator[Check]:
    """The report against the one that the tables give."""
    content, chapters = remote.content_of(run.path / _REPORT), chapters_of(run)
    other = remote.content_of(run.path / VERDICT) is not None and run.verdict != verdicts_of(chapters)
    verdict = f"{VERDICT}: it is not what the tables give; write it again with `probes report`"
    if other and content is None:
        yield Check("report", False, verdict)
    if content is None:
        if "report" in run.manifest.get("stages", ["report"]):
            yield Check("report", False, f"{_REPORT}: it is missing; create it again with `probes report`")
        return
    found = page_differences(content.decode("utf-8", errors="replace"), report_page(run, chapters))
    if found.drawn:
        what = ", ".join(found.drawn)
        said = (
            f"{len(found.said)} or more differences, first: {found.said[0]}" if found.said else "its text is the same"
        )
        why = f"another version of this program or of plotly wrote it (its {what} differs), or it was edited"
        yield Check("report", None, f"{why}; {said}; create it again with `probes report` and compare")
        if other:  # another version may put it in other words
            yield Check("report", None, verdict)
        return
    if other:
        yield Check("report", False, verdict)
    yield from (Check("report", False, line) for line in found.said)
    if not found.said:
        yield Check("report", True, "its text and the numbers in its figures match the tables")


def _of_models(manifest: Mapping[str, Any], tell: Progress) -> Iterator[Check]:
    """The models' weights against the fingerprints in the manifest, and the SHA-256 of their files."""
    from tv.checkpoints.opening import open_checkpoint

    base = None
    for name, entry in manifest["checkpoints"].items():
        source, read = str(entry["source"]), entry["fingerprint"]
        try:
            checkpoint = open_checkpoint(source, base=base)
            now = checkpoint.fingerprint()
        except InputError as error:
            yield Check("models", None, f"{name}: {error}")
            continue
        base = base or checkpoint
        differing = [part for part in ("structure", "content") if now[part] != read.get(part)]
        if differing:
            yield Check("models", False, f"{name}: {source} does not hold the weights that the run read")
            continue
        files = list(_weight_files(checkpoint.path, source))
        told = _told(tell, f"hash {name}", sum(file.stat().st_size for file in files))
        hashes = ", ".join(f"{file.name} {file_digest(file, told)}" for file in files)
        yield Check(
            "models", True, f"{name}: {source} has the fingerprint that the run read; SHA-256 of {hashes or 'no file'}"
        )


def _weight_files(path: Path | None, source: str) -> Iterator[Path]:
    """The files that hold the weights of a source."""
    for place in (path, Path(source)):
        if place is not None and place.is_file():
            yield place
            return
        if place is not None and place.is_dir():
            yield from sorted([*place.glob("*.safetensors"), *place.glob("*.gguf")])
            return
