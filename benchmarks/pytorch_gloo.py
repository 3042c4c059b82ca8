"""All-reduce of f32 between processes of one host with PyTorch's gloo.

Prints one JSON line a size: the median time, and bytes over it. The peer of `bench collective`.

    python benchmarks/pytorch_gloo.py [--ranks 2] [--bytes 1024 1048576 ...]
"""

import argparse
import json
import os
import statistics
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

SIZES = [1 << 10, 1 << 20, 16 << 20, 256 << 20]


def repetitions(size: int) -> int:
    """So many that a size takes a second or so."""
    return max(5, min(2000, (256 << 20) // size))


def run(rank: int, ranks: int, sizes: list[int], store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    for size in sizes:
        count = repetitions(size)
        tensor = torch.zeros(size // 4)
        times = []
        for i in range(count + count // 4 + 1):
            start = time.perf_counter()
            dist.all_reduce(tensor)
            if i > count // 4:
                times.append(time.perf_counter() - start)
        if rank == 0:
            seconds = statistics.median(times)
            line = {
                "communicator": f"gloo (PyTorch {torch.__version__})",
                "operation": "all_reduce",
                "ranks": ranks,
                "bytes": size,
                "repetitions": count,
                "microseconds": round(seconds * 1e6, 1),
                "gigabytes_per_second": round(size / seconds / 1e9, 3),
            }
            print(json.dumps(line), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--bytes", type=int, nargs="+", default=SIZES)
    arguments = parser.parse_args()
    store = f"/tmp/pytorch_gloo.{os.getpid()}"
    try:
        mp.spawn(run, (arguments.ranks, arguments.bytes, store), nprocs=arguments.ranks)
    finally:
        if os.path.exists(store):
            os.remove(store)


if __name__ == "__main__":
    main()
