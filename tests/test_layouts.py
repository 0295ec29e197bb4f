"""Data sets as others arrange and annotate them become photographs and masks."""

import base64
import errno
import io
import json
import re
import shlex
import shutil
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import ROOT, scene, tiny_options, write_pairs
from PIL import Image

from carvana.annotations import coco_area, coco_masks, labelme_masks, voc_masks
from carvana.errors import UserError
from carvana.layouts import (
    EXPECTED,
    annotated_masks,
    folder_files,
    match_annotations,
    sources_of_folder,
)
from carvana.naming import Naming
from carvana.sources import open_sources, write_file

SIZE = (48, 72)
SQUARE = [[10, 8], [40, 8], [40, 30], [10, 30]]  # x, y
HOLE = [[20, 12], [30, 12], [30, 20], [20, 20]]


def write_photographs(folder, names, suffix=".jpg"):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        seed = sum(map(ord, name))
        Image.fromarray(scene(seed, *SIZE)[0]).save(folder / f"{name}{suffix}")


def filled(*polygons):
    """Return a mask of polygons and their values, uint8 (H, W)."""
    mask = np.zeros(SIZE, np.uint8)
    for points, value in polygons:
        cv2.fillPoly(mask, [np.array(points, np.int32)], value)
    return mask


def masks_of(folder):
    """Return {photograph's name: mask} of data/, whatever side of the split they are on."""
    masks = {}
    for path in sorted(folder.glob("data/*_masks/*")):
        with Image.open(path) as mask:
            masks[path.stem.removesuffix("_mask")] = np.array(mask)
    return masks


NAMES = ["p0", "p1", "p2", "p3"]
SPLIT = ("--val-fraction", 0.25)


# ---------------------------------------------------------------- annotations


def flat(points):
    return [float(number) for point in points for number in point]


def coco(categories, annotations, names=NAMES):
    return {
        "images": [
            {"id": 7 + place, "file_name": f"{name}.jpg", "height": SIZE[0], "width": SIZE[1]}
            for place, name in enumerate(names)
        ],
        "categories": [
            {"id": number, "name": name, "supercategory": parent}
            for number, name, parent in categories
        ],
        "annotations": [
            {"id": place, "image_id": image, "category_id": category, "segmentation": area}
            for place, (image, category, area) in enumerate(annotations)
        ],
    }


def column_lengths(mask):
    """Return COCO's uncompressed run lengths of a mask: down the columns, zeros first."""
    pixels = np.concatenate([[0], mask.T.ravel() > 0, [0]])
    edges = np.flatnonzero(np.diff(pixels))
    bounds = np.concatenate([[0], edges, [mask.size]])
    return {"size": list(SIZE), "counts": np.diff(bounds).tolist()}


def test_coco_of_one_class(tmp_path, run):
    write_photographs(tmp_path / "photos", NAMES)
    rle = column_lengths(filled((SQUARE, 1)))
    annotations = [(7, 3, [flat(SQUARE)]), (8, 3, rle), (9, 3, [flat(SQUARE), flat(HOLE)])]
    content = coco([(3, "car", "vehicle")], annotations)
    (tmp_path / "instances.json").write_text(json.dumps(content))
    finished = run("prepare_data.py", "photos", "instances.json", *SPLIT)
    assert "CLASSES" not in finished.stdout
    masks = masks_of(tmp_path)
    assert sorted(masks) == NAMES
    assert set(np.unique(masks["p0"])) == {0, 255}
    assert np.array_equal(masks["p1"], filled((SQUARE, 255)))
    assert abs(int((masks["p0"] > 0).sum()) - 30 * 22) < 70
    assert not masks["p3"].any()


