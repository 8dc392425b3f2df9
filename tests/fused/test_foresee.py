"""The libraries' plans for one picture's text encoder and decoder are made while the weights are copied, without their buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from emulated_scales import emulated_gpu
from pipelines import opened
from random_bundle import make_bundle
from test_memory import PROMPTS, SMALL, SPEC

from hart_edge.runtime.bundle import Bundle
from hart_edge.runtime.errors import EngineError
from hart_edge.runtime.fused.context import FusedContext
from hart_edge.runtime.fused.conv import ConvShape
from hart_edge.runtime.fused.memory_plan import plan_memory
from hart_edge.runtime.fused.upload import Uploader

COPIED = "the weights are copied"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("small") / "bundle", SPEC, SMALL)


@pytest.fixture
def context() -> FusedContext:
    return emulated_gpu(64 << 20)


@pytest.fixture
def seen(context: FusedContext, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Shapes of products and convolutions as they are planned, and COPIED when an upload has ended."""
    events: list[Any] = []

    def note(owner: Any, name: str, event: Callable[..., Any]) -> None:
        function = getattr(owner, name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            events.append(event(*args))
            return result

        monkeypatch.setattr(owner, name, noted)

    note(context.blas, "plan", lambda shape: shape)
    note(context.cudnn, "build", lambda what, shape, *rest: shape)
    note(Uploader, "__exit__", lambda *args: COPIED)
    return events


def test_a_picture_needs_no_plans_that_were_not_made_while_weights_were_copied(
    bundle: Bundle, context: FusedContext, seen: list[Any]
) -> None:
    with opened(bundle, context) as pipe:
        assert seen.count(COPIED) == 1
        assert seen[-1] == COPIED
        foreseen = set(seen[:-1])
        assert context.device.use.bytes == sum(phase.weights for phase in plan_memory(bundle).phases.values())
        seen.clear()
        pipe.encode_text([PROMPTS[0]])
        assert seen
        assert set(seen) <= foreseen
        seen.clear()
        pipe.generate(PROMPTS[0], seed=1)
        assert not any(isinstance(shape, ConvShape) for shape in seen)
        assert any(isinstance(shape, ConvShape) for shape in foreseen)


def test_low_vram_foresees_nothing(bundle: Bundle, context: FusedContext, seen: list[Any]) -> None:
    with opened(bundle, context, low_vram=True):
        assert seen == []


def test_what_a_library_does_not_have_is_said_when_the_model_is_opened(
    bundle: Bundle, context: FusedContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when the first picture is nearly done; and nothing stays on the GPU."""

    def refuse(what: str, *rest: Any) -> None:
        raise EngineError(f"{what}: no engine.")

    monkeypatch.setattr(context.cudnn, "build", refuse)
    with pytest.raises(EngineError, match=r"a convolution alone of .*: no engine"), opened(bundle, context):
        pass
    assert context.device.use.bytes == 0
