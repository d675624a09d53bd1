"""The command line. It only parses, calls and prints; each command imports for itself what is slow to import.

Exit codes: 0 done (and pushed), 1 failed, 2 bad input, 3 refused by a gate.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.errors import RunFailedError
from transform.contract import ContractError

if TYPE_CHECKING:
    from components.importers.summary import ImportSummary
    from pipeline.config import RunConfig
    from pipeline.local_runner import Run
    from pipeline.recommend import Feed

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_REFUSED = 1, 2, 3
DEMO_WORLD = Path("worlds/demo")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
errors = Console(stderr=True)

Runs = Annotated[Path, typer.Option("--runs", help="Folder of all runs.")]
RunFolder = Annotated[Path | None, typer.Option("--run", help="Folder of a run; default: the newest.")]
World = Annotated[str | None, typer.Option("--world", help="Folder of canonical tables; default: the configuration's.")]


@app.command()
def demo(runs: Runs = Path("runs")) -> None:
    """Build the demo world, run the whole pipeline, serve it, and print a feed."""
    from pipeline import config

    console = Console()
    console.print(f"[bold]World[/]  {DEMO_WORLD}")
    import_demo(str(DEMO_WORLD))  # seeded: the same bytes each time, so that nothing after it runs again
    folder = _run(config.load("demo"), str(DEMO_WORLD), runs / "demo")
    _report(folder)
    user, other = _busiest_users(str(DEMO_WORLD))
    _recommend(folder, user, n=10, target=None, as_json=False, html=folder / "feed.html", beside=other)


importers = typer.Typer(help="Turn a public data set, or tables of your own, into a world.", no_args_is_help=True)
app.add_typer(importers, name="import")


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(version("shortlist"))
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """From interaction logs to a served, personalised micro-video feed."""


Source = Annotated[str, typer.Option("--from", help="Folder that holds the data.")]
Out = Annotated[str, typer.Option("--out", help="Folder of the world to write.")]


@importers.command("demo")
def import_demo(
    out: Out,
    users: Annotated[int, typer.Option(min=20)] = 400,
    videos: Annotated[int, typer.Option(min=20)] = 600,
    interactions: Annotated[int, typer.Option(min=500)] = 40_000,
    seed: Annotated[int, typer.Option(help="Same seed, same world.")] = 0,
) -> None:
    """A synthetic world with tastes to learn, and its best possible AUC."""
    from components.importers import demo

    _print_import(demo.import_demo(None, out, users, videos, interactions, seed))


@importers.command("movielens")
def import_movielens(
    source: Source,
    out: Out,
    posters: Annotated[bool, typer.Option("--posters", help="Copy posters as covers.")] = False,
) -> None:
    """MovieLens 1M (whole or a prefix) or 100K."""
    from components.importers import movielens

    _print_import(movielens.import_movielens(source, out, posters))


@importers.command("amazon")
def import_amazon(
    source: Source,
    out: Out,
    images: Annotated[bool, typer.Option("--images", help="Read the image vectors.")] = False,
) -> None:
    """Amazon 5-core reviews, with or without metadata and image vectors."""
    from components.importers import amazon

    _print_import(amazon.import_amazon(source, out, images))


@importers.command("clips")
def import_clips(source: Source, out: Out) -> None:
    """Videos in a folder for each class: UCF101's layout, or any other."""
    from components.importers import clips

    _print_import(clips.import_clips(source, out))


@importers.command("tables")
def import_tables(
    source: Source,
    out: Out,
    contract: Annotated[str, typer.Option("--contract", help="Built-in name, or a .yaml file.")] = "microvideo",
) -> None:
    """Tables of your own, Parquet or CSV, checked against a contract."""
    from components.importers import tables

    _print_import(tables.import_tables(source, out, contract))


def _print_import(summary: ImportSummary) -> None:
    console = Console()
    for table, rows in summary.rows.items():
        console.print(f"  {table:<14} {rows:>9,} rows", highlight=False)
    _print_rejected(console, summary.rejected, f"{summary.world}/rejected.parquet")
    for note in summary.notes:
        console.print(f"  {note}", highlight=False, markup=False)
    console.print(f"World written to {summary.world}", highlight=False)