def test_coco_of_several_classes_prints_them(tmp_path, run):
    """Roboflow's: beside the photographs, with a placeholder above all categories."""
    write_photographs(tmp_path / "export", NAMES)
    categories = [(0, "cars-abc", "none"), (1, "body", "cars-abc"), (2, "glass", "cars-abc")]
    annotations = [(number, 1, [flat(SQUARE)]) for number in range(7, 11)]
    annotations += [(number, 2, [flat(HOLE)]) for number in range(7, 11)]
    path = tmp_path / "export/_annotations.coco.json"
    path.write_text(json.dumps(coco(categories, annotations)))
    finished = run("prepare_data.py", "export", *SPLIT)
    assert 'CLASSES = ["background", "body", "glass"]' in finished.stdout
    assert "--classes background body glass" in finished.stdout
    masks = masks_of(tmp_path)
    assert masks["p2"][10, 15] == 1
    assert masks["p2"][16, 25] == 2
    classes = ("--classes", "background", "body", "glass")
    run("train.py", *tiny_options(NUM_EPOCHS=1), *classes)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"categories": []}, r"no COCO file of instances \(KeyError"),
        ({"images": 5}, r"no COCO file of instances"),
        ({"annotations": [{"image_id": 7, "category_id": 3}]}, "boxes but without outlines"),
        (
            {"annotations": [{"image_id": 7, "category_id": 3, "segmentation": [[1, 2]]}]},
            "expected a list of at least 6 numbers",
        ),
        (
            {
                "annotations": [
                    {
                        "image_id": 7,
                        "category_id": 3,
                        "segmentation": {"size": list(SIZE), "counts": [5, 9]},
                    }
                ]
            },
            "run lengths cover 14 of 3456 pixels",
        ),
    ],
    ids=["no categories", "no images", "boxes", "two numbers", "short run lengths"],
)
def test_coco_that_is_damaged_is_named(tmp_path, run, change, message):
    write_photographs(tmp_path / "photos", NAMES)
    content = coco([(3, "car", "vehicle")], [(7, 3, [flat(SQUARE)])]) | change
    (tmp_path / "instances.json").write_text(json.dumps(content))
    stderr = run("prepare_data.py", "photos", "instances.json", *SPLIT, status=2).stderr
    assert re.search(message, stderr), stderr


def labelme(shapes):
    return {"version": "5", "shapes": shapes, "imageHeight": SIZE[0], "imageWidth": SIZE[1]}


def shape(label, points, kind="polygon", **more):
    return {"label": label, "points": points, "shape_type": kind} | more


def png_of(mask):
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_labelme_draws_every_kind_of_shape(tmp_path, run):
    write_photographs(tmp_path / "photos", NAMES)
    shapes = {
        "p0": [shape("car", SQUARE), shape("_background_", HOLE)],
        "p1": [shape("car", [SQUARE[2], SQUARE[0]], "rectangle")],
        "p2": [shape("car", [[30, 20], [30, 30]], "circle")],
        "p3": [
            shape("car", [[5, 6], [14, 15]], "mask", mask=png_of(np.full((10, 10), 255, np.uint8)))
        ],
    }
    for name, items in shapes.items():
        (tmp_path / f"photos/{name}.json").write_text(json.dumps(labelme(items)))
    run("prepare_data.py", "photos", *SPLIT)
    masks = masks_of(tmp_path)
    assert np.array_equal(masks["p0"], filled((SQUARE, 255), (HOLE, 0)))
    assert np.array_equal(masks["p1"], filled((SQUARE, 255)))
    assert abs(int((masks["p2"] > 0).sum()) - 314) < 20
    assert (masks["p3"][6:16, 5:15] == 255).all()
    assert (masks["p3"] > 0).sum() == 100


def test_labelme_with_pixels_to_ignore_has_two_classes(tmp_path, run):
    write_photographs(tmp_path / "photos", NAMES)
    (tmp_path / "labels").mkdir()
    for name in NAMES:
        content = labelme([shape("car", SQUARE), shape("__ignore__", HOLE)])
        (tmp_path / f"labels/{name}.json").write_text(json.dumps(content))
    finished = run("prepare_data.py", "--images", "photos", "--masks", "labels", *SPLIT)
    assert 'CLASSES = ["background", "car"]' in finished.stdout
    assert set(np.unique(masks_of(tmp_path)["p0"])) == {0, 1, 255}


def test_labelme_shapes_without_area_are_named(tmp_path, run):
    write_photographs(tmp_path / "photos", NAMES)
    for name in NAMES:
        content = labelme([shape("car", SQUARE[:2], "line"), shape("car", SQUARE[:2])])
        (tmp_path / f"photos/{name}.json").write_text(json.dumps(content))
    stderr = run("prepare_data.py", "photos", *SPLIT, status=2).stderr
    assert "8 problems in annotations" in stderr
    assert "p0.json: car: a line has no area; draw a polygon" in stderr
    assert "p3.json: car: 2 points are no polygon" in stderr


def test_cvat_tree_is_read_by_its_labelmap(tmp_path, run):
    write_photographs(tmp_path / "photos", NAMES)
    colors = np.array([(0, 0, 0), (250, 50, 83), (52, 209, 183)], np.uint8)
    with zipfile.ZipFile(tmp_path / "cvat.zip", "w") as archive:
        archive.writestr(
            "labelmap.txt",
            "# label:color_rgb:parts:actions\nbackground:0,0,0::\nbody:250,50,83::\n"
            "glass:52,209,183::\n",
        )
        for name in NAMES:
            mask = colors[filled((SQUARE, 1), (HOLE, 2))]
            for folder in ("SegmentationClass", "SegmentationObject"):
                ok, png = cv2.imencode(".png", mask[..., ::-1])
                assert ok
                archive.writestr(f"{folder}/{name}.png", png.tobytes())
    finished = run("prepare_data.py", "photos", "cvat.zip", *SPLIT)
    assert 'CLASSES = ["background", "body", "glass"]' in finished.stdout
    assert np.array_equal(masks_of(tmp_path)["p0"], filled((SQUARE, 1), (HOLE, 2)))


