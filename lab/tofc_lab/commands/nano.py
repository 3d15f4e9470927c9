"""Commands that make nano: its pictures, the steps of its training, and what leads back from a shipped checkpoint.

Promises that the steps in the help of `tofc-lab nano`, in their order, are the recipe of the shipped model.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from tofc.errors import UsageError
from tofc.terminal import say
from tofc_lab.commands.options import (
    ASSETS,
    NANO,
    RESULTS,
    RUN,
    Assets,
    JsonFile,
    Run,
    Seed,
    WholeCheckpoint,
    features_bar,
    named_bar,
    writable,
)

app = typer.Typer()
nano = typer.Typer(
    no_args_is_help=True,
    help="Train nano. First `tofc-lab assets`, then these steps: tower → features → decoder → codec → export → "
    "index. Each needs what the steps before it wrote to --run, and resumes where it was interrupted.",
)
PacoreRun = Annotated[Path, typer.Option(help="Folder of `tofc-lab nano pacore`: samples, tokenizer, decoders.")]
PACORE = Path("runs/pacore")
PANEL, STEPS, OTHERS = "nano", "Steps, in this order", "Besides"


@app.command(rich_help_panel=PANEL)
def assets(out: Annotated[Path, typer.Option(help="Folder to write to.")] = ASSETS) -> None:
    """Download the fonts and photographs of nano's pictures from Debian's packages (nothing is installed)."""
    from tofc_lab.world import assets as world_assets

    world_assets.fetch(out)
    for split in ("train", "validation", "test"):
        say(f"{split}: {len(world_assets.photographs(out, split))} photographs")


app.add_typer(nano, name="nano", rich_help_panel=PANEL)


@app.command(rich_help_panel=PANEL)
def examples(assets: Assets = ASSETS) -> None:
    """Draw the example pictures of the demo and the tests again, into models/nano and tests/e2e/pictures."""
    from tofc_lab.nano.examples import write

    write(assets, NANO, Path("tests/e2e/pictures"))


@nano.command(rich_help_panel=STEPS)
def tower(assets: Assets = ASSETS, run: Run = RUN, seed: Seed = 0) -> None:
    """Train the vision tower on labelled cells, small pictures first; and the tokenizer."""
    from tofc_lab.nano import tokenizer, tower

    tower.train(assets, run, seed=seed)
    tokenizer.train(assets, run / "tokenizer", seed=seed)


@nano.command(rich_help_panel=STEPS)
def features(assets: Assets = ASSETS, run: Run = RUN, seed: Seed = 0) -> None:
    """Compute the tower's features of the training and validation pictures, once for all further steps."""
    from tofc_lab.nano import features
    from tofc_lab.nano.tower import encoder

    out = features.folder(run)
    features.keep_seed(out, seed)
    encode = encoder(run / "tower.pt")
    features.compute_all(assets, out, encode, features.TRAINING_SIZES, seed=seed, progress=features_bar)


