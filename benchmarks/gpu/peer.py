#!/usr/bin/env python3
"""What PyTorch makes of the operations and models that scripts/gpu-check measures, on the same device in the same run.

    python3 benchmarks/gpu/peer.py --out peer.json [--device cuda|cpu] [--seconds N] [--quick]

Attention is `scaled_dot_product_attention`, on a GPU by FlashAttention, the training step that of a plain Llama (RMSNorm,
RoPE, grouped heads, SwiGLU) with f32 parameters, bf16 autocast with a bf16 residual stream, clipping and fused AdamW: eager,
and with its blocks and its loss compiled by torch.compile. Goes through them in order of worth until the seconds are over,
and rewrites the file after each: a list of entries, each with the name of gpu-check's part, the mode, what was run and what
it took. Needs torch.
"""
import argparse, json, resource, signal, statistics, time
from contextlib import nullcontext

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", required=True)
parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
parser.add_argument("--seconds", type=float, default=150)
parser.add_argument("--quick", action="store_true", help="the sizes of gpu-check --quick")
arguments = parser.parse_args()
deadline = time.monotonic() + arguments.seconds

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

cuda = arguments.device == "cuda"
dtype = torch.bfloat16 if cuda else torch.float32
torch.manual_seed(0)
torch.set_float32_matmul_precision("high")
MODELS = {
    "125m": dict(dim=768, layers=12, heads=12, kv_heads=12, head_dim=64, ffn=2048, vocab=32000),
    "350m": dict(dim=1024, layers=24, heads=16, kv_heads=16, head_dim=64, ffn=2816, vocab=32000),
    "1b": dict(dim=2048, layers=16, heads=32, kv_heads=8, head_dim=64, ffn=8192, vocab=128256, tied=True),
    "tiny": dict(dim=64, layers=2, heads=4, kv_heads=2, head_dim=16, ffn=128, vocab=2048),
}
# All sizes are those of scripts/gpu-check. Model, tokens of a sequence, sequences, mode: what matters most first, and what
# takes little time before what is compiled.
STEPS = [("125m", 2048, 8, "eager"), ("1b", 2048, 4, "eager"), ("350m", 2048, 8, "eager"), ("125m", 2048, 8, "compile"),
         ("1b", 2048, 4, "compile"), ("350m", 2048, 8, "compile"), ("125m", 8192, 2, "compile"), ("350m", 8192, 2, "compile"),
         ("1b", 8192, 1, "compile"), ("125m", 8192, 2, "eager"), ("350m", 8192, 2, "eager"), ("1b", 8192, 1, "eager")]
ATTENTION = [(head_dim, seq, document) for document in (None, 1024) for head_dim in (64, 128) for seq in (2048, 4096, 8192, 16384)]
HEADS, TOKENS = 16, 16384
PRODUCTS = [(4096, 4096, 4096), (8192, 8192, 8192), (8192, 2048, 8192), (16384, 32000, 768)]
LOSSES = [(16384, 32000, 768), (8192, 128256, 2048)]
ELEMENTS = [125000000, 1000000000]
COPIED = 1 << 30
if arguments.quick:
    STEPS = [("tiny", 64, 2, "eager"), ("tiny", 64, 2, "compile")]
    ATTENTION = [(head_dim, 150, document) for head_dim in (64, 128) for document in (None, 50)]
    HEADS, TOKENS, PRODUCTS, LOSSES, ELEMENTS, COPIED = 2, 150, [(64, 64, 64), (67, 331, 24)], [(67, 331, 24)], [70001], 1 << 24

entries = []


def record(part, mode, **numbers):
    entries.append(dict(part=part, mode=mode, **numbers))
    name = torch.cuda.get_device_name() if cuda else "cpu"
    with open(arguments.out, "w") as file:
        json.dump(dict(subject="peer", torch=torch.__version__, device=name, entries=entries), file, indent=1)
    print(part, mode, numbers, flush=True)


