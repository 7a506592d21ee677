"""Do the claims of the source (arXiv 2510.09359) hold on real language models, beside their nulls?"""
