"""Files of engines: every one that does not fit is refused by our own checks, with the reason, before TensorRT sees it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from made_engines import edit, engine_file, replace_file
from tensorrt_double import HostGpu, Opener, TrtDouble

from hart_edge.export.build import process
from hart_edge.export.build.shapes import dimension_ranges
from hart_edge.export.build.worker import BuildJob, EngineJob
from hart_edge.runtime import Bundle, BundleError, EngineError, GpuError, HartWarning, InputError, Pipeline, file_hashes
from hart_edge.runtime import pipeline as pipeline_module
from hart_edge.runtime.backends import has_driver
from hart_edge.runtime.files import sha256_of
from hart_edge.runtime.trt import sidecar as sidecar_module
from hart_edge.runtime.trt.cache import CacheKey, cache_path, read_cache, write_cache
from hart_edge.runtime.trt.checks import HEADER, check_header, map_engine
from hart_edge.runtime.trt.log import Log
from hart_edge.runtime.trt.packages import package_for
from hart_edge.runtime.trt.session import Loader, Session
from hart_edge.runtime.trt.sidecar import EngineFacts, engine_folders, find_engines, place_for, read_sidecar

KEY = CacheKey("RTX double", 86, 13020, "1.7.1.116", "abc")


def refused(bundle: Bundle, trt: TrtDouble, open_trt: Opener, message: str, gpu: HostGpu | None = None) -> None:
    backend = open_trt(trt, gpu=gpu)
    with pytest.raises(EngineError, match=message):
        backend.open_engine(bundle.engine("context"), "context")
    assert "Runtime.deserialize_cuda_engine" not in trt.names()


def test_a_truncated_engine(bundle: Bundle, folder: Path, trt: TrtDouble, open_trt: Opener) -> None:
    path = folder / "context.engine"
    path.write_bytes(path.read_bytes()[:-3])
    refused(bundle, trt, open_trt, r"context\.engine has 44 bytes; engines\.json says 47.*build them again")


def test_a_changed_byte(bundle: Bundle, folder: Path, trt: TrtDouble, open_trt: Opener) -> None:
    path = folder / "context.engine"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    refused(bundle, trt, open_trt, r"context\.engine has another SHA-256 than engines\.json says")


def test_a_missing_engine_file(bundle: Bundle, folder: Path, trt: TrtDouble, open_trt: Opener) -> None:
    (folder / "context.engine").unlink()
    refused(bundle, trt, open_trt, r"context\.engine cannot be read: .*No such file")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (engine_file("context", magic=b"ftrt"), "is no TensorRT-RTX engine: it begins with b'ftrt'"),
        (b"vtrt", "is no TensorRT-RTX engine"),
        (engine_file("context") + b"more", "says that it has 47 bytes; it has 51"),
        (engine_file("context", version=(1, 6, 0, 9)), r"was built with TensorRT-RTX 1\.6\.0\.9; installed is 1\.7\.1\.116"),
        (engine_file("context", mask=1 | 8), "was built for SM75, SM89; RTX double has SM86.*--target sm86"),
        (engine_file("context", mask=1 << 20), "was built for no known card"),
    ],
)
def test_a_file_of_another_kind_whatever_the_sidecar_says(
    content: bytes, message: str, bundle: Bundle, folder: Path, trt: TrtDouble, open_trt: Opener
) -> None:
    replace_file(folder, "context", content)
    refused(bundle, trt, open_trt, message)


def test_engines_for_other_cards(bundle: Bundle, folder: Path, trt: TrtDouble, open_trt: Opener) -> None:
    raw = json.loads((folder / "engines.json").read_text())
    (folder / "engines.json").write_text(json.dumps(raw | {"targets": ["sm89", "sm120"]}))
    refused(bundle, trt, open_trt, "are for sm89, sm120; RTX double has sm86.*--target sm86")


def test_engines_of_another_card_of_classic_tensorrt(bundle: Bundle, classic: TrtDouble, open_trt: Opener) -> None:
    backend = open_trt(classic, "tensorrt", HostGpu(90))
    with pytest.raises(EngineError, match=r"were built on a card of SM80; RTX double has SM90.*on this machine"):
        backend.open_engine(bundle.engine("context"), "context")


def test_engines_of_another_bundle(bundle: Bundle, folder: Path, trt: TrtDouble, open_trt: Opener) -> None:
    raw = json.loads((folder / "engines.json").read_text())
    raw["source"]["decoder.onnx"] = "0" * 64
    (folder / "engines.json").write_text(json.dumps(raw))
    refused(bundle, trt, open_trt, r"were built from another bundle: decoder\.onnx differs.*hart-edge build .*--overwrite")


def test_engines_of_another_tensorrt(bundle: Bundle, folder: Path, trt: TrtDouble, open_trt: Opener) -> None:
    trt.__version__ = "1.8.0.1"
    refused(bundle, trt, open_trt, r"were built with TensorRT 1\.7\.1\.116; installed is 1\.8\.0\.1")


def test_a_card_that_tensorrt_rtx_does_not_run_on(trt: TrtDouble, open_trt: Opener) -> None:
    gpu = HostGpu(90, "H100 double")
    with pytest.raises(GpuError, match=r"TensorRT-RTX does not run on H100 double \(SM90\).*--backend tensorrt"):
        open_trt(trt, gpu=gpu)
    assert gpu.closed


def test_other_bindings_than_declared(bundle: Bundle, folder: Path, trt: TrtDouble, open_trt: Opener) -> None:
    facts = json.loads((folder / "engines.json").read_text())["engines"]["context"]
    edit(folder, "context", outputs=facts["outputs"][:-1])
    with pytest.raises(EngineError, match=r"context has other inputs and outputs than engines\.json says"):
        open_trt(trt).open_engine(bundle.engine("context"), "context")


def test_no_engines(bundle: Bundle, folder: Path, trt: TrtDouble, open_trt: Opener) -> None:
    shutil.rmtree(folder)
    refused(bundle, trt, open_trt, r"there are no tensorrt-rtx engines in .*bundled/tensorrt-rtx or .*cache.*Run: hart-edge build")


def test_an_engine_that_was_not_built(bundle: Bundle, folder: Path, trt: TrtDouble, open_trt: Opener) -> None:
    raw = json.loads((folder / "engines.json").read_text())
    del raw["engines"]["context"]
    (folder / "engines.json").write_text(json.dumps(raw))
    refused(bundle, trt, open_trt, "has no engine context")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is malformed: JSONDecodeError"),
        ("[]", "schema 'list'; this hart-edge reads schema 2"),
        ('{"schema": 1}', "schema 1; this"),
        ('{"schema": 2}', "is malformed: KeyError"),
        ('{"schema": 2, "capability": null, "backend": "x", "targets": 3}', "is malformed: TypeError"),
    ],
)
def test_a_damaged_sidecar(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "engines.json").write_text(text)
    with pytest.raises(EngineError, match=message):
        read_sidecar(tmp_path)


def test_a_type_that_numpy_does_not_have(folder: Path) -> None:
    facts = json.loads((folder / "engines.json").read_text())["engines"]["context"]
    edit(folder, "context", inputs=[entry | {"dtype": "float17"} for entry in facts["inputs"]])
    with pytest.raises(EngineError, match="is malformed: TypeError: data type 'float17'"):
        read_sidecar(folder)


@pytest.mark.skipif(has_driver(), reason="needs a machine without an NVIDIA driver: with one, the engine may load")
def test_the_real_tensorrt_says_why_it_does_not_load_an_engine(bundle: Bundle, tmp_path: Path) -> None:
    """A real file through our checks into the real module, which has no driver here."""
    tensorrt_rtx = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx: pip install 'hart-edge[rtx]'")
    job = (EngineJob("context", bundle.engine("context"), tmp_path / "context.engine"),)
    list(process.run(BuildJob("tensorrt-rtx", ("sm86",), dimension_ranges(bundle.spec, 1), job)))
    path, gpu, log = tmp_path / "context.engine", HostGpu(), Log(tensorrt_rtx)
    facts = EngineFacts(path.name, path.stat().st_size, sha256_of(path), (), (), ())
    with map_engine(path, facts) as data:
        check_header(path, data[:HEADER], tensorrt_rtx.__version__, gpu.info)
        with pytest.raises(EngineError, match=r"TensorRT does not load engine context: .*another backend"):
            Session(Loader(gpu, tensorrt_rtx, tensorrt_rtx.Runtime(log.logger), log), "context", data, None)
        with pytest.raises(EngineError, match="was built for SM86; RTX double has SM89"):
            check_header(path, data[:HEADER], tensorrt_rtx.__version__, HostGpu(89).info)


def test_the_hash_of_a_large_engine_is_taken_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_hashes, "LARGE", 1)
    monkeypatch.setattr(file_hashes, "SETTLED", -1.0)
    facts, path = read_sidecar(folder).engines["context"], folder / "context.engine"
    taken: list[Path] = []
    monkeypatch.setattr(file_hashes, "sha256_of", lambda path: taken.append(path) or sha256_of(path))
    for _ in range(2):
        map_engine(path, facts).close()
    assert taken == [path]
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(EngineError, match="another SHA-256"):
        map_engine(path, facts)
    assert taken == [path, path]


@pytest.mark.parametrize("name", ["../context.engine", "/etc/passwd", "..", ""])
def test_file_names_stay_inside(name: str, folder: Path) -> None:
    edit(folder, "context", file=name)
    with pytest.raises(EngineError, match="leaves the folder"):
        read_sidecar(folder)


def test_engines_lie_in_the_bundle_or_in_the_users_cache(
    bundle: Bundle, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the bundled model in the cache, for its install is not written to; those of any other in the bundle."""
    assert find_engines(bundle.root, "tensorrt-rtx") == folder == place_for(bundle.root, "tensorrt-rtx")
    assert find_engines(bundle.root, "tensorrt") is None
    assert place_for(bundle.root, "tensorrt") == engine_folders(bundle.root, "tensorrt")[1]
    own = tmp_path / "own"
    own.mkdir()
    shutil.copy(bundle.root / "manifest.json", own)
    assert find_engines(own, "tensorrt-rtx") == folder  # the same manifest: the same files
    (own / "manifest.json").write_text("{}")
    assert place_for(own, "tensorrt-rtx") == own / "tensorrt-rtx"
    monkeypatch.setattr(sidecar_module, "engine_folders", lambda root, backend: [root / backend])
    with pytest.raises(Exception, match="platformdirs, which is not installed"):
        place_for(bundle.root, "tensorrt")


