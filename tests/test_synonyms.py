"""Options that people know from elsewhere get the right answer."""

import re

import pytest

import config
from carvana import options
from carvana.synonyms import SYNONYMS, describe_unknown

CONSTANTS = [options.option_name(name) for name in options.default_values(config)]


def words():
    return [(word, answers) for names, answers in SYNONYMS.items() for word in names.split()]


def test_synonyms_are_of_one_meaning_each():
    names = [word for word, _ in words()]
    assert len(names) == len(set(names))
    assert all(re.fullmatch("--?[A-Za-z0-9-]+", name) for name in names)


def test_synonyms_lead_to_options_that_exist():
    scripts = (
        "--img",
        "--images",
        "--masks",
        "--model",
        "--out",
        "--val-fraction",
        "--gallery",
        "--no-save",
    )
    known = {*CONSTANTS, *scripts}
    for name, answers in words():
        for answer in answers:
            for option in re.findall("--[a-z-]+", answer):
                assert option in known, (name, option)


@pytest.mark.parametrize(
    "script, words, answer",
    [
        ("inference.py", "--img a.jpg --weights b.pth", "there is no --weights; use --model FILE"),
        ("inference.py", "--img a.jpg --output b", "there is no --output; use --out DIR"),
        ("inference.py", "--image a.jpg", "there is no --image; use --img PATH"),
        ("inference.py", "--img a.jpg --cut", "there is no --cut; the nearest is --cutout"),
        ("inference.py", "--imgs a.jpg --cutuot", "is --img; there is no --cutuot; the nearest"),
        ("evaluate.py", "--ckpt a.pth", "there is no --ckpt; use --model FILE"),
        ("prepare_data.py", "a.zip --val-split 0.2", "use --val-fraction SHARE"),
        ("export.py", "--devices cpu", "there is no --devices; the nearest is"),
    ],
)
def test_synonyms_are_answered_by_each_script(run, script, words, answer):
    stderr = run(script, *words.split(), status=2).stderr
    assert answer in stderr
    assert "--help lists the options" in stderr


def test_unknown_option_is_answered_with_the_nearest():
    assert describe_unknown("--num-epoch", CONSTANTS).endswith("the nearest is --num-epochs")
