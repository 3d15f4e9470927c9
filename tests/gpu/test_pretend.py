"""The pretended GPU itself: it refuses what a GPU refuses, allows what a GPU allows, and finds deliberate mistakes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from benchmarks.pretended_gpu import GPU, on_gpu, pretend_gpu
from tofc.model.torch_devices import torch_devices


@pytest.fixture(autouse=True)
def gpu() -> Iterator[None]:
    with pretend_gpu():
        yield


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, device="cuda")


ALLOWED: dict[str, Callable[[], torch.Tensor]] = {
    "one device": lambda: ones(2) + ones(2),
    "a number of the CPU": lambda: ones(2) * torch.tensor(2.0),
    "indices of the CPU": lambda: ones(3)[torch.tensor([0, 2])],
    "values of the GPU at indices of the CPU": lambda: ones(3).index_put((torch.tensor([0]),), ones(1)),
    "its own generator": lambda: torch.randn(2, device="cuda", generator=torch.Generator("cuda")),
    "views": lambda: ones(2, 2)[0].view(2, 1) + ones(1),
    "new tensors like it": lambda: ones(2).new_zeros(2) + torch.zeros_like(ones(2)),
    "from the CPU and back": lambda: torch.ones(2).to("cuda").half().float(),
    "as another tensor": lambda: torch.ones(2).to(ones(1)),
    "copied into": lambda: ones(2).copy_(torch.zeros(2)),
}

REFUSED: dict[str, Callable[[], object]] = {
    "two devices": lambda: ones(2) + torch.ones(2),
    "a matrix product": lambda: ones(2, 2) @ torch.ones(2, 2),
    "indices of the GPU": lambda: torch.ones(3)[torch.zeros(1, dtype=torch.long, device="cuda")],
    "values of the CPU at indices": lambda: ones(3).index_put((torch.tensor([0]),), torch.ones(1)),
    "a number of the GPU": lambda: torch.ones(2) * torch.tensor(2.0, device="cuda"),
    "concatenation": lambda: torch.cat([ones(1), torch.ones(1)]),
    "a generator of the CPU": lambda: torch.multinomial(ones(3), 1, generator=torch.Generator()),
    "a generator of the GPU": lambda: torch.randperm(3, generator=torch.Generator("cuda")),
    "moved back": lambda: ones(2).cpu() + ones(2),
    "like it on the CPU": lambda: torch.zeros_like(ones(2), device="cpu") + ones(2),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_what_a_gpu_allows(case: str) -> None:
    found = ALLOWED[case]()
    assert on_gpu(found) and found.device == GPU and found.is_cuda


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_gpu_refuses(case: str) -> None:
    with pytest.raises(RuntimeError, match=r"same device|expected a generator"):
        REFUSED[case]()


def test_numpy_reads_the_cpu_only() -> None:
    with pytest.raises(TypeError, match="numpy"):
        ones(2).numpy()
    assert ones(2).cpu().numpy().tolist() == [1, 1]


def test_gradients_come_back_over_both_devices() -> None:
    weight = torch.ones(2, requires_grad=True)
    (weight.to("cuda") * ones(2)).sum().backward()
    assert weight.grad is not None and not on_gpu(weight.grad) and weight.grad.tolist() == [1, 1]


class Mistaken(torch.autograd.Function):
    """Correct forwards; backwards it multiplies a gradient of the GPU with a tensor of the CPU."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: object, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0] * torch.ones(2)


def test_a_backward_pass_is_seen() -> None:
    x = ones(2).requires_grad_()
    found = Mistaken.apply(x)
    with pytest.raises(RuntimeError, match="same device"):
        found.sum().backward()


def test_a_module_and_its_buffers_move() -> None:
    layer = torch.nn.BatchNorm1d(2).to("cuda")
    assert {one.device for one in (*layer.parameters(), *layer.buffers())} == {GPU}
    assert layer(ones(3, 2)).device == GPU


def test_threads_see_it_too() -> None:
    raised: list[bool] = []

    def mix() -> None:
        with pytest.raises(RuntimeError, match="same device"):
            ones(2) + torch.ones(2)
        raised.append(True)

    thread = threading.Thread(target=mix)
    thread.start()
    thread.join()
    assert raised == [True]


def test_apple_s_has_no_float64() -> None:
    ones(1).double()
    with pretend_gpu("mps"):
        assert torch.ones(1).to("mps").float().device == torch.device("mps:0")
        with pytest.raises(TypeError, match="no float64"):
            torch.ones(1, device="mps").double()


def test_torch_finds_it() -> None:
    assert torch_devices() == ["cpu", "cuda", "cuda:0"]