def test_which_package_is_for_which_card() -> None:
    assert [package_for(capability) for capability in (75, 86, 89, 120)] == ["tensorrt-rtx"] * 4
    assert [package_for(capability) for capability in (80, 90, 100)] == ["tensorrt"] * 3


def test_a_runtime_cache_is_kept_and_found_again(bundle: Bundle, folder: Path, trt: TrtDouble, open_trt: Opener) -> None:
    path = cache_path(folder, "context")
    backend = open_trt(trt)
    backend.open_engine(bundle.engine("context"), "context").close()
    assert trt.loaded == [] and trt.compiled in path.read_bytes()
    before = path.stat().st_mtime_ns
    open_trt(trt).open_engine(bundle.engine("context"), "context").close()
    assert trt.loaded == [trt.compiled]
    assert path.stat().st_mtime_ns == before  # nothing new was compiled, so nothing is written


@pytest.mark.parametrize(
    ("gpu", "message"),
    [
        (HostGpu(driver=13030), "driver was 13020, is 13030"),
        (HostGpu(89, "another card"), "card was RTX double, is another card; capability was 86, is 89"),
    ],
)
def test_a_runtime_cache_of_another_card_or_driver_is_made_anew(
    gpu: HostGpu, message: str, bundle: Bundle, trt: TrtDouble, open_trt: Opener
) -> None:
    open_trt(trt).open_engine(bundle.engine("context"), "context").close()
    backend = open_trt(trt, gpu=gpu)
    trt.compiled = b"compiled for the other one"
    with pytest.warns(HartWarning, match=f"kernels of engine context are compiled anew: .*{message}"):
        engine = backend.open_engine(bundle.engine("context"), "context")
    engine.close()
    assert trt.loaded == []
    open_trt(trt, gpu=gpu).open_engine(bundle.engine("context"), "context").close()
    assert trt.loaded == [b"compiled for the other one"]


