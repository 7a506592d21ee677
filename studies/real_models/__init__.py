"""Do the source's claims (arXiv 2510.09359) hold on real language models? Two models, five domains, each with its null."""
