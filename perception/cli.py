"""The command line. Exit codes: 0 done, 1 failed at run time, 2 bad usage or input, 130 interrupted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from perception import __version__, calibrate_commands, training_commands
from perception.bench import commands as bench_commands
from perception.errors import BadInput, FreespaceError, tell
from perception.heap import keep_frames_memory
from perception.leaving import Leaving
from perception.options import Backend, InputSize, Model, Precision, parse_pair
from perception.signals import INTERRUPTED, reload_on_signal, stop_on_signal

if TYPE_CHECKING:
    from engine.base import Engine

app = typer.Typer(
    name="freespace",
    help="Real-time drivable-area perception: video in, drivable polygons and overlays out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(training_commands.app)
app.add_typer(calibrate_commands.app, name="calibrate")
app.add_typer(bench_commands.app, name="bench")


def main() -> None:
    """Entry point of the console script: a user's mistake ends in one sentence on stderr, not in a traceback."""
    leaving = Leaving()
    leaving.code = run_app()
    sys.exit(leaving.code)


def run_app() -> int:
    """Returns the exit code."""
    from engine.contract import EngineError, ModelError

    try:
        app()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except (BadInput, ModelError) as error:
        return fail(error, 2)
    except (FreespaceError, EngineError) as error:
        return fail(error, 1)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def fail(error: Exception, code: int) -> int:
    print(f"freespace: {error}", file=sys.stderr)
    return code


