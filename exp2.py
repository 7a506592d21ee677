import sys, time, json, numpy as np, torch, pandas as pd
pd.set_option("display.width",250); pd.set_option("display.max_rows",80); pd.set_option("display.max_columns",30)
from probes.capture.loading import Pairs
from probes.suite import load_suite
from probes.discovery.sides import *
from probes.discovery.observing import *
from probes.discovery.part import *
from tv.prompts.encoding import encode
from tv.prompts.files import Prompt
name=sys.argv[1]; parts=sys.argv[2].split(","); file=sys.argv[3] if len(sys.argv)>3 else "data/prompts/general.jsonl"
suite=load_suite({"name":"x","base":"data/models/base","tuned":{"t":name},"prompts":[{"file":file}]})
pairs=Pairs(suite); pair=pairs.pair("t")
rows=[json.loads(l) for l in open(file)]
enc=encode([Prompt(r["id"],"g","general",r["text"],cluster=r.get("cluster")) for r in rows],pairs.tokenizer,128)
sides=Sides(pair,enc,16,0); texts=Texts.of(enc,64,16,pair.pad_id,0)
ctx=Context(pair,texts,sides,0)
ps=[PARTS[p](ctx) for p in parts]
t=time.process_time()
observe(sides,texts,sides_of(("random","shuffled","sham"),int(sys.argv[4]) if len(sys.argv)>4 else 10),ps)
print("seconds",time.process_time()-t)
for p in ps:
    for table,rows in p.results():
        print(table); print(rows.groupby("reading").head(6).to_string() if "reading" in rows else rows.head(30).to_string())
        if "stands_out" in rows: print(rows.groupby("reading").stands_out.sum())