@nano.command(rich_help_panel=STEPS)
def decoder(
    run: Run = RUN,
    seed: Seed = 0,
    start: Annotated[Path | None, typer.Option(help="Start from the decoder.pt of another run.")] = None,
    codec: Annotated[
        Path | None, typer.Option(help="Checkpoint whose codec encodes and decodes half of the features.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Learning rate; use a smaller one with --start.", show_default="0.002")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps in all.", show_default="2400")] = None,
) -> None:
    """Train decoder, projector and grid embedding on those features."""
    from transformers import PreTrainedTokenizerFast

    from tofc.codec.codec import Codec
    from tofc.model.feature_codecs import codec_hash
    from tofc_lab import resume
    from tofc_lab.codec.feature_noise import CodecNoise
    from tofc_lab.nano import decoder, decoder_state, features

    recipe = decoder.DecoderRecipe()
    recipe = replace(recipe, rate=rate or recipe.rate, steps=steps or recipe.steps)
    inputs = {
        "features": features.folder(run).name,
        "--start": None if start is None else resume.fingerprint(start),
        "--codec": None if codec is None else codec_hash(codec),
    }
    resume.check(run / "decoder.ckpt", decoder_state.settings_of(inputs, recipe, seed))
    pictures = features.load_training(run)
    decoder.train(
        pictures.world,
        pictures.large,
        pictures.easy,
        pictures.validation,
        PreTrainedTokenizerFast.from_pretrained(run / "tokenizer"),
        run,
        inputs=inputs,
        start=start,
        noise=None if codec is None else CodecNoise(Codec.load(codec)),
        recipe=recipe,
        seed=seed,
    )


@nano.command(rich_help_panel=STEPS)
def codec(
    run: Run = RUN,
    seed: Seed = 0,
    start: Annotated[Path | None, typer.Option(help="Start from the transform of the codec in this folder.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps through the decoder.", show_default="1200")] = None,
) -> None:
    """Train the codec `context` through the frozen decoder."""
    from tofc.codec.context.weights import ContextWeights
    from tofc.model.feature_codecs import codec_hash
    from tofc_lab import resume
    from tofc_lab.codec.train import CodecRecipe, settings_of, train
    from tofc_lab.nano.answerer import inputs_of
    from tofc_lab.nano.source import NanoSource

    recipe = CodecRecipe()
    recipe = replace(recipe, steps=recipe.steps if steps is None else steps)
    initial = None if start is None else ContextWeights.load(start)
    inputs = inputs_of(run) | {"--start": None if start is None else codec_hash(start)}
    resume.check(run / "codec.ckpt", settings_of(inputs, recipe, seed))
    train(
        NanoSource.load(run, seed=seed),
        run,
        inputs=inputs,
        start=initial,
        recipe=recipe,
        seed=seed,
    )


@nano.command(rich_help_panel=STEPS)
def export(
    run: Run = RUN,
    out: Annotated[Path, typer.Option(help="Folder to write the checkpoint to.")] = NANO,
) -> None:
    """Write the trained parts and the codec `context` as one checkpoint with the released tensor names."""
    from tofc.model.checkpoint import Checkpoint
    from tofc_lab.checkpoint.probe import compute_probe
    from tofc_lab.nano.export import export_run

    export_run(run, out)
    exported = Checkpoint.open(out)
    compute_probe(exported, exported.model_id).write(out)


@nano.command(rich_help_panel=STEPS)
def index(
    run: Run = RUN,
    out: Annotated[Path, typer.Option(help="Folder to write the codec to: the exported checkpoint.")] = NANO,
    steps: Annotated[int | None, typer.Option(help="Steps of the context model.", show_default="7000")] = None,
    seed: Seed = 0,
) -> None:
    """Train the checkpoint's default codec, one index for each feature, and write it. It needs no answers."""
    from tofc_lab.codec.index.train import IndexRecipe
    from tofc_lab.nano.index_codec import train_index

    recipe = IndexRecipe()
    train_index(run, out, replace(recipe, steps=recipe.steps if steps is None else steps), seed)


@nano.command("selective-hyperprior", rich_help_panel=OTHERS)
def selective_hyperprior(
    run: Run = RUN,
    out: Annotated[Path, typer.Option(help="Folder to write the codec to.")] = NANO / "codecs" / "published",
    transform: Annotated[
        Path | None, typer.Option(help="Use the transform of the codec in this folder; the published codec has none.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Train TOFC's entropy model as published, one for each of three λ, and write it as a codec (after `decoder`)."""
    from tofc.codec.context.weights import ContextWeights
    from tofc.model.feature_codecs import codec_hash
    from tofc_lab import resume
    from tofc_lab.codec import train_selective_hyperprior as training
    from tofc_lab.nano.answerer import inputs_of
    from tofc_lab.nano.export import export_published
    from tofc_lab.nano.source import NanoSource

    recipe = training.SelectiveHyperpriorRecipe() if transform is None else training.TRANSFORMED
    used = None if transform is None else ContextWeights.load(transform)
    inputs = inputs_of(run) | {"--transform": None if transform is None else codec_hash(transform)}
    for checkpoint in training.checkpoints(run, transform is not None, recipe):
        resume.check(checkpoint, training.settings_of(inputs, recipe, seed))
    source = NanoSource.load(run, seed=seed)
    models = training.train(
        source,
        run,
        inputs=inputs,
        transform=used,
        recipe=recipe,
        seed=seed,
    )
    answerer = source.answerer
    export_published(run, models, answerer.grid_embedding(), answerer.grid.embedding_dim, out)


@nano.command(rich_help_panel=OTHERS)
def unpack(model: WholeCheckpoint = NANO, run: Run = RUN) -> None:
    """Turn a shipped checkpoint back into a run's folder, to continue its training (features, decoder --start)."""
    from tofc_lab.nano.unpack import unpack

    unpack(model, run)
    say(f"{run}: tower.pt, decoder.pt, tokenizer/")


@nano.command(rich_help_panel=OTHERS)
def pictures(
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
    assets: Assets = ASSETS,
    count: Annotated[int, typer.Option(help="Pictures of 336 px; large ones, a twentieth as many, are added.")] = 3000,
    turns: Annotated[int, typer.Option(help="Questions about each picture.")] = 8,
    seed: Annotated[int, typer.Option(help="0 gives those that nano and its codec were trained on.")] = 1,
) -> None:
    """Draw pictures of nano's world as files, with questions.jsonl: example data for `tofc-lab train-codec`."""
    from tofc_lab.nano.files import draw

    draw(assets, out, {"world": count, "large": count // 20}, turns, seed, named_bar)


@nano.command(rich_help_panel=OTHERS)
def pacore(
    run: Run = RUN,
    out: PacoreRun = PACORE,
    pictures: Annotated[
        int, typer.Option(help="Training pictures that are asked about, of those after the decoder's own 10 000.")
    ] = 5700,
    kept: Annotated[
        str,
        typer.Option(
            "--filter",
            help="Questions of the pool: disagreeing (their samples are not all equal), or the published stage-1 and "
            "then stage-2.",
            metavar="NAME",
        ),
    ] = "disagreeing",
    steps: Annotated[int, typer.Option(help="Steps in all.")] = 350,
    seed: Seed = 0,
) -> None:
    """Train the decoder to answer from its own samples (PaCoRe): sample a pool, widen the vocabulary, train."""
    from tofc_lab.nano.pacore.run import FILTERS, train_run
    from tofc_lab.nano.pacore.train import SynthesisRecipe

    if kept not in FILTERS:
        raise UsageError(f"--filter must be one of {', '.join(FILTERS)}, got {kept!r}")
    recipe = SynthesisRecipe(steps=steps)
    train_run(run, out, pictures=pictures, recipe=recipe, kept=kept, seed=seed, progress=named_bar)


@nano.command("pacore-report", rich_help_panel=OTHERS)
def pacore_report(
    model: WholeCheckpoint = NANO,
    run: Annotated[
        Path, typer.Option(help="Folder with the test pictures' features (`tofc-lab evaluate`).", envvar="TOFC_LAB_RUN")
    ] = RUN,
    trained: PacoreRun = PACORE,
    kept: Annotated[
        str, typer.Option("--filter", help="Which decoder of that folder.", metavar="NAME")
    ] = "disagreeing",
    count: Annotated[int, typer.Option("--pictures", help="Test pictures; each is asked about ten times.")] = 400,
    out: JsonFile = RESULTS / "pacore.json",
) -> None:
    """Compare PaCoRe, the vote of 16 and single answers on test pictures: nano as shipped, and trained by `pacore`."""
    from tofc.codec.codec import Codec
    from tofc.model.checkpoint import Checkpoint
    from tofc.model.prompt import load_tokenizer
    from tofc_lab.nano import features
    from tofc_lab.nano.evaluate import coded_at
    from tofc_lab.nano.packing import Packer
    from tofc_lab.nano.pacore.report import Decoder, report
    from tofc_lab.nano.pacore.run import load_trained
    from tofc_lab.nano.unpack import answerer_of

    checkpoint = Checkpoint.open(model)
    codec = Codec.load(checkpoint.codec_path)
    pictures = features.load(run / "test" / checkpoint.model_id, "world", "test", count)
    answerer, tokenizer = load_trained(trained, kept)
    decoders = [
        Decoder(
            name="shipped",
            answerer=answerer_of(checkpoint),
            packer=Packer(load_tokenizer(checkpoint)),
            folder=trained,
            reads_samples=False,
        ),
        Decoder(name="trained", answerer=answerer, packer=Packer(tokenizer), folder=trained / kept),
    ]
    about = {
        "model_id": checkpoint.model_id,
        "codec_id": checkpoint.codec_id,
        "preset": codec.config.preset,
        "filter": kept,
    }
    reduce = coded_at(codec, codec.config.presets[codec.config.preset])
    report(decoders, pictures, reduce, writable(out), about, named_bar)


@nano.command(rich_help_panel=OTHERS)
def experts(
    model: Annotated[Path, typer.Argument(help="A checkpoint with codecs.")] = NANO,
    run: Run = RUN,
    out: JsonFile = RESULTS / "experts.json",
    feature_codec: Annotated[
        str,
        typer.Option(
            help="The codec that gets experts: one of the entropy model `context` or `index`.", metavar="NAME"
        ),
    ] = "context",
) -> None:
    """Compare bits per feature: 1, 4 and 16 experts, as hyperpriors or on top of a context model (after `features`)."""
    from tofc.codec.codec import Codec
    from tofc.codec.files import load_weights
    from tofc.codec.index.weights import IndexWeights
    from tofc.model.checkpoint import Checkpoint
    from tofc_lab.nano import experts as of_components
    from tofc_lab.nano import features, index_experts

    checkpoint = Checkpoint.open(model, feature_codec=feature_codec)
    weights = load_weights(checkpoint.codec_path)
    folder, codec_id = features.folder(run), checkpoint.codec_id
    validation = features.load(folder, "world", "validation", 300)
    if isinstance(weights, IndexWeights):
        training = features.load(folder, "world", "train", 3000)
        index_experts.compare(weights, training, validation, writable(out), codec_id=codec_id, quality=4)
    else:
        training = features.load(folder, "world", "train", 6000)
        of_components.compare(Codec(weights), training, validation, writable(out), codec_id=codec_id, quality=4)


@nano.command("across-views", rich_help_panel=OTHERS)
def across_views(model: WholeCheckpoint = NANO, run: Run = RUN, out: JsonFile = RESULTS / "across_views.json") -> None:
    """Measure what the indices of crops would cost less if their coder saw the global view (after `features`)."""
    import platform
    from datetime import date

    from tofc import json_text
    from tofc.codec.codec import Codec
    from tofc.model.checkpoint import Checkpoint
    from tofc_lab.nano import across_views, features

    checkpoint = Checkpoint.open(model)
    pictures = features.load(features.folder(run), "large", "train", 1600)
    found = {
        "command": "tofc-lab nano across-views",
        "date": date.today().isoformat(),
        "machine": platform.machine(),
        "codec_id": checkpoint.codec_id,
        "qualities": across_views.measure(Codec.load(checkpoint.codec_path), pictures, (2, 4), features_bar),
    }
    json_text.write(writable(out), found)