def print_version(wanted: bool) -> None:
    if wanted:
        print(f"freespace {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    source: Annotated[
        Optional[list[str]],
        typer.Argument(
            help="A video, an image, a folder, a ROS 2 bag, 0 or v4l2://, csi://, rtsp://, http(s)://, gstreamer://, synthetic://."
            " Several are cameras that share the network, each NAME=SOURCE: outputs get its name."
        ),
    ] = None,
    out: Annotated[Optional[str], typer.Option(help="Overlay video to write (.mp4, H.264).")] = None,
    polygons: Annotated[Optional[str], typer.Option(help="Polygons to write, one JSON object per frame (.jsonl).")] = None,
    masks: Annotated[Optional[str], typer.Option(help="Folder for one PNG mask (0/255) per frame.")] = None,
    contact_sheet: Annotated[Optional[str], typer.Option(help="Page of a dozen overlays to write (.png).")] = None,
    model: Model = None,
    backend: Backend = None,
    precision: Precision = None,
    input_size: InputSize = None,
    threads: Annotated[Optional[int], typer.Option(help="CPU threads for the network; 0 leaves it to the backend.")] = None,
    config: Annotated[Optional[Path], typer.Option(help="YAML file; options given here win over it.")] = None,
    plane: Annotated[Optional[str], typer.Option(help="freespace (whole road) or ego (own carriageway).")] = None,
    topic: Annotated[Optional[str], typer.Option(help="Of a ROS 2 bag: the topic with the pictures.")] = None,
    start: Annotated[Optional[float], typer.Option(help="Begin at this media time, seconds.")] = None,
    duration: Annotated[Optional[float], typer.Option(help="Take this much media time, seconds.")] = None,
    every: Annotated[Optional[int], typer.Option(help="Take one frame of every N.")] = None,
    image_fps: Annotated[Optional[float], typer.Option(help="Rate at which a folder of images is played.")] = None,
    overwrite: Annotated[Optional[bool], typer.Option("--overwrite", help="Replace existing outputs.")] = None,
    show: Annotated[Optional[bool], typer.Option("--show", help="Show the overlay in a window.")] = None,
    realtime: Annotated[
        Optional[bool], typer.Option("--realtime", help="Play a recording at its own pace, as if it were live.")
    ] = None,
    loop: Annotated[Optional[bool], typer.Option("--loop", help="Begin a recording again when it ends.")] = None,
    policy: Annotated[Optional[str], typer.Option(help="all, latest, or auto: latest for what is live.")] = None,
    budget_ms: Annotated[Optional[float], typer.Option(help="Of a live source: older results are not valid.")] = None,
    width: Annotated[Optional[int], typer.Option(help="Width asked of a camera.")] = None,
    height: Annotated[Optional[int], typer.Option(help="Height asked of a camera.")] = None,
    fps: Annotated[Optional[float], typer.Option(help="Frames per second asked of a camera.")] = None,
    serve: Annotated[Optional[str], typer.Option(help="HOST:PORT of a web page with the live overlay; extra web.")] = None,
    metrics: Annotated[Optional[str], typer.Option(help="HOST:PORT of metrics for Prometheus; extra web.")] = None,
    mcap: Annotated[Optional[str], typer.Option(help="Recording to write for Foxglove (.mcap); extra foxglove.")] = None,
    bag: Annotated[Optional[str], typer.Option(help="ROS 2 bag to write (a folder); extra bags.")] = None,
    bag_topic: Annotated[
        Optional[list[str]], typer.Option(help="What is written to it, may be given again: scan, mask, overlay/compressed, …")
    ] = None,
    rerun: Annotated[Optional[str], typer.Option(help="Recording to write for Rerun (.rrd); extra rerun.")] = None,
    view: Annotated[Optional[str], typer.Option(help="rerun: show the results live in its viewer.")] = None,
    append: Annotated[
        Optional[bool],
        typer.Option("--append", help="Go on with the polygon file of the run before; --mcap, --rerun: a further file."),
    ] = None,
    rotate_mb: Annotated[
        Optional[float], typer.Option(help="Begin a new polygon or MCAP file after so many megabytes.")
    ] = None,
    state: Annotated[Optional[str], typer.Option(help="File that the next start goes on from (.json).")] = None,
    calibration: Annotated[
        Optional[str], typer.Option(help="Camera with its mount, from 'calibrate' (.yaml): results in metres, too.")
    ] = None,
) -> None:
    """Find the drivable area in every frame of SOURCE."""
    from functools import partial

    from perception.config import Config, load_rig
    from perception.rig import camera_configs, name_sources, split_name

    sources = source or []
    overrides = {
        key: value
        for key, value in {
            "capture.source": sources[0] if len(sources) == 1 else None,
            "output.video": out,
            "output.polygons": polygons,
            "output.masks": masks,
            "output.contact_sheet": contact_sheet,
            "output.overwrite": overwrite,
            "output.show": show,
            "engine.model": model,
            "engine.backend": backend,
            "engine.precision": precision,
            "engine.threads": threads,
            "engine.input_size": input_size,
            "polygons.plane": plane,
            "capture.topic": topic,
            "capture.start_s": start,
            "capture.duration_s": duration,
            "capture.every": every,
            "capture.image_fps": image_fps,
            "capture.realtime": realtime,
            "capture.loop": loop,
            "capture.width": width,
            "capture.height": height,
            "capture.fps": fps,
            "loop.policy": policy,
            "loop.budget_ms": budget_ms,
            "loop.state": state,
            "output.serve": serve,
            "output.metrics": metrics,
            "output.mcap": mcap,
            "output.bag": bag,
            "output.bag_topics": bag_topic or None,
            "output.rerun": rerun,
            "output.view": view,
            "output.append": append,
            "output.rotate_mb": rotate_mb,
            "ground.calibration": calibration,
        }.items()
        if value is not None
    }
    load = partial(load_rig, config, overrides)
    settings = load()
    if settings.cameras or len(sources) > 1 or any(name for name, _ in map(split_name, sources)):
        from perception.cameras import run_cameras

        named = name_sources(sources)

        def load_all() -> dict[str, Config]:
            return camera_configs(load(), named, overrides)

        with stop_on_signal() as stop, reload_on_signal(stop, config is not None) as asked:
            interrupted = run_cameras(camera_configs(settings, named, overrides), stop, asked, load_all)
    elif settings.capture.source is None:
        raise BadInput("what is to be looked at? Give a SOURCE, or capture.source in the --config file")
    else:
        from perception.session import Reload, run_session

        with stop_on_signal() as stop, reload_on_signal(stop, config is not None) as asked:
            interrupted = run_session(settings.capture.source, settings, stop, Reload(asked, load, settings))
    if interrupted:
        raise typer.Exit(INTERRUPTED)


