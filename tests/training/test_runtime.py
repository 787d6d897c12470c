"""What the training half asks of the process, and what it says of the machine."""

import torch

from models.device import available_threads
from training.evaluation.machine import machine
from training.runtime import native_precision, use_threads


def test_torch_gets_as_many_threads_as_onnx_runtime():
    before = torch.get_num_threads()
    try:
        use_threads()
        assert torch.get_num_threads() == available_threads()
    finally:
        torch.set_num_threads(before)


def test_a_machine_is_described():
    found = machine()
    assert 1 <= found["threads"] == available_threads() <= found["cores"]
    assert found["processor"]
    fast = {"avx512_bf16", "amx_bf16"} & {*found["multiplies"]}
    assert native_precision() == ("bf16" if fast else "fp32")
