"""A torn, edited or foreign artifact is refused, with the reason, before anything of it runs."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from recreplay.capture import capture
from recreplay.models import ncf
from recreplay.runtime import Runtime, engine
from recreplay.runtime.artifact import (
    CONSTANTS,
    MANIFEST,
    SEAL,
    SELFTEST,
    WEIGHTS,
    check_environment,
    open_artifact,
)
from recreplay.runtime.devices import cpu
from recreplay.runtime.errors import (
    ArtifactCorruptError,
    ArtifactError,
    ArtifactNotFoundError,
    ArtifactVersionError,
    EnvironmentMismatchError,
    ParityError,
)
from recreplay.runtime.manifest import (
    Bucket,
    Manifest,
    OutputParity,
    Package,
    Parity,
    Segment,
    TableView,
)
from recreplay.runtime.plan import plan_from
from recreplay.runtime.processor import instruction_sets
from recreplay.runtime.spec import DTYPES, IdBound, InputSpec, OutputSpec, Slot


@pytest.fixture
def copy(shop_path: Path, tmp_path: Path) -> Path:
    """An artifact that a test may spoil."""
    return Path(shutil.copytree(shop_path, tmp_path / "copy.rr"))


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a refused artifact gets as far as loading packages."""

    def never(*arguments: object) -> None:
        raise AssertionError("a part of the artifact was loaded")

    monkeypatch.setattr(engine, "LaneLoader", never)


def files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file())


def reseal(folder: Path, change: Callable[[dict[str, Any]], None] = lambda data: None) -> None:
    """Edit the manifest and write all digests anew, as somebody who means it would."""
    data = json.loads((folder / MANIFEST).read_text())
    data["files"] = {
        str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in files(folder)
        if f.name not in (MANIFEST, SEAL)
    }
    change(data)
    raw = json.dumps(data).encode()
    (folder / MANIFEST).write_bytes(raw)
    (folder / SEAL).write_text(hashlib.sha256(raw).hexdigest())


def test_an_untouched_or_resealed_copy_loads(copy: Path, shop: Any) -> None:
    request = shop.request(3)
    for _ in range(2):
        with Runtime.load(copy) as runtime:
            np.testing.assert_allclose(
                runtime.run(request)["score"], shop.answer(request)["score"], rtol=1e-4
            )
        reseal(copy)


# Torn


