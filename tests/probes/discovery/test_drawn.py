"""The tokens that stand for a text are its own, and no state is drawn twice."""

from __future__ import annotations

from probes.discovery.drawn import Drawn, places
from probes.discovery.observing import Seen
from tests.probes.discovery.conftest import context_of, demo_pair


def test_no_state_is_drawn_twice_and_no_first_token() -> None:
    context = context_of(demo_pair())
    texts = context.texts.encoded
    drawn = Drawn.of(texts, 10_000, 0)
    ids = {item.prompt.id: item.ids for item in texts}
    states = [ids[prompt][: pos + 1] for prompt, positions in drawn.positions.items() for pos in positions]
    assert len(set(states)) == len(states) and min(map(len, states)) > 1
    every = {item.ids[: pos + 1] for item in texts for pos in range(1, len(item.ids))}
    assert set(states) == every and len(every) < sum(len(item.ids) - 1 for item in texts)


def test_the_rows_of_a_batch_are_these_places() -> None:
    context = context_of(demo_pair())
    drawn = Drawn.of(context.texts.encoded, 48, 3)
    batch, _ = context.texts.batches[0]
    base = context.sides.base(batch)
    seen = Seen(base, base, batch.encoded, tuple(0 for _ in batch.encoded), True)
    found = [(place.prompt_id, place.pos) for place in places(seen, drawn.rows(seen))]
    assert found == [(item.prompt.id, pos) for item in batch.encoded for pos in drawn.positions[item.prompt.id]]
    assert all(len(positions) <= 2 for positions in drawn.positions.values())
    assert all(
        place.token_id == dict(_ids(seen))[place.prompt_id][place.pos] for place in places(seen, drawn.rows(seen))
    )


def _ids(seen: Seen) -> list[tuple[str, tuple[int, ...]]]:
    return [(item.prompt.id, item.ids) for item in seen.encoded]
