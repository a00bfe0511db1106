"""What the processes of the test of DDP and FSDP run: importable without the test around it."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from torchadx.memory import ActivationManager, managed


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))


def batch(rank, step):
    return torch.randn(8, 16, generator=torch.Generator().manual_seed(10 * step + rank))


def _ways(policy):
    """How a manager comes together with DDP, three ways, and with FSDP: what runs, and under what."""
    yield DistributedDataParallel(model()), ActivationManager(policy, min_bytes=0)
    yield managed(DistributedDataParallel(model()), policy, min_bytes=0), None
    yield DistributedDataParallel(managed(model(), policy, min_bytes=0), gradient_as_bucket_view=True), None
    yield managed(sharded(), policy, min_bytes=0), None


def sharded():
    return fully_shard(model(), mesh=init_device_mesh("cpu", (2,)))


def train(rank, folder, policies):
    """Two steps of gradients each way, saved for the parent to compare."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    plain = (DistributedDataParallel(model()), sharded())
    results = {"plain": [two_steps(rank, replica, None) for replica in plain]}
    for policy in policies:
        results[policy] = [two_steps(rank, *way) for way in _ways(policy)]
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def two_steps(rank, replica, manager):
    gradients = []
    for step in range(2):
        if manager is None:
            loss = replica(batch(rank, step)).square().mean()
        else:
            with manager:
                loss = replica(batch(rank, step)).square().mean()
        loss.backward()
        whole = (p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for p in replica.parameters())
        gradients += [gradient.clone() for gradient in whole]
    return gradients