@app.command()
def check(
    world: Annotated[str, typer.Argument(help="Folder of canonical tables.")],
    contract: Annotated[str, typer.Option("--contract", help="Built-in name, or a .yaml file.")] = "microvideo",
) -> None:
    """Say what is wrong with a world, without changing it."""
    from components.world.check import check_world
    from transform import contract as contracts

    checked = check_world(world, contracts.load(contract))
    console = Console()
    for table, rows in checked.tables.items():
        console.print(f"  {table:<14} {rows.num_rows:>9,} good rows", highlight=False)
    _print_rejected(console, checked.counts, None)
    for note in checked.notes:
        console.print(f"  {note}", highlight=False)
    if checked.counts:
        raise typer.Exit(EXIT_BAD_INPUT)


@app.command()
def run(
    config: Annotated[str, typer.Option("--config", help="Built-in name (clips, demo, movielens), or a .yaml file.")],
    world: World = None,
    only: Annotated[list[str] | None, typer.Option("--only", help="Only this model; may be repeated.")] = None,
    runs: Runs = Path("runs"),
    run_id: Annotated[str | None, typer.Option("--id", help="Folder below --runs; default: the name.")] = None,
    span: Annotated[
        int | None, typer.Option("--span", min=0, help="Only this span of time; trains from the served models.")
    ] = None,
    beam_runner: Annotated[
        str | None, typer.Option("--beam-runner", help="Beam runner, for instance FlinkRunner.")
    ] = None,
    beam_arg: Annotated[list[str] | None, typer.Option("--beam-arg", help="Further argument of Beam.")] = None,
) -> None:
    """Run the pipeline on this machine: exit 0 pushed, 3 refused by a gate, 2 bad input."""
    from pipeline import config as configs

    settings = _restrict(configs.load(config), only)
    if beam_runner or beam_arg:
        runner = (f"--runner={beam_runner}",) if beam_runner else settings.beam_args
        settings = settings.model_copy(update={"beam_args": (*runner, *(beam_arg or ()))})
    folder = _run(settings, _world(settings, world), runs / (run_id or settings.name), span)
    _report(folder)


