"""Tensors as matrices: every element of one tensor must meet the same element of the others."""

import pytest
import torch

from muon_kernels.backends.strides import as_matrices


def matrices(tensors):
    return as_matrices(tensors[0].shape, *(t.stride() for t in tensors))


def walk(matrix, tensor, strides):
    """Addresses of the tensor's elements in the order in which the matrix is walked."""
    row, col = strides
    places = [i * row + j * col for i in range(matrix.rows) for j in range(matrix.cols)]
    return [tensor.data_ptr() + tensor.element_size() * place for place in places]


def addresses(tensor):
    """Address of each element, in the logical order."""
    index = torch.zeros(tensor.shape, dtype=torch.int64)
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        index += (torch.arange(size) * stride).view([-1 if d == dim else 1 for d in range(tensor.dim())])
    return (tensor.data_ptr() + tensor.element_size() * index).flatten().tolist()


BASE = torch.zeros(4, 6, 8, 10)
CASES = {
    "transposed with contiguous": [BASE[0, 0].t(), torch.zeros(10, 8)],
    "both transposed": [BASE[0, 0].t(), torch.zeros(8, 10).t()],
    "padded rows": [BASE[0, 0, :, :7], torch.zeros(8, 7)],
    "channels last": [
        torch.zeros(4, 6, 3, 5).to(memory_format=torch.channels_last),
        torch.zeros(4, 6, 3, 5).to(memory_format=torch.channels_last),
    ],
    "expanded gradient": [torch.zeros(()).expand(6, 7), torch.zeros(6, 7)],
    "every other element": [torch.zeros(20)[::2], torch.zeros(10)],
    "sizes of one": [torch.zeros(1, 5, 1, 7).transpose(1, 3), torch.zeros(1, 7, 1, 5)],
    "scalar": [torch.zeros(4)[2], torch.zeros(())],
    "one position of a convolution": [BASE[:, :, 1, 2], torch.zeros(4, 6)],
}


@pytest.mark.parametrize("name", CASES)
def test_elements_meet(name):
    tensors = CASES[name]
    matrix = matrices(tensors)
    assert matrix is not None
    walked = zip(*(walk(matrix, *each) for each in zip(tensors, matrix.strides, strict=True)), strict=True)
    wanted = zip(*(addresses(t) for t in tensors), strict=True)
    assert sorted(walked) == sorted(wanted)


def test_one_common_dense_order_becomes_one_row():
    tensors = CASES["channels last"]
    assert matrices(tensors)[:2] == (1, tensors[0].numel())


def test_dimensions_merge_in_memory_order():
    assert matrices([BASE[0].permute(2, 0, 1), torch.zeros(10, 6, 8)])[:2] == (48, 10)


def test_three_separate_dimensions_are_refused():
    assert matrices([BASE[0, :5, :5, :3], torch.zeros(5, 5, 3)]) is None