def test_a_runtime_cache_that_tensorrt_refuses_is_made_anew(bundle: Bundle, folder: Path, trt: TrtDouble, open_trt: Opener) -> None:
    open_trt(trt).open_engine(bundle.engine("context"), "context").close()
    trt.refused.add("deserialize")
    backend = open_trt(trt)
    with pytest.warns(HartWarning, match=r"compiled anew: TensorRT refuses .*context-.*\.cache: deserialize was refused"):
        backend.open_engine(bundle.engine("context"), "context").close()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:-1], "is damaged or cut short"),
        (lambda data: data[:-1] + b"?", "is damaged or cut short"),
        (lambda data: data[:40], "is damaged or cut short"),
        (lambda data: b"something else", "is no runtime cache of this hart-edge"),
        (lambda data: b"", "is no runtime cache of this hart-edge"),
    ],
)
def test_a_damaged_runtime_cache_never_reaches_tensorrt(damage: Any, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "x.cache"
    write_cache(path, KEY, b"content")
    assert read_cache(path, KEY).content == b"content"
    path.write_bytes(damage(path.read_bytes()))
    found = read_cache(path, KEY)
    assert found.content is None and found.reason == f"{path} {reason}"


def test_no_runtime_cache_and_one_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    assert read_cache(tmp_path / "absent", KEY) == read_cache(tmp_path / "absent", KEY).__class__(None)
    assert "cannot be read" in read_cache(tmp_path, KEY).reason
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the folder"):
        write_cache(tmp_path / "file" / "x.cache", KEY, b"")


def test_a_cache_that_cannot_be_kept_is_a_warning(bundle: Bundle, cache_home: Path, trt: TrtDouble, open_trt: Opener) -> None:
    engine = open_trt(trt).open_engine(bundle.engine("context"), "context")
    (cache_home / "hart-edge" / "tensorrt").write_text("in the way")
    with pytest.warns(HartWarning, match="compiled kernels of engine context are not kept: cannot make the folder"):
        engine.close()


def certify(folder: Path, bundle: Bundle, **changes: Any) -> None:
    report = {
        "passed": True,
        "date": "today",
        "manifest_sha256": sha256_of(bundle.root / "manifest.json"),
        "engines_sha256": sha256_of(folder / "engines.json"),
    }
    (folder / "accuracy.json").write_text(json.dumps(report | changes))


@pytest.mark.parametrize(
    ("changes", "summary"),
    [
        (None, "not verified: no accuracy.json"),
        ({"engines_sha256": "0"}, "belongs to other engines"),
        ({"manifest_sha256": "0"}, "belongs to another version of this bundle"),
        ({"passed": False}, "verification FAILED on today"),
    ],
)
def test_engines_have_a_certificate_of_their_own(
    changes: dict[str, Any] | None,
    summary: str,
    bundle: Bundle,
    folder: Path,
    trt: TrtDouble,
    open_trt: Opener,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bundle's own, which is valid, was made with other engines."""
    if changes is not None:
        certify(folder, bundle, **changes)
    monkeypatch.setattr(pipeline_module, "open_backend", lambda name, threads, low_vram: open_trt(trt))
    refusal = pytest.raises(BundleError, match=f"with tensorrt-rtx is .*{summary}.*--backend tensorrt-rtx")
    with refusal, pytest.warns(HartWarning, match="sampling"):
        Pipeline.load(bundle.root, backend="tensorrt-rtx", require_verified=True, check_files=False)
    assert trt.gpu is not None and trt.gpu.closed
    certify(folder, bundle)
    with pytest.warns(HartWarning, match="sampling") as caught:
        Pipeline.load(bundle.root, backend="tensorrt-rtx", require_verified=True, check_files=False).close()
    assert len(caught) == 1


def test_auto_steps_down_from_engines_that_do_not_load(
    bundle: Bundle, folder: Path, trt: TrtDouble, open_trt: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt.__version__ = "1.8.0.1"
    real = pipeline_module.open_backend
    monkeypatch.setattr(pipeline_module, "candidates", lambda *_: ("tensorrt-rtx", "cpu"))
    monkeypatch.setattr(pipeline_module, "open_backend", lambda name, *more: open_trt(trt) if name == "tensorrt-rtx" else real(name, *more))
    with pytest.warns(HartWarning, match=r"backend tensorrt-rtx was passed over: .*installed is 1\.8\.0\.1"), Pipeline.open(bundle) as pipe:
        assert pipe.backend == "cpu"
