"""`tv geometry`."""

from tv.cli.options import Base, Heads, Output, Tuned
from tv.cli.output import check_output, write
from tv.cli.terminal import Bar, print_table


def geometry(base: Base, tuned: Tuned, heads: Heads = False, output: Output = None) -> None:
    """Norms, cosine, ranks and noise share of every module."""
    import tv

    check_output(output)
    with Bar("geometry") as progress:
        frame = tv.geometry(base, tuned, heads=heads, progress=progress)
    columns = ["relative_norm", "cosine", "changed_fraction", "noise_share", "stable_rank", "effective_rank"]
    rows = frame[frame["head"] == -1].to_dict("records")
    print_table(
        "tuning vector by module",
        ["layer", "module", *columns],
        [[row["layer"], row["module"], *(row[name] for name in columns)] for row in rows],
    )
    write(frame, output)