def test_voc_tree_without_labelmap_has_its_classes(tmp_path, run):
    root = tmp_path / "VOC2012"
    write_photographs(root / "JPEGImages", [*NAMES, "unlabeled"])
    (root / "SegmentationClass").mkdir()
    mask = filled((SQUARE, 7), (HOLE, 255))
    picture = Image.fromarray(mask, "L").convert("P")
    palette = np.zeros((256, 3), np.uint8)
    palette[7] = (128, 128, 128)
    palette[255] = (224, 224, 192)
    picture = Image.fromarray(mask)
    picture.putpalette(palette.tobytes())
    for name in NAMES:
        picture.save(root / f"SegmentationClass/{name}.png")
    finished = run("prepare_data.py", "VOC2012", *SPLIT)
    assert '"bus", "car", "cat"' in finished.stdout
    masks = masks_of(tmp_path)
    assert sorted(masks) == NAMES
    assert np.array_equal(masks["p1"], mask)


# ---------------------------------------------------------------- folders and archives


def write_named(folder, images, masks, suffix=""):
    write_pairs(folder / images, folder / "raw", cars=2)
    (folder / masks).mkdir()
    for path in sorted((folder / "raw").iterdir()):
        name = path.stem.removesuffix("_mask")
        with Image.open(path) as mask:
            mask.convert("L").save(folder / masks / f"{name}{suffix}.png")
    shutil.rmtree(folder / "raw")


@pytest.mark.parametrize("names", [("images", "masks"), ("imgs", "labels"), ("input", "target")])
def test_folder_of_two_folders(tmp_path, run, names):
    if names[1] == "target":
        names = ("input", "targets")
    write_named(tmp_path / "set", *names)
    run("prepare_data.py", "set", "--val-fraction", 0.5)
    assert len(masks_of(tmp_path)) == 4


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar"])
def test_archive_of_two_folders(tmp_path, run, kind):
    write_named(tmp_path / "set/inner", "images", "masks")
    (tmp_path / "set/inner/images/Thumbs.db").write_text("x")
    formats = {"zip": "zip", "tar.gz": "gztar", "tar": "tar"}
    shutil.make_archive(str(tmp_path / "set"), formats[kind], tmp_path / "set")
    shutil.rmtree(tmp_path / "set")
    run("prepare_data.py", f"set.{kind}", "--val-fraction", 0.5)
    assert len(masks_of(tmp_path)) == 4


def test_two_archives_by_options(tmp_path, run):
    write_named(tmp_path / "set", "images", "masks")
    for name in ("images", "masks"):
        shutil.make_archive(str(tmp_path / name), "zip", tmp_path / "set" / name)
    run("prepare_data.py", "--images", "images.zip", "--masks", "masks.zip", "--val-fraction", 0.5)
    assert len(masks_of(tmp_path)) == 4


def test_photographs_beside_their_masks(tmp_path, run):
    write_pairs(tmp_path / "all", tmp_path / "all", cars=2)
    (tmp_path / "all/_classes.csv").write_text("Pixel Value, Class\n0, background\n1, car\n")
    run("prepare_data.py", "all", "--val-fraction", 0.5)
    masks = masks_of(tmp_path)
    assert len(masks) == 4
    assert not list(tmp_path.glob("data/*_images/*_mask*"))


def test_mask_for_each_object(tmp_path, run):
    """As in the Data Science Bowl of 2018."""
    for name in NAMES:
        write_photographs(tmp_path / f"stage1/{name}/images", [name], ".png")
        folder = tmp_path / f"stage1/{name}/masks"
        folder.mkdir()
        Image.fromarray(filled((SQUARE, 255))).save(folder / "a.png")
        Image.fromarray(filled(([[50, 40], [60, 40], [60, 45]], 255))).save(folder / "b.png")
    run("prepare_data.py", "stage1", *SPLIT)
    expected = filled((SQUARE, 255), ([[50, 40], [60, 40], [60, 45]], 255))
    assert np.array_equal(masks_of(tmp_path)["p0"], expected)


