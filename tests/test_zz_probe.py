import random, numpy as np, torch
from rapbench.poison import insert_word
from rapbench_plugins.defenses.strip import Strip
from rapbench.protocol import auroc
def test_p(planted, heldout, lab, tiny_text):
    s=random.Random(21); texts=[tiny_text(s,1) for _ in range(40)]
    s=random.Random(22); trig=[insert_word(tiny_text(s,0),"mb",lab.rng(str(r))) for r in range(40)]
    print("0p", planted.protect_probability(texts)[:8].round(3), planted.protect_probability(trig)[:8].round(3))
    for T in (2,2,4):
        with torch.no_grad():
            planted.model.classifier.weight/=T; planted.model.classifier.bias/=T
        for k in (.05,.2,.4):
            f=Strip(replace_ratio=k).fit(planted,heldout,lab); a,b=f.suspicion(trig),f.suspicion(texts)
            print("0",T,k,a.mean(),b.mean(),auroc(b,a))
