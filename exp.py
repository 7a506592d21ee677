import sys, time, json, numpy as np, torch
from probes.capture.loading import Pairs
from probes.suite import load_suite
from probes.discovery.sides import *
from probes.discovery.reading import *
from tv.prompts.encoding import encode, batches
from tv.prompts.files import Prompt
name=sys.argv[1]
suite=load_suite({"name":"x","base":"data/models/base","tuned":{"t":name},"prompts":[{"file":"data/prompts/general.jsonl"}]})
pairs=Pairs(suite); pair=pairs.pair("t")
rows=[json.loads(l) for l in open("data/prompts/general.jsonl")]
prompts=[Prompt(r["id"],"g","general",r["text"]) for r in rows]
enc=encode(prompts,pairs.tokenizer,128)
sides=Sides(pair,enc,16,0)
half=lambda it: seed_of("half "+it.prompt.id)%2
bs=batches(enc,16,pair.pad_id)
V=pair.architecture.vocab_size
def stats(side):
    out={h:{"mean":np.zeros(V),"top":np.zeros(V),"n":0,"kl":0.} for h in (0,1)}
    base=[sides.base(b) for b in bs]; bl=[r.logits for r in base]
    with sides.on(side) as m:
        for b,l in zip(bs,bl):
            r=m.read(b); d=r.logits-l; d=d-d.mean(1,keepdim=True)
            kl=kl_at_each(l.clone(),r.logits.clone())
            lens=b.attention_mask.sum(1).tolist(); h=np.repeat([half(i) for i in b.encoded],lens)
            top=d.topk(20).indices
            for k in (0,1):
                s=torch.from_numpy(h==k)
                out[k]["mean"]+=d[s].sum(0).numpy(); out[k]["n"]+=int(s.sum()); out[k]["kl"]+=float(kl[s].sum())
                out[k]["top"]+=torch.bincount(top[s].flatten(),minlength=V).numpy()
    for k in (0,1):
        out[k]["mean"]/=out[k]["n"]; out[k]["top"]/=out[k]["n"]; out[k]["kl"]/=out[k]["n"]
    return out
tok=pairs.tokenizer
def line(side,o):
    for s in ("mean","top"):
        a=np.argsort(-o[0][s])[:8]
        print(f"{side.name:9s}{side.draw} {s:5s} kl {o[1]['kl']:.3f}", " ".join(f"{tok.decode([i])!r}:{o[1][s][i]:.2f}" for i in a))
t=time.process_time()
for side in [Side(TUNED),Side(ROUNDED),*[Side("random",i) for i in range(2)],*[Side(SHAM,i) for i in range(4)]]:
    o=stats(side); line(side,o); 
    if side.name==SHAM: print("  factor",sides._factors[side.draw])
print(time.process_time()-t)