def test_mask_for_each_class(tmp_path, run):
    write_photographs(tmp_path / "set/images", NAMES)
    for value, (kind, points) in enumerate([("body", SQUARE), ("glass", HOLE)], 1):
        folder = tmp_path / f"set/masks/{kind}"
        folder.mkdir(parents=True)
        for name in NAMES:
            Image.fromarray(filled((points, 255 // value))).save(folder / f"{name}.png")
    finished = run("prepare_data.py", "set", *SPLIT)
    assert 'CLASSES = ["background", "body", "glass"]' in finished.stdout
    assert np.array_equal(masks_of(tmp_path)["p0"], filled((SQUARE, 1), (HOLE, 2)))


def test_folder_that_is_no_data_set_says_what_is_expected(tmp_path, run):
    (tmp_path / "set/a").mkdir(parents=True)
    (tmp_path / "set/b").mkdir()
    assert EXPECTED in run("prepare_data.py", "set", status=2).stderr


@pytest.mark.parametrize("name", ["../outside", "link"])
def test_tar_that_leads_outside_is_refused(tmp_path, run, name):
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        member = tarfile.TarInfo(name)
        if name == "link":
            member.type = tarfile.SYMTYPE
            member.linkname = "/etc"
        archive.addfile(member, io.BytesIO(b""))
    stderr = run("prepare_data.py", "set.tar", status=2).stderr
    assert "cannot be unpacked" in stderr
    assert not (tmp_path.parent / "outside").exists()


def test_sub_folders_for_patients_are_mirrored(tmp_path, run):
    """In two folders, or photographs beside their masks."""
    for car, patient in enumerate("ab"):
        two = (tmp_path / f"two/images/{patient}", tmp_path / f"two/masks/{patient}")
        write_pairs(*two, cars=1, first=car)
        write_pairs(tmp_path / f"one/{patient}", tmp_path / f"one/{patient}", cars=1, first=car)
    group = ("--group-regex", "([ab])_.*", "--val-fraction", 0.5, "--recursive")
    folders = ("--images", "two/images", "--masks", "two/masks")
    for source in (folders, ("one", "--force")):
        run("prepare_data.py", *source, *group)
        names = sorted(path.name for path in tmp_path.glob("data/*_images/*"))
        expected = [
            f"{patient}_00000000000{car}_0{angle}.jpg"
            for car, patient in enumerate("ab")
            for angle in (1, 2)
        ]
        assert names == expected
        assert len(list(tmp_path.glob("data/val_images/*"))) == 2


def test_photographs_without_a_mask_show_background(tmp_path, run):
    write_pairs(tmp_path / "photos", tmp_path / "masks", cars=2)
    for path in list((tmp_path / "masks").iterdir())[:2]:
        path.unlink()
    source = ("--images", "photos", "--masks", "masks", "--val-fraction", 0.5)
    assert "image without a mask" in run("prepare_data.py", *source, status=2).stderr
    finished = run("prepare_data.py", *source, "--missing-mask", "empty")
    assert finished.stderr.count("empty mask") == 2
    masks = masks_of(tmp_path)
    assert sum(not mask.any() for mask in masks.values()) == 2
    assert {mask.shape for mask in masks.values()} == {SIZE}


def test_names_of_others_are_told_to_training(tmp_path, run):
    write_pairs(tmp_path / "photos", tmp_path / "masks", cars=2)
    for path in list((tmp_path / "photos").iterdir()):
        path.rename(path.with_name(f"{path.stem}_sat.jpg"))
    affix = ("--image-suffix", "_sat")
    source = ("--images", "photos", "--masks", "masks", "--val-fraction", 0.5)
    stdout = run("prepare_data.py", *source, *affix).stdout
    assert 'for config.py: IMAGE_SUFFIX = "_sat"\nor for one run: --image-suffix _sat' in stdout
    run("train.py", *tiny_options(NUM_EPOCHS=1), *affix)


# ---------------------------------------------------------------- annotations that are odd


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def written(sources, name, folder):
    """Return the mask that sources write under a name."""
    write_file(sources.masks[name], folder / name)
    with Image.open(folder / name) as mask:
        return np.array(mask)


CARS = [(3, "car", "")]


@pytest.mark.parametrize("kind", ["images", "categories"])
def test_coco_with_an_id_twice_is_refused(tmp_path, kind):
    content = coco([*CARS, (4, "glass", "")], [(7, 3, [flat(SQUARE)])])
    content[kind][1]["id"] = content[kind][0]["id"]
    with pytest.raises(UserError, match=f"{kind}.*: several have the id [37]; expected"):
        coco_masks(write_json(tmp_path / "a.json", content))


def test_classes_of_annotations_are_valid(tmp_path):
    categories = [(1, "background", ""), (2, "car", ""), (5, "car", ""), (6, "glass", "")]
    areas = [(7, number, [flat(SQUARE)]) for number in (1, 2)] + [(8, 5, [flat(SQUARE)])]
    path = write_json(tmp_path / "a.json", coco(categories, areas))
    annotated = coco_masks(path)
    assert annotated.classes == ["background", "car", "glass"]
    assert annotated.draw["p1"]().max() == 1
    path = write_json(tmp_path / "p0.json", labelme([shape("background", SQUARE)]))
    with pytest.raises(UserError, match="no kind of object"):
        labelme_masks([path])
    path = write_json(tmp_path / "p0.json", labelme([shape("7", SQUARE)]))
    with pytest.raises(UserError, match="expected the classes' names"):
        labelme_masks([path])


def test_photographs_without_annotations_are_reported(tmp_path, run):
    """LabelMe writes no file of a photograph of nothing."""
    write_photographs(tmp_path / "photos", NAMES)
    for name in NAMES[:3]:
        write_json(tmp_path / f"photos/{name}.json", labelme([shape("car", SQUARE)]))
    stderr = run("prepare_data.py", "photos", *SPLIT, status=2).stderr
    assert "p3.jpg: image without a mask" in stderr
    run("prepare_data.py", "photos", *SPLIT, "--missing-mask", "empty")
    assert not masks_of(tmp_path)["p3"].any()


def test_voc_photographs_without_a_mask_are_counted(tmp_path, capsys):
    voc_tree(tmp_path)
    write_photographs(tmp_path / "VOC2012/JPEGImages", ["x", "y"])
    assert len(sources_of_folder(tmp_path / "VOC2012").images) == 4
    assert "left out: 2 photographs without a mask in SegmentationClass" in capsys.readouterr().err


@pytest.mark.parametrize(
    "lines, message",
    [
        ("a:1,2,3::\nb:1,2,3::", "a and b have the same color 1,2,3"),
        ("a:1,2,256::", "each color from 0 to 255"),
        ("a:1,-2,3::", "each color from 0 to 255"),
    ],
)
def test_labelmap_with_wrong_colors_is_refused(tmp_path, lines, message):
    (tmp_path / "SegmentationClass").mkdir()
    (tmp_path / "labelmap.txt").write_text(lines)
    with pytest.raises(UserError, match=message):
        voc_masks(tmp_path)


@pytest.mark.parametrize(
    "area, message",
    [
        ([[1e8, 0, 1e8, 1e8, 0, 1e8]], "each from -65500 to 131000"),
        ([[10**400, 0, 9, 9, 0, 9]], "each from -65500 to 131000"),
        ([[float("nan"), 0, 9, 9, 0, 9]], "each from -65500 to 131000"),
        ({"size": list(SIZE), "counts": [399.5, 0.5, 3056]}, "whole numbers"),
        ({"size": list(SIZE), "counts": [-1, 3457]}, "whole numbers"),
    ],
    ids=["far", "400 digits", "nan", "half pixels", "negative"],
)
def test_coco_numbers_that_crash_libraries_are_refused(tmp_path, area, message):
    path = write_json(tmp_path / "a.json", coco(CARS, [(7, 3, area)]))
    with pytest.raises(UserError, match=message):
        coco_masks(path).draw["p0"]()


@pytest.mark.parametrize("number", [1e8, 10**400, float("inf")], ids=["far", "digits", "inf"])
def test_labelme_points_far_outside_are_refused(tmp_path, number):
    for kind in ("polygon", "circle"):
        shapes = [shape("car", [[1, 1], [9, 9], [1, number]][-3 if kind == "polygon" else -2 :])]
        shapes[0]["shape_type"] = kind
        path = write_json(tmp_path / "p0.json", labelme(shapes))
        with pytest.raises(UserError, match="far outside"):
            labelme_masks([path])
    circle = shape("car", [[-60000, 0], [60000, 0]], "circle")
    with pytest.raises(UserError, match="a radius over 65500"):
        labelme_masks([write_json(tmp_path / "p0.json", labelme([circle]))])


def test_annotations_of_a_huge_photograph_are_refused(tmp_path):
    content = labelme([shape("car", SQUARE)]) | {"imageHeight": 60_000, "imageWidth": 60_000}
    with pytest.raises(UserError, match="3,600 megapixels.*--max-megapixels 3600"):
        labelme_masks([write_json(tmp_path / "p0.json", content)])


def test_stray_json_beside_two_folders_is_no_obstacle(tmp_path, capsys):
    write_named(tmp_path, "images", "masks")
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "masks/damaged.json").write_text("{")
    assert len(sources_of_folder(tmp_path).images) == 4
    warnings = capsys.readouterr().err
    assert "empty.json is not JSON" in warnings
    assert "damaged.json is not JSON" in warnings


def test_json_of_another_kind_is_named(tmp_path):
    write_photographs(tmp_path / "photos", NAMES)
    path = write_json(tmp_path / "INSTANCES.JSON", coco(CARS, [(7, 3, [flat(SQUARE)])]))
    assert open_sources([tmp_path / "photos", path], tmp_path).classes == ("car",)
    write_json(tmp_path / "labels/P0.JSON", labelme([shape("car", SQUARE)]))
    assert annotated_masks(tmp_path / "labels").classes == ["car"]
    path = write_json(tmp_path / "a.JSON", {"boxes": []})
    with pytest.raises(UserError, match="expected COCO's instances .*, or LabelMe's"):
        open_sources([tmp_path / "photos", path], tmp_path)


def test_annotated_names_match_those_of_macos_and_windows(tmp_path):
    content = coco(CARS, [], ["é", "b"])
    content["images"][1]["file_name"] = "train\\b.jpg"
    annotated = coco_masks(write_json(tmp_path / "a.json", content))
    names = [unicodedata.normalize("NFD", "é.jpg"), "b.jpg"]
    sources = match_annotations(dict.fromkeys(names), annotated)
    assert sorted(sources.masks) == ["b_mask.png", "é_mask.png"]


def test_masks_of_annotations_follow_the_naming(tmp_path, run):
    write_photographs(tmp_path / "photos", NAMES)
    write_coco(tmp_path, "photos/a.json", NAMES)
    run("prepare_data.py", "photos", *SPLIT, "--mask-suffix", "_seg")
    assert {path.name for path in tmp_path.glob("data/*_masks/*")} == {
        f"{name}_seg.png" for name in NAMES
    }


# ---------------------------------------------------------------- folders that are odd


@pytest.mark.parametrize("kind", ["16 bits", "8 bits", "all of it"])
def test_masks_of_objects_hold_any_value(tmp_path, kind):
    mask = filled((SQUARE, 7))
    if kind == "all of it":
        mask[:] = 7
    write_photographs(tmp_path / "set/p0/images", ["p0"], ".png")
    write_photographs(tmp_path / "set/p1", ["x"])
    (tmp_path / "set/p0/masks").mkdir()
    image = Image.fromarray(mask.astype(np.uint16) if kind == "16 bits" else mask)
    image.save(tmp_path / "set/p0/masks/a.png")
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(tmp_path / "set/p0/masks/b.png")
    union = written(sources_of_folder(tmp_path / "set"), "p0_mask.png", tmp_path)
    assert np.array_equal(union > 0, mask > 0)


def test_masks_by_class_are_read_as_other_masks_are(tmp_path):
    write_photographs(tmp_path / "images", ["p0"])
    expected = filled((SQUARE, 255))
    for kind, mask in {"body": expected, "glass": np.zeros(SIZE, np.uint8)}.items():
        (tmp_path / f"masks/{kind}").mkdir(parents=True)
        Image.fromarray(mask).save(tmp_path / f"masks/{kind}/p0.jpg", quality=95)
    union = written(sources_of_folder(tmp_path), "p0.png", tmp_path)
    assert np.array_equal(union > 0, expected > 0)
    soft = cv2.blur(expected, (9, 9))
    Image.fromarray(soft).save(tmp_path / "masks/body/p0.jpg")
    with pytest.raises(UserError, match="p0.jpg holds .* values, .*; expected 0 and one"):
        written(sources_of_folder(tmp_path), "p0.png", tmp_path)


def test_sub_folders_of_masks_are_named_as_classes(tmp_path, capsys):
    write_photographs(tmp_path / "images", ["p0"])
    for kind in ("body", "glass", ".cache"):
        (tmp_path / "masks" / kind).mkdir(parents=True)
    assert sources_of_folder(tmp_path).classes == ("background", "body", "glass")
    assert "masks: body glass\n" in capsys.readouterr().out
    (tmp_path / "masks/Val").mkdir()
    with pytest.raises(UserError, match="Val, which are splits, not classes; .*--recursive"):
        sources_of_folder(tmp_path)


def test_files_that_get_the_same_name_are_refused(tmp_path):
    write_photographs(tmp_path / "p", ["q_a"])
    write_photographs(tmp_path / "p_q", ["a"])
    with pytest.raises(UserError, match="p_q/a.jpg: a second file that gets the name p_q_a.jpg"):
        folder_files(tmp_path, recursive=True)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_two_archives_may_have_a_top_folder_each(tmp_path, kind):
    write_named(tmp_path / "set", "images", "masks")
    paths = []
    for name in ("images", "masks"):
        archive = tmp_path / name
        paths.append(shutil.make_archive(str(archive), kind, tmp_path / "set", name))
    images, masks, _ = open_sources(paths, tmp_path)
    assert len(images) == 4
    assert {name.split(".")[0] for name in images} == {name.split(".")[0] for name in masks}


def test_zip_of_annotations_may_have_a_top_folder(tmp_path):
    write_photographs(tmp_path / "photos", NAMES)
    with zipfile.ZipFile(tmp_path / "labels.zip", "w") as archive:
        content = coco(CARS, [(7, 3, [flat(SQUARE)])])
        archive.writestr("labels/instances.json", json.dumps(content))
    sources = open_sources([tmp_path / "photos", tmp_path / "labels.zip"], tmp_path)
    assert sources.classes == ("car",)


def test_naming_reaches_a_folder_of_both(tmp_path, run):
    for name in NAMES:
        write_photographs(tmp_path / "all", [name], ".png")
        Image.fromarray(filled((SQUARE, 255))).save(tmp_path / f"all/{name}_seg.png")
    run("prepare_data.py", "all", *SPLIT, "--mask-suffix", "_seg")
    assert len(list(tmp_path.glob("data/*_masks/*_seg.png"))) == 4
    naming = Naming("_seg")
    assert len(open_sources([tmp_path / "all"], tmp_path, naming, recursive=True).masks) == 4


@pytest.mark.parametrize("fault", ["damaged", "unknown compression"])
def test_zip_that_cannot_be_unpacked_is_refused(tmp_path, fault):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images/a.txt", b"content of a file")
    data = path.read_bytes()
    if fault == "damaged":
        data = data.replace(b"content of", b"CONTENT OF")
    else:  # the method, in the local header and in the directory
        data = data.replace(b"PK\3\4\x14\0\0\0\0\0", b"PK\3\4\x14\0\0\0\x63\0")
        start = data.index(b"PK\1\2")
        data = data[: start + 10] + b"\x63\0" + data[start + 12 :]
    path.write_bytes(data)
    with pytest.raises(UserError, match="set.zip cannot be unpacked"):
        open_sources([path], tmp_path)


def test_hidden_files_of_a_zip_are_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("__MACOSX/._a.jpg", b"x")
        archive.writestr("set/a.txt", b"x")
    with pytest.raises(UserError, match="is no data set that is known"):
        open_sources([tmp_path / "set.zip"], tmp_path)
    assert not list(tmp_path.rglob("._a.jpg"))
    assert list(tmp_path.rglob("a.txt"))


# ---------------------------------------------------------------- the document


def zip_pairs(folder):
    write_pairs(folder / "train", folder / "train_masks", cars=2)
    with zipfile.ZipFile(folder / "carvana-image-masking-challenge.zip", "w") as outer:
        for name in ("train", "train_masks"):
            shutil.make_archive(str(folder / name), "zip", folder, name)
            outer.write(folder / f"{name}.zip", f"{name}.zip")


def tar_pairs(folder):
    write_named(folder / "dataset", "images", "masks")
    shutil.make_archive(str(folder / "dataset"), "gztar", folder / "dataset")


def write_coco(folder, path, names):
    annotations = [(7 + place, 3, [flat(SQUARE)]) for place in range(len(names))]
    (folder / path).write_text(json.dumps(coco([(3, "car", "")], annotations, names)))


def coco_beside(folder):
    write_photographs(folder / "photos", NAMES)
    write_coco(folder, "instances.json", NAMES)


def roboflow_export(folder):
    names = [f"{name}_jpg.rf.{copy}0a1b" for name in ("p0", "x5") for copy in (1, 2)]
    write_photographs(folder / "export/train", names)
    write_coco(folder, "export/train/_annotations.coco.json", names)


def labelme_beside(folder):
    write_photographs(folder / "photos", NAMES)
    for name in NAMES:
        content = json.dumps(labelme([shape("car", SQUARE)]))
        (folder / f"photos/{name}.json").write_text(content)


def cvat_export(folder):
    write_photographs(folder / "photos", NAMES)
    with zipfile.ZipFile(folder / "cvat.zip", "w") as archive:
        archive.writestr("labelmap.txt", "background:0,0,0::\ncar:250,50,83::\n")
        for name in NAMES:
            colors = np.uint8([(0, 0, 0), (83, 50, 250)])[filled((SQUARE, 1))]
            archive.writestr(f"SegmentationClass/{name}.png", cv2.imencode(".png", colors)[1])


def voc_tree(folder):
    write_photographs(folder / "VOC2012/JPEGImages", NAMES)
    (folder / "VOC2012/SegmentationClass").mkdir()
    palette = np.zeros((256, 3), np.uint8)
    palette[7] = (128, 128, 128)
    for name in NAMES:
        picture = Image.fromarray(filled((SQUARE, 7)))
        picture.putpalette(palette.tobytes())
        picture.save(folder / f"VOC2012/SegmentationClass/{name}.png")


def nnunet_folders(folder):
    write_photographs(folder / "imagesTr", [f"{name}_0000" for name in NAMES], ".png")
    (folder / "labelsTr").mkdir()
    for name in NAMES:
        Image.fromarray(filled((SQUARE, 1))).save(folder / f"labelsTr/{name}.png")


def object_masks(folder):
    for name in NAMES:
        write_photographs(folder / f"stage1_train/{name}/images", [name], ".png")
        (folder / f"stage1_train/{name}/masks").mkdir()
        Image.fromarray(filled((SQUARE, 255))).save(folder / f"stage1_train/{name}/masks/a.png")


ORIGINS = {  # headings of docs/your-data.md, and what makes such files
    "Kaggle": zip_pairs,
    "One folder": lambda folder: write_pairs(folder / "all", folder / "all", cars=2),
    "Two folders in an archive": tar_pairs,
    "COCO": coco_beside,
    "Roboflow": roboflow_export,
    "LabelMe": labelme_beside,
    "CVAT": cvat_export,
    "Pascal VOC": voc_tree,
    "nnU-Net": nnunet_folders,
    "A mask for each object": object_masks,
}


def documented_commands():
    """Return {heading: command} of the section on what comes from elsewhere."""
    text = (ROOT / "docs/your-data.md").read_text(encoding="utf-8")
    section = re.search("## From elsewhere(.*?)\n## ", text, re.DOTALL)[1]
    return dict(re.findall(r"^### (.*?)\n.*?^python (.*?)$", section, re.DOTALL | re.MULTILINE))


def test_document_names_every_origin():
    assert documented_commands().keys() == ORIGINS.keys()


@pytest.mark.parametrize("origin", ORIGINS)
def test_document_is_right_about(origin, tmp_path, run):
    """Its command makes a data set, which trains with the options that it ends with."""
    ORIGINS[origin](tmp_path)
    arguments = shlex.split(documented_commands()[origin])
    stdout = run(*arguments, "--val-fraction", 0.5).stdout
    masks = masks_of(tmp_path)
    assert len(masks) == 4
    assert all(mask.any() for mask in masks.values())
    assert {path.parent.name for path in tmp_path.glob("data/*_images/*")} == {
        "train_images",
        "val_images",
    }
    advice = re.search("or for one run: (.*)", stdout)
    run("train.py", *tiny_options(NUM_EPOCHS=1), *shlex.split(advice[1] if advice else ""))


def test_coco_run_lengths_are_those_of_its_library():
    coco = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for share in (0, 0.01, 0.5, 1):
        mask = (rng.random(SIZE) < share).astype(np.uint8)
        code = coco.encode(np.asfortranarray(mask))
        area = coco_area(code | {"counts": code["counts"].decode()}, SIZE)
        assert np.array_equal(area, mask)


@pytest.mark.parametrize("counts", ["zzzzzzzzz", "", "PPP", "0" * 9, "\u20ac", 7, None])
def test_coco_run_lengths_that_do_not_cover_are_refused(counts):
    with pytest.raises(UserError, match="run lengths"):
        coco_area({"size": list(SIZE), "counts": counts}, SIZE)


def test_one_folder_named_twice_is_one_of_photographs_beside_masks(tmp_path, run):
    """Else each mask would be its own photograph, and a network learn to copy."""
    for number in range(4):
        image, mask = scene(number)
        Image.fromarray(image).save(tmp_path / f"{number}.jpg")
        Image.fromarray(255 * mask).save(tmp_path / f"{number}.png")
    folders = ("--images", tmp_path, "--masks", tmp_path, "--out", tmp_path / "out")
    assert "3 cars       3 pairs" in run("prepare_data.py", *folders).stdout
    for path in tmp_path.glob("*.jpg"):
        path.unlink()
    stderr = run("prepare_data.py", *folders, "--force", status=2).stderr
    assert "is no data set that is known; expected train.zip" in stderr


def test_folders_are_searched_but_for_links_and_hidden_ones(tmp_path):
    for folder in ("a", "a/b", ".hidden"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jpg").touch()
    (tmp_path / "a/loop").symlink_to(tmp_path, target_is_directory=True)
    assert sorted(folder_files(tmp_path, recursive=True)) == ["a_b_x.jpg", "a_x.jpg"]


def test_folders_that_cannot_be_read_are_named(tmp_path, run, monkeypatch):
    for kind in ("images", "masks"):
        (tmp_path / kind / "sub").mkdir(parents=True)
    entries = Path.iterdir

    def refuse(path):
        if path == tmp_path / "images/sub":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return entries(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    folders = ("--images", tmp_path / "images", "--masks", tmp_path / "masks", "--recursive")
    stderr = run("prepare_data.py", *folders, status=2).stderr
    assert "images/sub: Permission denied" in stderr