@app.command()
def batch(
    videos: Annotated[list[str], typer.Argument(help="Videos, folders of them, and lists as @list.txt.")],
    out: Annotated[Path, typer.Option(help="Folder for the results, and for the journal of what is done.")],
    overlay: Annotated[bool, typer.Option("--overlay", help="Write overlay videos, too.")] = False,
    masks: Annotated[bool, typer.Option("--masks", help="Write a PNG mask for each frame, too.")] = False,
    contact_sheet: Annotated[bool, typer.Option("--contact-sheet", help="Write a page of a dozen overlays, too.")] = False,
    model: Model = None,
    backend: Backend = None,
    precision: Precision = None,
    input_size: InputSize = None,
    config: Annotated[Optional[Path], typer.Option(help="YAML file; options given here win over it.")] = None,
    plane: Annotated[Optional[str], typer.Option(help="freespace (whole road) or ego (own carriageway).")] = None,
    every: Annotated[Optional[int], typer.Option(help="Take one frame of every N.")] = None,
    topic: Annotated[Optional[str], typer.Option(help="Of ROS 2 bags: the one with the pictures.")] = None,
    calibration: Annotated[Optional[str], typer.Option(help="Camera with its mount (.yaml): results in metres, too.")] = None,
    workers: Annotated[int, typer.Option(help="Recordings at a time; 0: one for every two cores, two on a GPU.", min=0)] = 0,
    threads: Annotated[
        Optional[int],
        typer.Option(help="CPU threads of each worker's network; by default 2, or the cores divided by --workers."),
    ] = None,
    retries: Annotated[int, typer.Option(help="Further attempts at a recording that failed.", min=0)] = 2,
    stall: Annotated[float, typer.Option(help="Give up a recording after so many seconds without a frame.", min=1)] = 300.0,
    redo: Annotated[bool, typer.Option("--redo", help="Replace results of other settings.")] = False,
    ray: Annotated[Optional[str], typer.Option(help="Do it on the Ray cluster at this HOST:PORT, or local; extra ray.")] = None,
) -> None:
    """Find the drivable area in whole archives: what is done already is not done again."""
    from perception.batch_command import Batch, run_batch
    from perception.config import load_config

    settings = load_config(
        config,
        {
            "engine.model": model,
            "engine.backend": backend,
            "engine.precision": precision,
            "engine.input_size": input_size,
            "engine.threads": threads,
            "polygons.plane": plane,
            "capture.every": every,
            "capture.topic": topic,
            "ground.calibration": calibration,
        },
    )
    wanted = Batch(videos, out, overlay, masks, contact_sheet, workers, retries, stall, redo, ray)
    with stop_on_signal() as stop:
        interrupted = run_batch(wanted, settings, stop)
    if interrupted:
        raise typer.Exit(INTERRUPTED)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results; results of an earlier demo are replaced.")] = Path(
        "freespace-demo"
    ),
    backend: Backend = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use the synthetic drive, fetch nothing.")] = False,
) -> None:
    """Run the shipped model over ten seconds of real dashcam video."""
    from perception.demo import run_demo

    with stop_on_signal() as stop:
        interrupted = run_demo(out, backend, offline, stop)
    if interrupted:
        raise typer.Exit(INTERRUPTED)


