"""What the diffusion mixers do with embeddings, on a tiny model: compared with diffusers' own pipeline."""

from functools import cache

import numpy as np
import pytest
import torch
from toolbox import sample_photographs

from kdcli.errors import Diverged
from kdcli.synthesis import clip, pipeline
from kdcli.synthesis.imagemixer import imagemixer, padded, scaled
from kdcli.synthesis.tokens_mean import tokens_mean

CPU = torch.device("cpu")
SEEDS = [11, 2**62 + 1]


@pytest.fixture(scope="module")
def encoder(variations):
    return clip.load_encoder(variations, "tiny", "")


@pytest.fixture(scope="module")
def load(variations):
    return cache(lambda scheduler="ddim": pipeline.load(variations, scheduler, torch.float32, CPU))


@pytest.fixture(scope="module")
def pixels():
    """Three pictures as the encoder takes them, [3, 3, 16, 16] in 0..1."""
    cut = clip.cut(16, squash=True)
    photographs = list(sample_photographs().values())
    photographs.append(photographs[0].rotate(90))
    return torch.stack([cut(p, 0, 0) for p in photographs])


@pytest.fixture(scope="module")
def embeddings(encoder, pixels):
    """One row of three sources, [1, 3, 12]."""
    return encoder(encoder.normalise(pixels))[None]


def noise(seeds=SEEDS):
    return torch.stack([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(s)) for s in seeds])


def sampled(model, tokens):
    """Float pixels [B, 3, 16, 16] of some tokens, all from the same noise."""
    latents = noise(SEEDS[:1]).expand(len(tokens), -1, -1, -1)
    with torch.inference_mode():
        found = model(tokens, 16, 16, 3, guidance_scale=3.0, latents=latents, output_type="pt")
    return found.images


