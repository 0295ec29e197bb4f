"""A checkpoint in other formats, each proved equal to it: python export.py [--model CKPT] [--formats ...]

    python export.py                      all formats of the weights that come with the project, in exports/, with a README.md
    python export.py --model best_checkpoint.pth.tar   of your own
    python export.py --formats onnx int8  some of them

weights      unet_weights.pth.tar     the weights and constants without the optimizer's part, for this project
pth          unet_model.pth           the whole model; torch.load runs what is in such a file: for files of your own only
torchscript  unet_model_torchjit.pth  needs torch, but not this project; deprecated by torch in favour of pt2
onnx         unet_model_onnx.onnx     needs ONNX Runtime, no torch
int8         unet_model_int8.onnx     the same in 8 bits: a quarter of the size, and faster
pt2          unet_model.pt2           torch.export: what TorchScript is deprecated for
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

import config
import demo_data
from pictures import (
    MASK_SUFFIX,
    SHIPPED,
    UserError,
    brief,
    check_folders,
    find_pairs,
    keep_freed_memory,
    labels_of,
    printable,
    read_image,
    read_labels,
    read_mask,
    refuse,
    replacing,
    user_errors,
)

EAGER = "with torch.no_grad():\n    logits = model(torch.from_numpy(images)).numpy()"
FORMATS = {  # file, how it is loaded, how it is run: images, float32 (B, C, H, W), become logits (B, classes, H, W)
    "weights": (
        "unet_weights.pth.tar",
        'import torch, utils  # in this project\'s folder\nmodel = utils.load_model("unet_weights.pth.tar", "cpu")',
        EAGER,
    ),
    "pth": (
        "unet_model.pth",
        'import torch\nmodel = torch.load("unet_model.pth", weights_only=False)  # in this project\'s folder; runs what is in the file',
        EAGER,
    ),
    "torchscript": (
        "unet_model_torchjit.pth",
        'import torch\nmodel = torch.jit.load("unet_model_torchjit.pth")',
        EAGER,
    ),
    "onnx": (
        "unet_model_onnx.onnx",
        'import onnxruntime\nsession = onnxruntime.InferenceSession("unet_model_onnx.onnx")',
        'logits = session.run(None, {"input": images})[0]',
    ),
    "int8": (
        "unet_model_int8.onnx",
        'import onnxruntime\nsession = onnxruntime.InferenceSession("unet_model_int8.onnx")',
        'logits = session.run(None, {"input": images})[0]',
    ),
    "pt2": (
        "unet_model.pt2",
        'import torch\nmodel = torch.export.load("unet_model.pt2").module()',
        EAGER,
    ),
}
NEEDS = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "int8": ("onnx", "onnxscript", "onnxruntime"),
}
CALIBRATION, SCORED, CHOSEN_ON = (
    32,
    200,
    40,
)  # images: to find the ranges of int8, to score, to choose what stays in float
TOLERANCE = 1e-4  # of the largest logit, for formats of float32
INT8_LOSS, INT8_AIM = (
    0.001,
    0.0003,
)  # of Dice: what is refused, and what float layers are taken back for
TURNS, RUNS, REST = (
    6,
    8,
    0.1,
)  # latency is the median of so many runs; the formats take turns, with so many seconds between them


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = refuse
    parser.add_argument(
        "--model",
        metavar="CKPT",
        default=SHIPPED,
        help="checkpoint; default the weights that come with the project",
    )
    parser.add_argument(
        "--out", metavar="DIR", default="exports", help="where the files go; default %(default)s"
    )
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=FORMATS,
        default=list(FORMATS),
        metavar="FORMAT",
        help=f"some of {' '.join(FORMATS)}; default all",
    )
    parser.add_argument(
        "--images",
        metavar="DIR",
        help=f"photographs to score on; default {config.VAL_IMG_DIR}, or rendered ones where there are none",
    )
    parser.add_argument("--masks", metavar="DIR", help="their masks")
    parser.add_argument(
        "--calibration",
        metavar="DIR",
        default=config.TRAIN_IMG_DIR,
        help="photographs, with masks in --calibration-masks, that int8's ranges are found on; default %(default)s, or rendered ones",
    )
    parser.add_argument(
        "--calibration-masks",
        metavar="DIR",
        default=config.TRAIN_MASK_DIR,
        help="default %(default)s",
    )
    config.add_options(parser, ["MASK_SUFFIX"])
    args = parser.parse_args()
    args.suffix = config.checked(args).MASK_SUFFIX
    if bool(args.images) != bool(args.masks):
        raise UserError("--images and --masks go together; give both, or neither")
    if not Path(args.model).is_file():
        raise UserError(
            f"no checkpoint {str(args.model)!r}; train one with python train.py, or name another with --model"
        )
    missing = sorted(
        {module for name in args.formats for module in NEEDS.get(name, ()) if not installed(module)}
    )
    if missing:
        raise UserError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed, which onnx and int8 need; pip install {' '.join(missing)}, or leave them out of --formats"
        )
    named = [(args.images, args.masks)] if args.images else []
    if (args.calibration, args.calibration_masks) != (config.TRAIN_IMG_DIR, config.TRAIN_MASK_DIR):
        named.append((args.calibration, args.calibration_masks))
    check_folders(*named, suffix=args.suffix)
    return args


def installed(module):
    import importlib.util

    return importlib.util.find_spec(module) is not None


# ---------------------------------------------------------------- the formats


def whole_size(model):
    """The model for any height and width without a branch, which tracing would take once for all."""
    import torch
    from torch.nn import functional as F

    class Padded(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            height, width = x.shape[2:]
            multiple = model.multiple
            x = F.pad(
                x,
                (
                    0,
                    (multiple - width % multiple) % multiple,
                    0,
                    (multiple - height % multiple) % multiple,
                ),
                mode="replicate",
            )
            return self.model(x)[:, :, :height, :width]

    return Padded().eval()


def write(name, path, model, facts, calibration):
    """One format of the model to a file -> a remark for the README."""
    import torch

    from exported import CONFIG

    multiple, example = (
        model.multiple,
        torch.rand(2, model.in_channels, model.multiple + 3, model.multiple + 5),
    )
    extra = {CONFIG: json.dumps(facts)}
    dynamic = {"x": {axis: torch.export.Dim.DYNAMIC for axis in (0, 2, 3)}}
    with (
        warnings.catch_warnings(action="ignore"),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):  # torch's and onnx's own remarks
        if name == "weights":
            torch.save({"state_dict": model.state_dict(), "config": facts}, path)
        elif name == "pth":
            torch.save(model, path)
        elif name == "torchscript":
            torch.jit.save(torch.jit.trace(whole_size(model), example), path, _extra_files=extra)
        elif name == "pt2":
            steps = {
                "x": {
                    0: torch.export.Dim("batch"),
                    2: multiple * torch.export.Dim("rows"),
                    3: multiple * torch.export.Dim("columns"),
                }
            }
            example = torch.rand(2, model.in_channels, 3 * multiple, 5 * multiple)
            torch.export.save(
                torch.export.export(model, (example,), dynamic_shapes=steps),
                path,
                extra_files=extra,
            )
        elif name == "onnx":
            torch.onnx.export(
                whole_size(model),
                (example,),
                path,
                input_names=["input"],
                output_names=["output"],
                dynamic_shapes=dynamic,
                dynamo=True,
                external_data=False,
                opset_version=20,
                verbose=False,
            )
            add_metadata(path, facts)
        elif name == "int8":
            return quantise(path, model, facts, calibration)
    return ""


def add_metadata(path, facts):
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in facts.items()})
    for value in (*model.graph.input, *model.graph.output):
        for axis, meaning in ((0, "batch"), (2, "height"), (3, "width")):
            value.type.tensor_type.shape.dim[axis].dim_param = meaning
    onnx.save(model, path)


def quantise(path, model, facts, calibration):
    """ONNX Runtime's static quantisation, 8 bits per channel, ranges from the calibration images. What rounding shifts the logits near the
    outline by, on average, is given back to the last bias (after the bias correction of Nagel et al., 2019, arXiv:1906.04721). Layers
    go back to float, a kind at a time, until Dice on other calibration images falls by no more than INT8_AIM -> which, in words."""
    import onnx
    import onnxruntime
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.items = iter({"input": image} for image, _ in calibration[:CALIBRATION])

        def get_next(self):
            return next(self.items, None)

    folder = tempfile.TemporaryDirectory()
    plain = Path(folder.name, "float.onnx")
    write("onnx", plain, model, facts, calibration)
    nodes = onnx.load(plain).graph.node
    kinds = {
        kind: [node.name for node in nodes if node.op_type == kind]
        for kind in ("Conv", "ConvTranspose")
    }
    first, last, up = kinds["Conv"][:1], kinds["Conv"][-1:], kinds["ConvTranspose"]
    choices = {
        "nothing": [],
        "the last convolution": last,
        "the first and the last convolution": first + last,
        "the transposed convolutions": up,
        "the transposed, the first and the last convolutions": up + first + last,
    }
    chosen_on = calibration[CALIBRATION:]

    def runner(file):
        session = onnxruntime.InferenceSession(file)
        return lambda images: session.run(None, {"input": images})[0]

    def quantised(source, names):
        quantize_static(
            source,
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            nodes_to_exclude=names,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return runner(path)

    float_run, best = runner(plain), None
    reference = mean_dice(float_run, chosen_on, facts)
    for words, names in choices.items():
        run = quantised(plain, names)
        wanted, found = (
            np.concatenate([each(image) for image, _ in calibration[:CALIBRATION]]).swapaxes(0, 1)
            for each in (float_run, run)
        )  # (classes, images, h, w)
        outline = (
            np.abs(wanted[0]) if len(wanted) == 1 else np.subtract(*np.sort(wanted, axis=0)[:-3:-1])
        ) < 1
        shift = (wanted - found)[:, outline].mean(1) if outline.any() else np.zeros(len(wanted))
        run = quantised(with_bias(plain, shift.repeat(model.unshuffle**2)), names)
        loss = reference - mean_dice(run, chosen_on, facts)
        if best is None or loss < best[0]:
            best = loss, words, path.read_bytes()
        if loss <= INT8_AIM:
            break
    path.write_bytes(best[2])
    folder.cleanup()
    add_metadata(path, facts)
    return f"In int8 {best[1]} stayed in float: on {len(chosen_on)} images to choose by, Dice is {best[0]:+.5f} lower then."


def with_bias(path, more):
    """The path of a copy of an ONNX model whose last convolution's bias is larger by so much per channel."""
    import onnx

    model = onnx.load(path)
    name = [node for node in model.graph.node if node.op_type == "Conv"][-1].input[2]
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    bias.CopyFrom(
        onnx.numpy_helper.from_array(
            onnx.numpy_helper.to_array(bias) + more.astype(np.float32), name
        )
    )
    onnx.save(model, path.with_name("shifted.onnx"))
    return path.with_name("shifted.onnx")