@app.command()
def parity(
    model: Annotated[Optional[str], typer.Argument(help="Model file (.onnx); the shipped one by default.")] = None,
    source: Annotated[str, typer.Option(help="Frames to compare on, as for 'run'.")] = "synthetic://drive?seconds=1",
    every: Annotated[int, typer.Option(help="Take one frame of every N.", min=1)] = 1,
    precision: Annotated[
        str, typer.Option(help="Of every backend but torch that computes in it; the others take fp32.")
    ] = "fp32",
    tolerance: Annotated[int, typer.Option(help="Largest difference allowed, grey levels of 255.", min=0)] = 2,
) -> None:
    """Compare the scores of every backend that works here with those of the torch reference, pixel by pixel."""
    from engine import BACKENDS, DEFAULT_MODEL, open_engine, read_contract
    from engine.parity import compare
    from perception.capture import Selection, open_source
    from perception.capture.uri import redacted

    if not any(precision in backend.precisions for backend in BACKENDS.values()):
        raise BadInput(f"no backend computes in {precision!r}")

    quantised = read_contract(Path(model) if model else DEFAULT_MODEL).quantised

    def open_backend(name: str) -> Engine:
        wanted = precision if precision in BACKENDS[name].precisions else "fp32"
        return open_engine(model, name, "int8" if quantised else wanted, say=tell)

    with open_source(source, Selection(every=every)) as frames:
        comparison = compare((f.image for f in frames.frames()), open_backend)
        problems = frames.problems
    if not comparison.rows:
        reasons = "".join(f"; {name}: {reason}" for name, reason in comparison.left_out.items())
        raise BadInput(f"only one backend works here, there is nothing to compare it with{reasons}")
    if not comparison.rows[0].frames:
        raise BadInput(f"{redacted(source)}: no frames to compare on{': ' + problems[0] if problems else ''}")
    print(comparison)
    worst = max(row.largest for row in comparison.rows)
    if worst > tolerance:
        raise FreespaceError(f"backends differ by up to {worst} grey levels, allowed are {tolerance}")


@app.command()
def build(
    model: Annotated[Optional[Path], typer.Argument(help="Model file (.onnx); the shipped one by default.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16, or int8 for a model with Q/DQ nodes.")] = "fp16",
    input_size: InputSize = None,
    batch: Annotated[int, typer.Option(help="Images at a time.", min=1)] = 1,
    workspace: Annotated[int, typer.Option(help="Most scratch memory, MiB; 0 for TensorRT's own limit.", min=0)] = 0,
    timing_cache: Annotated[Optional[Path], typer.Option(help="File of build timings to use and to update.")] = None,
    dla: Annotated[int, typer.Option(help="Deep learning accelerator to use, -1 for none.", min=-1)] = -1,
    version_compatible: Annotated[bool, typer.Option(help="Let later releases of TensorRT load the plan.")] = False,
    rtx: Annotated[bool, typer.Option("--rtx", help="Build with TensorRT for RTX.")] = False,
    target: Annotated[
        Optional[str], typer.Option(help="Compute capability such as 8.6, for RTX: build without that GPU.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build again even where a plan fits.")] = False,
) -> None:
    """Compile a model into a TensorRT plan, which 'run --backend tensorrt' then finds."""
    from engine import DEFAULT_MODEL, read_contract
    from engine.build import PlanOptions
    from engine.graph import at_size
    from perception.plan import build as build_plan

    contract = read_contract(model or DEFAULT_MODEL)
    if input_size:
        contract = at_size(contract, parse_pair(input_size, "x", "--input-size", "640x384"))
    targets = (parse_pair(target, ".", "--target", "8.6"),) if target else ()
    options = PlanOptions(precision, batch, workspace, dla, version_compatible, targets)
    build_plan(contract, options, "tensorrt_rtx" if rtx or targets else "tensorrt", timing_cache, force)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def node(context: typer.Context) -> None:
    """Run as a ROS 2 lifecycle node, with arguments as ROS has them: --ros-args -p polygons.threshold:=0.6."""
    keep_frames_memory(one_heap=True)
    from perception.ros import start

    with stop_on_signal() as stop:
        start(context.args, stop)  # 0 after a signal, unlike other commands: ROS takes anything else for a crash


@app.command()
def doctor(json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False) -> None:
    """Say what is installed and works on this machine, and how to mend what does not; exit code 1 where 'run' cannot work."""
    from perception.doctor import examine, print_report

    report = examine()
    if json:
        print(report.to_json())
    else:
        print_report(report)
    if not report.ready:
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
