#!/usr/bin/env python3
"""Plain PyTorch training of a Qwen3-style decoder with experts on the CPU: the peer to time a trainer against. Needs only
torch (2.4+).

  python THIS_FILE debug THREADS eager|compile STEPS [fp32|bf16]

  debug        dim 256, 6 layers, 8 heads on 4 of keys, head dim 64, 8 experts of 384, 2 a token, vocab 2048, seq 512,
               batch 4                                                                    17.6 M parameters

Untied embeddings, GQA, RMSNorm 1e-6 (of each query and key, too), rope theta 1e6, SDPA. The router takes the softmax over
all experts, keeps the largest, and divides them by their sum; then a loop over experts, each of which takes its tokens
by index and is added to them by index. "compile" needs a C++ compiler.
"""
import pytorch_training as training

SHAPES = {"debug": dict(d=256, L=6, H=8, KV=4, hd=64, E=8, K=2, ff=384, V=2048, T=512, B=4)}
options = training.arguments(__doc__, SHAPES)
import torch, torch.nn as nn, torch.nn.functional as F
d, L, H, KV, hd, E, K, ff, V, T, B = (SHAPES[options.shape][k] for k in ("d", "L", "H", "KV", "hd", "E", "K", "ff", "V", "T", "B"))
ang = training.angles(T, hd, 1000000)

class Attention(nn.Module):
    def __init__(s):
        super().__init__()
        s.qkv, s.o = nn.Linear(d, (H + 2 * KV) * hd, bias=False), nn.Linear(H * hd, d, bias=False)
        s.nq, s.nk = nn.RMSNorm(hd, eps=1e-6), nn.RMSNorm(hd, eps=1e-6)
    def forward(s, x, c, sn):
        q, k, v = s.qkv(x).view(x.shape[0], T, H + 2 * KV, hd).split([H, KV, KV], 2)
        q, k = (training.rope(n(t).transpose(1, 2), c, sn) for n, t in ((s.nq, q), (s.nk, k)))
        o = F.scaled_dot_product_attention(q, k, v.transpose(1, 2), is_causal=True, enable_gqa=True)
        return s.o(o.transpose(1, 2).flatten(2))
class Expert(nn.Module):
    def __init__(s):
        super().__init__()
        s.w13, s.w2 = nn.Linear(d, 2 * ff, bias=False), nn.Linear(ff, d, bias=False)
    def forward(s, x):
        a, b = s.w13(x).chunk(2, -1)
        return s.w2(F.silu(a) * b)
class Mixture(nn.Module):
    def __init__(s):
        super().__init__()
        s.router, s.experts = nn.Linear(d, E, bias=False), nn.ModuleList(Expert() for _ in range(E))
    def forward(s, x):
        shape, x = x.shape, x.reshape(-1, d)
        weights, chosen = s.router(x).float().softmax(-1).topk(K, -1)
        weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)
        y = torch.zeros_like(x)
        for e, expert in enumerate(s.experts):
            token, slot = (chosen == e).nonzero(as_tuple=True)
            y.index_add_(0, token, expert(x[token]).to(x.dtype) * weights[token, slot, None])
        return y.view(shape)
class Block(nn.Module):
    def __init__(s):
        super().__init__()
        s.n1, s.n2 = nn.RMSNorm(d, eps=1e-6), nn.RMSNorm(d, eps=1e-6)
        s.attention, s.mixture = Attention(), Mixture()
    def forward(s, x, c, sn):
        x = x + s.attention(s.n1(x), c, sn)
        return x + s.mixture(s.n2(x))
class Model(nn.Module):
    def __init__(s):
        super().__init__()
        s.e, s.h = nn.Embedding(V, d), nn.Linear(d, V, bias=False)
        s.b, s.n = nn.ModuleList(Block() for _ in range(L)), nn.RMSNorm(d, eps=1e-6)
        s.register_buffer("c", ang.cos()); s.register_buffer("s", ang.sin())
    def forward(s, x, y):
        x = s.e(x); c, sn = s.c.to(x.dtype), s.s.to(x.dtype)
        for b in s.b: x = b(x, c, sn)
        return F.cross_entropy(s.h(s.n(x)).float().view(-1, V), y.reshape(-1))

m = Model()
training.train(m, options, vocab=V, batch=B, seq=T, layers=L, width=H * hd, embedding=m.e.weight, idle=L * (E - K) * 3 * d * ff)
