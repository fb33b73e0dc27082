"""A network as a file that other programs run: ONNX, or torch's own ``.pt2``."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mnist_lightning.errors import InputError

NAME = "mnist_lightning"  # the fact that is the version of this package
TOLERANCE = 1e-5  # of a probability: in float32, sums in another order differ by 1e-6
INPUT, OUTPUT = "pixels", "probabilities"
ANY_NUMBER = ({0: torch.export.Dim("N")},)  # of images


def to_onnx(network: nn.Module, example: Tensor, facts: Mapping[str, str]) -> bytes:
    """A network, from pixels, ``(N, ...)`` float, to probabilities, ``(N, C)`` float, as ONNX.

    ``example`` are the pixels of two images. ``facts`` become the file's metadata.

    Raises:
        InputError: If a package is missing.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401  # the check needs it
        import onnxscript  # noqa: F401  # torch's exporter needs it
    except ImportError as error:
        raise InputError(
            f"ONNX needs packages that are not there ({error}): type 'pip install onnx onnxscript onnxruntime', or "
            "give --format pt2"
        ) from error
    names: Any = {"input_names": [INPUT], "output_names": [OUTPUT], "dynamic_shapes": ANY_NUMBER}
    with _quiet():
        program: Any = torch.onnx.export(network, (example,), dynamo=True, verbose=False, **names)
        model = program.model_proto
    onnx.helper.set_model_props(model, dict(facts))
    return bytes(model.SerializeToString())


def load_onnx(content: bytes) -> Callable[[Tensor], Tensor]:
    """A function from pixels to probabilities."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run([OUTPUT], {INPUT: pixels.numpy()})[0])


def to_pt2(network: nn.Module, example: Tensor, facts: Mapping[str, str]) -> bytes:
    """As :func:`to_onnx`, but torch's own ``.pt2``, for C++ and ``torch.export.load``."""
    content = io.BytesIO()
    with _quiet():
        # A slice would take the whole tensor along that it is cut from.
        program = torch.export.export(network, (example.clone(),), dynamic_shapes=ANY_NUMBER)
        torch.export.save(program, content, extra_files={f"{NAME}.json": json.dumps(dict(facts), indent=2)})
    return content.getvalue()


def load_pt2(content: bytes) -> Callable[[Tensor], Tensor]:
    """A function from pixels to probabilities."""
    with _quiet():
        program: Callable[[Tensor], Tensor] = torch.export.load(io.BytesIO(content)).module()
    return program


FORMATS = {"onnx": (to_onnx, load_onnx), "pt2": (to_pt2, load_pt2)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's remarks on its own exporter off the screen."""
    disabled = logging.root.manager.disable
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)
