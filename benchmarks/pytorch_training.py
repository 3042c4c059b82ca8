"""What the PyTorch peers of burn-titan's training have in common: their options, RoPE, and the steps that are measured.

A step is forward, backward, clip 1.0, fused AdamW (lr 8e-4, betas .9/.95, wd 0.1). Tokens are seeded random numbers, low
ids common (no files read). Prints one JSON line:

  tokens_per_second_best / median, step_ms (median), step_ms_best   over all steps but the first ("compile": but the first two)
  cold_seconds       process start to the end of the first step, compilation included
  peak_rss_mb        peak resident set in MB (1e6 bytes), before the GEMM measurement
  gemm_gflops_best   best of 24 square 2048 fp32 products, same process, same threads, after training
  mfu_vs_gemm        (6*(parameters a token meets, without embedding) + 6*layers*width*seq) * tokens_per_second_best / gemm,
                     width that of all heads: causal attention counted half
  mfu_vs_gemm_full_attention   the same with 12*layers*width*seq;   *_median: with the median step
"""
import argparse, contextlib, json, os, resource, sys, time

def process_age():                                  # seconds since this process started
    try:
        tick = int(open("/proc/self/stat").read().rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
        return float(open("/proc/uptime").read().split()[0]) - tick
    except (OSError, ValueError, IndexError): return 0.0
AGE0, T0 = process_age(), time.perf_counter()

def arguments(doc, shapes):                         # to be called before torch is imported
    parser = argparse.ArgumentParser(description=doc + __doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=shapes); parser.add_argument("threads", type=int)
    parser.add_argument("mode", choices=["eager", "compile"]); parser.add_argument("steps", type=int)
    parser.add_argument("dtype", nargs="?", default="fp32", choices=["fp32", "bf16"])
    options = parser.parse_args()
    if options.steps < 3: parser.error("at least 3 steps")
    for v in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"): os.environ[v] = str(options.threads)
    import torch
    torch.set_num_threads(options.threads); torch.manual_seed(0)
    return options

def angles(seq, head_dim, theta):
    import torch
    return torch.outer(torch.arange(seq).float(), 1.0 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim))

def rope(x, c, s):
    import torch
    a, b = x.chunk(2, -1); return torch.cat([a * c - b * s, b * c + a * s], -1)

def gemm(dtype):
    import torch
    a, b = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype); c = torch.empty(2048, 2048, dtype=dtype); ts = []
    for _ in range(26):
        t = time.perf_counter(); torch.mm(a, b, out=c); ts.append(time.perf_counter() - t)
    ts = sorted(ts[2:]); return 2 * 2048 ** 3 / ts[0] / 1e9, 2 * 2048 ** 3 / ts[len(ts) // 2] / 1e9

def train(m, options, *, vocab, batch, seq, layers, width, embedding, idle=0):
    """Trains `m(tokens, targets) -> loss`; prints the numbers. `idle`: parameters that a token does not meet."""
    import torch, torch.nn as nn
    V, T, B, L, d, mode, steps, dt = vocab, seq, batch, layers, width, options.mode, options.steps, options.dtype
    def tokens(i):                                  # step i's: skewed (low ids common), the same for any number of steps
        return (V * torch.rand(B, T + 1, generator=torch.Generator().manual_seed(1234 + i)) ** 3).long()
    for p in m.parameters():
        if p.ndim >= 2: nn.init.normal_(p, std=0.02)
    params = sum(p.numel() for p in m.parameters()); body = params - embedding.numel() - idle
    opt = torch.optim.AdamW(m.parameters(), lr=8e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True)
    data = [tokens(i) for i in range(steps)]
    f = torch.compile(m) if mode == "compile" else m
    W, CPU, losses = [], [], []
    cpu = lambda: (lambda r: r.ru_utime + r.ru_stime)(resource.getrusage(resource.RUSAGE_SELF))
    for i in range(steps):
        t, c0 = time.perf_counter(), cpu()
        with torch.autocast("cpu", dtype=torch.bfloat16) if dt == "bf16" else contextlib.nullcontext():
            loss = f(data[i][:, :-1], data[i][:, 1:])
        loss.backward(); torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0, foreach=True); opt.step(); opt.zero_grad(set_to_none=True)
        losses.append(round(loss.item(), 5)); W.append(time.perf_counter() - t); CPU.append(cpu() - c0)
        if i == 0: cold = AGE0 + time.perf_counter() - T0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    gb, gm = gemm(torch.float32)
    w = sorted(W[2 if mode == "compile" and steps > 3 else 1:]); best, med = w[0], (w[(len(w) - 1) // 2] + w[len(w) // 2]) / 2; tok = B * T
    half, full = (body * 6 + 6 * L * d * T) * tok / 1e9, (body * 6 + 12 * L * d * T) * tok / 1e9      # GFLOP a step
    r = lambda x, n=1: round(x, n)
    print(json.dumps(dict(shape=options.shape, threads=options.threads, mode=mode, dtype=dt, steps=steps, tokens_per_second_best=r(tok / best),
        tokens_per_second_median=r(tok / med), median=r(tok / med), step_ms=r(med * 1e3, 2), step_ms_best=r(best * 1e3, 2), first_step_ms=r(W[0] * 1e3),
        peak_rss_mb=r(peak), cold_seconds=r(cold, 2), mfu_vs_gemm=r(half / best / gb, 4), mfu_vs_gemm_median=r(half / med / gb, 4),
        mfu_vs_gemm_full_attention=r(full / best / gb, 4), gemm_gflops_best=r(gb), gemm_gflops_median=r(gm), gflop_per_step=r(half, 2),
        gflop_per_step_full_attention=r(full, 2), tokens_per_step=tok, params=params, params_of_a_token=body,
        cpu_seconds_per_step=r(sorted(CPU[1:])[len(CPU[1:]) // 2], 3), loss_first=losses[0], loss_last=losses[-1],
        loadavg=[r(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None, torch=torch.__version__)))
