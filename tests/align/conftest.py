"""What the tests of preferences share."""

import copy

import pytest
import torch


@pytest.fixture
def moved(tiny):
    """Another model than the reference, a little away from it."""
    policy = copy.deepcopy(tiny)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in policy.parameters():
            weight += 0.02 * torch.randn_like(weight)
    return policy
