"""Errors of others, as users see them."""

import pytest
import torch

from carvana.errors import user_errors

MEMORY = "lower BATCH_SIZE first, then IMAGE_HEIGHT"


@pytest.mark.parametrize(
    "error, advice",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), MEMORY),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"), MEMORY),
        (RuntimeError("GET was unable to find an engine to execute this computation"), MEMORY),
        (RuntimeError("FIND was unable to find an engine to execute it"), "PRECISION to fp32"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), MEMORY),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried 9 bytes"), MEMORY),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "lower NUM_WORKERS"),
    ],
)
def test_errors_of_torch_name_the_constants_to_change(error, advice, capsys):
    with pytest.raises(SystemExit, match="2"), user_errors():
        raise error
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert advice in message
    assert str(error) in message


def test_errors_that_are_bugs_keep_their_traceback():
    with pytest.raises(RuntimeError, match="something else"), user_errors():
        raise RuntimeError("something else")
