"""The network as a file that other programs run: ONNX, or torch's own ``.pt2``."""

import contextlib
import io
import json
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mnist_lightning.errors import InputError

NAME = "mnist_lightning"
"""The fact that each export has: the version of this package. By it, a file is known to be an export."""

TOLERANCE = 1e-5
"""The most by which a probability may differ from torch's. In float32, sums in another order differ by 1e-6."""

INPUT, OUTPUT = "pixels", "probabilities"


def to_onnx(network: nn.Module, example: Tensor, facts: Mapping[str, str]) -> bytes:
    """A network as ONNX, in one file.

    Args:
        network: From pixels, ``(N, ...)`` float, to probabilities, ``(N, C)`` float.
        example: Pixels, ``(2, ...)`` float. Any other number of images can be given to the export.
        facts: What the file says of itself, as its metadata.

    Raises:
        InputError: If a package is missing.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401  # the check needs it: nothing is exported that cannot be checked
        import onnxscript  # noqa: F401  # torch's exporter needs it
    except ImportError as error:
        raise InputError(
            f"ONNX needs packages that are not there ({error}): type 'pip install onnx onnxscript onnxruntime', or "
            "give --format pt2"
        ) from error
    with _quiet():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("N")},),
        )
        assert program is not None  # without dynamo, it would be
        model = program.model_proto
    onnx.helper.set_model_props(model, dict(facts))
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


def load_onnx(content: bytes) -> Callable[[Tensor], Tensor]:
    """What onnxruntime makes of an export: a function from pixels to probabilities."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run([OUTPUT], {INPUT: pixels.numpy()})[0])


def to_pt2(network: nn.Module, example: Tensor, facts: Mapping[str, str]) -> bytes:
    """A network as torch's own ``.pt2``, which C++ and ``torch.export.load`` read; see :func:`to_onnx`."""
    content = io.BytesIO()
    with _quiet():
        # A slice would take the whole tensor along that it is cut from.
        program = torch.export.export(network, (example.clone(),), dynamic_shapes=({0: torch.export.Dim("N")},))
        torch.export.save(program, content, extra_files={f"{NAME}.json": json.dumps(dict(facts), indent=2)})
    return content.getvalue()


def load_pt2(content: bytes) -> Callable[[Tensor], Tensor]:
    """What torch makes of an export: a function from pixels to probabilities."""
    with _quiet():
        program: Callable[[Tensor], Tensor] = torch.export.load(io.BytesIO(content)).module()
    return program


FORMATS = {"onnx": (to_onnx, load_onnx), "pt2": (to_pt2, load_pt2)}


def is_export(path: Path) -> bool:
    """Whether a file is one that :func:`to_onnx` or :func:`to_pt2` has made. Nothing in it is run."""
    with contextlib.suppress(Exception):  # of many kinds, for a file of any kind
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                facts = [json.loads(file.read(name)) for name in file.namelist() if name.endswith(f"/{NAME}.json")]
                return any({NAME, "source", "output"} <= fact.keys() for fact in facts)
        import onnx

        model = onnx.load(path, format="protobuf", load_external_data=False)
        return any(fact.key == NAME for fact in model.metadata_props)
    return False


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch prints, logs and warns about its own exporter off the screen."""
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