@pytest.mark.parametrize("scheduler", pipeline.SCHEDULERS)
def test_one_source_equals_diffusers_own_pipeline_exactly(scheduler, variations, load, encoder, pixels):
    import diffusers

    ours = load(scheduler)
    stock = diffusers.StableDiffusionImageVariationPipeline(
        vae=ours.vae,
        image_encoder=encoder.body,
        unet=ours.unet,
        scheduler=ours.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    stock.set_progress_bar_config(disable=True)
    mean, std = (torch.tensor(v)[:, None, None] for v in (encoder.spec.mean, encoder.spec.std))
    images = (pixels[:2] - mean) / std
    theirs = stock(images, 16, 16, 5, guidance_scale=3.0, latents=noise(), output_type="np").images
    tokens = imagemixer(encoder(encoder.normalise(pixels[:2]))[:, None])
    made = pipeline.sample(ours, tokens, SEEDS, resolution=16, steps=5, guidance=3.0)
    assert np.array_equal(made, (theirs * 255).round().astype(np.uint8))
    assert len(np.unique(made)) > 50
    with torch.inference_mode():
        exact = ours(tokens, 16, 16, 5, guidance_scale=3.0, latents=noise(), output_type="np").images
    assert np.array_equal(exact, theirs)


def test_the_order_of_tokens_does_not_matter(load, embeddings):
    found = sampled(load(), torch.cat([embeddings, embeddings[:, [2, 0, 1]]]))
    assert (found[0] - found[1]).abs().max() < 5e-7


def test_copies_of_one_source_are_that_source(load, embeddings):
    one = embeddings[:, :1]
    assert (sampled(load(), one) - sampled(load(), one.expand(-1, 5, -1))).abs().max() < 5e-7


def test_a_zero_token_is_not_an_absent_one(load, embeddings):
    two = embeddings[:, :2]
    assert padded(two, 5).shape == (1, 5, 12)
    assert torch.equal(padded(two, 5)[:, :2], two)
    assert not padded(two, 5)[:, 2:].any()
    assert torch.equal(padded(two, 0), two)
    assert (sampled(load(), two) - sampled(load(), padded(two, 5))).abs().max() > 1e-3


def test_tokens_are_not_their_mean(load, embeddings):
    mean = tokens_mean(embeddings)
    assert torch.allclose(mean[0, 0], embeddings[0].mean(0))
    assert (sampled(load(), imagemixer(embeddings)) - sampled(load(), mean)).abs().max() > 1e-3


def test_a_strength_scales_its_source(load, embeddings):
    assert torch.equal(scaled(embeddings, [2, 0, 1])[0], embeddings[0] * torch.tensor([[2.0], [0], [1]]))
    assert scaled(embeddings, []) is embeddings
    weak = scaled(embeddings, [0.5, 1, 1])
    assert (sampled(load(), embeddings) - sampled(load(), weak)).abs().max() > 1e-4


def test_guidance_is_against_zero_tokens(load, embeddings):
    model = load()
    conditions = model._encode_image(embeddings, CPU, 1, True)
    assert torch.equal(conditions, torch.cat([torch.zeros_like(embeddings), embeddings]))
    assert torch.equal(model._encode_image(embeddings, CPU, 1, False), embeddings)


def test_embeddings_are_projected_and_not_normalised(encoder, pixels, embeddings):
    mean, std = (torch.tensor(v)[:, None, None] for v in (encoder.spec.mean, encoder.spec.std))
    found = encoder.body(pixel_values=(pixels - mean) / std)
    pooled = found.last_hidden_state[:, 0]
    projected = encoder.body.visual_projection(encoder.body.vision_model.post_layernorm(pooled))
    assert torch.allclose(embeddings[0], projected, atol=1e-6)
    norms = embeddings[0].norm(dim=1)
    assert (norms - 1).abs().min() > 0.1
    assert norms.max() - norms.min() > 1e-3


def test_a_row_does_not_depend_on_how_many_there_are(encoder, pixels):
    three = clip.embed(encoder, pixels, 8)[clip.TAP]
    assert three.shape == (3, 12)
    assert torch.equal(clip.embed(encoder, pixels[:1], 8)[clip.TAP], three[:1])


def test_preprocessing_for_image_mixer_is_clip_own():
    """OpenAI's ``preprocess``: torchvision on the PIL picture."""
    from torchvision import transforms

    picture = sample_photographs()["china.jpg"]
    resize = transforms.Resize(224, transforms.InterpolationMode.BICUBIC)
    own = transforms.Compose([resize, transforms.CenterCrop(224), transforms.PILToTensor()])(picture)
    assert torch.equal(clip.cut(224, squash=False)(picture, 0, 0), own)


def test_preprocessing_for_variations_is_the_model_card_s():
    from torchvision.transforms import v2

    picture = sample_photographs()["flower.jpg"]
    bicubic = v2.InterpolationMode.BICUBIC
    card = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
                       v2.Resize((224, 224), interpolation=bicubic, antialias=False)])  # fmt: skip
    cut = clip.cut(224, squash=True)
    assert (cut(picture, 0, 0) - card(picture)).abs().max() < 1e-6
    smooth = v2.Resize((224, 224), interpolation=bicubic, antialias=True)(v2.ToImage()(picture)).float() / 255
    assert (cut(picture, 0, 0) - smooth).abs().max() > 0.1
    assert cut.recipe() != clip.cut(224, squash=False).recipe()


def test_parts_are_loaded_in_the_precision(variations):
    model = pipeline.load(variations, "ddim", torch.bfloat16, CPU)
    assert {p.dtype for part in (model.unet, model.vae) for p in part.parameters()} == {torch.bfloat16}


def test_not_a_number_is_refused(variations, embeddings):
    model = pipeline.load(variations, "ddim", torch.float32, CPU)
    with torch.no_grad():
        model.vae.decoder.conv_out.bias.fill_(torch.nan)
    with pytest.raises(Diverged, match="NaN or Inf in a new picture"):
        pipeline.sample(model, embeddings, SEEDS[:1], resolution=16, steps=1, guidance=3.0)