@app.command()
def report(
    folder: Annotated[Path | None, typer.Argument(metavar="RUN", help="Folder of a run; default: the newest.")] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Write one self-contained HTML page about a run."""
    from pipeline.runs import newest_run

    if folder and not [*folder.glob("run.json"), *folder.glob("*/run.json")]:
        raise ContractError(f"no run in {folder}: expected run.json in it or a level below: `shortlist run` writes it")
    _report(folder or newest_run(runs))


@app.command(
    add_help_option=False,  # the options tell their own
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def serve(context: typer.Context, runs: Runs = Path("runs")) -> None:
    """Serve models (the newest run's, or --models DIR) over gRPC and REST; TF Serving's flags: see serve --help."""
    from pipeline.runs import load_run, newest_run
    from serving.model_server import options

    chosen = options.parse(
        context.args, "shortlist serve", lambda: str(load_run(newest_run(runs, with_models=True))["models"])
    )
    if chosen.models and not Path(chosen.models).is_dir():
        raise ContractError(f"no models in {chosen.models}: expected a folder of MODEL/VERSION/saved_model.pb")
    from serving.model_server.__main__ import serve as serve_options

    serve_options(chosen)


@app.command()
def front(
    config: Annotated[str, typer.Option("--config", help="That of the feed: its contract, and `queues.store`.")],
    target: Annotated[str, typer.Option("--target", help="HOST:PORT of the model server.")],
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free one.")] = 8080,
    queues: Annotated[
        str | None, typer.Option("--queues", help="Of the configuration, another `queues.store`.")
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0.01, help="Seconds that the model server has.")] = 2.0,
) -> None:
    """Answer POST /feed with JSON: the served feed, with what the topic queues hold; SHORTLIST_TOKEN guards it."""
    from pipeline import config as configs
    from serving import front as fronts
    from serving.client import Client
    from serving.model_server.options import TOKEN_VARIABLE
    from serving.topic_queues.queues import TopicQueues, open_store
    from transform import contract as contracts

    settings, token = configs.load(config), os.environ.get(TOKEN_VARIABLE)
    contract, store = contracts.load(settings.contract), queues or settings.queues.store
    reader = TopicQueues(open_store(store, settings.queues), settings.queues) if store else None
    with Client(target, timeout_seconds=timeout, token=token) as client:
        fronts.run(fronts.Front(client, contract, reader), host, port, token)


@app.command()
def recommend(
    user: Annotated[str, typer.Option("--user", help="The user's id.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Length of the feed.")] = 10,
    target: Annotated[str | None, typer.Option("--target", help="HOST:PORT; default: a server just for this.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Write the feed with its covers to this file.")] = None,
    beside: Annotated[str | None, typer.Option("--beside", help="The page's second user; default: a busy one.")] = None,
    folder: RunFolder = None,
    runs: Runs = Path("runs"),
) -> None:
    """Print a feed for one user."""
    from pipeline.runs import newest_run

    if beside is not None and html is None:
        raise ContractError("--beside names the second user of the page of --html: give --html FILE too")
    _recommend(folder or newest_run(runs, with_models=True), user, n, target, as_json, html, beside)


@app.command()
def index(folder: RunFolder = None, world: World = None, runs: Runs = Path("runs")) -> None:
    """Take new videos into the served models of retrieval and covers and into the feed, without training again."""
    from pipeline.runs import load_run, newest_run

    folder = folder or newest_run(runs, with_models=True)
    record = load_run(folder)
    with _log_to(folder / "logs" / "index.log") as console:
        from pipeline.index import rebuild

        done = rebuild(record, world or record["world"])
        if done.later:
            bare = done.later - done.with_topics
            told = f"; {bare:,} have no title, cover or known tag to tell them by" if bare else ""
            console.print(f"Topics for {done.with_topics:,} of {done.later:,} new videos{told}", highlight=False)
        for name, version in done.versions.items():
            console.print(f"[green]Pushed[/] {name} version {version} to {folder}/models", highlight=False)


@app.command()
def record(
    source: Annotated[str, typer.Argument(help="Folder with a table of interactions: new events alone.")],
    folder: RunFolder = None,
    runs: Runs = Path("runs"),
) -> None:
    """Tell a run's topic queues of new exposures and clicks; they follow at once, without training."""
    from pipeline.runs import load_run, newest_run

    folder = folder or newest_run(runs, with_models=True)
    run = load_run(folder)
    with _log_to(folder / "logs" / "record.log") as console:
        from pipeline.queue_store import record as record_events

        told = record_events(run, source)
        console.print(f"Recorded {told.events:,} exposures, {told.clicked:,} clicks among them", highlight=False)
        if told.unknown:
            console.print(f"  {told.unknown:,} of videos that are in no queue before the next run", highlight=False)
        for reason, number in told.left_out.items():
            console.print(f"  [yellow]{number:,} left out[/]: {reason}", highlight=False)


@app.command("compile")
def compile_pipeline(
    config: Annotated[str, typer.Option("--config", help="Built-in name, or a .yaml file.")],
    out: Annotated[Path, typer.Option("--out", help="The spec to write, JSON.")],
    world: World = None,
    root: Annotated[
        str, typer.Option("--pipeline-root", help="Where the cluster writes artifacts.")
    ] = "/mnt/shortlist",
    models: Annotated[
        str | None, typer.Option("--models", help="Push destination; default: models/ below the root.")
    ] = None,
    image: Annotated[
        str, typer.Option("--image", help="Container image with Shortlist installed.")
    ] = "shortlist:latest",
    only: Annotated[list[str] | None, typer.Option("--only", help="Only this model; may be repeated.")] = None,
    stream: Annotated[
        Literal["content", "feed"] | None,
        typer.Option("--stream", help="Only what is learned of videos, or what comes after and takes it as pushed."),
    ] = None,
) -> None:
    """Compile the pipeline into a Kubeflow Pipelines spec (2.1)."""
    from pipeline import config as configs

    settings = _restrict(configs.load(config), only)
    with _log_to(Path("runs/compile.log")) as console:
        from pipeline import kubeflow

        places = _world(settings, world), root, models or f"{root.rstrip('/')}/models"
        job = kubeflow.compile_spec(settings, *places, image, stream)
        kubeflow.write_spec(job, out)
        console.print(f"{len(kubeflow.executors(job))} steps written to {out}", highlight=False)
        if kubeflow.takes_no_root(root):
            console.print(f"[yellow]Kubeflow Pipelines takes no folder as pipeline root[/], but a bucket: got {root}")
        if kubeflow.takes_no_image(image):
            console.print(f"[yellow]{image} names no digest[/]: steps of one run may come from two images")
        if settings.spans:
            console.print("[yellow]`spans` is left out[/]: a spec learns anew from all that `world` has")


@app.command()
def submit(
    spec: Annotated[Path, typer.Argument(help="What `shortlist compile` wrote.")],
    experiment: Annotated[str, typer.Option("--experiment", help="Made if there is none.")] = "shortlist",
    world: World = None,
    models: Annotated[str | None, typer.Option("--models", help="Push destination; default: the spec's.")] = None,
    run_id: Annotated[
        str | None, typer.Option("--run-id", help="Cached steps serve runs of one id and world; default: a new id.")
    ] = None,
    cron: Annotated[
        str | None, typer.Option("--cron", help='Again and again: six fields, as in "0 0 3 * * *" for 3:00.')
    ] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", help="Of the experiment, on a server of many users.")
    ] = None,
    service_account: Annotated[
        str | None, typer.Option("--service-account", help="Whose rights the steps have; default: the server's.")
    ] = None,
) -> None:
    """Start a compiled pipeline on the Kubeflow Pipelines server that KFP_HOST (and KFP_TOKEN) name."""
    with _log_to(Path("runs/submit.log")) as console:
        from pipeline import submit as submitting

        run_id = run_id or (None if cron else _timestamp())
        given = {name: value for name, value in (("world", world), ("models", models), ("run_id", run_id)) if value}
        kind, number = submitting.submit(spec, experiment, given, cron, namespace, service_account)
        console.print(f"Started {kind} {number} in experiment {experiment}", highlight=False)


def _log_to(path: Path) -> Any:
    from pipeline.screen import quiet

    return quiet(path)


def _run(config: RunConfig, world: str, folder: Path, span: int | None = None) -> Path:
    """Run, show what came of it, and leave with the exit code of a refusal if there was one.

    A run that failed has a report too: what was measured until then is often why.
    """
    from components.world.tables import table_files
    from pipeline import screen
    from pipeline.runs import load_run

    for table in config.tables:
        table_files(world, table)  # refused now if it is not there, for loading TensorFlow takes a while
    # TensorFlow uses oneDNN by itself only on processors with VNNI; on others it trains a 3D-CNN six times as fast.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    log = folder / "logs" / f"{_timestamp()}.log"
    try:
        with screen.quiet(log) as console:
            console.print(f"[bold]Run[/]    {folder}  (details in {log})", highlight=False)
            with console.status("Loading TensorFlow and TFX"):
                from pipeline import local_runner
            record = local_runner.run(config, world, folder, console, log, span)
            _print_outcome(console, record, folder)
            from pipeline.queue_store import load_queues

            load_queues(asdict(record))
    except (ContractError, RunFailedError):
        if (folder / "run.json").is_file() and load_run(folder)["log"] == str(log):
            _report(folder)
        raise
    if record.outcome == "refused":
        _report(folder)
        raise typer.Exit(EXIT_REFUSED)
    return folder


def _print_outcome(console: Console, record: Run, folder: Path) -> None:
    from pipeline.report.gates import gates_of, summary_of

    for model, artifacts in record.artifacts.items():
        version = record.served_version[model]
        if version:
            said, where = ("Unchanged", "in") if model in record.unchanged else ("Pushed", "to")
            place = f"{folder}/models/{model}"
            console.print(f"[green]{said}[/] {model} version {version} {where} {place}", highlight=False)
            if held := summary_of(gates_of(model, artifacts)):
                console.print(f"[dim]  gates: {held}[/]", highlight=False, soft_wrap=True)
            continue
        table = Table(title=f"{model} was refused: nothing is pushed", title_style="bold red")
        for column in ("metric", "slice", "gate", "needed", "got", "served model"):
            table.add_column(column)
        for gate in gates_of(model, artifacts):
            if not gate.passed:
                table.add_row(*gate.cells())
        console.print(table)


def _report(folder: Path) -> None:
    from pipeline import screen

    with screen.quiet(folder / "logs" / "report.log") as console:
        from pipeline.report.page import write_report
        from pipeline.report.records import load

        path = folder / "report.html"
        write_report(load(folder), path)
        console.print(f"[bold]Report[/] {path}", highlight=False)


def _recommend(
    folder: Path, user: str, n: int, target: str | None, as_json: bool, html: Path | None, beside: str | None
) -> None:
    from pipeline import screen
    from pipeline.runs import load_run

    record = load_run(folder)
    with screen.quiet(folder / "logs" / "recommend.log") as console:
        from pipeline import recommend as feeds
        from serving.client import ServingError

        try:
            with console.status("Waiting for the feed"), feeds.served(record, target) as client:
                feed = feeds.recommend(record, user, n, client)
                if html is not None:
                    from pipeline.feed_page import write_page

                    others = [beside] if beside else [busy for busy in _busiest_users(record["world"]) if busy != user]
                    pair = [feed, *(feeds.recommend(record, other, n, client) for other in others[:1])]
                    write_page(record, pair, client, html)
        except ServingError as error:
            raise RunFailedError(str(error)) from error
        if as_json:
            console.file.write(json.dumps(asdict(feed), ensure_ascii=False) + "\n")
        else:
            _print_feed(console, feed)
            if html is not None:
                console.print(f"[bold]Covers[/] {html}", highlight=False)


def _print_feed(console: Console, feed: Feed) -> None:
    if not feed.known_user:
        console.print(f"User {feed.user_id!r} is not in the world: this is the feed of somebody new.", highlight=False)
    table = Table(
        title=f"Feed of user {feed.user_id} ({feed.candidates} candidates, {feed.seen} seen before left out)",
        title_style="bold",
        caption=feed.legend,
        caption_justify="left",
    )
    table.add_column("#", justify="right")
    for column in ("video", "title", "category"):
        table.add_column(column)
    named = any(entry.topics for entry in feed.entries)
    if named:
        table.add_column("topic")
    table.add_column("from")
    table.add_column("score", justify="right")
    covered = any(entry.cover for entry in feed.entries)
    if covered:
        table.add_column("cover")
    explained = any(entry.modality_weights for entry in feed.entries)
    if explained:
        table.add_column("attention")
    for rank, entry in enumerate(feed.entries, start=1):
        present = {name.removesuffix("_vector"): w for name, w in entry.modality_weights.items() if w > 0}
        weights = ", ".join(f"{name} {w:.0%}" for name, w in present.items()) or "no content vectors"
        topic = [next(iter(entry.topics), "")] if named else []
        cells = [str(rank), entry.video_id, entry.title, entry.category, *topic, entry.source, f"{entry.score:.3f}"]
        cover = [f"frame {entry.cover.frame}" if entry.cover else "no frame"] if covered else []
        table.add_row(*cells, *cover, *([weights] if explained else []))
    console.print(table)


def _print_rejected(console: Console, counts: dict[str, int], where: str | None) -> None:
    if not counts:
        console.print("  nothing rejected")
        return
    total = sum(counts.values())
    console.print(
        f"  [yellow]{total:,} rows rejected[/]" + (f", with reasons in {where}" if where else ""), highlight=False
    )
    for reason, count in counts.items():
        console.print(f"    {count:>9,}  {reason}", highlight=False)


def _restrict(config: RunConfig, only: list[str] | None) -> RunConfig:
    unknown = [name for name in only or () if name not in config.models]
    if unknown:
        raise ContractError(f"--only {unknown[0]}: the configuration has {', '.join(config.models)}")
    models = {name: model for name, model in config.models.items() if not only or name in only}
    return config.model_copy(update={"models": models})


def _world(config: RunConfig, world: str | None) -> str:
    found = world or config.world
    if found is None:
        raise ContractError("no world: give --world FOLDER, or `world:` in the configuration")
    return found


def _busiest_users(world: str) -> list[str]:
    """The two users with most events."""
    from components.world import tables

    users = tables.read_table(world, "interactions", ["user_id"])["user_id"]
    counts = sorted(users.value_counts().to_pylist(), key=lambda entry: (-entry["counts"], entry["values"]))
    return [str(entry["values"]) for entry in counts[:2]]


def _timestamp() -> str:
    from datetime import datetime

    return datetime.now().strftime("%Y%m%d-%H%M%S")


def main() -> None:
    """Entry point: a user's mistake is one message and exit code 2, never a traceback."""
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    warnings.simplefilter("ignore")
    try:
        app()
    except ContractError as error:
        _fail(str(error), EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if error.filename is None:
            raise  # no file that a user could have named
        _fail(f"{error.filename}: {error.strerror}", EXIT_BAD_INPUT)
    except RunFailedError as error:
        _fail(str(error), EXIT_FAILED)


def _fail(message: str, code: int) -> NoReturn:
    errors.print(f"[red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
