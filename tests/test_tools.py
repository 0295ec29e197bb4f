"""The small tools: the README's picture, and what there is to gain."""

import re

import numpy as np
from helpers import load_tool, run_script, split_folders, write_model, write_pairs


def test_steps_show_photograph_mask_cutout_and_another_background(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks", cars=1, angles=1, height=96, width=144)
    (photograph,) = (tmp_path / "images").iterdir()
    tool = load_tool("draw_steps")
    panels = tool.draw_panels(write_model(tmp_path / "model.pth.tar"), photograph)
    first, mask, cutout, placed = (np.asarray(panel) for panel in panels)
    assert first.shape == mask.shape == (tool.HEIGHT, tool.WIDTH, 3)
    assert (mask < 10).mean() > 0.05 < (mask > 245).mean()
    assert (cutout == np.asarray(tool.draw_checks())).all(2).mean() > 0.05
    assert (placed == np.asarray(tool.draw_backdrop())).all(2).mean() > 0.05
    sheet = tool.draw_sheet(panels)
    assert sheet.size == (4 * tool.WIDTH + 3 * tool.GAP, tool.HEIGHT)


def test_correction_is_right_near_the_outline_alone():
    gains = load_tool("gains")
    target = np.zeros((60, 60), np.uint8)
    target[20:40, 20:40] = 1
    predicted = np.zeros_like(target)
    predicted[20:43, 20:40] = 1  # three rows too many
    assert (gains.correct_near_outline(predicted, target, 3) == target).all()
    corrected = gains.correct_near_outline(predicted, target, 2)
    assert (corrected != target).sum() == 16  # of the middle row, but for two pixels at either side
    predicted[5, 5] = 1
    assert gains.correct_near_outline(predicted, target, 0.5)[5, 5] == 1


def test_thin_parts_are_antennas_and_no_corners():
    gains = load_tool("gains")
    mask = np.zeros((80, 80), np.uint8)
    mask[40:70, 10:70] = 1
    assert not gains.find_thin_parts(mask).any()
    mask[10:40, 30:34] = 1
    thin = gains.find_thin_parts(mask)
    assert thin[10:38, 30:34].all() and thin.sum() < 30 * 4 + 10


def test_gains_are_listed_for_each_model_and_for_all(tmp_path):
    folders = split_folders(tmp_path)
    write_pairs(folders[0], folders[1], cars=2, angles=2)
    models = [write_model(tmp_path / f"{seed}.pth.tar", seed=seed) for seed in (0, 1)]
    options = ("--images", folders[0], "--masks", folders[1], "--every", 2)
    printed = run_script(tmp_path, "tools/gains.py", "--models", *models, *options).stdout
    rows = dict(re.findall(r"^\| (\S.*) \| ([01]\.\d{5}) \|$", printed, re.MULTILINE))
    assert "2 photographs; mean Dice" in printed
    assert len(rows) == 2 * (2 + 4) + 2
    dice = [float(rows["0.pth.tar"])]
    dice += [float(rows[f"0.pth.tar, perfect within {d} pixels of its outline"]) for d in (1, 8)]
    assert dice == sorted(dice) and dice[0] < dice[2]
    assert "all, with mirror images" in rows
    assert re.search(r"^thin parts, \d+ pixels, that are found:\n  0.pth.tar: \d", printed, re.M)