@pytest.mark.usefixtures("nothing_runs")
def test_one_flipped_bit_in_any_file_is_refused(copy: Path) -> None:
    draw = np.random.default_rng(0)
    names = [f.name for f in files(copy)]
    assert {MANIFEST, SEAL, WEIGHTS, SELFTEST} < set(names)
    assert len(names) >= 7  # and the constants, and a segment of each bucket
    for file in files(copy):
        whole = file.read_bytes()
        last = len(whole) - 1
        for position in {0, last // 3, last, *draw.integers(0, last, 5).tolist()}:
            spoiled = bytearray(whole)
            spoiled[position] ^= 1 << int(draw.integers(8))
            file.write_bytes(spoiled)
            with pytest.raises(ArtifactCorruptError) as caught:
                Runtime.load(copy)
            assert file.name in str(caught.value)
            assert str(caught.value).endswith("capture the model again")
        file.write_bytes(whole)
    open_artifact(copy)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("size", [0, 1, -1])
def test_a_truncated_file_is_refused(copy: Path, size: int) -> None:
    for file in files(copy):
        whole = file.read_bytes()
        file.write_bytes(whole[:size])
        with pytest.raises(ArtifactCorruptError, match=file.name):
            Runtime.load(copy)
        file.write_bytes(whole)


@pytest.mark.usefixtures("nothing_runs")
def test_a_lengthened_file_is_refused(copy: Path) -> None:
    for file in files(copy):
        whole = file.read_bytes()
        file.write_bytes(whole + b"\n")
        with pytest.raises(ArtifactCorruptError, match=file.name):
            Runtime.load(copy)
        file.write_bytes(whole)


@pytest.mark.usefixtures("nothing_runs")
def test_a_missing_file_is_refused(copy: Path) -> None:
    for file in files(copy):
        whole = file.read_bytes()
        file.unlink()
        with pytest.raises(ArtifactError, match=file.name):
            Runtime.load(copy)
        file.write_bytes(whole)


@pytest.mark.usefixtures("nothing_runs")
def test_a_folder_in_the_place_of_a_file_is_refused(copy: Path) -> None:
    (copy / WEIGHTS).unlink()
    (copy / WEIGHTS).mkdir()
    with pytest.raises(ArtifactCorruptError, match=r"weights\.safetensors is missing; capture the"):
        Runtime.load(copy)


# Foreign


def test_a_path_without_an_artifact_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "folder").mkdir()
    for name, reason in (
        ("absent", "it is not a directory"),
        ("file", "it is not a directory"),
        ("folder", r"it has no manifest\.json"),
    ):
        message = rf"^no artifact at .*{name}: {reason}; `recreplay capture \.\.\. --out .*{name}`"
        with pytest.raises(ArtifactNotFoundError, match=message):
            Runtime.load(tmp_path / name)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\xff\xfe\x00", r"manifest\.json is not JSON: "),
        (b"[1, 2]", r"manifest\.json is not a manifest of RecReplay$"),
        (b'{"format": "onnx", "version": 1}', r"manifest\.json is not a manifest of RecReplay$"),
        (b'{"format": "recreplay", "version": 18}', r"manifest\.json is incomplete: KeyError"),
    ],
)
def test_a_manifest_of_something_else_is_refused(copy: Path, raw: bytes, message: str) -> None:
    (copy / MANIFEST).write_bytes(raw)
    (copy / SEAL).write_text(hashlib.sha256(raw).hexdigest())
    with pytest.raises(ArtifactCorruptError, match=message):
        Runtime.load(copy)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("version", [1, 0, "2", None])
def test_another_format_version_is_refused(copy: Path, version: Any) -> None:
    reseal(copy, lambda data: data.update(version=version))
    message = rf"copy\.rr has format version {version}; this RecReplay reads version 18; capture"
    with pytest.raises(ArtifactVersionError, match=message):
        Runtime.load(copy)


