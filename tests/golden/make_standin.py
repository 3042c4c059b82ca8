#!/usr/bin/env python3
"""Stand-in for torchtitan's tests/assets/c4_test/data.json (2000 rows).

Every byte is produced by this script from random.Random(seed): an own hand-typed word list, Zipf
weighted, driven through a seeded first-order word chain, so that there is structure to learn.
No third-party text. Same schema as c4: {"text","timestamp","url"}, JSON Lines.
"""
import json, random, sys

WORDS = """the of and to in a is that for it as was with be by on not he his but at are this have from or had an they
which one you were all her she there would their we him been has when who will no more if out so up said what its about
than into them can only other time new some could these two may first then do any like my now over such our man me even
most made after also did many off before must well back through years where much your way down should because long each
just state people those too mr how little good world make very year still see own work men day get here old life both
between being under three never know same last another while us might great go come since against right came take used
himself few house use place during high without again home around small however found part school once general upon
water number always night does system set public course far head left think better point city program business group
door week room social given present church order several national possible rather second face per among form important
often things looked early white case become large big need four within felt along children saw best almost member least
power development light thing seemed family interest want mind country area others turned done although open service
certain kind problem began different thus help means sense whole matter river stone garden letter summer winter market
engine signal paper window table bridge forest morning evening music story teacher doctor farmer student machine
tensor gradient kernel memory thread cluster packet driver schedule pipeline shard router expert token vector matrix
north south east west red green blue yellow black silver golden quiet bright narrow heavy simple plain clear warm cold
run build test check read write send carry hold keep turn move walk watch learn teach paint sell buy grow cut mix
slowly quickly often seldom nearly partly together apart inside outside above below beside beyond towards""".split()
WORDS = sorted(set(WORDS), key=WORDS.index)

def main(path, rows=2000, seed=20240):
    rng = random.Random(seed)
    n = len(WORDS)
    zipf = [1.0 / (i + 3) for i in range(n)]
    # first-order chain: each word has 12 preferred successors
    succ = [rng.choices(range(n), weights=zipf, k=12) for _ in range(n)]
    with open(path, "w", encoding="utf-8") as f:
        for r in range(rows):
            w = rng.randrange(n)
            out = []
            for _ in range(rng.randint(3, 40)):          # sentences
                length = rng.randint(4, 18)
                sent = []
                for _ in range(length):
                    sent.append(WORDS[w])
                    w = rng.choice(succ[w]) if rng.random() < 0.85 else rng.choices(range(n), weights=zipf)[0]
                if rng.random() < 0.06:
                    sent.insert(rng.randrange(len(sent)), str(rng.randint(1, 2026)))
                s = " ".join(sent)
                out.append(s[0].upper() + s[1:] + rng.choices([".", "?", "!", ";"], [80, 8, 4, 8])[0])
            text, line = "", 0
            for s in out:
                text += s + ("\n" if rng.random() < 0.1 else " ")
            f.write(json.dumps({"text": text.strip(), "timestamp": f"2020-01-{1 + r % 28:02d}T00:00:00Z",
                                "url": f"https://example.invalid/{r}"}) + "\n")

if __name__ == "__main__":
    main(sys.argv[1])