# ---------------------------------------------------------------- the proof


def mean_dice(run, pairs, facts):
    """Mean Dice at the masks' own size of run(images (1, C, H, W)) -> logits, over (image, mask as CarvanaDataset.mask returns it)."""
    from utils import mean_scores

    return mean_scores([(run(image)[0], truth) for image, truth in pairs], facts)["dice"]


def serve(connection, folder, load, run, project):
    """In a process of its own, with what a user would type: (inputs) -> list of logits, (images, runs) -> seconds of each run."""
    os.chdir(folder)
    sys.path.insert(0, project)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    names = {}
    try:
        with warnings.catch_warnings(action="ignore"):
            exec(load, names)
            connection.send(None)
            while (asked := connection.recv()) is not None:
                inputs, runs = asked
                if runs:
                    names["images"], seconds = inputs, []
                    for _ in range(runs):
                        started = time.perf_counter()
                        exec(run, names)
                        seconds.append(time.perf_counter() - started)
                    connection.send(seconds)
                    continue
                found = []
                for names["images"] in inputs:
                    exec(run, names)
                    found.append(names["logits"])
                connection.send(found)
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")


class Process:
    """call(inputs, runs) -> what serve() answers. Raises UserError where the file does not do what its snippet says."""

    def __init__(self, name, folder, load, run):
        context = multiprocessing.get_context("spawn")
        self.name, (self.connection, theirs) = name, context.Pipe()
        self.process = context.Process(
            target=serve,
            args=(theirs, str(folder), load, run, str(Path(__file__).parent)),
            daemon=True,
        )
        self.process.start()
        theirs.close()
        self.answer()

    def call(self, inputs, runs=0):
        self.connection.send((inputs, runs))
        return self.answer()

    def answer(self):
        try:
            result = self.connection.recv()
        except EOFError:
            result = "its process ended"
        if isinstance(result, str):
            raise UserError(
                f"{FORMATS[self.name][0]} cannot be loaded and run ({brief(result)}); it was not kept"
            )
        return result