def test_another_environment_is_refused(copy: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["environment"]["torch"] = "1.0.0"
        data["environment"]["accelerator"] = "abacus"

    reseal(copy, change)
    found = torch.__version__.partition("+")[0]
    message = (
        rf"copy\.rr was captured for another environment \(torch: expected 1\.0\.0, found {found}; "
        r"accelerator: expected abacus, found nothing\); capture the model again here, or load it "
        r"where it was made for$"
    )
    with pytest.raises(EnvironmentMismatchError, match=message):
        Runtime.load(copy)


def _compiled_for(instructions: str, compiler: str) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        data["environment"]["instructions"] = instructions
        for package in data["packages"].values():
            package["compiler"] = compiler

    return change


def test_instructions_that_this_processor_lacks_are_refused(copy: Path) -> None:
    """The first of them would end the process."""
    here = " ".join(instruction_sets())
    reseal(copy, _compiled_for(f"{here} avx_abacus amx_slide", "inductor"))
    message = (
        r"copy\.rr was captured for another environment \(instructions: this processor lacks "
        r"amx_slide, avx_abacus\); capture the model again with processor='x86-64-v3' or "
        r"'x86-64-v4', which any of that level runs, or load it where it was made for$"
    )
    with pytest.raises(EnvironmentMismatchError, match=message):
        Runtime.load(copy)


@pytest.mark.parametrize("instructions", ["", "avx_abacus"])
def test_segments_that_are_not_compiled_run_on_any_processor(copy: Path, instructions: str) -> None:
    reseal(copy, _compiled_for(instructions, "eager"))
    Runtime.load(copy).close()


def test_where_the_system_does_not_say_what_a_processor_has_it_is_tried(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "instruction_sets", list)
    Runtime.load(copy).close()
    reseal(copy, _compiled_for("avx_abacus", "inductor"))
    opened = open_artifact(copy)
    check_environment(opened, cpu.CpuDevice().fingerprint())


def test_an_artifact_names_the_instructions_it_was_compiled_with(shop_path: Path) -> None:
    manifest = json.loads((shop_path / "manifest.json").read_text())
    assert manifest["environment"]["instructions"].split() == instruction_sets()


@pytest.mark.usefixtures("nothing_runs")
def test_an_artifact_of_another_device_is_refused_on_this_one(copy: Path) -> None:
    reseal(copy, lambda data: data.update(device="cuda"))
    message = r"was captured for 'cuda' and cannot run on 'cpu'; capture it again with device='cpu'"
    with pytest.raises(EnvironmentMismatchError, match=message):
        Runtime.load(copy, device="cpu")


# Edited by somebody who seals again


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("inside", ["../outside", "segments/../../outside", "link"])
def test_a_file_outside_of_the_artifact_is_refused(copy: Path, inside: str) -> None:
    outside = copy.parent / "outside"
    outside.write_text("secret")
    digest = hashlib.sha256(b"secret").hexdigest()
    if inside == "link":
        (copy / "link").symlink_to(outside)
    reseal(copy, lambda data: data["files"].update({inside: digest}))
    with pytest.raises(ArtifactCorruptError, match=r"lists a file outside itself: "):
        Runtime.load(copy)


@pytest.mark.usefixtures("nothing_runs")
def test_an_absolute_path_is_refused(copy: Path) -> None:
    outside = copy.parent / "outside"
    outside.write_text("secret")
    digest = hashlib.sha256(b"secret").hexdigest()
    reseal(copy, lambda data: data["files"].update({str(outside): digest}))
    with pytest.raises(ArtifactCorruptError, match="lists a file outside itself"):
        Runtime.load(copy)


@pytest.mark.usefixtures("nothing_runs")
def test_what_would_be_loaded_needs_a_digest(copy: Path) -> None:
    packages = [package.path for package in open_artifact(copy).manifest.packages.values()]
    assert packages
    for name in (WEIGHTS, CONSTANTS, SELFTEST, *packages):

        def forget(data: dict[str, Any], name: str = name) -> None:
            del data["files"][name]

        reseal(copy, forget)
        with pytest.raises(ArtifactCorruptError, match=f"the manifest has no digest of {name}; "):
            Runtime.load(copy)

    def elsewhere(data: dict[str, Any]) -> None:
        next(iter(data["packages"].values()))["path"] = "../outside"

    reseal(copy, elsewhere)
    with pytest.raises(ArtifactCorruptError, match=r"no digest of \.\./outside; "):
        Runtime.load(copy)


@pytest.mark.parametrize("first", [True, False])
def test_what_is_replaced_while_it_is_loaded_is_loaded_again(
    copy: Path, second: Any, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    """By a capture that overwrites it: no part of the one is put together with one of the other."""
    other, path = second
    load = engine.LaneLoader
    calls = []

    def replaced(*given: Any) -> Any:
        calls.append(given)
        if not first:
            loader = load(*given)
        if len(calls) == 1:
            shutil.rmtree(copy)
            shutil.copytree(path, copy)
        return load(*given) if first else loader

    monkeypatch.setattr(engine, "LaneLoader", replaced)
    with Runtime.load(copy) as runtime:
        assert runtime.manifest == open_artifact(path).manifest
        got = runtime.run(other.request(3))
    np.testing.assert_allclose(got["score"], other.answer(other.request(3))["score"], 1e-4)
    assert len(calls) == 2


def test_altered_weights_fail_the_self_test(copy: Path) -> None:
    tensors = load_file(copy / WEIGHTS)
    tensors["top.bias"] = tensors["top.bias"] + 0.01
    save_file(tensors, copy / WEIGHTS)
    reseal(copy)
    message = (
        r"copy\.rr: self-test of bucket 2 failed: output 'vector' differs by 0\.01 from the stored "
        r"answer \(rtol 0\.0001, atol 1e-05\); this machine does not compute what the model was"
    )
    with pytest.raises(ParityError, match=message):
        Runtime.load(copy)


def test_a_failed_self_test_closes_what_was_loaded(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = load_file(copy / SELFTEST)
    stored = {k: v + 1 if k.startswith("8/out/score") else v for k, v in stored.items()}
    save_file(stored, copy / SELFTEST)
    reseal(copy)
    closed = []
    close = Runtime.close

    def note(self: Runtime) -> None:
        closed.append(self)
        close(self)

    monkeypatch.setattr(Runtime, "close", note)
    with pytest.raises(
        ParityError, match=r"self-test of bucket 8 failed: output 'score' differs by 1"
    ):
        Runtime.load(copy)
    assert len(closed) == 1


def test_a_segment_that_calls_something_else_is_refused(copy: Path) -> None:
    segment = next((copy / "segments").iterdir())
    data = json.loads(segment.read_text())
    data["operators"][0][1] = "os.system"
    segment.write_text(json.dumps(data))
    reseal(copy)
    with pytest.raises(ArtifactCorruptError, match=r"^a stored segment calls 'os\.system', which"):
        Runtime.load(copy)


def test_a_segment_that_is_none_is_refused(copy: Path) -> None:
    segment = next((copy / "segments").iterdir())
    segment.write_text('{"inputs": []}')
    reseal(copy)
    with pytest.raises(ArtifactCorruptError, match=rf"{segment.name} is not a stored segment: Key"):
        Runtime.load(copy)


def test_an_unknown_compiler_is_refused(copy: Path) -> None:
    reseal(copy, lambda data: next(iter(data["packages"].values())).update(compiler="gcc"))
    with pytest.raises(ArtifactCorruptError, match=r"made by the unknown segment compiler 'gcc'$"):
        Runtime.load(copy)


@pytest.mark.usefixtures("nothing_runs")
def test_a_plan_without_its_waits_is_refused(tmp_path: Path, shop: Any) -> None:
    from recreplay.capture import capture

    out = tmp_path / "many.rr"
    example = {k: torch.from_numpy(v) for k, v in shop.request(4).items()}
    capture(shop, example, out=out, buckets=[2], strategy="feature", compiler="eager", rewrites=())

    def forget(data: dict[str, Any]) -> None:
        steps = data["buckets"][0]["plan"]["steps"]
        waiting = [step for step in steps if step["waits"]]
        assert waiting
        waiting[-1]["waits"] = []

    reseal(out, forget)
    with pytest.raises(ArtifactCorruptError, match=r"edge '.*' -> '.*' is not ordered: stream"):
        Runtime.load(out)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("field", [f for f in Manifest.__dataclass_fields__ if f != "files"])
def test_a_missing_field_is_refused(copy: Path, field: str) -> None:
    reseal(copy, lambda data: data.pop(field))
    with pytest.raises(ArtifactCorruptError, match=rf"incomplete: KeyError\('{field}'\); capture"):
        Runtime.load(copy)


@pytest.mark.parametrize("value", [None, 7, [7], "seven", {"seven": 7}])
@pytest.mark.parametrize(
    "field", ["environment", "inputs", "bounds", "tables", "packages", "buckets", "parity", "files"]
)
def test_a_field_of_the_wrong_form_is_refused(copy: Path, field: str, value: Any) -> None:
    reseal(copy, lambda data: data.update({field: value}))
    with pytest.raises(ArtifactError):
        Runtime.load(copy)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["buckets"].clear(), r"has buckets \[\] and stored requests for \[.+\]"),
        (lambda data: data["buckets"].reverse(), r"expected ascending sizes of 1 or more"),
        (lambda data: data["buckets"][0].update(size=0), r"has buckets \[0, .*\] and stored"),
        (lambda data: data["parity"].pop(), r"and a request for each; capture the model again$"),
    ],
)
def test_buckets_without_proof_or_order_are_refused(copy: Path, change: Any, message: str) -> None:
    reseal(copy, change)
    with pytest.raises(ArtifactCorruptError, match=message):
        Runtime.load(copy)


