#!/bin/sh
# scipy's t-test of float16 values, as activations and their differences are often stored: the p-value of pure noise is
# exactly 0, without a warning. It gets worse the more prompts there are.
#
# scipy 1.17.1, numpy 2.4.6. 200 tests of noise (sd 0.005, mean 0), the same float16 values each time. Tests with
# p < 0.05 and with p = 0, out of 200:
#   500 values: float64 10 and 0, float16 6 and 0
#   1000 values: float64 9 and 0, float16 200 and 200
# - ttest_1samp, and ttest_rel through it, divide the variance by n in the dtype of the values. 0.000025 / 1000 is less
#   than half of float16's smallest number and becomes 0; t is then a mean divided by 0, computed with warnings off.
# - float32 is kept as well, and is exact enough. A column of float16 from Parquet, numpy or torch stays float16.
#
# Exits 0 while that is so, 1 once float16 gives the p-values of float64.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet scipy==1.17.1 numpy==2.4.6
cd "$place"
"$place/venv/bin/python" - <<'PYTHON'
import sys
import warnings

import numpy as np
import scipy
from scipy.stats import ttest_1samp

warnings.simplefilter("error")
generator = np.random.default_rng(0)
print("scipy", scipy.__version__)
found = []
for n in (500, 1000):
    noise = generator.normal(0, 0.005, (200, n)).astype(np.float16)
    for dtype in (np.float64, np.float16):
        p = np.array([ttest_1samp(values.astype(dtype), 0).pvalue for values in noise])
        found.append((int((p < 0.05).sum()), int((p == 0).sum())))
    print(f"{n} values: float64 {found[-2][0]} and {found[-2][1]}, float16 {found[-1][0]} and {found[-1][1]}")
exact, few, _, many = found
sys.exit(not (few[1] == exact[1] == 0 and many == (200, 200)))
PYTHON