def synchronize():
    if cuda:
        torch.cuda.synchronize()


def timed(run, most=20, seconds=0.5):
    """Median seconds of some runs, after two."""
    times, start = [], time.monotonic()
    while len(times) < 5 or (len(times) < most and time.monotonic() - start < seconds):
        synchronize()
        begin = time.perf_counter()
        run()
        synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[2:])


def memory_gib():
    """As burn-titan counts it: what the device has in use; on the CPU, the process's peak."""
    if cuda:
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def attention(head_dim, seq, document):
    # Packed documents are told apart as sequences of a batch: the least that can be done.
    length = document or seq
    shape = (max(TOKENS // seq, 1) * (seq // length), HEADS, length, head_dim)
    leaves = [torch.randn(shape, device=arguments.device, dtype=dtype, requires_grad=True) for _ in range(3)]
    gradient = torch.randn(shape, device=arguments.device, dtype=dtype)
    part = f"attention-{head_dim}-{'packed' if document else 'causal'}"

    # On a GPU FlashAttention or nothing, so that it is known what is compared.
    flash = sdpa_kernel(SDPBackend.FLASH_ATTENTION) if cuda else nullcontext()

    def both():
        F.scaled_dot_product_attention(*leaves, is_causal=True).backward(gradient)
        for leaf in leaves:
            leaf.grad = None

    def forward():
        with torch.no_grad():
            F.scaled_dot_product_attention(*leaves, is_causal=True)

    for operation, run in (("forward", forward), ("forward+backward", both)):
        with flash:
            record(part, "sdpa", operation=operation, sizes=dict(seq=seq), seconds_median=timed(run))


def product(m, n, k):
    a, b = torch.randn(m, k, device=arguments.device, dtype=dtype), torch.randn(k, n, device=arguments.device, dtype=dtype)
    seconds = timed(lambda: a @ b)
    record("matmul", "torch", operation="matmul", sizes=dict(m=m, n=n, k=k), seconds_median=seconds, gflops=2e-9 * m * n * k / seconds)


def copy(size):
    a, b = torch.zeros(2, size // 4, device=arguments.device)
    seconds = timed(lambda: a.copy_(b))
    record("copy", "torch", bytes=size, seconds_median=seconds, gb_per_second=2e-9 * size / seconds)


def loss(tokens, vocab, dim):
    hidden = torch.randn(tokens, dim, device=arguments.device, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocab, dim, device=arguments.device, dtype=dtype, requires_grad=True)
    targets = torch.randint(vocab, (tokens,), device=arguments.device)
    of = lambda: F.cross_entropy(F.linear(hidden, weight).float(), targets)

    def both():
        of().backward()
        hidden.grad = weight.grad = None

    def forward():
        with torch.no_grad():
            of()

    for operation, run in (("forward", forward), ("forward+backward", both)):
        record("loss", "torch", operation=operation, sizes=dict(tokens=tokens, vocab=vocab, dim=dim), seconds_median=timed(run))


def optimizer(elements):
    parameter = nn.Parameter(torch.randn(elements, device=arguments.device))
    parameter.grad = torch.randn(elements, device=arguments.device)
    adamw = torch.optim.AdamW([parameter], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    norm = lambda: torch.linalg.vector_norm(parameter.grad)
    for operation, run in (("AdamW", adamw.step), ("sum of squares", norm)):
        record("optimizer", "torch", operation=operation, sizes=dict(elements=elements), seconds_median=timed(run))


class Norm(nn.RMSNorm):
    def forward(self, x):
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Block(nn.Module):
    def __init__(self, size):
        super().__init__()
        dim, heads, kv_heads, head_dim = (size[name] for name in ("dim", "heads", "kv_heads", "head_dim"))
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.attention_norm, self.ffn_norm = Norm(dim, eps=1e-5), Norm(dim, eps=1e-5)
        self.query = nn.Linear(dim, heads * head_dim, bias=False)
        self.key = nn.Linear(dim, kv_heads * head_dim, bias=False)
        self.value = nn.Linear(dim, kv_heads * head_dim, bias=False)
        self.output = nn.Linear(heads * head_dim, dim, bias=False)
        self.gate, self.up = nn.Linear(dim, size["ffn"], bias=False), nn.Linear(dim, size["ffn"], bias=False)
        self.down = nn.Linear(size["ffn"], dim, bias=False)

    def forward(self, x, cos, sin):
        batch, seq, _ = x.shape
        h = self.attention_norm(x)
        split = lambda t, heads: t.view(batch, seq, heads, self.head_dim).transpose(1, 2)
        q, k, v = split(self.query(h), self.heads), split(self.key(h), self.kv_heads), split(self.value(h), self.kv_heads)
        a = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True,
                                           enable_gqa=self.heads != self.kv_heads)
        x = x + self.output(a.transpose(1, 2).reshape(batch, seq, -1))
        h = self.ffn_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


class Llama(nn.Module):
    def __init__(self, size, seq):
        super().__init__()
        self.embedding = nn.Embedding(size["vocab"], size["dim"])
        self.blocks = nn.ModuleList(Block(size) for _ in range(size["layers"]))
        self.norm, self.head = Norm(size["dim"], eps=1e-5), nn.Linear(size["dim"], size["vocab"], bias=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
        if size.get("tied"):
            self.head.weight = self.embedding.weight
        powers = torch.arange(0, size["head_dim"], 2).float() / size["head_dim"]
        angles = torch.outer(torch.arange(seq).float(), 5e5**-powers)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, tokens, targets):
        x = self.embedding(tokens).to(dtype)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.loss(x, targets)

    def loss(self, x, targets):
        return F.cross_entropy(self.head(self.norm(x)).float().flatten(0, 1), targets.flatten())


def step(name, seq, batch, mode):
    size = MODELS[name]
    with torch.device(arguments.device):
        model = Llama(size, seq)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    if mode == "compile":
        # Blocks are all alike, and are compiled once.
        for block in model.blocks:
            block.compile()
        model.loss = torch.compile(model.loss)
    tokens = torch.randint(size["vocab"], (batch, seq + 1), device=arguments.device)

    def run():
        with torch.autocast(arguments.device, dtype=torch.bfloat16, enabled=cuda):
            loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    begin = time.perf_counter()
    run()
    first = time.perf_counter() - begin
    seconds = timed(run, most=10, seconds=3)
    record(f"step-{name}-{seq}", mode, parameters=sum(p.numel() for p in model.parameters()), first_step_seconds=first,
           seconds_median=seconds, tokens_per_second=batch * seq / seconds, memory_gib=memory_gib())


def free():
    if cuda:
        torch._dynamo.reset()
        torch.cuda.empty_cache()


def time_over(*_):
    raise TimeoutError


# Also in the midst of compiling.
signal.signal(signal.SIGALRM, time_over)
signal.setitimer(signal.ITIMER_REAL, max(deadline - time.monotonic(), 0.1))
ONE = lambda cases: [(case,) for case in cases]
PARTS = ((copy, ONE([COPIED])), (product, PRODUCTS), (step, STEPS[:3]), (attention, ATTENTION), (step, STEPS[3:6]), (loss, LOSSES),
         (optimizer, ONE(ELEMENTS)), (step, STEPS[6:]))
for measure, cases in PARTS:
    for case in cases:
        try:
            measure(*case)
        except TimeoutError:
            record("peer", "stopped", message=f"the time was over in {measure.__name__} {case}")
            raise SystemExit
        except Exception as error:  # One case that fails, for want of memory say, is no reason to lose the others.
            record("peer", "failed", message=f"{case}: {type(error).__name__}: {str(error)[:300]}")
        free()