@pytest.mark.inductor
def test_a_library_that_the_manifest_does_not_list_is_refused(tmp_path: Path) -> None:
    model = ncf(rows_scale=0.001)
    capture(model, out=tmp_path / "ncf.rr", buckets=[1], compiler="inductor")
    [folder] = [path for path in (tmp_path / "ncf.rr" / "segments").iterdir() if path.is_dir()]
    (folder / "aaa.so").write_bytes(b"not ours")
    with pytest.raises(
        ArtifactCorruptError, match=rf"no digest of segments/{folder.name}/aaa.so; capture the mod"
    ):
        Runtime.load(tmp_path / "ncf.rr")


# The manifest as data

names = st.text(min_size=1, max_size=8)
dtypes = st.sampled_from(sorted(DTYPES))
sizes = st.integers(0, 2**40)
shapes = st.lists(st.integers(0, 999), max_size=3).map(tuple)
slots = st.lists(st.builds(Slot, names, dtypes, shapes, sizes), max_size=3).map(tuple)
several = st.lists(names, max_size=3).map(tuple)
floats = st.floats(0, 1e30, allow_nan=False)
outputs = st.lists(st.builds(OutputParity, names, floats, floats, floats), max_size=2).map(tuple)


@st.composite
def buckets(draw: st.DrawFn) -> Bucket:
    count = draw(st.integers(0, 4))
    streams = [draw(st.integers(0, min(i, 2))) for i in range(count)]
    streams = [sorted(set(streams)).index(s) for s in streams]
    edges = [(i, j) for j in range(count) for i in range(j) if draw(st.booleans())]
    plan = plan_from(draw(names), [f"s{i}" for i in range(count)], streams, edges)
    segments = st.lists(st.builds(Segment, names, names, several, several, several), max_size=3)
    parts = [draw(slots) for _ in range(4)]
    return Bucket(draw(sizes), plan, tuple(draw(segments)), *parts)