def differences(logits, expected):
    """Largest and mean absolute difference of lists of arrays, and the largest expected value."""
    apart = [np.abs(one - other) for one, other in zip(logits, expected, strict=True)]
    return (
        max(one.max() for one in apart),
        float(np.mean([one.mean() for one in apart])),
        max(np.abs(one).max() for one in expected),
    )


def fault(name, row, reference):
    """Why a format is not the model, in words; None where it is."""
    allowed = TOLERANCE * max(1, row["largest"])
    if name == "int8":
        return (
            None
            if reference - row["dice"] <= INT8_LOSS
            else f"its Dice is {row['dice']:.4f}, the checkpoint's {reference:.4f}"
        )
    if row["max"] > allowed:
        return f"its logits differ by up to {row['max']:.2g}, allowed are {allowed:.2g}"
    return (
        None
        if abs(row["dice"] - reference) < 5e-5
        else f"its Dice is {row['dice']:.6f}, the checkpoint's {reference:.6f}"
    )


# ---------------------------------------------------------------- main


def pairs_for(args, trained, model):
    """-> (pairs to calibrate on, what they are, pairs to score on, what they are), pairs [(image (1, C, H, W) float32, mask as CarvanaDataset.mask returns it)]."""
    size = (trained["IMAGE_HEIGHT"], trained["IMAGE_WIDTH"])
    with tempfile.TemporaryDirectory() as folder:

        def rendered():
            if labels:
                raise UserError(
                    f"a model of {len(labels.names)} classes needs photographs of them: --calibration and --calibration-masks for int8, --images and --masks to score on"
                )
            if not os.listdir(folder):
                demo_data.render_set(Path(folder) / "set", cars=14, val_cars=5, angles=8)
            return [
                Path(folder) / "set" / f"{part}_{kind}"
                for part in ("train", "val")
                for kind in ("images", "masks")
            ]

        labels = labels_of(trained)

        def some(images, masks, count, suffix):
            pairs = find_pairs(images, masks, suffix)
            pairs = (
                [pairs[i * len(pairs) // count] for i in range(count)]
                if len(pairs) > count
                else pairs
            )
            return [
                (
                    prepared(read_image(image, size, trained["IN_CHANNELS"]), model),
                    read_labels(mask, labels) if labels else read_mask(mask) > 127,
                )
                for image, mask in pairs
            ]

        there = Path(args.calibration).is_dir() and Path(args.calibration_masks).is_dir()
        calibration = (
            []
            if "int8" not in args.formats
            else some(
                args.calibration, args.calibration_masks, CALIBRATION + CHOSEN_ON, args.suffix
            )
            if there
            else some(*rendered()[:2], CALIBRATION + CHOSEN_ON, MASK_SUFFIX)
        )
        folders = (
            (args.images, args.masks)
            if args.images
            else (config.VAL_IMG_DIR, config.VAL_MASK_DIR)
            if Path(config.VAL_IMG_DIR).is_dir()
            else None
        )
        scored = (
            some(*folders, SCORED, args.suffix)
            if folders
            else some(*rendered()[2:], SCORED, MASK_SUFFIX)
        )
    if len(calibration) < 8 and "int8" in args.formats:
        raise UserError(
            f"{args.calibration} holds {len(calibration)} photographs; int8 needs 8 at least, name others with --calibration and --calibration-masks"
        )
    if 0 < len(calibration) <= CALIBRATION:  # few: ranges from all, and the choice on the same
        calibration = calibration * (CALIBRATION // len(calibration) + 1)
    return (
        calibration,
        f"photographs of {args.calibration}" if there else "rendered cars",
        scored,
        f"photographs of {folders[0]}" if folders else "rendered cars",
    )


def prepared(image, model):
    """uint8 (H, W, C) -> float32 (1, C, H, W), as the network is fed everywhere."""
    import torch

    from device import to_input

    return to_input(torch.from_numpy(image).permute(2, 0, 1)[None], model).contiguous().numpy()


def main(args):
    import torch

    import device
    from checkpoint import load_model, read_checkpoint

    model = load_model(args.model, "cpu").to(memory_format=torch.contiguous_format)
    trained = device.config_of(model)
    calibration, calibrated_on, scored, what = pairs_for(args, trained, model)
    images, truths = [image for image, _ in scored], [truth for _, truth in scored]
    state = read_checkpoint(args.model)
    facts = {name: trained[name] for name in (*device.INPUT_RULES, "IN_CHANNELS", "FEATURES")}
    facts |= {
        "DICE": state.get("best"),
        "VERSION": f"carvana-unet export.py, torch {torch.__version__}",
    }

    multiple = model.multiple
    height, width = trained["IMAGE_HEIGHT"], trained["IMAGE_WIDTH"]
    odd = [
        torch.nn.functional.interpolate(
            torch.from_numpy(images[0]), size=size, mode="bilinear"
        ).numpy()
        for size in (
            (height + multiple, width + 2 * multiple),
            (height // 2 + 3, width // 2 + 5),
            (multiple // 2 + 1, multiple + 1),
        )
    ]
    checks = [images[0], np.concatenate(images[:3]), *odd, np.concatenate([odd[1]] * 2)]

    def eager(inputs, half=False):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            return [model(torch.from_numpy(one)).float().numpy() for one in inputs]

    def score(logits):
        return mean_dice(lambda pair: pair, list(zip(logits, truths)), facts)

    def call(name, inputs):
        found = running[name].call([fitting(name, one, multiple) for one in inputs])
        return [logits[..., : one.shape[2], : one.shape[3]] for logits, one in zip(found, inputs)]

    expected = eager(checks)
    reference = score(eager(images))
    half = dict(
        zip(("max", "mean", "largest"), differences(eager(checks, half=True), expected))
    ) | {"dice": score(eager(images, half=True))}
    rows = {
        "PyTorch, float32": {"max": 0.0, "mean": 0.0, "dice": reference},
        "PyTorch, bfloat16": half,
    }
    remarks, failed, running = [], [], {}
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=out, prefix=".", ignore_cleanup_errors=True
    ) as staging:  # what stands in `out` is replaced by what is proved only
        for name in args.formats:
            file, load, run = FORMATS[name]
            print(f"{file} ...", flush=True)
            try:
                with replacing(Path(staging, file)) as temporary:
                    remark = write(name, temporary, model, facts, calibration)
                running[name] = Process(name, staging, load, run)
                fit = [
                    i
                    for i, one in enumerate(checks)
                    if name != "pt2" or min(one.shape[2:]) > multiple
                ]  # a .pt2 takes two multiples and more
                row = dict(
                    zip(
                        ("max", "mean", "largest"),
                        differences(
                            call(name, [checks[i] for i in fit]), [expected[i] for i in fit]
                        ),
                    )
                ) | {
                    "dice": score(call(name, images)),
                    "mb": Path(staging, file).stat().st_size / 1e6,
                }
                if wrong := fault(name, row, reference):
                    raise UserError(f"{file} is not the model: {wrong}; it was not kept")
                os.replace(Path(staging, file), out / file)
                rows[name] = row
                remarks += [f"{remark} Its ranges come from {calibrated_on}."] if remark else []
            except (UserError, RuntimeError) as error:
                running.pop(name, None)
                failed.append(str(error))
    measure(rows, running, eager, images[0], multiple)
    text = readme(rows, remarks, facts, what, len(scored), args)
    if not failed:
        smallest = next(
            (FORMATS[name][0] for name in ("int8", "onnx") if name in args.formats), None
        )
        for path, content in (
            (out / "README.md", text),
            *([(out / "predict.py", PREDICT.replace("MODEL", smallest))] if smallest else []),
        ):
            with replacing(path) as temporary:
                temporary.write_text(content, encoding="utf-8")
    print(text[text.index("| format") : text.index("\n\n", text.index("| format"))])
    for process in running.values():
        process.connection.send(None)
    if failed:
        raise UserError("\n".join(failed))
    print(f"{printable(out)}/README.md says how each is used")
    if others := [
        file
        for name, (file, *_) in FORMATS.items()
        if name not in args.formats and (out / file).exists()
    ]:
        print(f"of an earlier export, perhaps of another model: {', '.join(others)}")


def fitting(name, images, multiple):
    """float32 (B, C, H, W), as a format takes them: a .pt2 multiples only, continued as UNET does it."""
    height, width = images.shape[2:]
    return (
        np.pad(
            images, ((0, 0), (0, 0), (0, -height % multiple), (0, -width % multiple)), mode="edge"
        )
        if name == "pt2"
        else images
    )


def measure(rows, running, eager, image, multiple):
    """Add "ms", the median latency of one image on two threads, to each row: all take turns."""
    import torch

    torch.set_num_threads(2)
    times = {name: [] for name in rows}
    for _ in range(TURNS):
        for name in rows:
            time.sleep(
                REST
            )  # the threads of the one before wait for more work, busily, for a while
            if name in running:
                seconds = running[name].call(fitting(name, image, multiple), RUNS)
            else:
                seconds = []
                for _ in range(RUNS):
                    started = time.perf_counter()
                    eager([image], half="bfloat16" in name)
                    seconds.append(time.perf_counter() - started)
            times[name] += seconds[2:]  # the first two wake the threads
    for name, seconds in times.items():
        rows[name]["ms"] = 1000 * statistics.median(seconds)


def readme(rows, remarks, facts, what, count, args):
    decision = (
        f"above {np.log(facts['THRESHOLD'] / (1 - facts['THRESHOLD'])):.4g} it is foreground (probability {facts['THRESHOLD']})"
        if len(facts["CLASSES"]) == 1
        else f"the largest is the class, of {', '.join(map(printable, facts['CLASSES']))}"
    )
    multiple = facts["UNSHUFFLE"] * 2 ** len(facts["FEATURES"])
    height, width, channels = facts["IMAGE_HEIGHT"], facts["IMAGE_WIDTH"], facts["IN_CHANNELS"]
    lines = [
        f"# {Path(args.model).name} in other formats",
        "",
        f"Made by `python export.py`. Dice: mean over {count} {what}, at their own size. Latency: one image of {height}x{width}, median of {TURNS * (RUNS - 2)} runs on two threads of this machine, the formats taking turns. "
        "Difference: of the logits to PyTorch in float32, on images of four sizes in batches of 1 to 3.",
        "",
        "| format | file | MB | ms per image | largest difference | mean difference | Dice |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        file, size = (FORMATS[name][0], f"{row['mb']:.2f}") if name in FORMATS else ("", "")
        lines.append(
            f"| {name} | {file} | {size} | {row['ms']:.1f} | {row['max']:.1e} | {row['mean']:.1e} | {row['dice']:.5f} |"
        )
    lines += [
        "",
        *remarks,
        "",
        f"Input: float32 (batch, {channels}, height, width), any batch, height and width (unet_model.pt2: multiples of {multiple}); the network was trained on {height}x{width}. Levels 0 to 255, {'RGB' if channels == 3 else 'grey'}, are divided by 255, less {facts['MEAN']}, "
        f"divided by {facts['STD']}. Output: logits (batch, {len(facts['CLASSES'])}, height, width); {decision}. Upsample the logits to the photograph's size, then compare. "
        "These facts are in the files too: an .onnx has them as metadata (opset 20), a .pt2 and the TorchScript file as `config.json`.",
        "",
        *(
            [
                "`python predict.py photograph.jpg` (onnxruntime, NumPy and Pillow; no torch) writes a mask."
            ]
            if NEEDS.keys() & set(args.formats)
            else []
        ),
    ]
    for name in args.formats:
        file, load, run = FORMATS[name]
        lines += ["", f"## {file}", "", "```python", load, run, "```"]
        lines += ["", f"Height and width must be multiples of {multiple}."] if name == "pt2" else []
        lines += (
            ["", "Loading it runs code that is in it: for files that you made yourself."]
            if name == "pth"
            else []
        )
    return "\n".join(lines) + "\n"


PREDICT = '''"""A photograph to a mask, with onnxruntime, NumPy and Pillow: python predict.py PHOTOGRAPH [FILE.onnx]"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

photograph = Path(sys.argv[1])
session = onnxruntime.InferenceSession(sys.argv[2] if len(sys.argv) > 2 else Path(__file__).with_name("MODEL"))
facts = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}

image = ImageOps.exif_transpose(Image.open(photograph))
image = Image.fromarray(np.uint8(np.asarray(image) / 257)) if image.mode.startswith("I") else image  # of 16 bits
image = image.convert("RGB" if facts["IN_CHANNELS"] == 3 else "L")
size = facts["IMAGE_WIDTH"], facts["IMAGE_HEIGHT"]
scaled = image.resize(size, Image.Resampling.HAMMING if all(np.less_equal(size, image.size)) else Image.Resampling.BILINEAR)
levels = np.float32(scaled).reshape(*size[::-1], -1).transpose(2, 0, 1) / 255  # (channels, height, width)
mean, std = (np.float32(facts[name]).reshape(-1, 1, 1) for name in ("MEAN", "STD"))
logits = session.run(None, {"input": ((levels - mean) / std)[None]})[0][0]  # (classes, height, width)

whole = [np.asarray(Image.fromarray(one).resize(image.size, Image.Resampling.BILINEAR)) for one in logits]
cut = np.log(facts["THRESHOLD"] / (1 - facts["THRESHOLD"]))
mask = np.uint8(np.argmax(whole, axis=0) if len(whole) > 1 else 255 * (whole[0] > cut))  # indices of facts["CLASSES"], or 0 and 255
target = photograph.with_name(f"{photograph.stem}_mask.png")
with open(target, "xb") as file:  # nothing is overwritten
    Image.fromarray(mask).save(file, "PNG")
print(f"{target}: {100 * (mask > 0).mean():.1f} % {'foreground' if len(whole) == 1 else 'not ' + facts['CLASSES'][0]}")
'''


if __name__ == "__main__":
    keep_freed_memory()
    with user_errors():
        args = arguments()
        main(args)
