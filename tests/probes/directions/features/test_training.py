"""Dictionaries against plain loops, autograd, least squares and scikit-learn; a killed training goes on as it was."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from probes.directions.features import quality
from probes.directions.features.dictionary import Above, Dictionary, Gated, Largest, read_dictionary, save_dictionary
from probes.directions.features.latents import measure
from probes.directions.features.training import Training, batch_top_k, gradients, loss_of, train

HOW = Training("crosscoder", latents=24, k=3, steps=40, batch=32, seed=1)


def states(n: int = 200, d: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(n, d, generator=generator) * 3 + 1
    return base, base + 0.3 * torch.randn(n, d, generator=generator)


@pytest.mark.parametrize("form", ["crosscoder", "delta", "public"])
def test_reading_and_writing_are_what_a_plain_loop_gives(form: str) -> None:
    base, tuned = states(5)
    generator = torch.Generator().manual_seed(2)
    sides = 2 if form == "crosscoder" else 1
    encoder, decoder = torch.randn(sides, 6, 4, generator=generator), torch.randn(2, 4, 6, generator=generator)
    bias, mean = torch.randn(4, generator=generator), torch.randn(2, 6, generator=generator)
    if form == "public":
        decoder, mean = decoder[:1].repeat(2, 1, 1), mean[:1].repeat(2, 1)
    dictionary = Dictionary(form, encoder, bias, decoder, mean, Above(torch.full((4,), 0.5)))  # type: ignore[arg-type]
    active = dictionary.activations(base, tuned)
    written = dictionary.written(active)
    for i in range(5):
        for side, h in enumerate((base[i], tuned[i])):
            read = {"crosscoder": None, "delta": tuned[i] - base[i], "public": h}[form]
            f = []
            for j in range(4):
                if read is None:
                    z = sum(float(x[c] * encoder[s, c, j]) for s, x in enumerate((base[i], tuned[i])) for c in range(6))
                else:
                    z = sum(float(read[c] * encoder[0, c, j]) for c in range(6))
                z += float(bias[j])
                f.append(z if z > 0.5 else 0.0)
            out = [sum(f[j] * float(decoder[side, j, c]) for j in range(4)) + float(mean[side, c]) for c in range(6)]
            assert torch.allclose((active.base, active.tuned)[side][i], torch.tensor(f), atol=1e-4)
            assert torch.allclose(written[side][i], torch.tensor(out), atol=1e-4)
    chosen = torch.tensor([0, 2])
    part = sum(
        active.tuned[:, j, None] * decoder[1, j] - active.base[:, j, None] * decoder[0, j] for j in chosen.tolist()
    )
    assert torch.allclose(dictionary.parts(active, chosen), torch.as_tensor(part), atol=1e-5)


def test_batch_top_k_keeps_k_of_a_place_on_average_and_the_largest() -> None:
    before = torch.randn(50, 40, generator=torch.Generator().manual_seed(0)) + 2
    kept = batch_top_k(before, 7)
    assert int((kept > 0).sum()) == 7 * 50
    assert float(kept[kept > 0].min()) > float(before[kept == 0].max())
    assert (batch_top_k(-before.abs(), 7) == 0).all()


def test_gradients_are_those_of_autograd() -> None:
    base, tuned = states(40)
    x = torch.stack([base, tuned], 1).double()
    generator = torch.Generator().manual_seed(3)
    shapes = {"encoder": (12, 20), "encoder_bias": (20,), "decoder": (20, 12), "bias": (12,)}
    values = {name: torch.randn(*shape, generator=generator).double() for name, shape in shapes.items()}
    active, slopes = gradients(values, x, 4)
    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
    loss, again = loss_of(leaves, x, 4)
    loss.backward()
    assert torch.allclose(active, again.detach())
    for name, leaf in leaves.items():
        assert leaf.grad is not None and torch.allclose(slopes[name], leaf.grad, rtol=1e-8, atol=1e-10), name


def test_training_learns_revives_and_stays_in_units_of_h() -> None:
    """Sparse data of known directions, a thousand times as large as usual, and far from 0."""
    generator = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(12, 16, generator=generator), dim=1)
    worth = torch.rand(3000, 12, generator=generator) * (torch.rand(3000, 12, generator=generator) < 0.1)
    base, tuned = 1000 * (worth @ atoms) + 500, 1000 * (worth @ atoms.roll(1, 1)) + 500
    how = Training("crosscoder", latents=32, k=2, steps=300, batch=128, rate=1e-2)
    dictionary = train(base, tuned, how)
    fvu, l0 = quality.unexplained(dictionary, base, tuned)
    assert max(fvu) < 0.1 and 1 < l0 < 3
    assert torch.allclose(dictionary.decoder.square().sum((0, 2)), torch.ones(32), atol=1e-4)
    # every direction is written by a latent, in both models
    assert float((atoms @ dictionary.decoder[0].T).amax(1).min()) > 0.55


def test_a_killed_training_ends_with_the_same_numbers(tmp_path: Path) -> None:
    base, tuned = states()
    whole, kept = train(base, tuned, HOW), tmp_path / "kept.safetensors"

    def kill(done: int, _total: int) -> None:
        if done == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(base, tuned, HOW, kept=kept, stamp="s", told=kill)
    assert kept.is_file()
    seen: list[int] = []
    resumed = train(base, tuned, HOW, kept=kept, stamp="s", told=lambda done, _total: seen.append(done))
    assert seen[0] == 25 and not kept.exists()
    other = train(base, tuned, HOW, stamp="another")
    for name in ("encoder", "encoder_bias", "decoder", "bias"):
        assert torch.equal(getattr(whole, name), getattr(resumed, name)), name
        assert torch.equal(getattr(whole, name), getattr(other, name)), name


@pytest.mark.parametrize(
    "rule", [Above(torch.rand(24)), Largest(3), Gated(torch.rand(24), torch.rand(24), torch.rand(24))]
)
def test_a_saved_dictionary_reads_the_same(rule: object, tmp_path: Path) -> None:
    base, tuned = states()
    trained = train(base, tuned, HOW)
    parts = (trained.encoder, trained.encoder_bias, trained.decoder, trained.bias)
    dictionary = Dictionary("crosscoder", *parts, rule=rule)  # type: ignore[misc, arg-type]
    save_dictionary(dictionary, tmp_path / "d.safetensors", {"site": "resid_post"})
    again, said = read_dictionary(tmp_path / "d.safetensors")
    assert said["site"] == "resid_post"
    assert torch.equal(again.activations(base, tuned).base, dictionary.activations(base, tuned).base)


def test_latent_scaling_is_the_least_squares_of_every_latent() -> None:
    base, tuned = states(300)
    dictionary = train(base, tuned, HOW)
    found = measure(dictionary, base, tuned)
    f = dictionary.activations(base, tuned).base.double().numpy()
    decoder = dictionary.decoder.double().numpy()
    h = [base.double().numpy(), tuned.double().numpy()]
    bias = dictionary.bias.double().numpy()
    for j in np.flatnonzero(found.fires > 5)[:6]:
        betas = {}
        for side in (0, 1):
            written = f @ decoder[side]
            without = h[side] - bias[side] - written + np.outer(f[:, j], decoder[side, j])
            for of, y in (("error", without), ("written", written)):
                design = np.outer(f[:, j], decoder[1, j]).ravel()[:, None]
                betas[of, side] = float(np.linalg.lstsq(design, y.ravel(), rcond=None)[0][0])
        assert found.nu_error_base[j] == pytest.approx(betas["error", 0] / betas["error", 1], rel=1e-3)
        assert found.nu_written_base[j] == pytest.approx(betas["written", 0] / betas["written", 1], rel=1e-3)
        step = np.linalg.norm(decoder[1, j] - decoder[0, j])
        sizes = (f[:, j] * step / np.linalg.norm(h[0], axis=1))[f[:, j] > 0]
        assert found.change[j] == pytest.approx(np.sqrt((sizes**2).mean()), rel=1e-4)


def test_unexplained_of_a_pca_is_scikit_learns() -> None:
    base, _ = states(300)
    fitted, held = base[:250], base[250:]
    pca = PCA(n_components=3).fit(fitted.numpy())
    back = pca.inverse_transform(pca.transform(held.numpy()))
    expected = ((held.numpy() - back) ** 2).sum() / ((held.numpy() - held.numpy().mean(0)) ** 2).sum()
    assert quality.pca_unexplained(fitted, held, 3) == pytest.approx(expected, rel=1e-4)


def test_latents_are_matched_one_to_one() -> None:
    base, tuned = states()
    one = train(base, tuned, HOW)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(5))
    parts = (one.encoder[:, :, order], one.encoder_bias[order], one.decoder[:, order], one.bias)
    other = Dictionary("crosscoder", *parts, rule=one.rule)  # type: ignore[misc]
    alive = np.ones(24, bool)
    alive[0] = False
    found = quality.matched(one, other, alive, np.ones(24, bool))
    assert np.isnan(found[0]) and found[1:] == pytest.approx(np.ones(23), abs=1e-5)
