"""Ways to convert a network, and the check that each gives the same numbers; ``make_network`` is each module's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

# All sizes differ, so a swapped axis cannot pass unseen; three levels halve a size twice.
SHAPES = {2: (2, 3, 16, 24), 3: (2, 3, 12, 8, 16)}
OTHER_SHAPES = {2: (5, 3, 40, 8), 3: (1, 3, 4, 8, 20)}

Convert = Callable[[torch.nn.Module, torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def assert_same_logits(make_network: Callable[..., Any]) -> Callable[..., None]:
    """Compare a converted network with its origin, on the sizes of the conversion and on others."""

    def check(kind: str, convert: Convert, **changes: Any) -> None:
        network = make_network(kind, **changes)
        example = torch.randn(SHAPES[network.spatial_dims])
        converted = convert(network, example)
        with torch.no_grad():
            for image in (example, torch.randn(OTHER_SHAPES[network.spatial_dims])):
                torch.testing.assert_close(converted(image), network(image), rtol=1e-4, atol=1e-4)

    return check


@pytest.fixture
def script(tmp_path: Path) -> Convert:
    """Script a network, save it, and load it again."""

    def convert(network: torch.nn.Module, example: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        torch.jit.script(network).save(tmp_path / "network.ts")
        return torch.jit.load(tmp_path / "network.ts")

    return convert


@pytest.fixture
def compile_whole() -> Convert:
    """Compile a network as one graph."""

    def convert(network: torch.nn.Module, example: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        # aot_eager captures the whole graph as inductor does, without half a minute of C++ compilation.
        return torch.compile(network, backend="aot_eager", fullgraph=True)

    return convert


@pytest.fixture
def export_onnx(tmp_path: Path) -> Convert:
    """Export a network to ONNX with dynamic batch and sizes, and run it in ONNX Runtime."""
    runtime = pytest.importorskip("onnxruntime")

    def convert(network: torch.nn.Module, example: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        dynamic = {axis: torch.export.Dim.DYNAMIC for axis in range(example.ndim) if axis != 1}
        path = tmp_path / "network.onnx"
        torch.onnx.export(network, (example,), path, dynamo=True, dynamic_shapes=(dynamic,), verbose=False)
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda image: torch.from_numpy(session.run(None, {name: image.numpy()})[0])

    return convert