manifests = st.builds(
    Manifest,
    model=names,
    device=names,
    strategy=names,
    streams=sizes,
    compiler=names,
    rewrites=several,
    environment=st.dictionaries(names, names, max_size=3),
    inputs=st.lists(st.builds(InputSpec, names, dtypes, shapes), max_size=3).map(tuple),
    outputs=st.lists(st.builds(OutputSpec, names, dtypes, shapes), max_size=3).map(tuple),
    bounds=st.lists(st.builds(IdBound, names, st.none() | sizes, sizes, names), max_size=3).map(
        tuple
    ),
    unchecked=several,
    tables=st.dictionaries(names, st.builds(TableView, names, sizes, sizes), max_size=3),
    packages=st.dictionaries(names, st.builds(Package, names, names), max_size=3),
    buckets=st.lists(buckets(), max_size=2).map(tuple),
    parity=st.lists(
        st.builds(Parity, sizes, sizes, floats, floats, floats, floats, outputs), max_size=2
    ).map(tuple),
    precision=names,
    table_precision=names,
    max_error=st.none() | floats,
    lowered=st.dictionaries(names, names, max_size=3),
    notices=several,
    capture_seconds=floats,
    files=st.dictionaries(names, names, max_size=3),
)


@settings(max_examples=60, deadline=None)
@given(manifest=manifests)
def test_manifests_survive_json(manifest: Manifest) -> None:
    text = json.dumps(manifest.to_json())
    again = Manifest.from_json(json.loads(text))
    assert again == manifest
    assert json.dumps(again.to_json()) == text
